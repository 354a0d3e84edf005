"""Loading of one clip from its members: as they are stored, or as the pixels or latents that its task needs.

Nothing read here can run code: H.264, PNG, JSON, text and safetensors, each checked against the shape that the mixture
states.
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
from training.data.latents_file import INACTIVE, REACTIVE, StoredLatents, read
from training.data.shard_reader import DamagedError, Place, Reader

Form = Literal["members", "pixels", "latents"]
Array = NDArray[Any]

# The layers of stored latents, as `training.encoding.latents` and `training.encoding.masked_latents` name them.
_LATENTS, _MASKED = "latents", "masked_latents"


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a micro-batch with all that is needed to read it: the URL of its dataset, the places of its layers,
    the task and its parts, the pass over its bucket (from 0), and the expected shape."""

    dataset: str
    clip_id: str
    places: tuple[Place, ...]
    task: str
    parts: tuple[str, ...]
    pass_index: int
    shape: tuple[int, int, int]
    references: int


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings common to all clips of a run: the requested form, the seed of draws, the share of captions left out, the
    fingerprints of the model that latents must match (`model_folder.fingerprints`), and how many frames of a clip's
    pixels to use (None: all)."""

    form: Form
    seed: int
    caption_dropout: float
    model: Mapping[str, str] = field(default_factory=dict)
    frames: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One loaded clip. `stacked`: arrays that have one shape within a micro-batch; `loose`: others;
    `latents_unusable_reason`: why these are pixels although latents were requested."""

    caption: str
    stacked: Mapping[str, Array]
    loose: Mapping[str, Array]
    latents_unusable_reason: str = ""


class _LatentsUnusableError(Exception):
    """No latents are stored that this clip's task and the model can use; the message says why."""


def load(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    """Load one clip. Raises DamagedError if its bytes are missing, damaged, or not what the mixture states, and
    StorageError if a store keeps failing."""
    try:
        try:
            return _FORMS[settings.form](clip, settings, reader)
        except _LatentsUnusableError as error:
            return replace(_load_pixels(clip, settings, reader), latents_unusable_reason=str(error))
    except (ClipError, KeyError, ValueError) as error:
        reason = f"it has no member {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedError(reason) from error


def _read_members(
    clip: Clip, reader: Reader, skipped: Collection[str] = (), *, check: bool = True
) -> dict[str, memoryview]:
    """The members of all layers except skipped ones; of two with one name the newer, which comes last."""
    members: dict[str, memoryview] = {}
    for place in clip.places:
        if place.layer not in skipped:
            members |= reader.members(clip.dataset, clip.clip_id, place, check=check)
    return members


def _drop_caption(clip: Clip, settings: Settings, text: str) -> str:
    """The caption, or "" if it is left out."""
    if not settings.caption_dropout:
        return text
    draw = make_generator(settings.seed, clip.pass_index, clip.clip_id, f"{clip.task} caption")
    return "" if draw.random() < settings.caption_dropout else text


def _load_members(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    # The caller may check the bytes: doing it here would take most of the time.
    members = _read_members(clip, reader, check=False)
    loose = {name: np.frombuffer(data, np.uint8) for name, data in members.items()}
    return Sample(_drop_caption(clip, settings, read_caption(members)), {}, loose)


def _load_pixels(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    members = _read_members(clip, reader, (_LATENTS, _MASKED))

    def decode(name: str) -> NDArray[np.uint8]:
        # A channels-last view for conditions; in memory channels come first, as models need.
        return np.moveaxis(decode_planar(bytes(members[name]), clip.shape, settings.frames), 0, -1)

    names = reference_names(members) if clip.references else []
    if len(names) != clip.references:
        raise ValueError(f"it has {len(names)} reference pictures, and should have {clip.references}")
    pictures = [decode_png(bytes(members[name])) for name in names]
    frames = decode("mp4")
    task_condition = build_condition(
        clip.parts,
        frames,
        {track: partial(decode, name) for track, name in track_names(members).items()},
        pictures,
        make_generator(settings.seed, clip.pass_index, clip.clip_id, clip.task),
    )
    stacked: dict[str, Array] = {"clip": np.moveaxis(frames, -1, 0)}
    if task_condition.video is not None:
        # Gray is one channel repeated by strides: this makes three planes of it.
        stacked["video"] = np.ascontiguousarray(np.moveaxis(task_condition.video, -1, 0))
    if task_condition.mask is not None:
        stacked["mask"] = task_condition.mask[None]
    loose = {f"reference.{number}": picture for number, picture in enumerate(task_condition.references)}
    return Sample(_drop_caption(clip, settings, read_caption(members)), stacked, loose)


def _load_latents(clip: Clip, settings: Settings, reader: Reader) -> Sample:
    layers = {place.layer: place for place in clip.places}
    tracks = [part for part in clip.parts if part not in (REFERENCE, TEXT, *MASKS)]
    masks = [part for part in clip.parts if part in MASKS]
    if masks and (tracks or len(masks) > 1):
        raise _LatentsUnusableError(
            f"the task {clip.task} combines a mask with something else, which needs the encoder"
        )
    for layer in (_LATENTS, *([_MASKED] if masks else [])):
        if layer not in layers:
            raise _LatentsUnusableError(
                f"no latents are stored: `vdot-data annotate OUT --with {layer}`, and `mix` again"
            )
    # A layer may have written a caption that differs from the embedded one.
    base = clip.places[0].layer
    members = _read_members(clip, reader, (base,) if masks else (base, _MASKED))
    stored = read(bytes(members[f"{_LATENTS}.safetensors"]))
    mismatch = stored.find_mismatch(settings.model)
    text = read_caption(members) or stored.caption or ""
    if mismatch or text != (stored.caption or ""):
        raise _LatentsUnusableError(mismatch or "a layer wrote other captions than those that were embedded")
    caption_text = _drop_caption(clip, settings, text)
    reference_names = [f"reference.{number}" for number in range(clip.references)]
    for name in ["clip", *tracks, *reference_names, *([TEXT] if caption_text else [])]:
        if name not in stored.tensors:
            raise _LatentsUnusableError(f"the stored latents have no {name!r}: they are older, or from another layer")
    loose = {name: stored.tensors[name] for name in ([TEXT] if caption_text else []) + reference_names}
    stacked: dict[str, Array] = {"clip": stored.tensors["clip"]}
    if tracks:
        stacked["reactive"] = stored.tensors[tracks[0]]
    elif masks:
        stacked |= _draw_variant(clip, settings, masks[0], read(bytes(members[f"{_MASKED}.safetensors"])))
    frames, height, width = clip.shape
    for name, array in (*stacked.items(), *((reference, loose[reference]) for reference in reference_names)):
        size = ((1 if name in reference_names else (frames + 2) // 4 + 1), height // 8, width // 8)
        if name != "mask" and array.shape != (16, *size):
            raise ValueError(f"the latents {name!r} are {list(array.shape)}, and should be {[16, *size]}")
    return Sample(caption_text, stacked, loose)


def _draw_variant(clip: Clip, settings: Settings, task: str, stored: StoredLatents) -> dict[str, Array]:
    """The halves and the mask of one stored variant of a masked task."""
    mismatch, variants = stored.find_mismatch(settings.model), stored.count_variants(task)
    if mismatch or not variants:
        raise _LatentsUnusableError(mismatch or f"no variant of the task {task} is stored")
    draw = make_generator(settings.seed, clip.pass_index, clip.clip_id, clip.task)
    variant = int(draw.integers(variants))
    halves = {name: stored.tensors[f"{task}.{variant}.{name}"] for name in (INACTIVE, REACTIVE)}
    return halves | {"mask": stored.unpack_mask(task, variant, clip.shape)[None]}


_FORMS: dict[Form, Callable[[Clip, Settings, Reader], Sample]] = {
    "members": _load_members,
    "pixels": _load_pixels,
    "latents": _load_latents,
}


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents of a micro-batch: captions, arrays of all clips [B, ...], arrays of single clips, and why these are
    not latents if they were requested. `damaged`: the reason for each damaged clip, by its number; then the rest is
    empty."""

    damaged: dict[int, str]
    captions: tuple[str, ...] = ()
    latents_unusable_reason: str = ""
    arrays: dict[str, Array] = field(default_factory=dict)
    items: tuple[dict[str, Array], ...] = ()

    def writable(self) -> Contents:
        """The same, with views of a shard replaced by copies."""

        def copy(arrays: dict[str, Array]) -> dict[str, Array]:
            return {name: array if array.flags.writeable else array.copy() for name, array in arrays.items()}

        return replace(self, arrays=copy(self.arrays), items=tuple(map(copy, self.items)))


def read_batch(clips: Sequence[Clip], settings: Settings, reader: Reader) -> Contents:
    """Read a micro-batch. Raises StorageError if a store keeps failing."""
    samples: list[Sample] = []
    damaged: dict[int, str] = {}
    for number, clip in enumerate(clips):
        try:
            samples.append(load(clip, settings, reader))
        except DamagedError as error:
            damaged[number] = str(error)
    if damaged:
        return Contents(damaged)
    reasons = [sample.latents_unusable_reason for sample in samples]
    reason = next(filter(None, reasons), "")
    if reason and not all(reasons):
        # All clips of a micro-batch have one form.
        pixels = read_batch(clips, replace(settings, form="pixels"), reader)
        return replace(pixels, latents_unusable_reason=reason)
    captions, items = tuple(sample.caption for sample in samples), tuple(dict(sample.loose) for sample in samples)
    return Contents({}, captions, reason, _stack(samples), items)


def _stack(samples: Sequence[Sample]) -> dict[str, Array]:
    """The stacked arrays, [B, ...] each; a single clip is not copied."""
    if len(samples) == 1:
        return {name: array[None] for name, array in samples[0].stacked.items()}
    return {name: np.stack([sample.stacked[name] for sample in samples]) for name in samples[0].stacked}
