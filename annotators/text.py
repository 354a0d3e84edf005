"""Words laid over a video (subtitles, titles, stamps, watermarks), which a trainer would learn to draw."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Annotation, Frames, Signal, Weight, spread
from annotators.opencv import cv2

# Frames that are read lie no further apart: a subtitle that one reads, the next one reads too.
_EVERY_S = 0.75
# The longer side at which text is looked for, in pixels.
_SIDE = 736
# What counts as read: this sure, with as many letters or digits, and level up to so many degrees. Shorter or tilted
# words are signs in the scene, or no words at all.
_SURE, _LETTERS, _TILT = 0.8, 4, 6.0
# A word that no frame shows, but only what stays, covers at least this share of the frame; smaller ones are texture.
_FAINT = 0.004
# One place: centres as near as this share of the frame's side, heights that differ by no more than this factor.
_NEAR, _HEIGHT = 0.015, 1.4
# As near to the frame's edge, in pixels, a line is cut off by it.
_EDGE = 3
# The outer part of the frame, as a share of its side: what outpainting draws anew.
_RIM = 0.2
# Words that are one text, read twice (difflib's ratio).
_SAME = 0.6
# No more lines go into the catalog after so many letters; a page filmed for minutes has more.
_WORDS = 500
# Frames whose median shows what stays. It is brought to one local brightness and contrast over this many pixels, so
# that a word that is nearly transparent reads as well as a bright one; deviations under so many levels are noise.
_MEDIAN, _AROUND, _NOISE = 17, 12.0, 4.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text: its words, where it is (left, top, right, bottom in pixels), and the frame, or None for what
    stays through the clip."""

    words: str
    box: tuple[int, int, int, int]
    frame: int | None

    def area(self) -> int:
        """Pixels under it."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


class Text:
    """Reads a few frames, and what stays through them, by PP-OCRv6; tells text on the screen from text in the scene.

    data["text"]: one {"words", "box", "frame"} for each line read; box as [left, top, right, bottom] in pixels; null
    as the frame of a line read in the picture of what stays. Text on the screen is level and stands at one place,
    whatever moves behind it; a sign that a camera passes does not. A sign before a camera that stands cannot be told
    from it; marks of fewer than four letters or digits are not seen.
    """

    name: ClassVar[str] = "text"
    version: ClassVar[str] = "ppocrv6-small-2"
    tracks: ClassVar[tuple[str, ...]] = ()
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

        self._read: Any = RapidOCR(
            params={
                "Global.log_level": "error",
                # Without the network that turns words that stand on their heads.
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
        read = {look: self._lines(frames[look], look) for look in looks}
        staying = self._lines(_staying(frames), None)
        pixels = height * width

        def at_place(line: Line, others: list[Line]) -> list[Line]:
            return [other for other in others if other is not line and _one_place(line, other, width, height)]

        def stands(line: Line) -> bool:
            # Another look has something at this place, and none has the same words at another place alone.
            others = [staying, *(lines for look, lines in read.items() if look != line.frame)]
            moved = any(
                not at_place(line, lines) and any(_same_words(line, other) for other in lines) for lines in others
            )
            return not moved and any(at_place(line, lines) for lines in others)

        def unchanged(line: Line) -> bool:
            there = [at_place(line, read[look]) for look in looks]
            if not any(there):
                return bool(line.area() >= _FAINT * pixels)
            from_end_to_end = bool(there[0] and there[-1])
            return from_end_to_end and all(_same_words(line, other) for others in there for other in others)

        shown = [[line for line in read[look] if stands(line)] for look in looks]
        marks = [line for line in staying if unchanged(line)]
        lines = [line for found in (*read.values(), staying) for line in found]
        return Annotation(
            signals={
                "text_area": float(np.mean([_area(read[look]) for look in looks])) / pixels,
                "overlay_area": max(map(_area, [marks, *shown])) / pixels,
                "overlay_edge": max(
                    _area(line for line in found if _at_edge(line, width, height)) for found in [marks, *shown]
                )
                / pixels,
                "watermark_area": _area(marks) / pixels,
                "words": " / ".join(_distinct(lines)) or None,
            },
            data={"text": [{"words": line.words, "box": list(line.box), "frame": line.frame} for line in lines]},
        )

    def _lines(self, picture: NDArray[np.uint8], frame: int | None) -> list[Line]:
        """The level lines in uint8 [H, W, 3] RGB, from the top."""
        found = self._read(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        if found.txts is None:
            return []
        lines = []
        for words, score, corners in zip(found.txts, found.scores, found.boxes, strict=True):
            across = corners[1] - corners[0]
            level = abs(np.degrees(np.arctan2(across[1], across[0]))) <= _TILT
            if level and score >= _SURE and sum(map(str.isalnum, words)) >= _LETTERS:
                left, top = np.clip(corners.min(axis=0), 0, None).round().astype(int).tolist()
                right, bottom = np.minimum(corners.max(axis=0), picture.shape[1::-1]).round().astype(int).tolist()
                lines.append(Line(words, (left, top, right, bottom), frame))
        return sorted(lines, key=lambda line: line.box[1::-1])


def _area(lines: Iterable[Line]) -> int:
    return sum(line.area() for line in lines)


def _at_edge(line: Line, width: int, height: int) -> bool:
    left, top, right, bottom = line.box
    return min(left, width - right) < _RIM * width or min(top, height - bottom) < _RIM * height


def _distinct(lines: list[Line]) -> list[str]:
    """The words of lines, without those that are a line read once more, as far as the catalog takes them."""
    kept: list[Line] = []
    for line in lines:
        if not any(_same_words(line, other) for other in kept) and sum(len(one.words) for one in kept) < _WORDS:
            kept.append(line)
    return [line.words for line in kept]


def _staying(frames: Frames) -> NDArray[np.uint8]:
    """What stays through a clip, with all of it at one contrast: uint8 [H, W, 3], grey."""
    chosen = frames[spread(len(frames), _MEDIAN)]
    grey = np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in chosen])
    middle = np.median(grey, axis=0).astype(np.float32)
    detail = middle - cv2.GaussianBlur(middle, (0, 0), _AROUND)
    deviation = np.sqrt(cv2.GaussianBlur(detail**2, (0, 0), _AROUND)) + _NOISE
    level = np.clip(128 + 50 * detail / deviation, 0, 255).astype(np.uint8)
    return np.repeat(level[..., None], 3, axis=2)


def _one_place(one: Line, other: Line, width: int, height: int) -> bool:
    """Whether two lines stand at one place; as words may come and go on either side of a line that is centred, or at
    the end of one that is not, one of centre and ends must agree."""
    (left, top, right, bottom), (left2, top2, right2, bottom2) = one.box, other.box
    tall, tall2 = max(1, bottom - top), max(1, bottom2 - top2)
    if max(tall, tall2) > _HEIGHT * min(tall, tall2) or abs(top + bottom - top2 - bottom2) > 2 * _NEAR * height:
        return False
    apart = [abs(left + right - left2 - right2) / 2]
    # The frame's own edge cuts off whatever passes, and is the end of no line.
    apart += [abs(left - left2)] if min(left, left2) > _EDGE else []
    apart += [abs(right - right2)] if max(right, right2) < width - _EDGE else []
    return min(apart) <= _NEAR * width


def _same_words(one: Line, other: Line) -> bool:
    return difflib.SequenceMatcher(None, one.words.lower(), other.words.lower()).ratio() >= _SAME
