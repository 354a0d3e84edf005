"""Compares ingest with its floor, which is measured before and after because a machine's speed drifts in minutes."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ingest.floor import expand_copies, list_videos, measure_floor
from pipeline.formats.schema import Status
from pipeline.ingest.commands import ingest
from pipeline.recipe import recipe as recipes


def measure(clips: Path, recipe_file: Path | None, repeat: int, cores: int) -> dict[str, Any]:
    """Wall seconds of floor and ingest without their start-up, their ratio, and where ingest's seconds went."""
    recipe = recipes.load(recipe_file)
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary:
        folder = Path(temporary) / "videos"
        folder.mkdir()
        paths = expand_copies(list_videos(clips), repeat, folder)
        before = measure_floor(paths, recipe, cores)
        summary = ingest([str(folder)], str(Path(temporary) / "out"), recipe_file=recipe_file, cpus=cores)
        after = measure_floor(paths, recipe, cores)
    # Not the wall time: a long source that comes last would leave the floor's other cores idle, and flatter ingest.
    floor_s = (before.busy_s + after.busy_s) / 2
    steady = summary.wall_s - summary.startup_s
    clip_count = sum(sum(reasons.values()) for reasons in summary.clips.values())
    return {
        "machine": f"{platform.processor() or platform.machine()}, {cores} cores",
        "sources": len(paths),
        "clips": clip_count,
        "floor": {
            "wall_s": [round(before.wall_s, 1), round(after.wall_s, 1)],
            "busy_s": [round(before.busy_s, 1), round(after.busy_s, 1)],
            "startup_s": [round(before.startup_s, 1), round(after.startup_s, 1)],
            "clips": before.clips,
        },
        "ingest": {
            "wall_s": round(steady, 1),
            "startup_s": round(summary.startup_s, 1),
            "kept": sum(summary.clips.get(Status.KEPT, {}).values()),
        },
        "ratio": round(floor_s / steady, 3),
        "clips_per_s": round(clip_count / steady, 3),
        "cpu_seconds": {
            step: {
                "floor": round((before.seconds.get(step, 0.0) + after.seconds.get(step, 0.0)) / 2, 1),
                "ingest": round(seconds, 1),
            }
            for step, seconds in summary.seconds.items()
        },
    }
