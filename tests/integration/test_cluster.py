"""Tests that a cluster changes only where work runs: with two nodes, and with a node that claims too many cores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import program
import psutil
import pytest
from processes import children


def raylets(ray_cluster: Any) -> list[int]:
    """The process id of each node's raylet, which is the parent of the node's workers."""
    return [node.all_processes["raylet"][0].process.pid for node in ray_cluster.list_all_nodes()]


def stage_workers(raylet: int) -> int:
    """The number of a node's workers for stages of the plan."""
    return len(children(raylet, "MapWorker"))


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_share_the_work_and_give_the_same_dataset(
    vdot: Any, recipe: Any, small_folder: Path, local_dataset: Any, tmp_path: Path
) -> None:
    out = program.Out(tmp_path / "out")
    with program.cluster(1, 1, memory=4 * 10**9) as ray_cluster:
        nodes = raylets(ray_cluster)
        run = vdot.start(
            "ingest", small_folder, "--out", out.url, "--recipe", recipe(), "--address", ray_cluster.address
        )
        program.poll(
            lambda: all(map(stage_workers, nodes)) or run.poll() is not None, 300, "every node has a worker of a stage"
        )
        assert run.poll() is None, "the run ended before every node had a worker"
        process = vdot.finish(run)
        assert process.returncode == 0, process.stderr
        assert all(psutil.pid_exists(node) for node in nodes), "the cluster outlives the run"
    assert out.clips().keys() == local_dataset.clips().keys()
    assert out.samples() == local_dataset.samples()
    assert vdot("verify", out.url, "--workers", 1).returncode == 0


@pytest.mark.long
def test_a_cluster_that_claims_64_cores_gets_no_more_workers_than_its_memory_holds(
    vdot: Any, recipe: Any, small_folder: Path, local_dataset: Any, tmp_path: Path
) -> None:
    out = program.Out(tmp_path / "out")
    with program.cluster(64, memory=3 * 10**9) as ray_cluster:
        (node,) = raylets(ray_cluster)
        most_workers = 0
        run = vdot.start(
            "ingest", small_folder, "--out", out.url, "--recipe", recipe(), "--address", ray_cluster.address
        )

        def ended() -> bool:
            nonlocal most_workers
            most_workers = max(most_workers, stage_workers(node))
            return run.poll() is not None

        program.poll(ended, 300, "the run ends")
        process = vdot.finish(run)
    assert process.returncode == 0, process.stderr
    assert 2 <= most_workers <= 4
    assert out.samples() == local_dataset.samples()


def test_a_cluster_that_is_not_there_is_one_sentence(
    vdot: Any, recipe: Any, small_folder: Path, tmp_path: Path
) -> None:
    process = vdot("ingest", small_folder, "--out", tmp_path / "out", "--recipe", recipe(), "--address", "127.0.0.1:1")
    assert process.returncode == 1
    assert "Traceback" not in process.stderr
    assert [line[:35] for line in process.stderr.splitlines() if "vdot-data:" in line] == [
        "vdot-data: cannot join the Ray clus"
    ]
