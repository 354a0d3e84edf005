"""`make demo-train`: from the shards of `make demo` to a tiny student, and a video that it makes in four steps.

`python -m training.demo DIR`: a model of four million parameters is taught on the six clips of the demonstration,
distilled and sampled. It shows that the parts fit together, not what a VACE model can do.
"""

from __future__ import annotations

import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pipeline.curation.make_mixture import mix
from pipeline.errors import RunError, UsageError
from pipeline.formats.clip_encode import encode_clip
from training import commands
from training.cli import configure_logging, console
from training.config import Size
from training.data.stream import Stream
from training.demo import tiny_model
from training.encoding.examples import resize_batch
from training.encoding.video_files import FPS
from training.export import generate, trained_model

# Two clips a step, conditioned on a control track or a first frame.
MIXTURE = """\
datasets:
  demo: {path: out}
tasks: {scribble: 3, firstframe: 1}
step: {micro_batches: 2}
"""
_SIZE = Size(frames=9, height=64, width=64)
_TEACH, _DISTILL, _WORKERS = 1200, 60, 2


def main(folder: Path) -> None:
    """Make the model, teach, distill and sample. Raises as these do."""
    mixture, model = folder / "tiny", folder / "tiny-model"
    start = time.monotonic()
    commands.silence_libraries()
    # Threads that compete with workers or other programs for cores are slower than fewer threads.
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - _WORKERS))
    (folder / "tiny.yaml").write_text(MIXTURE)
    mix(folder / "tiny.yaml", str(mixture))
    if not (model / "README.md").is_file():
        console.print("fitting a tiny autoencoder on the clips ...")
        psnr = tiny_model.make(str(mixture), _SIZE, model)
        console.print(f"it reconstructs them with {psnr:.1f} dB (PSNR)")
    for name, config in (("teach", _teach_config()), ("distill", _distill_config(folder))):
        config = _common_config(mixture, model) | config
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    console.print("teaching it: flow matching from scratch ...")
    commands.teach(folder / "teach.yaml", folder / "teacher", "latest")
    if not (folder / "teacher-model").exists():
        commands.export(folder / "teacher", folder / "teacher-model")
    console.print("distilling it into four steps ...")
    commands.distill(folder / "distill.yaml", folder / "student", "latest")
    _write_sample(folder, mixture)
    console.print(
        f"\ndone in {time.monotonic() - start:.0f} s. {folder}/sample.mp4: a control track (left), what the student "
        f"makes of it in four steps (middle), and the clip that it was taken from (right).\n"
        f"Losses and signals: {folder}/student/log.jsonl, or tensorboard --logdir {folder}\n"
        "What comes next: docs/distillation.md, `The demonstration`; first: . .venv/bin/activate",
        soft_wrap=True,
    )


def _common_config(mixture: Path, model: Path) -> dict[str, Any]:
    return {
        "model": {"folder": str(model), "dtype": "float32", "activation_checkpointing": False, "text_tokens": 32},
        "data": {"mixture": str(mixture), "form": "pixels", "size": _SIZE.model_dump(), "workers": _WORKERS},
        "saves": {"every": 50, "keep": 2},
        "evaluation": {"every": 0},
    }


def _teach_config() -> dict[str, Any]:
    return {
        "steps": _TEACH,
        "scratch": True,
        "optimizer": {"lr": 1.0e-3, "betas": [0.9, 0.99], "warmup": 10, "clip": 1.0},
        "average": {"decay": 0.97, "start": 50},
        "teacher_cfg": 1.0,
    }


def _distill_config(folder: Path) -> dict[str, Any]:
    return {
        "model": _common_config(folder, folder / "teacher-model")["model"],
        "steps": _DISTILL,
        "student": {"lr": 1.0e-4},
        "critic": {"lr": 3.0e-4},
        "student_every": 2,
        "teacher_cfg": 1.0,
        "gan": {"start": 10, "lr": 3.0e-4, "width": 64},
        "average": {"decay": 0.9, "start": 10},
    }


def _write_sample(folder: Path, mixture: Path) -> None:
    """Write a video of the first clip with a control track: the track, the student's sample, and the clip."""
    stream = Stream(str(mixture), frames=_SIZE.frames, rank=0, world=1)
    drawn = (batch for step in islice(stream, 64) for batch in step)
    batch = next(
        resize_batch(candidate, _SIZE)
        for candidate in drawn
        if "video" in candidate.arrays and "mask" not in candidate.arrays
    )
    clip, track = (np.moveaxis(batch.arrays[name][0], 0, -1) for name in ("clip", "video"))
    trained = trained_model.load(folder / "student", torch.device("cpu"))
    shape = _SIZE.frames, _SIZE.height, _SIZE.width
    generated = generate.video(trained, batch.captions[0], shape=shape, condition=track)
    (folder / "sample.mp4").write_bytes(encode_clip(np.concatenate([track, generated, clip], axis=2), FPS))


if __name__ == "__main__":
    configure_logging()
    try:
        main(Path(sys.argv[1]))
    except (RunError, UsageError) as error:
        sys.exit(f"the demonstration ended: {error}")
