"""A stand-in for the coordinator in tests without a cluster: every attempt is the first, every content is unique."""

from __future__ import annotations

from pipeline.attempts import Attempts, Permission


class FirstAttempts(Attempts):
    """The attempts of a run in which no worker dies."""

    def begin(self, unit: str, together: bool = False) -> Permission:
        return Permission.GO

    def is_suspect(self, unit: str) -> bool:
        return False

    def end(self, unit: str) -> None:
        pass

    def claim(self, content: str, uri: str) -> str:
        return uri
