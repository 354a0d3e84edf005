"""Tests that every kind of damage is listed in a sentence that names it, and that a sound dataset has no problems."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import small_dataset
from typer.testing import CliRunner

from pipeline.cli.main import app
from pipeline.errors import UsageError
from pipeline.formats.shards import compute_digest
from pipeline.upkeep import verify as module
from pipeline.upkeep.mark_damaged import mark_failed
from pipeline.upkeep.verify import format_summary, problem_lines, verify


def list_problems(dataset: Any) -> str:
    """The problems, one per line."""
    return "\n".join(problem_lines(verify(dataset.url, 1)))


def tensors() -> bytes:
    """A safetensors file by the format's own description."""
    header = b'{"__metadata__":{"a":"b"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    return len(header).to_bytes(8, "little") + header + bytes(8)


def test_a_sound_file_of_tensors(dataset: Any) -> None:
    place = dataset.shard("shards", {"b0": small_dataset.sample("b0") | {"x.safetensors": tensors(), "x.bin": b"any"}})
    dataset.commit(dataset.clip("b0", "kept", **place["b0"]))
    assert list_problems(dataset) == ""


def test_a_sound_dataset(dataset: Any) -> None:
    report = verify(dataset.url, 1)
    assert (report.count, report.notes) == (0, [])
    assert report.checked["shards"] == 5
    assert (report.checked["clips"], report.checked["layers"]) == (6, 1)


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no catalog"):
        verify(str(tmp_path))


def test_a_flipped_byte(dataset: Any) -> None:
    name = dataset.row("b0")["shard"]
    path = Path(dataset.url, name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert f"shard {name}: is damaged" in list_problems(dataset)


def test_a_shard_that_is_gone(dataset: Any) -> None:
    name = dataset.row("a0")["shard"]
    Path(dataset.url, name).unlink()
    assert list_problems(dataset) == f"shard {name}: does not exist, and 2 rows of the catalog name it"


def test_a_row_that_is_there_twice(dataset: Any) -> None:
    dataset.edit(4, lambda rows: [*rows, rows[0]])
    assert f"clip {small_dataset.identity('b1')}: part 4 has 2 rows of its layer base" in list_problems(dataset)


def test_a_wrong_offset(dataset: Any) -> None:
    dataset.edit(5, lambda rows: [row | {"offset": 512} for row in rows])
    assert f"clip {small_dataset.identity('a2')}: its sample is at 0" in list_problems(dataset)


def test_two_rows_in_one_place(dataset: Any) -> None:
    first, second = (dataset.row(name)["offset"] for name in ("a0", "b0"))
    dataset.edit(3, lambda rows: [row | {"offset": min(first, second)} if row["shard"] else row for row in rows])
    problems = list_problems(dataset)
    assert "its bytes in shards/" in problems
    assert "are also those of clip" in problems


def test_a_sample_of_another_clip(dataset: Any) -> None:
    place = dataset.shard("shards", {"b1": small_dataset.sample("b1")})["b1"]
    dataset.commit(dataset.clip("b0", "kept", **place))
    assert f"clip {small_dataset.identity('b0')}: its sample is not in {place['shard']}" in list_problems(dataset)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda members, dataset: {"scribble.mp4": dataset.mp4("x", (5, 48, 64))}, "its scribble.mp4 is (5, 48, 64)"),
        (
            lambda members, dataset: {"scribble.mp4": members["scribble.mp4"][:-2000]},
            "its scribble.mp4 cannot be decoded",
        ),
        (lambda members, dataset: {"txt": b"caf\xe9"}, "its txt is not UTF-8"),
        (lambda members, dataset: {"ref.0.png": b"no picture"}, "its ref.0.png cannot be decoded"),
        (
            lambda members, dataset: {"mp4": dataset.mp4("x", (9, 64, 64))},
            "its mp4 is (9, 64, 64) (frames, height, width)",
        ),
        (lambda members, dataset: {"json": b"{"}, "its json is not a JSON object"),
        (lambda members, dataset: {"json": b"[]"}, "its json is not a JSON object"),
        (lambda members, dataset: {"json": json.dumps({"clip_id": "0" * 32}).encode()}, "its json is that of clip 000"),
        (lambda members, dataset: {"ref.0.png": b"not a picture"}, "its ref.0.png"),
        (lambda members, dataset: {"x.safetensors": b"not tensors"}, "its x.safetensors is not a safetensors file"),
        (
            lambda members, dataset: {"x.safetensors": tensors()[:-2]},
            "x.safetensors holds 6 bytes of tensors; its header says 8",
        ),
    ],
)
def test_a_wrong_member(dataset: Any, change: Any, sentence: str) -> None:
    members = small_dataset.sample("b0")
    place = dataset.shard("shards", {"b0": members | change(members, small_dataset)})["b0"]
    dataset.commit(dataset.clip("b0", "kept", **place))
    assert sentence in list_problems(dataset)


def test_members_that_are_missing(dataset: Any) -> None:
    place = dataset.shard("shards", {"b0": {"scribble.mp4": small_dataset.mp4("b0")}})["b0"]
    dataset.commit(dataset.clip("b0", "kept", **place))
    problems = list_problems(dataset)
    assert "its sample has no member json" in problems
    assert "its sample has no member mp4" in problems


def test_a_preview_that_is_no_picture(dataset: Any) -> None:
    place = dataset.shard("previews", {"b1": {"jpg": b"no picture"}})["b1"]
    dataset.commit(dataset.clip("b1", "rejected", rule="too_dark", **place))
    assert "its jpg" in list_problems(dataset)


def test_a_clip_that_lies_twice_in_a_shard(dataset: Any, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for key in ("b0", "b1", "b0"):
            file = tmp_path / key
            file.write_bytes(b"{}")
            tar.add(file, f"{small_dataset.identity(key)}.json")
    with (tmp_path / "twice.tar").open("rb") as shard:
        name = f"shards/{small_dataset.RUN}-{compute_digest(shard)}.tar"
    dataset.out.put(name, tmp_path / "twice.tar")
    dataset.commit(dataset.clip("b0", "kept", shard=name, offset=0, bytes=1024))
    assert f"shard {name}: holds clip {small_dataset.identity('b0')} twice" in list_problems(dataset)


def test_a_kept_clip_without_bytes(dataset: Any) -> None:
    dataset.commit(dataset.clip("b1", "kept"))
    assert "names no shard" in list_problems(dataset)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-20], lambda data: b"", lambda data: data.replace(b"PAR1", b"RAP1")]
)
def test_an_unreadable_part(dataset: Any, damage: Any) -> None:
    path = Path(dataset.url, "catalog/000000000004.parquet")
    path.write_bytes(damage(path.read_bytes()))
    report = verify(dataset.url, 1)
    assert [(problem.kind, problem.name) for problem in report.problems] == [("part", path.name)]
    assert "left out" in report.notes[0]


def test_parts_of_another_format_or_number(dataset: Any) -> None:
    dataset.edit(4, lambda rows: [row | {"format_version": 99, "sequence": 3} for row in rows])
    problems = list_problems(dataset)
    assert "rows whose format_version is not 1" in problems
    assert "rows whose sequence is not 4" in problems


def test_a_missing_part(dataset: Any) -> None:
    Path(dataset.url, "catalog/000000000006.parquet").unlink()
    assert "part 6 should come before it" in list_problems(dataset)


def test_a_clip_without_its_source(dataset: Any) -> None:
    dataset.edit(2, lambda rows: [row for row in rows if not row["source_uri"].endswith("b.mp4")])
    assert f"clip {small_dataset.identity('b0')}: part 3 names it before any row of its source" in list_problems(
        dataset
    )


def test_what_is_no_problem(dataset: Any) -> None:
    dataset.commit(dataset.source("e", "cut", "01"))
    dataset.shard("shards", {"b1": small_dataset.sample("b1")})
    report = verify(dataset.url, 1)
    assert report.count == 0
    assert any("1 sources are incomplete (2 clips" in note for note in report.notes)
    assert any("1 unfinished" in note for note in report.notes)


def test_several_processes(dataset: Any) -> None:
    Path(dataset.url, dataset.row("a0")["shard"]).unlink()
    report = verify(dataset.url, 2)
    assert [problem.kind for problem in report.problems] == ["shard"]
    assert report.checked["shards"] == 4


def test_many_problems_are_counted(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 1)
    for name in ("a0", "a2"):
        Path(dataset.url, dataset.row(name)["shard"]).unlink()
    assert list(problem_lines(verify(dataset.url, 1)))[1:] == ["... and 1 more"]


@pytest.mark.long
def test_on_an_object_store(s3: Any, tmp_path: Path) -> None:
    dataset = small_dataset.Dataset(f"{s3.url}/out", tmp_path / "scratch").fill()
    assert verify(dataset.url, 1).count == 0
    name = dataset.row("b0")["shard"]
    dataset.out.put(name, b"something else")
    assert f"shard {name}: is damaged" in list_problems(dataset)


def test_the_command(dataset: Any) -> None:
    runner = CliRunner()
    clean = runner.invoke(app, ["verify", dataset.url, "--workers", "1"])
    assert (clean.exit_code, clean.stdout) == (0, "")
    assert "no problem; checked 7 parts" in format_summary(verify(dataset.url, 1))
    Path(dataset.url, dataset.row("a0")["shard"]).unlink()
    broken = runner.invoke(app, ["verify", dataset.url, "--workers", "1", "--json"])
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["problems"][0]["kind"] == "shard"


def mark_failed_json(dataset: Any) -> Any:
    result = CliRunner().invoke(app, ["verify", dataset.url, "--mark-failed", "--workers", "1", "--json"])
    assert result.exit_code == 1, "there was damage"
    return json.loads(result.stdout)


def test_what_is_damaged_is_marked_as_failed_and_the_rest_is_left_alone(dataset: Any) -> None:
    before = dataset.rows()
    Path(dataset.url, dataset.row("a2")["shard"]).unlink()
    assert len(mark_failed_json(dataset)["damage"]) == 1
    row = dataset.row("a2")
    assert (row["status"], row["code"], row["shard"], row["tasks"]) == ("failed", "STORAGE_ERROR", None, None)
    assert "lost or damaged" in row["detail"]
    assert row["preview_shard"], "the preview is sound"
    after = dataset.rows()
    assert {key for key in after if after[key] != before[key]} == {(row["clip_id"], "base")}
    report = verify(dataset.url, 1)
    assert (report.count, report.damage) == (0, set()), "nothing names what is gone any more"


def test_a_damaged_preview_or_layer_costs_nothing_else(dataset: Any) -> None:
    preview = Path(dataset.url, dataset.row("a0")["preview_shard"])
    preview.write_bytes(preview.read_bytes()[:-512])
    Path(dataset.url, dataset.row("a0", "flow")["shard"]).unlink()
    mark_failed_json(dataset)
    assert dataset.row("a0")["status"] == "kept"
    assert dataset.row("a0")["preview_shard"] is None
    assert dataset.row("a0", "flow")["code"] == "STORAGE_ERROR"
    assert dataset.row("a1")["status"] == "rejected"
    assert verify(dataset.url, 1).count == 0


def test_one_bad_member_costs_its_own_sample(dataset: Any) -> None:
    parts = {"mp4": small_dataset.mp4("b0", (5, 48, 64)), "json": b"{}"}
    places = dataset.shard("shards", {"b0": parts, "a0": small_dataset.sample("a0")})
    for name in ("a0", "b0"):
        dataset.commit(dataset.clip(name, "kept", **places[name]))
    assert {row["clip_id"] for row in mark_failed_json(dataset)["damage"]} == {small_dataset.identity("b0")}
    assert [dataset.row(name)["status"] for name in ("a0", "b0")] == ["kept", "failed"]


def test_a_clip_that_was_made_again_meanwhile_is_left_alone(dataset: Any) -> None:
    Path(dataset.url, dataset.row("a2")["shard"]).unlink()
    report = verify(dataset.url, 1)
    places = dataset.shard("shards", {"a2": small_dataset.sample("a2"), "b2": small_dataset.sample("b2")})
    dataset.commit(dataset.clip("a2", "kept", **places["a2"]))
    assert mark_failed(report) == 0
    assert dataset.row("a2")["status"] == "kept"


def test_a_shard_that_cannot_be_read_is_one_line_and_no_damage(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = dataset.row("a0")["shard"]
    open_path = Path.open

    def refuse(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self.name == Path(name).name:
            raise OSError(5, "Input/output error")
        return open_path(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    report = verify(dataset.url, 1)
    assert [problem.text for problem in report.problems] == [
        f"shard {name}: cannot be read: [Errno 5] Input/output error"
    ]
    assert report.damage == set()
