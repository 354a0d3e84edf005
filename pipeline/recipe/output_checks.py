"""Checks the output of annotators and filters against what they declare, because anybody may write one."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from annotators.base import Annotation, Annotator, ClipInput, Filter, Frames, Signal, Value
from pipeline.errors import ClipError, ErrorCode, Failure, attempt
from pipeline.recipe import registry

log = logging.getLogger("vdot_data")

# The Python types of a signal's kind; a whole number is a float too.
_KINDS: dict[str, tuple[type, ...]] = {"float": (float, int), "int": (int,), "str": (str,), "bool": (bool,)}

# The keys that describe the clip in a sample's JSON; an annotator's data may not use these names.
SAMPLE_KEYS = (
    *("clip_id", "frames", "fps", "width", "height", "start_s", "end_s", "source_hash", "lineage"),
    "signals",
)


def annotate_clips(annotator: Annotator, clips: Sequence[ClipInput]) -> list[Annotation | Failure]:
    """An annotator's result for each of these clips, which one call takes, or why there is none."""
    annotations: Sequence[Annotation | None] = [None] * len(clips)
    if len(clips) > 1:
        frozen = [replace(clip, frames=_freeze(clip.frames)) for clip in clips]
        together = attempt(ErrorCode.ANNOTATOR_ERROR, lambda: [*annotator.annotate_clips(frozen)])
        if isinstance(together, Failure):
            # At which clip cannot be known: each gets a call of its own.
            log.warning("%s failed with %d clips at once: %s", annotator.name, len(clips), together.detail)
        elif len(together) != len(clips):
            error = _contract_error(annotator, f"gave {len(together)} annotations for {len(clips)} clips")
            return [Failure(error.code, error.detail)] * len(clips)
        else:
            annotations = together
    return [
        attempt(ErrorCode.ANNOTATOR_ERROR, partial(annotate, annotator, clip, annotation))
        for clip, annotation in zip(clips, annotations, strict=True)
    ]


def annotate(annotator: Annotator, clip: ClipInput, annotation: Annotation | None = None) -> Annotation:
    """An annotator's result for one clip; `annotation`, if it is there already.

    Raises what the annotator raises, and `ClipError` (ANNOTATOR_ERROR) if the result is not what it declares.
    """
    frames = clip.frames
    if annotation is None:
        annotation = annotator(_freeze(frames), clip.fps, **clip.needs)
    if set(annotation.tracks) != set(annotator.tracks):
        raise _contract_error(
            annotator, f"gave the tracks {sorted(annotation.tracks)}, and declares {sorted(annotator.tracks)}"
        )
    for name, track in annotation.tracks.items():
        if track.shape != frames.shape or track.dtype != np.uint8:
            detail = f"gave a track {name} of {track.dtype} {track.shape}; the clip is uint8 {frames.shape}"
            raise _contract_error(annotator, detail)
    if not set(annotation.pictures) <= set(registry.declare(annotator).pictures):
        declared = sorted(registry.declare(annotator).pictures)
        raise _contract_error(annotator, f"gave the pictures {sorted(annotation.pictures)}, and declares {declared}")
    for name, pictures in annotation.pictures.items():
        for picture in pictures:
            if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or not picture.size:
                raise _contract_error(
                    annotator, f"gave a picture {name} of {picture.dtype} {picture.shape}, not uint8 RGB"
                )
    if set(annotation.files) != set(registry.declare(annotator).files):
        declared = sorted(registry.declare(annotator).files)
        raise _contract_error(annotator, f"gave the files {sorted(annotation.files)}, and declares {declared}")
    for name, data in annotation.files.items():
        if not isinstance(data, bytes) or not data:
            raise _contract_error(
                annotator, f"gave {type(data).__name__} for the file {name}, or nothing in it, not bytes"
            )
    if registry.declare(annotator).caption and not (isinstance(annotation.caption, str) and annotation.caption.strip()):
        raise _contract_error(annotator, f"gave {annotation.caption!r} for a caption, and declares to write captions")
    if not registry.declare(annotator).caption and annotation.caption is not None:
        raise _contract_error(annotator, "gave a caption, and does not declare to write any")
    annotation.signals = _check_signals(annotator, annotator.signals, annotation.signals)
    return annotation


def measure(filter_: Filter, frames: Frames, fps: float) -> dict[str, Value]:
    """A filter's signals of one clip. Raises `ClipError` (ANNOTATOR_ERROR) if it raises anything or its result is not
    what it declares."""
    signals = attempt(ErrorCode.ANNOTATOR_ERROR, lambda: filter_(_freeze(frames), fps))
    if isinstance(signals, Failure):
        raise ClipError(signals.code, f"{filter_.name}: {signals.detail}")
    return _check_signals(filter_, filter_.signals, signals)


def _freeze(frames: Frames) -> Frames:
    """A read-only view of the frames: the next filter or annotator reads them too."""
    view = frames.view()
    view.flags.writeable = False
    return view


def _check_signals(
    owner: Annotator | Filter, declared: Mapping[str, Signal], signals: Mapping[str, Any]
) -> dict[str, Value]:
    """The signals as declared, with Python's numbers in place of numpy's."""
    if not isinstance(signals, Mapping) or set(signals) != set(declared):
        names = sorted(signals) if isinstance(signals, Mapping) else signals
        raise _contract_error(owner, f"gave the signals {names}, and declares {sorted(declared)}")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in signals.items()}
    for name, value in plain.items():
        kind = declared[name].kind
        wrong = not isinstance(value, _KINDS[kind]) or (isinstance(value, bool) and kind != "bool")
        # NaN is a failed measurement, and in a rule every number would be below it.
        if value is not None and (wrong or (isinstance(value, float) and not math.isfinite(value))):
            raise _contract_error(owner, f"gave {value!r} for the signal {name}, which is a {kind}")
    return plain


def _contract_error(owner: Annotator | Filter, sentence: str) -> ClipError:
    return ClipError(ErrorCode.ANNOTATOR_ERROR, f"{owner.name} {sentence}")
