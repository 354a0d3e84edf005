"""Tests a mixture in the published trainer's format: its rows, their files, and what the format cannot hold."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import yaml
from small_dataset import RECIPE, SIZE, frames, identity, mp4

from pipeline.catalog.catalog import utc_now
from pipeline.curation.make_mixture import mix
from pipeline.curation.vdot_csv import COLUMNS, to_csv
from pipeline.errors import UsageError
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_png
from pipeline.recipe import recipe

TASKS = {
    "text": "true", "pose": "true", "gray": "true", "inpaint": "true", "outpaint": "true", "firstframe": "true",
    "extension": "true", "reference": "true", "depth": "true", "reference_pose": ["reference", "pose"],
    "outpaint_pose": ["outpaint", "pose"],
}  # fmt: skip


@pytest.fixture
def mixture(dataset: Any, tmp_path: Path) -> Path:
    """A mixture of three clips fit for every task: one with a caption, one without, one whose shard is gone."""
    text = recipe.parse(RECIPE.partition("tasks:")[0] + yaml.safe_dump({"tasks": TASKS}), "of the test").text
    members = {
        "mp4": mp4("m0"),
        "pose.mp4": mp4("m0 pose"),
        "ref.0.png": encode_png(frames("m0 r0")[0]),
        "ref.1.png": encode_png(frames("m0 r1")[0]),
        "json": json.dumps({"fps": 16.0}).encode(),
    }
    places = dataset.shard("shards", {"a8": members | {"txt": b'a film, or "two"\n'}, "a9": members})
    missing = dataset.shard("shards", {"b8": members | {"txt": b"b"}})
    locations = {**places, **missing}
    dataset.commit(
        {"kind": "run", "recipe": text, "version": "0.1.0", "started": utc_now()},
        *(dataset.clip(name, "kept", **location) | {"tasks": list(TASKS)} for name, location in locations.items()),
    )
    file = tmp_path / "mixture.yaml"
    dataset_part = {"path": "out", "where": "len(tasks) > 2"}
    file.write_text(yaml.safe_dump({"datasets": {"films": dataset_part}, "tasks": list(TASKS), "seed": 5}))
    mix(file, str(tmp_path / "mixed"))
    (tmp_path / "out" / missing["b8"]["shard"]).unlink()
    return tmp_path / "mixed"


def read_rows(folder: Path, name: str = "train") -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_leads_to_what_its_task_shows(mixture: Path, tmp_path: Path) -> None:
    folder, clip = tmp_path / "csv", identity("a8")
    result = to_csv(str(mixture), folder, frames=SIZE[0], workers=2)
    by_task = {row["task_name"]: row for row in read_rows(folder)}
    assert set(by_task) == {*TASKS} - {"text", "depth"}
    assert result.rows == {"train": dict.fromkeys([task for task in TASKS if task in by_task], 1), "held_out": {}}
    assert sum(result.left_out.values()) == 4
    assert any("without a caption" in reason for reason in result.left_out)
    assert any("damaged or gone" in reason for reason in result.left_out)
    assert any(reason.startswith("depth: it has no track 'depth'") for reason in result.left_out)
    assert any(reason.startswith("text: its form has no row") for reason in result.left_out)

    # The published trainer finds its target by the name of the source video, or of the first reference.
    truth = folder / "videos" / f"{clip}.mp4"
    assert truth.read_bytes() == mp4("m0")
    for row in by_task.values():
        assert tuple(row) == COLUMNS
        assert row["prompt"] == row["internvl_short"] == 'a film, or "two"\n'
        if row["src_video_path"]:
            assert Path(row["src_video_path"]).name == truth.name
        else:
            first = Path(row["ref_image_path"].split(",")[0]).name
            assert first.split(".")[0].split("_")[0] + ".mp4" == truth.name

    assert Path(by_task["pose"]["src_video_path"]).read_bytes() == mp4("m0 pose")
    assert by_task["reference_pose"]["src_video_path"] == by_task["pose"]["src_video_path"]
    assert by_task["pose"]["mask_video_path"] == ""
    assert by_task["reference"]["src_video_path"] == ""
    assert len(by_task["reference"]["ref_image_path"].split(",")) == 2

    clip_frames, pose = decode_clip(mp4("m0")), decode_clip(mp4("m0 pose"))
    for task in ("inpaint", "outpaint", "firstframe", "extension", "outpaint_pose"):
        source, mask_video = (
            decode_clip(Path(by_task[task][f"{kind}_video_path"]).read_bytes()) for kind in ("src", "mask")
        )
        assert source.shape == mask_video.shape == (*SIZE, 3)
        # As in the trainer: white is above one half.
        mask = mask_video[..., 0] > 127
        assert 0 < mask.mean() < 1
        filled = pose if task == "outpaint_pose" else np.full_like(pose, 127)
        # The clip is noise, stored as H.264 with a quarter of the colour resolution.
        assert np.abs(source.astype(int) - np.where(mask[..., None], filled, clip_frames)).mean() < 20


def test_again_writes_the_same_and_goes_on_from_what_is_there(mixture: Path, tmp_path: Path) -> None:
    to_csv(str(mixture), tmp_path / "one", frames=SIZE[0], workers=1)
    first_files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.mp4")}
    (tmp_path / "one" / "inpaint" / f"{identity('a8')}.mp4").unlink()
    existing = tmp_path / "one" / "outpaint" / f"{identity('a8')}.mp4"
    modified = existing.stat().st_mtime_ns
    to_csv(str(mixture), tmp_path / "one", frames=SIZE[0], workers=2)
    second_files = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.mp4")}
    assert first_files == second_files
    assert existing.stat().st_mtime_ns == modified


def test_by_the_command_line(mixture: Path, tmp_path: Path) -> None:
    vdot = program.Vdot(tmp_path)
    process = vdot("to-csv", mixture, "--to", tmp_path / "csv", "--frames", SIZE[0], "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["rows"]["train"]["pose"] == 1
    default = vdot("to-csv", mixture, "--to", tmp_path / "others", "--json")
    assert json.loads(default.stdout)["left_out"] == {"clips of another length than 81 frames": 3}
    refused = vdot("to-csv", tmp_path, "--to", tmp_path / "csv")
    assert refused.returncode == 2
    assert "is not a mixture" in refused.stderr


def test_the_files_of_another_mixture_stay_as_they_are(mixture: Path, tmp_path: Path) -> None:
    to_csv(str(mixture), tmp_path / "csv", frames=SIZE[0], workers=1)
    files = {path: path.read_bytes() for path in (tmp_path / "csv").rglob("*.*") if path.is_file()}
    file = tmp_path / "mixture.yaml"
    file.write_text(file.read_text().replace("> 2", "> 2 AND NOT starts_with(source_uri, '/videos/b')"))
    mix(file, str(tmp_path / "other"))
    with pytest.raises(UsageError, match="another mixture"):
        to_csv(str(tmp_path / "other"), tmp_path / "csv", frames=SIZE[0])
    assert {path: path.read_bytes() for path in (tmp_path / "csv").rglob("*.*") if path.is_file()} == files


def test_no_mixture_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a mixture"):
        to_csv(str(tmp_path / "nowhere"), tmp_path / "csv")
