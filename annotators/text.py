"""Finds words laid over a video (subtitles, titles, stamps, watermarks), which a trainer would learn to draw."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Annotation, Annotator, Frames, Signal, Weight, spread
from annotators.opencv import cv2

# The longest distance of frames that are read: a subtitle that is in one is in the next one too.
_EVERY_S = 0.75
# The longer side at which text is searched, in pixels.
_SIDE = 736
# What counts as read: at least this sure, this many letters or digits, and level up to this many degrees. Shorter or
# tilted words are signs in the scene, or not words at all.
_SURE, _LETTERS, _TILT = 0.8, 4, 6.0
# A word read only in the static picture must cover at least this share of the frame; smaller ones are texture.
_FAINT = 0.004
# One place: centres as near as this share of the frame's side, heights that differ by no more than this factor.
_NEAR, _HEIGHT = 0.015, 1.4
# A line this near to the frame's edge, in pixels, is cut off by it.
_EDGE = 3
# The outer part of the frame, as a share of its side, that outpainting replaces.
_RIM = 0.2
# Words that are one text, read twice (difflib's ratio).
_SAME = 0.6
# After this many letters, no more lines go into the catalog; a page filmed for minutes has more.
_MAX_LETTERS = 500
# Frames whose median is the static picture. Its local brightness and contrast are normalized over this many pixels, so
# that a nearly transparent word reads as well as a bright one; deviations below this many levels are noise.
_MEDIAN, _AROUND, _NOISE = 17, 12.0, 4.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text: its words, where it is (left, top, right, bottom in pixels), and the frame, or None for
    the static picture."""

    words: str
    box: tuple[int, int, int, int]
    frame: int | None

    def area(self) -> int:
        """Pixels of its box."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


class Text(Annotator):
    """Reads a few frames, and their static picture, by PP-OCRv6; tells text on the screen from text in the scene.

    data["text"]: one {"words", "box", "frame"} for each line read; box as [left, top, right, bottom] in pixels; frame
    is null for a line read in the static picture. Text on the screen is level and stays in one place, whatever moves
    behind it; a sign that a camera passes does not. A sign in front of a still camera cannot be told from it; marks of
    fewer than four letters or digits are not found.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[str] = "ppocrv6-small-2"
    signals: ClassVar[Mapping[str, Signal]] = {
        "text_area": Signal("0..1", "share of the frame under words of any kind: mean over frames"),
        "overlay_area": Signal("0..1", "share of the frame under words that stand at one place of the screen: largest"),
        "overlay_edge": Signal("0..1", "as overlay_area, of words that reach into the outer fifth of the frame"),
        "watermark_area": Signal("0..1", "share of the frame under words that stand unchanged through the whole clip"),
        "words": Signal("", "the words read, line by line, each once; null where there are none", "str"),
    }
    weights: ClassVar[tuple[Weight, ...]] = tuple(
        Weight(f"ppocrv6-small-{job}", f"installed:rapidocr==3.10.0!rapidocr/models/{file}", sha256, "Apache-2.0")
        for job, file, sha256 in (
            (
                "detection",
                "PP-OCRv6_det_small.onnx",
                "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
            ),
            (
                "recognition",
                "PP-OCRv6_rec_small.onnx",
                "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
            ),
        )
    )

    def __init__(self) -> None:
        """Load both networks; raises `weights.MissingWeights` if one is absent or damaged."""
        detection, recognition = (str(weights.path(weight)) for weight in self.weights)
        from rapidocr import RapidOCR

        self._ocr: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                # Without the network that turns upside-down words.
                "Global.use_cls": False,
                "Det.model_path": detection,
                "Det.limit_side_len": _SIDE,
                "Det.limit_type": "max",
                "Rec.model_path": recognition,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            }
        )

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Read one clip: `frames` uint8 [T, H, W, 3] RGB at `fps` frames a second."""
        height, width = frames.shape[1:3]
        count = max(2, math.ceil(len(frames) / fps / _EVERY_S))
        looks = spread(len(frames), count)
        lines_by_look = {look: self._read_lines(frames[look], look) for look in looks}
        static_lines = self._read_lines(_static_picture(frames), None)
        pixels = height * width

        def lines_at_place(line: Line, candidates: list[Line]) -> list[Line]:
            return [
                candidate
                for candidate in candidates
                if candidate is not line and _one_place(line, candidate, width, height)
            ]

        def is_overlay(line: Line) -> bool:
            # Another look has a line at this place, and no look has the same words only at another place.
            elsewhere = [static_lines, *(lines for look, lines in lines_by_look.items() if look != line.frame)]
            moved = any(
                not lines_at_place(line, lines) and any(_same_words(line, candidate) for candidate in lines)
                for lines in elsewhere
            )
            return not moved and any(lines_at_place(line, lines) for lines in elsewhere)

        def is_unchanged(line: Line) -> bool:
            matches = [lines_at_place(line, lines_by_look[look]) for look in looks]
            if not any(matches):
                return bool(line.area() >= _FAINT * pixels)
            from_end_to_end = bool(matches[0] and matches[-1])
            return from_end_to_end and all(_same_words(line, match) for lines in matches for match in lines)

        overlays = [[line for line in lines_by_look[look] if is_overlay(line)] for look in looks]
        marks = [line for line in static_lines if is_unchanged(line)]
        lines = [line for group in (*lines_by_look.values(), static_lines) for line in group]
        return Annotation(
            signals={
                "text_area": float(np.mean([_sum_areas(lines_by_look[look]) for look in looks])) / pixels,
                "overlay_area": max(map(_sum_areas, [marks, *overlays])) / pixels,
                "overlay_edge": max(
                    _sum_areas(line for line in group if _at_edge(line, width, height)) for group in [marks, *overlays]
                )
                / pixels,
                "watermark_area": _sum_areas(marks) / pixels,
                "words": " / ".join(_distinct_words(lines)) or None,
            },
            data={"text": [{"words": line.words, "box": list(line.box), "frame": line.frame} for line in lines]},
        )

    def _read_lines(self, picture: NDArray[np.uint8], frame: int | None) -> list[Line]:
        """Read the level lines in uint8 [H, W, 3] RGB, from the top."""
        result = self._ocr(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if result.txts is None:
            return []
        lines = []
        for words, score, corners in zip(result.txts, result.scores, result.boxes, strict=True):
            across = corners[1] - corners[0]
            level = abs(np.degrees(np.arctan2(across[1], across[0]))) <= _TILT
            if level and score >= _SURE and sum(map(str.isalnum, words)) >= _LETTERS:
                left, top = np.clip(corners.min(axis=0), 0, None).round().astype(int).tolist()
                right, bottom = np.minimum(corners.max(axis=0), picture.shape[1::-1]).round().astype(int).tolist()
                lines.append(Line(words, (left, top, right, bottom), frame))
        return sorted(lines, key=lambda line: line.box[1::-1])


def _sum_areas(lines: Iterable[Line]) -> int:
    return sum(line.area() for line in lines)


def _at_edge(line: Line, width: int, height: int) -> bool:
    left, top, right, bottom = line.box
    return min(left, width - right) < _RIM * width or min(top, height - bottom) < _RIM * height


def _distinct_words(lines: list[Line]) -> list[str]:
    """The words of lines, each text once, up to the limit of the catalog."""
    distinct: list[Line] = []
    for line in lines:
        if (
            not any(_same_words(line, earlier) for earlier in distinct)
            and sum(len(earlier.words) for earlier in distinct) < _MAX_LETTERS
        ):
            distinct.append(line)
    return [line.words for line in distinct]


def _static_picture(frames: Frames) -> NDArray[np.uint8]:
    """What stays the same through a clip, at normalized contrast: uint8 [H, W, 3], grey."""
    sample = frames[spread(len(frames), _MEDIAN)]
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in sample])
    middle = np.median(grey, axis=0).astype(np.float32)
    detail = middle - cv2.GaussianBlur(middle, (0, 0), _AROUND)
    deviation = np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), _AROUND)) + _NOISE
    level = np.clip(128 + 50 * detail / deviation, 0, 255).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=2)


def _one_place(first: Line, second: Line, width: int, height: int) -> bool:
    """Whether two lines are at one place. Words may come and go on both sides of a centred line, or at the end of
    another, so the centre or one of the ends must agree."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = first.box, second.box
    first_height, second_height = max(1, bottom - top), max(1, bottom2 - top2)
    if (
        max(first_height, second_height) > _HEIGHT * min(first_height, second_height)
        or abs(top + bottom - top2 - bottom2) > 2 * _NEAR * height
    ):
        return False
    distances = [abs(left + right - left2 - right2) / 2]
    # The frame's own edge cuts off what passes, and is not the end of a line.
    distances += [abs(left - left2)] if min(left, left2) > _EDGE else []
    distances += [abs(right - right2)] if max(right, right2) < width - _EDGE else []
    return min(distances) <= _NEAR * width


def _same_words(first: Line, second: Line) -> bool:
    return difflib.SequenceMatcher(None, first.words.lower(), second.words.lower()).ratio() >= _SAME
