"""Tests that decoders that crash, hang or exhaust memory, and failing annotators, cost one source or clip each.

Each fault costs bounded time. They are injected from outside: a `sitecustomize` on PYTHONPATH changes `av.open` for
marked files in the decoder's process, and a package next to it, which is not installed, provides the annotator.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import program
import pytest
import small_videos

# `test_sandbox.py` has each of these faults, without a cluster.
pytestmark = pytest.mark.long

SITECUSTOMIZE = """
import sys

if "pipeline.video.sandbox_child" in sys.orig_argv:
    import ctypes
    import pathlib
    import re
    import time

    import av
    import numpy

    opened = av.open

    def faulty(file, *arguments, **options):
        path = pathlib.Path(str(file).removeprefix("file:"))
        held = []
        match path.read_bytes().rpartition(b"vdot-test:")[2] if path.is_file() else b"":
            case b"crash":
                ctypes.string_at(0)
            case b"sleep":
                time.sleep(3600)
            case b"spin":
                re.match("(a+)+$", "a" * 64 + "b")
            case b"eat":
                while True:
                    held.append(numpy.empty(64 << 20, numpy.uint8))
        return opened(file, *arguments, **options)

    av.open = faulty
"""

ANNOTATOR = '''
import os
import signal

import numpy as np

from annotators.base import Annotation, Signal


class Moody:
    """Fails on pure colours."""

    name = "moody"
    version = "1"
    tracks = ("mood",)
    signals = {"mood": Signal("0..255", "The mean.")}
    weights = ()

    def __call__(self, frames, fps):
        red, green, blue = frames.reshape(-1, 3).mean(axis=0)
        if red > green + blue:
            os.kill(os.getpid(), signal.SIGSEGV)
        if green > red + blue:
            raise ValueError("green is not for me")
        mood = frames[:-1] if blue > red + green else frames
        return Annotation(tracks={"mood": mood}, signals={"mood": float(frames.mean())})
'''

FAULTS = ("crash", "sleep", "spin", "eat")
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


@dataclass
class FaultyRun:
    """An ingest with all the faults at once."""

    process: CompletedProcess[str]
    out: Any
    scratch: Path
    survivors: list[Any]
    seconds: float


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: the faults, and a package that provides the annotator `moody`."""
    folder: Path = tmp_path_factory.mktemp("package")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (folder / "moody.py").write_text(ANNOTATOR)
    info = folder / "moody-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moody\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vdot_data.annotators]\nmoody = moody:Moody\n")
    return folder


@pytest.fixture(scope="module")
def faulty_run(vdot: Any, recipe: Any, package: Path, tmp_path_factory: pytest.TempPathFactory) -> FaultyRun:
    root: Path = tmp_path_factory.mktemp("faulty")
    folder, scratch = root / "videos", Path(tempfile.mkdtemp(dir=root))
    folder.mkdir()
    for seed, fault in enumerate(FAULTS):
        path = small_videos.write(folder / f"{fault}.mp4", seed)
        path.write_bytes(path.read_bytes() + f"vdot-test:{fault}".encode())
    for seed, (name, colour) in enumerate(COLOURS.items(), 10):
        small_videos.write(folder / f"{name}.mp4", seed, tint=colour)
    for seed in range(20, 24):
        small_videos.write(folder / f"good {seed}.mp4", seed, tint=(120, 110, 130))
    out = program.Out(root / "out")
    limits = {"stall_s": 5, "memory_mb": 1024, "worker_deaths": 2}
    recipe_file = recipe(stages=[["scribble"], ["moody"]], limits=limits)
    environment = {"PYTHONPATH": str(package), "VDOT_SCRATCH": str(scratch)}
    started = time.monotonic()
    process = vdot(
        "ingest", folder, "--out", out.url, "--recipe", recipe_file, "--cpus", 1, env=environment, timeout=400
    )
    seconds = time.monotonic() - started
    end = time.monotonic() + 30
    while (survivors := program.find_processes("VDOT_SCRATCH", str(scratch))) and time.monotonic() < end:
        time.sleep(0.05)
    return FaultyRun(process, out, scratch, survivors, seconds)


@pytest.mark.slow
def test_a_run_over_faults_ends_well_and_soon(faulty_run: FaultyRun) -> None:
    assert faulty_run.process.returncode == 0, faulty_run.process.stderr
    assert "Traceback" not in faulty_run.process.stderr
    assert faulty_run.seconds < 240


@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("crash", "DECODE_CRASH", "SIGSEGV"),
        ("sleep", "DECODE_TIMEOUT", "no progress for 5 s"),
        ("spin", "DECODE_TIMEOUT", "no progress for 5 s"),
        ("eat", "OUT_OF_MEMORY", "Unable to allocate"),
    ],
)
def test_a_fault_of_the_decoder_costs_its_source_alone(
    faulty_run: FaultyRun, fault: str, code: str, message: str
) -> None:
    row = faulty_run.out.sources()[f"{fault}.mp4"]
    assert (row["status"], row["code"], row["stage"]) == ("failed", code, "scan")
    assert message in row["detail"]


@pytest.mark.parametrize(
    ("colour", "code", "stage", "message"),
    [
        ("red", "WORKER_DIED", "stage 1", "moody"),
        ("green", "ANNOTATOR_ERROR", "moody", "ValueError: green is not for me (moody.py:"),
        (
            "blue",
            "ANNOTATOR_ERROR",
            "moody",
            "moody gave a track mood of uint8 (16, 96, 128, 3); the clip is uint8 (17, 96, 128, 3)",
        ),
    ],
)
def test_a_fault_of_an_annotator_costs_its_clip_alone(
    faulty_run: FaultyRun, colour: str, code: str, stage: str, message: str
) -> None:
    rows = [clip for clip in faulty_run.out.clips().values() if clip["source_uri"].endswith(f"/{colour}.mp4")]
    assert [(row["status"], row["code"], row["stage"]) for row in rows] == [("failed", code, stage)]
    assert message in rows[0]["detail"]


def test_everything_else_is_kept(faulty_run: FaultyRun, vdot: Any) -> None:
    kept_clips = [clip for clip in faulty_run.out.clips().values() if clip["status"] == "kept"]
    assert sorted(Path(clip["source_uri"]).name for clip in kept_clips) == [
        f"good {seed}.mp4" for seed in range(20, 24)
    ]
    assert all(
        {"mp4", "scribble.mp4", "mood.mp4", "json"} <= set(sample) for sample in faulty_run.out.samples().values()
    )
    assert vdot("verify", faulty_run.out.url, "--workers", 1).returncode == 0


def test_no_process_is_left_and_nothing_stays_on_the_scratch_disk(faulty_run: FaultyRun, vdot: Any) -> None:
    assert not faulty_run.survivors
    assert not [path for path in faulty_run.scratch.rglob("*") if not path.is_dir()]
    # A killed worker may leave its empty folder, which the next command removes.
    vdot("verify", faulty_run.out.url, "--workers", 1, env={"VDOT_SCRATCH": str(faulty_run.scratch)})
    assert not list(faulty_run.scratch.iterdir())
