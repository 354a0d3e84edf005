"""Writes one sample as a page: the clip and its tracks in step, and everything that is known of it."""

from __future__ import annotations

from pathlib import Path

from pipeline.catalog.catalog import Catalog, open_dataset, values
from pipeline.catalog.predicates import CLIP_ROWS_QUERY
from pipeline.errors import UsageError
from pipeline.formats.schema import Kind
from pipeline.reporting import explain
from pipeline.reporting.cards import check_outside, make_card, render, write_page
from pipeline.storage.scratch import Scratch


def view(out: str, target: str, file: Path) -> str:
    """Write the page about a clip (`target`: as in `explain`) into `file`; returns the clip's id.

    Raises `UsageError` when there is no such clip, and where `file` cannot be written or is in OUT.
    """
    folder = open_dataset(out)
    check_outside(file, folder)
    facts = explain.explain(out, target)
    if facts["kind"] != Kind.CLIP:
        clips = ", ".join(clip["clip_id"] for clip in facts["clips"]) or "none"
        raise UsageError(f"{target!r} is a source; `view` opens one of its clips: {clips}")
    with Scratch() as scratch:
        catalog = Catalog(folder, scratch.path)
        clip_id: str = facts["clip"]["clip_id"]
        # A layer's tracks are stored in separate shards.
        rows = values(catalog.connect(), CLIP_ROWS_QUERY, [clip_id])
        clip_card = make_card(catalog.out, rows[0], rows[1:], playing=True)
    page = {"out": catalog.out.url, "clip": clip_card, "explanation": explain.format_text(facts)}
    write_page(file, render("view.html", page))
    return clip_id
