"""The contract of an annotator: frames in; tracks, signals, pictures, data and a caption out.

An annotator is one class in one file, registered under the entry-point group `vdot_data.annotators`. It knows
nothing of Ray, shards or paths, keeps no state between clips, and raises when it cannot do its work: a failed
measurement is a failure with a code, never a score.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
"""A clip: uint8 [T, H, W, 3], RGB, 0 to 255."""

Value = float | int | str | bool | None
"""A signal's value; None means that the signal does not apply to this clip (no person: no pose jitter)."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one number or label of a clip means.

    `unit` is the unit of the value ("px/frame", "0..255", "s", "count"); `meaning` one sentence for people;
    `kind` the type of its catalog column.
    """

    unit: str
    meaning: str
    kind: Literal["float", "int", "str", "bool"] = "float"


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight file: where it comes from, what it must hash to, and under which licence it may be used."""

    id: str
    source: str
    sha256: str
    licence: str


@dataclass(slots=True)
class Annotation:
    """What an annotator found in one clip.

    tracks: name -> uint8 [T, H, W, 3] RGB, frame k showing the same instant as the clip's frame k.
    signals: name -> value, one for each name that the annotator declares.
    data: JSON-able values kept in the sample's .json (keypoints, the scale that inverts a track).
    """

    tracks: dict[str, Frames] = field(default_factory=dict)
    signals: dict[str, Value] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)


class Annotator(Protocol):
    """Made once per worker (weights are loaded in `__init__`), called once per clip.

    `version` changes whenever the same frames may give other values; it is part of every clip's lineage.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    tracks: ClassVar[tuple[str, ...]]
    signals: ClassVar[Mapping[str, Signal]]
    weights: ClassVar[tuple[Weight, ...]]

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Annotate one clip: `frames` uint8 [T, H, W, 3] RGB at `fps` frames a second."""
        ...


class Filter(Protocol):
    """A quality measurement on a clip's frames: signals alone, cheap, measured before any annotator runs.

    One that needs weights declares them as an annotator does.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    signals: ClassVar[Mapping[str, Signal]]

    def __call__(self, frames: Frames, fps: float) -> dict[str, Value]:
        """Measure one clip: `frames` uint8 [T, H, W, 3] RGB at `fps` frames a second."""
        ...
