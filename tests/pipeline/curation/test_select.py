"""Tests selections: what passes, what each condition removes, what is stored by name, and what is not a predicate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_dataset import RECIPE, RUN, identity

from pipeline.curation.select import Condition, load_selection, select, split_conditions
from pipeline.errors import UsageError
from pipeline.recipe.rules import connect


def ids(dataset: Any, name: str) -> set[str]:
    return set(load_selection(dataset.out, name)["clip_id"].to_pylist())


@pytest.fixture
def ten_clips(dataset: Any) -> Any:
    """Ten more kept clips: luma 30, 40 ... 120; contrast 1 for even numbers, null for 9, 5 for the others."""
    rows = [
        dataset.clip(
            f"b{number}",
            "kept",
            luma=30.0 + 10 * number,
            contrast=None if number == 9 else 1.0 if number % 2 == 0 else 5.0,
        )
        | {"clip_id": identity(f"x{number}"), "shard": "shards/x.tar", "offset": 0, "bytes": 1000}
        for number in range(10)
    ]
    dataset.commit(*rows)
    return dataset


def test_what_each_condition_costs(ten_clips: Any) -> None:
    where = "starts_with(shard, 'shards/x') AND luma > 50 AND contrast BETWEEN 2 AND 9"
    result = select(ten_clips.url, [where])
    assert result.verdicts == {"failed": 1, "kept": 13, "pending": 1, "rejected": 1}
    assert result.where == [
        Condition("starts_with(shard, 'shards/x')", 3, 0, 0),
        Condition("luma > 50", 3, 1, 0),
        Condition("contrast BETWEEN 2 AND 9", 8, 3, 1),
    ]
    assert result.selected == 3
    assert result.undecided == 1, "a null neither passes nor is removed"
    assert result.seconds == pytest.approx(1.5)
    assert result.bytes == 3000
    assert (
        select(ten_clips.url, ["luma > 50", "contrast BETWEEN 2 AND 9", "starts_with(shard, 'shards/x')"]).selected == 3
    )


def test_a_selection_is_kept_and_compared(ten_clips: Any) -> None:
    first = select(ten_clips.url, ["luma > 50"], name="day1")
    assert first.against is None
    assert first.file == "selections/day1.parquet"
    table = pq.read_table(Path(ten_clips.url) / first.file)
    assert table.num_rows == first.selected
    assert table["clip_id"].to_pylist() == sorted(table["clip_id"].to_pylist())

    second = select(ten_clips.url, ["luma < 100"], name="day2")
    assert second.against is not None
    assert second.against.name == "day1"
    assert second.against.added == len(ids(ten_clips, "day2") - ids(ten_clips, "day1"))
    assert second.against.removed == len(ids(ten_clips, "day1") - ids(ten_clips, "day2")) > 0
    third = select(ten_clips.url, ["luma > 50"], against="day1")
    assert third.against is not None
    assert (third.against.added, third.against.removed) == (0, 0)

    assert select(ten_clips.url, ["luma > 50"], name="day1").file == first.file, "repeating it is not an error"
    with pytest.raises(UsageError, match="another selection 'day1'"):
        select(ten_clips.url, ["luma > 60"], name="day1")
    with pytest.raises(UsageError, match="did you mean 'day1'"):
        select(ten_clips.url, against="dya1")
    with pytest.raises(UsageError, match="not a valid name for a selection"):
        select(ten_clips.url, name="../day1")


@pytest.mark.parametrize(
    ("where", "selected"),
    [
        ("made_by['scribble'] IS NOT NULL", 3),
        ("made_by['nobody'] IS NULL", 3),
        ("list_contains(layers, 'flow')", 1),
        ("title = 'film a'", 2),
        ("licence = 'CC0' AND LUMA > 1 -- a remark", 3),
        ("source_uri LIKE '%b.mp4'", 1),
        ("duplicates > 0", 0),
        ("list_contains(tasks, 'gray') OR caption LIKE 'it''s (%'", 3),
    ],
)
def test_any_column_may_be_asked_for(dataset: Any, where: str, selected: int) -> None:
    assert select(dataset.url, [where]).selected == selected


def test_a_layer_tells_what_it_alone_made(dataset: Any) -> None:
    lower_lineage = [entry | {"version": "0"} for entry in dataset.blueprint.lineage]
    own_entry = {"name": "poem", "version": "7", "weights_id": None, "weights_sha256": None, "weights_licence": "MIT"}
    rhymes = {"caption": "a poem", "lineage": [*lower_lineage, own_entry], "luma": None}
    dataset.commit(dataset.clip("a0", "kept", layer="poem", **rhymes))
    predicate = "made_by['poem'] = '7' AND made_by['scribble'] <> '0' AND caption = 'a poem' AND luma = 100"
    assert select(dataset.url, [predicate, "weights_licence['poem'] = 'MIT'"]).selected == 1
    # Since then the annotator has become part of the recipe.
    dataset.commit(
        dataset.clip("a0", "kept", **{key: dataset.row("a0")[key] for key in ("shard", "offset", "bytes")})
        | {"lineage": [*dataset.blueprint.lineage, own_entry | {"version": "8"}]}
    )
    assert select(dataset.url, ["made_by['poem'] = '8'", "luma = 100"]).selected == 1


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("luna > 3", "no column named 'luna'; did you mean 'luma'"),
        ("luma >", "is not an SQL predicate"),
        ("luma", "is double, and must be true or false"),
        ("luma > (SELECT 3)", "without subqueries"),
        ("luma > 3) OR (SELECT true FROM read_csv('/etc/passwd')", "is not an SQL predicate|without subqueries"),
        ("EXISTS (FROM read_text('/etc/passwd'))", "without subqueries"),
        ("luma > 3; DROP TABLE judged", "is not an SQL predicate"),
        ("max(luma) > 3", "aggregates"),
        ("random() > 0.5", "differently each time"),
        ("source_uri::INT > 3", "TRY_CAST"),
        ("*", "is not an SQL predicate|must be one predicate"),
        ("", "is not an SQL predicate"),
    ],
)
def test_what_is_no_predicate_gets_a_sentence(dataset: Any, where: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        select(dataset.url, [where])


def test_other_rules_are_tried_without_a_trace(ten_clips: Any, tmp_path: Path) -> None:
    content = ten_clips.all_bytes()
    changed = RECIPE.replace("too_dark: luma < 20", "dim: luma < 55, flat: contrast < 3")
    (tmp_path / "other.yaml").write_text(changed)
    result = select(ten_clips.url, ["luma < 200"], recipe_file=tmp_path / "other.yaml")
    # Only a1 is dark, and has no sample; b2 is pending without luma, and of the ten x9 without contrast.
    assert result.verdicts == {"failed": 1, "kept": 6, "pending": 2, "rejected": 7}
    assert {rule.text: (rule.removes, rule.alone) for rule in result.rules} == {
        "dim: luma < 55": (4, 2),
        "flat: contrast < 3": (5, 3),
    }
    assert result.selected == 6
    assert ten_clips.all_bytes() == content


def test_one_rule_is_changed(ten_clips: Any) -> None:
    unchanged = select(ten_clips.url, rules=["too_dark: luma < 20"])
    assert unchanged.verdicts == select(ten_clips.url).verdicts
    tighter = select(ten_clips.url, rules=["too_dark: luma < 55", "flat: contrast < 3"])
    assert tighter.verdicts == {"failed": 1, "kept": 6, "pending": 2, "rejected": 7}
    assert select(ten_clips.url, rules=["too_dark:"]).verdicts == {"failed": 1, "kept": 14, "pending": 1}
    for bad in ("luma < 3", "too_drak:", ": luma < 3", ""):
        with pytest.raises(UsageError, match="neither a rule of this recipe"):
            select(ten_clips.url, rules=[bad])
    with pytest.raises(UsageError, match="did you mean 'luma'"):
        select(ten_clips.url, rules=["dark: luna < 3"])


def test_what_a_looser_rule_lets_in_is_pending(dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "loose.yaml").write_text(RECIPE.replace("luma < 20", "luma < 10"))
    result = select(dataset.url, recipe_file=tmp_path / "loose.yaml")
    assert result.verdicts == {"failed": 1, "kept": 3, "pending": 2}


def test_another_grid_is_refused(dataset: Any, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(RECIPE.replace("fps: 16", "fps: 8"))
    with pytest.raises(UsageError, match="cannot mix them"):
        select(dataset.url, recipe_file=tmp_path / "other.yaml")


def test_a_forgotten_clip_is_gone_from_the_next_one(ten_clips: Any) -> None:
    select(ten_clips.url, name="day1")
    forgotten = {"kind": "forgotten", "clip_id": identity("x0"), "run_id": RUN}
    ten_clips.commit(forgotten)
    after = select(ten_clips.url)
    assert after.against is not None
    assert (after.against.added, after.against.removed) == (0, 1)


_ATOMS = st.sampled_from(["a > 1", "b BETWEEN 2 AND 3", "(c OR d)", "NOT e", "f LIKE 'x) AND (%'", "g IN (1, 2)"])


@given(st.lists(_ATOMS, min_size=2, max_size=5))
@settings(deadline=None)
def test_a_predicate_falls_into_the_parts_that_and_joins(atoms: list[str]) -> None:
    con = connect()
    parts = split_conditions(" AND ".join(atoms), con)
    assert len(parts) == len(atoms)
    assert split_conditions(" AND ".join(f"({part})" for part in parts), con) == parts
    assert split_conditions(f"({' AND '.join(atoms)}) OR z", con) == [f"({' AND '.join(atoms)}) OR z"]
