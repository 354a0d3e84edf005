"""OpenCV, loaded when its first function is called.

What an annotator or a filter measures is part of every dataset; to read it takes no OpenCV, which comes with the
`ingest` extra alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _OpenCV:
    """Stands for the module `cv2`. Its attributes raise `ModuleNotFoundError` where OpenCV is not installed."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module("cv2"), name)
        # Asked for once: from now on it is found without coming here.
        setattr(self, name, value)
        return value


cv2: Any = _OpenCV()
