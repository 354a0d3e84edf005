"""Chooses the sources that a mixture holds out for tests, so that neither they nor copies of them are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def choose_held_out(pairs: Iterable[tuple[str, str]], sources: Iterable[str], share: float, seed: int) -> set[str]:
    """Choose about `share` of `sources`; those that a group of near duplicates joins stay together.

    `pairs`: (source, group), of these sources and of others that may connect them. A family is held out when any of
    its sources is drawn: so a source stays held out when copies of it arrive, and a model is never trained on what an
    earlier one was tested with.
    """
    candidates = list(sources)
    family_of = find_families([*pairs, *((source, None) for source in candidates)])
    drawn = {family for source, family in family_of.items() if _draw_number(seed, source) < share}
    return {source for source in candidates if family_of[source] in drawn}


def find_families(pairs: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Each source -> the smallest source that a chain of near duplicates connects it to. Pairs: (source, group)."""
    # A union-find over (0, source) and (1, group), so that a source comes before any group.
    parent: dict[tuple[int, str], tuple[int, str]] = {}

    def root(node: tuple[int, str]) -> tuple[int, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = node = parent[parent[node]]
        return node

    sources = set()
    for source, group in pairs:
        sources.add(source)
        first, second = root((0, source)), root((1, group) if group else (0, source))
        parent[max(first, second)] = min(first, second)
    return {source: root((0, source))[1] for source in sources}


def _draw_number(seed: int, key: str) -> float:
    """A number from 0 to 1 that follows from the seed and the key alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8]) / 2**64
