"""Tests sources and dataset in a failing object store: the result is that of a local run, whatever is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import program
import pytest
import small_videos


def count_parts(out: Any) -> int:
    """The number of parts of the catalog, read despite the store's faults: `poll` calls this again."""
    return int(out.query("SELECT coalesce(max(sequence), 0) AS n FROM parts")[0]["n"])


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_in_a_bad_store_ends_like_a_local_one(
    s3: Any, vdot: Any, recipe: Any, small_folder: Path, local_dataset: Any, tmp_path: Path
) -> None:
    store = fsspec.filesystem("s3")
    store.put(str(small_folder), f"{s3.bucket}/videos", recursive=True)
    out = program.Out(f"{s3.url}/out")
    recipe_file = recipe(commit={"shard_mb": 0.001, "every_s": 0.1})
    command = ("ingest", f"{s3.url}/videos", "--out", out.url, "--recipe", recipe_file, "--cpus", 1, "--json")
    options = {"env": s3.env}
    s3.faults(0.1)

    # Killed after its first clips, and then when it has only claimed the store.
    for number, commits in ((1, 2), (2, 1)):
        process = vdot.start(*command, **options)
        target = count_parts(out) + commits
        program.poll(
            lambda target=target, process=process: count_parts(out) >= target or process.poll() is not None,
            90,
            "a commit",
        )
        assert process.poll() is None, f"kill {number} came too late"
        vdot.kill(process)
    killed = out.clips()
    assert len(killed) < 7, "the kills came too late"

    finished = vdot(*command, **options)
    assert finished.returncode == 0, finished.stderr
    assert sum(s3.faults(0.0).values()) > s3.faults()["served"], "the store had no fault"
    assert json.loads(finished.stdout)["clips"] == {"kept": {"": 7}}
    assert json.loads(finished.stdout)["done"] == {"kept": 7 - len(killed)}
    assert set(out.clips()) == set(local_dataset.clips())
    assert out.samples() == local_dataset.samples()
    assert vdot("verify", out.url, "--workers", 1, **options).returncode == 0

    rerun = vdot(*command, **options)
    assert json.loads(rerun.stdout)["done"] == {}, "a second run finds nothing to do"
    assert out.samples() == local_dataset.samples()

    store.put(str(small_videos.write(tmp_path / "one more.mp4", 99)), f"{s3.bucket}/videos/one more.mp4")
    extended = vdot(*command, **options)
    assert json.loads(extended.stdout)["done"] == {"kept": 1}
    assert set(out.clips()) > set(local_dataset.clips())
    assert vdot("verify", out.url, "--workers", 1, **options).returncode == 0


@pytest.mark.slow
@pytest.mark.long
def test_odd_keys_are_ingested_explained_and_known_again(
    s3: Any, vdot: Any, recipe: Any, address: str, tmp_path: Path
) -> None:
    store = fsspec.filesystem("s3")
    keys = ["/lead.mp4", "raw/a.mp4", "raw//b.mp4", "raw///../c d%2F+#1?x.mp4"]
    for seed, key in enumerate(keys, 1):
        body = small_videos.write(tmp_path / f"{seed}.mp4", seed).read_bytes()
        store.call_s3("put_object", Bucket=s3.bucket, Key=key, Body=body)
    store.call_s3("put_object", Bucket=s3.bucket, Key="raw//", Body=b"")
    # Its row is relative to the folder without a name.
    manifest = json.dumps([{"path": "b.mp4", "licence": "CC0"}])
    store.call_s3("put_object", Bucket=s3.bucket, Key="raw//list.json", Body=manifest.encode())

    out = program.Out(tmp_path / "out")
    options = ("--out", out.url, "--recipe", recipe(), "--address", address, "--json")
    arguments = (f"{s3.url}/raw", f"{s3.url}//lead.mp4", f"{s3.url}/raw//list.json")
    process = vdot("ingest", *arguments, *options, env=s3.env, timeout=300)
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["done"] == {"kept": 4}
    uris = {row["source_uri"]: row["licence"] for row in out.query("SELECT source_uri, licence FROM sources")}
    assert uris == {f"{s3.url}/{key}": "CC0" if key == "raw//b.mp4" else None for key in keys}

    for key in keys[-2:]:
        explained = vdot("explain", out.url, f"{s3.url}/{key}", "--json")
        assert explained.returncode == 0, explained.stderr
        assert f"{s3.url}/{key}" in explained.stdout
    served = s3.faults()["served"]
    rerun = vdot("ingest", s3.url, *options, env=s3.env, timeout=300)
    assert json.loads(rerun.stdout)["done"] == {}, "a second run finds nothing to do"
    assert s3.faults()["served"] - served < 20, "and lists the bucket only"
