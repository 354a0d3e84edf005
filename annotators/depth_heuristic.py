"""Estimates depth by rules of thumb, to try a depth pipeline where no depth network is available."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, Frames, Picture, Signal
from annotators.motion.propagation import FlowWarper
from annotators.opencv import cv2

Floats = NDArray[np.float32]

# The longer side at which depth is estimated, in pixels: it is smooth.
_SIDE = 192
# The weights of haze and parallax against a pixel's height in the picture; parallax counts in proportion to the
# camera's motion, fully where the picture's median motion is this share of its diagonal a frame.
_HAZE, _PARALLAX, _MOVES = 0.25, 0.35, 0.004
# The window of the dark channel, and the radius and the regularisation of the guided filter (luma from 0 to 1).
_DARK, _RADIUS, _SMOOTH = 7, 8, 1e-3
# The deviation in frames of the smoothing in time, and the percentiles that become black and white.
_TIME, _RANGE = 2.0, (1, 99)


class DepthHeuristic(Annotator):
    """Nearness (white is near) from height in the picture, haze, parallax and where the subject stands.

    Lower pixels are nearer; a bright dark channel means far (He, Sun and Tang, "Single Image Haze Removal Using
    Dark Channel Prior", CVPR 2009); under a moving camera, faster pixels are nearer; a subject is as near as the
    ground below it. Smoothed along edges (He, Sun and Tang, "Guided Image Filtering", 2010) and in time, and stretched
    to one range for the whole clip. No scale, and often wrong: `depth_method` says so in the catalog.
    """

    name: ClassVar[str] = "depth_heuristic"
    version: ClassVar[str] = "1"
    tracks: ClassVar[tuple[str, ...]] = ("depth",)
    needs: ClassVar[tuple[str, ...]] = ("mask",)
    signals: ClassVar[Mapping[str, Signal]] = {
        "depth_method": Signal("", "what made the depth track: heuristic, or the model's name", "str")
    }

    def __call__(self, frames: Frames, fps: float, *, mask: Frames) -> Annotation:
        """Estimate one clip's depth: `frames` and `mask` uint8 [T, H, W, 3] RGB; `fps` is not used."""
        scale = min(1.0, _SIDE / max(frames.shape[1:3]))
        small_frames = [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
        size = small_frames[0].shape[1::-1]
        subjects = [cv2.resize(frame[..., 0], size, interpolation=cv2.INTER_AREA) >= 128 for frame in mask]
        warper = FlowWarper(small_frames)
        near = np.stack(
            [
                _estimate_nearness(frame, subject, _measure_speed(warper, k, len(small_frames)))
                for k, (frame, subject) in enumerate(zip(small_frames, subjects, strict=True))
            ]
        )
        near = _smooth_in_time(near)
        low, high = np.percentile(near, _RANGE)
        levels = np.clip((near - low) / max(float(high - low), 1e-6) * 255, 0, 255)
        track = np.empty_like(frames)
        for picture, level in zip(track, levels, strict=True):
            resized = cv2.resize(level, frames.shape[2:0:-1], interpolation=cv2.INTER_LINEAR)
            picture[:] = resized.round()[..., None]
        return Annotation(tracks={"depth": track}, signals={"depth_method": "heuristic"})


def _measure_speed(warper: FlowWarper, number: int, frames: int) -> Floats:
    """How far each pixel moves from this frame to a neighbour: float32 [H, W]; zeros in a clip of one frame."""
    neighbour = number - 1 if number else min(1, frames - 1)
    speed: Floats = np.linalg.norm(warper.displacement(number, neighbour), axis=-1)
    return speed


def _estimate_nearness(frame: Picture, subject: NDArray[np.bool_], speed: Floats) -> Floats:
    """Nearness of one frame's pixels, about 0 to 1: float32 [H, W]."""
    height, width = subject.shape
    row = np.repeat(np.linspace(0, 1, height, dtype=np.float32)[:, None], width, axis=1)
    dark_channel = cv2.erode(frame.min(axis=-1), np.ones((_DARK, _DARK), np.uint8)).astype(np.float32) / 255
    relative_motion = float(np.median(speed)) / float(np.hypot(height, width)) / _MOVES
    parallax = _PARALLAX * min(relative_motion, 1.0)
    order = speed / max(float(np.percentile(speed, 98)), 1e-6)
    near = (1 - _HAZE - parallax) * row + _HAZE * (1 - dark_channel) + parallax * order.clip(0, 1)
    ground = near.copy()
    count, parts, stats, _ = cv2.connectedComponentsWithStats(subject.astype(np.uint8))
    for part in range(1, count):
        bottom = stats[part, cv2.CC_STAT_TOP] + stats[part, cv2.CC_STAT_HEIGHT] - 1
        in_part = parts == part
        # A subject cut off by the bottom edge stands nearer than anything visible.
        near[in_part] = np.median(ground[bottom, in_part[bottom]]) + (0.1 if bottom == height - 1 else 0.0)
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return _guided_filter(near.astype(np.float32), grey.astype(np.float32))


def _guided_filter(values: Floats, guide: Floats) -> Floats:
    """The guided filter with a grey guide: float32 [H, W] both."""

    def mean(image: Floats) -> Floats:
        blurred: Floats = cv2.blur(image, (2 * _RADIUS + 1, 2 * _RADIUS + 1))
        return blurred

    centre, level = mean(guide), mean(values)
    spread = mean(guide * guide) - centre * centre
    slope = ((mean(guide * values) - centre * level) / (spread + _SMOOTH)).astype(np.float32)
    filtered: Floats = mean(slope) * guide + mean(level - slope * centre)
    return filtered


def _smooth_in_time(near: Floats) -> Floats:
    """Smooth in time, symmetrically: float32 [T, H, W]."""
    flat = near.reshape(len(near), -1)
    smoothed: Floats = cv2.GaussianBlur(flat, (1, 0), sigmaX=1e-6, sigmaY=_TIME, borderType=cv2.BORDER_REPLICATE)
    return smoothed.reshape(near.shape)
