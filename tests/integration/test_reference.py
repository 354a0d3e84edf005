"""Tests stored clips against an independent reference: FFmpeg's own program.

About 280 small sources (codecs, containers, rates, pixel formats, ranges, matrices, turns, pixel shapes, start times,
B-frames, variable frame rates, edit lists, sound) show a number and patches of colour in each frame. No frame may be
lost, and every grid point must show the frame of its time, in its colours and its shape.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import ffmpeg_frames
import program
import pytest
import reference_check
import reference_files
import reference_sources
import yaml
from reference_check import Comparison, StoredClip
from reference_sources import Source

from pipeline.formats.clip_decode import decode_clip

pytestmark = [pytest.mark.slow, pytest.mark.long]

# Sources that differ from what ffmpeg shows, each with its first fault and the reason why it is accepted.
EXCEPTIONS: dict[str, str] = {}

# The number of sources that go through the complete program.
INGESTED = 30


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return reference_sources.sources()


@pytest.fixture(scope="module")
def results(sources: list[Source], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Comparison]:
    return reference_check.check_matrix(tmp_path_factory.mktemp("matrix"), sources)


def test_every_grid_point_shows_what_ffmpeg_shows(results: dict[str, Comparison]) -> None:
    faults = {name: result.faults[0] for name, result in results.items() if result.faults}
    assert faults == EXCEPTIONS


def test_the_matrix_does_not_shrink(sources: list[Source], results: dict[str, Comparison]) -> None:
    figures = reference_check.summarize(sources, results)
    minimum = {
        "sources": 280,
        "codecs": 34,
        "containers": 26,
        "codec and container": 90,
        "pairs of values": 1240,
        "frames": 19_000,
        "grid points": 11_300,
        "patches": 110_000,
    }
    assert {name: figures[name] for name in minimum if figures[name] < minimum[name]} == {}
    assert [name for name, result in results.items() if not result.patches and name not in EXCEPTIONS] == []


def test_the_whole_program_stores_what_ffmpeg_shows(
    sources: list[Source], vdot: Any, recipe: Any, tmp_path: Path
) -> None:
    """The same with `vdot-data ingest`, which adds shot detector, sandbox, shards and catalog."""
    chosen = random.Random(20).sample([source for source in sources if source.name not in EXCEPTIONS], INGESTED)
    folder = tmp_path / "sources"
    files = {}
    for index, source in enumerate(chosen):
        (folder / str(index)).mkdir(parents=True)
        files[f"{index}/source.{source.container}"] = source
        reference_files.make(source, folder / str(index))
    out = program.Out(tmp_path / "out")
    changes = yaml.safe_load(reference_check.RECIPE) | {"shots": "adaptive"}
    # By name, because some suffixes, such as .gif and .ogg, do not count as videos in a folder.
    process = vdot(
        "ingest", *(folder / name for name in files), "--out", out.url, "--recipe", recipe(**changes), timeout=400
    )
    assert process.returncode == 0, process.stderr
    samples, rows = out.samples(), out.clips().values()
    faults, points = {}, 0
    for name, source in files.items():
        clips = [
            StoredClip(row["start_s"], decode_clip(samples[row["clip_id"]]["mp4"]))
            for row in rows
            if row["source_uri"].endswith(f"/{name}") and row["status"] == "kept"
        ]
        reference = ffmpeg_frames.decode(folder / name)
        result = reference_check.check(reference, clips, source.layout)
        points += result.points
        steps = [float(after - before) for before, after in itertools.pairwise(reference.times)]
        # There is no clip where nothing was recorded
        seconds = sum(step for step in steps if step < 1)
        # Every shot loses up to three points, because a clip has 4n + 1
        if result.points < seconds * reference_check.FPS - 8:
            result.faults.append(f"{result.points} grid points of {seconds:.2f} s")
        if result.faults:
            faults[source.name] = result.faults[0]
    assert faults == {}
    assert points >= INGESTED * 37
