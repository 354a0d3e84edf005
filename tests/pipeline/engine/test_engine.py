"""Tests how many workers and what share of a GPU each pool of the plan gets, and what comes out of a plan."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from pipeline.engine.engine import CORE_MEMORY, Engine, Pool, pool_options
from pipeline.ingest import graph
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from pipeline.storage.folder import Folder


class Heavy:
    """Uses a GPU."""

    name, version, tracks, weights, gpu = "heavy", "1", (), (), True
    signals: ClassVar[dict[str, Any]] = {}


@pytest.fixture
def plan_pools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`plan_pools(blueprint, gpus)`: stage, fewest and most workers, and GPU share of each pool on eight CPUs."""
    find_annotator = registry.load_annotator
    monkeypatch.setattr(registry, "load_annotator", lambda name: Heavy if name == "heavy" else find_annotator(name))

    # Memory for eight workers of the usual size.
    def count_workers(chunks: int, extra_bytes: float = 0.0) -> int:
        return min(8, chunks, int(8 * CORE_MEMORY / (CORE_MEMORY + extra_bytes)))

    cluster: Any = SimpleNamespace(count_workers=count_workers, cpus=8, attempts=None)

    def plan(blueprint: Blueprint, gpus: int) -> list[tuple[Any, ...]]:
        pools = graph.build_pools(cluster, blueprint, Folder("memory://out"), 8)
        options = pool_options(pools, gpus)
        for pool, option in zip(pools, options, strict=True):
            assert option["batch_size"] == (
                pool.rows_per_call if pool.rows_per_call > 1 or "num_gpus" in option else None
            )
        return [
            (pool.stage.__name__, option["compute"].min_size, option["compute"].max_size, option.get("num_gpus"))
            for pool, option in zip(pools, options, strict=True)
        ]

    return plan


def recipe(stages: str) -> Any:
    return parse(f"filters: []\nstages: {stages}\nrules: {{}}\ntasks: {{}}", "x")


def test_without_a_gpu_every_core_has_a_worker_of_every_stage(plan_pools: Any) -> None:
    blueprint = Blueprint.for_ingest(recipe("[[scribble], [heavy]]"), ())
    cut, first, second = ("CutStage", 8, 8, None), ("AnnotateStage", 1, 8, None), ("AnnotateStage", 8, 8, None)
    assert plan_pools(blueprint, 0) == [cut, first, second]
    assert plan_pools(Blueprint.for_ingest(recipe("[[scribble], [flow]]"), ()), 2) == [cut, first, second]


def test_what_uses_a_gpu_has_a_worker_for_each(plan_pools: Any) -> None:
    late_recipe, early_recipe = (recipe(stages) for stages in ("[[scribble], [heavy]]", "[[heavy], [scribble]]"))
    assert plan_pools(Blueprint.for_ingest(late_recipe, ()), 2) == [
        *(("CutStage", 8, 8, None), ("AnnotateStage", 1, 8, None), ("AnnotateStage", 2, 2, 1.0))
    ]
    # Both the worker that cuts and the pool of the first stage hold the network.
    assert plan_pools(Blueprint.for_ingest(early_recipe, ()), 2) == [
        *(("CutStage", 2, 2, 0.5), ("AnnotateStage", 1, 2, 0.5), ("AnnotateStage", 8, 8, None))
    ]


@pytest.mark.parametrize("gpu", [False, True])
def test_clips_that_are_annotated_together_are_gathered_by_a_pool_of_their_own(
    gpu: bool, plan_pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heavy, "clips_per_call", 4, raising=False)
    monkeypatch.setattr(Heavy, "annotate_clips", None, raising=False)
    monkeypatch.setattr(Heavy, "gpu", gpu)
    # Three more clips of 97 MB in the memory of each core.
    first = ("AnnotateStage", 1, 2, 1.0) if gpu else ("AnnotateStage", 1, 6, None)
    expected = [("CutStage", 6, 6, None), first]
    assert plan_pools(Blueprint.for_ingest(recipe("[[heavy]]"), ()), 2) == expected
    assert plan_pools(Blueprint.for_layer(recipe("[[scribble]]"), "heavy"), 2) == expected


def test_a_layer_is_one_pool(plan_pools: Any) -> None:
    assert plan_pools(Blueprint.for_layer(recipe("[[scribble]]"), "flow"), 2) == [("CutStage", 8, 8, None)]
    assert plan_pools(Blueprint.for_layer(recipe("[[scribble]]"), "heavy"), 2) == [("CutStage", 2, 2, 1.0)]


@pytest.mark.long
def test_ray_hands_on_a_reference_for_each_row(tmp_path: Path) -> None:
    """`Dataset.iter_internal_ref_bundles` is not among Ray's stable calls: if a new version changed it, this fails."""

    # Local, because workers cannot import the tests.
    class Doubling:
        def __init__(self, start: int) -> None:
            self._start = start

        def __call__(self, table: pa.Table) -> pa.Table:
            return pa.table({"number": [self._start + 2 * number for number in table["number"].to_pylist()]})

    chunks = [pa.table({"number": [number]}) for number in range(3)]
    with Engine(None, 1, tmp_path / "contents.sqlite", max_deaths=3) as engine:
        pool = Pool(Doubling, (100,), 1, 1, in_flight=2)
        blocks = [(engine.wait_for(future), size) for future, size in engine.run([pool], chunks)]
        assert sorted(table["number"].to_pylist() for table, _ in blocks) == [[100], [102], [104]]
        assert all(size > 0 for _, size in blocks)
        assert sorted(table["number"].to_pylist() for table in engine.map_tables(pool, chunks)) == [[100], [102], [104]]
