"""Reads the documentation as its readers do: blocks of code in their order, and what is set in backticks."""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHELL = frozenset(["sh", "bash"])
CONSOLE = "console"

# A fence may be indented, in a list or a tab; `title="x.py"` names a file.
_BLOCK = re.compile(r'^( *)```(\w*)(?:[^\n]*\btitle="([^"]+)")?[^\n]*\n(.*?)^\1```$', re.MULTILINE | re.DOTALL)
# A sentence that ends in a colon before a block says which file the block is.
_FILE = re.compile(r"`([^`\s]+\.\w+)`[^`\n]*:$")
_INLINE = re.compile(r"`((?:[^`\n]|\n(?!\n))+)`")
_INCLUDE = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)
_PROMPT = "$ "


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code: where its first line is, and the file that its reader is to write it into, if any."""

    page: str
    line: int
    language: str
    text: str
    file: str | None

    @property
    def place(self) -> str:
        """As an editor understands it."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a block of shell or of a console, each with its continuation lines and no comment."""
        if self.language == CONSOLE:
            return [command for command, _ in self.console()]
        return split_commands(self.text.splitlines()) if self.language in SHELL else []

    def console(self) -> list[tuple[str, list[str]]]:
        """The commands of a console, each with the lines that it prints."""
        commands: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith(_PROMPT):
                commands.append((line.removeprefix(_PROMPT), []))
            elif line.strip():
                commands[-1][1].append(line.strip())
        return commands


def pages() -> list[Path]:
    """Every page for readers: those in the root, of the site, of the examples and of the benchmarks."""
    folders = (ROOT / name for name in ("docs", "examples", "benchmarks"))
    return [*sorted(ROOT.glob("*.md")), *sorted(page for folder in folders for page in folder.rglob("*.md"))]


def name_of(page: Path) -> str:
    """A page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def read_blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in their order."""
    text = page.read_text()
    blocks = []
    for match in _BLOCK.finditer(text):
        sentence = _FILE.search(text[: match.start()].rstrip().rpartition("\n")[2])
        body = _INCLUDE.sub(lambda include: (ROOT / include[1]).read_text(), textwrap.dedent(match[4]))
        line = text.count("\n", 0, match.start(4)) + 1
        blocks.append(Block(name_of(page), line, match[2], body, match[3] or (sentence[1] if sentence else None)))
    return blocks


def read_inline(page: Path) -> list[str]:
    """What a page sets in backticks outside its blocks."""
    prose = _BLOCK.sub("", page.read_text())
    return [" ".join(code.split()) for code in _INLINE.findall(prose)]


def read_cells(notebook: Path, kind: str = "code") -> list[str]:
    """The text of a notebook's cells of a kind, `code` or `markdown`."""
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == kind]


def split_commands(lines: list[str]) -> list[str]:
    """Shell lines as commands: comments are removed, and a command that goes on in the next line is joined."""
    commands: list[str] = []
    pending = ""
    for line in lines:
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1]
        elif _is_open(pending):
            pending += "\n"
        else:
            commands.append(_strip_comment(pending))
            pending = ""
    assert not pending, f"a command does not end: {pending}"
    return [command for command in commands if command]


def split_words(command: str) -> Iterator[list[str]]:
    """The words of each simple command of a line: of both in `cd x && vdot-data weights`."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in lexer:
        if word in ("&&", "||", "|", ";", "&"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def _is_open(command: str) -> bool:
    """Whether a quote of a command is not closed yet."""
    try:
        shlex.split(command, comments=True)
    except ValueError:
        return True
    return False


def _strip_comment(command: str) -> str:
    """A command without the comment at its end; a `#` within a word or quotes is none."""
    for place in (match.start() for match in re.finditer(r"(?<!\S)#", command)):
        if not _is_open(command[:place]):
            return command[:place].strip()
    return command.strip()
