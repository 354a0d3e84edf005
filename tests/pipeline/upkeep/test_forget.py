"""Tests `forget`: what is removed, what stays byte for byte, and that the next attempt completes a killed one."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import small_dataset
import vectors

from annotators.networks.picture_embedding import ClipEmbedding
from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.erase import REPORT
from pipeline.catalog.ledger import Ledger
from pipeline.curation.dedup import dedup
from pipeline.errors import RunError, UsageError
from pipeline.formats import embeddings
from pipeline.formats.shards import group_members
from pipeline.storage.folder import Folder
from pipeline.storage.lock import hold_lock
from pipeline.upkeep.forget import finish_forgetting, forget
from pipeline.upkeep.verify import verify


class Killed(BaseException):
    """Simulates SIGKILL: nothing catches it."""


def catalog_text(url: str) -> str:
    """Every row of every part except the records of what was forgotten."""
    tables = [pq.read_table(path).to_pylist() for path in sorted(Path(url, "catalog").glob("*.parquet"))]
    return "\n".join(str(row) for table in tables for row in table if row["kind"] != "forgotten")


def video_marks(stored: dict[str, bytes]) -> list[bytes]:
    """Bytes from the middle of each video member, which no other file contains."""
    return [data[len(data) // 2 :][:256] for name, data in stored.items() if name.endswith("mp4")]


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Die at the n-th call that changes the dataset: before it if n is even, after it if n is odd."""
    calls = itertools.count(1)

    def wrap(real: Any) -> Any:
        def call(self: Folder, *args: Any) -> Any:
            is_killed = next(calls) == step
            if is_killed and step % 2 == 0:
                raise Killed
            result = real(self, *args)
            if is_killed:
                raise Killed
            return result

        return call

    for name in ("put", "create", "delete"):
        monkeypatch.setattr(Folder, name, wrap(getattr(Folder, name)))


def check_gone(dataset: Any, ids: list[str], secrets: list[bytes]) -> None:
    report = verify(dataset.url, 1)
    assert not report.count, report.problems
    assert not any("unfinished" in note for note in report.notes)
    content, rows = dataset.all_bytes(), catalog_text(dataset.url)
    assert not any(secret in content for secret in secrets)
    assert not any(clip in rows for clip in ids)


def test_a_clip_goes_and_the_others_stay(dataset: Any) -> None:
    clip = small_dataset.identity("a0")
    secrets = video_marks(dataset.stored("a0")) + video_marks(dataset.stored("a0", "flow"))
    neighbour_members, before = dataset.stored("b0"), dataset.row("b0")
    report = forget(dataset.url, clip[:8], "asked by the rights holder")
    assert (report.sources, report.clips, report.damaged) == ([], [clip], [])
    check_gone(dataset, [clip], secrets)
    assert dataset.stored("b0") == neighbour_members
    location_columns = {name for name in before if name.endswith(("shard", "offset", "bytes"))} | {"sequence"}
    after = dataset.row("b0")
    assert {name: after[name] for name in after if name not in location_columns} == {
        name: before[name] for name in before if name not in location_columns
    }
    record = values(Catalog(dataset.out, dataset.scratch).connect(), "SELECT * FROM forgotten")
    assert [(row["clip_id"], row["detail"]) for row in record] == [(clip, "asked by the rights holder")]
    with pytest.raises(UsageError, match=r"was forgotten on .*rights holder"):
        forget(dataset.url, clip)


def test_an_older_copy_in_a_shard_still_in_use_goes_too(dataset: Any) -> None:
    secrets = video_marks(small_dataset.sample("a2"))
    assert all(dataset.all_bytes().count(secret) == 2 for secret in secrets)
    neighbour = dataset.stored("b2")
    forget(dataset.url, small_dataset.identity("a2"))
    check_gone(dataset, [small_dataset.identity("a2")], secrets)
    assert dataset.stored("b2") == neighbour


def test_a_rejected_clip_loses_its_preview(dataset: Any) -> None:
    row = dataset.row("a1")
    picture = dataset.out.read(row["preview_shard"], row["preview_offset"] + 512, row["preview_bytes"] - 512)
    secret = picture[len(picture) // 2 :][:256]
    assert secret in dataset.all_bytes()
    forget(dataset.url, small_dataset.identity("a1"))
    check_gone(dataset, [small_dataset.identity("a1")], [secret])


@pytest.mark.parametrize("name", ["a.mp4", "/videos/a.mp4", "d.mp4"])
def test_a_source_goes_with_its_clips_and_its_twins(dataset: Any, name: str) -> None:
    ids = [small_dataset.identity(f"a{n}") for n in range(3)]
    secrets = [mark for clip_name in ("a0", "a2") for mark in video_marks(dataset.stored(clip_name))]
    neighbours = {clip_name: dataset.stored(clip_name) for clip_name in ("b0", "b2")}
    report = forget(dataset.url, name)
    assert report.sources == ["/videos/a.mp4", "/videos/d.mp4"]
    assert report.clips == sorted(ids)
    check_gone(dataset, ids, secrets)
    assert {clip_name: dataset.stored(clip_name) for clip_name in neighbours} == neighbours
    con = Catalog(dataset.out, dataset.scratch).connect()
    assert {row["source_uri"] for row in values(con, "SELECT * FROM sources")} == {"/videos/b.mp4", "/videos/c.mp4"}


def test_the_ledger_never_lets_the_forgotten_back(dataset: Any) -> None:
    forget(dataset.url, "a.mp4")
    forget(dataset.url, small_dataset.identity("b0"))
    ledger = Ledger(Catalog(dataset.out, dataset.scratch), dataset.blueprint)
    contents = {pair for batch in ledger.contents() for pair in batch}
    assert (small_dataset.SHA_A, "") in contents
    assert (small_dataset.SHA_B, "/videos/b.mp4") in contents
    assert ledger.accept_clip("/videos/b.mp4", small_dataset.identity("b0")) is False
    # The refused source's own row does not make its URI the holder of the content again.
    dataset.catalog = Catalog(dataset.out, dataset.scratch)
    dataset.commit(dataset.source("a", "forgotten"))
    ledger.refresh()
    assert {uri for batch in ledger.contents() for content, uri in batch if content == small_dataset.SHA_A} == {""}


def test_a_source_without_clips_goes(dataset: Any) -> None:
    assert forget(dataset.url, "c.mp4").sources == ["/videos/c.mp4"]
    assert "/videos/c.mp4" not in catalog_text(dataset.url)
    assert not verify(dataset.url, 1).count


def test_a_damaged_neighbour_fails_instead_of_looking_sound(dataset: Any) -> None:
    path = Path(dataset.url, dataset.row("b0")["shard"])
    data = bytearray(path.read_bytes())
    data[-12_000] ^= 1
    path.write_bytes(data)
    report = forget(dataset.url, small_dataset.identity("a0"))
    assert len(report.damaged) == 1
    row = dataset.row("b0")
    assert (row["status"], row["code"], row["shard"]) == ("failed", "STORAGE_ERROR", None)
    check_gone(dataset, [small_dataset.identity("a0")], [])


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.long)])
def test_killed_at_any_call_and_done_again(
    dataset: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    ids = [small_dataset.identity(name) for name in ("a0", "a1", "a2")]
    secrets = [mark for name in ("a0", "a2") for mark in video_marks(dataset.stored(name))]
    neighbours = {small_dataset.identity(name): dataset.stored(name) for name in ("b0", "b2")}
    # With near duplicates: the clips of A are in the table of embeddings, and B's rows name them.
    vectors.embed(dataset, {"a0": (1.0, 0.0), "b0": (1.0, 0.1), "b2": (0.0, 1.0, 0.0)})
    vectors.embed(dataset, {"a2": (0.0, 0.0, 1.0)}, number=1)
    assert dedup(dataset.url).groups == 1
    dataset.out.put(REPORT, b"".join(secrets))
    for step in itertools.count(1, stride):
        shutil.copytree(tmp_path / "out", tmp_path / f"out{step}")
        dataset = small_dataset.Dataset(str(tmp_path / f"out{step}"), tmp_path / "scratch")
        kill_at(step, monkeypatch)
        try:
            forget(dataset.url, "a.mp4")
            break
        except Killed:
            monkeypatch.undo()
        report = verify(dataset.url, 1)
        assert not report.count, (step, report.problems)
        if report.checked["forgotten"]:
            finish_forgetting(Catalog(dataset.out, dataset.scratch))
        else:
            forget(dataset.url, "a.mp4")
        # Leftovers of the killed attempt may stay until the next sweep, but without a byte of the forgotten clips.
        assert not any(clip in catalog_text(dataset.url) for clip in ids)
        assert not any(secret in dataset.all_bytes() for secret in secrets), step
        embedded = [clip for ids in embeddings.read_ids(dataset.out, ClipEmbedding.version) for clip in ids.to_pylist()]
        assert embedded == [*neighbours], step
        rows = [row for (clip, layer), row in dataset.rows().items() if clip in neighbours and layer == "base"]
        assert len(rows) == len(neighbours)
        for row in rows:
            stored = group_members(dataset.out.read(row["shard"], row["offset"], row["bytes"]))
            assert stored == {row["clip_id"]: neighbours[row["clip_id"]]}
    monkeypatch.undo()
    check_gone(dataset, ids, secrets)
    assert step > 16


def test_one_run_at_a_time(dataset: Any) -> None:
    with hold_lock(dataset.out), pytest.raises(RunError, match="another run"):
        forget(dataset.url, "a.mp4")


def test_nothing_to_finish_writes_nothing(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(dataset.url, "a.mp4")
    for name in ("put", "create", "delete"):
        monkeypatch.delattr(Folder, name)
    finish_forgetting(Catalog(dataset.out, dataset.scratch))


@pytest.mark.long
def test_on_an_object_store(s3: Any, tmp_path: Path) -> None:
    dataset = small_dataset.Dataset(f"{s3.url}/out", tmp_path / "scratch").fill()
    neighbours = {name: dataset.stored(name) for name in ("b0", "b2")}
    forget(dataset.url, "a.mp4")
    report = verify(dataset.url, 1)
    assert not report.count, report.problems
    assert not report.notes
    dataset.catalog = Catalog(dataset.out, tmp_path / "fresh")
    (tmp_path / "fresh").mkdir()
    rows = values(
        dataset.catalog.connect(), "SELECT source_uri FROM parts WHERE kind <> 'forgotten' AND source_uri <> ''"
    )
    assert {row["source_uri"] for row in rows} == {"/videos/b.mp4", "/videos/c.mp4"}
    dataset.scratch = tmp_path / "fresh"
    assert {name: dataset.stored(name) for name in neighbours} == neighbours


def test_what_an_interrupted_forget_wrote_does_not_outlive_the_next(
    dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    survivor = video_marks(dataset.stored("b0"))
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "commit", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            forget(dataset.url, small_dataset.identity("a0"))
    forget(dataset.url, small_dataset.identity("b0"))
    assert not any(mark in dataset.all_bytes() for mark in survivor)
