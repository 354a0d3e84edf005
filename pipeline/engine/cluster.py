"""Asks every node of a cluster for its versions and weights, since nodes that differ make clips that differ."""

from __future__ import annotations

import platform
import re
import socket
import tempfile
from importlib import metadata
from typing import Any

from annotators.weights import MissingWeights, path
from pipeline.engine.configured_ray import ray
from pipeline.errors import RunError
from pipeline.recipe import registry

# A node that does not answer within this time is busy with other work or cannot start a worker.
NODE_TIMEOUT_S = 120.0
CONNECT_TIMEOUT_S = 10.0
# Packages whose version decides the bytes or the values of a sample.
DECISIVE_PACKAGES = ("vdot-data", "ray", "av", "numpy", "pyarrow", "opencv-python-headless", "torch", "ai-edge-litert")


def collect_node_facts() -> dict[str, str]:
    """What must be the same on every node: Python, packages and weights; and the node's host name."""
    facts = {"host": socket.gethostname(), "python": platform.python_version()}
    for name in DECISIVE_PACKAGES:
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


def connection_error(address: str) -> str | None:
    """Why nothing answers at host:port, or None; Ray itself would try for minutes."""
    match = re.fullmatch(r"(?:ray://)?([^/:]+|\[.+\]):(\d+)", address)
    if match is None:
        return None
    try:
        socket.create_connection((match[1].strip("[]"), int(match[2])), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def ask_nodes(address: str) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The facts of each node of a running cluster that answers; for the rest, by host name, why they do not.

    Raises RunError where the cluster cannot be joined.
    """
    reason = connection_error(address)
    if reason:
        raise RunError(reason)
    with tempfile.TemporaryDirectory(prefix="vdot-empty-") as empty_folder:
        try:
            # Workers must not import a folder `pipeline/` of the user's from the current directory.
            ray.init(
                address=address, runtime_env={"working_dir": empty_folder}, log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise RunError(str(error)) from error
        try:
            return _collect_answers()
        finally:
            ray.shutdown()


def _collect_answers() -> tuple[list[dict[str, str]], dict[str, str]]:
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task: Any = ray.remote(num_cpus=0, max_retries=0)(collect_node_facts)
    hosts = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    answers = {node: task.options(scheduling_strategy=strategy(node, soft=False)).remote() for node in hosts}
    facts: list[dict[str, str]] = []
    errors: dict[str, str] = {}
    ray.wait(list(answers.values()), num_returns=len(answers), timeout=NODE_TIMEOUT_S)
    for node, answer in answers.items():
        try:
            facts.append(ray.get(answer, timeout=0))
        except ray.exceptions.RayError as error:
            errors[hosts[node]] = str(error).strip().splitlines()[-1]
    return facts, errors
