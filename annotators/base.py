"""The base classes of annotators and filters: frames in; tracks, signals, pictures, data, files and a caption out.

An annotator is one class in one file, registered under the entry-point group `vdot_data.annotators`. It does
not use Ray, shards or paths, keeps no state between clips, and raises when it cannot do its work: a failed
measurement is a failure with a code, never a score.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""A clip: uint8 [T, H, W, 3], RGB, 0 to 255."""

Picture = NDArray[np.uint8]
"""One picture: uint8 [H, W, 3], RGB, 0 to 255."""

Value = float | int | str | bool | None
"""A signal's value; None means that the signal does not apply to this clip (no person: no pose jitter)."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one number or label of a clip means."""

    unit: str
    """The unit of the value ("px/frame", "0..255", "s", "count")."""
    meaning: str
    """One sentence for people."""
    kind: Literal["float", "int", "str", "bool"] = "float"
    """The type of its catalog column."""


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight file: where it comes from, what it must hash to, and under which licence it may be used."""

    id: str
    """Its name in lineage and in the cache folder."""
    source: str
    """Where it comes from; `annotators.weights` says in which form."""
    sha256: str
    """What its bytes must hash to."""
    licence: str
    """The SPDX identifier of its licence."""


@dataclass(slots=True)
class Annotation:
    """What an annotator found in one clip."""

    tracks: dict[str, Frames] = field(default_factory=dict)
    """Name to uint8 [T, H, W, 3] RGB, frame k showing the same instant as the clip's frame k."""
    signals: dict[str, Value] = field(default_factory=dict)
    """Name to value, one for each name that the annotator declares."""
    data: dict[str, Any] = field(default_factory=dict)
    """JSON-able values kept in the sample's `.json` (keypoints, the scale that inverts a track)."""
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    """Name to uint8 [h, w, 3] RGB of any size and number, kept as `<id>.<name>.<k>.png`."""
    caption: str | None = None
    """What the clip shows, in words."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name to bytes of a format of the annotator's own, one for each name that it declares, kept as `<id>.<name>`."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a clip's sample holds when an annotator runs, from any annotator before it."""

    clip_id: str
    """The clip's id."""
    tracks: Mapping[str, Callable[[], Frames]]
    """Name to a function that decodes it: uint8 [T, H, W, 3] RGB, as a trainer will see it."""
    pictures: Mapping[str, list[Picture]]
    """Name to uint8 [h, w, 3] RGB of any size and number."""
    caption: str | None
    """What the clip shows, in words; None if there is none."""


@dataclass(frozen=True, slots=True)
class ClipInput:
    """What an annotator is called with for one clip."""

    frames: Frames
    """uint8 [T, H, W, 3] RGB, read-only."""
    fps: float
    """Frames a second."""
    needs: Mapping[str, Any] = field(default_factory=dict)
    """What it needs, and the sample if it takes one, by name."""


def spread(length: int, count: int) -> list[int]:
    """The numbers of `count` frames spread evenly over a clip of `length`, both ends included; fewer if short."""
    return sorted({round(place) for place in np.linspace(0, length - 1, count).tolist()})


class _Maker:
    """What an annotator and a filter have in common: what they declare of themselves, as class attributes."""

    name: ClassVar[str]
    """The name that it is registered under."""
    version: ClassVar[str]
    """Changes whenever the same frames may give other values; it is part of every clip's lineage."""
    signals: ClassVar[Mapping[str, Signal]] = {}
    """Its signals, by name."""
    weights: ClassVar[tuple[Weight, ...]] = ()
    """The weights that it loads."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        declarations = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})}
        for name, value in vars(cls).items():
            if name.startswith("_") or callable(value) or name in declarations:
                continue
            near = difflib.get_close_matches(name, declarations, 1, 0.8)
            if near:
                raise TypeError(f"{cls.__name__} declares {name!r}; did you mean {near[0]!r}?")


class Annotator(_Maker):
    """Made once per worker (weights are loaded in `__init__`), called once per clip."""

    tracks: ClassVar[tuple[str, ...]] = ()
    """The names of its tracks."""
    pictures: ClassVar[tuple[str, ...]] = ()
    """The names of its pictures."""
    files: ClassVar[tuple[str, ...]] = ()
    """The names of its files, such as `latents.safetensors`."""
    caption: ClassVar[bool] = False
    """Whether it writes captions."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Signals and tracks of others, which must come before it in the recipe: each is a keyword argument of the call."""
    sample: ClassVar[bool] = False
    """Whether it takes whatever was made before it, as the keyword argument `sample` (a `Sample`)."""
    gpu: ClassVar[bool] = False
    """Whether it uses a GPU if it sees one; then each GPU of the cluster gets one of it."""
    clips_per_call: ClassVar[int] = 1
    """Above 1 for one that is faster with several clips at once, such as requests to a server: `annotate_clips`
    is called then. How many frames of a clip a network sees at once is its own."""
    choose: ClassVar[Callable[[], tuple[Weight, ...]] | None] = None
    """A class method for one whose weights the user names. It is asked before a run starts, gives `Weight`s or raises
    `annotators.weights.MissingWeights`, and the annotator is made in every worker with what it gave as the only
    argument."""

    # Each names what it needs as keyword arguments of its own, which a type of all of them cannot say.
    __call__: Callable[..., Annotation]
    """Annotate one clip: `frames` uint8 [T, H, W, 3] RGB, `fps` frames a second, then what it needs, by name."""

    def annotate_clips(self, clips: Sequence[ClipInput]) -> Sequence[Annotation]:
        """Annotate up to `clips_per_call` clips, which may differ in shape; an annotation for each, in their order.

        If it raises, every clip is annotated by a call of its own, so that only the one at fault fails. All frames of
        these clips are in memory at once.
        """
        return [self(clip.frames, clip.fps, **clip.needs) for clip in clips]


class Filter(_Maker):
    """A quality measurement on a clip's frames: signals alone, cheap, measured before any annotator runs."""

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        """Measure one clip: `frames` uint8 [T, H, W, 3] RGB at `fps` frames a second."""
        raise NotImplementedError
