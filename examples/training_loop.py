"""A training loop in plain PyTorch: clips and a track of theirs in batches, and a state to resume from.

    python examples/training_loop.py                      # after `make demo`; on the CPU, without a model
    python examples/training_loop.py OUT pose

Writes a mixture of one task and trains a tiny network to draw each clip from its track (it shows the loop, not what a
model can do). It stops after four steps, and a second run continues from its checkpoint. Prints the position, the clips
and the loss of each micro-batch: the second run begins at the position at which the first one ended.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import torch
import yaml
from torch.nn import functional

from training import Stream, vcu

VDOT_DATA = Path(sys.executable).with_name("vdot-data")
WORK = Path("demo/training_loop")


def shrink(frames: torch.Tensor) -> torch.Tensor:
    """uint8 [B, 3, T, H, W] as float32 [B, 3, T, 64, 112] in [-1, 1]."""
    return functional.interpolate(vcu.pixels(frames), (frames.shape[2], 64, 112), mode="trilinear")


def train(mixture: Path, checkpoint: Path, steps: int) -> None:
    """Train for some steps, from the checkpoint if there is one, and write it again."""
    conv = torch.nn.Conv3d
    model = torch.nn.Sequential(conv(3, 16, 3, padding=1), torch.nn.GELU(), conv(16, 3, 3, padding=1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    stored = torch.load(checkpoint) if checkpoint.is_file() else None
    if stored:
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
    # The state is a position: nothing is read again to get there.
    stream = Stream(mixture, frames=9, workers=2, state=stored and stored["stream"])
    for step in islice(stream, steps):  # a stream has no end of its own
        optimizer.zero_grad()
        for batch in step:
            clip, track = (shrink(torch.from_numpy(batch.arrays[name])) for name in ("clip", "video"))
            loss = functional.mse_loss(model(track), clip)
            (loss / len(step)).backward()
            clips = ", ".join(key[:8] for key in batch.keys)
            print(f"position {batch.position}: {batch.bucket.task} of {clips}, loss {loss.item():.3f}")
        optimizer.step()
    values = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "stream": stream.state_dict()}
    torch.save(values, checkpoint)
    stream.close()


def main() -> None:
    out, track = sys.argv[1:] or ("demo/out", "scribble")
    # A path in a mixture counts from the mixture's own folder.
    path = out if "://" in out else str(Path(out).resolve())
    WORK.mkdir(parents=True, exist_ok=True)
    definition, mixture = WORK / "mixture.yaml", WORK / "mixture"
    # Two micro-batches a step, of one shape; under torchrun the ranks divide them.
    values = {"datasets": {"videos": {"path": path}}, "tasks": {track: 1}, "step": {"micro_batches": 2}}
    definition.write_text(yaml.safe_dump(values))
    # `mix` refuses a folder with another mixture, which an earlier run of other clips left here.
    shutil.rmtree(mixture, ignore_errors=True)
    subprocess.run([VDOT_DATA, "mix", definition, "--out", mixture], check=True)
    checkpoint = WORK / "checkpoint.pt"
    checkpoint.unlink(missing_ok=True)
    for title in ("first run", "second run, from its checkpoint"):
        print(title)
        train(mixture, checkpoint, steps=4)


if __name__ == "__main__":
    main()
