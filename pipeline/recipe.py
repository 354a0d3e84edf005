"""The recipe: one YAML file that says grid, shots, annotators, rules and tasks, checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from filters.rules import did_you_mean
from pipeline.errors import UsageError
from pipeline.grid import Grid


class Strict(BaseModel):
    """A part of the recipe: unknown keys are an error, because a misspelt threshold must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(Strict):
    """Bounds on untrusted input."""

    pixels: Annotated[int, Field(gt=0, description="largest picture, width x height")] = 8192 * 4320
    duration_s: Annotated[float, Field(gt=0, description="longest source")] = 4 * 3600.0
    stall_s: Annotated[float, Field(gt=0, description="longest the decoder may stand still")] = 60.0
    memory_mb: Annotated[int, Field(ge=256, description="memory of one decoder process")] = 4096
    worker_deaths: Annotated[
        int, Field(ge=1, description="workers that one input may kill before it is left alone")
    ] = 5


class Commit(Strict):
    """When finished clips become a shard and a catalog part: at a size or an age, whichever comes first."""

    shard_mb: Annotated[float, Field(gt=0)] = 256.0
    every_s: Annotated[float, Field(gt=0)] = 120.0


class Encode(Strict):
    """How clips and tracks are encoded (x264)."""

    crf: Annotated[int, Field(ge=0, le=51)] = 18
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"


class Recipe(Strict):
    """Everything that decides what a clip becomes."""

    grid: Grid = Grid()
    shots: Literal["transnetv2", "adaptive"] = "transnetv2"
    crop_bars: bool = False
    filters: tuple[str, ...]
    stages: tuple[tuple[str, ...], ...]
    rules: Mapping[str, str] = Field(default_factory=dict)
    tasks: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    score_all: bool = False
    encode: Encode = Encode()
    limits: Limits = Limits()
    commit: Commit = Commit()

    @field_validator("stages")
    @classmethod
    def _stages_have_annotators(cls, stages: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not stages or not all(stages):
            raise ValueError("at least one stage is needed, and every stage needs an annotator, as in [[scribble]]")
        return stages

    @field_validator("stages", "filters")
    @classmethod
    def _once(cls, named: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [name for part in named for name in ([part] if isinstance(part, str) else part)]
        twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]!r} is named twice")
        return named

    @field_validator("tasks", mode="before")
    @classmethod
    def _composites_have_parts(cls, tasks: Any) -> Any:
        if not isinstance(tasks, Mapping):
            return tasks
        single = [str(name) for name, given in tasks.items() if isinstance(given, str)]
        for name, given in tasks.items():
            if isinstance(given, str):
                continue
            if not isinstance(given, list | tuple) or not given:
                raise ValueError(
                    f"the task {name!r} must be a predicate (in quotes, if it is true or false) or a list of tasks, as "
                    f"in [reference, pose]; found {given!r}"
                )
            for part in given:
                if part not in single:
                    raise ValueError(
                        f"the task {name!r} is a list, and its parts must be tasks that have a predicate; {part!r} is "
                        f"none{did_you_mean(str(part), single)}"
                    )
        return tasks

    @property
    def fitness(self) -> dict[str, str]:
        """Each task's predicate; a clip is fit for a composite when it is fit for every part of it."""
        return {
            name: given if isinstance(given, str) else " AND ".join(f"({self.tasks[part]}\n)" for part in given)
            for name, given in self.tasks.items()
        }

    @property
    def annotators(self) -> tuple[str, ...]:
        """Every annotator named, in the order in which it runs."""
        return tuple(name for stage in self.stages for name in stage)

    @cached_property
    def geometry(self) -> str:
        """What one OUT cannot mix: clips of another grid, shot detector or crop have other ids."""
        return f"grid {self.grid.key()}, shots {self.shots}, crop_bars {str(self.crop_bars).lower()}"

    @cached_property
    def text(self) -> str:
        """The recipe as YAML, as kept in the catalog; in its own order, because the first rule that is true decides."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @cached_property
    def hash(self) -> str:
        """16 hex digits over everything that can change a verdict or a sample's bytes (not `limits`, not `commit`)."""
        body = self.model_dump(mode="json", exclude={"limits", "commit"})
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


class _Loader(yaml.SafeLoader):
    """YAML in which no key comes twice: PyYAML lets the last one win, and a rule would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for (key, _), name in zip(node.value, keys, strict=False):
            if keys.count(name) > 1 and name != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} is there twice", key.start_mark)
        return super().construct_mapping(node, deep)


# pydantic's types of errors, in the words of those who write YAML.
_EXPECTED = {
    "tuple_type": "a list, as in [a, b]",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), "keys and values"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text (in quotes, if it looks like a number)",
}


def _sentence(error: ErrorDetails) -> str:
    """One problem that pydantic found, in a sentence."""
    where = ".".join(map(str, error["loc"])) or "recipe"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        keys: Any = Recipe
        for part in error["loc"][:-1]:
            keys = Recipe.model_fields[str(part)].annotation
        known = getattr(keys, "__pydantic_fields__", None) or keys.__dataclass_fields__
        return f"{where}: there is no such key{did_you_mean(str(error['loc'][-1]), known)}"
    if error["type"] in _EXPECTED:
        return f"{where}: expected {_EXPECTED[error['type']]}; found {error['input']!r}"
    return f"{where}: {error['msg'].removeprefix('Value error, ').replace('Input should be', 'must be')}"


def default_text() -> str:
    """The YAML of the default recipe, as shipped."""
    return resources.files("pipeline").joinpath("default.yaml").read_text()


def parse(text: str, where: str) -> Recipe:
    """A recipe from YAML; keys left out come from the default recipe. Raises `UsageError` that names `where`."""
    try:
        given = yaml.load(text, _Loader) or {}  # noqa: S506 (it is a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: something like a date that is none
        raise UsageError(f"recipe {where} is not YAML: {' '.join(str(error).split())}") from error
    try:
        if not isinstance(given, dict):
            raise UsageError(f"recipe {where}: expected keys and values, found {type(given).__name__}")
        return Recipe.model_validate(yaml.safe_load(default_text()) | given)
    except ValidationError as error:
        raise UsageError(f"recipe {where}: {'; '.join(map(_sentence, error.errors()))}") from error


def load(path: Path | None) -> Recipe:
    """The recipe in a file, or the default one. Raises `UsageError` when it cannot be read or is not valid."""
    if path is None:
        return parse(default_text(), "default.yaml")
    try:
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the recipe {path}: {why}") from error
