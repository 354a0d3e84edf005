"""Lists the modules that each installation owns, the bare core and every extra, and the declared requirements.

A module belongs to the set with the longest name that is the module's or its package's. `tests/extras` finds modules
that import more at their top than their set declares; so does `make extras`, which installs each set alone.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = ("vdot_data", "pipeline", "annotators", "filters", "training", "benchmarks")

CORE = "core"
OWNS: dict[str, tuple[str, ...]] = {
    # Annotators and filters can be imported and describe their signals without what they run on, so that readers of a
    # dataset can use them.
    CORE: (
        *("pipeline", "annotators", "filters", "vdot_data"),
        *("training.cli", "training.encoding.latents", "training.encoding.masked_latents", "training.models.folder"),
        *("training.data.latents_file", "benchmarks.cli", "benchmarks.curation.curate"),
    ),
    "ingest": (
        *("pipeline.curation.dedup", "pipeline.curation.embedding_run", "pipeline.cli.demo", "pipeline.video.process"),
        *("pipeline.engine.engine", "pipeline.engine.rounds", "pipeline.engine.coordinator"),
        *(f"pipeline.ingest.{name}" for name in ("commands", "forecast", "graph", "run")),
        *(f"pipeline.stages.{name}" for name in ("annotate", "cut", "embed", "pack", "sandboxed")),
    ),
    "train": ("training",),
    "bench": ("benchmarks",),
    "s3": (),
    "gcs": (),
    "http": ("pipeline.storage.web",),
}
"""Set -> modules and packages that only this set and the sets built on it need to import."""

BUILT_ON: dict[str, tuple[str, ...]] = {"bench": ("ingest", "train")}
"""Set -> the extras that it includes. The core is in all of them."""

# Import name -> distribution, for wheels that no test environment has.
_ABSENT = {"litdata": "litdata", "megatron": "megatron-energon", "streaming": "mosaicml-streaming", "gcsfs": "gcsfs"}


def modules() -> dict[str, Path]:
    """Every module of the five packages by its dotted name."""
    files = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


def owner(module: str) -> str:
    """The set that owns a module."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        for installed, names in OWNS.items():
            if name in names:
                return installed
    raise LookupError(f"{module} belongs to no set: add it to OWNS in {Path(__file__).name}")


def importable(installed: str) -> list[str]:
    """The modules that a set must be able to import: its own, the core's, and those of the sets that it includes."""
    sets = {CORE, installed, *BUILT_ON.get(installed, ())}
    # `__main__` modules are run and not imported.
    return [name for name in modules() if owner(name) in sets and not name.endswith("__main__")]


@cache
def _project() -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project


def extras() -> tuple[str, ...]:
    """The names of all extras."""
    return tuple(_project()["optional-dependencies"])


def declared(installed: str) -> set[str]:
    """The distributions that a set requires by name, including those of the core."""
    texts = [*_project()["dependencies"], *_project()["optional-dependencies"].get(installed, ())]
    names: set[str] = set()
    for requirement in map(Requirement, texts):
        if requirement.name == _project()["name"]:
            names = names.union(*map(declared, requirement.extras))
        else:
            names.add(canonicalize_name(requirement.name))
    return names


def providers(module: str) -> set[str]:
    """The distributions that a top-level module of another package comes from; several share a namespace."""
    if module in _ABSENT:
        return {_ABSENT[module]}
    return {canonicalize_name(name) for name in _installed().get(module, ())}


@cache
def _installed() -> dict[str, list[str]]:
    return dict(packages_distributions())


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """The other packages that a module imports, by their top-level name, and whether it does so when it is imported.
    Imports for type checkers are ignored."""
    yield from _imports(ast.parse(file.read_text()).body, at_once=True)


def _imports(body: Iterable[ast.AST], *, at_once: bool) -> Iterator[tuple[str, bool]]:
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _imports(ast.iter_child_nodes(node), at_once=at_once and not is_function)
            continue
        tops = (name.partition(".")[0] for name in names)
        yield from ((top, at_once) for top in tops if top not in sys.stdlib_module_names and top not in PACKAGES)
