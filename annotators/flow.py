"""Measures optical flow, and draws it as a track for models that are steered by motion."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, Frames, Signal
from annotators.motion.dis_flow import Dis, to_grey
from annotators.opencv import cv2

Floats = NDArray[np.float32]

# Segments of the Middlebury colour wheel (Baker et al., "A Database and Evaluation Methodology for Optical
# Flow", 2007), as RAFT's flow_viz and torchvision's flow_to_image have it: how many colours lie between red,
# yellow, green, cyan, blue, magenta and red again.
_WHEEL_SEGMENTS = (15, 6, 4, 11, 13, 6)
# The scale leaves out one pixel in a thousand: flow has outliers where things appear and vanish.
_SCALE_PERCENTILE = 99.9
# With a smaller scale, in pixels, the noise of a clip without motion would fill the wheel.
_MIN_SCALE = 1.0
# Every fourth pixel of every fourth row is enough for a percentile.
_SCALE_STEP = 4
# The motion signal averages the flow over blocks of this side first; see `Flow`.
_BLOCK = 16
# Resolution of the encoding table along each axis, from no motion to the scale; of the decoding table, in a full
# turn.
_ENCODE_STEPS = 512
_DECODE_STEPS = 7200


class Flow(Annotator):
    """Measures the motion between frames (signal `motion`) and paints it (track `flow`).

    The optical flow (`Dis`) goes from frame k-1 to frame k. Frame k of the track shows it at the pixels of
    frame k-1; frame 0 repeats frame 1, as VACE's flow annotator does.

    The colours are those of `flow_to_image`: white is no motion, the hue its direction and the saturation its
    length relative to a scale. But there is one scale for a whole clip, so that the track does not flicker: the
    99.9th percentile of the flow's length over the clip, and at least 1 px; longer flow is drawn as long as the
    scale. It is kept as data["flow"] = {"scale": px}, with which `decode_flow` turns colours back into
    motion.

    `motion` is the mean over pairs of frames and over blocks of 16x16 pixels of the length of a block's mean
    flow, in pixels of the clip. Noise has no common direction in a block, and a few outliers carry little
    weight in it.
    """

    name: ClassVar[str] = "flow"
    version: ClassVar[str] = "dis-medium-1"
    tracks: ClassVar[tuple[str, ...]] = ("flow",)
    signals: ClassVar[Mapping[str, Signal]] = {
        "motion": Signal("px/frame", "How far the picture moves from frame to frame: mean over 16x16 blocks.")
    }

    def __init__(self) -> None:
        """Make the estimator; it keeps nothing from one pair of frames to the next."""
        self._dis = Dis()

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Measure one clip: `frames` uint8 [T, H, W, 3] RGB, T at least 2; `fps` is not used.

        Raises ValueError if there is only one frame.
        """
        if len(frames) < 2:
            raise ValueError("flow needs two frames at least")
        _, height, width, _ = frames.shape
        # Half precision: the flow of a whole clip waits for its scale, and 0.1 % is finer than DIS is.
        flows = np.empty((len(frames) - 1, height, width, 2), np.float16)
        blocks = (max(width // _BLOCK, 1), max(height // _BLOCK, 1))
        lengths = []
        previous = to_grey(frames[0])
        for k in range(1, len(frames)):
            current = to_grey(frames[k])
            displacement = self._dis(previous, current)
            flows[k - 1] = displacement
            lengths.append(
                np.linalg.norm(cv2.resize(displacement, blocks, interpolation=cv2.INTER_AREA), axis=-1).mean()
            )
            previous = current
        sample = flows[:, ::_SCALE_STEP, ::_SCALE_STEP].astype(np.float32)
        scale = max(float(np.percentile(np.linalg.norm(sample, axis=-1), _SCALE_PERCENTILE)), _MIN_SCALE)
        pictures = np.empty_like(frames)
        for picture, flow in zip(pictures[1:], flows, strict=True):
            picture[:] = encode_flow(flow.astype(np.float32), scale)
        pictures[0] = pictures[1]
        return Annotation(
            tracks={"flow": pictures},
            signals={"motion": float(np.mean(lengths))},
            data={"flow": {"scale": scale}},
        )


def encode_flow(flow: Floats, scale: float) -> NDArray[np.uint8]:
    """Paint flow (float32 [..., 2], x and y in pixels) as RGB (uint8 [..., 3]), fully saturated at `scale`.

    Flow longer than the scale keeps its direction and is painted as long as the scale.
    """
    x, y = flow.reshape(-1, 2).T
    steps_per_px = _ENCODE_STEPS / np.maximum(np.sqrt(x * x + y * y), np.float32(scale))
    column, row = ((component * steps_per_px + (_ENCODE_STEPS + 0.5)).astype(np.int32) for component in (x, y))
    painted = _ENCODING.take(row * (2 * _ENCODE_STEPS + 1) + column).view(np.uint8)
    return painted.reshape(*flow.shape[:-1], 4)[..., :3]


def decode_flow(rgb: NDArray[np.uint8], scale: float) -> Floats:
    """The flow (float32 [..., 2], pixels) that `encode_flow`, given the same scale, painted as `rgb`.

    rgb: uint8 [..., 3].

    Exact but for rounding: on the wheel's rim one channel is always full and one empty, so hue and chroma of
    the HSV model give the place on the wheel and the distance from its white centre, whatever a codec did to
    the brightness.
    """
    picture = rgb.reshape(-1, 1, 3).astype(np.float32) / 255
    hue, saturation, value = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV))
    direction = _DECODING[np.rint(hue[:, 0] * (_DECODE_STEPS / 360)).astype(np.int32)]
    decoded: Floats = direction * (saturation * value * np.float32(scale))
    return decoded.reshape(*rgb.shape[:-1], 2)


def _make_wheel() -> Floats:
    """The 55 colours of the wheel's rim, float32 [55, 3], 0 to 255."""
    corners = np.array([(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1), (1, 0, 0)])
    ramps = [
        start + (end - start) * np.arange(count)[:, None] / count
        for (start, end), count in zip(pairwise(corners), _WHEEL_SEGMENTS, strict=True)
    ]
    return np.round(np.concatenate(ramps) * 255).astype(np.float32)


def _make_encoding_table() -> NDArray[np.uint32]:
    """The colours of all flows on a square lattice of +-_ENCODE_STEPS steps, row by row.

    uint32 [(2 * steps + 1)^2]: one colour is the bytes red, green, blue, 0, because four bytes are looked up
    faster than three.
    """
    wheel = _make_wheel()
    y, x = np.mgrid[-1 : 1 : (2 * _ENCODE_STEPS + 1) * 1j, -1 : 1 : (2 * _ENCODE_STEPS + 1) * 1j]
    place = (np.arctan2(-y, -x) / np.pi + 1) / 2 * (len(wheel) - 1)
    first = np.floor(place).astype(np.int32)
    fraction = (place - first)[..., None]
    rim = wheel[first] * (1 - fraction) + wheel[(first + 1) % len(wheel)] * fraction
    colours = 255 - np.hypot(x, y).clip(max=1)[..., None] * (255 - rim)
    table = np.zeros((colours[..., 0].size, 4), np.uint8)
    table[:, :3] = np.rint(colours).reshape(-1, 3)
    return table.view(np.uint32)[:, 0]


def _make_decoding_table() -> Floats:
    """The direction of flow for hues from 0 to 360 degrees, float32 [_DECODE_STEPS + 1, 2], of length 1."""
    corners = np.concatenate([[0], np.cumsum(_WHEEL_SEGMENTS)])
    hue = np.linspace(0, 360, _DECODE_STEPS + 1)
    place = np.interp(hue, np.arange(7) * 60, corners)
    angle = (place / (corners[-1] - 1) * 2 - 1) * np.pi
    return -np.stack([np.cos(angle), np.sin(angle)], axis=-1).astype(np.float32)


_ENCODING = _make_encoding_table()
_DECODING = _make_decoding_table()
