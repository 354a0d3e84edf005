"""Tests that the accuracy table counts what rules find and miss, and their false alarms, in labelled clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest
import small_videos
import yaml

from benchmarks.ingest.accuracy import (
    _Label,
    _load_labels,
    _score_duplicates,
    _score_words,
    format_table,
    measure,
)
from pipeline.errors import UsageError


def write_labels(folder: Path, *entries: dict[str, Any]) -> Path:
    (folder / "labels.json").write_text(json.dumps(entries))
    return folder


@pytest.mark.slow
@pytest.mark.long
def test_found_missed_and_wrongly_claimed(tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    small_videos.write(folder / "night.mp4", 1, tint=(10, 10, 10))
    small_videos.write(folder / "dusk.mp4", 2, tint=(120, 110, 130))
    small_videos.write(folder / "day.mp4", 3, tint=(120, 110, 130))
    small_videos.write(folder / "cave.mp4", 4, tint=(12, 12, 12))
    dark = {"kind": "derived", "tags": ["dark"]}
    original = {"kind": "original", "tags": []}
    write_labels(
        folder,
        {"file": "night.mp4", **dark},
        {"file": "dusk.mp4", **dark},
        {"file": "day.mp4", **original},
        {"file": "cave.mp4", **original},
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_videos.RECIPE | {"rules": {"too_dark": "luma < 40"}}))
    result = measure(folder, recipe, None)
    dark_result = next(kind for kind in result["kinds"] if kind["kind"] == "dark")
    assert (dark_result["found"], dark_result["of"], dark_result["missed"]) == (1, 2, ["dusk.mp4"])
    assert (dark_result["false_alarms"], dark_result["others"], dark_result["alarms"]) == (1, 2, ["cave.mp4"])
    assert "| dark | `too_dark` | 1 of 2 | 1 of 2 | 0.50 | 0.50 |" in format_table(result)


def test_a_derived_clip_shows_what_its_source_shows(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"")
    write_labels(
        tmp_path,
        {"file": "a.mp4", "kind": "original", "tags": ["person", "cuts"], "shows": "3 hard cuts at 4,9,20"},
        {"file": "b.mp4", "kind": "derived", "tags": ["blur"], "path": "ffmpeg -i dev/a.mp4 -vf gblur"},
        {"file": "c.mp4", "kind": "derived", "tags": [], "path": "ffmpeg -i dev/b.mp4 -vf hflip"},
    )
    labels = {label.file: label for label in _load_labels(tmp_path)}
    assert labels["b.mp4"].tags == {"blur", "person"}
    assert labels["c.mp4"].tags == {"person"}
    assert labels["a.mp4"].truth == {"cuts_frames": [4, 9, 20]}


@pytest.mark.parametrize("text", ["", "[]x", '{"a": 1}', '[{"name": "a.mp4"}]', '[{"file": "absent.mp4"}]'])
def test_labels_that_cannot_be_used_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UsageError, match=r"labels\.json"):
        _load_labels(tmp_path)


def test_words_are_compared_by_their_letters() -> None:
    con = duckdb.connect()
    con.execute(
        "CREATE TABLE clips AS SELECT 'base' AS layer, * FROM (VALUES "
        "('/v/a.mp4', 'LOOK! Whatthe dog / found', 'kept'), ('/v/a.mp4', NULL, 'kept'), "
        "('/v/b.mp4', 'SAMPLESTOC', 'rejected'), ('/v/c.mp4', NULL, 'failed')) t(source_uri, words, status)"
    )
    truth: dict[str, dict[str, Any]] = {
        "a.mp4": {"text": ["Look what the dog", "Found", "A rope"]},
        "b.mp4": {"watermark_text": "samplestock"},
        "c.mp4": {"text": ["x"]},
        "d.mp4": {},
    }
    labels = [_Label(name, False, frozenset(), expected, 25.0, frozenset({name})) for name, expected in truth.items()]
    (result,) = _score_words(labels, con)
    assert (result.found, result.of) == (2, 4)
    assert result.missed == ["'A rope' in a.mp4", "'samplestock' in b.mp4"]
    assert result.unmeasured == ["c.mp4"]


def test_copies_are_pairs_and_relatives_are_no_false_alarm() -> None:
    con = duckdb.connect()
    con.execute(
        "CREATE TABLE clips AS SELECT 'duplicates' AS layer, * FROM (VALUES ('/v/a.mp4', 'g'), ('/v/copy.mp4', 'g'), "
        "('/v/dark.mp4', 'g'), ('/v/other.mp4', 'g'), ('/v/lost.mp4', NULL)) t(source_uri, duplicate_group)"
    )
    truth = {"copy.mp4": {"duplicate_of": "a.mp4"}, "lost.mp4": {"mirror_of": "a.mp4"}}
    labels = [
        _Label(name, True, frozenset(), truth.get(name, {}), 25.0, frozenset({name, *relatives}))
        for name, relatives in (
            ("a.mp4", []), ("copy.mp4", ["a.mp4"]), ("dark.mp4", ["a.mp4"]), ("lost.mp4", ["a.mp4"]), ("other.mp4", [])
        )
    ]  # fmt: skip
    result = _score_duplicates(labels, con)
    assert (result.found, result.of, result.missed) == (1, 2, ["lost.mp4"])
    assert result.alarms == ["a.mp4 and other.mp4", "copy.mp4 and other.mp4", "dark.mp4 and other.mp4"]
