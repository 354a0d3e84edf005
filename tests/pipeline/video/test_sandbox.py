"""Tests that the sandbox ends after any fault in it, reports the fault, and leaves no process behind."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.errors import ClipError, ErrorCode, RunError
from pipeline.formats.clip_encode import encode_clip
from pipeline.recipe import rules
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from pipeline.stages import sandboxed
from pipeline.video import content_box, sandbox_child
from pipeline.video.frames import read_frames
from pipeline.video.grid import Grid, Window
from pipeline.video.sandbox import Sandbox

# The child runs functions of this file, which it finds through PYTHONPATH.
HERE = "test_sandbox"


def count(n: int, size: int = 0) -> Iterator[object]:
    for index in range(n):
        print("noise on standard output", flush=True)  # noqa: T201
        yield index, np.full(size, index, np.uint8)


def process_id() -> Iterator[int]:
    yield os.getpid()


def segfault() -> Iterator[int]:
    yield 1
    sys.stderr.write("decoder.c: assertion failed\n")
    ctypes.string_at(0)


def sleep(seconds: float) -> Iterator[int]:
    yield os.getpid()
    time.sleep(seconds)


def hold_the_lock() -> Iterator[int]:
    yield os.getpid()
    re.match(r"(a+)+$", "a" * 64 + "b")


def swallow() -> Iterator[int]:
    yield len(np.ones(1 << 30, np.uint8))


def abort() -> Iterator[int]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield 1


def connect_rules() -> Iterator[str]:
    rules.connect()
    yield str(Path.cwd())


def fail(kind: str) -> Iterator[int]:
    yield 1
    if kind == "clip":
        raise ClipError(ErrorCode.NOT_VIDEO, "a letter")
    if kind == "run":
        raise RunError("No weights.")
    raise KeyError(kind)


def work_on(seconds: float, then_hang: bool) -> Iterator[str]:
    """Yield no item for a long time, but report progress."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
        sandbox_child.report_progress()
    time.sleep(60 if then_hang else 0)
    yield "done"


def slowly(step: str, frame_s: float, *args: object) -> Iterator[object]:
    """A step of `sandboxed` where every frame takes this long to decode."""

    def read_slowly(*arguments: Any) -> Iterator[object]:
        for frame in read_frames(*arguments):
            time.sleep(frame_s)
            yield frame

    sandboxed.read_frames = content_box.read_frames = read_slowly
    yield from getattr(sandboxed, step)(*args)


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    # Long enough for the imports of its children on a busy machine.
    with Sandbox(memory_mb=512, stall_s=60) as box:
        yield box


def warm_up(box: Sandbox) -> Sandbox:
    """Import everything that these tests need in the child: on a busy machine that takes longer than their stall limit.

    Module by module, because the child's own alarm is reset with each request.
    """
    list(box.stream("itertools:chain"))  # starts the child with the requested stall limit
    stall_s, box._stall_s = box._stall_s, 120
    for name in (
        "numpy",
        "pyarrow",
        "duckdb",
        "pytest",
        "pipeline.recipe.blueprint",
        "pipeline.stages.sandboxed",
        HERE,
    ):
        list(box.stream(f"{name}:__dir__"))
    box._stall_s = stall_s
    return box


def code_of(box: Sandbox, name: str, *args: object) -> tuple[ErrorCode, str]:
    with pytest.raises(ClipError) as caught:
        list(box.stream(f"{HERE}:{name}", *args))
    return caught.value.code, caught.value.detail


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_until_dead(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and is_alive(pid):
        time.sleep(0.05)
    return not is_alive(pid)


def test_items_come_whole_and_the_child_is_kept(sandbox: Sandbox) -> None:
    items = list(sandbox.stream(f"{HERE}:count", 3, size=5_000_000))
    assert [index for index, _ in items] == [0, 1, 2]
    assert all((array == index).all() and len(array) == 5_000_000 for index, array in items)
    first, second = (next(sandbox.stream(f"{HERE}:process_id")) for _ in range(2))
    assert first != os.getpid()
    assert not is_alive(first), "an abandoned stream costs its child"
    assert list(sandbox.stream(f"{HERE}:process_id")) != [second]
    assert list(sandbox.stream(f"{HERE}:process_id")) == list(sandbox.stream(f"{HERE}:process_id"))


def test_each_end_has_its_code(sandbox: Sandbox) -> None:
    assert len(list(sandbox.stream(f"{HERE}:count", 2))) == 2
    code, detail = code_of(sandbox, "segfault")
    assert code == ErrorCode.DECODE_CRASH
    start = "the decoder process was ended by SIGSEGV: decoder.c: assertion failed at __init__.py:"
    assert detail.startswith(start), "with its last words, and without those of earlier work"
    assert "string_at" in detail
    assert code_of(sandbox, "swallow")[0] == ErrorCode.OUT_OF_MEMORY
    code, detail = code_of(sandbox, "abort")
    assert code == ErrorCode.WORKER_DIED
    assert "SIGKILL" in detail
    assert "memory" in detail
    assert code_of(sandbox, "fail", "clip") == (ErrorCode.NOT_VIDEO, "a letter")
    code, detail = code_of(sandbox, "fail", "other")
    assert code == ErrorCode.INTERNAL_ERROR
    assert "KeyError" in detail
    with pytest.raises(RunError, match="No weights"):
        list(sandbox.stream(f"{HERE}:fail", "run"))
    assert [index for index, _ in sandbox.stream(f"{HERE}:count", 2)] == [0, 1]


def test_a_current_directory_that_is_gone_harms_nobody(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray deletes its workers' current directory if it considers another node of the same machine lost."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert list(sandbox.stream(f"{HERE}:connect_rules")) == ["/"]


@pytest.mark.parametrize("name", ["sleep", "hold_the_lock"])
def test_a_hang_is_ended(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Sandbox(memory_mb=512, stall_s=1) as box:
        warm_up(box)
        arguments = (60,) if name == "sleep" else ()
        stream = box.stream(f"{HERE}:{name}", *arguments)
        pid = next(stream)
        began = time.monotonic()
        with pytest.raises(ClipError, match="no progress for 1 s") as caught:
            next(stream)
        assert caught.value.code == ErrorCode.DECODE_TIMEOUT
        assert time.monotonic() - began < 6  # the child's own alarm is at 6.5 s
        assert not is_alive(pid)
        assert [index for index, _ in warm_up(box).stream(f"{HERE}:count", 2)] == [0, 1]


@pytest.mark.long
def test_slow_progress_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Sandbox(memory_mb=512, stall_s=1) as box:
        warm_up(box)
        # the child's own alarm is at 6.5 s
        assert list(box.stream(f"{HERE}:work_on", 8, then_hang=False)) == ["done"]
        began = time.monotonic()
        assert code_of(box, "work_on", 3, True)[0] == ErrorCode.DECODE_TIMEOUT
        assert 3 < time.monotonic() - began < 9
    sandbox_child.report_progress()  # does nothing outside a child


def test_ticks_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []
    monkeypatch.setattr(sandbox_child._Link, "send", lambda link, message: sent.append(message))
    monkeypatch.setattr(time, "monotonic", iter(np.arange(1.0, 2.0, 0.001)).__next__)
    link = sandbox_child._Link(sys.stdout.buffer, 60)
    link._sent_s = 0.5
    for _ in range(400):
        link.tick()
    assert sent == []
    link._sent_s = 0.2
    link.tick()
    assert len(sent) == 1


@pytest.mark.parametrize("frame_s", [pytest.param(0.03, marks=pytest.mark.long), 60])
def test_a_long_way_to_the_first_clip_is_no_hang(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, frame_s: float
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    path = tmp_path / "long.mp4"
    path.write_bytes(encode_clip(np.zeros((120, 48, 64, 3), np.uint8), 16.0))
    text = "{grid: {frames: 5, min_frames: 5}, crop_bars: true, shots: adaptive, rules: {}, tasks: {}, filters: [], "
    text += "stages: [[scribble]]}"
    blueprint = Blueprint.for_ingest(parse(text, "here"), ())
    last = Window("x", 7.0, 7.25, 5)
    assert Grid(frames=5, min_frames=5) == blueprint.recipe.grid
    for step, args in [("scan", ()), ("cut_clips", ([last], (64, 48), None, {}))]:
        with Sandbox(memory_mb=2048, stall_s=2.5) as box:
            warm_up(box)
            call = box.stream(f"{HERE}:slowly", step, frame_s, path, *args, blueprint)
            if frame_s < 1:
                assert list(call)
            else:
                with pytest.raises(ClipError, match="no progress"):
                    list(call)


@pytest.mark.long
def test_a_slow_consumer_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with Sandbox(memory_mb=512, stall_s=0.2) as box:
        warm_up(box)
        monkeypatch.setattr(box, "_stall_s", 60)  # the child's own alarm stays at 5.3 s
        indices = []
        for index, _ in box.stream(f"{HERE}:count", 3, size=1_000_000):
            indices.append(index)
            time.sleep(6 if index == 0 else 0)
        assert indices == [0, 1, 2]


def test_a_stream_left_for_another_leaves_the_sandbox_usable(sandbox: Sandbox) -> None:
    abandoned = sandbox.stream(f"{HERE}:count", 1000, size=100_000)
    next(abandoned)
    assert len(list(sandbox.stream(f"{HERE}:count", 3))) == 3
    with pytest.raises(RuntimeError, match="a later one"):
        list(abandoned)
    assert len(list(sandbox.stream(f"{HERE}:count", 3))) == 3


@pytest.mark.parametrize(
    ("name", "seconds"), [("sleep", 10.0), pytest.param("hold_the_lock", 60.0, marks=pytest.mark.long)]
)
def test_no_orphan_survives_its_parent(name: str, seconds: float) -> None:
    script = (
        f"import sys, time; from pipeline.video.sandbox import Sandbox; from {HERE} import warm_up\n"
        f"stream = warm_up(Sandbox(512, 5)).stream('{HERE}:{name}', *{[60] if name == 'sleep' else []})\n"
        "print(next(stream), flush=True); time.sleep(60)"
    )
    root = str(Path(sys.modules["pipeline.video.sandbox"].__file__ or "").parents[2])
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{root}"}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert is_alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert wait_until_dead(child, seconds)


def test_the_users_own_pipeline_folder_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    with Sandbox(memory_mb=512, stall_s=5) as box:
        assert list(box.stream("itertools:repeat", 7, 2)) == [7, 7]
