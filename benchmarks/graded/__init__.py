"""Faults of known strength, made from clean clips: what share of them the rules find, and what they claim wrongly.

`sources` takes clean clips and halves them, `faults` lists what is done to them (`pictures`, `motion`, `codecs`),
`study` measures and `report` judges.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.graded.faults import FAULTS
from benchmarks.graded.report import report, table
from benchmarks.graded.sources import clean
from benchmarks.graded.study import Study, halves
from pipeline.errors import UsageError
from pipeline.recipe import recipe as recipes

__all__ = ["measure", "table"]

# Sources of each half in a quick run.
_QUICK = 2


def measure(
    folder: Path, recipe_file: Path | None, kept: Path | None, quick: bool = False, faults: Sequence[str] = ()
) -> dict[str, Any]:
    """The graded table of a labelled folder under a recipe; what lies in `kept` is not measured again.

    `quick`: two sources of each half and three strengths. `faults`: these alone, by name. Raises `UsageError` for a
    fault that does not exist, and as `clean` does.
    """
    unknown = set(faults) - {fault.name for fault in FAULTS}
    if unknown:
        raise UsageError(f"no fault is called {sorted(unknown)[0]!r}; there are: {', '.join(f.name for f in FAULTS)}")
    sources = halves(clean(folder), _QUICK if quick else None)
    asked = [fault for fault in FAULTS if not faults or fault.name in faults]
    rows = Study().measure(sources, kept, asked, quick)
    return report(rows, recipes.load(recipe_file), {source.name: source.tags for source in sources})
