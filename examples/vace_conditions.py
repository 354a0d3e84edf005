"""Mix two datasets with weights, and turn stored tracks into what a VACE model is given (its VCU).

    python examples/vace_conditions.py                    # after `make demo`: its two films as two datasets
    python examples/vace_conditions.py OUT_A OUT_B

A clip of the first dataset is drawn three times as often as one of the second. Prints the exact shares over a thousand
steps, and then for each task its condition (video, mask, references) and the shape of the context: 96 channels.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
import yaml
from torch.nn import functional

from training import Stream, vcu

VDOT_DATA = Path(sys.executable).with_name("vdot-data")
WORK = Path("demo/vace_conditions")
TASKS = {"scribble": 2, "firstframe": 1, "reference_scribble": 1}


def encode(clips: torch.Tensor) -> torch.Tensor:
    """Pixels [N, 3, T, H, W] as [N, 16, T', H / 8, W / 8]: averages stand in for latents, so that no model is needed.

    With a VACE model in the layout of diffusers, `vcu.encoder(AutoencoderKLWan.from_pretrained(..., subfolder="vae"))`
    takes its place.
    """
    groups = [functional.avg_pool3d(clips[:, :, :1], (1, 8, 8))]
    if clips.shape[2] > 1:
        groups.append(functional.avg_pool3d(clips[:, :, 1:], (4, 8, 8)))
    return torch.cat(groups, dim=2).repeat(1, 6, 1, 1, 1)[:, : vcu.CHANNELS]


def main() -> None:
    films = [
        {"path": "demo/out", "where": "source_uri LIKE '%bikes%'"},
        {"path": "demo/out", "where": "source_uri NOT LIKE '%bikes%'"},
    ]
    first, second = [{"path": path} for path in sys.argv[1:]] or films
    datasets = {
        # A path in a mixture counts from the mixture's own folder.
        name: part | {"path": path if "://" in (path := part["path"]) else str(Path(path).resolve()), "weight": weight}
        for name, part, weight in (("first", first, 3), ("second", second, 1))
    }
    WORK.mkdir(parents=True, exist_ok=True)
    (WORK / "mixture.yaml").write_text(
        yaml.safe_dump({"datasets": datasets, "tasks": TASKS, "step": {"micro_batches": 1}})
    )
    # `mix` refuses a folder with another mixture, which an earlier run with other datasets left here.
    shutil.rmtree(WORK / "mixture", ignore_errors=True)
    subprocess.run([VDOT_DATA, "mix", WORK / "mixture.yaml", "--out", WORK / "mixture"], check=True)

    stream = Stream(WORK / "mixture")
    # The order is arithmetic, so what comes is known without reading it.
    counts: Counter[tuple[str, str]] = Counter()
    for bucket, count in stream.order.count_drawn(1000).items():
        counts[bucket.dataset, bucket.task] += count
    for (dataset, task), count in sorted(counts.items()):
        print(f"{dataset:8} {task:12} {count / 10:5.1f} %")

    waiting = set(TASKS)
    for step in stream:
        for batch in step:
            if batch.bucket.task in waiting:
                waiting.discard(batch.bucket.task)
                arrays = ", ".join(f"{name} {array.shape}" for name, array in batch.arrays.items())
                print(f"\n{batch.bucket.task}: {arrays}; {len(batch.items[0])} references")
                print(f"context {tuple(vcu.of_batch(encode, batch).shape)} for: {batch.captions[0]}")
        if not waiting:
            break


if __name__ == "__main__":
    main()
