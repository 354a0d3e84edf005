"""What every process that works on clips sets up before it begins: Ray's actors and the decoders that they start."""

from __future__ import annotations

import os
from contextlib import suppress


def prepare() -> None:
    """One OpenCV thread, since there is a worker per core and results must not depend on thread counts; and a current
    directory that stays.

    Ray may delete the one it gave (another node of this machine was lost), and where there is none DuckDB ends the
    process.
    """
    # A trainer starts a decoder too, and where it does there need be no OpenCV.
    with suppress(ModuleNotFoundError):
        import cv2

        cv2.setNumThreads(1)
    os.chdir(os.sep)
