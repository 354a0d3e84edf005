"""Nodes that differ make clips that differ, so every node of a cluster is asked what it has."""

from __future__ import annotations

import os
import platform
import re
import socket
import tempfile
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from annotators.weights import MissingWeights, path
from pipeline.recipe import registry
from pipeline.upkeep.doctor import Check

# A node that does not answer within this time is busy with other work or cannot start a worker.
NODE_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
_NO_CLUSTER = "check the address, and that `ray status` works there"
# Packages whose version decides the bytes or the values of a sample.
DECISIVE = ("vdot-data", "ray", "av", "numpy", "pyarrow", "opencv-python-headless", "torch", "ai-edge-litert")


def node_facts() -> dict[str, str]:
    """What must be the same on every node: Python, packages and weights; and the node's host name."""
    facts = {"host": socket.gethostname(), "python": platform.python_version()}
    for name in DECISIVE:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = "missing"
    for weight in registry.weights().values():
        try:
            path(weight)
            facts[weight.id] = "sound"
        except MissingWeights:
            facts[weight.id] = "missing or damaged"
    return facts


def cluster(address: str) -> Iterator[Check]:
    """Ask every node of a running cluster for its facts."""
    silent = unreachable(address)
    if silent:
        yield Check(f"cluster {address}", "fail", silent, _NO_CLUSTER)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with tempfile.TemporaryDirectory(prefix="vdot-empty-") as empty:
        try:
            # Workers must not import a folder `pipeline/` of the user's from the current directory.
            ray.init(address=address, runtime_env={"working_dir": empty}, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            yield Check(f"cluster {address}", "fail", str(error), _NO_CLUSTER)
            return
        try:
            yield from compared(*_ask(ray))
        finally:
            ray.shutdown()


def unreachable(address: str) -> str | None:
    """Why nothing answers at host:port, if so: Ray itself would try for minutes."""
    named = re.fullmatch(r"(?:ray://)?([^/:]+|\[.+\]):(\d+)", address)
    if named is None:
        return None
    try:
        socket.create_connection((named[1].strip("[]"), int(named[2])), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def _ask(ray: Any) -> tuple[dict[str, dict[str, str]], list[Check]]:
    """The facts of each node by its id, and a check for each that could not say them."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(node_facts)
    alive = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    asked = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in alive
    }
    facts: dict[str, dict[str, str]] = {}
    silent: list[Check] = []
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_TIMEOUT_S)
    for node, reference in asked.items():
        try:
            facts[node] = ray.get(reference, timeout=0)
        except ray.exceptions.RayError as error:
            advice = "install the same vdot-data[ingest] there as here"
            silent.append(Check(f"node {alive[node]}", "fail", str(error).strip().splitlines()[-1], advice))
    return facts, silent


def compared(nodes: dict[str, dict[str, str]], silent: list[Check]) -> Iterator[Check]:
    """The nodes held against this machine, which drives the run."""
    yield from silent
    here = node_facts()
    for facts in nodes.values():
        name = f"node {facts['host']}"
        differs = [
            f"{key} {facts.get(key)} (here {here[key]})"
            for key in here
            if key != "host" and facts.get(key) != here[key]
        ]
        if differs:
            yield Check(name, "fail", "; ".join(differs), "install the same versions and weights on every node")
        else:
            yield Check(name, "ok", f"vdot-data {facts['vdot-data']}, Python {facts['python']}, the same as here")
