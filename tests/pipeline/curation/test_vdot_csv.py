"""A mixture as the published trainer reads it: its rows, the files behind them, and what it has no form for."""

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
    """Three clips that teach every task (one with a caption, one without, one whose shard is gone), mixed."""
    text = recipe.parse(RECIPE.partition("tasks:")[0] + yaml.safe_dump({"tasks": TASKS}), "of the test").text
    members = {
        "mp4": mp4("m0"),
        "pose.mp4": mp4("m0 pose"),
        "ref.0.png": encode_png(frames("m0 r0")[0]),
        "ref.1.png": encode_png(frames("m0 r1")[0]),
        "json": json.dumps({"fps": 16.0}).encode(),
    }
    places = dataset.shard("shards", {"a8": members | {"txt": b'a film, or "two"\n'}, "a9": members})
    gone = dataset.shard("shards", {"b8": members | {"txt": b"b"}})
    rows = {**places, **gone}
    dataset.commit(
        {"kind": "run", "recipe": text, "version": "0.1.0", "started": utc_now()},
        *(dataset.clip(name, "kept", **place) | {"tasks": list(TASKS)} for name, place in rows.items()),
    )
    file = tmp_path / "mixture.yaml"
    drawn = {"path": "out", "where": "len(tasks) > 2"}
    file.write_text(yaml.safe_dump({"datasets": {"films": drawn}, "tasks": list(TASKS), "seed": 5}))
    mix(file, str(tmp_path / "mixed"))
    (tmp_path / "out" / gone["b8"]["shard"]).unlink()
    return tmp_path / "mixed"


def rows(to: Path, name: str = "train") -> list[dict[str, str]]:
    with (to / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_leads_to_what_its_task_shows(mixture: Path, tmp_path: Path) -> None:
    to, clip = tmp_path / "csv", identity("a8")
    done = to_csv(str(mixture), to, frames=SIZE[0], workers=2)
    found = {row["task_name"]: row for row in rows(to)}
    assert set(found) == {*TASKS} - {"text", "depth"}
    assert done.rows == {"train": dict.fromkeys([task for task in TASKS if task in found], 1), "held_out": {}}
    assert sum(done.left_out.values()) == 4
    assert any("without a caption" in reason for reason in done.left_out)
    assert any("damaged or gone" in reason for reason in done.left_out)
    assert any(reason.startswith("depth: it has no track 'depth'") for reason in done.left_out)
    assert any(reason.startswith("text: its form has no row") for reason in done.left_out)

    # As the published trainer finds what is to be made: by the name of the source video, or of the first reference.
    truth = to / "videos" / f"{clip}.mp4"
    assert truth.read_bytes() == mp4("m0")
    for row in found.values():
        assert tuple(row) == COLUMNS
        assert row["prompt"] == row["internvl_short"] == 'a film, or "two"\n'
        if row["src_video_path"]:
            assert Path(row["src_video_path"]).name == truth.name
        else:
            first = Path(row["ref_image_path"].split(",")[0]).name
            assert first.split(".")[0].split("_")[0] + ".mp4" == truth.name

    assert Path(found["pose"]["src_video_path"]).read_bytes() == mp4("m0 pose")
    assert found["reference_pose"]["src_video_path"] == found["pose"]["src_video_path"]
    assert found["pose"]["mask_video_path"] == ""
    assert found["reference"]["src_video_path"] == ""
    assert len(found["reference"]["ref_image_path"].split(",")) == 2

    clip_frames, pose = decode_clip(mp4("m0")), decode_clip(mp4("m0 pose"))
    for task in ("inpaint", "outpaint", "firstframe", "extension", "outpaint_pose"):
        shown, white = (decode_clip(Path(found[task][f"{kind}_video_path"]).read_bytes()) for kind in ("src", "mask"))
        assert shown.shape == white.shape == (*SIZE, 3)
        # As the trainer reads it: white is above one half.
        mask = white[..., 0] > 127
        assert 0 < mask.mean() < 1
        filled = pose if task == "outpaint_pose" else np.full_like(pose, 127)
        # H.264 at quarter colour resolution, of noise.
        assert np.abs(shown.astype(int) - np.where(mask[..., None], filled, clip_frames)).mean() < 20


def test_again_writes_the_same_and_goes_on_from_what_is_there(mixture: Path, tmp_path: Path) -> None:
    to_csv(str(mixture), tmp_path / "one", frames=SIZE[0], workers=1)
    before = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.mp4")}
    (tmp_path / "one" / "inpaint" / f"{identity('a8')}.mp4").unlink()
    kept = tmp_path / "one" / "outpaint" / f"{identity('a8')}.mp4"
    written = kept.stat().st_mtime_ns
    to_csv(str(mixture), tmp_path / "one", frames=SIZE[0], workers=2)
    after = {path.relative_to(tmp_path / "one"): path.read_bytes() for path in (tmp_path / "one").rglob("*.mp4")}
    assert before == after
    assert kept.stat().st_mtime_ns == written


def test_by_the_command_line(mixture: Path, tmp_path: Path) -> None:
    vdot = program.Vdot(tmp_path)
    done = vdot("to-csv", mixture, "--to", tmp_path / "csv", "--frames", SIZE[0], "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["train"]["pose"] == 1
    whole = vdot("to-csv", mixture, "--to", tmp_path / "others", "--json")
    assert json.loads(whole.stdout)["left_out"] == {"clips of another length than 81 frames": 3}
    wrong = vdot("to-csv", tmp_path, "--to", tmp_path / "csv")
    assert wrong.returncode == 2
    assert "is not a mixture" in wrong.stderr


def test_the_files_of_another_mixture_stay_as_they_are(mixture: Path, tmp_path: Path) -> None:
    to_csv(str(mixture), tmp_path / "csv", frames=SIZE[0], workers=1)
    before = {path: path.read_bytes() for path in (tmp_path / "csv").rglob("*.*") if path.is_file()}
    file = tmp_path / "mixture.yaml"
    file.write_text(file.read_text().replace("> 2", "> 2 AND NOT starts_with(source_uri, '/videos/b')"))
    mix(file, str(tmp_path / "other"))
    with pytest.raises(UsageError, match="another mixture"):
        to_csv(str(tmp_path / "other"), tmp_path / "csv", frames=SIZE[0])
    assert {path: path.read_bytes() for path in (tmp_path / "csv").rglob("*.*") if path.is_file()} == before


def test_no_mixture_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a mixture"):
        to_csv(str(tmp_path / "nowhere"), tmp_path / "csv")
