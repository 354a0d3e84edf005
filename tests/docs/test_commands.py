"""Tests that every command line in the documentation is one that the programs' own parsers take."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import typer
from documents import CONSOLE, ROOT, SHELL, name_of, pages, read_blocks, read_inline, split_commands, split_words

MODULES = {"vdot-data": "pipeline.cli.main", "vdot-train": "training.cli", "vdot-bench": "benchmarks.cli"}
PROGRAMS = {module: program for program, module in MODULES.items()}
# In a block of another language, and in the middle of a sentence: to the end of the line, or of a quotation.
_WITHIN = re.compile(rf"(?:{'|'.join(MODULES)}) [^\n'\"`|;]*")
# Options of other programs.
OTHER_OPTIONS = {"--nproc-per-node": "torchrun", "--mount": "docker"}
# The usage errors of typer and of click, of which typer may have a copy of its own.
USAGE_ERROR: Any = typer.BadParameter.__base__


@cache
def program(name: str) -> Any:
    """A program as its parser sees it."""
    return typer.main.get_command(import_module(MODULES[name]).app)


def find_problem(words: list[str], *, complete: bool) -> str | None:
    """What the parser of a program has against a command line; `complete`: it must have all that is required."""
    group = program(words[0])
    arguments = words[1:]
    command = group
    if arguments and not arguments[0].startswith("-"):
        if arguments[0] not in group.commands:
            return f"{words[0]} has no command {arguments[0]!r}"
        command, arguments = group.commands[arguments[0]], arguments[1:]
    context = command.context_class(command, info_name=words[0])
    try:
        values, rest, _ = command.make_parser(context).parse_args(arguments)
    except USAGE_ERROR as error:
        return str(error.format_message())
    if rest:
        return f"unexpected: {' '.join(rest)}"
    required = [parameter for parameter in command.params if parameter.required and complete]
    missing = [parameter.opts[-1] for parameter in required if not values.get(parameter.name)]
    return f"missing: {', '.join(missing)}" if missing else None


def program_words(command: str) -> Iterator[list[str]]:
    """The command lines of the programs within a line of shell, by the name of the program or of its module."""
    # The brackets of a synopsis say what may be left out.
    for words in split_words(re.sub(r"\[([^\]\s]+(?: [A-Z]+)?)\]", r"\1", command)):
        for index, word in enumerate(words):
            name = word.rpartition("/")[2] if index == 0 else PROGRAMS.get(word, "") if words[index - 1] == "-m" else ""
            if name in MODULES:
                yield [name, *words[index + 1 :]]
                break


def within(text: str) -> Iterator[list[str]]:
    """The command lines of the programs within a text of another kind."""
    for match in _WITHIN.findall(re.sub(r"\[([^\]\s]+)\]", r"\1", text)):
        yield match.split()


def block_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line in a block of shell, and in the Makefile, with its place."""
    for page in pages():
        for block in read_blocks(page):
            if block.language in SHELL | {CONSOLE}:
                for command in block.commands():
                    yield from ((block.place, words) for words in program_words(command))
    lines = (ROOT / "Makefile").read_text().splitlines()
    recipe = [line[1:].replace("$(BIN)/", "") for line in lines if line.startswith("\t")]
    for command in split_commands(recipe):
        yield from (("Makefile", words) for words in program_words(command.replace("$(", "(")))


def quoted_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line in backticks, in a block of another language and in an example's docstring, with its place."""
    for page in pages():
        yield from ((name_of(page), words) for code in read_inline(page) for words in within(code))
        for block in read_blocks(page):
            # A diagram only mentions programs.
            if block.language not in SHELL | {CONSOLE, "text"}:
                yield from ((block.place, words) for words in within(block.text))
    for example in (ROOT / "examples").rglob("*.py"):
        yield from ((name_of(example), words) for words in within(example.read_text()))


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


def test_command_lines_in_blocks_are_complete() -> None:
    lines = [*block_commands()]
    assert {words[0] for _, words in lines} == set(MODULES)
    problems = {f"{place}: {' '.join(words)}": find_problem(words, complete=True) for place, words in lines}
    assert {line: problem for line, problem in problems.items() if problem} == {}


def test_command_lines_in_backticks_name_commands_and_options_that_exist() -> None:
    lines = [*quoted_commands()]
    assert {words[0] for _, words in lines} == set(MODULES)
    problems = {
        # A sentence may name an option without its value.
        f"{place}: {' '.join(words)}": find_problem(words, complete=False)
        and find_problem([*words, "VALUE"], complete=False)
        for place, words in lines
    }
    assert {line: problem for line, problem in problems.items() if problem} == {}


def test_options_in_backticks_exist() -> None:
    """Of the command that is named with them (`annotate --retry`), or else of any."""
    commands = [(name, command) for program_name in MODULES for name, command in program(program_name).commands.items()]
    unknown_options = []
    for page in pages():
        for code in read_inline(page):
            first = code.split()[0]
            named = [command for name, command in commands if name == first]
            if not named and not first.startswith("--"):
                continue
            allowed = set(OTHER_OPTIONS).union(*map(options, named or [command for _, command in commands]))
            used = {word.partition("=")[0] for word in code.split() if word.startswith("--") and word != "--"}
            unknown_options += [f"{name_of(page)}: {code}" for option in used if option not in allowed]
    assert unknown_options == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("vdot-data ingets a --out b", "no command 'ingets'"),
        ("vdot-data ingest a --ouut b", "No such option"),
        ("vdot-data ingest a", "missing: --out"),
        ("vdot-data verify a b", "unexpected: b"),
        ("vdot-train sample a --prompt", "requires an argument"),
    ],
)
def test_a_wrong_line_is_noticed(line: str, problem: str) -> None:
    assert problem in (find_problem(line.split(), complete=True) or "")
