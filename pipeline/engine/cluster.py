"""Nodes that differ make clips that differ, so every node of a cluster is asked what it has."""

from __future__ import annotations

import os
import platform
import re
import socket
import tempfile
from importlib import metadata
from typing import Any

from annotators.weights import MissingWeights, path
from pipeline.errors import RunError
from pipeline.recipe import registry

# A node that does not answer within this time is busy with other work or cannot start a worker.
NODE_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
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
    for weight in registry.collect_weights().values():
        try:
            path(weight)
            facts[weight.id] = "sound"
        except MissingWeights:
            facts[weight.id] = "missing or damaged"
    return facts


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


def ask_nodes(address: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The facts of each node of a running cluster that answers; for each other, by its host name, why it does not.

    Raises RunError where the cluster cannot be joined.
    """
    silent = unreachable(address)
    if silent:
        raise RunError(silent)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    with tempfile.TemporaryDirectory(prefix="vdot-empty-") as empty:
        try:
            # Workers must not import a folder `pipeline/` of the user's from the current directory.
            ray.init(address=address, runtime_env={"working_dir": empty}, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise RunError(str(error)) from error
        try:
            return _answers(ray)
        finally:
            ray.shutdown()


def _answers(ray: Any) -> tuple[list[dict[str, str]], dict[str, str]]:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(num_cpus=0, max_retries=0)(node_facts)
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    answers = {
        node: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote()
        for node in hosts
    }
    facts: list[dict[str, str]] = []
    silent: dict[str, str] = {}
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_TIMEOUT_S)
    for node, answer in answers.items():
        try:
            facts.append(ray.get(answer, timeout=0))
        except ray.exceptions.RayError as error:
            silent[hosts[node]] = str(error).strip().splitlines()[-1]
    return facts, silent
