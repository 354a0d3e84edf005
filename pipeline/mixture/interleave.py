"""Whose turn it is at any step of an endless run, so that shares are exact and no step needs those before it.

Step i falls on the point (a i + b) mod 2^64 of a circle, of which each participant owns an arc as long as its share.
With `a` nearest to the golden section the points are as evenly spread as they can be (Weyl's sequence; the
three-distance theorem), so that among any N steps a participant's number differs from its share by O(log N), where a
random draw's would by O(sqrt N). How many of the first N points lie on an arc is a sum of floors, found in O(log N)
steps.

Points that are so even recur: every 5th, 8th or 13th of them lies near the last one, and a trainer that does something
every 5th step would do it for one participant many times over. So the steps of each block of 256 are shuffled.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from pipeline.mixture.shuffle import permutation

_CIRCLE = 1 << 64
# 2^64 over the golden ratio, made odd: no point comes twice in 2^64 steps.
_TURN = 0x9E3779B97F4A7C15
_BLOCK = 256


class Interleaving:
    """A sequence of participants 0, 1, ..., each as frequent as its share (to 2^-64) and evenly spread."""

    def __init__(self, weights: Sequence[Fraction], seed: int) -> None:
        """`weights` above 0, which need not sum to 1; `seed` says where on the circle the sequence begins."""
        whole = sum(weights)
        self._ends = [_CIRCLE * upto // whole for upto in accumulate(weights)]
        self._key = f"interleaving {seed}"
        self._start = int.from_bytes(hashlib.sha256(self._key.encode()).digest()[:8])
        self._last: tuple[int, list[int]] = (-1, [])

    def at(self, step: int) -> int:
        """Whose turn step `step` is, counted from 0."""
        block, within = divmod(step, _BLOCK)
        return self._block(block)[within]

    def count(self, participant: int, steps: int) -> int:
        """How many of the first `steps` steps are this participant's."""
        block, within = divmod(steps, _BLOCK)
        whole, begin = block * _BLOCK, self._ends[participant - 1] if participant else 0
        before = self._below(self._ends[participant], whole) - self._below(begin, whole)
        return before + self._block(block)[:within].count(participant)

    def _block(self, number: int) -> list[int]:
        """Whose turns the steps of a block are."""
        if self._last[0] != number:
            steps = (number * _BLOCK + int(one) for one in permutation(f"{self._key} block {number}", _BLOCK))
            turns = [bisect_right(self._ends, (_TURN * step + self._start) % _CIRCLE) for step in steps]
            self._last = number, turns
        return self._last[1]

    def _below(self, point: int, steps: int) -> int:
        """How many of the first `steps` points lie below `point`: the floor of (x + circle - point) / circle is one
        more than that of x / circle wherever x mod circle is not below it."""
        passed = floor_sum(steps, _CIRCLE, _TURN, self._start + _CIRCLE - point)
        return steps - (passed - floor_sum(steps, _CIRCLE, _TURN, self._start))


def floor_sum(count: int, divisor: int, slope: int, offset: int) -> int:
    """The sum of (slope i + offset) // divisor over i = 0 .. count - 1; all of them at least 0, divisor at least 1.

    Euclid's algorithm on slope and divisor, with the lattice points under the line counted from the other axis in
    each round (Graham, Knuth, Patashnik: Concrete Mathematics, section 3.5).
    """
    total = 0
    while count > 0:
        whole, slope = divmod(slope, divisor)
        total += whole * (count * (count - 1) // 2)
        whole, offset = divmod(offset, divisor)
        total += whole * count
        top = slope * count + offset
        count, offset = divmod(top, divisor)
        divisor, slope = slope, divisor
    return total
