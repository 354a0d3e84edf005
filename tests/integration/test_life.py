"""The life of one dataset, told by the command line: resume, twins, other rules, layers, newer annotators, drain."""

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

from pipeline.curation.select import saved, select
from pipeline.formats import shards
from pipeline.storage.folder import Folder
from pipeline.upkeep.verify import verify

pytestmark = pytest.mark.slow


def clean(out: Path) -> bool:
    return verify(str(out), 1).problems == []


def verdicts(out: Any) -> dict[str, tuple[str, str | None, list[str] | None]]:
    return {clip: (row["status"], row["rule"], row["tasks"]) for clip, row in out.clips().items()}


@pytest.fixture
def run(vdot: Any, address: str) -> Any:
    """`run(...)` runs the command on a running cluster; it must succeed, and gives its summary."""

    def run(*arguments: object) -> dict[str, Any]:
        done = vdot(*arguments, "--address", address, "--json")
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    return run


@pytest.mark.long
def test_rules_change_sources_come_and_nothing_is_done_twice(
    run: Any, recipe: Any, small: Path, tmp_path: Path
) -> None:
    videos, later, out = tmp_path / "videos", tmp_path / "later", tmp_path / "out"
    videos.mkdir()
    later.mkdir()
    shutil.copy(small / "1.mp4", videos)
    shutil.copy(small / "3.mp4", videos)
    shutil.copy(small / "1.mp4", videos / "twin.mp4")
    shutil.copy(small / "2.mp4", later)
    data, base = program.Out(out), recipe()

    first = run("ingest", videos, "--out", out, "--recipe", base)
    assert first["clips"] == {"kept": {"": 5}}
    assert first["sources"] == {"cut": {"": 2}, "same": {"": 1}}
    (twin,) = data.query("SELECT source_uri, same_as FROM sources WHERE status = 'same'")
    assert {Path(uri).name for uri in twin.values()} == {"1.mp4", "twin.mp4"}
    before, stored = data.samples(), sorted((out / "shards").iterdir())

    again = run("ingest", videos, "--out", out, "--recipe", base)
    assert (again["clips"], again["done"], again["startup_s"]) == (first["clips"], {}, 0)
    assert sorted((out / "shards").iterdir()) == stored

    # One more source: what was there stays, byte for byte.
    more = run("ingest", videos, later, "--out", out, "--recipe", base)
    assert (more["clips"], more["done"]) == ({"kept": {"": 6}}, {"kept": 1})
    everything = data.samples()
    assert before.items() <= everything.items()

    # Tighter rules reject at once, without a model; the old ones bring the samples back as they were.
    lumas = sorted(row["luma"] for row in data.clips().values())
    tight = run("ingest", videos, later, "--out", out, "--recipe", recipe(rules={"dim": f"luma < {lumas[3]}"}))
    assert (tight["clips"], tight["done"]) == ({"kept": {"": 3}, "rejected": {"dim": 3}}, {})
    assert len(data.samples()) == 3
    assert clean(out)
    back = run("ingest", videos, later, "--out", out, "--recipe", base)
    assert (back["clips"], back["startup_s"]) == (more["clips"], 0)
    assert data.samples() == everything
    assert clean(out)


@pytest.mark.long
def test_looser_rules_equal_a_fresh_ingest(run: Any, recipe: Any, small: Path, tmp_path: Path) -> None:
    """Clips that a looser rule lets in are pending until ingest annotates them, and then as if never rejected.

    `select` says beforehand which these are, and what tighter rules would leave, as a fresh ingest with them does.
    """
    out, fresh, strict = tmp_path / "out", tmp_path / "fresh", tmp_path / "strict"
    (tmp_path / "list.txt").write_text(f"{small / '1.mp4'}\n{small / '2.mp4'}\n")
    one, two = small / "1.mp4", tmp_path / "list.txt"
    loose = recipe(rules={"still": "motion < 0.5"}, stages=[["scribble"], ["flow"]], tasks={"moves": "motion > 1"})
    none = run("ingest", two, "--out", out, "--recipe", recipe(rules={"all": "luma >= 0"}))
    assert none["clips"] == {"rejected": {"all": 3}}
    assert not list((out / "shards").glob("*"))
    assert select(str(out), recipe_file=loose).verdicts == {"pending": 3}
    # The third clip's source is not listed, so nobody annotates it yet.
    some = run("ingest", one, "--out", out, "--recipe", loose)
    assert some["clips"] == {"kept": {"": 2}, "pending": {"still": 1}}
    run("ingest", two, "--out", out, "--recipe", loose)
    run("ingest", two, "--out", fresh, "--recipe", loose)
    assert verdicts(program.Out(out)) == verdicts(program.Out(fresh))
    assert program.Out(out).samples() == program.Out(fresh).samples()
    members = {"mp4", "json", "scribble.mp4", "flow.mp4"}
    assert all(set(sample) == members for sample in program.Out(out).samples().values())
    assert clean(out)
    assert clean(fresh)

    middle = sorted(row["motion"] for row in program.Out(fresh).query("SELECT motion FROM clips"))[1]
    tight = recipe(rules={"calm": f"motion <= {middle}"}, stages=[["scribble"], ["flow"]], tasks={})
    done = run("ingest", two, "--out", strict, "--recipe", tight)
    found = select(str(out), recipe_file=tight, name="tight")
    assert found.verdicts == {status: sum(why.values()) for status, why in done["clips"].items()}
    assert found.verdicts == {"kept": 1, "rejected": 2}
    assert set(saved(Folder(str(out)), "tight")["clip_id"].to_pylist()) == program.Out(strict).samples().keys()


@pytest.mark.long
def test_a_layer_adds_and_a_new_annotator_supersedes(
    run: Any, vdot: Any, recipe: Any, small: Path, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run("ingest", small / "1.mp4", "--out", out, "--recipe", recipe())
    base = program.Out(out).samples()

    layer = run("annotate", out, "--with", "flow")
    assert layer["done"] == {"kept": len(base)}
    rows = program.Out(out).query("SELECT * FROM clips WHERE layer = 'flow'")
    assert {row["clip_id"] for row in rows} == set(base)
    for row in rows:
        assert row["motion"] > 0.5
        found = shards.read_sample(Folder(str(out)), row["clip_id"], row["shard"], row["offset"], row["bytes"])
        assert set(found) == {"flow.mp4", "flow.json"}
    assert run("annotate", out, "--with", "flow")["done"] == {}
    assert clean(out)
    refused = vdot("annotate", out, "--with", "flwo")
    assert refused.returncode == 2
    assert "did you mean 'flow'?" in refused.stderr

    both = recipe(stages=[["scribble", "flow"]])
    run("ingest", small / "1.mp4", "--out", out, "--recipe", both)
    run("ingest", small / "1.mp4", "--out", fresh, "--recipe", both)
    renewed = {
        row["clip_id"]: shards.read_sample(Folder(str(out)), row["clip_id"], row["shard"], row["offset"], row["bytes"])
        for row in program.Out(out).query("SELECT * FROM clips WHERE layer = 'base'")
    }
    assert renewed == program.Out(fresh).samples()
    assert {clip: sample["mp4"] for clip, sample in renewed.items()} == {c: s["mp4"] for c, s in base.items()}
    assert clean(out)


@pytest.mark.long
def test_sigterm_drains_and_the_same_command_goes_on(vdot: Any, recipe: Any, tmp_path: Path) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    for seed in range(5):
        small_videos.write(folder / f"{seed}.mp4", 100 + seed, shots=3)
    # A shard as soon as there is a clip, when most of the work is still to be done.
    eager = recipe(commit={"shard_mb": 1, "every_s": 0.1})
    process = vdot.start("ingest", folder, "--out", out, "--recipe", eager, "--cpus", 1)
    program.poll(lambda: list((out / "shards").glob("*.tar")) or process.poll() is not None, 300, "a first shard")
    process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    done = vdot.finish(process)
    assert time.monotonic() - asked < 60
    assert done.returncode == 1
    assert "stopped on request" in done.stderr
    assert "Traceback" not in done.stderr
    part = program.Out(out).samples()
    assert 0 < len(part) < 15
    assert clean(out)
    assert vdot("ingest", folder, "--out", out, "--recipe", recipe()).returncode == 0
    whole = program.Out(out).samples()
    assert part.items() <= whole.items()
    assert len(whole) == 15
    assert clean(out)


@pytest.mark.long
def test_looking_again_and_retrying(run: Any, recipe: Any, small: Path, tmp_path: Path) -> None:
    """A touched file, --rehash and retry look again, end, and change nothing until there is something new to see."""
    videos, out, base = tmp_path / "videos", tmp_path / "out", recipe()
    videos.mkdir()
    shutil.copy(small / "2.mp4", videos / "good.mp4")
    whole = (small / "4.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    first = run("ingest", videos, "--out", out, "--recipe", base)
    assert first["clips"] == {"kept": {"": 1}}
    assert first["sources"] == {"cut": {"": 1}, "failed": {"DECODE_ERROR": 1}}
    kept = program.Out(out).samples()
    (videos / "good.mp4").touch()
    for again in (("ingest", videos, "--rehash", "--recipe", base), ("retry",)):
        found = run(again[0], *((out,) if again[0] == "retry" else ("--out", out)), *again[1:])
        assert (found["sources"], found["done"]) == (first["sources"], {})
    # The touch was noted: nothing is left to look at.
    assert run("ingest", videos / "good.mp4", "--out", out, "--recipe", base)["startup_s"] == 0
    (videos / "cut.mp4").write_bytes(whole)
    mended = run("retry", out)
    assert (mended["sources"], mended["done"]) == ({"cut": {"": 2}}, {"kept": 1})
    assert kept.items() <= program.Out(out).samples().items()
    assert clean(out)
