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
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter

from pipeline.errors import RunError, UsageError
from training.parallel import World

META = "checkpoint.json"
_FORMAT = 2
# What a run tells of itself; see `loop.train`.
_TOLD = ("step", "kind", "schedule", "config", "base", "stream", "updates")


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], told: Mapping[str, Any], world: World) -> Path:
    """Write the checkpoint of a step beside those that are there; where it is. `told` is JSON-able.

    Raises RunError where it cannot be written; what was written of it is removed, and the others are as they were.
    """
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
                json.dump({"format": _FORMAT, "step": step, **told}, file, indent=1)
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
        raise RunError(f"the checkpoint of step {step} cannot be written to {folder}: {troubles[0]}; {kept}")
    return done


def read(checkpoint: Path) -> dict[str, Any]:
    """What was told to `save`, and its `step`. Raises UsageError where the folder is no checkpoint of a run."""
    if not (checkpoint / META).is_file():
        raise UsageError(f"{checkpoint} is no checkpoint: it holds no {META}")
    try:
        told = json.loads((checkpoint / META).read_text())
        if told["format"] != _FORMAT:
            raise UsageError(
                f"{checkpoint} has format {told['format']}, and this version reads {_FORMAT}: begin a new folder, or "
                "go on with the version that wrote it"
            )
        return {name: told[name] for name in _TOLD}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{checkpoint} is a damaged checkpoint: its {META} cannot be read ({error!r})") from error


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


def fits(checkpoint: Path, told: Mapping[str, Any], prints: Mapping[str, str], folder: Path) -> None:
    """Raises UsageError where a part of the model in a folder, of which `prints` are the fingerprints, is another than
    the one that a checkpoint was trained with."""
    for part, known in told["base"].items():
        if prints.get(part, known) != known:
            raise UsageError(f"{folder} holds another {part} than the one that {checkpoint} was trained with")


def names(checkpoint: Path) -> set[str]:
    """The names of all tensors in a checkpoint. Raises UsageError where it is damaged, or has lost a file."""
    try:
        stored = HuggingFaceStorageReader(str(checkpoint)).read_metadata().state_dict_metadata
        for name, one in stored.items():
            # Where a shard is gone, the reader would leave what it held as it was.
            if sum(math.prod(chunk.sizes) for chunk in one.chunks) != math.prod(one.size):
                raise UsageError(
                    f"{checkpoint} has lost a part of {name}; remove its folder to go on from an older one"
                )
        return {*stored}
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{checkpoint} cannot be read: {error}; remove its folder to go on from an older one"
        ) from error


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
    step = read(Path(named))["step"]
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
    return [one for one in folder.glob("step-*") if re.fullmatch(r"step-\d+", one.name)]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _why(error: Exception) -> str:
    """What went wrong, in the words of whatever went wrong first."""
    failures = getattr(error, "failures", None)
    cause = next(iter(failures.values()))[0] if failures else error
    return " ".join(str(cause).split())[:300]
