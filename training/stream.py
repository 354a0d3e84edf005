"""The address of `Stream` in version 0.1, kept for compatibility; use `from training import Stream`."""

from training.data.stream import Stream

__all__ = ["Stream"]
