"""Measures how many faults of known strength, made from clean clips, the rules find, and their false alarms.

`sources` selects clean clips and halves them, `faults` lists the faults (`pictures`, `motion`, `codecs`), `study`
measures the signals and `report` applies the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.graded.faults import FAULTS
from benchmarks.graded.report import build_report, format_table
from benchmarks.graded.sources import clean_sources
from benchmarks.graded.study import Study, limit_halves
from pipeline.errors import UsageError
from pipeline.recipe import recipe as recipes

__all__ = ["format_table", "measure"]

# Sources of each half in a quick run.
_QUICK = 2


def measure(
    folder: Path, recipe_file: Path | None, cache: Path | None, quick: bool = False, faults: Sequence[str] = ()
) -> dict[str, Any]:
    """The graded results of a labelled folder under a recipe; measurements in the folder `cache` are reused.

    `quick`: two sources of each half and three strengths. `faults`: only these, by name. Raises `UsageError` for a
    fault that does not exist, and as `clean_sources` does.
    """
    unknown = set(faults) - {fault.name for fault in FAULTS}
    if unknown:
        raise UsageError(f"no fault is called {sorted(unknown)[0]!r}; there are: {', '.join(f.name for f in FAULTS)}")
    sources = limit_halves(clean_sources(folder), _QUICK if quick else None)
    selected = [fault for fault in FAULTS if not faults or fault.name in faults]
    rows = Study().measure(sources, cache, selected, quick)
    return build_report(rows, recipes.load(recipe_file), {source.name: source.tags for source in sources})
