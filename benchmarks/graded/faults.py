"""Lists every fault with its eight strengths, the function that makes it, and the rules that should find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from numpy.random import Generator

from annotators.base import Frames
from benchmarks.graded import codecs, motion, pictures


class Kind(Enum):
    """What a fault is made from, and so what is measured."""

    CLIP = "clip"
    """A clip on the grid: is a predicate over its signals true?"""
    SHOT = "shot"
    """Frames at the source's own rate: does a shot end where it should, or anywhere?"""
    COPY = "copy"
    """A clip on the grid: is its embedding as near to the original's as a duplicate's would be?"""


class Scene(NamedTuple):
    """The input of a fault: frames uint8 [T, H, W, 3] at `fps`; `second`, another source's frames of the same size, if
    the fault joins two sources; random numbers, the same for every strength."""

    frames: Frames
    second: Frames
    fps: float
    rng: Generator


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    `strengths`: eight, weakest first, in `unit`. `rules`: any of these of the recipe should find it, or `predicate` if
    no rule applies. `signals`: the filters and annotators that these need. `excused`: sources with one of these tags
    have the fault by nature, or hide it. `still`: the filters look at every fourth frame, so only those are made.
    `coded`: made at the source's size, and encoded before it is put on the grid, as in a file. `cut`: a shot fault
    that must end a shot; others must not. `held`: made from a repeated picture, unless the camera is known to stand.
    `joins`: needs another source. `slow`: takes seconds, so it is made from fewer sources.
    """

    name: str
    unit: str
    strengths: tuple[float, ...]
    make: Callable[[Scene, float], Frames]
    rules: tuple[str, ...] = ()
    predicate: str = ""
    signals: tuple[str, ...] = ()
    excused: frozenset[str] = frozenset()
    kind: Kind = Kind.CLIP
    still: bool = False
    coded: bool = False
    cut: bool = True
    held: bool = False
    joins: bool = False
    slow: bool = False


_QUALITY = frozenset({"lowres"})
_WORDS = frozenset({"letters", "text_in_scene"})


def _watermark_of_size(scene: Scene, size: float) -> Frames:
    return pictures.add_watermark(scene.frames, size, 0.6, scene.rng) if size else scene.frames


def _watermark_of_opacity(scene: Scene, opacity: float) -> Frames:
    return pictures.add_watermark(scene.frames, 0.05, opacity, scene.rng)


def _crop(scene: Scene, share: float) -> Frames:
    return pictures.crop(scene.frames, share)


def _mirror(scene: Scene, share: float) -> Frames:
    return pictures.crop(scene.frames, share)[:, :, ::-1]


FAULTS = (
    Fault(
        "blur", "px at 480 lines", (0.5, 1, 1.5, 2, 3, 4, 6, 9),
        lambda scene, sigma: pictures.blur(scene.frames, sigma, scene.rng) if sigma else scene.frames,
        rules=("blurred",), signals=("sharpness",), excused=_QUALITY, still=True,
    ),
    Fault(
        "enlarged picture", "times, less 1", (0.25, 0.5, 1, 1.5, 2, 3, 4, 6),
        lambda scene, factor: pictures.enlarge(scene.frames, factor, scene.rng) if factor else scene.frames,
        rules=("blurred",), signals=("sharpness",), excused=_QUALITY, still=True,
    ),
    Fault(
        "noise", "levels", (2, 4, 6, 8, 12, 16, 24, 32),
        lambda scene, sigma: pictures.add_noise(scene.frames, sigma, scene.rng),
        rules=("noisy",), signals=("noise",), still=True, coded=True,
    ),
    Fault(
        "H.264", "crf", (26, 30, 34, 38, 42, 45, 48, 51),
        lambda scene, crf: codecs.x264(scene.frames, crf) if crf else scene.frames,
        rules=("blocky",), signals=("blockiness", "sharpness"),
    ),
    Fault(
        "MPEG-4", "quantizer", (3, 5, 8, 12, 16, 20, 25, 31),
        lambda scene, quantizer: codecs.mpeg4(scene.frames, int(quantizer)) if quantizer else scene.frames,
        rules=("blocky",), signals=("blockiness", "sharpness"),
    ),
    Fault(
        "dark", "share of light lost", (0.3, 0.45, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95),
        lambda scene, share: pictures.darken(scene.frames, share, scene.rng),
        rules=("too_dark", "black"), signals=("luma", "contrast", "black"), excused=frozenset({"dark"}), still=True,
    ),
    Fault(
        "bright", "gain, less 1", (0.25, 0.5, 1, 1.5, 2, 3, 5, 8),
        lambda scene, gain: pictures.overexpose(scene.frames, gain, scene.rng),
        rules=("too_bright",), signals=("luma", "contrast"), still=True,
    ),
    Fault(
        "letterbox", "share of frame", (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.35),
        lambda scene, share: pictures.letterbox(scene.frames, share, scene.rng),
        rules=("bars",), signals=("borders",), excused=frozenset({"pillarbox"}), still=True, coded=True,
    ),
    Fault(
        "pillarbox", "share of frame", (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.35),
        lambda scene, share: pictures.pillarbox(scene.frames, share, scene.rng),
        rules=("bars",), signals=("borders",), excused=frozenset({"pillarbox"}), still=True, coded=True,
    ),
    Fault(
        "watermark, size", "share of height", (0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.14), _watermark_of_size,
        rules=("watermark",), signals=("text",), excused=_WORDS, coded=True, slow=True,
    ),
    Fault(
        "watermark, opacity", "0..1", (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8), _watermark_of_opacity,
        rules=("watermark",), signals=("text",), excused=_WORDS, coded=True, slow=True,
    ),
    Fault(
        "subtitles, size", "share of height", (0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.07),
        lambda scene, size: pictures.add_subtitles(scene.frames, size, scene.rng),
        rules=("overlay_text", "watermark"), signals=("text",), excused=_WORDS, coded=True, slow=True,
    ),
    Fault(
        "shake", "share of diagonal", (0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.024, 0.04),
        lambda scene, share: motion.shake(scene.frames, share, scene.fps, scene.rng),
        rules=("shaky",), signals=("camera",), excused=frozenset({"handheld"}),
    ),
    Fault(
        "zoom", "share a second", (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2),
        lambda scene, rate: motion.zoom(scene.frames, rate, scene.fps, scene.rng),
        predicate="camera = 'zoom'", signals=("camera",), held=True,
    ),
    Fault(
        "pan", "diagonals a second", (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.13, 0.2),
        lambda scene, rate: motion.pan(scene.frames, rate, scene.fps, scene.rng),
        predicate="camera = 'pan'", signals=("camera",), held=True,
    ),
    Fault(
        "flash", "levels", (10, 20, 30, 45, 65, 90, 130, 200),
        lambda scene, levels: motion.flash(scene.frames, levels, scene.fps, scene.rng),
        rules=("flashing",), signals=("flicker",), excused=frozenset({"flicker"}),
    ),
    Fault(
        "fade from black", "s", (0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2),
        lambda scene, seconds: motion.fade_in(scene.frames, seconds, scene.fps, scene.rng),
        rules=("fade", "black"), signals=("black",), excused=frozenset({"dark"}),
    ),
    Fault(
        "cut to the same scene", "enlarged, less 1", (0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.7, 1),
        lambda scene, share: motion.punch_in(scene.frames, share, scene.fps, scene.rng), kind=Kind.SHOT, slow=True,
    ),
    Fault(
        "dissolve", "s", (0.08, 0.16, 0.24, 0.32, 0.4, 0.5, 0.7, 1),
        lambda scene, seconds: motion.dissolve(scene.frames, scene.second, seconds, scene.fps),
        joins=True, kind=Kind.SHOT, slow=True,
    ),
    Fault(
        "flash, called a cut", "levels", (10, 20, 30, 45, 65, 90, 130, 200),
        lambda scene, levels: motion.flash(scene.frames, levels, scene.fps, scene.rng),
        kind=Kind.SHOT, cut=False, slow=True,
    ),
    Fault(
        "shake, called a cut", "share of diagonal", (0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.024, 0.04),
        lambda scene, share: motion.shake(scene.frames, share, scene.fps, scene.rng),
        kind=Kind.SHOT, cut=False, slow=True,
    ),
    Fault(
        "light that jumps, called a cut", "share of light lost", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        lambda scene, share: motion.dim(scene.frames, share), kind=Kind.SHOT, cut=False, slow=True,
    ),
    Fault("cropped copy", "share of each side", (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6), _crop, kind=Kind.COPY),
    Fault(
        "mirrored copy, cropped", "share of each side", (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6), _mirror,
        kind=Kind.COPY,
    ),
)  # fmt: skip
