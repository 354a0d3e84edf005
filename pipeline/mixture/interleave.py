"""Which participant has its turn at any step of an endless run: shares are exact, and no step needs earlier ones.

Step i falls on the point (a i + b) mod 2^64 of a circle, of which each participant owns an arc as long as its share.
With `a` nearest to the golden section the points are as evenly spread as they can be (Weyl's sequence; the
three-distance theorem), so that among any N steps a participant's number differs from its share by O(log N), where a
random draw's would by O(sqrt N). How many of the first N points lie on an arc is a sum of floors, computed in
O(log N) steps.

Such even points recur: every 5th, 8th or 13th lies near the last one, and a trainer that does something every 5th step
would do it for the same participant many times. So the steps of each block of 256 are shuffled.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

from pipeline.mixture.shuffle import permutation

_CIRCLE = 1 << 64
# 2^64 over the golden ratio, made odd: no point repeats within 2^64 steps.
_TURN = 0x9E3779B97F4A7C15
_BLOCK = 256


class Interleaving:
    """A sequence of participants 0, 1, ..., each as frequent as its share (to 2^-64) and evenly spread."""

    def __init__(self, weights: Sequence[Fraction], seed: int) -> None:
        """`weights` above 0, which need not sum to 1; `seed` decides where on the circle the sequence begins."""
        total = sum(weights)
        self._ends = [_CIRCLE * cumulative // total for cumulative in accumulate(weights)]
        self._key = f"interleaving {seed}"
        self._start = int.from_bytes(hashlib.sha256(self._key.encode()).digest()[:8])
        self._last: tuple[int, list[int]] = (-1, [])

    def at(self, step: int) -> int:
        """The participant whose turn step `step` is, counted from 0."""
        block, offset = divmod(step, _BLOCK)
        return self._block_turns(block)[offset]

    def count(self, participant: int, steps: int) -> int:
        """How many of the first `steps` steps are this participant's."""
        block, offset = divmod(steps, _BLOCK)
        block_start, arc_start = block * _BLOCK, self._ends[participant - 1] if participant else 0
        before = self._count_below(self._ends[participant], block_start) - self._count_below(arc_start, block_start)
        return before + self._block_turns(block)[:offset].count(participant)

    def _block_turns(self, number: int) -> list[int]:
        """The participants of the steps of a block."""
        if self._last[0] != number:
            steps = (number * _BLOCK + int(index) for index in permutation(f"{self._key} block {number}", _BLOCK))
            turns = [bisect_right(self._ends, (_TURN * step + self._start) % _CIRCLE) for step in steps]
            self._last = number, turns
        return self._last[1]

    def _count_below(self, point: int, steps: int) -> int:
        """How many of the first `steps` points lie below `point`: the floor of (x + circle - point) / circle is one
        more than that of x / circle wherever x mod circle is not below it."""
        upper = floor_sum(steps, _CIRCLE, _TURN, self._start + _CIRCLE - point)
        return steps - (upper - floor_sum(steps, _CIRCLE, _TURN, self._start))


def floor_sum(count: int, divisor: int, slope: int, offset: int) -> int:
    """The sum of (slope i + offset) // divisor over i = 0 .. count - 1; all of them at least 0, divisor at least 1.

    Euclid's algorithm on slope and divisor, with the lattice points under the line counted along the other axis
    in each round (Graham, Knuth, Patashnik: Concrete Mathematics, section 3.5).
    """
    total = 0
    while count > 0:
        quotient, slope = divmod(slope, divisor)
        total += quotient * (count * (count - 1) // 2)
        quotient, offset = divmod(offset, divisor)
        total += quotient * count
        top = slope * count + offset
        count, offset = divmod(top, divisor)
        divisor, slope = slope, divisor
    return total
