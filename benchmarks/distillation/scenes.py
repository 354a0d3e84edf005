"""Synthetic clips whose control tracks are exact: shapes that move over a coloured ground.

In these clips light falls off with distance and with nothing else: a pixel's luma is its depth track (near is bright),
and colour says nothing about depth. So depth can be read off any clip, a sample of a network too, without a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAMES, SIDE = 17, 64
# Colours as (Cb, Cr) of luma and chroma in 0..255: what luma allows without leaving that range.
COLOURS = {"red": (-12, 44), "green": (-30, -36), "blue": (42, -16), "plain": (0, 0)}
SHAPES = ("disc", "square", "diamond")
# Everything brighter is a shape, everything darker is ground.
NEAR = 82
_TEXTURE = 14
_WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Scene:
    """A clip uint8 [T, H, W, 3], what is said of it, and its tracks: `depth` uint8 [T, H, W], `shapes` bool [T, H, W]
    (where a shape is), `hidden` bool [T, H, W] (a square around the nearest shape: what inpainting is to make).
    `source` names what it was cut from: two clips of one are not independent."""

    clip: NDArray[np.uint8]
    caption: str
    depth: NDArray[np.uint8]
    shapes: NDArray[np.bool_]
    hidden: NDArray[np.bool_]
    source: str


def scene(seed: int, frames: int = FRAMES, side: int = SIDE) -> Scene:
    """The scene of a seed. Of its two shapes the caption names the nearer one and its colour; the colour of the other,
    and of the ground, are anybody's guess."""
    draw = np.random.default_rng([seed, 20])
    ys, xs = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij")
    slope, base = draw.uniform(10, 30), draw.uniform(28, 48)
    depth = np.broadcast_to(base + slope * ys / side, (frames, side, side)).copy()
    names = list(COLOURS)
    ground = names[draw.integers(len(names))]
    chroma = np.broadcast_to(_ground(draw, ground, ys / side, xs / side), (frames, side, side, 2)).copy()
    shapes = np.zeros((frames, side, side), dtype=bool)
    hidden = np.zeros_like(shapes)
    said = ""
    for luma in np.sort(draw.uniform([105, 150], [135, 185])):
        kind, colour = SHAPES[draw.integers(len(SHAPES))], names[draw.integers(len(names))]
        radius = draw.uniform(0.13, 0.21) * side
        path = _path(draw, frames, side, radius)
        inside = np.stack([_inside(kind, ys - y, xs - x, radius) for y, x in path])
        depth[inside], chroma[inside] = luma, 0.6 * np.array(COLOURS[colour])
        shapes |= inside
        reach = radius + 2
        hidden = np.stack([(abs(ys - y) <= reach) & (abs(xs - x) <= reach) for y, x in path])
        said = f"a {colour} {kind} moves"
    track = depth.round()
    return Scene(_rgb(track, chroma), said, track.astype(np.uint8), shapes, hidden, f"scene {seed}")


def luma(clip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Depth as it is read off a clip uint8 [..., 3]: float64 [...], from 0 to 255."""
    found: NDArray[np.float64] = clip.astype(np.float64) @ _WEIGHTS
    return found


def _ground(
    draw: np.random.Generator, colour: str, ys: NDArray[np.float64], xs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The chroma of the ground [H, W, 2]: a colour and two waves of random direction."""
    chroma = np.zeros((*ys.shape, 2)) + 0.25 * np.array(COLOURS[colour])
    for channel in range(2):
        angle, phase, turns = draw.uniform(0, np.pi), draw.uniform(0, 2 * np.pi), draw.uniform(0.5, 2)
        along = np.cos(angle) * ys + np.sin(angle) * xs
        chroma[..., channel] += 0.5 * _TEXTURE * np.sin(2 * np.pi * turns * along + phase)
    return chroma


def _path(draw: np.random.Generator, frames: int, side: int, radius: float) -> NDArray[np.float64]:
    """The middle of a shape in each frame [T, 2]: straight on, and back where the picture ends."""
    room = side - 2 * radius
    begin, speed = draw.uniform(0, room, 2), draw.uniform(-0.035, 0.035, 2) * side
    at = (begin + speed * np.arange(frames)[:, None]) % (2 * room)
    path: NDArray[np.float64] = radius + np.minimum(at, 2 * room - at)
    return path


def _inside(kind: str, y: NDArray[np.float64], x: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    if kind == "disc":
        found: NDArray[np.bool_] = y**2 + x**2 <= radius**2
    elif kind == "square":
        found = np.maximum(abs(y), abs(x)) <= 0.85 * radius
    else:
        found = abs(y) + abs(x) <= radius
    return found


def _rgb(luma: NDArray[np.float64], chroma: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Luma [...] and chroma [..., 2] as uint8 [..., 3]; what leaves the range is made paler until it does not."""
    cb, cr = chroma[..., 0], chroma[..., 1]
    shift = np.stack([1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb], axis=-1)
    over = np.maximum(shift, 0).max(axis=-1), np.maximum(-shift, 0).max(axis=-1)
    room = np.minimum((255 - luma) / np.maximum(over[0], 1e-9), luma / np.maximum(over[1], 1e-9))
    pale = np.minimum(1, room)[..., None]
    shown: NDArray[np.uint8] = (luma[..., None] + pale * shift).round().clip(0, 255).astype(np.uint8)
    return shown
