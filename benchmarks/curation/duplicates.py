"""How fast `dedup` compares: random unit vectors in a file mapped to memory, each with each."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from annotators.networks.picture_embedding import SIZE
from pipeline.curation.dedup import THRESHOLD
from pipeline.curation.similarity import BLOCK, near


def measure(clips: int) -> dict[str, float]:
    """Pairs a second for so many clips, and what that makes for a million."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        vectors = np.memmap(Path(folder, "vectors"), np.float16, "w+", shape=(clips, SIZE))
        for start in range(0, clips, BLOCK):
            rows = rng.standard_normal((min(BLOCK, clips - start), SIZE))
            vectors[start : start + BLOCK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        started = time.monotonic()
        pairs = sum(compared for compared, _ in near(vectors, np.arange(clips), THRESHOLD))
        seconds = time.monotonic() - started
    rate = pairs / seconds
    return {"pairs": pairs, "seconds": seconds, "pairs_per_s": rate, "hours_for_a_million": 1e12 / 2 / rate / 3600}
