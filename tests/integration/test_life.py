"""Tests the life of a dataset by the command line: resume, twins, other rules, layers, newer annotators, drain."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import program
import pytest
import small_videos

from pipeline.curation.select import load_selection, select
from pipeline.formats import shards
from pipeline.formats.records import SourceColumns
from pipeline.storage.folder import Folder
from pipeline.upkeep.verify import verify

pytestmark = pytest.mark.slow


def is_clean(out: Path) -> bool:
    return verify(str(out), 1).problems == []


def verdicts(out: Any) -> dict[str, tuple[str, str | None, list[str] | None]]:
    return {clip: (row["status"], row["rule"], row["tasks"]) for clip, row in out.clips().items()}


@pytest.fixture
def run(vdot: Any, address: str) -> Any:
    """`run(...)` runs the command on a running cluster; it must succeed, and returns its summary."""

    def run(*arguments: object) -> dict[str, Any]:
        process = vdot(*arguments, "--address", address, "--json")
        assert process.returncode == 0, process.stderr
        summary: dict[str, Any] = json.loads(process.stdout)
        return summary

    return run


@pytest.mark.long
def test_rules_change_sources_come_and_nothing_is_done_twice(
    run: Any, recipe: Any, small_folder: Path, tmp_path: Path
) -> None:
    videos, later_videos, out = tmp_path / "videos", tmp_path / "later", tmp_path / "out"
    videos.mkdir()
    later_videos.mkdir()
    shutil.copy(small_folder / "1.mp4", videos)
    shutil.copy(small_folder / "3.mp4", videos)
    shutil.copy(small_folder / "1.mp4", videos / "twin.mp4")
    shutil.copy(small_folder / "2.mp4", later_videos)
    data, base = program.Out(out), recipe()

    first = run("ingest", videos, "--out", out, "--recipe", base)
    assert first["clips"] == {"kept": {"": 5}}
    assert first["sources"] == {"cut": {"": 2}, "same": {"": 1}}
    (twin,) = data.query("SELECT source_uri, same_as FROM sources WHERE status = 'same'")
    assert {Path(uri).name for uri in twin.values()} == {"1.mp4", "twin.mp4"}
    before, stored = data.samples(), sorted((out / "shards").iterdir())

    rerun = run("ingest", videos, "--out", out, "--recipe", base)
    assert (rerun["clips"], rerun["done"], rerun["startup_s"]) == (first["clips"], {}, 0)
    assert sorted((out / "shards").iterdir()) == stored

    # One more source: existing samples stay, byte for byte.
    extended = run("ingest", videos, later_videos, "--out", out, "--recipe", base)
    assert (extended["clips"], extended["done"]) == ({"kept": {"": 6}}, {"kept": 1})
    all_samples = data.samples()
    assert before.items() <= all_samples.items()

    # Tighter rules reject at once, without a model; the old rules restore the samples unchanged.
    lumas = sorted(row["luma"] for row in data.clips().values())
    tight = run("ingest", videos, later_videos, "--out", out, "--recipe", recipe(rules={"dim": f"luma < {lumas[3]}"}))
    assert (tight["clips"], tight["done"]) == ({"kept": {"": 3}, "rejected": {"dim": 3}}, {})
    assert len(data.samples()) == 3
    assert is_clean(out)
    restored = run("ingest", videos, later_videos, "--out", out, "--recipe", base)
    assert (restored["clips"], restored["startup_s"]) == (extended["clips"], 0)
    assert data.samples() == all_samples
    assert is_clean(out)


@pytest.mark.long
def test_looser_rules_equal_a_fresh_ingest(run: Any, recipe: Any, small_folder: Path, tmp_path: Path) -> None:
    """Clips that a looser rule accepts are pending until ingest annotates them, and then as if never rejected.

    `select` lists them in advance, and what tighter rules would keep, the same as in a fresh ingest with these rules.
    """
    out, fresh, strict = tmp_path / "out", tmp_path / "fresh", tmp_path / "strict"
    (tmp_path / "list.txt").write_text(f"{small_folder / '1.mp4'}\n{small_folder / '2.mp4'}\n")
    first_video, both_videos = small_folder / "1.mp4", tmp_path / "list.txt"
    loose = recipe(rules={"still": "motion < 0.5"}, stages=[["scribble"], ["flow"]], tasks={"moves": "motion > 1"})
    rejecting = run("ingest", both_videos, "--out", out, "--recipe", recipe(rules={"all": "luma >= 0"}))
    assert rejecting["clips"] == {"rejected": {"all": 3}}
    assert not list((out / "shards").glob("*"))
    assert select(str(out), recipe_file=loose).verdicts == {"pending": 3}
    # The third clip's source is not listed, so it is not annotated yet.
    partial = run("ingest", first_video, "--out", out, "--recipe", loose)
    assert partial["clips"] == {"kept": {"": 2}, "pending": {"still": 1}}
    run("ingest", both_videos, "--out", out, "--recipe", loose)
    run("ingest", both_videos, "--out", fresh, "--recipe", loose)
    assert verdicts(program.Out(out)) == verdicts(program.Out(fresh))
    assert program.Out(out).samples() == program.Out(fresh).samples()
    members = {"mp4", "json", "scribble.mp4", "flow.mp4"}
    assert all(set(sample) == members for sample in program.Out(out).samples().values())
    assert is_clean(out)
    assert is_clean(fresh)

    middle = sorted(row["motion"] for row in program.Out(fresh).query("SELECT motion FROM clips"))[1]
    tight = recipe(rules={"calm": f"motion <= {middle}"}, stages=[["scribble"], ["flow"]], tasks={})
    summary = run("ingest", both_videos, "--out", strict, "--recipe", tight)
    selection = select(str(out), recipe_file=tight, name="tight")
    assert selection.verdicts == {status: sum(reasons.values()) for status, reasons in summary["clips"].items()}
    assert selection.verdicts == {"kept": 1, "rejected": 2}
    assert set(load_selection(Folder(str(out)), "tight")["clip_id"].to_pylist()) == program.Out(strict).samples().keys()


@pytest.mark.long
def test_a_layer_adds_and_a_new_annotator_supersedes(
    run: Any, vdot: Any, recipe: Any, small_folder: Path, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run("ingest", small_folder / "1.mp4", "--out", out, "--recipe", recipe())
    base = program.Out(out).samples()

    layer = run("annotate", out, "--with", "flow")
    assert layer["done"] == {"kept": len(base)}
    rows = program.Out(out).query("SELECT * FROM clips WHERE layer = 'flow'")
    assert {row["clip_id"] for row in rows} == set(base)
    for row in rows:
        assert row["motion"] > 0.5
        members = shards.read_sample(Folder(str(out)), row["clip_id"], row["shard"], row["offset"], row["bytes"])
        assert set(members) == {"flow.mp4", "flow.json"}
    assert run("annotate", out, "--with", "flow")["done"] == {}
    assert is_clean(out)
    refused = vdot("annotate", out, "--with", "flwo")
    assert refused.returncode == 2
    assert "did you mean 'flow'?" in refused.stderr

    both_stages = recipe(stages=[["scribble", "flow"]])
    run("ingest", small_folder / "1.mp4", "--out", out, "--recipe", both_stages)
    run("ingest", small_folder / "1.mp4", "--out", fresh, "--recipe", both_stages)
    renewed = {
        row["clip_id"]: shards.read_sample(Folder(str(out)), row["clip_id"], row["shard"], row["offset"], row["bytes"])
        for row in program.Out(out).query("SELECT * FROM clips WHERE layer = 'base'")
    }
    assert renewed == program.Out(fresh).samples()
    columns = ", ".join(SourceColumns.__annotations__)
    sources = f"SELECT clip_id, {columns} FROM clips WHERE layer = 'base' ORDER BY clip_id"
    assert program.Out(out).query(sources) == program.Out(fresh).query(sources)
    assert {clip: sample["mp4"] for clip, sample in renewed.items()} == {
        clip: sample["mp4"] for clip, sample in base.items()
    }
    assert is_clean(out)


@pytest.mark.long
def test_sigterm_drains_and_the_same_command_goes_on(vdot: Any, recipe: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for seed in range(5):
        small_videos.write(folder / f"{seed}.mp4", 100 + seed, shots=3)
    # A shard is written with the first clip, when most of the work remains.
    eager = recipe(commit={"shard_mb": 1, "every_s": 0.1})
    process = vdot.start("ingest", folder, "--out", out, "--recipe", eager, "--cpus", 1)
    program.poll(lambda: list((out / "shards").glob("*.tar")) or process.poll() is not None, 300, "a first shard")
    process.send_signal(signal.SIGTERM)
    signalled = time.monotonic()
    finished = vdot.finish(process)
    assert time.monotonic() - signalled < 60
    assert finished.returncode == 1
    assert "stopped on request" in finished.stderr
    assert "Traceback" not in finished.stderr
    partial = program.Out(out).samples()
    assert 0 < len(partial) < 15
    assert is_clean(out)
    assert vdot("ingest", folder, "--out", out, "--recipe", recipe()).returncode == 0
    complete = program.Out(out).samples()
    assert partial.items() <= complete.items()
    assert len(complete) == 15
    assert is_clean(out)


@pytest.mark.long
def test_looking_again_and_retrying(run: Any, recipe: Any, small_folder: Path, tmp_path: Path) -> None:
    """A touched file, --rehash and retry check the sources again, and change nothing unless there is something new."""
    videos, out, base = tmp_path / "videos", tmp_path / "out", recipe()
    videos.mkdir()
    shutil.copy(small_folder / "2.mp4", videos / "good.mp4")
    content = (small_folder / "4.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(content[: len(content) // 2])
    first = run("ingest", videos, "--out", out, "--recipe", base)
    assert first["clips"] == {"kept": {"": 1}}
    assert first["sources"] == {"cut": {"": 1}, "failed": {"DECODE_ERROR": 1}}
    samples = program.Out(out).samples()
    (videos / "good.mp4").touch()
    for command in (("ingest", videos, "--rehash", "--recipe", base), ("retry",)):
        summary = run(command[0], *((out,) if command[0] == "retry" else ("--out", out)), *command[1:])
        assert (summary["sources"], summary["done"]) == (first["sources"], {})
    # The touch is recorded: nothing needs to be checked.
    assert run("ingest", videos / "good.mp4", "--out", out, "--recipe", base)["startup_s"] == 0
    (videos / "cut.mp4").write_bytes(content)
    mended = run("retry", out)
    assert (mended["sources"], mended["done"]) == ({"cut": {"": 2}}, {"kept": 1})
    assert samples.items() <= program.Out(out).samples().items()
    assert is_clean(out)
