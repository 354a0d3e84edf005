"""Tests mixtures: exact shares, caps, a held-out part without leaks, a hash that pins, and impossible shares."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import program
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from small_dataset import Dataset, identity

from pipeline.curation.held_out import choose_held_out, find_families
from pipeline.curation.make_mixture import Definition, mix
from pipeline.curation.select import select
from pipeline.curation.shares import task_shares
from pipeline.errors import UsageError
from pipeline.mixture import mixture
from pipeline.mixture.mixture import HELD_OUT, TRAIN

TASKS = ("text", "depth", "pose")
PLACE = ("shard", "offset", "bytes")


@pytest.fixture
def sixty_clips(dataset: Any) -> Any:
    """Sixty kept clips of twelve sources, five each; every third clip is also fit for depth, and the first for pose."""
    location = {key: dataset.row("a0")[key] for key in ("shard", "offset", "bytes")}
    rows = [
        dataset.clip("a0", "kept", **location)
        | {
            "clip_id": identity(f"m{number}"),
            "source_uri": f"/videos/m{number // 5}.mp4",
            "source_hash": f"{number // 5:064x}",
            "luma": float(number),
            "tasks": ["text", *["depth"] * (number % 3 == 0), *["pose"] * (number == 0)],
        }
        for number in range(60)
    ]
    dataset.commit(*rows)
    return dataset


def write_definition(folder: Path, **keys: Any) -> Path:
    """Write a mixture's YAML into the folder of the dataset."""
    definition = {"datasets": {"films": {"path": "out", "where": "starts_with(source_uri, '/videos/m')"}}, **keys}
    file = folder / "mixture.yaml"
    file.write_text(yaml.safe_dump(definition, sort_keys=False))
    return file


def read_samples(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / mixture.SAMPLES).to_pylist()
    return rows


def test_shares_counts_and_samples(sixty_clips: Any, tmp_path: Path) -> None:
    file = write_definition(tmp_path, tasks={"text": "40%", "depth": 2, "pose": 1}, caption_dropout=0.1, seed=3)
    result = mix(file, str(tmp_path / "mixed"))
    assert result.selected == {"films": 60}
    assert [(task.task, task.share, task.clips, task.sources) for task in result.tasks] == [
        ("text", 0.4, 60, 12), ("depth", 0.4, 20, 12), ("pose", pytest.approx(0.2), 1, 1),
    ]  # fmt: skip
    assert [task.passes for task in result.tasks] == pytest.approx([1, 3, 30])
    assert sum(bucket.clips for bucket in result.buckets) == 60

    stored = mixture.parse((tmp_path / "mixed" / mixture.FILE).read_text())
    assert (stored.hash, stored.seed, stored.caption_dropout) == (result.hash, 3, 0.1)
    assert stored.datasets == {"films": (sixty_clips.out.url, sixty_clips.catalog.sequence)}
    assert {task.task: task.share for task in stored.streams} == {
        "text": Fraction(2, 5), "depth": Fraction(2, 5), "pose": Fraction(1, 5),
    }  # fmt: skip
    rows = read_samples(tmp_path / "mixed")
    assert [row["clip_id"] for row in rows] == sorted(identity(f"m{n}") for n in range(60))
    assert {row["split"] for row in rows} == {TRAIN}
    (first,) = [row for row in rows if row["clip_id"] == identity("m0")]
    assert (first["tasks"], first["references"], first["frames"]) == (["depth", "pose", "text"], 0, 9)
    assert [place["layer"] for place in first["places"]] == ["base"]
    assert pq.read_schema(tmp_path / "mixed" / mixture.SAMPLES).equals(mixture.SCHEMA)


def test_the_hash_pins_what_is_drawn(sixty_clips: Any, tmp_path: Path) -> None:
    file = write_definition(tmp_path, tasks={"text": 1}, seed=3)
    first = mix(file, str(tmp_path / "mixed"))
    assert mix(file, str(tmp_path / "mixed")).hash == first.hash
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    shutil.copytree(sixty_clips.url, copy / "out")
    assert mix(write_definition(copy, tasks={"text": 1}, seed=3)).hash == first.hash, (
        "where a dataset lies decides nothing"
    )
    for change in ({"tasks": {"text": 1, "depth": 1}}, {"seed": 4}, {"clips_per_source": 2}, {"caption_dropout": 0.5}):
        assert mix(write_definition(tmp_path, **{"tasks": {"text": 1}, "seed": 3} | change)).hash != first.hash
    with pytest.raises(UsageError, match="another mixture already"):
        mix(write_definition(tmp_path, tasks={"text": 1}, seed=4), str(tmp_path / "mixed"))

    sequence = sixty_clips.catalog.sequence
    sixty_clips.commit(
        sixty_clips.row("a0") | {"clip_id": identity("new"), "source_uri": "/videos/m99.mp4", "tasks": ["text"]}
    )
    part = {"path": "out", "where": "starts_with(source_uri, '/videos/m')"}
    keys = {"tasks": {"text": 1}, "seed": 3}
    assert mix(write_definition(tmp_path, **keys)).selected == {"films": 61}
    pinned = mix(write_definition(tmp_path, datasets={"films": part | {"sequence": sequence}}, **keys))
    assert (pinned.selected, pinned.hash) == ({"films": 60}, first.hash)
    with pytest.raises(UsageError, match="no part 999"):
        mix(write_definition(tmp_path, datasets={"films": part | {"sequence": 999}}, **keys))


def test_a_cap_takes_the_same_clips_of_each_source(sixty_clips: Any, tmp_path: Path) -> None:
    result = mix(write_definition(tmp_path, tasks={"text": 1, "depth": 1}, clips_per_source=2), str(tmp_path / "mixed"))
    assert {task.task: task.clips for task in result.tasks}["text"] == 24
    reordered = mix(
        write_definition(tmp_path, tasks={"depth": 1, "text": 1}, clips_per_source=2), str(tmp_path / "again")
    )
    assert reordered.hash != result.hash, "the order of the tasks is theirs, the samples are the same"
    assert read_samples(tmp_path / "again") == read_samples(tmp_path / "mixed")


@pytest.mark.parametrize("without", [(), pytest.param(("m5", "m6"), marks=pytest.mark.long)])
def test_nothing_leaks_into_the_held_out_part(sixty_clips: Any, tmp_path: Path, without: tuple[str, ...]) -> None:
    """Sources connected by near duplicates, also indirectly, are on one side, even if a filter selects only one of each
    pair (as `duplicate_rank = 1` does)."""
    chain = [sixty_clips.row(f"m{n}") for n in (0, 5, 10)]
    for group, pair in (("g1", chain[:2]), ("g2", chain[1:])):
        # A clip of the second source is in both groups by two of its clips.
        for row in pair:
            clip = row["clip_id"] if row is not chain[1] else identity("m5" if group == "g1" else "m6")
            sixty_clips.commit(
                {"kind": "clip", "layer": "duplicates", "clip_id": clip, "status": "compared",
                 "duplicate_group": identity(group), "source_uri": row["source_uri"]}
            )  # fmt: skip
    splits = set()
    for seed in range(12):
        out = tmp_path / f"mixed{seed}"
        where = [f"clip_id <> '{identity(name)}'" for name in without]
        part = {"path": "out", "where": ["starts_with(source_uri, '/videos/m')", *where]}
        mix(write_definition(tmp_path, datasets={"films": part}, tasks={"text": 1}, held_out=0.2, seed=seed), str(out))
        split = {row["clip_id"]: row["split"] for row in read_samples(out)}
        assert set(split.values()) == {TRAIN, HELD_OUT}
        for source in range(12):
            assert len({split.get(identity(f"m{5 * source + n}")) for n in range(5)} - {None}) == 1
        connected_splits = {split[identity(f"m{n}")] for n in (0, 7, 10)}
        assert len(connected_splits) == 1
        splits |= connected_splits
    assert splits == {TRAIN, HELD_OUT}


def test_a_dataset_without_reference_pictures_mixes_with_one_that_has_them(sixty_clips: Any, tmp_path: Path) -> None:
    shutil.copytree(sixty_clips.url, tmp_path / "second")
    second = Dataset(str(tmp_path / "second"), tmp_path / "scratch2")
    columns = second.blueprint.schema().append(pa.field("ref_pictures", pa.int64()))
    location = {key: sixty_clips.row("a0")[key] for key in PLACE}
    row = {"layer": "base", **sixty_clips.clip("a0", "kept", **location), "clip_id": identity("r1"), "ref_pictures": 2}
    second.catalog.commit(pa.Table.from_pylist([row], schema=columns))
    result = mix(
        write_definition(tmp_path, datasets={"one": {"path": "out"}, "two": {"path": "second"}}, tasks=["text"])
    )
    assert {bucket.references for bucket in result.buckets} == {0, 2}


def test_two_datasets_divide_a_share(sixty_clips: Any, tmp_path: Path) -> None:
    shutil.copytree(sixty_clips.url, tmp_path / "second")
    parts = {
        "one": {"path": "out", "where": "luma < 30 AND starts_with(source_uri, '/videos/m')"},
        "two": {"path": "second", "where": ["luma >= 30", "starts_with(source_uri, '/videos/m')"], "weight": 3},
    }
    mix(write_definition(tmp_path, datasets=parts, tasks={"text": 1}), str(tmp_path / "mixed"))
    streams = mixture.parse((tmp_path / "mixed" / mixture.FILE).read_text()).streams
    assert {stream.dataset: (stream.clips, stream.share) for stream in streams} == {
        "one": (30, Fraction(1, 4)), "two": (30, Fraction(3, 4)),
    }  # fmt: skip


def test_a_selection_is_drawn(sixty_clips: Any, tmp_path: Path) -> None:
    select(sixty_clips.url, ["luma < 10", "starts_with(source_uri, '/videos/m')"], name="dark")
    parts = {"films": {"path": "out", "selection": "dark"}}
    assert mix(write_definition(tmp_path, datasets=parts, tasks={"text": 1})).selected == {"films": 10}
    with pytest.raises(UsageError, match="no selection 'drak'; did you mean 'dark'"):
        mix(write_definition(tmp_path, datasets={"films": {"path": "out", "selection": "drak"}}, tasks={"text": 1}))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"tasks": {"text": "60%", "depth": "50%"}}, r"sum to 110 % \(text 60% \+ depth 50%\), and must sum to 100"),
        ({"tasks": {"text": "60%", "depth": "30%"}}, "sum to 90 %"),
        ({"tasks": {"text": "100%", "depth": 1}}, "leaves nothing for depth"),
        ({"tasks": {"text": 0, "depth": 1}}, "tasks.text: 0.0 is not above 0"),
        ({"tasks": {"text": "lots"}}, "neither a weight, as 2 is, nor a share"),
        ({"tasks": {"text": 1, "deptj": 1}}, r"fit for the task 'deptj'; did you mean 'depth'\? \(fit are: depth 20, "),
        ({"tasks": {"text": 1, "flow": 1}}, r"no selected clip is fit for the task 'flow' \(fit are: depth 20, pose 1"),
        ({"tasks": {"text": 1}, "temperature": 2}, "the tasks have shares already"),
        ({"tasks": []}, "name at least one"),
        ({"tasks": ["text", "depth", "text"]}, "'text' is named twice"),
        ({"tasks": {"text": float("nan")}}, "tasks"),
        ({"tasks": {"text": float("inf")}}, "tasks"),
        ({"tasks": {"text": True}}, "tasks"),
        ({"tasks": ["text"], "held_out": 1e-9}, "of 12 sources leaves none"),
        ({"tasks": ["text"], "held_out": 2}, "held_out: must be less than 1"),
        ({"tasks": ["text"], "sed": 3}, "sed: there is no such key; did you mean 'seed'"),
        ({"tasks": ["text"], "datasets": {}}, "datasets"),
        ({"tasks": ["text"], "datasets": {"a": {"pth": "out"}}}, "datasets.a.pth: there is no such key; did you mean"),
        ({"tasks": ["text"], "datasets": {"a": {"path": "nowhere"}}}, "is not a dataset"),
        ({"tasks": ["text"], "datasets": {"a": {"path": "out", "where": "luna > 1"}}}, "did you mean 'luma'"),
        (
            {"tasks": ["text"], "datasets": {"a": {"path": "out", "where": "source_uri::INT > 1"}}},
            "cannot be evaluated",
        ),
    ],
)
def test_what_cannot_be_had_gets_a_sentence(
    sixty_clips: Any, tmp_path: Path, keys: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        mix(write_definition(tmp_path, **keys))


def test_a_task_that_is_held_out_whole(sixty_clips: Any, tmp_path: Path) -> None:
    for seed in range(50):
        try:
            mix(write_definition(tmp_path, tasks=["text", "pose"], held_out=0.5, seed=seed))
        except UsageError as error:
            assert "'pose' has no clip to train on: all 1 are held out" in str(error)
            return
    pytest.fail("with half held out, the one clip for pose is among them for some of fifty seeds")


def test_a_shard_that_is_gone_is_named(sixty_clips: Any, tmp_path: Path) -> None:
    (Path(sixty_clips.url) / sixty_clips.row("a0")["shard"]).unlink()
    with pytest.raises(UsageError, match="made again since"):
        mix(write_definition(tmp_path, tasks=["text"]))


COUNTS = st.dictionaries(st.sampled_from(TASKS), st.integers(1, 10**6), min_size=1)


@given(COUNTS, st.floats(1, 50))
def test_temperature_levels_the_shares(counts: dict[str, int], temperature: float) -> None:
    def shares(heat: float) -> dict[str, Fraction]:
        return task_shares(tuple(counts), heat, counts, "mixture")

    cold, warm = shares(1.0), shares(temperature)
    assert sum(warm.values()) == 1
    total = sum(counts.values())
    assert cold == {task: Fraction(count, total) for task, count in counts.items()}
    assert max(warm.values()) <= max(cold.values()) + Fraction(1, 10**4)


@given(
    st.dictionaries(
        st.sampled_from(TASKS),
        st.one_of(st.integers(1, 99), st.floats(0.01, 99).map(lambda x: round(x, 2))),
        min_size=1,
    )
)
def test_weights_are_exact(weights: dict[str, float]) -> None:
    parts: Any = {"a": {"path": "a"}}
    shares = task_shares(Definition(datasets=parts, tasks=weights).tasks, None, {}, "mixture")
    assert sum(shares.values()) == 1
    total = sum(Fraction(str(float(weight))) for weight in weights.values())
    assert shares == {task: Fraction(str(float(weight))) / total for task, weight in weights.items()}


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.one_of(st.none(), st.sampled_from("1234")))))
def test_families_are_the_connected_sources(pairs: list[tuple[str, str | None]]) -> None:
    family = {source: {source} for source, _ in pairs}
    for _ in pairs:
        for first, first_group in pairs:
            for second, second_group in pairs:
                if first_group is not None and first_group == second_group:
                    merged = family[first] | family[second]
                    family |= dict.fromkeys(merged, merged)
    assert find_families(pairs) == {source: min(members) for source, members in family.items()}


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("xyz"))),
    st.lists(st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("xyz"))),
    st.integers(0, 99),
)
def test_what_was_held_out_stays_so_when_copies_come(pairs: Any, new_pairs: Any, seed: int) -> None:
    earlier_part = choose_held_out(pairs, "abcdefgh", 0.3, seed)
    assert earlier_part <= choose_held_out([*pairs, *new_pairs], "abcdefghijkl", 0.3, seed)


def test_the_share_that_is_held_out() -> None:
    sources = [f"{n:064x}" for n in range(4_000)]
    assert len(choose_held_out([], sources, 0.2, 1)) == pytest.approx(800, abs=80)


def test_what_may_leak_or_is_left_out_is_said(sixty_clips: Any, tmp_path: Path) -> None:
    assert mix(write_definition(tmp_path, tasks=["text"])).warnings == []
    (warning,) = mix(write_definition(tmp_path, tasks=["text"], held_out=0.3)).warnings
    assert "60 clips were not compared" in warning
    sixty_clips.commit(
        sixty_clips.clip(
            "a1", "rejected", rule="too_dark", luma=12.5, **{key: sixty_clips.row("a0")[key] for key in PLACE}
        )
    )
    select(sixty_clips.url, rules=["too_dark: luma < 1"], name="looser")
    part = {"path": "out", "selection": "looser"}
    (warning,) = mix(write_definition(tmp_path, datasets={"films": part}, tasks=["text"])).warnings
    assert "1 clips of the selection 'looser' are not kept" in warning


def test_the_command_prints_and_writes(sixty_clips: Any, tmp_path: Path) -> None:
    vdot = program.Vdot(tmp_path)
    file = write_definition(tmp_path, tasks={"text": "90%", "depth": 1})
    process = vdot("mix", file, "--out", tmp_path / "mixed", "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["out"] == str(tmp_path / "mixed")
    assert "90.0 %" in process.stderr
    assert vdot("mix", tmp_path / "none.yaml").returncode == 2


def test_steps_and_going_on_after_another_mixture(sixty_clips: Any, tmp_path: Path) -> None:
    old = mix(write_definition(tmp_path, tasks=["text"], step={"micro_batches": 4}), str(tmp_path / "old"))
    assert (old.micro_batches, old.begins, old.steps) == (4, 0, 15)
    file = write_definition(tmp_path, tasks={"text": 3, "depth": 1}, step={"micro_batches": 2, "tokens": 100})
    new = mix(file, str(tmp_path / "new"), f"{tmp_path / 'old'}@20")
    assert new.begins == 20
    stored, rows = mixture.read(str(tmp_path / "new"))
    assert stored.step == mixture.Step(2, 100)
    assert list(stored.begins.drawn.values()) == [20]
    assert rows.metadata.num_rows == 60
    for start, sentence in (
        (f"{tmp_path / 'old'}@21", "begin at 0 and every 4"),
        (f"{tmp_path / 'new'}@18", "begin at 20 and every 2"),
        (f"{tmp_path / 'old'}", "is not a mixture and a position"),
        (f"{tmp_path / 'none'}@0", "is not a mixture"),
    ):
        with pytest.raises(UsageError, match=sentence):
            mix(file, None, start)


def test_a_bucket_smaller_than_a_step_is_said(sixty_clips: Any, tmp_path: Path) -> None:
    result = mix(write_definition(tmp_path, tasks=["text", "pose"], step={"micro_batches": 8}), None)
    assert any(
        "1 of 2 buckets have fewer clips than a step" in warning and "pose" in warning for warning in result.warnings
    )
