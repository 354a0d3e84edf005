"""Checkpoints: folders `step-N` of safetensors and one JSON file, written atomically.

Every process writes its shards; any number of processes can read them. They contain no pickles, so loading somebody
else's checkpoint cannot run code. Random numbers have no state (`seeded_random`), and the stream's is a position.
"""

from __future__ import annotations

import json
import math
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
from pipeline.storage.atomic import begin_folder, remove_folder, unfinished_path, write_file
from training.distributed import World

META = "checkpoint.json"
_FORMAT: Literal[3] = 3
_NAME = re.compile(r"step-\d+")


class StreamState(StrictModel):
    """The position of the stream, as `stream.Stream.state_dict` returns it."""

    mixture: str
    split: str
    position: Annotated[int, Field(ge=0)]


class DatasetShare(StrictModel):
    """The share of one dataset and task in a mixture: how many clips, and their share of all draws."""

    dataset: str
    task: str
    clips: Annotated[int, Field(ge=1)]
    share: str


class EarlierConfig(StrictModel):
    """The settings of a run until a step, after which it continued in another folder with other settings."""

    step: Annotated[int, Field(ge=1)]
    config: dict[str, Any]


class Metadata(StrictModel):
    """The JSON file of a checkpoint: the run's configuration and earlier ones, the schedule that its student is sampled
    with, the fingerprints of the model's frozen parts, its data, the position of the stream, and how often each part
    was updated."""

    format: Literal[3] = _FORMAT
    step: Annotated[int, Field(ge=1)]
    kind: Literal["teach", "distill"]
    schedule: dict[str, Any] | None
    config: dict[str, Any]
    earlier: list[EarlierConfig]
    base: dict[str, str]
    data: list[DatasetShare]
    stream: StreamState
    updates: dict[str, Annotated[int, Field(ge=0)]]


def save(folder: Path, metadata: Metadata, tensors: Mapping[str, Tensor], world: World) -> Path:
    """Write the checkpoint of a step and return its path.

    Raises RunError if it cannot be written; the unfinished checkpoint is removed, and the others are unchanged.
    """
    step = metadata.step
    final = folder / f"step-{step:07d}"
    unfinished = unfinished_path(final)
    failure: str | None = None
    try:
        if world.first:
            begin_folder(final)
    except OSError as error:
        failure = _describe_error(error)
    try:
        # All processes continue, or none does.
        if not any(world.gather(failure)):
            dcp.save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(unfinished), save_distributed=True))
        if world.first and failure is None:
            write_file(unfinished / META, metadata.model_dump_json(indent=1).encode())
            unfinished.rename(final)
    except (OSError, dcp.CheckpointException) as error:
        failure = _describe_error(error)
    # A process may have failed alone, and all must raise the same error.
    failures = [message for message in world.gather(failure) if message]
    if failures:
        if world.first:
            shutil.rmtree(unfinished, ignore_errors=True)
        last = latest(folder)
        state = f"the last one is {last.name}" if last else "there is none yet"
        advice = "Once that is fixed, continue with --resume latest"
        raise RunError(f"the checkpoint of step {step} cannot be written to {folder}: {failures[0]}; {state}. {advice}")
    return final


def read(checkpoint: Path) -> Metadata:
    """The metadata in a checkpoint. Raises UsageError if the folder is not a valid checkpoint."""
    if not (checkpoint / META).is_file():
        raise UsageError(f"{checkpoint} is not a checkpoint: it has no {META}")
    damaged = f"{checkpoint} is a damaged checkpoint: its {META}"
    try:
        values = json.loads((checkpoint / META).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{damaged} cannot be read ({error!r})") from error
    if not isinstance(values, dict) or "format" not in values:
        raise UsageError(f"{damaged} has no format")
    if values["format"] != _FORMAT:
        raise UsageError(
            f"{checkpoint} has format {values['format']}, and this version reads {_FORMAT}: start a new folder, or "
            "resume with the version that wrote it"
        )
    metadata = validate(Metadata, values, damaged)
    if _NAME.fullmatch(checkpoint.name) and _step_number(checkpoint) != metadata.step:
        raise UsageError(f"{damaged} is of step {metadata.step}: give the folder its original name, or remove it")
    return metadata


def load(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, of any sharding, with those that `save` wrote under the same names.

    Raises UsageError if one is missing, of another shape, or damaged.
    """
    if missing := sorted({*tensors} - tensor_names(checkpoint)):
        raise UsageError(f"{checkpoint} is of another model: it lacks {missing[0]} and {len(missing) - 1} others")
    single_process = not dist.is_initialized()
    try:
        with warnings.catch_warnings():
            # `no_dist` asks for this, and torch warns of it nevertheless.
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(checkpoint)), no_dist=single_process)
    except (OSError, dcp.CheckpointException) as error:
        raise UsageError(f"{checkpoint} cannot be read, or is of another model: {_describe_error(error)}") from error


def check_base(checkpoint: Path, metadata: Metadata, fingerprints: Mapping[str, str], folder: Path) -> None:
    """Raises UsageError if a part of the model in a folder, given by its `fingerprints`, differs from the one that a
    checkpoint was trained with."""
    for part, fingerprint in fingerprints.items():
        if metadata.base.get(part) != fingerprint:
            raise UsageError(f"{folder} holds another {part} than the one that {checkpoint} was trained with")


def tensor_names(checkpoint: Path) -> set[str]:
    """The names of all tensors in a checkpoint. Raises UsageError if it is damaged or a file is missing."""
    advice = "remove its folder to resume from an older one"
    if not [*checkpoint.glob("*.safetensors")]:
        raise UsageError(f"{checkpoint} has lost its weights; {advice}")
    # A truncated or edited header may raise any error in the reader.
    metadata = attempt(ErrorCode.INTERNAL_ERROR, HuggingFaceStorageReader(str(checkpoint)).read_metadata)
    if isinstance(metadata, Failure):
        raise UsageError(f"{checkpoint} cannot be read: {metadata.detail}; {advice}")
    for name, tensor in metadata.state_dict_metadata.items():
        # If a shard is missing, the reader would leave its part of the tensor unchanged.
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
            raise UsageError(f"{checkpoint} has lost a part of {name}; {advice}")
    return {*metadata.state_dict_metadata}


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a folder, if any."""
    return max(folders, key=_step_number) if (folders := _complete_folders(folder)) else None


def check_complete(folder: Path) -> None:
    """Raises UsageError if a checkpoint is incomplete: a run would silently resume from an earlier one."""
    for checkpoint in sorted({*_step_folders(folder)} - {*_complete_folders(folder)}):
        raise UsageError(
            f"{checkpoint} has lost its {META}: restore it, or remove the folder to resume from an older one"
        )


def resolve(folder: Path, name: str) -> Path | None:
    """The checkpoint that `latest` (None if there is none yet) or a path names. Raises UsageError for anything
    else, and for a checkpoint older than those in the folder: `latest` would then belong to another run."""
    newest = latest(folder)
    if name == "latest":
        return newest
    if not Path(name).is_dir():
        raise UsageError(f"{name} is not a checkpoint: a run resumes from `latest`, or from a checkpoint's folder")
    step = read(Path(name)).step
    if newest is not None and _step_number(newest) > step:
        raise UsageError(f"{folder} holds {newest.name}, after step {step}: resume in another folder, or remove it")
    return Path(name)


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep`, and what killed runs left incomplete."""
    for unfinished in folder.glob(".*step-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in sorted(_complete_folders(folder), key=_step_number)[:-keep]:
        remove_folder(old)


def _complete_folders(folder: Path) -> list[Path]:
    return [path for path in _step_folders(folder) if (path / META).is_file()]


def _step_folders(folder: Path) -> list[Path]:
    """The folders with the name of a checkpoint; copies of checkpoints have other names."""
    return [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)]


def _step_number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _describe_error(error: Exception) -> str:
    """The message of the first cause of an error, in one line."""
    failures = getattr(error, "failures", None)
    cause = next(iter(failures.values()))[0] if failures else error
    return " ".join(str(cause).split())[:300]
