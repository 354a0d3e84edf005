"""Tests that every module, file, link and make target that the documentation names is there."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from documents import ROOT, SHELL, name_of, pages, read_blocks, read_cells, read_inline

PACKAGES = ("annotators", "benchmarks", "filters", "pipeline", "training", "vdot_data")
FOLDERS = (*PACKAGES, "deploy", "docs", "examples", "tests", ".ci", ".github")
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "examples").rglob("*.ipynb"))

# A file's name looks like a module's: [Training](training.md).
_MODULE = re.compile(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[A-Za-z_]\w*)+")
_SUFFIXES = (".css", ".html", ".ipynb", ".jpg", ".js", ".json", ".md", ".parquet", ".png", ".py", ".toml", ".yaml")
_PATH = re.compile(rf"(?<![\w./:@-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./-]*")
_LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")
_TITLE = re.compile(r"^#+ (.+)$", re.MULTILINE)


def read_texts() -> Iterator[tuple[str, str]]:
    """The name and the text of everything that names modules and files."""
    for path in (*pages(), ROOT / "mkdocs.yml", ROOT / "Makefile", *EXAMPLES):
        yield name_of(path), path.read_text()
    for notebook in NOTEBOOKS:
        yield name_of(notebook), "\n".join(read_cells(notebook) + read_cells(notebook, "markdown"))


def read_python() -> Iterator[str]:
    """Every piece of Python: the examples, the cells of notebooks and the blocks of pages."""
    yield from (path.read_text() for path in EXAMPLES)
    yield from (cell for notebook in NOTEBOOKS for cell in read_cells(notebook))
    yield from (block.text for page in pages() for block in read_blocks(page) if block.language == "python")


def imported_names(code: str) -> Iterator[str]:
    """What a piece of Python imports from the packages: `training.Stream` for `from training import Stream`."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in PACKAGES)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's titles."""
    titles = (re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in _TITLE.findall(page.read_text()))
    return {re.sub(r"[-\s]+", "-", title) for title in titles}


def test_every_module_imports() -> None:
    # Groups of entry points have names like modules.
    groups = entry_points().groups
    written = {name for _, text in read_texts() for name in _MODULE.findall(text) if not name.endswith(_SUFFIXES)}
    names = sorted(written.union(*map(imported_names, read_python())) - groups)
    assert "training.Stream" in names
    for name in names:
        pkgutil.resolve_name(name)


def test_every_path_exists() -> None:
    missing = [
        f"{name}: {path}"
        for name, text in read_texts()
        for path in (match.rstrip(".") for match in _PATH.findall(text))
        if not (ROOT / path).exists() and not re.search(r"\b[A-Z]{2,}\b", path)
    ]
    assert missing == []


def test_every_python_file_in_backticks_exists() -> None:
    """Pages also name files from the folder that they are about: `encoding/vcu.py`."""
    files = [f"/{name_of(path)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]
    missing = []
    for page in pages():
        written = {block.file for block in read_blocks(page)}
        for code in read_inline(page):
            known_file = code in written or any(file.endswith(f"/{code}") for file in files)
            if re.fullmatch(r"[\w/-]+\.py", code) and not known_file:
                missing.append(f"{name_of(page)}: {code}")
    assert missing == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        # MkDocs checks the anchors within the site, some of which it makes.
        if anchor and file.suffix == ".md" and page.parent == ROOT:
            assert anchor in anchors(file), f"{target}#{anchor}"


def test_the_site_has_every_page_that_it_names() -> None:
    named = re.findall(r"^ *- [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert "index.md" in named
    assert [page for page in named if not (ROOT / "docs" / page).is_file()] == []


def test_every_make_target_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [code for page in pages() for code in read_inline(page)]
    code += [command for page in pages() for block in read_blocks(page) for command in block.commands()]
    named = {target for text in code for target in re.findall(r"(?:^|&& )make ([\w-]+)", text)}
    assert {"demo", "test"} <= named <= targets


def test_every_block_names_its_language() -> None:
    known_languages = SHELL | {"console", "python", "toml", "yaml", "text", "json", "sql"}
    blocks = [block for page in pages() for block in read_blocks(page)]
    assert [block.place for block in blocks if block.language not in known_languages] == []
