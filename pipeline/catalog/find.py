"""Finds the clip or source that a user names, in the catalog."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.catalog.catalog import values
from pipeline.errors import UsageError

# A shorter prefix is more likely a mistake than an id.
MIN_PREFIX = 6
# Jaro-Winkler similarity from which on one name may be a misspelling of another.
_MIN_LIKENESS = 0.85


@dataclass(frozen=True, slots=True)
class Match:
    """A clip, or a source where `clip_id` is None."""

    source_uri: str
    clip_id: str | None = None


def find(con: duckdb.DuckDBPyConnection, name: str) -> Match:
    """A clip by its id or a prefix of it, or a source by its URI, its path or its file name.

    Raises `UsageError` with the nearest name if there is none, and with the candidates if there are several.
    """
    for source in dict.fromkeys((name, str(Path(name).absolute()))):
        if values(con, "SELECT 1 FROM sources WHERE source_uri = ?", [source]):
            return Match(source)
    if re.fullmatch(rf"[0-9a-f]{{{MIN_PREFIX},32}}", name):
        rows = values(
            con,
            "SELECT clip_id, any_value(source_uri) AS uri FROM clips WHERE starts_with(clip_id, ?) GROUP BY clip_id "
            "ORDER BY clip_id LIMIT 4",
            [name],
        )
        if len(rows) == 1:
            return Match(rows[0]["uri"], rows[0]["clip_id"])
        if rows:
            raise UsageError(f"several clips begin with {name}: {', '.join(row['clip_id'] for row in rows)}")
    uris = [
        row["uri"] for row in values(con, f"SELECT source_uri AS uri FROM sources WHERE {_FILE} = ? LIMIT 4", [name])
    ]
    if len(uris) == 1:
        return Match(uris[0])
    if uris:
        raise UsageError(f"several sources are named {name}: {', '.join(sorted(uris))}")
    raise UsageError(f"no clip and no source {name!r} is in this dataset{_suggest_nearest(con, name)}")


_FILE = "regexp_extract(source_uri, '[^/]*$')"


def _suggest_nearest(con: duckdb.DuckDBPyConnection, name: str) -> str:
    """The end of a message: the most similar name, or that this one was forgotten."""
    forgotten = values(
        con,
        f"SELECT started, detail FROM forgotten WHERE source_uri = $1 OR clip_id = $1 OR {_FILE} = $1 LIMIT 1",
        [name],
    )
    if forgotten:
        reason = f" ({forgotten[0]['detail']})" if forgotten[0]["detail"] else ""
        return f": it was forgotten on {forgotten[0]['started']}{reason}"
    rows = values(
        con,
        "SELECT name, jaro_winkler_similarity(match, ?) AS likeness FROM ("
        "SELECT clip_id AS name, clip_id AS match FROM clips UNION ALL SELECT source_uri, "
        f"{_FILE} FROM sources UNION ALL SELECT source_uri, source_uri FROM sources) "
        "ORDER BY likeness DESC, name LIMIT 1",
        [name],
    )
    if not rows:
        return "; it is empty"
    if re.fullmatch(rf"[0-9a-f]{{1,{MIN_PREFIX - 1}}}", name):
        return f"; of a clip's id, give {MIN_PREFIX} digits or more"
    is_near = rows[0]["likeness"] >= _MIN_LIKENESS
    return f"; the nearest name is {rows[0]['name']}" if is_near else "; name a clip id, a file name or a URI"
