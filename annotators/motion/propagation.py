"""Maps carried along the optical flow, so that a dear network need not look at every frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from annotators.base import Picture
from annotators.motion.dis_flow import Dis, grey
from annotators.opencv import cv2

Floats = NDArray[np.float32]


class Carrier:
    """The flow of one clip, frame by frame, and what it carries from one frame to another.

    The flow is measured where it is asked for, and the ways that were asked for are kept.
    """

    def __init__(self, frames: list[Picture]) -> None:
        """`frames`: uint8 [H, W, 3] RGB each."""
        height, width = frames[0].shape[:2]
        self._grey = [grey(frame) for frame in frames]
        self._dis = Dis()
        self._here: Floats = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
        self._ways: dict[tuple[int, int], Floats] = {}

    def carry(self, values: Floats, there: int, here: int) -> Floats:
        """float32 [H, W] or [H, W, C] of frame `there` as it lies in frame `here`."""
        where = self._here + self.way(here, there)
        carried: Floats = cv2.remap(values, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return carried

    def way(self, here: int, there: int) -> Floats:
        """Where each pixel of `here` lies in `there`, less its own place: float32 [H, W, 2]."""
        if here == there:
            return np.zeros_like(self._here)
        if (here, there) not in self._ways:
            towards = here + (1 if there > here else -1)
            way = self._dis(self._grey[here], self._grey[towards])
            if towards != there:
                # A pixel's way is its first step, and the way on from where that leads.
                onward = self.way(towards, there)
                way += cv2.remap(onward, self._here + way, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
            self._ways[here, there] = way
        return self._ways[here, there]
