"""Error codes, exceptions, and `attempt`, the only place that turns an exception into a code."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

T = TypeVar("T")


class ErrorCode(StrEnum):
    """Why a source or a clip failed; `ADVICE` says what the user can do."""

    SOURCE_UNREADABLE = "SOURCE_UNREADABLE"
    SOURCE_EMPTY = "SOURCE_EMPTY"
    NOT_VIDEO = "NOT_VIDEO"
    DECODE_ERROR = "DECODE_ERROR"
    DECODE_CRASH = "DECODE_CRASH"
    DECODE_TIMEOUT = "DECODE_TIMEOUT"
    ENCODE_ERROR = "ENCODE_ERROR"
    CLIP_DAMAGED = "CLIP_DAMAGED"
    TOO_LARGE = "TOO_LARGE"
    ANNOTATOR_ERROR = "ANNOTATOR_ERROR"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    WORKER_DIED = "WORKER_DIED"
    STORAGE_ERROR = "STORAGE_ERROR"
    RULE_ERROR = "RULE_ERROR"
    INTERNAL_ERROR = "INTERNAL_ERROR"


ADVICE: dict[ErrorCode, str] = {
    ErrorCode.SOURCE_UNREADABLE: "Make the file or URL readable for every worker, then `vdot-data retry`.",
    ErrorCode.SOURCE_EMPTY: "The file has no bytes: fetch it again from its origin.",
    ErrorCode.NOT_VIDEO: "FFmpeg finds no video in it: leave it out, or fetch it again if it should be one.",
    ErrorCode.DECODE_ERROR: "The file is damaged or cut short: fetch it again, or re-encode it with ffmpeg.",
    ErrorCode.DECODE_CRASH: "The decoder died on this file, and on nothing else: re-encode it or leave it out.",
    ErrorCode.DECODE_TIMEOUT: "The decoder made no progress: re-encode the file, or raise `limits.stall_s` and retry.",
    ErrorCode.ENCODE_ERROR: "vdot-data cannot read what it wrote itself, a defect of ours: please report it.",
    ErrorCode.CLIP_DAMAGED: "The stored bytes are damaged: `vdot-data verify --mark-failed`, then `vdot-data retry`.",
    ErrorCode.TOO_LARGE: "Picture or duration is over the recipe's `limits`: raise them if that is meant, and retry.",
    ErrorCode.ANNOTATOR_ERROR: "An annotator or filter failed: `vdot-data explain` shows how; fix it, and retry.",
    ErrorCode.OUT_OF_MEMORY: (
        "A damaged file can ask for any amount of memory: leave it out. If it plays elsewhere, raise "
        "`limits.memory_mb` or give the node more memory, then `vdot-data retry`."
    ),
    ErrorCode.WORKER_DIED: "It took several workers down (often memory): look at the node's log, then retry.",
    ErrorCode.STORAGE_ERROR: "A store or server kept failing: retry later. Or bytes are damaged: `vdot-data verify`.",
    ErrorCode.RULE_ERROR: "A rule cannot take this clip's values: fix it (TRY_CAST), then `vdot-data retry --recipe`.",
    ErrorCode.INTERNAL_ERROR: "A defect of vdot-data: please report it with the text of `vdot-data explain`.",
}

OUR_FAULT = frozenset({ErrorCode.ENCODE_ERROR, ErrorCode.INTERNAL_ERROR})
"""Codes that no file and no user setting can cause: a run that ends with one of them exits with status 1."""


class ClipError(Exception):
    """One source or clip cannot be used; the run continues."""

    def __init__(self, code: ErrorCode, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.code}: {self.detail}"


class RunError(Exception):
    """The run cannot continue; the message is for people. Exit status 1."""


class StoppedError(RunError):
    """Somebody asked the run to stop."""


class UsageError(Exception):
    """The arguments or the recipe are wrong; the message is for people. Exit status 2."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The result of an attempt that failed."""

    code: ErrorCode
    detail: str

    def to_exception(self) -> ClipError:
        """The failure as an exception."""
        return ClipError(self.code, self.detail)


def attempt(default: ErrorCode, work: Callable[[], T]) -> T | Failure:
    """Run `work`: the isolation boundary, and the only place that catches `Exception`.

    An exception without an `ErrorCode` in its `code` gets `default`. `RunError` passes through: it ends the run.
    """
    try:
        return work()
    except RunError:
        raise
    except ClipError as error:
        return Failure(error.code, error.detail)
    except MemoryError as error:
        return Failure(ErrorCode.OUT_OF_MEMORY, str(error) or "out of memory")
    except Exception as error:  # noqa: BLE001
        frame = traceback.extract_tb(error.__traceback__)[-1]
        detail = f"{type(error).__name__}: {error} ({frame.filename.rsplit('/', 2)[-1]}:{frame.lineno})"
        code = getattr(error, "code", None)
        return Failure(ErrorCode(code) if code in set(ErrorCode) else default, detail[:500])


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest of `names`, or all of them if none is near."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), by_lower, 1)
    return (
        f"; did you mean {by_lower[matches[0]]!r}?"
        if matches
        else f"; there are: {', '.join(sorted(by_lower.values()))}"
    )
