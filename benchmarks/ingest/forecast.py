"""A plan against what came: `plan` over a folder, then an ingest of the sources that it did not probe."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.ingest.floor import videos
from pipeline.catalog.catalog import Catalog
from pipeline.ingest.commands import ingest
from pipeline.ingest.forecast import amounts, plan
from pipeline.storage.folder import Folder


def measure(clips: Path, recipe_file: Path | None, probe: int) -> dict[str, Any]:
    """Each quantity of the sources that were not probed: expected, from, to, and what came; and the wall seconds."""
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary:
        folder = Path(temporary)
        listed, exclude = folder / "all.txt", folder / "probed.txt"
        listed.write_text("".join(f"{Path(path).resolve()}\n" for path in videos(clips)))
        told = plan([str(listed)], recipe_file=recipe_file, probe=probe)
        exclude.write_text("".join(f"{uri}\n" for uri in told.probed))
        out = str(folder / "out")
        summary = ingest([str(listed)], out, recipe_file=recipe_file, exclude=str(exclude))
        came = amounts(Catalog(Folder(out), folder))
    found = {}
    for name, estimate in told.quantities.items():
        truth = sum(float(row[name]) for row in came)
        found[name] = {
            "expected": round(estimate.rest, 1),
            "from": None if estimate.low is None else round(estimate.low, 1),
            "to": None if estimate.high is None else round(estimate.high, 1),
            "came": round(truth, 1),
            "within": estimate.low is not None and estimate.high is not None and estimate.low <= truth <= estimate.high,
        }
    # The plan's wall is that of all sources: what the probed ones would take of it, they take by their share of work.
    work = told.quantities["work_s"]
    wall = told.wall_s[0] * work.rest / work.total
    return {
        "sources": told.sources,
        "probed": len(told.probed),
        "probe_s": round(told.probe_s, 1),
        "overhead": round(told.overhead, 3),
        "quantities": found,
        "wall_s": {"expected": round(wall, 1), "came": round(summary.wall_s, 1)},
    }
