"""What a person types to name a clip or a source, found in the catalog."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.catalog.catalog import values
from pipeline.errors import UsageError

# Fewer digits are more likely a mistake than a name.
SHORTEST = 6
# Jaro-Winkler similarity of names of which one may be meant for the other.
_LIKE = 0.85


@dataclass(frozen=True, slots=True)
class Found:
    """A clip, or a source where `clip_id` is None."""

    source_uri: str
    clip_id: str | None = None


def find(con: duckdb.DuckDBPyConnection, what: str) -> Found:
    """A clip by its id or the beginning of it, or a source by its URI, its path or its file name.

    Raises `UsageError` with the nearest name when there is none, and with the candidates when there are several.
    """
    for source in dict.fromkeys((what, str(Path(what).absolute()))):
        if values(con, "SELECT 1 FROM sources WHERE source_uri = ?", [source]):
            return Found(source)
    if re.fullmatch(rf"[0-9a-f]{{{SHORTEST},32}}", what):
        rows = values(
            con,
            "SELECT clip_id, any_value(source_uri) AS uri FROM clips WHERE starts_with(clip_id, ?) GROUP BY clip_id "
            "ORDER BY clip_id LIMIT 4",
            [what],
        )
        if len(rows) == 1:
            return Found(rows[0]["uri"], rows[0]["clip_id"])
        if rows:
            raise UsageError(f"several clips begin with {what}: {', '.join(row['clip_id'] for row in rows)}")
    named = [
        row["uri"] for row in values(con, f"SELECT source_uri AS uri FROM sources WHERE {_FILE} = ? LIMIT 4", [what])
    ]
    if len(named) == 1:
        return Found(named[0])
    if named:
        raise UsageError(f"several sources are named {what}: {', '.join(sorted(named))}")
    raise UsageError(f"no clip and no source {what!r} is in this dataset{_near(con, what)}")


_FILE = "regexp_extract(source_uri, '[^/]*$')"


def _near(con: duckdb.DuckDBPyConnection, what: str) -> str:
    """The most similar name, or that it was forgotten."""
    gone = values(
        con,
        f"SELECT started, detail FROM forgotten WHERE source_uri = $1 OR clip_id = $1 OR {_FILE} = $1 LIMIT 1",
        [what],
    )
    if gone:
        return f": it was forgotten on {gone[0]['started']}" + (f" ({gone[0]['detail']})" if gone[0]["detail"] else "")
    rows = values(
        con,
        "SELECT name, jaro_winkler_similarity(match, ?) AS likeness FROM ("
        "SELECT clip_id AS name, clip_id AS match FROM clips UNION ALL SELECT source_uri, "
        f"{_FILE} FROM sources UNION ALL SELECT source_uri, source_uri FROM sources) "
        "ORDER BY likeness DESC, name LIMIT 1",
        [what],
    )
    if not rows:
        return "; it is empty"
    near = rows[0]["likeness"] >= _LIKE
    return f"; the nearest name is {rows[0]['name']}" if near else "; name a clip id, a file name or a URI"
