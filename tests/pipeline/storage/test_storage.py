"""Tests storage: objects are complete or absent, one writer wins, and results are right on a bad network."""

from __future__ import annotations

import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fsspec.config
import pytest

from pipeline.errors import RunError, UsageError
from pipeline.storage import object_store
from pipeline.storage.atomic import is_temporary
from pipeline.storage.folder import Folder
from pipeline.storage.object_store import StorageError, retry


@pytest.fixture(params=["local", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    if request.param == "s3":
        return Folder(request.getfixturevalue("s3").url + "/some/folder")
    return Folder(str(tmp_path / "out")) if request.param == "local" else Folder(f"memory://{tmp_path}")


def test_the_whole_life_of_objects(folder: Folder, tmp_path: Path) -> None:
    assert folder.list_files() == folder.list_files("catalog") == []
    assert not folder.exists("catalog/1")
    assert folder.create("catalog/1", b"first")
    assert folder.create("catalog/1", b"first"), "the same bytes: a retry whose answer was lost"
    assert not folder.create("catalog/1", b"other")
    assert folder.read("catalog/1") == b"first"
    assert [entry.name for entry in folder.list_files("catalog")] == ["1"]

    folder.put("catalog/1", b"second version")
    (tmp_path / "file").write_bytes(b"from a file")
    folder.put("catalog/0", tmp_path / "file")
    entries = folder.list_files("catalog")
    assert [(entry.name, entry.size) for entry in entries] == [("0", 11), ("1", 14)]
    assert all(abs(entry.modified - time.time()) < 60 for entry in entries)
    assert folder.exists("catalog/0")
    assert not folder.exists("catalog"), "a folder is no object"
    assert folder.list_files() == []

    assert folder.read("catalog/1", 7) == b"version"
    assert folder.read("catalog/1", 7, 3) == b"ver"
    assert folder.read("catalog/1", 0, 6) == b"second"
    assert folder.read("catalog/1", 10, 100) == b"sion"
    assert folder.read("catalog/1", 14, 5) == folder.read("catalog/1", 3, 0) == b""
    folder.put("empty", b"")
    assert folder.read("empty") == folder.read("empty", 0, 4) == b""

    folder.download("catalog/1", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"second version"
    folder.delete("catalog/1")
    folder.delete("catalog/1")
    assert [entry.name for entry in folder.list_files("catalog")] == ["0"]
    with pytest.raises(FileNotFoundError):
        folder.read("catalog/1")
    with pytest.raises(FileNotFoundError):
        folder.download("catalog/1", tmp_path / "copy")
    with pytest.raises(FileNotFoundError):
        folder.put("a", tmp_path / "missing")
    folder.check_writable()
    assert [entry.name for entry in folder.list_files()] == ["empty"]


def test_names_sees_what_another_writer_made_at_once(folder: Folder) -> None:
    copy = pickle.loads(pickle.dumps(folder))
    assert (copy.url, copy.local) == (folder.url, folder.local)
    for number in range(5):
        copy.put(f"catalog/{number}", b"x")
        assert len(folder.list_files("catalog")) == number + 1


def test_a_pickle_brings_the_configuration_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "memory", {"answer": 42})
    data = pickle.dumps(Folder("memory://x"))
    code = (
        "import pickle, sys, fsspec.config; folder = pickle.loads(sys.stdin.buffer.read()); "
        "assert fsspec.config.conf['memory'] == {'answer': 42}; assert folder.url == 'memory:///x'"
    )
    subprocess.run([sys.executable, "-c", code], input=data, check=True)


RACE_SCRIPT = """
import sys
from pipeline.storage.folder import Folder
folder, me, count = Folder(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True); sys.stdin.readline()
print(" ".join(str(n) for n in range(count) if folder.create(f"catalog/{n:06}", f"{me} wrote {n}".encode())))
"""


def race(url: str, count: int) -> list[set[int]]:
    """Two processes create the same names; returns the names that each created."""
    command = [sys.executable, "-c", RACE_SCRIPT, url]
    racers = [
        subprocess.Popen([*command, name, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for name in ("left", "right")
    ]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    return [set(map(int, racer.communicate(timeout=300)[0].split())) for racer in racers]


@pytest.mark.parametrize("location", ["local", pytest.param("s3", marks=pytest.mark.long)])
def test_of_two_processes_exactly_one_creates_each_name(
    location: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = 300 if location == "local" else 60
    url = str(tmp_path)
    if location == "s3":
        server = request.getfixturevalue("s3")
        server.faults(0.1)
        url = f"{server.url}/race"
    first, second = race(url, count)
    assert first | second == set(range(count))
    assert not first & second
    folder = Folder(url)
    assert [entry.name for entry in folder.list_files("catalog")] == [f"{n:06}" for n in range(count)]
    for number in random.Random(0).sample(range(count), 20):
        winner = "left" if number in first else "right"
        assert folder.read(f"catalog/{number:06}") == f"{winner} wrote {number}".encode()


def test_create_and_put_never_lie_about_a_bad_store(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_DELAY_S", 0.01)
    folder = Folder(f"{s3.url}/bad")
    s3.faults(0.3)
    for number in range(40):
        assert folder.create(f"{number}", b"mine")
        assert not folder.create(f"{number}", b"thine")
        folder.put(f"put-{number}", b"whole")
    assert len(folder.list_files()) == 80
    counts = s3.faults(0.0)
    assert all(folder.read(f"{number}") == b"mine" for number in range(40))
    assert min(counts[kind] for kind in ("error-500", "slow-down", "dropped", "lost-answer")) > 0


def test_a_large_file_goes_up_in_parts_through_a_bad_network(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "FIRST_DELAY_S", 0.01)
    file = tmp_path / "large"
    file.write_bytes(os.urandom(1000) * 105_000)
    folder = Folder(s3.url)
    s3.faults(0.2, ("lost-answer", "error-500"))
    folder.put("large", file)
    s3.faults(0.0)
    assert [(entry.name, entry.size) for entry in folder.list_files()] == [("large", 105_000_000)]


@pytest.mark.parametrize("kind", ["error-500", "slow-down", "dropped"])
def test_after_the_last_retry_there_is_one_sentence(s3: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(object_store, "LONGEST_DELAY_S", 0.01)
    folder = Folder(s3.url)
    s3.faults(1.0, (kind,))
    with pytest.raises(StorageError, match=r"^creating s3://bucket/name failed 8 times: "):
        folder.create("name", b"")
    assert s3.faults()[kind] >= 8
    with pytest.raises(RunError, match="s3://bucket cannot be written to"):
        folder.check_writable()


KILLED_SCRIPT = """
import os, sys, threading
from pathlib import Path
from pipeline.storage.folder import Folder
print("ready", flush=True)
data = bytes(64 * 2**20)
while True:
    Folder(sys.argv[1]).put("object", data)
"""


def test_a_kill_in_the_middle_of_put_leaves_no_partial_object(tmp_path: Path) -> None:
    leftovers = 0
    for delay in (0.02, 0.05, 0.08):
        target = tmp_path / str(delay)
        with subprocess.Popen([sys.executable, "-c", KILLED_SCRIPT, target], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            while not (target.exists() and any(target.iterdir())):
                time.sleep(0.001)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        names = [path.name for path in target.iterdir()]
        leftovers += sum(is_temporary(name) for name in names)
        assert all(name == "object" or is_temporary(name) for name in names)
        entries = Folder(str(target)).list_files()
        assert [(entry.name, entry.size) for entry in entries] in ([], [("object", 64 * 2**20)])
    assert leftovers, "no kill met a write: the test has shown nothing"


def test_readers_never_see_part_of_a_put(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.put("object", bytes(2**20))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            folder.put("object", bytes(2**20))

    writer = threading.Thread(target=write)
    writer.start()
    sizes = {len(folder.read("object")) for _ in range(200)}
    stop.set()
    writer.join()
    assert sizes == {2**20}


def test_what_cannot_be_written_to_is_one_sentence(tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file; a dataset is a folder"):
        Folder(str(tmp_path / "file"))
    with pytest.raises(RunError, match="cannot be written to"):
        Folder(str(tmp_path / "file" / "below")).check_writable()
    with pytest.raises(RunError, match=r"s3://absent does not exist"):
        Folder("s3://absent").check_writable()
    with pytest.raises(UsageError, match="nonsense"):
        Folder("nonsense://x")
    for number, message in [
        (errno.ENOSPC, "no space left"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "cannot be"),
    ]:

        def refuse(*_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(RunError, match=message):
                Folder(str(tmp_path / "out")).check_writable()
    assert Folder(str(tmp_path / "out")).list_files() == []
    assert list((tmp_path / "out").iterdir()) == [], "what failed is cleaned up"


def test_a_store_without_an_atomic_create_is_refused() -> None:
    with pytest.raises(RunError, match="atomic create"):
        Folder("http://127.0.0.1:9/x").check_writable()


def test_only_transient_errors_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def calls(error: Exception) -> int:
        attempts = 0

        def work() -> None:
            nonlocal attempts
            attempts += 1
            raise error

        with pytest.raises((OSError, RunError)):
            retry("trying", work)
        return attempts

    assert calls(ConnectionResetError()) == calls(TimeoutError()) == calls(OSError(errno.EIO, "x")) == 8
    assert calls(FileNotFoundError()) == calls(PermissionError()) == calls(IsADirectoryError()) == 1
    assert calls(OSError(errno.ENOSPC, "full")) == calls(OSError(errno.EINVAL, "bad name")) == 1
