"""Scores the looks of clips by rules of thumb on existing signals, where no learned aesthetic model runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

from annotators.base import Annotation, Annotator, Frames, Signal

# Where a picture is as good as it gets, and where it is as bad, in the unit of each signal.
_SHARP, _BLURRED = 0.8, 0.27
_NOISY, _BLOCKY = 8.0, 2.0
_MIDDLE, _FAR = 118.0, 100.0
_CONTRAST, _COLOURFUL = 50.0, 60.0
# The share of the frame that a subject fills well.
_SMALLEST, _LARGEST = 0.04, 0.5
# How much each of technique, light, colour and composition counts.
_SHARES = (0.4, 0.25, 0.15, 0.2)


class AestheticHeuristic(Annotator):
    """The weighted mean of technique, light, colour and placement; no ratings and no trained model.

    Technique is the product of sharpness, freedom from noise and freedom from blocks; light the mean of exposure and
    contrast; colour the colourfulness; placement how near the subject is to the middle or to a crossing of the thirds,
    and whether it is large enough. Good for finding the worst clips; not comparable with any learned score.
    """

    name: ClassVar[str] = "aesthetic_heuristic"
    version: ClassVar[str] = "1"
    needs: ClassVar[tuple[str, ...]] = (
        *("sharpness", "noise", "blockiness", "luma", "contrast", "colourfulness"),
        *("subject_area", "subject_x", "subject_y"),
    )
    signals: ClassVar[Mapping[str, Signal]] = {
        "aesthetic_heuristic": Signal("0..1", "looks by rule of thumb: technique, light, colour and placement")
    }

    def __call__(self, frames: Frames, fps: float, **needed: Any) -> Annotation:
        """Score one clip by the signals in `needs`; the frames are not used."""
        return Annotation(signals={"aesthetic_heuristic": _score_looks(**needed)})


def _score_looks(
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
    # No detail counts as no sharpness; noise or blocks that could not be measured for lack of texture count as none.
    technique = _to_share((sharpness or 0.0) - _BLURRED, _SHARP - _BLURRED)
    technique *= (1 - _to_share(noise or 0.0, _NOISY)) * (1 - _to_share(blockiness or 0.0, _BLOCKY))
    light = (1 - _to_share(abs(luma - _MIDDLE), _FAR) ** 2 + _to_share(contrast, _CONTRAST)) / 2
    placement = 0.0
    if subject_x is not None and subject_y is not None:
        anchors = [(0.5, 0.5), *((x, y) for x in (1 / 3, 2 / 3) for y in (1 / 3, 2 / 3))]
        distance = min(math.hypot(subject_x - x, subject_y - y) for x, y in anchors)
        fit = min(_to_share(subject_area, _SMALLEST), _to_share(1 - subject_area, 1 - _LARGEST))
        placement = (1 - _to_share(distance, 1 / 3)) * fit
    parts = (technique, light, _to_share(colourfulness, _COLOURFUL), placement)
    return sum(share * part for share, part in zip(_SHARES, parts, strict=True))


def _to_share(value: float, maximum: float) -> float:
    """`value` as a share of `maximum`, clipped to 0 to 1."""
    return min(max(value / maximum, 0.0), 1.0)
