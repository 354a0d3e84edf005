"""Where a run starts: in its own folder, from scratch or from a matching checkpoint, checked before networks load."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import RunError, UsageError
from pipeline.storage.folder import Folder
from pipeline.storage.lock import hold_lock
from training.config import Distill, Run, Teach, describe_changes, parse_stored
from training.data.stream import Stream
from training.diffusion import schedule
from training.distributed import World
from training.models import folder as model_folder
from training.models.folder import TEXT_ENCODER, VAE
from training.trainer import checkpoint

_LOG = logging.getLogger("vdot_data")


@dataclass(frozen=True, slots=True)
class StartPoint:
    """Where a run starts: the path of a checkpoint (None: from scratch) and its metadata, earlier settings, the
    fingerprints of the model's parts, and the stream from there on."""

    path: Path | None
    metadata: checkpoint.Metadata | None
    earlier: list[checkpoint.EarlierConfig]
    fingerprints: dict[str, str]
    stream: Stream

    @property
    def step(self) -> int:
        """The last step that was done."""
        return self.metadata.step if self.metadata else 0

    def identity(self, config: Run) -> dict[str, Any]:
        """The metadata that all checkpoints of the run share: all but its progress."""
        shares = [
            checkpoint.DatasetShare(
                dataset=stream.dataset, task=stream.task, clips=stream.clips, share=str(stream.share)
            )
            for stream in self.stream.mixture.streams
        ]
        # With timesteps, for other programs to read.
        schedule_values = config.schedule.as_dict() if isinstance(config, Distill) else None
        identity = {"kind": _method_name(config), "schedule": schedule_values, "config": config.model_dump(mode="json")}
        return identity | {"earlier": self.earlier, "base": self.fingerprints, "data": shares}


def find_start(config: Run, folder: Path, out: Path, resume: str | None, world: World) -> StartPoint:
    """Where a run in `out` starts, decided before any network is loaded. `folder`: the model's. `resume`: "latest" or a
    checkpoint; one from another folder may be resumed with other settings.

    Raises UsageError for a checkpoint or a mixture that does not fit.
    """
    # Read by one process: it may be tens of gigabytes on a shared disk.
    fingerprints = world.gather(_base_fingerprints(config, folder) if world.first else None)[0]
    path = None if resume is None else checkpoint.resolve(out / "checkpoints", resume)
    if path is None:
        return StartPoint(None, None, [], fingerprints, _open_stream(config, fingerprints, world, None))
    metadata = checkpoint.read(path)
    earlier = metadata.earlier + _compare_settings(config, path, metadata, out / "checkpoints")
    checkpoint.check_base(path, metadata, fingerprints, folder)
    return StartPoint(path, metadata, earlier, fingerprints, _open_stream(config, fingerprints, world, metadata))


@contextmanager
def lock_folder(out: Path, resume: str | None) -> Iterator[None]:
    """Create the folder of a run if needed, and lock it for this run.

    Raises UsageError if it is not a folder, or holds a run that is not resumed; RunError if another run holds it, or it
    cannot be created.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{out} cannot be the folder of a run: a file has that name") from error
    except OSError as error:
        raise RunError(f"{out} cannot be the folder of a run: {error.strerror}") from error
    with hold_lock(Folder(str(out))):
        checkpoint.check_complete(out / "checkpoints")
        newest = checkpoint.latest(out / "checkpoints")
        if resume is None and newest is not None:
            raise UsageError(f"{out} holds a run already ({newest.name}): --resume latest, or another folder")
        yield


def _open_stream(
    config: Run, fingerprints: Mapping[str, str], world: World, metadata: checkpoint.Metadata | None
) -> Stream:
    """The stream, from its position in a checkpoint if there is one."""
    stream = Stream(
        config.data.mixture,
        rank=world.rank,
        world=world.size,
        workers=config.data.workers,
        cache=config.data.cache,
        **stream_options(config, fingerprints),
    )
    if metadata is not None:
        state = metadata.stream
        if stream.mixture.hash != state.mixture and 0 < stream.position == state.position:
            _LOG.info(
                "mixture %s takes over from %s at position %d", stream.mixture.hash, state.mixture, state.position
            )
        else:
            stream.load_state_dict(state.model_dump())
    return stream


def stream_options(config: Run, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What to read of each clip, as arguments of a stream. `fingerprints`: of the model's parts."""
    data = config.data
    model = {part: fingerprints[part] for part in (VAE, TEXT_ENCODER)} if data.form == "latents" else None
    return {"form": data.form, "model": model, "frames": data.size and data.size.frames}


def _compare_settings(
    config: Run, path: Path, metadata: checkpoint.Metadata, checkpoints: Path
) -> list[checkpoint.EarlierConfig]:
    """The settings that a checkpoint was trained with, if a run resumes from it with others.

    Raises UsageError if it may not: in its own folder nothing may change, and in no folder its kind or schedule.
    """
    if metadata.kind != (kind := _method_name(config)):
        raise UsageError(f"{path} is of `{metadata.kind}`, and this is `{kind}`: start a new folder for that")
    if (
        isinstance(config, Distill)
        and (stored_schedule := schedule.parse(metadata.schedule, str(path))) != config.schedule
    ):
        raise UsageError(f"{path} has {stored_schedule}, and this run {config.schedule}: start a new folder for that")
    ranks = [run.model.lora_rank for run in (parse_stored(metadata.kind, metadata.config, str(path)), config)]
    if ranks[0] != ranks[1]:
        stored_text, own_text = ("in full" if rank is None else f"with LoRA of rank {rank}" for rank in ranks)
        raise UsageError(f"{path} was trained {stored_text}, and this run {own_text}: start over, without --resume")
    changed = describe_changes(config, metadata.config)
    if not changed:
        return []
    if path.resolve().parent == checkpoints.resolve():
        raise UsageError(
            f"the checkpoint was trained with other settings ({changed}): --resume {path} with another folder for "
            "--out continues with the new ones"
        )
    _LOG.info("continuing from step %d with other settings: %s", metadata.step, changed)
    return [checkpoint.EarlierConfig(step=metadata.step, config=metadata.config)]


def _base_fingerprints(config: Run, folder: Path) -> dict[str, str]:
    """Fingerprints of the model's parts that training depends on and checkpoints do not contain."""
    scratch = isinstance(config, Teach) and config.scratch
    parts = (model_folder.TRANSFORMER, model_folder.VAE, model_folder.TEXT_ENCODER)
    return model_folder.fingerprints(folder, parts[1:] if scratch else parts)


def _method_name(config: Run) -> Literal["distill", "teach"]:
    return "distill" if isinstance(config, Distill) else "teach"
