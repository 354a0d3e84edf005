"""The protocol by which a stage counts its attempts, so that no source or clip takes down one worker after another."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol

from pipeline.errors import ErrorCode, Failure


class Permission(StrEnum):
    """Whether a worker may begin a unit of work."""

    GO = "go"
    # The run is ending.
    STOP = "stop"
    # Every attempt so far ended with the worker's death.
    DEAD = "dead"


class Attempts(Protocol):
    """Counts attempts across all workers of a run, and knows which source holds which content."""

    def begin(self, unit: str, together: bool = False) -> Permission:
        """Whether to work on a unit: a source, or a clip in a stage. If the worker dies, that counts against the unit,
        unless it was begun `together` with others: then it only becomes a suspect."""
        ...

    def is_suspect(self, unit: str) -> bool:
        """Whether a worker died while it was at a unit, alone or together with others."""
        ...

    def end(self, unit: str) -> None:
        """Record that work on the unit ended."""
        ...

    def claim(self, content: str, uri: str) -> str:
        """The URI that holds this content, by its hash: `uri` itself unless another one came first."""
        ...


def describe_deaths(action: str) -> Failure:
    """The failure of a unit that is `Permission.DEAD`; `action` is what its workers did, as in "cut this source"."""
    return Failure(ErrorCode.WORKER_DIED, f"every worker died while it {action}")
