"""Options and output that several commands of the command line share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

console = Console(stderr=True)

Out = Annotated[str, typer.Argument(help="The dataset: a folder or any fsspec URL.", show_default=False)]
Sources = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, globs, URLs (s3://, gs://, https://) or manifests (.txt .csv .tsv .json .jsonl .parquet)."
    ),
]
Recipe = Annotated[Path | None, typer.Option(help="A recipe (YAML) that changes the default one.")]
Exclude = Annotated[str | None, typer.Option(help="A manifest of sources to leave out, of any of these forms.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Take only the first N sources.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster to join: auto, or HOST:6379.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs of the local Ray; all by default.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on stdout.")]


def keep_stderr() -> None:
    """Let the console write to a copy of stderr, because `engine` redirects stderr for a moment."""
    console.file = os.fdopen(os.dup(2), "w")


def show(parts: Iterable[Table | str], answer: object | None) -> None:
    """Print tables and sentences for people on stderr, and the answer for programs, if any, on stdout."""
    for part in parts:
        console.print(part, highlight=False, soft_wrap=True)
    if answer is not None:
        print_json(answer)


def print_json(answer: object) -> None:
    """Print the answer of a command on stdout as one line of JSON; dataclasses become objects, sets sorted lists."""
    typer.echo(json.dumps(answer, default=_to_plain))


def _to_plain(value: object) -> Any:
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, set):
        return sorted(value, key=repr)
    raise TypeError(f"{type(value).__name__} has no form in JSON")
