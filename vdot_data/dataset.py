"""A dataset that `vdot-data ingest` made, opened for reading."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

from pipeline.errors import UsageError, did_you_mean
from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.schema import BASE_LAYER
from pipeline.storage.scratch import Scratch

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    from numpy.typing import NDArray

    from pipeline.curation.select import Selection

Form = Literal["arrow", "pandas", "polars"]


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip's sample, with its layers: `members` by name after the clip's id, as in its shard ("mp4", "pose.mp4",
    "json", "txt")."""

    clip_id: str
    members: Mapping[str, bytes] = field(repr=False)

    @property
    def tracks(self) -> list[str]:
        """The names of its condition tracks."""
        return sorted(name.removesuffix(".mp4") for name in self.members if name.endswith(".mp4"))

    @property
    def caption(self) -> str | None:
        """What it shows, in words; None where nothing wrote a caption."""
        return self.members["txt"].decode() if "txt" in self.members else None

    @property
    def data(self) -> dict[str, Any]:
        """What its annotators measured: signals, keypoints, the scales that invert tracks."""
        values: dict[str, Any] = json.loads(self.members["json"])
        return values

    def frames(self, track: str | None = None) -> NDArray[np.uint8]:
        """Its pictures, or those of a track: uint8 [T, H, W, 3] RGB.

        Raises UsageError for a track that it does not have, ClipError CLIP_DAMAGED for bytes that are not whole.
        """
        if track is not None and track not in self.tracks:
            raise UsageError(f"clip {self.clip_id} has no track {track!r}{did_you_mean(track, self.tracks)}")
        return decode_clip(self.members["mp4" if track is None else f"{track}.mp4"])


class Dataset:
    """A dataset by its folder or URL. Each method reads what is committed when it is called."""

    def __init__(self, out: str) -> None:
        """Raises UsageError where there is no dataset."""
        from pipeline.catalog.catalog import open_dataset

        self._folder = open_dataset(out)

    @property
    def url(self) -> str:
        """Its folder or URL."""
        return self._folder.url

    def __repr__(self) -> str:
        return f"vdot_data.open({self.url!r})"

    @overload
    def clips(
        self, where: str | Sequence[str] = (), *, columns: Sequence[str] | None = None, form: Literal["arrow"] = "arrow"
    ) -> pa.Table: ...
    @overload
    def clips(
        self, where: str | Sequence[str] = (), *, columns: Sequence[str] | None = None, form: Literal["pandas"]
    ) -> pd.DataFrame: ...
    @overload
    def clips(
        self, where: str | Sequence[str] = (), *, columns: Sequence[str] | None = None, form: Literal["polars"]
    ) -> pl.DataFrame: ...
    def clips(
        self, where: str | Sequence[str] = (), *, columns: Sequence[str] | None = None, form: Form = "arrow"
    ) -> Any:
        """A row per clip, with the signals of every layer: kept, rejected, pending and failed ones.

        `where`: predicates in SQL, all of which must be true (`"status = 'kept'"`). `columns`: those to return, by
        default all. Rows are sorted by clip_id. Raises UsageError for an invalid predicate or an unknown column.
        """
        from pipeline.catalog import clip_table
        from pipeline.recipe.rules import quote_name

        predicates = [where] if isinstance(where, str) else list(where)
        with self._connection() as con:
            names = list(columns) if columns is not None else ["clip_id", *clip_table.list_columns(con)]
            clip_table.resolve_columns([f"{quote_name(name)} IS NULL" for name in names], con)
            used = clip_table.resolve_columns(predicates, con)
            clip_table.create(con, "wide", dict.fromkeys([*names, *used]))
            clip_table.check_predicates(predicates, "wide", con)
            chosen = ", ".join(map(quote_name, dict.fromkeys(names)))
            condition = " AND ".join(f"({predicate}\n)" for predicate in predicates) or "true"
            table = con.sql(f"SELECT {chosen} FROM wide WHERE {condition} ORDER BY clip_id").to_arrow_table()
        return _convert(table, form)

    @overload
    def sources(self, *, form: Literal["arrow"] = "arrow") -> pa.Table: ...
    @overload
    def sources(self, *, form: Literal["pandas"]) -> pd.DataFrame: ...
    @overload
    def sources(self, *, form: Literal["polars"]) -> pl.DataFrame: ...
    def sources(self, *, form: Form = "arrow") -> Any:
        """A row per source file: its shape, rate and length, what became of it, and why."""
        with self._connection() as con:
            names = con.execute(
                "SELECT column_name FROM (DESCRIBE sources) WHERE column_name LIKE 'source_%'"
            ).fetchall()
            columns = ", ".join(f'"{name}"' for (name,) in names)
            table = con.sql(
                f"SELECT {columns}, status, rule, code, detail, licence, len(shots) AS shots FROM sources "
                "ORDER BY source_uri"
            ).to_arrow_table()
        return _convert(table, form)

    def read(self, name: str) -> Clip:
        """A kept clip with its kept layers, by ranged reads of shards. `name`: its id, or six digits of it or more.

        Raises UsageError where no such clip is kept.
        """
        from pipeline.catalog.find import find
        from pipeline.catalog.predicates import HAS_KEPT_SAMPLE, IS_BASE, LAYER_ORDER

        with self._connection() as con:
            clip_id = find(con, str(name)).clip_id
            if clip_id is None:
                raise UsageError(f"{name!r} is a source: `read` takes the id of one of its clips")
            rows = con.execute(
                f'SELECT layer, shard, "offset", bytes FROM clips WHERE clip_id = ? AND {HAS_KEPT_SAMPLE} '
                f"ORDER BY {LAYER_ORDER}",
                [clip_id],
            ).fetchall()
            # A layer stays kept when its clip no longer is.
            if not rows or rows[0][0] != BASE_LAYER:
                status, reason = con.execute(
                    f"SELECT status, coalesce(rule, code) FROM clips WHERE clip_id = ? AND {IS_BASE}", [clip_id]
                ).fetchall()[0]
                raise UsageError(
                    f"clip {clip_id} is {status}{f' ({reason})' if reason else ''}: only kept ones are read"
                )
        members: dict[str, bytes] = {}
        for _, shard, offset, size in rows:
            members |= shards.read_sample(self._folder, clip_id, shard, offset, size)
        return Clip(clip_id, members)

    def explain(self, name: str) -> dict[str, Any]:
        """What is known of a clip (its id, or the first six digits and more) or a source (URI, path or file name), and
        why it is in or out. Raises UsageError where there is none."""
        from pipeline.reporting.explain import explain

        return explain(self.url, name)

    def select(self, where: str | Sequence[str] = (), **options: Any) -> Selection:
        """What `vdot-data select` does: the kept clips for which every predicate is true, and what each one costs.

        `options`: those of `pipeline.curation.select.select`, such as `name`, to keep the selection.
        """
        from pipeline.curation.select import select

        return select(self.url, [where] if isinstance(where, str) else where, **options)

    def shards(self) -> list[str]:
        """The URLs of the WebDataset shards that hold kept clips, sorted."""
        from pipeline.catalog.predicates import HAS_KEPT_SAMPLE

        with self._connection() as con:
            rows = con.execute(f"SELECT DISTINCT shard FROM clips WHERE {HAS_KEPT_SAMPLE} ORDER BY shard").fetchall()
        return [f"{self.url.rstrip('/')}/{shard}" for (shard,) in rows]

    @contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        from pipeline.catalog.catalog import Catalog

        with Scratch() as scratch, Catalog(self._folder, scratch.path).connect() as con:
            yield con


def open(out: str) -> Dataset:  # noqa: A001 (as zarr and xarray name theirs)
    """The dataset in a folder, or at a URL of an object store. Raises UsageError where there is none, and what the
    store's library raises where it cannot be reached."""
    return Dataset(out)


def _convert(table: pa.Table, form: Form) -> Any:
    if form == "arrow":
        return table
    if form == "pandas":
        return table.to_pandas()
    try:
        return import_module("polars").from_arrow(table)
    except ModuleNotFoundError as error:
        raise UsageError("polars is not installed: pip install polars") from error
