"""Datasets in an object store: one ranged read a clip, a bounded cache that survives kills, and store failures."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import small_mixture

from pipeline.errors import RunError, UsageError
from training.data.range_cache import Cache
from training.data.stream import Stream


def read_steps(stream: Stream, steps: int) -> list[Any]:
    batches = [
        (batch.keys, [array.tobytes() for array in batch.arrays.values()])
        for step in islice(stream, steps)
        for batch in step
    ]
    stream.close()
    return batches


def test_a_dataset_in_a_store_gives_what_one_on_a_disk_does(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    near = read_steps(Stream(str(small_mixture.make(tmp_path / "near"))), 6)
    far = str(small_mixture.make(tmp_path / "far", url=f"{s3.url}/data"))
    before = s3.faults()["served"]
    assert read_steps(Stream(far), 6) == near
    # One request for each clip that was drawn, none for a listing.
    assert s3.faults()["served"] - before == 24
    s3.faults(0.2)
    assert read_steps(Stream(far, workers=2), 6) == near


def test_what_was_read_comes_from_the_folder_the_next_time(s3: Any, tmp_path: Path) -> None:
    mixed = str(small_mixture.make(tmp_path, url=f"{s3.url}/data"))
    first = read_steps(Stream(mixed, cache=str(tmp_path / "cache"), workers=1), 15)
    before = s3.faults()["served"]
    cached = sorted((tmp_path / "cache").iterdir())
    assert len(cached) == 12
    assert read_steps(Stream(mixed, cache=str(tmp_path / "cache")), 15) == first
    assert s3.faults()["served"] == before
    # A truncated file is fetched again.
    os.truncate(cached[0], 100)
    assert read_steps(Stream(mixed, cache=str(tmp_path / "cache")), 15) == first
    assert s3.faults()["served"] == before + 1


def test_a_store_that_stays_away_ends_the_run_with_a_sentence(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed = small_mixture.make(tmp_path, url=f"{s3.url}/data")
    monkeypatch.setattr("pipeline.storage.object_store.ATTEMPTS", 2)
    s3.faults(1.0, ("dropped",))
    with pytest.raises(RunError, match=r"a clip cannot be read: .*failed 2 times"):
        read_steps(Stream(str(mixed)), 1)
    file = mixed / "mixture.json"
    file.write_text(file.read_text().replace("s3://", "nowhere://"))
    stream = Stream(str(mixed), workers=1)
    with pytest.raises((RunError, UsageError), match=r"nowhere"):
        read_steps(stream, 60)
    stream.close()


def fill(folder: str, seed: int) -> None:
    """Put 40 ranges of 10 kB into a folder that holds ten of them."""
    cache, rng = Cache(folder, 100_000), np.random.default_rng(seed)
    while True:
        number = int(rng.integers(40))
        assert cache.get(f"range {number}", 10_000, lambda number=number: bytes([number]) * 10_000)[0] == number


def test_a_folder_keeps_within_its_bound_and_survives_kills(tmp_path: Path) -> None:
    (tmp_path / "somebody's file").write_text("not ours")
    for round_ in range(3):
        fillers = [multiprocessing.Process(target=fill, args=(str(tmp_path), 3 * round_ + k)) for k in range(3)]
        for filler in fillers:
            filler.start()
        # However long they take to start, they are killed while filling.
        program.poll(lambda: len(list(tmp_path.iterdir())) > 1, 60, "a filler has begun")
        time.sleep(0.3)
        for filler in fillers:
            assert filler.pid is not None
            os.kill(filler.pid, signal.SIGKILL)
            filler.join()
            assert filler.exitcode == -signal.SIGKILL
        files = [path for path in tmp_path.iterdir() if path.name != "somebody's file"]
        # Each of the three processes may exceed the bound by the range it is adding.
        assert 0 < sum(path.stat().st_size for path in files) <= 130_000
        # Files with their final name are complete, whenever a process was killed.
        complete = [path for path in files if "-" not in path.name.removesuffix(".part-of-shard")]
        assert {path.stat().st_size for path in complete} == {10_000}
        assert all(len(set(path.read_bytes())) == 1 for path in complete)
    assert (tmp_path / "somebody's file").read_text() == "not ours"


def test_what_was_not_asked_for_longest_goes_first(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 30_000)
    fetched: list[str] = []

    def get(name: str) -> None:
        cache.get(name, 10_000, lambda: fetched.append(name) or bytes(10_000))  # type: ignore[func-returns-value]
        time.sleep(0.01)

    for name in ("a", "b", "c", "a", "d", "a", "c", "b"):
        get(name)
    assert fetched == ["a", "b", "c", "d", "b"]
