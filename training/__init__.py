"""From shards to a 4-step student. Importing this room needs neither ray nor a decoder of wild video.

`Stream` hands out micro-batches of a mixture, `vcu` makes VACE's conditions of them, `StoredSteps` is a student's
scheduler for diffusers' pipelines. Each is imported when it is first used, since only the stream works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.stream import Stream
    from training.encoding import vcu
    from training.sampling.diffusers_scheduler import StoredSteps

__all__ = ["StoredSteps", "Stream", "vcu"]

_HOMES = {"Stream": "training.data.stream", "StoredSteps": "training.sampling.diffusers_scheduler"}


def __getattr__(name: str) -> Any:
    if name == "vcu":
        return import_module("training.encoding.vcu")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
