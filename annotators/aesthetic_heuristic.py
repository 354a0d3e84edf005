"""A rough order of clips by looks, from what is measured anyway, where no learned aesthetic model runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from annotators.base import Annotation, Frames, Signal, Weight

# Where a picture is as good as it gets, and where it is hopeless, in the unit of each signal.
_SHARP, _BLURRED = 0.8, 0.27
_NOISY, _BLOCKY = 8.0, 2.0
_MIDDLE, _FAR = 118.0, 100.0
_CONTRAST, _COLOURFUL = 50.0, 60.0
# The share of the frame that a subject fills well.
_SMALLEST, _LARGEST = 0.04, 0.5
# How much each of technique, light, colour and composition counts.
_SHARES = (0.4, 0.25, 0.15, 0.2)


class AestheticHeuristic:
    """The weighted mean of technique, light, colour and placement; nobody's taste was asked, and no model was trained.

    Technique is the product of sharpness, freedom from noise and freedom from blocks; light the mean of exposure and
    contrast; colour the colourfulness; placement how near the subject is to the middle or to a crossing of the thirds,
    and whether it is of a size to be seen. Good for sorting out the worst, and not comparable with any learned score.
    """

    name: ClassVar[str] = "aesthetic_heuristic"
    version: ClassVar[str] = "1"
    tracks: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = (
        *("sharpness", "noise", "blockiness", "luma", "contrast", "colourfulness"),
        *("subject_area", "subject_x", "subject_y"),
    )
    signals: ClassVar[Mapping[str, Signal]] = {
        "aesthetic_heuristic": Signal("0..1", "looks by rule of thumb: technique, light, colour and placement")
    }
    weights: ClassVar[tuple[Weight, ...]] = ()

    def __call__(self, frames: Frames, fps: float, **needed: Any) -> Annotation:
        """Score one clip by the signals in `needs`; the frames themselves are not looked at."""
        return Annotation(signals={"aesthetic_heuristic": _score(**needed)})


def _score(
    *,
    sharpness: float | None,
    noise: float | None,
    blockiness: float | None,
    luma: float,
    contrast: float,
    colourfulness: float,
    subject_area: float,
    subject_x: float | None,
    subject_y: float | None,
) -> float:
    """0 to 1; each argument is the signal of that name."""
    # No detail at all is no sharpness; what could not be measured for want of texture is no damage.
    technique = _share((sharpness or 0.0) - _BLURRED, _SHARP - _BLURRED)
    technique *= (1 - _share(noise or 0.0, _NOISY)) * (1 - _share(blockiness or 0.0, _BLOCKY))
    light = (1 - _share(abs(luma - _MIDDLE), _FAR) ** 2 + _share(contrast, _CONTRAST)) / 2
    placement = 0.0
    if subject_x is not None and subject_y is not None:
        anchors = [(0.5, 0.5), *((x, y) for x in (1 / 3, 2 / 3) for y in (1 / 3, 2 / 3))]
        off = min(math.hypot(subject_x - x, subject_y - y) for x, y in anchors)
        fit = min(_share(subject_area, _SMALLEST), _share(1 - subject_area, 1 - _LARGEST))
        placement = (1 - _share(off, 1 / 3)) * fit
    parts = (technique, light, _share(colourfulness, _COLOURFUL), placement)
    return sum(share * part for share, part in zip(_SHARES, parts, strict=True))


def _share(value: float, most: float) -> float:
    """`value` as a share of `most`, 0 to 1."""
    return min(max(value / most, 0.0), 1.0)
