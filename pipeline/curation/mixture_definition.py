"""The YAML from which a mixture is made: datasets, tasks and their shares, and how clips are drawn.

    datasets:
      films: {path: films, where: "luma > 60"}       # or `selection: day1`; `sequence: 17` pins an older state
      web: {path: "s3://bucket/web", weight: 2}
    tasks: {text: 40%, depth: 2, pose: 1}            # shares in %, and weights that divide the rest
    clips_per_source: 20
    caption_dropout: 0.1
    held_out: 0.02
    seed: 7
    step: {micro_batches: 8, tokens: 65520}          # of one bucket each, divided among ranks; tokens at most

A share can also follow from the number of clips: `tasks: [text, depth, pose]` with `temperature: 2` gives each
the share count^(1/2).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from pipeline.formats.strict_yaml import StrictModel, parse_mapping, read_text, validate
from pipeline.mixture.mixture import Step


class Part(StrictModel):
    """One dataset of a mixture, and which of its clips may be drawn."""

    path: str
    """The dataset: a URL, or a folder, which counts from the folder of this file."""
    where: str | tuple[str, ...] = ()
    """Conditions in SQL on signals, columns of manifests and layers, all of which must be true."""
    selection: str | None = None
    """A selection that `select --name` kept: only its clips are drawn."""
    sequence: Annotated[int, Field(ge=1)] | None = None
    """The last part of the catalog that counts, to use an older state; null: the newest."""
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Within a task, a clip of a dataset with weight 2 is drawn twice as often as one of a dataset with weight 1."""


class Definition(StrictModel):
    """What a training run draws, in which shares."""

    datasets: Annotated[dict[str, Part], Field(min_length=1)]
    """Name -> a dataset, and which of its clips may be drawn."""
    tasks: dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False)] | str] | tuple[str, ...]
    """Task -> its share (`40%`), or a weight that divides the rest. Or a list of tasks: shares follow from their
    numbers of clips."""
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] | None = None
    """With a list of tasks: the share of each is in proportion to count^(1/temperature); null: to its clips."""
    clips_per_source: Annotated[int, Field(ge=1)] | None = None
    """The most clips of a source that may be drawn for a task; null: all."""
    caption_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often a clip is drawn without its caption."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of sources that are not trained on, with all near duplicates of them."""
    seed: int = 0
    """Decides what is held out, and the order and random choices of all draws."""
    step: Step = Step()
    """What one training step draws."""

    @model_validator(mode="after")
    def _shares_or_temperature(self) -> Definition:
        if not self.tasks:
            raise ValueError("tasks: name at least one")
        twice = (
            [] if isinstance(self.tasks, dict) else [task for task, count in Counter(self.tasks).items() if count > 1]
        )
        if twice:
            raise ValueError(f"tasks: {twice[0]!r} is named twice")
        if isinstance(self.tasks, dict) and self.temperature is not None:
            raise ValueError("temperature: the tasks have shares already; give `tasks` as a list, or no temperature")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The tasks."""
        return tuple(self.tasks)


def read_definition(file: Path, name: str) -> Definition:
    """The definition in a file that messages call `name`. Raises `UsageError` for a file that holds none."""
    return validate(Definition, parse_mapping(read_text(file, "mixture"), name), name)
