"""The columns of the catalog, which is the table people query and the ledger that a run resumes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

import pyarrow as pa

from annotators.base import Signal
from pipeline.errors import UsageError

FORMAT_VERSION = 1

BASE_LAYER = "base"
# The results of `dedup`.
DUPLICATES_LAYER = "duplicates"


class Kind(StrEnum):
    """What a row of the catalog is about."""

    RUN = "run"
    SOURCE = "source"
    CLIP = "clip"
    FORGOTTEN = "forgotten"


class Status(StrEnum):
    """What became of a clip or a source. A member equals its text, so values read from a catalog need no conversion."""

    # Of clips; sources may be rejected or failed as well.
    KEPT = "kept"
    REJECTED = "rejected"
    PENDING = "pending"
    FAILED = "failed"
    # Of sources: cut into clips; of the same content as another; of content that was forgotten.
    CUT = "cut"
    SAME = "same"
    FORGOTTEN = "forgotten"
    # Of rows of the layer `duplicates`, which are not a verdict and have no bytes.
    COMPARED = "compared"


_LINEAGE = pa.struct(
    [(name, pa.string()) for name in ("name", "version", "weights_id", "weights_sha256", "weights_licence")]
)
_SHOT = pa.struct([("first", pa.int64()), ("last", pa.int64()), ("start_s", pa.float64()), ("end_s", pa.float64())])
_WINDOW = pa.struct(
    [("clip_id", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64()), ("frames", pa.int64())]
)

COLUMNS = pa.schema(
    [
        # Which row this is. kind: a `Kind`; the highest sequence wins per clip and layer.
        ("format_version", pa.int64()),
        ("sequence", pa.int64()),
        ("kind", pa.string()),
        ("layer", pa.string()),
        ("run_id", pa.string()),
        ("recipe_hash", pa.string()),
        # The source.
        ("source_uri", pa.string()),
        ("source_hash", pa.string()),
        ("source_size", pa.int64()),
        ("source_stamp", pa.string()),
        ("same_as", pa.string()),
        ("source_width", pa.int64()),
        ("source_height", pa.int64()),
        ("source_fps", pa.float64()),
        ("source_duration_s", pa.float64()),
        # Decoded frames; those not used because their times repeat or go back; and how many more frames would fit
        # between them, if the rate is constant.
        ("source_frames", pa.int64()),
        ("source_frames_unused", pa.int64()),
        ("source_frames_missing", pa.int64()),
        ("source_codec", pa.string()),
        ("detector", pa.string()),
        ("content_box", pa.list_(pa.int64())),
        ("shots", pa.list_(_SHOT)),
        ("windows", pa.list_(_WINDOW)),
        # The clip.
        ("clip_id", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("width", pa.int64()),
        ("height", pa.int64()),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        # The verdict, a `Status`: rejected has a rule, failed a code and a stage, pending the rule that met a null.
        ("status", pa.string()),
        ("rule", pa.string()),
        ("code", pa.string()),
        ("stage", pa.string()),
        ("detail", pa.string()),
        # Where the bytes are.
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("bytes", pa.int64()),
        ("crc32", pa.int64()),
        ("preview_shard", pa.string()),
        ("preview_offset", pa.int64()),
        ("preview_bytes", pa.int64()),
        # The tasks it suits, and what produced its values.
        ("tasks", pa.list_(pa.string())),
        ("caption", pa.string()),
        ("licence", pa.string()),
        ("lineage", pa.list_(_LINEAGE)),
        ("timings", pa.map_(pa.string(), pa.float64())),
        # Rows of the layer `duplicates`: the clip's group of near duplicates, the best clip of the group (null for the
        # best itself), how many are in it (1: no duplicate), and the cosine to the best.
        ("duplicate_group", pa.string()),
        ("duplicate_of", pa.string()),
        ("duplicates", pa.int64()),
        ("duplicate_similarity", pa.float64()),
        # Rows of kind run: what made the other rows.
        ("recipe", pa.string()),
        ("version", pa.string()),
        ("started", pa.string()),
        ("finished", pa.string()),
    ]
)

# Names of helper columns in our own SQL begin like this.
RESERVED = "vdot_"

# The columns that say where a clip's bytes are.
SAMPLE = ("shard", "offset", "bytes")
PREVIEW = ("preview_shard", "preview_offset", "preview_bytes")
PLACE = (*SAMPLE, *PREVIEW)
# Those that only rows of the layer `duplicates` have.
DUPLICATES = ("duplicate_group", "duplicate_of", "duplicates", "duplicate_similarity")

# What a rule may name besides signals and manifest columns.
RULE_COLUMNS = {
    "width": "int", "height": "int", "fps": "float", "frames": "int", "start_s": "float", "end_s": "float",
    "source_uri": "str", "source_width": "int", "source_height": "int", "source_fps": "float",
    "source_duration_s": "float", "source_codec": "str", "licence": "str",
}  # fmt: skip

_ARROW = {"float": pa.float64(), "int": pa.int64(), "str": pa.string(), "bool": pa.bool_()}


def build_schema(signals: Mapping[str, Signal], manifest: Iterable[str]) -> pa.Schema:
    """The catalog's columns, with one per signal and one per manifest column (text).

    Raises `UsageError` when a signal or a manifest column has the name of another column.
    """
    schema = COLUMNS
    # SQL ignores the case of names.
    taken = {name.lower() for name in schema.names}
    extra = [(name, _ARROW[signal.kind], "signal") for name, signal in signals.items()]
    extra += [(name, pa.string(), "manifest column") for name in manifest if name != "licence"]
    for name, type_name, owner in extra:
        if name.lower().startswith(RESERVED):
            raise UsageError(f"the column {name!r}: names that begin with {RESERVED} are taken; rename it")
        if name.lower() in taken:
            raise UsageError(f"the {owner} {name!r} would be a second column of that name in the catalog; rename it")
        taken.add(name.lower())
        schema = schema.append(pa.field(name, type_name))
    return schema


def rule_columns(signals: Mapping[str, Signal], manifest: Iterable[str]) -> dict[str, str]:
    """The columns that rules may name, with their kinds."""
    return RULE_COLUMNS | {name: signal.kind for name, signal in signals.items()} | dict.fromkeys(manifest, "str")
