"""Names say what they hold, and the English is of today."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("vdot_data", "pipeline", "annotators", "filters", "training", "benchmarks", "tests", "examples")
# A binding that bears one of these could hold anything. CONTRIBUTING.md says what to write instead.
VAGUE = frozenset(["told", "made", "found", "one", "said", "known", "shown", "given", "asked", "wanted", "whole"])
# Per 1,000 lines. The fields `shown` and `found` of two results that are written as JSON keep their names.
MOST_VAGUE = 0.2
ARCHAIC = re.compile(
    r"\b(foretell\w*|foretold|oftener|anew|lest|heed|hitherto|thereof|whereof|thereby|wherefrom|whence|thence)\b",
    re.IGNORECASE,
)
# Names the words to avoid.
QUOTES_THEM = {"CONTRIBUTING.md", "tests/test_style.py"}


def modules() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def texts() -> list[Path]:
    pages = [page for folder in ("docs", "examples") for page in (ROOT / folder).rglob("*.md")]
    pages += [*ROOT.glob("*.md"), *(ROOT / "pipeline").rglob("*.html")]
    return [*modules(), *pages, *(ROOT / "pipeline").rglob("*.yaml")]


def bindings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def test_bindings_are_nouns_of_what_they_hold() -> None:
    vague: list[str] = []
    lines = 0
    for path in modules():
        text = path.read_text()
        lines += text.count("\n")
        vague += [f"{path.relative_to(ROOT)}: {name}" for name in bindings(ast.parse(text)) if name in VAGUE]
    assert len(vague) <= MOST_VAGUE * lines / 1000, vague


def test_no_folder_holds_more_than_fifteen_modules() -> None:
    counts = {
        str(folder.relative_to(ROOT)): sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        for folder in {path.parent for path in modules()}
    }
    # Helpers are imported by their bare names.
    flat = {"tests/helpers", "tests/integration"}
    assert {folder: count for folder, count in counts.items() if count > 15 and folder not in flat} == {}


def test_words_are_of_today() -> None:
    archaic = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts()
        if str(path.relative_to(ROOT)) not in QUOTES_THEM
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if ARCHAIC.search(line)
    ]
    assert archaic == []
