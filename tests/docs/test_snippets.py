"""Tests that what the documentation tells its readers to type works, and prints what the pages show.

The blocks of a page run in their order, after `make demo` or after the page that it continues. Each command runs, or is
on a list here with the reason.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from typing import Any

import page_program
import pytest
import yaml
from documents import CONSOLE, ROOT, Block, name_of, pages, read_blocks, split_words

from pipeline.curation.make_mixture import Definition
from pipeline.formats.strict_yaml import validate
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from training.config import Distill, Teach

EVERYWHERE = {
    "make ": "installs an environment of its own; CI runs `make test`, and these tests the demonstration's program",
    "pip install ": "installs packages; `make extras` does, with each extra",
    "python3 -m venv ": "makes another environment",
}
"""The beginning of a command -> why it does not run, on any page."""

NOT_RUN: dict[tuple[str, str], str] = {
    ("docs/clusters.md", ""): "needs two machines and a bucket; tests/integration/test_cluster.py has two nodes",
    ("docs/training.md", "export VDOT_MODEL=Wan-AI/"): "fetches Wan's weights",
    ("docs/training.md", "vdot-data annotate demo/out --with "): "as above; tests/integration/test_latents.py runs it",
    ("docs/training.md", "from pathlib import Path"): "reads latents of the model in the folder `model`, as above",
}
"""(page, beginning of a command or of a block of Python) -> why it does not run."""

OTHER_OUTPUT: dict[tuple[str, str], str] = {
    ("docs/ingest.md", "vdot-data plan "): "estimates and times are of one machine",
}
"""(page, beginning of a command) -> why what it prints is not what the page shows."""

OTHER_YAML: dict[tuple[str, str], str] = {}
"""(page, beginning of a block) -> which program it is for."""

FOLLOWS = {
    "docs/curation.md": "docs/near-duplicates.md",
    "docs/other-trainers.md": "docs/curation.md",
    "docs/training.md": "docs/curation.md",
}
"""A page -> the page that it says it continues."""

AFTER = {"docs/distillation.md": "python -m training.demo demo"}
"""A page that begins after another target than `make demo` -> what that runs (`make demo-train`)."""

LOGS = {"make demo": "demo.log"}
"""A command that does not run here -> the reader's file that holds what it printed."""

# Printed between the commands of a console.
_NEXT = "=== next command ==="
# What differs from run to run: hashes, and the numbers of catalog parts.
_VARIES = re.compile(r"\b[0-9a-f]{16,64}\b|(?<=catalog part )\d+")
# A word that stands for something of the reader's own: the command is a synopsis.
_PLACEHOLDER = re.compile(r"\[?[A-Z]+(?:\.\w+|\.\.\.)?\]?|.*…")


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    return tuple(read_blocks(ROOT / page))


def is_synopsis(command: str) -> bool:
    return any(_PLACEHOLDER.fullmatch(word) for words in split_words(command) for word in words)


def reason_not_to_run(page: str, code: str) -> str | None:
    """Why a command or a block of Python does not run; None if it does."""
    anywhere = (reason for beginning, reason in EVERYWHERE.items() if code.startswith(beginning))
    here = (reason for (name, beginning), reason in NOT_RUN.items() if name == page and code.startswith(beginning))
    return next(anywhere, None) or next(here, None)


def runnable_commands(block: Block) -> list[str]:
    commands = [command for command in block.commands() if not is_synopsis(command)]
    return [command for command in commands if not reason_not_to_run(block.page, command)]


def runnable_code(block: Block) -> str:
    """What of a block runs: commands, or all of its Python; "" for a block of another kind, or of a file."""
    if block.file is not None:
        return ""
    if block.language == "python":
        return "" if reason_not_to_run(block.page, block.text) else block.text
    separator = f"\nprintf '\\n{_NEXT}\\n'\n" if block.language == CONSOLE else "\n"
    return separator.join(runnable_commands(block))


PAGES = [name_of(page) for page in pages()]
RUNNING = [page for page in PAGES if any(map(runnable_code, blocks_of(page)))]


def run_page(page: str, workplace: Any) -> None:
    """Run a page in the state in which it begins."""
    beginning = FOLLOWS.get(page, "demo")
    if not workplace.has(beginning):
        run_page(beginning, workplace)
    workplace.restore(beginning)
    if page in AFTER:
        workplace.run("bash", "-c", AFTER[page])
    steps = [block for block in blocks_of(page) if block.file is not None or runnable_code(block)]
    code = [
        {
            "place": block.place,
            "language": block.language,
            "file": block.file,
            "code": runnable_code(block) or block.text,
        }
        for block in steps
    ]
    outputs_file = workplace.folder / "outputs.json"
    workplace.run(sys.executable, page_program.__file__, outputs_file, stdin=json.dumps(code))
    home = workplace.home
    # The documentation shortens paths to the reader's folder.
    printed_texts = [text.replace(f"{home}/", "") for text in json.loads(outputs_file.read_text())]
    outputs = dict(zip(steps, printed_texts, strict=True))
    logs = {command: (home / log).read_text().replace(f"{home}/", "") for command, log in LOGS.items()}
    for block in blocks_of(page):
        if block.language == CONSOLE:
            printed = outputs.get(block, "").split(f"\n{_NEXT}\n")
            check_console(block, logs | dict(zip(runnable_commands(block), printed, strict=False)))
    # A text right after a block of Python is what that prints.
    for block, following in pairwise(blocks_of(page)):
        if (block.language, following.language) == ("python", "text") and block in outputs:
            check_lines(following.place, following.text.splitlines(), outputs[block])
    if page in FOLLOWS.values():
        workplace.save(page)


def check_console(block: Block, outputs: Mapping[str, str]) -> None:
    """Each command of a console prints what is shown below it, but for those that print something else each time."""
    for command, lines in block.console():
        lists = (*NOT_RUN, *OTHER_OUTPUT)
        is_listed = any(block.page == page and command.startswith(beginning) for page, beginning in lists)
        if lines and not (is_listed or is_synopsis(command)):
            assert command in outputs, f"{block.place} shows what {command} prints, but it does not run"
            check_lines(block.place, lines, outputs[command])


def check_lines(place: str, lines: list[str], output: str) -> None:
    """These lines are in the output, in this order; `...` stands for more, within a line or for lines."""
    printed = iter([_VARIES.sub("#", line).strip() for line in output.splitlines()])
    for line in lines:
        pattern = re.escape(_VARIES.sub("#", line)).replace(r"\.\.\.", ".*")
        # Each search goes on after the line that the one before it has found.
        is_printed = any(re.fullmatch(pattern, text) for text in printed)
        assert is_printed, f"{place} shows a line that is not printed there:\n{line}\n\n{output}"


def check_yaml(block: Block) -> None:
    """Raises if a block is not a valid recipe, mixture or configuration."""
    if any(block.page == page and block.text.startswith(beginning) for page, beginning in OTHER_YAML):
        return
    values = yaml.safe_load(block.text)
    if "datasets" in values:
        validate(Definition, values, block.place)
    elif "model" in values:
        validate(Distill if "critic" in values else Teach, values, block.place)
    else:
        # Rules may name the columns of a manifest.
        Blueprint.for_ingest(recipe.parse(block.text, block.place), ("licence",))


@pytest.mark.long
@pytest.mark.parametrize("page", RUNNING)
def test_what_a_page_says_works(page: str, workplace: Any) -> None:
    # A page that another one continues may have run already.
    if not workplace.has(page):
        run_page(page, workplace)


@pytest.mark.long
def test_what_the_demonstration_says_to_try_works(workplace: Any) -> None:
    workplace.restore("demo")
    lines = (workplace.home / "demo.txt").read_text().splitlines()
    commands = [line.strip() for line in lines if line.startswith("  ")]
    programs = [("vdot-data", "report"), ("vdot-data", "explain"), ("vdot-data", "verify"), ("python", "-c")]
    assert [tuple(shlex.split(command)[:2]) for command in commands] == programs
    workplace.run("bash", "-euc", "\n".join([". .venv/bin/activate", *commands]))


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_says_to_write_is_valid(page: str) -> None:
    for block in blocks_of(page):
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "yaml":
            check_yaml(block)
        elif block.language == "python":
            compile(block.text, block.place, "exec")


CONSOLE_BLOCK = Block("page.md", 1, CONSOLE, "$ first\none\n...\nthree\n$ second\nfour\n", None)


def test_a_console_that_shows_what_is_printed_passes() -> None:
    check_console(CONSOLE_BLOCK, {"first": "zero\none\ntwo\nthree\n", "second": "four\n"})


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        pytest.param("one\ntwo\n", "four\n", "three", id="line-missing"),
        pytest.param("three\ntwo\none\n", "four\n", r"\.\.\.", id="other-order"),
        pytest.param("one\ntwo\nthree\nfour\n", "", "four", id="line-of-another-command"),
        pytest.param("one\ntwo\nthree\n", None, "does not run", id="command-without-output"),
    ],
)
def test_a_console_that_shows_something_else_fails(first: str, second: str | None, complaint: str) -> None:
    outputs = {"first": first} | ({} if second is None else {"second": second})
    with pytest.raises(AssertionError, match=complaint):
        check_console(CONSOLE_BLOCK, outputs)


def test_the_lists_are_of_what_is_there() -> None:
    """An entry that fits no command any more may hide a new one."""
    code = [(page, text) for page in PAGES for block in blocks_of(page) for text in (block.commands() or [block.text])]
    anywhere = [beginning for beginning in EVERYWHERE if not any(text.startswith(beginning) for _, text in code)]
    here = [
        (page, beginning)
        for page, beginning in (*NOT_RUN, *OTHER_OUTPUT, *OTHER_YAML)
        if not any(name == page and text.startswith(beginning) for name, text in code)
    ]
    assert (anywhere, here) == ([], [])
    assert {*FOLLOWS, *FOLLOWS.values(), *AFTER} <= {*RUNNING}
