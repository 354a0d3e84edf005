"""Every node of a cluster held against this machine, which drives the run."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.engine.cluster import ask_nodes, node_facts
from pipeline.errors import RunError
from pipeline.upkeep.checks import Check


def check_cluster(address: str) -> Iterator[Check]:
    """Ask every node of a running cluster what it has."""
    try:
        facts, silent = ask_nodes(address)
    except RunError as error:
        advice = "check the address, and that `ray status` works there"
        yield Check(f"cluster {address}", "fail", str(error), advice)
        return
    yield from compare_nodes(facts, silent)


def compare_nodes(facts: list[dict[str, str]], silent: dict[str, str]) -> Iterator[Check]:
    """A check for each node: `facts` of those that answered, and by host name why others did not."""
    for host, reason in silent.items():
        yield Check(f"node {host}", "fail", reason, "install the same vdot-data[ingest] there as here")
    here = node_facts()
    for node in facts:
        name = f"node {node['host']}"
        differs = [
            f"{key} {node.get(key)} (here {here[key]})" for key in here if key != "host" and node.get(key) != here[key]
        ]
        if differs:
            yield Check(name, "fail", "; ".join(differs), "install the same versions and weights on every node")
        else:
            yield Check(name, "ok", f"vdot-data {node['vdot-data']}, Python {node['python']}, the same as here")
