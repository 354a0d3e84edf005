"""Good files never fail: each real clip comes out of ingest as the reviewed table says.

The table is `tests/data/expected_outcomes.csv`; after a change that is meant, `python tests/helpers/outcomes.py` in the
repository's root writes it again, and the diff is reviewed.
"""

from __future__ import annotations

import hashlib

import outcomes
import pytest
import real_clips
from outcomes import Outcome

EXPECTED = outcomes.expected()


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every clip that is here, in one ingest."""
    return outcomes.measure(real_clips.available().values(), tmp_path_factory.mktemp("outcomes"))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_clip_comes_out_as_reviewed(request: pytest.FixtureRequest, name: str) -> None:
    real_clips.path(name)
    assert request.getfixturevalue("measured")[name] == EXPECTED[name]


def test_every_clip_has_its_row() -> None:
    sha256 = {name: hashlib.sha256(file.read_bytes()).hexdigest()[:12] for name, file in real_clips.available().items()}
    assert sha256 == {name: row.sha256 for name, row in EXPECTED.items() if name in sha256}


def test_only_a_damaged_file_fails() -> None:
    """Whoever writes the table again cannot let a good file fail with it, nor a clip go without a verdict."""
    assert {name for name, row in EXPECTED.items() if row.source.startswith("failed")} == {"d_truncated.mp4"}
    assert {name for name, row in EXPECTED.items() if row.failed} == set()
    for row in EXPECTED.values():
        assert row.clips == row.kept + sum(int(part.split()[-1]) for part in row.rejected.split("; ") if part), row


def test_the_table_is_sorted() -> None:
    assert list(EXPECTED) == sorted(EXPECTED)
