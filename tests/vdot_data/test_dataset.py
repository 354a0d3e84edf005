"""The Python API, on a dataset that an older version wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import older_data
import pytest
import small_dataset

import vdot_data
from pipeline.errors import UsageError
from pipeline.formats.schema import SAMPLE


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> vdot_data.Dataset:
    return vdot_data.open(str(older_data.copy(tmp_path_factory.mktemp("older")) / "dataset"))


def test_clips_are_rows_with_the_signals_of_every_layer(dataset: vdot_data.Dataset) -> None:
    clips = dataset.clips(columns=["clip_id", "status", "scribble_density", "motion"])
    assert clips.column_names == ["clip_id", "status", "scribble_density", "motion"]
    assert clips["status"].to_pylist() == ["kept"] * 6
    assert None not in clips["motion"].to_pylist()
    assert clips["clip_id"].to_pylist() == sorted(clips["clip_id"].to_pylist())


def test_predicates_choose(dataset: vdot_data.Dataset) -> None:
    moving = dataset.clips(["motion > 0.5", "status = 'kept'"])
    assert 0 < moving.num_rows <= 6
    assert set(moving.filter(moving["motion"].to_numpy() <= 0.5)["clip_id"].to_pylist()) == set()
    assert dataset.clips("motion < 0").num_rows == 0


@pytest.mark.parametrize(
    ("where", "columns", "message"),
    [
        ("lumma > 3", None, "did you mean 'luma'"),
        ((), ["lumma"], "did you mean 'luma'"),
        ("motion", None, "must be true or false"),
        ("motion >", None, "where"),
    ],
)
def test_a_mistake_gets_a_sentence(
    dataset: vdot_data.Dataset, where: str, columns: list[str] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        dataset.clips(where, columns=columns)


def test_sources_say_what_became_of_them(dataset: vdot_data.Dataset) -> None:
    sources = dataset.sources(form="arrow").to_pylist()
    assert [Path(source["source_uri"]).name for source in sources] == [
        "1.mp4", "2.mp4", "3.mp4", "cut_short.mp4", "dark.mp4",
    ]  # fmt: skip
    assert [source["status"] for source in sources] == ["cut", "cut", "cut", "failed", "cut"]
    assert sources[3]["code"] == "DECODE_ERROR"


def test_a_clip_is_read_with_its_layers(dataset: vdot_data.Dataset) -> None:
    clip = dataset.read(dataset.clips(columns=["clip_id"])["clip_id"][0].as_py())
    assert clip.tracks == ["flow", "scribble"]
    frames = clip.frames()
    assert (frames.shape, frames.dtype) == ((17, 96, 128, 3), np.uint8)
    assert clip.frames("flow").shape == frames.shape
    assert clip.caption is None
    assert clip.data["fps"] == 8.0
    assert len(repr(clip)) < 100
    assert dataset.read(clip.clip_id[:6]) == dataset.read(dataset.clips(columns=["clip_id"])["clip_id"][0]) == clip
    with pytest.raises(UsageError, match=r"has no track 'pose'; .*flow.*scribble"):
        clip.frames("pose")
    with pytest.raises(UsageError, match="no clip and no source 'nothing'"):
        dataset.read("nothing")
    with pytest.raises(UsageError, match="is a source"):
        dataset.read("1.mp4")
    with pytest.raises(UsageError, match="give 6 digits or more"):
        dataset.read(clip.clip_id[:5])


def test_only_a_kept_clip_is_read(tmp_path: Path) -> None:
    small = small_dataset.Dataset(str(tmp_path / "out"), tmp_path / "scratch").fill()
    opened = vdot_data.open(small.url)
    identity = small_dataset.identity
    assert sorted(opened.read(identity("a0")).members) == ["flow.json", "flow.mp4", "json", "mp4", "scribble.mp4"]
    assert opened.read(identity("a2")).members == small.stored("a2")
    # One that other rules reject keeps its layer's row and the place of its own sample.
    place = {name: small.row("a0")[name] for name in SAMPLE}
    small.commit(small.clip("a0", "rejected", rule="too_dark", **place))
    for name, status in (("a0", "rejected"), ("a1", "rejected"), ("b1", "failed"), ("b2", "pending")):
        assert small.row(name)["status"] == status
        with pytest.raises(UsageError, match=rf"clip {identity(name)} is {status}.*only kept ones are read"):
            opened.read(identity(name))


def test_it_explains_and_selects(dataset: vdot_data.Dataset) -> None:
    assert dataset.explain("cut_short.mp4")["verdict"]["code"] == "DECODE_ERROR"
    selection = dataset.select("scribble_density > 0")
    assert (selection.selected, selection.against and selection.against.added) == (5, 0)


def test_shards_are_webdataset_tars_that_exist(dataset: vdot_data.Dataset) -> None:
    shards = dataset.shards()
    assert len(shards) == 2
    assert all(Path(shard).is_file() for shard in shards)


def test_what_is_not_a_dataset_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a dataset"):
        vdot_data.open(str(tmp_path))


def test_the_import_loads_no_heavy_library() -> None:
    script = (
        "import sys, json, vdot_data; print(json.dumps(sorted({'ray', 'duckdb', 'cv2', 'torch'} & set(sys.modules))))"
    )
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(process.stdout) == []
