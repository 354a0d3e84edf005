"""A cluster changes where the work is done and nothing else: two nodes, and one that claims more than it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import psutil
import pytest
from processes import children


def raylets(made: Any) -> list[int]:
    """The process id of each node's raylet, which is the parent of the node's workers."""
    return [node.all_processes["raylet"][0].process.pid for node in made.list_all_nodes()]


def stage_workers(raylet: int) -> int:
    """How many workers of the plan's stages a node has."""
    return len(children(raylet, "MapWorker"))


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_share_the_work_and_give_the_same_dataset(
    vdot: Any, recipe: Any, small: Path, local: Any, tmp_path: Path
) -> None:
    out = program.Out(tmp_path / "out")
    with program.cluster(1, 1, memory=4 * 10**9) as made:
        nodes = raylets(made)
        run = vdot.start("ingest", small, "--out", out.url, "--recipe", recipe(), "--address", made.address)
        program.poll(
            lambda: all(map(stage_workers, nodes)) or run.poll() is not None, 300, "every node has a worker of a stage"
        )
        assert run.poll() is None, "the run ended before every node had a worker"
        done = vdot.finish(run)
        assert done.returncode == 0, done.stderr
        assert all(psutil.pid_exists(node) for node in nodes), "the cluster outlives the run"
    assert out.clips().keys() == local.clips().keys()
    assert out.samples() == local.samples()
    assert vdot("verify", out.url, "--workers", 1).returncode == 0


@pytest.mark.long
def test_a_cluster_that_claims_64_cores_gets_no_more_workers_than_its_memory_holds(
    vdot: Any, recipe: Any, small: Path, local: Any, tmp_path: Path
) -> None:
    out = program.Out(tmp_path / "out")
    with program.cluster(64, memory=3 * 10**9) as made:
        (node,) = raylets(made)
        most = 0
        run = vdot.start("ingest", small, "--out", out.url, "--recipe", recipe(), "--address", made.address)

        def ended() -> bool:
            nonlocal most
            most = max(most, stage_workers(node))
            return run.poll() is not None

        program.poll(ended, 300, "the run ends")
        done = vdot.finish(run)
    assert done.returncode == 0, done.stderr
    assert 2 <= most <= 4
    assert out.samples() == local.samples()


def test_a_cluster_that_is_not_there_is_one_sentence(vdot: Any, recipe: Any, small: Path, tmp_path: Path) -> None:
    done = vdot("ingest", small, "--out", tmp_path / "out", "--recipe", recipe(), "--address", "127.0.0.1:1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert [line[:35] for line in done.stderr.splitlines() if "vdot-data:" in line] == [
        "vdot-data: cannot join the Ray clus"
    ]
