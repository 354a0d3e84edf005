"""A small actor beside the driver that counts attempts to break crash loops, and finds sources of one content."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from typing import Any

from pipeline.attempts import Attempts, Permission
from pipeline.engine.configured_ray import ray


class Coordinator:
    """Workers tell it what they begin and end. It holds only what is in flight, and one index of contents on disk."""

    def __init__(self, content_index_path: str, max_deaths: int) -> None:
        """`content_index_path`: the SQLite file of content hashes. `max_deaths`: attempts after which a unit is given
        up."""
        self._max_deaths = max_deaths
        self._attempts: Counter[str] = Counter()
        self._together: set[str] = set()
        self._draining = False
        self._first_start_s: float | None = None
        self._index = sqlite3.connect(content_index_path, isolation_level=None)
        self._index.execute("PRAGMA synchronous = OFF")
        self._index.execute("CREATE TABLE IF NOT EXISTS owner (hash TEXT PRIMARY KEY, uri TEXT) WITHOUT ROWID")

    def begin(self, unit: str, together: bool = False) -> Permission:
        """Whether to work on a unit: a source, or a clip in a stage; see `Attempts`."""
        if self._draining:
            return Permission.STOP
        self._first_start_s = self._first_start_s or time.monotonic()
        if together:
            self._together.add(unit)
            return Permission.GO
        self._attempts[unit] += 1
        return Permission.DEAD if self._attempts[unit] > self._max_deaths else Permission.GO

    def is_suspect(self, unit: str) -> bool:
        """Whether a worker died while it was at a unit: work on it was begun and has not ended."""
        return unit in self._together or unit in self._attempts

    def end(self, unit: str) -> None:
        """Record that work on the unit ended."""
        self._attempts.pop(unit, None)
        self._together.discard(unit)

    def add_owners(self, pairs: list[tuple[str, str]]) -> None:
        """Add contents that the catalog already holds: (hash, uri)."""
        self._index.executemany("INSERT OR IGNORE INTO owner VALUES (?, ?)", pairs)

    def claim(self, content: str, uri: str) -> str:
        """The URI that holds this content: `uri` itself unless another one came first."""
        self._index.execute("INSERT OR IGNORE INTO owner VALUES (?, ?)", (content, uri))
        return str(self._index.execute("SELECT uri FROM owner WHERE hash = ?", (content,)).fetchone()[0])

    def begin_round(self) -> None:
        """Begin a round: attempts that were cut off with the last one say nothing about their inputs."""
        self._attempts.clear()
        self._together.clear()

    def drain(self) -> None:
        """Begin nothing new from now on."""
        self._draining = True

    def read_first_start_s(self) -> float | None:
        """When the first worker was ready and began, by this node's monotonic clock."""
        return self._first_start_s


class CoordinatorClient(Attempts):
    """The coordinator as workers call it; every call waits for its answer."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def begin(self, unit: str, together: bool = False) -> Permission:
        return Permission(ray.get(self._handle.begin.remote(unit, together)))

    def is_suspect(self, unit: str) -> bool:
        return bool(ray.get(self._handle.is_suspect.remote(unit)))

    def end(self, unit: str) -> None:
        ray.get(self._handle.end.remote(unit))

    def claim(self, content: str, uri: str) -> str:
        return str(ray.get(self._handle.claim.remote(content, uri)))
