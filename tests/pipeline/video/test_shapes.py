"""Tests that every shape of a grid can be written and read back: by our two readers, OpenCV and plain PyAV.

FFmpeg internally rounds widths up to multiples of 64, so all shapes are tested, not a sample, where that is affordable.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import round_trip

from pipeline.video.grid import Grid

AREA = Grid().area
# The longest side that x264 supports.
LONGEST = 16384
# Upright phones, DVDs and others that were once written and then discarded.
NAMED = [(464, 832), (480, 832), (832, 480), (352, 640), (720, 480), (720, 544), (208, 320), (144, 192)]

Shape = tuple[int, int]


def multiples_of_sixteen() -> list[Shape]:
    """All shapes with multiples of 16 as width and height, up to the area."""
    limit = AREA // 256
    shapes = [(16 * column, 16 * row) for column in range(1, limit + 1) for row in range(1, limit // column + 1)]
    return [shape for shape in shapes if max(shape) <= LONGEST]


def is_usual(shape: Shape) -> bool:
    """Whether the longer side is at most eight times the shorter one."""
    return max(shape) <= 8 * min(shape)


def multiples_of_two(rng: random.Random) -> list[Shape]:
    """Multiples of 2: every remainder of width and height by 64, the smallest shapes, and shapes that fill the area."""
    remainders = [(64 + x, 64 + y) for x in range(2, 66, 2) for y in range(2, 66, 2)]
    smallest = [(x, y) for x in range(2, 34, 2) for y in range(2, 34, 2)]
    widths = rng.sample(range(160, 2000, 2), 200)
    return [*remainders, *smallest, *((width, AREA // width // 2 * 2) for width in widths)]


def find_faults(shapes: Iterable[Shape], folder: Path) -> dict[str, list[str]]:
    problems_by_shape = {f"{width}x{height}": round_trip.problems(width, height, folder) for width, height in shapes}
    return {shape: problems for shape, problems in problems_by_shape.items() if problems}


def test_shapes_of_every_remainder_come_back(tmp_path: Path) -> None:
    rng = random.Random(20)
    # Every remainder of a width by 64, with a random height, and a sample of each other kind.
    even = [(128 + remainder, rng.randrange(32, 256, 2)) for remainder in range(0, 64, 2)]
    chosen = [*NAMED, *even, *rng.sample(multiples_of_two(rng), 40), *rng.sample(multiples_of_sixteen(), 40)]
    assert find_faults(chosen, tmp_path) == {}


@pytest.mark.long
@pytest.mark.slow
def test_every_shape_of_sixteen_comes_back(tmp_path: Path) -> None:
    shapes = multiples_of_sixteen()
    thin = [shape for shape in shapes if not is_usual(shape)]
    chosen = [*filter(is_usual, shapes), *random.Random(20).sample(thin, 500)]
    assert (len(shapes), len(chosen)) == (10_653, 3_763)
    assert find_faults(chosen, tmp_path) == {}


@pytest.mark.long
@pytest.mark.slow
def test_shapes_of_two_come_back(tmp_path: Path) -> None:
    shapes = multiples_of_two(random.Random(20))
    assert len(shapes) == 1_480
    assert find_faults(shapes, tmp_path) == {}
