"""Compares a plan with the actual ingest: `plan` over a folder, then an ingest of the sources it did not probe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ingest.floor import list_videos
from pipeline.catalog.catalog import Catalog
from pipeline.ingest.commands import ingest
from pipeline.ingest.forecast import plan, read_amounts
from pipeline.storage.folder import Folder


def measure(clips: Path, recipe_file: Path | None, probe: int) -> dict[str, Any]:
    """Each quantity of the sources that were not probed: expected, from, to and actual; and the wall seconds."""
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary:
        folder = Path(temporary)
        source_list, exclude = folder / "all.txt", folder / "probed.txt"
        source_list.write_text("".join(f"{Path(path).resolve()}\n" for path in list_videos(clips)))
        forecast = plan([str(source_list)], recipe_file=recipe_file, probe=probe)
        exclude.write_text("".join(f"{uri}\n" for uri in forecast.probed))
        out = str(folder / "out")
        summary = ingest([str(source_list)], out, recipe_file=recipe_file, exclude=str(exclude))
        rows = read_amounts(Catalog(Folder(out), folder))
    quantities = {}
    for name, estimate in forecast.quantities.items():
        truth = sum(float(row.quantities[name]) for row in rows)
        quantities[name] = {
            "expected": round(estimate.rest, 1),
            "from": None if estimate.low is None else round(estimate.low, 1),
            "to": None if estimate.high is None else round(estimate.high, 1),
            "came": round(truth, 1),
            "within": estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high,
        }
    # The plan's wall time is that of all sources; the sources that were not probed get it by their share of the work.
    work = forecast.quantities["work_s"]
    wall = forecast.wall_s[0] * work.rest / work.total
    return {
        "sources": forecast.sources,
        "probed": len(forecast.probed),
        "probe_s": round(forecast.probe_s, 1),
        "overhead": round(forecast.overhead, 3),
        "quantities": quantities,
        "wall_s": {"expected": round(wall, 1), "came": round(summary.wall_s, 1)},
    }
