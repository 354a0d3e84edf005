"""How many workers each pool of the plan gets, and what of a GPU."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pipeline.engine import engine
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse


class Plan:
    """Ray's data, as far as the plan that is built on it goes."""

    def __init__(self) -> None:
        self.pools: list[dict[str, Any]] = []

    def map_batches(self, stage: type, **options: Any) -> Plan:
        self.pools.append({"stage": stage.__name__} | options)
        return self


class Heavy:
    """Uses a GPU."""

    name, version, tracks, weights, gpu = "heavy", "1", (), (), True
    signals: ClassVar[dict[str, Any]] = {}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`planned(blueprint, gpus)`: stage, least and most workers, and share of a GPU, of each pool on eight CPUs."""
    known = registry.annotator
    monkeypatch.setattr(registry, "annotator", lambda name: Heavy if name == "heavy" else known(name))
    monkeypatch.setattr(engine, "_blocks", lambda data: [])

    def plan(blueprint: Blueprint, gpus: int) -> list[tuple[Any, ...]]:
        made: Any = object.__new__(engine.Engine)
        made._out = made.watch = None
        made._pool, made._gpus, data = 8, gpus, Plan()
        monkeypatch.setattr(made, "_given", lambda chunks: (data, 8))
        list(made.run(blueprint, []))
        assert all(pool["batch_size"] == (1 if "num_gpus" in pool else None) for pool in data.pools)
        return [
            (pool["stage"], pool["compute"].min_size, pool["compute"].max_size, pool.get("num_gpus"))
            for pool in data.pools
        ]

    return plan


def recipe(stages: str) -> Any:
    return parse(f"filters: []\nstages: {stages}\nrules: {{}}\ntasks: {{}}", "x")


def test_without_a_gpu_every_core_has_a_worker_of_every_stage(planned: Any) -> None:
    blueprint = Blueprint.ingest(recipe("[[scribble], [heavy]]"), ())
    cut, first, second = ("CutStage", 8, 8, None), ("AnnotateStage", 1, 8, None), ("AnnotateStage", 8, 8, None)
    assert planned(blueprint, 0) == [cut, first, second]
    assert planned(Blueprint.ingest(recipe("[[scribble], [flow]]"), ()), 2) == [cut, first, second]


def test_what_uses_a_gpu_has_a_worker_for_each(planned: Any) -> None:
    late, early = (recipe(stages) for stages in ("[[scribble], [heavy]]", "[[heavy], [scribble]]"))
    assert planned(Blueprint.ingest(late, ()), 2) == [
        *(("CutStage", 8, 8, None), ("AnnotateStage", 1, 8, None), ("AnnotateStage", 2, 2, 1.0))
    ]
    # Both the worker that cuts and the pool of the first stage hold the network.
    assert planned(Blueprint.ingest(early, ()), 2) == [
        *(("CutStage", 2, 2, 0.5), ("AnnotateStage", 1, 2, 0.5), ("AnnotateStage", 8, 8, None))
    ]


def test_a_layer_is_one_pool(planned: Any) -> None:
    assert planned(Blueprint.layered(recipe("[[scribble]]"), "flow"), 2) == [("CutStage", 8, 8, None)]
    assert planned(Blueprint.layered(recipe("[[scribble]]"), "heavy"), 2) == [("CutStage", 2, 2, 1.0)]
