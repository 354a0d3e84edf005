"""Training: from shards to a few-step student. Importing this package needs neither Ray nor the video pipeline.

`Stream` yields micro-batches of a mixture, `vcu` builds VACE's conditions from them, `StoredSteps` is a student's
scheduler for diffusers' pipelines. Each is imported on first use, because only the stream works without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.data.stream import Stream
    from training.encoding import vcu
    from training.sampling.diffusers_scheduler import StoredSteps

__all__ = ["StoredSteps", "Stream", "vcu"]

_MODULES = {"Stream": "training.data.stream", "StoredSteps": "training.sampling.diffusers_scheduler"}


def __getattr__(name: str) -> Any:
    if name == "vcu":
        return import_module("training.encoding.vcu")
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
