"""OpenCV, loaded when its first function is called.

Readers of a dataset import annotators and filters for their signals; they do not need OpenCV, which only the `ingest`
extra installs.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _OpenCV:
    """Stands for the module `cv2`. Its attributes raise `ModuleNotFoundError` where OpenCV is not installed."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module("cv2"), name)
        # Set as an attribute, so that the next access does not come here.
        setattr(self, name, value)
        return value


cv2: Any = _OpenCV()
