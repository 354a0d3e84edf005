"""Setup of every process that works on clips: Ray's actors and the decoders that they start."""

from __future__ import annotations

import os
from contextlib import suppress


def prepare() -> None:
    """Use one OpenCV thread, since there is a worker per core and results must not depend on thread counts; and change
    to a directory that stays.

    Ray may delete the one it set (another node of this machine was lost), and DuckDB ends a process without one.
    """
    # A trainer starts a decoder too, possibly without OpenCV installed.
    with suppress(ModuleNotFoundError):
        import cv2

        cv2.setNumThreads(1)
    os.chdir(os.sep)
