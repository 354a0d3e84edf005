"""One clip from its members: as they are stored, or as the pixels or latents that its task asks for.

Nothing read here can run code: H.264, PNG, JSON, text and safetensors, each held against the shape that the mixture
promises.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ClipError
from pipeline.formats.clip_decode import decode_planar, decode_png
from pipeline.formats.conditions import (
    MASKS,
    REFERENCE,
    TEXT,
    build_condition,
    make_generator,
    read_caption,
    reference_names,
    track_names,
)
from training.data.latents_file import INACTIVE, REACTIVE, Stored, read
from training.data.shard_reader import DamagedError, Place, Reader

Form = Literal["members", "pixels", "latents"]
Array = NDArray[Any]

# The layers of stored latents, as `training.encoding.latents` and `training.encoding.masked_latents` name them.
_LATENTS, _MASKED = "latents", "masked_latents"


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a micro-batch, and all that is needed to read it: the URL of its dataset, where its layers lie, the
    task and what that is made of, the pass over its bucket, and the shape promised."""

    dataset: str
    clip_id: str
    places: tuple[Place, ...]
    task: str
    parts: tuple[str, ...]
    number: int
    shape: tuple[int, int, int]
    references: int


@dataclass(frozen=True, slots=True)
class Settings:
    """What is the same for all clips of a run: the form asked for, the seed of draws, the share of captions left out,
    the fingerprints of the model that latents must be of (`model_folder.fingerprints`), and how many frames are taken
    of a clip's pixels (None: all)."""

    form: Form
    seed: int
    caption_dropout: float
    model: Mapping[str, str] = field(default_factory=dict)
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One clip as it is handed out. `stacked`: arrays of which those of a micro-batch have one shape; `loose`: others;
    `unfit`: why these are pixels, where latents were asked for."""

    caption: str
    stacked: Mapping[str, Array]
    loose: Mapping[str, Array]
    unfit: str = ""


class _UnfitError(Exception):
    """No latents are stored that this clip's task and the model can use; the text says why."""


def load(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    """One clip. Raises DamagedError where its bytes are gone, damaged, or not what the mixture promises, and
    StorageError where a store keeps failing."""
    try:
        try:
            return _FORMS[settings.form](clip, settings, reader)
        except _UnfitError as error:
            return replace(_pixels(clip, settings, reader), unfit=str(error))
    except (ClipError, KeyError, ValueError) as error:
        said = f"it has no member {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedError(said) from error


def _read(clip: Clip, reader: Reader, skipped: Collection[str] = (), *, check: bool = True) -> dict[str, memoryview]:
    """The members of all layers but those skipped; of two of one name the newer one, which comes last."""
    members: dict[str, memoryview] = {}
    for place in clip.places:
        if place.layer not in skipped:
            members |= reader.members(clip.dataset, clip.clip_id, place, check=check)
    return members


def _said(clip: Clip, settings: Settings, words: str) -> str:
    """The caption, or "" where it is left out."""
    if not settings.caption_dropout:
        return words
    draw = make_generator(settings.seed, clip.number, clip.clip_id, f"{clip.task} caption")
    return "" if draw.random() < settings.caption_dropout else words


def _members(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    # Whoever takes the bytes as they are is to check them, if at all: it would take most of the time.
    members = _read(clip, reader, check=False)
    loose = {name: np.frombuffer(data, np.uint8) for name, data in members.items()}
    return Sample(_said(clip, settings, read_caption(members)), {}, loose)


def _pixels(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    members = _read(clip, reader, (_LATENTS, _MASKED))

    def decoded(name: str) -> NDArray[np.uint8]:
        # Channels last, as conditions see them; in memory they come first, as models do.
        return np.moveaxis(decode_planar(bytes(members[name]), clip.shape, settings.frames), 0, -1)

    named = reference_names(members) if clip.references else []
    if len(named) != clip.references:
        raise ValueError(f"it has {len(named)} reference pictures, and should have {clip.references}")
    pictures = [decode_png(bytes(members[name])) for name in named]
    frames = decoded("mp4")
    made = build_condition(
        clip.parts,
        frames,
        {track: partial(decoded, name) for track, name in track_names(members).items()},
        pictures,
        make_generator(settings.seed, clip.number, clip.clip_id, clip.task),
    )
    stacked: dict[str, Array] = {"clip": np.moveaxis(frames, -1, 0)}
    if made.video is not None:
        # Of gray, which is one channel seen three times, this makes planes.
        stacked["video"] = np.ascontiguousarray(np.moveaxis(made.video, -1, 0))
    if made.mask is not None:
        stacked["mask"] = made.mask[None]
    loose = {f"reference.{number}": shown for number, shown in enumerate(made.references)}
    return Sample(_said(clip, settings, read_caption(members)), stacked, loose)


def _latents(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    layers = {place.layer: place for place in clip.places}
    tracks = [part for part in clip.parts if part not in (REFERENCE, TEXT, *MASKS)]
    masks = [part for part in clip.parts if part in MASKS]
    if masks and (tracks or len(masks) > 1):
        raise _UnfitError(f"the task {clip.task} has a mask and something else in it, which needs the encoder")
    for layer in (_LATENTS, *([_MASKED] if masks else [])):
        if layer not in layers:
            raise _UnfitError(f"no latents are stored: `vdot-data annotate OUT --with {layer}`, and `mix` again")
    # A layer may have written another caption than the one that was embedded.
    base = clip.places[0].layer
    members = _read(clip, reader, (base,) if masks else (base, _MASKED))
    stored = read(bytes(members[f"{_LATENTS}.safetensors"]))
    misfit = stored.misfit(settings.model)
    words = read_caption(members) or stored.caption or ""
    if misfit or words != (stored.caption or ""):
        raise _UnfitError(misfit or "a layer wrote other captions than those that were embedded")
    said = _said(clip, settings, words)
    shown = [f"reference.{number}" for number in range(clip.references)]
    for name in ["clip", *tracks, *shown, *([TEXT] if said else [])]:
        if name not in stored.tensors:
            raise _UnfitError(f"the stored latents have no {name!r}: they are older than it, or of another layer")
    loose = {name: stored.tensors[name] for name in ([TEXT] if said else []) + shown}
    stacked: dict[str, Array] = {"clip": stored.tensors["clip"]}
    if tracks:
        stacked["reactive"] = stored.tensors[tracks[0]]
    elif masks:
        stacked |= _variant(clip, settings, masks[0], read(bytes(members[f"{_MASKED}.safetensors"])))
    frames, height, width = clip.shape
    for name, array in (*stacked.items(), *((one, loose[one]) for one in shown)):
        size = ((1 if name in shown else (frames + 2) // 4 + 1), height // 8, width // 8)
        if name != "mask" and array.shape != (16, *size):
            raise ValueError(f"the latents {name!r} are {list(array.shape)}, and should be {[16, *size]}")
    return Sample(said, stacked, loose)


def _variant(clip: Clip, settings: Settings, task: str, stored: Stored) -> dict[str, Array]:
    """The halves and the mask of one of the draws that were stored of a masked task."""
    misfit, variants = stored.misfit(settings.model), stored.variants(task)
    if misfit or not variants:
        raise _UnfitError(misfit or f"no variant of the task {task} is stored")
    draw = make_generator(settings.seed, clip.number, clip.clip_id, clip.task)
    chosen = int(draw.integers(variants))
    halves = {name: stored.tensors[f"{task}.{chosen}.{name}"] for name in (INACTIVE, REACTIVE)}
    return halves | {"mask": stored.mask(task, chosen, clip.shape)[None]}


_FORMS: dict[Form, Callable[[Clip, Settings, Reader], Sample]] = {
    "members": _members,
    "pixels": _pixels,
    "latents": _latents,
}


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a micro-batch: captions, arrays of all clips [B, ...], what each clip has of its own, and why these
    are no latents, if so. Of clips that are damaged, by their number in it, what is wrong; then there is nothing
    else."""

    damaged: dict[int, str]
    captions: tuple[str, ...] = ()
    unfit: str = ""
    arrays: dict[str, Array] = field(default_factory=dict)
    items: tuple[dict[str, Array], ...] = ()

    def writable(self) -> Contents:
        """The same, with copies of what are views of a shard."""

        def own(arrays: dict[str, Array]) -> dict[str, Array]:
            return {name: one if one.flags.writeable else one.copy() for name, one in arrays.items()}

        return replace(self, arrays=own(self.arrays), items=tuple(map(own, self.items)))


def contents(clips: Sequence[Clip], settings: Settings, reader: Reader) -> Contents:
    """Read a micro-batch. Raises StorageError where a store keeps failing."""
    samples: list[Sample] = []
    damaged: dict[int, str] = {}
    for number, clip in enumerate(clips):
        try:
            samples.append(load(clip, settings, reader))
        except DamagedError as error:
            damaged[number] = str(error)
    if damaged:
        return Contents(damaged)
    unfit = next((one.unfit for one in samples if one.unfit), "")
    if unfit and not all(one.unfit for one in samples):
        # Pixels for one are pixels for all.
        return replace(contents(clips, replace(settings, form="pixels"), reader), unfit=unfit)
    captions, items = tuple(one.caption for one in samples), tuple(dict(one.loose) for one in samples)
    return Contents({}, captions, unfit, _stacked(samples), items)


def _stacked(samples: Sequence[Sample]) -> dict[str, Array]:
    """The stacked arrays: [B, ...] each; of one clip without a copy."""
    if len(samples) == 1:
        return {name: array[None] for name, array in samples[0].stacked.items()}
    return {name: np.stack([one.stacked[name] for one in samples]) for name in samples[0].stacked}
