"""The Python API of vdot-data: open a dataset and look at it, stream a mixture, write an annotator or a filter.

    import vdot_data

    dataset = vdot_data.open("demo/out")
    clips = dataset.clips("motion > 2", columns=["clip_id", "caption", "motion"])
    frames = dataset.read(clips["clip_id"][0].as_py()).frames()

Importing it loads neither Ray, DuckDB, OpenCV nor torch: what needs one of them loads it when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from annotators.base import Annotation, Annotator, ClipInput, Filter, Sample, Signal, Weight
from pipeline.errors import ClipError, UsageError
from vdot_data.dataset import Clip, Dataset, open  # noqa: A004 (as xarray and zarr name theirs)

if TYPE_CHECKING:
    from training.data.stream import Stream

__all__ = [
    "Annotation",
    "Annotator",
    "Clip",
    "ClipError",
    "ClipInput",
    "Dataset",
    "Filter",
    "Sample",
    "Signal",
    "Stream",
    "UsageError",
    "Weight",
    "open",
]


def __getattr__(name: str) -> Any:
    if name == "Stream":
        return import_module("training.data.stream").Stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
