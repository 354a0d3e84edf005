"""Warps maps along the optical flow, so that an expensive network need not see every frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotators.base import Picture
from annotators.motion.dis_flow import Dis, to_grey
from annotators.opencv import cv2

Floats = NDArray[np.float32]


class FlowWarper:
    """The optical flow of one clip, which warps maps from one frame to another.

    Flow is computed when it is needed, and the displacements are kept.
    """

    def __init__(self, frames: list[Picture]) -> None:
        """`frames`: uint8 [H, W, 3] RGB each."""
        height, width = frames[0].shape[:2]
        self._pictures = [to_grey(frame) for frame in frames]
        self._dis = Dis()
        self._positions: Floats = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        self._displacements: dict[tuple[int, int], Floats] = {}

    def warp(self, values: Floats, source: int, target: int) -> Floats:
        """Warp float32 [H, W] or [H, W, C] from frame `source` to frame `target`."""
        positions = self._positions + self.displacement(target, source)
        warped: Floats = cv2.remap(values, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return warped

    def displacement(self, source: int, target: int) -> Floats:
        """How far each pixel of `source` moves until `target`: float32 [H, W, 2]."""
        if source == target:
            return np.zeros_like(self._positions)
        if (source, target) not in self._displacements:
            towards = source + (1 if target > source else -1)
            displacement = self._dis(self._pictures[source], self._pictures[towards])
            if towards != target:
                # The first step, plus the displacement from where it leads.
                remaining = self.displacement(towards, target)
                displacement += cv2.remap(
                    remaining, self._positions + displacement, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
                )
            self._displacements[source, target] = displacement
        return self._displacements[source, target]
