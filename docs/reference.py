"""Writes the parts of the site that come from the code: a hook of MkDocs, named in mkdocs.yml.

A page asks for a part with a comment on a line of its own, such as `<!-- reference: signals -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import typer.cli
import typer.main
from pydantic import TypeAdapter

from pipeline.curation.mixture_definition import Definition
from pipeline.errors import ADVICE, OUR_FAULT, ErrorCode
from pipeline.recipe import recipe, registry
from training.config import Distill, Teach

_COMMENT = re.compile(r"^<!-- reference: (.+) -->$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^]]*)\]\((?!https?:|#)([^)]+)\)")
# The types and bounds of JSON Schema, in terms of YAML.
_TYPES = {
    "integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "null",
    "object": "keys and values",
}  # fmt: skip
_BOUNDS = {
    "minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
}  # fmt: skip


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each comment that asks for a part. Raises KeyError for a part that does not exist."""
    return _COMMENT.sub(lambda match: PARTS[match[1]](), markdown)


def write_home() -> str:
    """The README as a page of the site, where a link to a file outside docs/ becomes the path of this file."""

    def relink(match: re.Match[str]) -> str:
        mark, text, target = match.groups()
        return f"{mark}[{text}]({target.removeprefix('docs/')})" if target.startswith("docs/") else f"`{target}`"

    return _LINK.sub(relink, (Path(__file__).parents[1] / "README.md").read_text())


def write_commands(module: str, program: str) -> str:
    """The commands of a program, by typer's own generator."""
    group = typer.main.get_group(import_module(module).app)
    context = typer.Context(group, info_name=program)
    parts = [
        typer.cli.get_docs_for_click(
            obj=command,
            ctx=typer.Context(command, info_name=name, parent=context),
            indent=1,
            name=name,
            call_prefix=program,
        )
        for name, command in group.commands.items()
    ]
    return "\n".join(parts).replace("* `--help`: Show this message and exit.\n", "").replace("**Options**:\n\n\n", "")


def write_keys(models: Mapping[str, type], defaults: Mapping[str, str] | None = None) -> str:
    """The keys of each of these models, and then those of each model inside them, under the keys that have it.

    `defaults`: what to write as the default of keys of these models where it is not the model's own.
    """
    schemas = {name: TypeAdapter(model).json_schema() for name, model in models.items()}
    definitions: dict[str, Any] = {}
    for schema in schemas.values():
        definitions |= schema.pop("$defs", {})
    paths: dict[str, list[str]] = {}
    for schema in schemas.values():
        for path, definition in _list_inner(schema, definitions, ""):
            if path not in paths.setdefault(definition, []):
                paths[definition].append(path)
    parts = [f"## {name}\n\n{_list_keys(schema, definitions, defaults)}" for name, schema in schemas.items()]
    for definition, keys in paths.items():
        schema = definitions[definition]
        parts.append(f"## {', '.join(keys)}\n\n{_describe(schema)}\n\n{_list_keys(schema, definitions)}")
    return "\n\n".join(parts)


def _list_inner(schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """The path and the definition of each key that holds keys and values of its own, at any depth."""
    for key, value in schema["properties"].items():
        for option in [value, *value.get("anyOf", ())]:
            path = f"{prefix}{key}"
            if "additionalProperties" in option:
                option, path = option["additionalProperties"], f"{path}.NAME"
            if "$ref" in option:
                definition = option["$ref"].rpartition("/")[2]
                yield f"`{path}`", definition
                yield from _list_inner(definitions[definition], definitions, f"{path}.")


def _list_keys(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], defaults: Mapping[str, str] | None = None
) -> str:
    """A line per key, as typer writes options: a table would be too wide for a phone."""
    lines = []
    for key, value in schema["properties"].items():
        default = (defaults or {}).get(key) or _describe_default(value, key in schema.get("required", ()))
        inner = definitions.get(value.get("$ref", "").rpartition("/")[2], {})
        meaning = " ".join((_describe(value) or _describe(inner)).split())
        lines.append(f"* `{key}`: {meaning} [{'; '.join(filter(None, (_describe_type(value), default)))}]")
    return "\n".join(lines)


def _describe(schema: Mapping[str, Any]) -> str:
    """A description, without what it says to programmers."""
    return re.sub(r"\s*Raises \w+Error\b.*", "", schema.get("description", ""), flags=re.DOTALL)


def _describe_type(value: Mapping[str, Any]) -> str:
    if "anyOf" in value:
        return ", or ".join(map(_describe_type, value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{name}`" for name in value["enum"])
    if "$ref" in value:
        return _TYPES["object"]
    if value["type"] == "array":
        items = _describe_type((value.get("prefixItems") or [value["items"]])[0])
        return f"list of {value['maxItems']}: {items}" if "maxItems" in value else f"list of {items}"
    # The bound of `Count` is there against typing errors alone.
    bounds = [f"{words} {value[bound]:g}" for bound, words in _BOUNDS.items() if abs(value.get(bound, 1e12)) < 1e12]
    return ", ".join([_TYPES[value["type"]], *bounds])


def _describe_default(value: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = value["default"]
    if default in ("", [], None) or isinstance(default, dict):
        return ""
    # YAML's spelling: true, and 16 for 16.0.
    return f"default: {json.dumps(default).removesuffix('.0')}".replace('"', "")


def write_signals() -> str:
    """Every signal, and what makes it."""
    makers = {signal: name for group, name in _list_registered() for signal in _load(group, name).signals}
    signals = registry.collect_signals(registry.find_registered("annotators"), registry.find_registered("filters"))
    rows = (
        (
            f"`{name}`",
            signal.unit or "text",
            signal.meaning[0].lower() + signal.meaning[1:].rstrip("."),
            f"`{makers[name]}`",
        )
        for name, signal in sorted(signals.items())
    )
    return _format_table(("signal", "unit", "meaning", "made by"), rows)


def write_makers() -> str:
    """Every registered filter and annotator: what it makes, what it builds on, and whose weights it uses."""
    default = recipe.load(None)
    rows = []
    for group, name in _list_registered():
        maker = _load(group, name)
        declaration = registry.declare(maker)
        outputs = [
            *(f"track `{track}`" for track in declaration.tracks),
            *(f"pictures `{picture}`" for picture in declaration.pictures),
            *(f"file `{file}`" for file in declaration.files),
            *(["caption"] if declaration.caption else []),
            *(
                [f"{len(maker.signals)} signals"]
                if len(maker.signals) > 1
                else [f"`{signal}`" for signal in maker.signals]
            ),
        ]
        licences = sorted({weight.licence for weight in declaration.weights})
        rows.append(
            (
                f"`{name}`",
                group.removesuffix("s"),
                "yes" if name in (*default.filters, *default.annotators) else "no",
                ", ".join(outputs),
                ", ".join(f"`{need}`" for need in declaration.needs) or ("the sample" if declaration.sample else ""),
                ", ".join(licences) or ("yours" if declaration.choose else ""),
            )
        )
    return _format_table(("name", "kind", "by default", "makes", "needs", "licence of weights"), rows)


def _list_registered() -> Iterator[tuple[registry.Group, str]]:
    for group in ("filters", "annotators"):
        for name in sorted(registry.find_registered(group)):
            yield group, name


def _load(group: registry.Group, name: str) -> Any:
    return registry.load_filter(name) if group == "filters" else registry.load_annotator(name)


def write_error_codes() -> str:
    """Every error code, with its advice."""
    table = _format_table(("code", "what to do"), ((f"`{code}`", ADVICE[code]) for code in ErrorCode))
    defects = " and ".join(f"`{code}`" for code in ErrorCode if code in OUR_FAULT)
    return f"{table}\n\n{defects} are defects of vdot-data: a run in which one occurs ends with exit status 1."


def _format_table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    titles = list(titles)
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )


_DEFAULT_RECIPE = dict.fromkeys(
    ("filters", "stages", "rules", "tasks"), "default: [see there](../recipes.md#the-default-recipe)"
)
PARTS: dict[str, Callable[[], str]] = {
    "home": write_home,
    "vdot-data": partial(write_commands, "pipeline.cli.main", "vdot-data"),
    "vdot-train": partial(write_commands, "training.cli", "vdot-train"),
    "vdot-bench": partial(write_commands, "benchmarks.cli", "vdot-bench"),
    "recipe": partial(write_keys, {"All keys": recipe.Recipe}, _DEFAULT_RECIPE),
    "mixture": partial(write_keys, {"All keys": Definition}),
    "training": partial(write_keys, {"vdot-train teach": Teach, "vdot-train distill": Distill}),
    "signals": write_signals,
    "filters and annotators": write_makers,
    "error codes": write_error_codes,
}
