"""Rows of the catalog while they are made, as typed dictionaries; `schema.COLUMNS` explains the columns.

Columns of a manifest and signals are not in them, as their names are known only at run time. A key is absent where the
value is not known yet.
"""

from __future__ import annotations

from typing import Required, TypedDict, cast

from pipeline.formats.schema import Status


class WeightColumns(TypedDict):
    """The weights of a lineage entry, joined with "+" where there are several."""

    weights_id: str | None
    weights_sha256: str | None
    weights_licence: str | None


class LineageEntry(WeightColumns):
    """What made some of a clip's values: an annotator, a filter or the network of `dedup`."""

    name: str
    version: str


class ShotColumns(TypedDict):
    """A shot of a source: frames `first` to `last` (inclusive)."""

    first: int
    last: int
    start_s: float
    end_s: float


class WindowColumns(TypedDict):
    """A clip that a source is cut into."""

    clip_id: str
    start_s: float
    end_s: float
    frames: int


class VerdictColumns(TypedDict, total=False):
    """What became of a source or a clip. One without `status` is still being worked on."""

    status: Status
    rule: str | None
    code: str | None
    stage: str | None
    detail: str | None


class SourceColumns(TypedDict, total=False):
    """What is known of a source file; the rows of its clips repeat it."""

    source_uri: Required[str]
    source_hash: str
    source_size: int | None
    source_stamp: str | None
    source_width: int
    source_height: int
    source_fps: float
    source_duration_s: float
    source_frames: int
    source_frames_unused: int
    source_frames_missing: int | None
    source_codec: str


class SourceRecord(SourceColumns, VerdictColumns, total=False):
    """The row of a source."""

    same_as: str
    detector: str
    content_box: list[int] | None
    shots: list[ShotColumns]
    windows: list[WindowColumns]
    timings: dict[str, float]


class ClipRecord(SourceColumns, VerdictColumns, total=False):
    """The row of a clip."""

    clip_id: Required[str]
    start_s: float
    end_s: float
    frames: int
    width: int
    height: int
    fps: float
    shard: str
    offset: int
    bytes: int
    crc32: int
    preview_shard: str
    preview_offset: int
    preview_bytes: int
    tasks: list[str]
    caption: str | None
    licence: str | None
    lineage: list[LineageEntry]
    timings: dict[str, float]


def source_columns(record: SourceRecord) -> SourceColumns:
    """The columns of a source that the rows of its clips repeat."""
    columns = {name: value for name, value in record.items() if name in SourceColumns.__annotations__}
    return cast("SourceColumns", columns)


def begin_clip(source: SourceColumns, window: WindowColumns) -> ClipRecord:
    """The row of a clip of which only the source and the window are known."""
    return cast("ClipRecord", {**source, **window})
