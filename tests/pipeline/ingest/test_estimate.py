"""Tests estimates from a sample: right on average, exact if everything is known, with intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.ingest.estimate import bound_unseen, estimate_total

Floats = NDArray[np.float64]


def population(kind: str, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """(sizes, quantities) of sources whose sizes vary as those of files do."""
    sizes = rng.lognormal(15, 1, count)
    quantities = {
        "goes with size": sizes * rng.lognormal(-14, 0.3, count),
        "is the same for all": rng.poisson(3, count).astype(float),
        "is skewed": rng.lognormal(1, 1, count),
    }
    return sizes, quantities[kind]


@pytest.mark.parametrize("kind", ["goes with size", "is the same for all", "is skewed"])
@pytest.mark.parametrize(
    ("count", "sample_size", "min_share"), [(50, 20, 0.85), (5_000, 20, 0.82), (5_000, 10, 0.8), (500, 5, 0.75)]
)
def test_the_interval_holds_about_nine_times_in_ten(kind: str, count: int, sample_size: int, min_share: float) -> None:
    rng = np.random.default_rng(7)
    hits, errors = 0, []
    for _ in range(200):
        sizes, quantities = population(kind, count, rng)
        # As `plan` draws: one source from each of `sample_size` parts, in order of size.
        picked = np.array([rng.choice(part) for part in np.array_split(np.argsort(sizes), sample_size)])
        unsampled = np.ones(count, bool)
        unsampled[picked] = False
        estimate = estimate_total(
            quantities[picked], sizes[picked], int(unsampled.sum()), float(sizes[unsampled].sum())
        )
        truth = quantities[unsampled].sum()
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= truth <= estimate.high
        errors.append(estimate.rest / truth - 1)
        assert estimate.sampled == pytest.approx(quantities[picked].sum())
    assert hits / 200 >= min_share
    assert abs(np.mean(errors)) < 0.1


def test_what_goes_with_size_is_told_by_size() -> None:
    sizes = np.array([1.0, 2, 3, 4, 50])
    estimate = estimate_total(2 * sizes, sizes, 3, 1_000.0)
    assert estimate.rest == pytest.approx(2_000)
    assert estimate.low == pytest.approx(2_000)
    # Without the sizes of the others, each counts as the mean.
    assert estimate_total(2 * sizes, sizes, 3, None).rest == pytest.approx(3 * 24)


def test_what_was_not_looked_at_of_a_unit_is_as_uncertain_as_others() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        # Twenty long sources of a hundred pieces each, all in the sample, with one piece in ten measured.
        pieces = rng.poisson(rng.lognormal(0, 0.5, (20, 1)), (20, 100))
        sampled = pieces[:, :10].sum(1)
        estimate = estimate_total(sampled / 0.1, None, 0, None, np.full(20, 0.1))
        assert estimate.sampled == sampled.sum()
        assert estimate.low is not None
        assert estimate.high is not None
        hits += estimate.low <= pieces[:, 10:].sum() <= estimate.high
    assert hits / 300 >= 0.9


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30), st.integers(0, 10**7))
def test_totals_are_never_negative_nor_outside_their_interval(values: list[float], count: int) -> None:
    estimate = estimate_total(np.array(values), None, count, None)
    assert estimate.rest >= 0
    if estimate.low is not None and estimate.high is not None:
        assert 0 <= estimate.low <= estimate.rest * (1 + 1e-9)
        assert estimate.high >= estimate.rest * (1 - 1e-9)
    else:
        assert len(values) == 1
    if count == 0:
        assert (estimate.rest, estimate.low, estimate.high) == (0, 0, 0)


def test_what_no_sampled_one_has_the_rest_may_have() -> None:
    # Clopper and Pearson: none of 20 means less than 13.9 %, at 95 % one-sided.
    assert bound_unseen(20, 1_000) == pytest.approx(139, abs=1)
