"""What annotators and filters give, held against what they promised, because anybody may write one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from annotators.base import Annotation, Annotator, Filter, Frames, Signal, Value
from pipeline.errors import ClipError, ErrorCode, Failure, attempt
from pipeline.recipe import registry

# The Python types of a signal's kind; a whole number is a float too.
_KINDS: dict[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "str": (str,), "bool": (bool,)}

# What a sample's JSON says of the clip; an annotator's data may not bear these names.
SAMPLE_KEYS = (
    *("clip_id", "frames", "fps", "width", "height", "start_s", "end_s", "source_hash", "lineage"),
    "signals",
)


def annotate(annotator: Annotator, frames: Frames, fps: float, needed: Mapping[str, Any]) -> Annotation:
    """An annotator's result for one clip. `needed`: the signals and tracks that it asks for.

    Raises `ClipError` (ANNOTATOR_ERROR) where the result is not what the annotator declares.
    """
    found = annotator(_untouchable(frames), fps, **needed)
    if set(found.tracks) != set(annotator.tracks):
        raise _broken(annotator, f"gave the tracks {sorted(found.tracks)}, and declares {sorted(annotator.tracks)}")
    for name, track in found.tracks.items():
        if track.shape != frames.shape or track.dtype != np.uint8:
            detail = f"gave a track {name} of {track.dtype} {track.shape}; the clip is uint8 {frames.shape}"
            raise _broken(annotator, detail)
    if not set(found.pictures) <= set(registry.pictures(annotator)):
        declared = sorted(registry.pictures(annotator))
        raise _broken(annotator, f"gave the pictures {sorted(found.pictures)}, and declares {declared}")
    for name, pictures in found.pictures.items():
        for picture in pictures:
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
                raise _broken(annotator, f"gave a picture {name} of {picture.dtype} {picture.shape}, not uint8 RGB")
    if set(found.files) != set(registry.files(annotator)):
        declared = sorted(registry.files(annotator))
        raise _broken(annotator, f"gave the files {sorted(found.files)}, and declares {declared}")
    for name, data in found.files.items():
        if not isinstance(data, bytes) or not data:
            raise _broken(annotator, f"gave {type(data).__name__} for the file {name}, or nothing in it, not bytes")
    if registry.captions(annotator) and not (isinstance(found.caption, str) and found.caption.strip()):
        raise _broken(annotator, f"gave {found.caption!r} for a caption, and declares to write captions")
    if not registry.captions(annotator) and found.caption is not None:
        raise _broken(annotator, "gave a caption, and does not declare to write any")
    found.signals = _plain(annotator, annotator.signals, found.signals)
    return found


def measure(one: Filter, frames: Frames, fps: float) -> dict[str, Value]:
    """A filter's signals of one clip. Raises `ClipError` (ANNOTATOR_ERROR) where it raises anything or breaks its
    promise."""
    given = attempt(ErrorCode.ANNOTATOR_ERROR, lambda: one(_untouchable(frames), fps))
    if isinstance(given, Failure):
        raise ClipError(given.code, f"{one.name}: {given.detail}")
    return _plain(one, one.signals, given)


def _untouchable(frames: Frames) -> Frames:
    """The same frames, which nobody can draw into: the next one measures them too."""
    view = frames.view()
    view.flags.writeable = False
    return view


def _plain(owner: Annotator | Filter, declared: Mapping[str, Signal], given: Mapping[str, Any]) -> dict[str, Value]:
    """The signals with Python's numbers for numpy's."""
    if not isinstance(given, Mapping) or set(given) != set(declared):
        names = sorted(given) if isinstance(given, Mapping) else given
        raise _broken(owner, f"gave the signals {names}, and declares {sorted(declared)}")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in given.items()}
    for name, value in plain.items():
        kind = declared[name].kind
        wrong = not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool")
        # Not-a-number is a measurement that failed, and every number would be below it for a rule.
        if value is not None and (wrong or (isinstance(value, float) and not math.isfinite(value))):
            raise _broken(owner, f"gave {value!r} for the signal {name}, which is a {kind}")
    return plain


def _broken(owner: Annotator | Filter, sentence: str) -> ClipError:
    return ClipError(ErrorCode.ANNOTATOR_ERROR, f"{owner.name} {sentence}")
