"""The order of a bucket's clips in one pass over them: well mixed, yet near each other on disk.

Shards come in random order, and clips in random order within windows of whole shards: any stretch of a pass reads from
the shards of one window or two, however large the dataset is. A clip's place is computed without those before it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.random import Philox

from pipeline.mixture.arrow_arrays import Numbers

WINDOW = 4096
"""The least number of clips of a bucket that are mixed with each other."""


class Shuffle:
    """Random orders of the clips of one bucket, a different one for each pass."""

    def __init__(self, shards: Numbers, key: str, window: int = WINDOW) -> None:
        """`shards`: the shard of each clip, int64 [N], rising. The order depends only on these and `key`."""
        _, starts, self._sizes = np.unique(shards, return_index=True, return_counts=True)
        self._starts = starts.astype(np.int64)
        self._key, self._window = key, window
        self._pass, self._clips = -1, np.empty(0, np.int64)
        # Where the window of the last call begins and ends.
        self._begin = self._end = 0

    def at(self, pass_index: int, place: int) -> int:
        """The clip at `place` (0 .. N - 1) in pass `pass_index`."""
        if pass_index != self._pass:
            self._order = permutation(f"{self._key} pass {pass_index}", len(self._sizes))
            positions = np.concatenate([[0], np.cumsum(self._sizes[self._order])])
            # A window begins with the shard in which the next multiple of its size lies.
            firsts = np.flatnonzero(np.diff(positions[:-1] // self._window, prepend=-1))
            self._firsts = np.append(firsts, len(self._sizes))
            self._begins = positions[self._firsts]
            self._pass, self._begin, self._end = pass_index, 0, 0
        if not self._begin <= place < self._end:
            window = int(np.searchsorted(self._begins, place, side="right")) - 1
            shards = self._order[self._firsts[window] : self._firsts[window + 1]]
            clips = np.concatenate([self._starts[shard] + np.arange(self._sizes[shard]) for shard in shards])
            self._clips = clips[permutation(f"{self._key} pass {pass_index} window {window}", len(clips))]
            self._begin = int(self._begins[window])
            self._end = self._begin + len(clips)
        return int(self._clips[place - self._begin])


def permutation(key: str, size: int) -> Numbers:
    """A random order of 0 .. size - 1. numpy guarantees that the bits of Philox stay the same; its own shuffling
    may change in a later version, and is not used."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:16])
    return np.argsort(Philox(key=seed).random_raw(size), kind="stable").astype(np.int64)
