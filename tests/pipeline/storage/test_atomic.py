"""Files and folders appear whole or not at all, and nothing unfinished stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.storage.atomic import (
    begin_folder,
    is_temporary,
    new_file,
    new_folder,
    remove_folder,
    unfinished_path,
    write_file,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_by_a_complete_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    write_file(target, b"first")
    write_file(target, b"second")
    assert target.read_bytes() == b"second"
    with new_file(target) as unfinished:
        unfinished.write_bytes(b"third")
        assert target.read_bytes() == b"second"
    assert target.read_bytes() == b"third"
    assert names(target.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_fails_leaves_the_older_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file"
    write_file(target, b"first")
    with pytest.raises(error), new_file(target) as unfinished:
        unfinished.write_bytes(b"part")
        raise error
    with pytest.raises(error), new_folder(tmp_path / "folder") as unfinished:
        (unfinished / "part").write_bytes(b"part")
        raise error
    assert names(tmp_path) == ["file"]
    assert target.read_bytes() == b"first"


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "folder"
    with new_folder(target) as unfinished:
        (unfinished / "file").write_bytes(b"whole")
        assert not target.exists()
    assert names(target.parent) == ["folder"]
    assert names(target) == ["file"]
    remove_folder(target)
    assert not names(target.parent)


def test_a_folder_is_never_put_over_one_with_files(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"older")
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "folder") as unfinished:
        (unfinished / "file").write_bytes(b"newer")
    assert (tmp_path / "folder" / "file").read_bytes() == b"older"
    assert names(tmp_path) == ["folder"]


def test_a_writer_replaces_what_a_killed_one_left(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    script = (
        "import sys, time; from pathlib import Path; from pipeline.storage.atomic import new_folder\n"
        "with new_folder(Path(sys.argv[1])) as unfinished:\n"
        "    (unfinished / 'older').touch(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, target]) as process:
        deadline = time.monotonic() + 30
        while not (unfinished_path(target) / "older").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [".folder.half"]
    # As a checkpoint is written, by several processes: they share the path, and the first one makes it.
    assert names(begin_folder(target)) == []
    with new_folder(target) as unfinished:
        (unfinished / "newer").touch()
    assert names(tmp_path) == ["folder"]
    assert names(target) == ["newer"]


@pytest.mark.parametrize("sweeps", [1, 3])
def test_what_a_clean_up_deletes_unfinished_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweeps: int
) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"older")
    sync, moments = os.fsync, iter(range(sweeps))

    def sync_and_sweep(file: int) -> None:
        sync(file)
        unfinished = [path for path in tmp_path.iterdir() if is_temporary(path.name)]
        if unfinished and next(moments, None) is not None:
            unfinished[0].unlink()

    monkeypatch.setattr(os, "fsync", sync_and_sweep)
    if sweeps == 1:
        write_file(target, b"newer")
    else:
        with pytest.raises(FileNotFoundError):
            write_file(target, b"newer")
    assert target.read_bytes() == (b"newer" if sweeps == 1 else b"older")
    assert names(tmp_path) == ["file"]
