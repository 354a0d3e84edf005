"""The life of one dataset, told by the command line: resume, twins, other rules, layers, newer annotators, drain."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from pipeline import shards
from pipeline.storage import Folder
from pipeline.verify import verify

Vdot = Callable[..., subprocess.CompletedProcess[str]]

RECIPE: dict[str, Any] = {
    "shots": "adaptive",
    "grid": {"fps": 8, "frames": 17, "min_frames": 9, "area": 36864, "multiple": 16},
    "stages": [["scribble"]],
    "rules": {"bright": "luma > 250", "plain": "scribble_density < 0"},
    "tasks": {"long": "frames > 10"},
    "commit": {"shard_mb": 1, "every_s": 2},
}


def rows(out: Path, what: str, where: str = "true") -> list[dict[str, Any]]:
    """The current rows of a dataset, as a user reads them with DuckDB."""
    con = duckdb.connect()
    con.execute(f"CREATE VIEW parts AS FROM read_parquet('{out}/catalog/*.parquet', union_by_name = true)")
    key = {"clip": "clip_id, layer", "source": "source_uri"}[what]
    cursor = con.execute(
        f"SELECT * FROM (FROM parts WHERE kind = '{what}' QUALIFY row_number() OVER "
        f"(PARTITION BY {key} ORDER BY sequence DESC) = 1) WHERE {where} ORDER BY {key}"
    )
    assert cursor.description is not None
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def samples(out: Path) -> dict[str, dict[str, bytes]]:
    """Clip id -> members of every current base sample that is kept."""
    return {
        row["clip_id"]: shards.sample(Folder(str(out)), row["clip_id"], row["shard"], row["offset"], row["bytes"])
        for row in rows(out, "clip", "layer = 'base' AND status = 'kept'")
    }


def verdicts(out: Path) -> dict[str, tuple[str, str | None, list[str] | None]]:
    return {row["clip_id"]: (row["status"], row["rule"], row["tasks"]) for row in rows(out, "clip", "layer = 'base'")}


def recipe(folder: Path, **changes: Any) -> str:
    path = folder / f"recipe-{abs(hash(repr(changes)))}.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return str(path)


def shard_names(out: Path) -> set[str]:
    return {path.name for path in (out / "shards").glob("*.tar")}


def clean(out: Path) -> bool:
    return verify(str(out), 1).problems == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, video_folder: Path) -> Path:
    """A folder with two videos, a byte-for-byte twin of one of them, and one kept aside for later."""
    home = tmp_path_factory.mktemp("life")
    (home / "videos").mkdir()
    (home / "later").mkdir()
    some = sorted(video_folder.glob("*.mp4"))[:3]
    for path in some[:2]:
        shutil.copy(path, home / "videos")
    shutil.copy(some[0], home / "videos" / "twin.mp4")
    shutil.copy(some[2], home / "later")
    return home


@pytest.mark.slow
def test_the_life_of_a_dataset(home: Path, vdot: Vdot) -> None:
    out, base = home / "out", recipe(home)
    first = json.loads(vdot("ingest", "videos", "--out", out, "--recipe", base, "--json", cwd=home).stdout)
    assert first["clips"]["kept"][""] > 2
    assert first["sources"] == {"cut": {"": 2}, "same": {"": 1}}
    same = rows(out, "source", "status = 'same'")[0]
    assert {Path(same["source_uri"]).name, Path(same["same_as"]).name} == {"twin.mp4", "0.mp4"} or same["same_as"]
    assert clean(out)
    before, stored = samples(out), shard_names(out)

    # The same again: nothing is done, nothing is stored.
    again = json.loads(vdot("ingest", "videos", "--out", out, "--recipe", base, "--json", cwd=home).stdout)
    assert again["clips"] == first["clips"] and again["done"] == {}
    assert shard_names(out) == stored

    # One more source: what was there stays, byte for byte.
    more = json.loads(vdot("ingest", "videos", "later", "--out", out, "--recipe", base, "--json", cwd=home).stdout)
    assert more["clips"]["kept"][""] > first["clips"]["kept"][""]
    assert more["done"]["kept"] == more["clips"]["kept"][""] - first["clips"]["kept"][""]
    assert stored < shard_names(out)
    assert {clip: members for clip, members in samples(out).items() if clip in before} == before

    # Tighter rules reject without running a model; the old ones bring the samples back as they were.
    everything = samples(out)
    densities = sorted(row["scribble_density"] for row in rows(out, "clip"))
    tight = recipe(home, rules={"plain": f"scribble_density < {densities[len(densities) // 2]}"})
    rejected = json.loads(vdot("ingest", "videos", "later", "--out", out, "--recipe", tight, "--json", cwd=home).stdout)
    assert rejected["clips"]["rejected"]["plain"] == len(densities) // 2
    assert rejected["done"] == {} and rejected["startup_s"] == 0
    vdot("ingest", "videos", "later", "--out", out, "--recipe", base, cwd=home)
    assert samples(out) == everything
    assert clean(out)


@pytest.mark.slow
def test_looser_rules_equal_a_fresh_ingest(home: Path, vdot: Vdot) -> None:
    """Clips that a looser rule lets in are pending until ingest annotates them, and then as if never rejected."""
    lumas = home / "loose"
    dark = recipe(home, rules={"all": "luma >= 0"})
    loose = recipe(home, rules={"none": "luma < 0"}, stages=[["scribble"], ["flow"]], tasks={"moves": "motion > 0.5"})
    out = lumas / "out"
    none = json.loads(vdot("ingest", "videos", "--out", out, "--recipe", dark, "--json", cwd=home).stdout)
    assert set(none["clips"]) == {"rejected"}
    # With another source's listing nothing of these is annotated, so they stay pending.
    waiting = json.loads(vdot("ingest", "later", "--out", out, "--recipe", loose, "--json", cwd=home).stdout)
    assert waiting["clips"]["pending"][""] == none["clips"]["rejected"]["all"]
    vdot("ingest", "videos", "later", "--out", out, "--recipe", loose, cwd=home)
    vdot("ingest", "videos", "later", "--out", lumas / "fresh", "--recipe", loose, cwd=home)
    assert verdicts(out) == verdicts(lumas / "fresh")
    assert samples(out) == samples(lumas / "fresh")
    assert all({"mp4", "json", "scribble.mp4", "flow.mp4"} == set(members) for members in samples(out).values())
    assert clean(out) and clean(lumas / "fresh")


@pytest.mark.slow
def test_layers_and_newer_annotators(home: Path, vdot: Vdot) -> None:
    """A layer adds under the same ids; an annotator added to the recipe supersedes. Both equal a fresh ingest."""
    out = home / "layers"
    vdot("ingest", "later", "--out", out, "--recipe", recipe(home), cwd=home)
    base = samples(out)
    layer = json.loads(vdot("annotate", out, "--with", "flow", "--json", cwd=home).stdout)
    assert layer["done"] == {"kept": len(base)}
    found = rows(out, "clip", "layer = 'flow'")
    assert {row["clip_id"] for row in found} == set(base) and all(row["motion"] is not None for row in found)
    one = found[0]
    members = shards.sample(Folder(str(out)), one["clip_id"], one["shard"], one["offset"], one["bytes"])
    assert set(members) == {"flow.mp4", "flow.json"}
    assert json.loads(vdot("annotate", out, "--with", "flow", "--json", cwd=home).stdout)["done"] == {}
    both = recipe(home, stages=[["scribble", "flow"]])
    vdot("ingest", "later", "--out", out, "--recipe", both, cwd=home)
    assert {clip: members["mp4"] for clip, members in samples(out).items()} == {c: m["mp4"] for c, m in base.items()}
    assert all("flow.mp4" in members for members in samples(out).values())
    vdot("ingest", "later", "--out", home / "layers-fresh", "--recipe", both, cwd=home)
    assert samples(out) == samples(home / "layers-fresh")
    assert clean(out)
    refused = vdot("annotate", out, "--with", "nonsense", cwd=home, check=False)
    assert refused.returncode == 2 and "nonsense" in refused.stderr


@pytest.mark.slow
def test_sigterm_drains_and_the_next_run_goes_on(home: Path, video_folder: Path, vdot: Vdot) -> None:
    out = home / "drained"
    command = vdot.command("ingest", video_folder, "--out", out, "--recipe", recipe(home))  # type: ignore[attr-defined]
    with subprocess.Popen(command, cwd=home, stderr=subprocess.PIPE, text=True) as process:
        while not list((out / "shards").glob("*.tar")) and process.poll() is None:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert process.stderr is not None
        said = process.stderr.read()
    assert time.monotonic() - told < 30
    if process.returncode != 0:
        assert process.returncode == 1 and "stopped on request" in said
    assert clean(out)
    vdot("ingest", video_folder, "--out", out, "--recipe", recipe(home), cwd=home)
    assert not rows(out, "source", "status = 'failed'") and clean(out)
