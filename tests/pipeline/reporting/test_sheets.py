"""Tests what the report's sheets show where columns of a manifest have names that SQL might take for others."""

from __future__ import annotations

import re
from pathlib import Path

import small_dataset
from small_dataset import RECIPE, identity

from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.reporting.report import report

NAMES = (
    *("place", "reason", "lot", "turn", "rowid", "near", "near_rule", "near_value", "thumbnail", "bin", "what", "step"),
    *("task", "made", "chosen", "base", "failures", "count", "verdict", "vdot", "t"),
)


def test_columns_of_a_manifest_have_any_name(tmp_path: Path) -> None:
    rules = "".join(f"  no_{name}: \"{name} = 'x'\"\n" for name in NAMES)
    text = RECIPE.replace("rules: {too_dark: luma < 20}\n", f"rules:\n  too_dark: luma < 20\n{rules}")
    dataset = small_dataset.Dataset(str(tmp_path / "out"), tmp_path / "scratch")
    dataset.recipe = recipe.parse(text, "of the tests")
    dataset.blueprint = Blueprint.for_ingest(dataset.recipe, ("title", *NAMES))
    dataset.fill()
    # Of every clip the same, so that a row that is found by such a name is found many times or not at all.
    dataset.commit(
        *(
            dataset.clip(name, "rejected", rule=rule, **dict.fromkeys(NAMES, "0"))
            for name, rule in (("a3", "no_place"), ("a4", "no_place"), ("b3", "no_lot"), ("b4", "too_dark"))
        ),
        dataset.clip("b5", "kept", **dict.fromkeys(NAMES, "0")),
    )
    summary = report(dataset.url, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    rejected = page[page.index('<section id="rejected"') : page.index('<section id="failed"')]
    cards = re.findall(r'aria-label="[^"]*"', rejected)
    assert [identity(name)[:8] in rejected for name in ("a1", "a3", "a4", "b3", "b4")] == [True] * 5, cards
    assert re.findall(r"<h3>(\w+)", rejected) == ["no_place", "too_dark", "no_lot"]
    assert summary.clips == 11
