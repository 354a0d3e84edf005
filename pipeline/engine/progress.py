"""How far a run has come, for displays and other watchers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """What a display shows while a run goes on: `finished` of `work` pieces, which are sources, or a layer's clips;
    `clips` settled so far, by status; and how many sources failed."""

    unit: str
    work: int = 0
    finished: int = 0
    clips: Counter[str] = field(default_factory=Counter)
    failed_sources: int = 0
    started: float = field(default_factory=time.monotonic)
    first_start_s: float | None = None
    draining: bool = False


Watcher = Callable[[Progress], None]
"""Called with the progress a few times a second."""
