"""Tests that every damaged file gets a verdict in one ingest, and that wrong outcomes are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import ffmpeg
from benchmarks.ingest import mutants
from benchmarks.ingest.mutations import MUTATIONS, mutate


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_changes_a_file_the_same_way_each_time(name: str) -> None:
    data, donor = bytes(range(256)) * 40 + b"moov" + bytes(2000), bytes(5000)
    copies = [mutate(name, data, donor, seed) for seed in "abcdef"]
    assert copies == [mutate(name, data, donor, seed) for seed in "abcdef"]
    assert len(set(copies)) > 2
    assert data not in copies


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_tiny_file_can_be_mutated(name: str) -> None:
    assert mutate(name, b"0123456789", b"abc", "") != b"0123456789"


def test_every_format_is_made_and_read_whole(tmp_path: Path) -> None:
    files = mutants.write_originals(tmp_path, None)
    assert [file.name for file in files] == list(mutants.FORMATS)
    for file in files:
        reading = ffmpeg.decode(file)
        assert reading.is_clean, (file.name, reading.errors)
        assert len(reading.frames) in {40, 63}, file.name


def test_what_must_not_happen_is_found() -> None:
    def source(name: str, status: str, **columns: Any) -> dict[str, Any]:
        return {"source_uri": f"/v/{name}", "status": status, "code": None, "detail": None, "windows": None} | columns

    def clip(name: str, status: str, clip_id: str = "x") -> dict[str, Any]:
        return source(name, status) | {"clip_id": clip_id, "start_s": 0.0, "frames": 9}

    window = {"windows": [{"clip_id": "x"}]}
    intact, torn = ffmpeg.Reading(("0", "1"), ()), ffmpeg.Reading(("0", "9"), ("torn",))
    cases = {
        # name: (row of the source, rows of its clips, FFmpeg's reading, the list that it belongs to)
        "good.mp4": (source("good.mp4", "cut", **window), [clip("good.mp4", "kept")], intact, None),
        "torn.mp4": (source("torn.mp4", "failed", code="DECODE_ERROR"), [], torn, None),
        "lost.mp4": (source("lost.mp4", "cut", **window), [], torn, "no_verdict"),
        "open.mp4": (source("open.mp4", "cut", **window), [clip("open.mp4", "pending")], torn, "no_verdict"),
        "ours.mp4": (source("ours.mp4", "failed", code="INTERNAL_ERROR"), [], torn, "our_faults"),
        "clip.mp4": (source("clip.mp4", "cut", **window), [clip("clip.mp4", "failed")], torn, "clips_failed"),
        "clean.mp4": (
            source("clean.mp4", "failed", code="DECODE_ERROR"),
            [],
            ffmpeg.Reading(("0", "2"), ()),
            "blamed",
        ),
        "same.mp4": (source("same.mp4", "rejected"), [], ffmpeg.Reading(("0", "1"), ("a complaint",)), "unlike"),
    }
    files = [mutants.Mutant(Path("/v", name), "good.mp4", "flip_bits") for name in (*cases, "absent.mp4")]
    wrong = mutants._find_wrong(
        files,
        {name: row for name, (row, *_) in cases.items()},
        [row for _, rows, *_ in cases.values() for row in rows],
        {name: reading for name, (_, _, reading, _) in cases.items()} | {"absent.mp4": torn},
    )
    listed = {(entry.split()[0].rstrip(":"), kind) for kind, entries in wrong.items() for entry in entries}
    assert listed == {(name, kind) for name, (*_, kind) in cases.items() if kind} | {("absent.mp4", "no_verdict")}


@pytest.mark.slow
@pytest.mark.long
def test_sixty_mutants_in_one_ingest() -> None:
    result = mutants.measure(None, 60, 2)
    assert result["mutants"] == 60
    assert sum(result["sources"].values()) == 60 + result["originals"]
    assert mutants.list_faults(result) == []
