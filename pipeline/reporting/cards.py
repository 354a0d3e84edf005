"""Pages without a network, and the cards of clips on them: pictures, a small film, verdict and reason."""

from __future__ import annotations

import base64
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from pipeline.errors import UsageError
from pipeline.formats import shards
from pipeline.formats.schema import PREVIEW, SAMPLE
from pipeline.reporting import mosaic as film
from pipeline.storage.folder import Folder


@dataclass(frozen=True, slots=True)
class Card:
    """One clip or source in a contact sheet; `strip` (JPEG) and `film` (MP4) are data URLs."""

    name: str
    source: str
    span: str
    verdict: str
    why: str
    strip: str | None = None
    film: str | None = None
    tiles: list[str] = field(default_factory=list)
    caption: str | None = None


def card(out: Folder, row: dict[str, Any], layers: Sequence[dict[str, Any]] = (), *, playing: bool = False) -> Card:
    """The card of a row of the catalog, a clip's or a source's.

    `playing`: with a film of the clip and its tracks, those of `layers` (other rows of the clip) too. What cannot be
    read is left out.
    """
    why = row["detail"] or ""
    if row["status"] == "rejected" and row["rule"]:
        why = f"{row['rule']}: {why}" if not why.startswith(row["rule"]) else why
    elif row["status"] == "failed":
        why = f"{row['code']} in the step {row['stage']}: {why}"
    span = "" if row.get("start_s") is None else f"{row['start_s']:.2f} to {row['end_s']:.2f} s"
    seen = _sample(out, row["clip_id"], *(row[name] for name in PREVIEW)) if row.get("preview_shard") else {}
    members: dict[str, bytes] = {}
    for stored in (row, *layers) if playing else ():
        if stored["shard"]:
            members |= _sample(out, row["clip_id"], *(stored[name] for name in SAMPLE))
    made, tiles = film.mosaic(members, row.get("fps") or 16.0)
    return Card(
        name=row["clip_id"] or "",
        source=row["source_uri"],
        span=span,
        verdict=row["status"],
        why=why,
        strip=_url("image/jpeg", seen.get("jpg")),
        film=_url("video/mp4", made),
        tiles=tiles,
        caption=row.get("caption"),
    )


def _sample(out: Folder, clip: str, *place: Any) -> dict[str, bytes]:
    try:
        return shards.read_sample(out, clip, *place)
    except (KeyError, tarfile.TarError, OSError):
        # A page with a gap says more than none; `verify` is what finds damage.
        return {}


def _url(kind: str, data: bytes | None) -> str | None:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else None


def check_writable(file: Path) -> None:
    """Raises `UsageError` where a page cannot be written, before anything is spent on it."""
    there = file if file.exists() else file.parent
    if file.is_dir() or not there.exists() or not os.access(there, os.W_OK):
        why = "it is a folder" if file.is_dir() else "permission denied" if there.exists() else "no such folder"
        raise UsageError(f"{file} cannot be written: {why}")


def render(template: str, file: Path, values: dict[str, Any]) -> int:
    """Write a page from its template, in which whatever comes from data is escaped; returns its size in bytes.

    Raises `UsageError` where `file` cannot be written.
    """
    files = resources.files("pipeline.reporting").joinpath("page")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    script, style = (files.joinpath(name).read_text() for name in ("films.js", "page.css"))
    text = environment.get_template(template).render(values, films=script, style=style)
    try:
        file.write_text(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    return len(text.encode())
