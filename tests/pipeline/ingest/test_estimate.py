"""What a sample says of the whole: right on average, exact where all is known, and its interval holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.ingest.estimate import total, unseen

Floats = NDArray[np.float64]


def population(kind: str, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(sizes, quantities) of sources whose sizes are as uneven as files are."""
    sizes = rng.lognormal(15, 1, count)
    made = {
        "goes with size": sizes * rng.lognormal(-14, 0.3, count),
        "is the same for all": rng.poisson(3, count).astype(float),
        "is skewed": rng.lognormal(1, 1, count),
    }
    return sizes, made[kind]


@pytest.mark.parametrize("kind", ["goes with size", "is the same for all", "is skewed"])
@pytest.mark.parametrize(("count", "n", "least"), [(50, 20, 0.85), (5_000, 20, 0.82), (5_000, 10, 0.8), (500, 5, 0.75)])
def test_the_interval_holds_about_nine_times_in_ten(kind: str, count: int, n: int, least: float) -> None:
    rng = np.random.default_rng(7)
    held, errors = 0, []
    for _ in range(200):
        sizes, quantities = population(kind, count, rng)
        # As `plan` draws: one of each of n parts, in order of size.
        picked = np.array([rng.choice(part) for part in np.array_split(np.argsort(sizes), n)])
        left = np.ones(count, bool)
        left[picked] = False
        found = total(quantities[picked], sizes[picked], int(left.sum()), float(sizes[left].sum()))
        truth = quantities[left].sum()
        assert found.low is not None
        assert found.high is not None
        held += found.low <= truth <= found.high
        errors.append(found.rest / truth - 1)
        assert found.sampled == pytest.approx(quantities[picked].sum())
    assert held / 200 >= least
    assert abs(np.mean(errors)) < 0.1


def test_what_goes_with_size_is_told_by_size() -> None:
    sizes = np.array([1.0, 2, 3, 4, 50])
    found = total(2 * sizes, sizes, 3, 1_000.0)
    assert found.rest == pytest.approx(2_000)
    assert found.low == pytest.approx(2_000)
    # Without the sizes of the others it is so much for each.
    assert total(2 * sizes, sizes, 3, None).rest == pytest.approx(3 * 24)


def test_what_was_not_looked_at_of_a_unit_is_as_uncertain_as_others() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        # Twenty long sources of a hundred pieces each, of which one piece in ten is looked at; all are in the sample.
        pieces = rng.poisson(rng.lognormal(0, 0.5, (20, 1)), (20, 100))
        looked = pieces[:, :10].sum(1)
        found = total(looked / 0.1, None, 0, None, np.full(20, 0.1))
        assert found.sampled == looked.sum()
        assert found.low is not None
        assert found.high is not None
        held += found.low <= pieces[:, 10:].sum() <= found.high
    assert held / 300 >= 0.9


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30), st.integers(0, 10**7))
def test_totals_are_never_negative_nor_outside_their_interval(values: list[float], count: int) -> None:
    found = total(np.array(values), None, count, None)
    assert found.rest >= 0
    if found.low is not None and found.high is not None:
        assert 0 <= found.low <= found.rest * (1 + 1e-9)
        assert found.high >= found.rest * (1 - 1e-9)
    else:
        assert len(values) == 1
    if count == 0:
        assert (found.rest, found.low, found.high) == (0, 0, 0)


def test_what_no_sampled_one_has_the_rest_may_have() -> None:
    # Clopper and Pearson: none of 20 says less than 13.9 %, at 95 % one-sided.
    assert unseen(20, 1_000) == pytest.approx(139, abs=1)
