"""Where a run begins: in a folder of its own, from nothing or at a checkpoint that fits, before networks are loaded."""

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
from training.config import Distill, Run, Teach, changes, parsed
from training.data.stream import Stream
from training.diffusion import schedule
from training.distributed import World
from training.models import folder as model_folder
from training.models.folder import TEXT_ENCODER, VAE
from training.trainer import checkpoint

_LOG = logging.getLogger("vdot_data")


@dataclass(frozen=True, slots=True)
class Begun:
    """Where a run begins: at which checkpoint (None: from nothing) and what that tells, the settings that it had
    before, the fingerprints of the model's parts, and the stream from there on."""

    at: Path | None
    told: checkpoint.Told | None
    earlier: list[checkpoint.Earlier]
    prints: dict[str, str]
    stream: Stream

    @property
    def step(self) -> int:
        """The step that was done last."""
        return self.told.step if self.told else 0

    def identity(self, config: Run) -> dict[str, Any]:
        """What all checkpoints of the run tell of it, but for how far it is."""
        drawn = [
            checkpoint.Drawn(dataset=one.dataset, task=one.task, clips=one.clips, share=str(one.share))
            for one in self.stream.mixture.streams
        ]
        # The schedule is said in timesteps, for others to read.
        steps = config.schedule.as_json() if isinstance(config, Distill) else None
        told = {"kind": _kind(config), "schedule": steps, "config": config.model_dump(mode="json")}
        return told | {"earlier": self.earlier, "base": self.prints, "data": drawn}


def begin(config: Run, folder: Path, out: Path, resume: str | None, world: World) -> Begun:
    """Where a run in `out` begins, found before any network is loaded. `folder`: the model's. `resume`: "latest" or a
    checkpoint; one of another folder may be gone on from with other settings.

    Raises UsageError for a resume or a mixture that does not fit.
    """
    # Read by one: it may be tens of gigabytes on a disk that all share.
    prints = world.gathered(_base(config, folder) if world.first else None)[0]
    found = None if resume is None else checkpoint.chosen(out / "checkpoints", resume)
    if found is None:
        return Begun(None, None, [], prints, _stream(config, prints, world, None))
    told = checkpoint.read(found)
    earlier = told.earlier + _otherwise(config, found, told, out / "checkpoints")
    checkpoint.fits(found, told, prints, folder)
    return Begun(found, told, earlier, prints, _stream(config, prints, world, told))


@contextmanager
def owned(out: Path, resume: str | None) -> Iterator[None]:
    """The folder of a run, made if need be, for as long as it is this run's alone.

    Raises UsageError where it is no folder, or holds a run that is not to be gone on with; RunError where it is
    another's, or cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UsageError(f"{out} cannot be the folder of a run: a file of that name is in the way") from error
    except OSError as error:
        raise RunError(f"{out} cannot be the folder of a run: {error.strerror}") from error
    with hold_lock(Folder(str(out))):
        checkpoint.sound(out / "checkpoints")
        there = checkpoint.latest(out / "checkpoints")
        if resume is None and there is not None:
            raise UsageError(f"{out} holds a run already ({there.name}): --resume latest, or another folder")
        yield


def _stream(config: Run, prints: Mapping[str, str], world: World, told: checkpoint.Told | None) -> Stream:
    """The stream, from where a checkpoint says that it was."""
    stream = Stream(
        config.data.mixture,
        rank=world.rank,
        world=world.size,
        workers=config.data.workers,
        cache=config.data.cache,
        **form(config, prints),
    )
    if told is not None:
        place = told.stream
        if stream.mixture.hash != place.mixture and 0 < stream.position == place.position:
            _LOG.info(
                "mixture %s takes over from %s at position %d", stream.mixture.hash, place.mixture, place.position
            )
        else:
            stream.load_state_dict(place.model_dump())
    return stream


def form(config: Run, prints: Mapping[str, str]) -> dict[str, Any]:
    """What is read of each clip, as arguments of a stream. `prints`: of the model's parts."""
    data = config.data
    model = {part: prints[part] for part in (VAE, TEXT_ENCODER)} if data.form == "latents" else None
    return {"form": data.form, "model": model, "frames": data.size and data.size.frames}


def _otherwise(config: Run, found: Path, told: checkpoint.Told, checkpoints: Path) -> list[checkpoint.Earlier]:
    """The settings that a checkpoint was trained with, if a run goes on from it with others.

    Raises UsageError where it may not: in its own folder it is the same run, and nowhere another kind or schedule.
    """
    if told.kind != (kind := _kind(config)):
        raise UsageError(f"{found} is of `{told.kind}`, and this is `{kind}`: begin a new folder for that")
    if isinstance(config, Distill) and (was := schedule.parse(told.schedule, str(found))) != config.schedule:
        raise UsageError(f"{found} has {was}, and this run {config.schedule}: begin a new folder for that")
    ranks = [one.model.lora_rank for one in (parsed(told.kind, told.config, str(found)), config)]
    if ranks[0] != ranks[1]:
        had, wants = ("whole" if rank is None else f"with LoRA of rank {rank}" for rank in ranks)
        raise UsageError(f"{found} was trained {had}, and this run {wants}: begin anew, without --resume")
    changed = changes(config, told.config)
    if not changed:
        return []
    if found.resolve().parent == checkpoints.resolve():
        raise UsageError(
            f"the checkpoint was trained otherwise ({changed}): --resume {found} with another folder for --out goes on "
            "from it with other settings"
        )
    _LOG.info("from step %d on with other settings: %s", told.step, changed)
    return [checkpoint.Earlier(step=told.step, config=told.config)]


def _base(config: Run, folder: Path) -> dict[str, str]:
    """What the network that is trained stands on, and is not in its checkpoints: fingerprints of parts of its model."""
    scratch = isinstance(config, Teach) and config.scratch
    parts = (model_folder.TRANSFORMER, model_folder.VAE, model_folder.TEXT_ENCODER)
    return model_folder.fingerprints(folder, parts[1:] if scratch else parts)


def _kind(config: Run) -> Literal["distill", "teach"]:
    return "distill" if isinstance(config, Distill) else "teach"
