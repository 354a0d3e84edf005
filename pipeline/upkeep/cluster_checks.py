"""Compares every node of a cluster with this machine, which drives the run."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.engine.cluster import ask_nodes, collect_node_facts
from pipeline.errors import RunError
from pipeline.upkeep.checks import Check, CheckStatus


def check_cluster(address: str) -> Iterator[Check]:
    """Check every node of a running cluster."""
    try:
        facts, errors = ask_nodes(address)
    except RunError as error:
        advice = "check the address, and that `ray status` works there"
        yield Check(f"cluster {address}", CheckStatus.FAIL, str(error), advice)
        return
    yield from compare_nodes(facts, errors)


def compare_nodes(facts: list[dict[str, str]], errors: dict[str, str]) -> Iterator[Check]:
    """A check for each node: `facts` of those that answered, `errors` of the rest by host name."""
    for host, reason in errors.items():
        yield Check(f"node {host}", CheckStatus.FAIL, reason, "install the same vdot-data[ingest] there as here")
    local = collect_node_facts()
    for node in facts:
        name = f"node {node['host']}"
        differences = [
            f"{key} {node.get(key)} (here {local[key]})"
            for key in local
            if key != "host" and node.get(key) != local[key]
        ]
        if differences:
            yield Check(
                name, CheckStatus.FAIL, "; ".join(differences), "install the same versions and weights on every node"
            )
        else:
            yield Check(
                name, CheckStatus.OK, f"vdot-data {node['vdot-data']}, Python {node['python']}, the same as here"
            )
