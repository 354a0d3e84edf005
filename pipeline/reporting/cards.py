"""Renders pages that need no network, and the cards of clips on them: pictures, a small film, verdict and reason."""

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

from pipeline.catalog.erase import REPORT
from pipeline.errors import UsageError
from pipeline.formats import shards
from pipeline.formats.schema import PREVIEW, SAMPLE, Status
from pipeline.reporting import mosaic
from pipeline.storage.folder import Folder

# The columns of a clip's row that its card needs.
COLUMNS = (
    *("clip_id", "source_uri", "start_s", "end_s", "width", "height", "fps", *SAMPLE, *PREVIEW),
    *("status", "rule", "code", "stage", "detail", "caption"),
)


@dataclass(frozen=True, slots=True)
class Card:
    """One clip or source in a contact sheet.

    Data URLs: `strip` (JPEG), five frames of the clip side by side, each of `shape` (width, height) before it was made
    small; `film` (MP4) and its `poster` (JPEG), the clip and its tracks, which `tiles` names.
    """

    name: str
    source: str
    span: str
    verdict: str
    reason: str
    strip: str | None = None
    shape: tuple[int, int] | None = None
    film: str | None = None
    poster: str | None = None
    tiles: list[str] = field(default_factory=list)
    caption: str | None = None

    @property
    def has_picture(self) -> bool:
        """Whether there is anything to see."""
        return bool(self.film or self.strip)


def make_card(
    out: Folder,
    row: dict[str, Any],
    layers: Sequence[dict[str, Any]] = (),
    *,
    playing: bool = False,
    source_folder: str = "",
) -> Card:
    """Make the card of a row of the catalog, of a clip or a source.

    `playing`: with a film of the clip and its tracks, including those of `layers` (other rows of the clip). Samples
    that cannot be read are left out. The name of the source is relative to `source_folder`.
    """
    reason = row["detail"] or ""
    if row["status"] == Status.REJECTED and row["rule"]:
        reason = f"{row['rule']}: {reason}" if not reason.startswith(row["rule"]) else reason
    elif row["status"] == Status.FAILED:
        reason = f"{row['code']} in the step {row['stage']}: {reason}"
    span = "" if row.get("start_s") is None else f"{row['start_s']:.2f} to {row['end_s']:.2f} s"
    preview = _read_sample(out, row["clip_id"], *(row[name] for name in PREVIEW)) if row.get("preview_shard") else {}
    members: dict[str, bytes] = {}
    for stored in (row, *layers) if playing else ():
        if stored["shard"]:
            members |= _read_sample(out, row["clip_id"], *(stored[name] for name in SAMPLE))
    film = mosaic.make_mosaic(members, row.get("fps") or 16.0)
    return Card(
        name=row["clip_id"] or "",
        source=row["source_uri"].removeprefix(source_folder),
        span=span,
        verdict=row["status"],
        reason=reason,
        strip=_data_url("image/jpeg", preview.get("jpg")),
        shape=(row["width"], row["height"]) if row.get("width") and row.get("height") else None,
        film=_data_url("video/mp4", film.film) if film else None,
        poster=_data_url("image/jpeg", film.poster) if film else None,
        tiles=film.tiles if film else [],
        caption=row.get("caption"),
    )


def _read_sample(out: Folder, clip: str, *place: Any) -> dict[str, bytes]:
    try:
        return shards.read_sample(out, clip, *place)
    except (KeyError, tarfile.TarError, OSError):
        # A page with a gap is better than none; `verify` is there to find damage.
        return {}


def _data_url(kind: str, data: bytes | None) -> str | None:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}" if data else None


def check_outside(file: Path, out: Folder) -> None:
    """Raises `UsageError` for a page inside a dataset, where `forget` would not delete it."""
    if out.local is not None and file.resolve().is_relative_to(out.local.resolve()):
        raise UsageError(f"{file} is inside the dataset {out.url}, where only {REPORT} may be: choose another folder")


def check_writable(file: Path) -> None:
    """Raises `UsageError` where a page cannot be written, before any work is done for it."""
    existing = file if file.exists() else file.parent
    if file.is_dir() or not existing.exists() or not os.access(existing, os.W_OK):
        reason = "it is a folder" if file.is_dir() else "permission denied" if existing.exists() else "no such folder"
        raise UsageError(f"{file} cannot be written: {reason}")


def render(template: str, values: dict[str, Any]) -> bytes:
    """Make a page from its template, with all data escaped."""
    files = resources.files("pipeline.reporting").joinpath("page")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: files.joinpath(name).read_text()),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    script, style = (files.joinpath(name).read_text() for name in ("films.js", "page.css"))
    return environment.get_template(template).render(values, films=script, style=style).encode()


def write_page(file: Path, page: bytes) -> None:
    """Write a page to a local disk. Raises `UsageError` where `file` cannot be written."""
    try:
        file.write_bytes(page)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
