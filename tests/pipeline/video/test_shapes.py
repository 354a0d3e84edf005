"""Every shape that a grid can have is written and read back: by our two readers, OpenCV and plain PyAV.

FFmpeg rounds widths up to multiples of 64 inside, so shapes are walked whole, not sampled, where that is affordable.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import round_trip

from pipeline.video.grid import Grid

AREA = Grid().area
# The longest side that x264 takes.
LONGEST = 16384
# Upright phones, DVDs and others that were once written and then thrown away.
NAMED = [(464, 832), (480, 832), (832, 480), (352, 640), (720, 480), (720, 544), (208, 320), (144, 192)]

Shape = tuple[int, int]


def of_sixteen() -> list[Shape]:
    """Every width and height that are multiples of 16, up to the area."""
    most = AREA // 256
    every = [(16 * a, 16 * b) for a in range(1, most + 1) for b in range(1, most // a + 1)]
    return [shape for shape in every if max(shape) <= LONGEST]


def usual(shape: Shape) -> bool:
    """Up to eight times as wide as high, or as high as wide."""
    return max(shape) <= 8 * min(shape)


def of_two(rng: random.Random) -> list[Shape]:
    """Multiples of 2: every remainder of width and height by 64, the smallest of all, and shapes that fill the area."""
    remainders = [(64 + x, 64 + y) for x in range(2, 66, 2) for y in range(2, 66, 2)]
    smallest = [(x, y) for x in range(2, 34, 2) for y in range(2, 34, 2)]
    widths = rng.sample(range(160, 2000, 2), 200)
    return [*remainders, *smallest, *((width, AREA // width // 2 * 2) for width in widths)]


def faults(shapes: Iterable[Shape], folder: Path) -> dict[str, list[str]]:
    wrong = {f"{width}x{height}": round_trip.problems(width, height, folder) for width, height in shapes}
    return {shape: problems for shape, problems in wrong.items() if problems}


def test_shapes_of_every_remainder_come_back(tmp_path: Path) -> None:
    rng = random.Random(20)
    # Every remainder of a width by 64, with the height that fills a part of the area, and some of each other kind.
    even = [(128 + rest, rng.randrange(32, 256, 2)) for rest in range(0, 64, 2)]
    chosen = [*NAMED, *even, *rng.sample(of_two(rng), 40), *rng.sample(of_sixteen(), 40)]
    assert faults(chosen, tmp_path) == {}


@pytest.mark.long
@pytest.mark.slow
def test_every_shape_of_sixteen_comes_back(tmp_path: Path) -> None:
    shapes = of_sixteen()
    thin = [shape for shape in shapes if not usual(shape)]
    chosen = [*filter(usual, shapes), *random.Random(20).sample(thin, 500)]
    assert (len(shapes), len(chosen)) == (10_653, 3_763)
    assert faults(chosen, tmp_path) == {}


@pytest.mark.long
@pytest.mark.slow
def test_shapes_of_two_come_back(tmp_path: Path) -> None:
    shapes = of_two(random.Random(20))
    assert len(shapes) == 1_480
    assert faults(shapes, tmp_path) == {}
