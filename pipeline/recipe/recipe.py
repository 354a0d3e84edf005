"""The recipe: one YAML file with grid, shots, annotators, rules and tasks, checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, field_validator

from pipeline.errors import did_you_mean
from pipeline.formats.strict_yaml import StrictModel, parse_mapping, read_text, validate
from pipeline.video.grid import Grid


class Limits(StrictModel):
    """Bounds on untrusted input."""

    pixels: Annotated[int, Field(gt=0)] = 8192 * 4320
    """The largest picture, width x height."""
    duration_s: Annotated[float, Field(gt=0)] = 4 * 3600.0
    """The longest source."""
    stall_s: Annotated[float, Field(gt=0)] = 60.0
    """How long the decoder may make no progress."""
    memory_mb: Annotated[int, Field(ge=256)] = 4096
    """The memory of one decoder process."""
    worker_deaths: Annotated[int, Field(ge=1)] = 5
    """How many workers one input may kill before it is left out."""


class Commit(StrictModel):
    """When finished clips become a shard and a catalog part: at a size or an age, whichever comes first."""

    shard_mb: Annotated[float, Field(gt=0)] = 256.0
    """The size of a shard."""
    every_s: Annotated[float, Field(gt=0)] = 120.0
    """The age of the oldest clip that waits."""


class Encode(StrictModel):
    """How clips and tracks are encoded (x264)."""

    crf: Annotated[int, Field(ge=0, le=51)] = 18
    """The quality: lower is better, and larger."""
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"] = "veryfast"
    """How much time x264 takes to make files small."""


class Recipe(StrictModel):
    """Everything that decides what is made of a clip."""

    grid: Grid = Grid()
    """The frame rate, length and size of clips."""
    shots: Literal["transnetv2", "adaptive"] = "transnetv2"
    """The shot detector; `adaptive` needs no network, and finds hard cuts only."""
    crop_bars: bool = False
    """Whether letter- and pillarbox bars are cut off before scaling."""
    filters: tuple[str, ...]
    """The filters that measure each clip, before any annotator runs."""
    stages: tuple[tuple[str, ...], ...]
    """The annotators: one list per pool of workers. Those of a list share one decode."""
    rules: Mapping[str, str] = Field(default_factory=dict)
    """Name to SQL predicate: the first one that is true rejects the clip, and is the reason given."""
    tasks: Mapping[str, str | tuple[str, ...]] = Field(default_factory=dict)
    """What a kept clip can teach: name to SQL predicate, or to a list of tasks that it must be fit for."""
    score_all: bool = False
    """Whether clips that a filter's signal rejects are annotated, too."""
    encode: Encode = Encode()
    """How clips and tracks are encoded."""
    limits: Limits = Limits()
    """Bounds on untrusted input."""
    commit: Commit = Commit()
    """How often finished clips are committed."""

    @field_validator("stages")
    @classmethod
    def _stages_have_annotators(cls, stages: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        if not stages or not all(stages):
            raise ValueError("at least one stage is needed, and every stage needs an annotator, as in [[scribble]]")
        return stages

    @field_validator("stages", "filters")
    @classmethod
    def _names_are_unique(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [name for part in values for name in ([part] if isinstance(part, str) else part)]
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            raise ValueError(f"{repeated[0]!r} is named twice")
        return values

    @field_validator("tasks", mode="before")
    @classmethod
    def _composites_have_parts(cls, tasks: Any) -> Any:
        if not isinstance(tasks, Mapping):
            return tasks
        single = [str(name) for name, definition in tasks.items() if isinstance(definition, str)]
        for name, definition in tasks.items():
            if isinstance(definition, str):
                continue
            if not isinstance(definition, list | tuple) or not definition:
                raise ValueError(
                    f"the task {name!r} must be a predicate (in quotes, if it is true or false) or a list of tasks, as "
                    f"in [reference, pose]; found {definition!r}"
                )
            for part in definition:
                if part not in single:
                    raise ValueError(
                        f"the task {name!r} is a list, and its parts must be tasks that have a predicate; {part!r} is "
                        f"not one{did_you_mean(str(part), single)}"
                    )
        return tasks

    @property
    def fitness(self) -> dict[str, str]:
        """Each task's predicate; a clip is fit for a composite when it is fit for every part of it."""
        return {
            name: task if isinstance(task, str) else " AND ".join(f"({self.tasks[part]}\n)" for part in task)
            for name, task in self.tasks.items()
        }

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The tasks that each task is composed of: itself, unless it is a composite."""
        return {name: (name,) if isinstance(task, str) else tuple(task) for name, task in self.tasks.items()}

    @property
    def annotators(self) -> tuple[str, ...]:
        """Every annotator, in running order."""
        return tuple(name for stage in self.stages for name in stage)

    @cached_property
    def geometry(self) -> str:
        """What must be the same for all of one OUT: clips of another grid, shot detector or crop have other ids."""
        return f"grid {self.grid.key()}, shots {self.shots}, crop_bars {str(self.crop_bars).lower()}"

    @cached_property
    def text(self) -> str:
        """The recipe as YAML, as stored in the catalog; in its own order, because the first true rule decides."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    @cached_property
    def hash(self) -> str:
        """16 hex digits over everything that can change a verdict or a sample's bytes (not `limits`, not `commit`)."""
        body = self.model_dump(mode="json", exclude={"limits", "commit"})
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:16]


def default_text() -> str:
    """The YAML of the default recipe, as shipped."""
    return resources.files("pipeline.recipe").joinpath("default.yaml").read_text()


def parse(text: str, origin: str) -> Recipe:
    """A recipe from YAML; keys left out come from the default recipe. Raises `UsageError` that names `origin`."""
    name = f"recipe {origin}"
    return validate(Recipe, yaml.safe_load(default_text()) | parse_mapping(text, name), name)


def load(path: Path | None) -> Recipe:
    """The recipe in a file, or the default one. Raises `UsageError` when it cannot be read or is not valid."""
    return parse(default_text(), "default.yaml") if path is None else parse(read_text(path, "recipe"), str(path))
