"""Sources and dataset in an object store on a bad day: what comes out is that of a local run, whatever is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import program
import pytest
import small_videos


def parts(out: Any) -> int:
    """How many parts the catalog has; read past the store's faults, as `poll` asks again."""
    return int(out.query("SELECT coalesce(max(sequence), 0) AS n FROM parts")[0]["n"])


@pytest.mark.slow
@pytest.mark.long
def test_a_killed_run_in_a_bad_store_ends_like_a_local_one(
    s3: Any, vdot: Any, recipe: Any, small: Path, local: Any, tmp_path: Path
) -> None:
    store = fsspec.filesystem("s3")
    store.put(str(small), f"{s3.bucket}/videos", recursive=True)
    out = program.Out(f"{s3.url}/out")
    chosen = recipe(commit={"shard_mb": 0.001, "every_s": 0.1})
    command = ("ingest", f"{s3.url}/videos", "--out", out.url, "--recipe", chosen, "--cpus", 1, "--json")
    how = {"env": s3.env}
    s3.faults(0.1)

    # Killed after its first clips, and then when it has done no more than claim the store.
    for before, commits in ((1, 2), (2, 1)):
        process = vdot.start(*command, **how)
        least = parts(out) + commits
        program.poll(
            lambda least=least, process=process: parts(out) >= least or process.poll() is not None, 90, "a commit"
        )
        assert process.poll() is None, f"kill {before} came too late"
        vdot.kill(process)
    killed = out.clips()
    assert len(killed) < 7, "the kills came too late"

    done = vdot(*command, **how)
    assert done.returncode == 0, done.stderr
    assert sum(s3.faults(0.0).values()) > s3.faults()["served"], "the store had no fault"
    assert json.loads(done.stdout)["clips"] == {"kept": {"": 7}}
    assert json.loads(done.stdout)["done"] == {"kept": 7 - len(killed)}
    assert set(out.clips()) == set(local.clips())
    assert out.samples() == local.samples()
    assert vdot("verify", out.url, "--workers", 1, **how).returncode == 0

    again = vdot(*command, **how)
    assert json.loads(again.stdout)["done"] == {}, "a second run finds nothing to do"
    assert out.samples() == local.samples()

    store.put(str(small_videos.write(tmp_path / "one more.mp4", 99)), f"{s3.bucket}/videos/one more.mp4")
    more = vdot(*command, **how)
    assert json.loads(more.stdout)["done"] == {"kept": 1}
    assert set(out.clips()) > set(local.clips())
    assert vdot("verify", out.url, "--workers", 1, **how).returncode == 0
