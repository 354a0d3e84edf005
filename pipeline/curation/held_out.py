"""Which sources a mixture keeps back for tests, so that nothing of them, and no copy of them, is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def held_out(pairs: Iterable[tuple[str, str]], sources: Iterable[str], share: float, seed: int) -> set[str]:
    """About `share` of `sources`; what is joined by a group of near duplicates stays together.

    `pairs`: (source, group), of these sources and of others that may connect them. A family is held out when any of
    its sources is drawn: so a source that was held out stays so when copies of it come, and a model is never trained on
    what an earlier one was tested with.
    """
    wanted = list(sources)
    found = families([*pairs, *((source, None) for source in wanted)])
    out = {family for source, family in found.items() if _chance(seed, source) < share}
    return {source for source in wanted if found[source] in out}


def families(pairs: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Each source -> the smallest source that a chain of near duplicates connects it with. Pairs: (source, group)."""
    # A union-find over (0, source) and (1, group), so that a source comes before any group.
    above: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        while above.setdefault(node, node) != node:
            above[node] = node = above[above[node]]
        return node

    sources = set()
    for source, group in pairs:
        sources.add(source)
        one, other = root((0, source)), root((1, group) if group else (0, source))
        above[max(one, other)] = min(one, other)
    return {source: root((0, source))[1] for source in sources}


def _chance(seed: int, key: str) -> float:
    """A number from 0 to 1 that follows from the seed and the key alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8]) / 2**64
