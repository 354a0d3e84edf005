"""Ingest against its floor, in one run on one machine, so that a noisy machine disturbs both alike."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.floor import expanded, floor, videos
from pipeline import recipe as recipes
from pipeline.ingest import ingest


def measure(clips: Path, recipe_file: Path | None, repeat: int, cores: int) -> dict[str, Any]:
    """Wall seconds of floor and ingest without their start-up, their ratio, and where ingest's seconds went."""
    recipe = recipes.load(recipe_file)
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary:
        folder = Path(temporary) / "videos"
        folder.mkdir()
        paths = expanded(videos(clips), repeat, folder)
        bare = floor(paths, recipe, cores)
        summary = ingest([str(folder)], str(Path(temporary) / "out"), recipe_file=recipe_file, cpus=cores)
    steady = summary.wall_s - summary.startup_s
    made = sum(sum(reasons.values()) for reasons in summary.clips.values())
    return {
        "machine": f"{platform.processor() or platform.machine()}, {cores} cores",
        "sources": len(paths),
        "clips": made,
        "floor": {"wall_s": round(bare.wall_s, 1), "startup_s": round(bare.startup_s, 1), "clips": bare.clips},
        "ingest": {
            "wall_s": round(steady, 1),
            "startup_s": round(summary.startup_s, 1),
            "kept": summary.clips["kept"][""],
        },
        "ratio": round(bare.wall_s / steady, 3),
        "clips_per_s": round(made / steady, 3),
        "worker_seconds": {step: round(seconds, 1) for step, seconds in summary.seconds.items()},
    }
