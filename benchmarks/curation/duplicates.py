"""Measures how fast `dedup` compares: random unit vectors in a memory-mapped file, every pair of them."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from annotators.networks.picture_embedding import SIZE
from pipeline.curation.dedup import THRESHOLD
from pipeline.curation.similarity import BLOCK, find_near_pairs


def measure(clips: int) -> dict[str, float]:
    """Pairs per second for this many clips, and the hours that a million would take."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        vectors = np.memmap(Path(folder, "vectors"), np.float16, "w+", shape=(clips, SIZE))
        for start in range(0, clips, BLOCK):
            rows = rng.standard_normal((min(BLOCK, clips - start), SIZE))
            vectors[start : start + BLOCK] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        started = time.monotonic()
        pairs = sum(compared for compared, _ in find_near_pairs(vectors, np.arange(clips), THRESHOLD))
        seconds = time.monotonic() - started
    rate = pairs / seconds
    return {"pairs": pairs, "seconds": seconds, "pairs_per_s": rate, "hours_for_a_million": 1e12 / 2 / rate / 3600}
