"""Checkpoints: folders `step-N` of safetensors and one JSON file, whole or not at all.

Every process writes its shards; another number of processes reads them again. Nothing in them is a pickle, so that a
checkpoint from somebody else can run no code. Random numbers have no state (`draws`), and the stream's is a position.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pydantic import Field
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from pipeline.errors import ErrorCode, Failure, RunError, UsageError, attempt
from pipeline.formats.strict_yaml import StrictModel, validate
from training.distributed import World

META = "checkpoint.json"
_FORMAT: Literal[3] = 3
_NAME = re.compile(r"step-\d+")


class Place(StrictModel):
    """How far the stream was, as `stream.Stream.state_dict` says it."""

    mixture: str
    split: str
    position: Annotated[int, Field(ge=0)]


class Drawn(StrictModel):
    """What a mixture draws of one dataset for one task: how many clips, and their share of all that is drawn."""

    dataset: str
    task: str
    clips: Annotated[int, Field(ge=1)]
    share: str


class Earlier(StrictModel):
    """Settings that a run had until a step, before it went on with others in another folder."""

    step: Annotated[int, Field(ge=1)]
    config: dict[str, Any]


class Told(StrictModel):
    """What a run tells of itself after a step: its configuration and those before, the schedule that its student is
    sampled by, the fingerprints of what it stands on of its model, what it draws and where the stream was, and how
    often each part was updated."""

    format: Literal[3] = _FORMAT
    step: Annotated[int, Field(ge=1)]
    kind: Literal["teach", "distill"]
    schedule: dict[str, Any] | None
    config: dict[str, Any]
    earlier: list[Earlier]
    base: dict[str, str]
    data: list[Drawn]
    stream: Place
    updates: dict[str, Annotated[int, Field(ge=0)]]


def save(folder: Path, told: Told, tensors: Mapping[str, Tensor], world: World) -> Path:
    """Write the checkpoint of a step beside those that are there; where it is.

    Raises RunError where it cannot be written; what was written of it is removed, and the others are as they were.
    """
    step = told.step
    done, at = folder / f"step-{step:07d}", folder / f".step-{step:07d}"
    trouble: str | None = None
    try:
        if world.first:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(at, ignore_errors=True)
            at.mkdir()
    except OSError as error:
        trouble = _why(error)
    try:
        # All go on together, or none does.
        if not any(world.gathered(trouble)):
            dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(at), save_distributed=True))
        if world.first and trouble is None:
            with (at / META).open("w") as file:
                file.write(told.model_dump_json(indent=1))
                file.flush()
                os.fsync(file.fileno())
            at.rename(done)
    except (OSError, dcp.CheckpointException) as error:
        trouble = _why(error)
    # One process may have failed where others did not, and all must say the same.
    troubles = [one for one in world.gathered(trouble) if one]
    if troubles:
        if world.first:
            shutil.rmtree(at, ignore_errors=True)
        last = latest(folder)
        kept = f"the last one is {last.name}" if last else "there is none yet"
        helps = "Once that is mended, --resume latest goes on"
        raise RunError(f"the checkpoint of step {step} cannot be written to {folder}: {troubles[0]}; {kept}. {helps}")
    return done


def read(checkpoint: Path) -> Told:
    """What was told to `save`. Raises UsageError where the folder is no checkpoint of a run."""
    if not (checkpoint / META).is_file():
        raise UsageError(f"{checkpoint} is no checkpoint: it holds no {META}")
    damaged = f"{checkpoint} is a damaged checkpoint: its {META}"
    try:
        told = json.loads((checkpoint / META).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{damaged} cannot be read ({error!r})") from error
    if not isinstance(told, dict) or "format" not in told:
        raise UsageError(f"{damaged} says no format")
    if told["format"] != _FORMAT:
        raise UsageError(
            f"{checkpoint} has format {told['format']}, and this version reads {_FORMAT}: begin a new folder, or go on "
            "with the version that wrote it"
        )
    made = validate(Told, told, damaged)
    if _NAME.fullmatch(checkpoint.name) and _step(checkpoint) != made.step:
        raise UsageError(f"{damaged} is of step {made.step}: give the folder the name that it had, or remove it")
    return made


def load(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, of any sharding, with those that `save` wrote under the same names.

    Raises UsageError where one is missing, of another shape, or damaged.
    """
    if lacking := sorted({*tensors} - names(checkpoint)):
        raise UsageError(f"{checkpoint} is of another model: it lacks {lacking[0]} and {len(lacking) - 1} others")
    alone = not dist.is_initialized()
    # To be alone is what is told, and yet it is warned of.
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    try:
        dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=alone)
    except (OSError, dcp.CheckpointException) as error:
        raise UsageError(f"{checkpoint} cannot be read, or is of another model: {_why(error)}") from error


def fits(checkpoint: Path, told: Told, prints: Mapping[str, str], folder: Path) -> None:
    """Raises UsageError where a part of the model in a folder, of which `prints` are the fingerprints, is another than
    the one that a checkpoint was trained with."""
    for part, found in prints.items():
        if told.base.get(part) != found:
            raise UsageError(f"{folder} holds another {part} than the one that {checkpoint} was trained with")


def names(checkpoint: Path) -> set[str]:
    """The names of all tensors in a checkpoint. Raises UsageError where it is damaged, or has lost a file."""
    helps = "remove its folder to go on from an older one"
    if not [*checkpoint.glob("*.safetensors")]:
        raise UsageError(f"{checkpoint} has lost its weights; {helps}")
    # A header that is cut short or edited fails in whatever line of the reader it gets to.
    read = attempt(ErrorCode.INTERNAL_ERROR, HuggingFaceStorageReader(str(checkpoint)).read_metadata)
    if isinstance(read, Failure):
        raise UsageError(f"{checkpoint} cannot be read: {read.detail}; {helps}")
    for name, one in read.state_dict_metadata.items():
        # Where a shard is gone, the reader would leave what it held as it was.
        if sum(math.prod(chunk.sizes) for chunk in one.chunks) != math.prod(one.size):
            raise UsageError(f"{checkpoint} has lost a part of {name}; {helps}")
    return {*read.state_dict_metadata}


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a folder, if there is one."""
    return max(found, key=_step) if (found := _all(folder)) else None


def sound(folder: Path) -> None:
    """Raises UsageError where a checkpoint is no longer whole: a run would begin again before it, unnoticed."""
    for one in sorted({*_steps(folder)} - {*_all(folder)}):
        raise UsageError(f"{one} has lost its {META}: bring it back, or remove the folder to go on from an older one")


def chosen(folder: Path, named: str) -> Path | None:
    """The checkpoint that is meant by `latest` (None where there is none yet) or by a path. Raises UsageError for a
    path that is none, and for one that is older than what the folder holds: then `latest` would be another run's."""
    newest = latest(folder)
    if named == "latest":
        return newest
    if not Path(named).is_dir():
        raise UsageError(f"{named} is no checkpoint: a run goes on from `latest`, or from the folder of one")
    step = read(Path(named)).step
    if newest is not None and _step(newest) > step:
        raise UsageError(f"{folder} holds {newest.name}, after step {step}: go on in another folder, or remove it")
    return Path(named)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest so many, and what killed runs left half done."""
    for half in folder.glob(".*step-*"):
        shutil.rmtree(half, ignore_errors=True)
    for old in sorted(_all(folder), key=_step)[:-keep]:
        # Out of sight first: what is half removed is no checkpoint.
        hidden = old.rename(old.with_name(f".{old.name}"))
        shutil.rmtree(hidden, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return [one for one in _steps(folder) if (one / META).is_file()]


def _steps(folder: Path) -> list[Path]:
    """What has the name of a checkpoint; a copy that somebody made of one has another."""
    return [one for one in folder.glob("step-*") if _NAME.fullmatch(one.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _why(error: Exception) -> str:
    """What went wrong, in the words of whatever went wrong first."""
    failures = getattr(error, "failures", None)
    cause = next(iter(failures.values()))[0] if failures else error
    return " ".join(str(cause).split())[:300]
