"""Tests bad input: every source gets a verdict, every mistake one sentence, and data stays unchanged."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import program
import pytest
import small_videos

# Names that a shell, a URL, a format string or SQL would misread.
ODD_NAMES = (
    "two words.mp4",
    'it\'s "quoted".mp4',
    "ünï 视频.mp4",
    "new\nline.mp4",
    "100%25 %s {0}.mp4",
    "-rf.mp4",
    "a?b#c*.mp4",
)


@dataclass
class BadRun:
    """An ingest of the folder of bad files, and a second one that was started meanwhile."""

    first: CompletedProcess[str]
    second: CompletedProcess[str]
    out: Any
    sources: dict[str, dict[str, Any]]

    def verdict(self, name: str) -> str:
        row = self.sources[name]
        return str(row["code"] or row["rule"] or row["status"])


def write_bad_files(folder: Path) -> None:
    """Write one of every kind of file that does not belong in a folder of videos, and good ones between them."""
    small_videos.write(folder / "good 1.mp4", 1, shots=2)
    small_videos.write(folder / "good 2.mp4", 2)
    shutil.copy(folder / "good 2.mp4", folder / "same as good 2.mp4")
    (folder / "zero-byte.mp4").touch()
    (folder / "text.mp4").write_text("404 Not Found\n" * 40)
    (folder / "noise.mp4").write_bytes(os.urandom(50_000))
    small_videos.write_audio(folder / "audio-only.mp4")
    small_videos.write(folder / "one-frame.mp4", 3, count=1)
    small_videos.write(folder / "three-frames.mp4", 4, count=3)
    small_videos.write_vast(folder / "vast.mp4")
    small_videos.write_truncated(folder / "truncated.mp4", 5)
    (folder / "folder.mp4").mkdir()
    os.mkfifo(folder / "pipe.mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "back").symlink_to(folder)
    (folder / "dangling.mp4").symlink_to("nothing.mp4")
    for seed, name in enumerate(ODD_NAMES, 10):
        small_videos.write(folder / name, seed, count=20)


@pytest.fixture(scope="module")
def bad_run(vdot: Any, recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> BadRun:
    root: Path = tmp_path_factory.mktemp("bad")
    folder = root / "videos"
    folder.mkdir()
    write_bad_files(folder)
    small_videos.write(folder / "forbidden.mp4", 6).chmod(0)
    manifest = root / "list.csv"
    manifest.write_text(f'path,licence\n{folder}/folder.mp4,CC0\n{root}/vanished.mp4,CC0\n"{root}/no\0name.mp4",CC0\n')
    out = program.Out(root / "out")
    command = ("ingest", folder, manifest, "--out", out.url, "--recipe", recipe(), "--cpus", 1)
    program_command = (*program.BOUND_BY_MODES, program.VDOT)
    first = vdot.start(*command, command=program_command)
    first_part = Path(out.url) / "catalog/000000000001.parquet"
    program.poll(lambda: first_part.exists() or first.poll() is not None, 300, "the first run has claimed its OUT")
    second = vdot(*command, command=program_command)
    return BadRun(vdot.finish(first), second, out, out.sources())


@pytest.mark.slow
def test_a_run_over_bad_files_ends_well_and_says_what_became_of_each(bad_run: BadRun) -> None:
    assert bad_run.first.returncode == 0, bad_run.first.stderr
    assert "Traceback" not in bad_run.first.stderr
    for code in ("SOURCE_EMPTY", "NOT_VIDEO", "TOO_LARGE", "SOURCE_UNREADABLE", "DECODE_ERROR"):
        assert code in bad_run.first.stderr


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("zero-byte.mp4", "SOURCE_EMPTY"),
        ("text.mp4", "NOT_VIDEO"),
        ("noise.mp4", "NOT_VIDEO"),
        ("audio-only.mp4", "NOT_VIDEO"),
        ("one-frame.mp4", "too_short"),
        ("three-frames.mp4", "too_short"),
        ("vast.mp4", "TOO_LARGE"),
        ("truncated.mp4", "DECODE_ERROR"),
        ("folder.mp4", "SOURCE_UNREADABLE"),
        ("pipe.mp4", "SOURCE_UNREADABLE"),
        ("loop.mp4", "SOURCE_UNREADABLE"),
        ("dangling.mp4", "SOURCE_UNREADABLE"),
        ("vanished.mp4", "SOURCE_UNREADABLE"),
        ("forbidden.mp4", "SOURCE_UNREADABLE"),
        ("no\0name.mp4", "SOURCE_UNREADABLE"),
        ("good 1.mp4", "cut"),
        ("good 2.mp4", "cut"),
        ("same as good 2.mp4", "same"),
        *((name, "cut") for name in ODD_NAMES),
    ],
)
def test_each_source_gets_its_verdict(bad_run: BadRun, name: str, verdict: str) -> None:
    assert bad_run.verdict(name) == verdict
    if bad_run.sources[name]["status"] == "failed":
        assert bad_run.sources[name]["detail"]
        assert bad_run.sources[name]["stage"] in ("fetch", "scan")


def test_good_sources_are_kept_beside_bad_ones(bad_run: BadRun, vdot: Any) -> None:
    kept_clips = [clip for clip in bad_run.out.clips().values() if clip["status"] == "kept"]
    names = sorted(clip["source_uri"].rpartition("/")[2] for clip in kept_clips)
    assert names == sorted(["good 1.mp4", "good 1.mp4", "good 2.mp4", *ODD_NAMES])
    assert set(bad_run.out.samples()) == {clip["clip_id"] for clip in kept_clips}
    assert vdot("verify", bad_run.out.url, "--workers", 1).returncode == 0


def test_a_second_run_on_the_same_out_is_refused_and_harms_nothing(bad_run: BadRun) -> None:
    check_refused(bad_run.second, 1, "another run is writing to")
    assert bad_run.first.returncode == 0


def check_refused(process: CompletedProcess[str], status: int, *words: str) -> None:
    """Check that the run ended with this status and one sentence with these words."""
    assert process.returncode == status, process.stderr
    assert "Traceback" not in process.stderr
    messages = [line for line in process.stderr.splitlines() if "vdot-data:" in line]
    assert len(messages) == 1, process.stderr
    assert messages[0].startswith("vdot-data: ")
    assert process.stderr.splitlines()[-1] == messages[0]
    for word in words:
        assert word in messages[0]
    assert process.stdout == ""


MISTAKES: dict[str, tuple[str, tuple[str, ...]]] = {
    "a key that does not exist": ("shot: adaptive", ("shot",)),
    "a grid that no trainer takes": ("grid: {frames: 80}", ("grid",)),
    "a rule that is no SQL": ("rules: {dark: luma <}", ("dark", "luma <")),
    "a rule that reads a file": ("rules: {dark: \"(SELECT count(*) FROM 'x.csv') > 1\"}", ("dark",)),
    "a rule over an unknown column": ("rules: {dark: lumma < 5}", ("dark", "lumma", "luma")),
    "a task over an unknown column": ("tasks: {pose: pose_coverag > 5}", ("pose", "pose_coverag")),
    "an unknown annotator": ("stages: [[scribbel]]", ("scribbel", "scribble")),
    "an unknown filter": ("filters: [lumma]", ("lumma", "luma")),
    "a list": ("[a, b]", ("keys and values", "list")),
    "no YAML": ("a: [b", ("YAML",)),
    "a number that is a word": ("limits: {stall_s: long}", ("limits.stall_s",)),
    "bytes that are no text": ("\udcff\udcfe", ("cannot read the recipe",)),
}


# `test_recipe.py` and `test_rules.py` know every sentence; these show that each kind ends a run before it starts.
QUICK = ("a key that does not exist", "a rule that reads a file", "an unknown annotator", "no YAML")


@pytest.mark.parametrize(
    "mistake",
    [*QUICK, *(pytest.param(mistake, marks=pytest.mark.long) for mistake in MISTAKES if mistake not in QUICK)],
)
def test_a_wrong_recipe_is_refused_before_anything_starts(
    vdot: Any, small_folder: Path, tmp_path: Path, mistake: str
) -> None:
    text, words = MISTAKES[mistake]
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    check_refused(vdot("ingest", small_folder, "--out", tmp_path / "out", "--recipe", path), 2, *words)
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there_is_refused(vdot: Any, small_folder: Path, tmp_path: Path) -> None:
    process = vdot("ingest", small_folder, "--out", tmp_path / "out", "--recipe", tmp_path / "none.yaml")
    check_refused(process, 2, "cannot read the recipe", "none.yaml")


def test_sources_that_name_nothing_are_refused(vdot: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, words in (
        ("nowhere.mp4", "does not exist"),
        (tmp_path / "empty", "no video file"),
        ("*.mp4", "no file"),
    ):
        check_refused(vdot("ingest", source, "--out", tmp_path / "out"), 2, str(source), words)
    assert not (tmp_path / "out").exists()


def test_arguments_that_are_missing_end_with_2(vdot: Any, tmp_path: Path) -> None:
    for arguments in (("ingest",), ("ingest", tmp_path), ("ingest", "--out", tmp_path), ("injest",)):
        process = vdot(*arguments)
        assert process.returncode == 2
        assert "Traceback" not in process.stderr
        assert "Usage: vdot-data" in process.stderr


def test_another_grid_is_refused_and_the_dataset_stays_as_it_is(
    vdot: Any, recipe: Any, small_folder: Path, local_dataset: Any
) -> None:
    files = local_dataset.files()
    changed = recipe(grid={"fps": 8, "frames": 13, "min_frames": 9, "area": 36864, "multiple": 16})
    check_refused(
        vdot("ingest", small_folder, "--out", local_dataset.url, "--recipe", changed), 2, local_dataset.url, "grid"
    )
    assert local_dataset.files() == files


def test_a_folder_that_is_no_dataset_is_refused(vdot: Any, tmp_path: Path) -> None:
    for command in (("verify", tmp_path), ("retry", tmp_path), ("annotate", tmp_path, "--with", "flow")):
        check_refused(vdot(*command), 2, str(tmp_path), "not a dataset")
    assert not list(tmp_path.iterdir())


def test_an_out_that_cannot_be_written_is_refused(vdot: Any, recipe: Any, small_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    check_refused(vdot("ingest", small_folder, "--out", tmp_path / "file", "--recipe", recipe()), 2, "is a file")
    for out in (tmp_path / "file" / "below", Path("/proc/out")):
        check_refused(vdot("ingest", small_folder, "--out", out, "--recipe", recipe()), 1, str(out))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_out_is_refused(vdot: Any, recipe: Any, small_folder: Path, tmp_path: Path) -> None:
    with program.mounted(tmp_path / "out", "ro,size=1m") as out:
        check_refused(vdot("ingest", small_folder, "--out", out, "--recipe", recipe()), 1, str(out))


@pytest.mark.slow
@pytest.mark.long
def test_a_run_goes_on_after_a_full_disk(vdot: Any, recipe: Any, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for seed in range(6):
        small_videos.write(folder / f"{seed}.mp4", seed, shots=3, grain=1)
    with program.mounted(tmp_path / "out", "size=400k") as mount:
        out = program.Out(mount)
        command = ("ingest", folder, "--out", out.url, "--recipe", recipe(commit={"shard_mb": 0.2}), "--cpus", 1)
        check_refused(vdot(*command), 1, "no space left", out.url)
        assert vdot("verify", out.url, "--workers", 1).returncode == 0
        kept_ids = set(out.samples())
        assert 0 < len(kept_ids) < 18
        program.resize(mount, "64m")
        process = vdot(*command)
        assert process.returncode == 0, process.stderr
        assert kept_ids < set(out.samples())
        assert len(out.samples()) == 18
        assert vdot("verify", out.url, "--workers", 1).returncode == 0
