"""Tests that good files never fail: each real clip has the outcome in the reviewed table.

The table is `tests/data/expected_outcomes.csv`; after an intended change, `python tests/helpers/outcomes.py` in the
repository's root updates it, and the diff is reviewed.
"""

from __future__ import annotations

import hashlib

import outcomes
import pytest
import real_clips
from outcomes import Outcome

EXPECTED = outcomes.expected()


@pytest.fixture(scope="module")
def outcome_by_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The outcome of every available clip, from one ingest."""
    return outcomes.measure(real_clips.available().values(), tmp_path_factory.mktemp("outcomes"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_clip_comes_out_as_reviewed(request: pytest.FixtureRequest, name: str) -> None:
    real_clips.path(name)
    assert request.getfixturevalue("outcome_by_file")[name] == EXPECTED[name]


def test_every_clip_has_its_row() -> None:
    sha256 = {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for name, file in real_clips.available().items()}
    assert sha256 == {name: row.sha256 for name, row in EXPECTED.items() if name in sha256}


def test_only_a_damaged_file_fails() -> None:
    """An update of the table cannot hide that a good file fails or that a clip has no verdict."""
    assert {name for name, row in EXPECTED.items() if row.source.startswith("failed")} == {"d_truncated.mp4"}
    assert {name for name, row in EXPECTED.items() if row.failed} == set()
    for row in EXPECTED.values():
        assert row.clips == row.kept + sum(int(part.split()[-1]) for part in row.rejected.split("; ") if part), row


def test_the_table_is_sorted() -> None:
    assert list(EXPECTED) == sorted(EXPECTED)
