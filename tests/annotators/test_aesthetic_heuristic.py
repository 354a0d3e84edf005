"""Tests that the aesthetic heuristic falls with every kind of damage, and stays within its range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotators.aesthetic_heuristic import AestheticHeuristic

FRAMES = np.zeros((2, 16, 16, 3), np.uint8)
FINE: dict[str, Any] = {
    "sharpness": 0.8, "noise": 0.5, "blockiness": 0.0, "luma": 118.0, "contrast": 55.0, "colourfulness": 60.0,
    "subject_area": 0.2, "subject_x": 1 / 3, "subject_y": 0.5,
}  # fmt: skip


def score(**changes: Any) -> float:
    value = AestheticHeuristic()(FRAMES, 16.0, **(FINE | changes)).signals["aesthetic_heuristic"]
    assert isinstance(value, float)
    return value


@pytest.mark.parametrize(
    "damage",
    [
        {"sharpness": 0.3}, {"sharpness": None}, {"noise": 6.0}, {"blockiness": 1.5}, {"luma": 20.0}, {"luma": 235.0},
        {"contrast": 5.0}, {"colourfulness": 3.0}, {"subject_area": 0.001}, {"subject_x": 0.98, "subject_y": 0.98},
        {"subject_area": 0.0, "subject_x": None, "subject_y": None},
    ],
)  # fmt: skip
def test_damage_lowers_it(damage: dict[str, Any]) -> None:
    assert score() > 0.85
    assert score(**damage) < score() - 0.05


@given(
    st.fixed_dictionaries(
        {name: st.floats(0, 300) | (st.none() if name in ("sharpness", "noise", "blockiness") else st.nothing())
         for name in ("sharpness", "noise", "blockiness", "luma", "contrast", "colourfulness")}
        | {name: st.floats(0, 1) for name in ("subject_area", "subject_x", "subject_y")}
    )
)  # fmt: skip
def test_it_is_a_share(values: dict[str, Any]) -> None:
    assert 0 <= score(**values) <= 1
