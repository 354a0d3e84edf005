"""Synthetic clips with exact control tracks: shapes that move over a coloured ground.

In these clips light depends on distance alone: a pixel's luma is its depth track (near is bright), and colour says
nothing about depth. So depth can be read from any clip, including a network's sample, without a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAMES, SIDE = 17, 64
# Colours as (Cb, Cr), with luma and chroma in 0..255: what luma allows without leaving that range.
COLOURS = {"red": (-12, 44), "green": (-30, -36), "blue": (42, -16), "plain": (0, 0)}
SHAPES = ("disc", "square", "diamond")
# Everything brighter is a shape, everything darker is ground.
NEAR = 82
_TEXTURE = 14
_WEIGHTS = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Scene:
    """A clip uint8 [T, H, W, 3], its caption, and its tracks: `depth` uint8 [T, H, W], `shapes` bool [T, H, W]
    (where a shape is), `hidden` bool [T, H, W] (a square around the nearest shape, for inpainting to fill).
    `source` names what it was cut from: two clips of one source are not independent."""

    clip: NDArray[np.uint8]
    caption: str
    depth: NDArray[np.uint8]
    shapes: NDArray[np.bool_]
    hidden: NDArray[np.bool_]
    source: str


def build_scene(seed: int, frames: int = FRAMES, side: int = SIDE) -> Scene:
    """The scene of a seed. The caption names the nearer of its two shapes and that shape's colour; the colours of the
    farther shape and of the ground are stated nowhere."""
    rng = np.random.default_rng([seed, 20])
    ys, xs = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5, indexing="ij")
    slope, base = rng.uniform(10, 30), rng.uniform(28, 48)
    depth = np.broadcast_to(base + slope * ys / side, (frames, side, side)).copy()
    names = list(COLOURS)
    ground = names[rng.integers(len(names))]
    chroma = np.broadcast_to(_draw_ground(rng, ground, ys / side, xs / side), (frames, side, side, 2)).copy()
    shapes = np.zeros((frames, side, side), dtype=bool)
    hidden = np.zeros_like(shapes)
    caption = ""
    for level in np.sort(rng.uniform([105, 150], [135, 185])):
        kind, colour = SHAPES[rng.integers(len(SHAPES))], names[rng.integers(len(names))]
        radius = rng.uniform(0.13, 0.21) * side
        path = _draw_path(rng, frames, side, radius)
        mask = np.stack([_mask_shape(kind, ys - y, xs - x, radius) for y, x in path])
        depth[mask], chroma[mask] = level, 0.6 * np.array(COLOURS[colour])
        shapes |= mask
        reach = radius + 2
        hidden = np.stack([(abs(ys - y) <= reach) & (abs(xs - x) <= reach) for y, x in path])
        caption = f"a {colour} {kind} moves"
    track = depth.round()
    return Scene(_to_rgb(track, chroma), caption, track.astype(np.uint8), shapes, hidden, f"scene {seed}")


def luma(clip: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Depth as read from a clip uint8 [..., 3]: float64 [...], from 0 to 255."""
    levels: NDArray[np.float64] = clip.astype(np.float64) @ _WEIGHTS
    return levels


def _draw_ground(
    rng: np.random.Generator, colour: str, ys: NDArray[np.float64], xs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The chroma of the ground [H, W, 2]: a colour and two waves of random direction."""
    chroma = np.zeros((*ys.shape, 2)) + 0.25 * np.array(COLOURS[colour])
    for channel in range(2):
        angle, phase, turns = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 2)
        along = np.cos(angle) * ys + np.sin(angle) * xs
        chroma[..., channel] += 0.5 * _TEXTURE * np.sin(2 * np.pi * turns * along + phase)
    return chroma


def _draw_path(rng: np.random.Generator, frames: int, side: int, radius: float) -> NDArray[np.float64]:
    """The middle of a shape in each frame [T, 2]: a straight line, reflected at the picture's border."""
    room = side - 2 * radius
    start, speed = rng.uniform(0, room, 2), rng.uniform(-0.035, 0.035, 2) * side
    distance = (start + speed * np.arange(frames)[:, None]) % (2 * room)
    path: NDArray[np.float64] = radius + np.minimum(distance, 2 * room - distance)
    return path


def _mask_shape(kind: str, y: NDArray[np.float64], x: NDArray[np.float64], radius: float) -> NDArray[np.bool_]:
    if kind == "disc":
        mask: NDArray[np.bool_] = y**2 + x**2 <= radius**2
    elif kind == "square":
        mask = np.maximum(abs(y), abs(x)) <= 0.85 * radius
    else:
        mask = abs(y) + abs(x) <= radius
    return mask


def _to_rgb(luma: NDArray[np.float64], chroma: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Luma [...] and chroma [..., 2] as uint8 [..., 3]; colours out of range are made paler until they fit."""
    cb, cr = chroma[..., 0], chroma[..., 1]
    shift = np.stack([1.402 * cr, -0.344136 * cb - 0.714136 * cr, 1.772 * cb], axis=-1)
    over = np.maximum(shift, 0).max(axis=-1), np.maximum(-shift, 0).max(axis=-1)
    room = np.minimum((255 - luma) / np.maximum(over[0], 1e-9), luma / np.maximum(over[1], 1e-9))
    pale = np.minimum(1, room)[..., None]
    pixels: NDArray[np.uint8] = (luma[..., None] + pale * shift).round().clip(0, 255).astype(np.uint8)
    return pixels
