"""Where version 0.1 documented `Stream`; `from training import Stream` is its address now."""

from training.data.stream import Stream

__all__ = ["Stream"]
