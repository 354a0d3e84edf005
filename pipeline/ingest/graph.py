"""The plan of a run: cuts sources, annotates their clips list by list, and writes settled items into shards.

`CutStage`, which annotates the clips of short sources itself -> one `AnnotateStage` per list in the recipe -> the
driver, which sees references only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.engine.engine import Engine, Pool
from pipeline.formats.schema import BASE_LAYER
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages.annotate import AnnotateStage
from pipeline.stages.cut import CutStage
from pipeline.stages.item import read_values
from pipeline.stages.pack import pack
from pipeline.storage.folder import Folder


def build_pools(engine: Engine, blueprint: Blueprint, out: Folder, chunks: int) -> list[Pool]:
    """Build the pools of workers that this many chunks of work go through, in order."""
    # Clips that are annotated together are in memory together.
    grid = blueprint.recipe.grid
    further_clips = sum(blueprint.clips_per_call(stage_index) - 1 for stage_index in range(len(blueprint.stages)))
    extra_bytes = 3.0 * grid.frames * grid.area * further_clips
    workers, max_workers = (engine.count_workers(count, extra_bytes) for count in (chunks, engine.cpus))
    on_gpu = [any(registry.declare(registry.load_annotator(name)).gpu for name in stage) for stage in blueprint.stages]
    # The worker that cuts a source, or opens a stored clip, also runs the first stage, unless that stage takes several
    # clips per call.
    together = blueprint.clips_per_call(0) > 1
    # One source at a time: one queued behind another could be done by a worker that is idle at the end.
    cut = Pool(
        *(CutStage, (blueprint, out, engine.attempts), workers, workers), in_flight=1, on_gpu=on_gpu[0] and not together
    )
    stage_indices = range(0 if together or blueprint.layer == BASE_LAYER else 1, len(blueprint.stages))
    return [
        cut,
        *(
            # One source may have a thousand clips: this pool grows as they come. Two in flight: the next clip is
            # ready when a worker finishes one.
            Pool(
                AnnotateStage,
                (blueprint, stage_index, engine.attempts),
                1 if stage_index == 0 else workers,
                max_workers,
                in_flight=2,
                on_gpu=on_gpu[stage_index],
                rows_per_call=blueprint.clips_per_call(stage_index),
            )
            for stage_index in stage_indices
        ),
    ]


def run_plan(
    engine: Engine, blueprint: Blueprint, out: Folder, chunks: Iterable[pa.Table]
) -> Iterator[tuple[Any, int, Any]]:
    """Run the plan over chunks of work; yields (block, its size in bytes, a future of its items without their bytes) as
    rows settle."""
    tables = list(chunks)
    for block, size in engine.run(build_pools(engine, blueprint, out, len(tables)), tables):
        yield block, size, engine.submit(read_values, block)


def write_shards(engine: Engine, blueprint: Blueprint, out: Folder, run_id: str, blocks: Sequence[Any]) -> Any:
    """Start writing settled blocks into shards; `engine.wait_for` of the future returns their items."""
    return engine.submit(pack, out, run_id, blueprint.layer, *blocks, tries=-1)
