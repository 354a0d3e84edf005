"""Measures whether memory grows with the number of sources: peaks of driver, workers and decoders in two runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ingest.floor import expand_copies, list_videos

# A short grid and two annotators, so that 500 sources take minutes.
RECIPE = """\
shots: adaptive
grid: {fps: 8, frames: 33, min_frames: 17, area: 57600, multiple: 16}
stages: [[scribble, flow]]
rules: {too_dark: luma < 20}
tasks: {}
commit: {shard_mb: 16, every_s: 20}
"""


def measure(clips: Path, few: int, many: int) -> dict[str, Any]:
    """Peak resident megabytes by kind of process for `few` and for `many` sources, and the ratios."""
    peaks = {str(count): _measure_peaks(clips, count) for count in (few, many)}
    short, long = peaks[str(few)], peaks[str(many)]
    ratios = {kind: round(long[kind] / short[kind], 3) for kind in ("driver_mb", "worker_mb", "decoder_mb")}
    return {"peaks": peaks, "growth": ratios}


def _measure_peaks(clips: Path, count: int) -> dict[str, float]:
    names = list_videos(clips)
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary:
        folder = Path(temporary)
        (folder / "videos").mkdir()
        (folder / "recipe.yaml").write_text(RECIPE)
        expand_copies((names * (count // len(names) + 1))[:count], 1, folder / "videos")
        command = [str(Path(sys.executable).with_name("vdot-data")), "ingest", str(folder / "videos")]
        command += ["--out", str(folder / "out"), "--recipe", str(folder / "recipe.yaml")]
        started = time.monotonic()
        peak = {"driver_mb": 0.0, "worker_mb": 0.0, "decoder_mb": 0.0}
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                for kind, size in _measure_sizes(process.pid):
                    peak[kind] = max(peak[kind], round(size / 1e6, 1))
                time.sleep(0.5)
        if process.returncode:
            raise SystemExit(f"ingest ended with {process.returncode}")
        return peak | {"wall_s": round(time.monotonic() - started, 1)}


def _measure_sizes(driver: int) -> list[tuple[str, float]]:
    """(kind, private bytes) of the driver and of its workers and decoders."""
    sizes = []
    try:
        processes = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for process in processes:
        try:
            command = " ".join(process.cmdline())
            # The object store is mapped into every process, so only private memory counts.
            size = float(process.memory_full_info().uss)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if process.pid == driver:
            sizes.append(("driver_mb", size))
        elif command.startswith("ray::MapWorker"):
            sizes.append(("worker_mb", size))
        elif "pipeline.video.sandbox_child" in command:
            sizes.append(("decoder_mb", size))
    return sizes
