"""Measures time and peak memory of `select`, `mix` and `report` over a large generated catalog."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from pipeline.catalog.catalog import Catalog, new_run_id, utc_now
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.storage.folder import Folder

# Rows of one part, and clips of one source.
_PART, _PER_SOURCE = 50_000, 8
_SHARD = "shards/generated.tar"


def measure(clips: int) -> dict[str, Any]:
    """Seconds and peak megabytes of each command, run as a process, over a catalog of this many clips."""
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        size = _generate(folder / "out", folder, clips)
        generated_s = time.monotonic() - started
        mixture = {
            "datasets": {"generated": {"path": "out", "where": "luma > 60"}},
            "tasks": {"text": 2, "pose": 1, "flow": 1},
            "clips_per_source": 4,
            "held_out": 0.02,
        }
        (folder / "mixture.yaml").write_text(yaml.safe_dump(mixture))
        out = str(folder / "out")
        commands = {
            "select": ("select", out, "--where", "sharpness > 0.5 AND motion BETWEEN 1 AND 20", "--name", "day1"),
            "select --rule": ("select", out, "--rule", "too_dark: luma < 60"),
            "mix": ("mix", str(folder / "mixture.yaml"), "--out", str(folder / "mixed")),
            "report": ("report", out, "--html", str(folder / "report.html")),
        }
        results = {name: _run_timed(words) for name, words in commands.items()}
        page = (folder / "report.html").stat().st_size
    return {
        "clips": clips,
        "catalog_mb": size / 1e6,
        "generated_s": generated_s,
        "report_mb": page / 1e6,
        "commands": results,
    }


def _run_timed(words: tuple[str, ...]) -> dict[str, float]:
    """Wall seconds and peak resident megabytes of one command."""
    started = time.monotonic()
    command = [str(Path(sys.executable).with_name("vdot-data")), *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    stderr = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"vdot-data {words[0]} ended with {os.waitstatus_to_exitcode(status)}: {stderr}")
    return {"seconds": round(time.monotonic() - started, 2), "peak_mb": round(usage.ru_maxrss / 1e3)}


def _generate(out: Path, scratch: Path, clips: int) -> int:
    """Write a catalog by the default recipe, with random signals and verdicts; returns its size in bytes."""
    folder = Folder(str(out))
    catalog = Catalog(folder, scratch)
    loaded = recipe.load(None)
    blueprint = Blueprint.for_ingest(loaded, ())
    schema = blueprint.schema()
    folder.put(_SHARD, b"")
    run = {"kind": "run", "layer": "base", "recipe": loaded.text, "recipe_hash": loaded.hash, "started": utc_now()}
    catalog.commit(pa.Table.from_pylist([run | {"run_id": new_run_id()}], schema=schema))
    rng = np.random.default_rng(0)
    tasks = list(loaded.fitness)
    for start in range(0, clips, _PART):
        count = min(_PART, clips - start)
        numbers = np.arange(start, start + count)
        source = numbers // _PER_SOURCE
        # Most are kept, a fifth rejected by one rule, and a few wait.
        status = np.array(["kept", "rejected", "pending"])[rng.choice(3, count, p=[0.78, 0.2, 0.02])]
        fixed: dict[str, Any] = {
            "kind": ["clip"] * count, "layer": ["base"] * count, "run_id": ["generated"] * count,
            "recipe_hash": [loaded.hash] * count, "source_uri": [f"s3://bucket/{value}.mp4" for value in source],
            "source_hash": [f"{value:064x}" for value in source], "clip_id": [f"{value:032x}" for value in numbers],
            "start_s": numbers % _PER_SOURCE * 5.0, "end_s": numbers % _PER_SOURCE * 5.0 + 5.0, "fps": [16.0] * count,
            "frames": rng.choice([33, 49, 65, 81], count), "width": rng.choice([832, 640, 480], count),
            "height": rng.choice([480, 352, 256], count), "status": status, "shard": [_SHARD] * count,
            "rule": [("too_dark" if value == "rejected" else None) for value in status],
            "offset": numbers * 10_240, "bytes": [10_240] * count, "lineage": [blueprint.lineage] * count,
            "tasks": [[task for task in tasks if draw < 0.3] for draw in rng.random(count)],
        }  # fmt: skip
        signals = {
            name: rng.lognormal(1.0, 1.0, count) if signal.kind == "float" else rng.integers(0, 5, count)
            for name, signal in blueprint.signals.items()
            if signal.kind in ("float", "int")
        }
        signals["luma"] = np.where(status == "rejected", rng.uniform(0, 40, count), rng.uniform(40, 210, count))
        columns = [pa.array((fixed | signals).get(field.name, [None] * count), field.type) for field in schema]
        catalog.commit(pa.table(columns, schema=schema))
    return sum(entry.size for entry in folder.list_files("catalog"))
