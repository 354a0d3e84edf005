"""Draws a numbered test card at any size, and measures it in any picture that shows it.

All positions on it are shares of its width and height, so that a card can be drawn into any stored shape and measured
at any position and size. From the top left: the frame's number in 2 x 5 black or white blocks over the upper half;
below, a white disc at the left and 2 x 5 patches of colour at the right. Any turn or mirroring is visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROWS, COLUMNS = 2, 5
BLACK, WHITE = 20, 235
PATCHES = {
    "red": (220, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 40, 220),
    "yellow": (210, 200, 40),
    "skin": (224, 172, 145),
    "black": (0, 0, 0),
    "dark gray": (64, 64, 64),
    "gray": (128, 128, 128),
    "white": (255, 255, 255),
    "teal": (20, 130, 140),
}
# The ground that the disc lies on: the lower left of the card; the patches fill the rest of the lower half.
_GROUND, _DISC = 40, 220
_PATCHES_LEFT = 0.375
# The disc's centre, and its diameter as a share of the card's height, limited to a share of its width.
_DISC_X, _DISC_Y = 0.1875, 0.75
_DISC_HEIGHT, _DISC_WIDTH = 0.4, 0.32
# Alpha of the patches that are not opaque: one half and one fully transparent.
ALPHA = {"skin": 128, "yellow": 0}


@dataclass(frozen=True)
class Area:
    """The area of a card in a picture, in pixels; it may reach beyond the picture's edges."""

    left: float
    top: float
    width: float
    height: float


def draw(number: int, width: int, height: int, aspect: float, alpha: bool = False) -> NDArray[np.uint8]:
    """Card `number` as uint8 [height, width, 3] RGB, or RGBA with `alpha`; `aspect` is its aspect when displayed.

    Numbers are in Gray code, so that only one block changes between frames, which no shot detector takes for a cut.
    """
    x = (np.arange(width) + 0.5) / width
    y = (np.arange(height) + 0.5) / height
    picture = np.full((height, width, 4), 255, np.uint8)
    picture[..., :3] = _GROUND
    # Half a pixel row may belong to the wrong block; nothing is measured near an edge.
    upper, right = y < 0.5, x >= _PATCHES_LEFT
    gray_code = number ^ (number >> 1)
    bits = np.array([(gray_code >> bit) & 1 for bit in range(ROWS * COLUMNS)], np.uint8).reshape(ROWS, COLUMNS)
    rows, columns = (y[upper] * 2 * ROWS).astype(int), (x * COLUMNS).astype(int)
    picture[upper, :, :3] = (BLACK + bits[rows][:, columns] * (WHITE - BLACK))[..., None]
    patches = np.array([(*rgb, ALPHA.get(name, 255) if alpha else 255) for name, rgb in PATCHES.items()], np.uint8)
    rows = ((y[~upper] - 0.5) * 2 * 2).astype(int)
    columns = ((x[right] - _PATCHES_LEFT) / (1 - _PATCHES_LEFT) * 5).astype(int)
    picture[np.ix_(~upper, right)] = patches.reshape(2, 5, 4)[rows][:, columns]
    x_offset = (x[None, :] - _DISC_X) * aspect
    y_offset = y[:, None] - _DISC_Y
    picture[x_offset**2 + y_offset**2 < (_diameter(aspect) / 2) ** 2, :3] = _DISC
    return picture if alpha else np.ascontiguousarray(picture[..., :3])


def number(picture: NDArray[np.uint8], area: Area) -> int:
    """The number on the card that lies in `area` of the picture, uint8 [H, W, 3]."""
    gray_code = 0
    for index in range(ROWS * COLUMNS):
        row, column = divmod(index, COLUMNS)
        block = _part(picture, area, column / COLUMNS, row / ROWS / 2, 1 / COLUMNS, 1 / ROWS / 2)
        gray_code |= int(block.mean() > (BLACK + WHITE) / 2) << index
    value = 0
    while gray_code:
        value ^= gray_code
        gray_code >>= 1
    return value


def colours(picture: NDArray[np.uint8], area: Area) -> NDArray[np.float64]:
    """The mean of the inner half of every patch, float64 [patches, 3], in the order of `PATCHES`."""
    width = (1 - _PATCHES_LEFT) / 5
    return np.array(
        [
            _part(picture, area, _PATCHES_LEFT + index % 5 * width, 0.5 + index // 5 / 4, width, 1 / 4).mean(
                axis=(0, 1)
            )
            for index in range(len(PATCHES))
        ]
    )


def disc(picture: NDArray[np.uint8], area: Area) -> tuple[float, float, float, float]:
    """The disc as centre x, centre y, width and height, in pixels of the picture.

    By moments of brightness, which is exact to a fraction of a pixel.
    """
    left, right = round(area.left), round(area.left + (_PATCHES_LEFT - 0.01) * area.width)
    top, bottom = round(area.top + 0.52 * area.height), round(area.top + area.height)
    left, top = max(0, left), max(0, top)
    grays = picture[top:bottom, left:right].mean(axis=2)
    weights = np.clip((grays - _GROUND - 40) / (_DISC - _GROUND - 80), 0, 1)
    y, x = np.mgrid[top : top + grays.shape[0], left : left + grays.shape[1]] + 0.5
    total = weights.sum()
    assert total > 0, "the card shows no disc"
    centre_x, centre_y = float((x * weights).sum() / total), float((y * weights).sum() / total)
    width = 4 * np.sqrt(((x - centre_x) ** 2 * weights).sum() / total)
    height = 4 * np.sqrt(((y - centre_y) ** 2 * weights).sum() / total)
    return centre_x, centre_y, float(width), float(height)


def expected_disc(area: Area) -> tuple[float, float, float, float]:
    """The values of `disc` for a complete, undistorted card in `area`."""
    diameter = _diameter(area.width / area.height) * area.height
    return area.left + _DISC_X * area.width, area.top + _DISC_Y * area.height, diameter, diameter


def _diameter(aspect: float) -> float:
    """The disc's diameter as a share of the height of a card of this shape."""
    return min(_DISC_HEIGHT, _DISC_WIDTH * aspect)


def _part(picture: NDArray[np.uint8], area: Area, x: float, y: float, width: float, height: float) -> NDArray[np.uint8]:
    """The inner half of a rectangle on the card, in both directions."""
    left = area.left + (x + width / 4) * area.width
    top = area.top + (y + height / 4) * area.height
    right, bottom = left + width / 2 * area.width, top + height / 2 * area.height
    part = picture[max(0, round(top)) : max(1, round(bottom)), max(0, round(left)) : max(1, round(right))]
    assert part.size, f"the card's part at {x:.2f}, {y:.2f} lies outside the picture"
    return part
