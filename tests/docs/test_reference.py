"""Tests that the reference in the documentation has every command, key, signal and error code of the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import typer

from pipeline.curation.mixture_definition import Definition
from pipeline.errors import ADVICE
from pipeline.formats.strict_yaml import StrictModel
from pipeline.recipe import registry
from pipeline.recipe.recipe import Recipe
from training.config import Distill, Teach

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The hook of the site, which is in no package."""
    spec = importlib.util.spec_from_file_location("reference", DOCS / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_part_is_asked_for_by_a_page(reference: ModuleType) -> None:
    pages = [page.read_text() for page in DOCS.rglob("*.md")]
    requests = re.findall(r"<!-- reference: (.+) -->", "\n".join(pages))
    assert sorted(requests) == sorted(reference.PARTS)
    assert not [page for page in map(reference.on_page_markdown, pages) if "<!-- reference" in page]


def test_a_part_that_does_not_exist_is_an_error(reference: ModuleType) -> None:
    with pytest.raises(KeyError):
        reference.on_page_markdown("<!-- reference: nothing -->")


@pytest.mark.parametrize(
    ("program", "module"),
    [("vdot-data", "pipeline.cli.main"), ("vdot-train", "training.cli"), ("vdot-bench", "benchmarks.cli")],
)
def test_every_option_of_every_command_is_there(reference: ModuleType, program: str, module: str) -> None:
    sections = dict(
        re.findall(r"^## `([^`]+)`\n(.+?)(?=^## |\Z)", reference.PARTS[program](), re.MULTILINE | re.DOTALL)
    )
    commands = typer.main.get_group(importlib.import_module(module).app).commands
    assert [*sections] == [f"{program} {name}" for name in commands]
    for name, command in commands.items():
        section = sections[f"{program} {name}"]
        assert not [option for parameter in command.params for option in parameter.opts if option not in section]


@pytest.mark.parametrize(
    ("part", "models"), [("recipe", [Recipe]), ("mixture", [Definition]), ("training", [Teach, Distill])]
)
def test_every_key_has_a_meaning(reference: ModuleType, part: str, models: list[type[StrictModel]]) -> None:
    text = reference.PARTS[part]()
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", text, re.MULTILINE)
    assert [key for key, meaning in rows if not meaning.strip()] == []
    for model in models:
        assert {*model.model_fields} <= {key for key, _ in rows}


def test_keys_inside_keys_have_tables(reference: ModuleType) -> None:
    assert "## `limits`" in reference.PARTS["recipe"]()
    assert "## `datasets.NAME`" in reference.PARTS["mixture"]()
    assert "## `data.size`" in reference.PARTS["training"]()
    assert "## `optimizer`, `student`, `critic`" in reference.PARTS["training"]()


def test_every_signal_and_its_maker_are_there(reference: ModuleType) -> None:
    filters, annotators = (sorted(registry.find_registered(group)) for group in ("filters", "annotators"))
    rows = re.findall(r"^\| `(\w+)` \|", reference.PARTS["signals"](), re.MULTILINE)
    assert rows == sorted(registry.collect_signals(annotators, filters))
    makers = re.findall(r"^\| `(\w+)` \|", reference.PARTS["filters and annotators"](), re.MULTILINE)
    assert makers == [*filters, *annotators]


def test_every_error_code_has_its_advice(reference: ModuleType) -> None:
    table = reference.PARTS["error codes"]()
    assert [code for code, advice in ADVICE.items() if f"| `{code}` | {advice} |" not in table] == []


def test_the_home_page_links_to_pages_alone(reference: ModuleType) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", reference.PARTS["home"]())
    assert "quickstart.md" in targets
    assert [target for target in targets if not (DOCS / target).is_file()] == []
