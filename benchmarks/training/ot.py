"""The transport's gradient beside the published algorithm's: time and memory, in one run, each in its own process.

Both are given the same two predictions, latents [1, C, T', h, w] whose frames have N tokens: one of the size of their
own spread away from each other, which is where plans are hardest to find among those that training meets.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from training.objectives import ot, published
from training.objectives.ot import Transport

# What the published algorithm keeps for a frame: 2 matrices for each iteration, and what differentiating them takes.
_PUBLISHED_MATRICES = 2 * published.ITERATIONS * 1.1


def measure(frames: int, side: tuple[int, int], channels: int, apart: float, repeat: int) -> dict[str, Any]:
    """Seconds and bytes of both, for `frames` latent frames of `side` tokens.

    The published algorithm is given fewer frames where memory ends, and is stated for each frame too: its frames are
    independent, and it keeps all of them.
    """
    size = side[0] * side[1]
    cuda = torch.cuda.is_available()
    room = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().available
    fitting = max(1, min(frames, int(0.7 * room / (_PUBLISHED_MATRICES * 4 * size**2))))
    found = {
        "device": named(torch.device("cuda" if cuda else "cpu")),
        "torch": torch.__version__,
        "tokens": size,
        "channels": channels,
        "apart": apart,
        "repeat": repeat,
        "ours": _apart("ours", frames, side, channels, apart, repeat),
        "published": _apart("published", fitting, side, channels, apart, repeat),
    }
    for name in ("s", "bytes"):
        each = {who: found[who][name] / found[who]["frames"] for who in ("ours", "published")}
        found[f"published_over_ours_{name}_a_frame"] = round(each["published"] / each["ours"], 1)
    # What is kept grows with frames there, and with a fixed workspace here: so the whole is compared, too.
    whole = found["published"]["bytes"] / fitting * frames
    found["published_bytes_for_all_frames"] = {"bytes": round(whole), "measured": fitting == frames}
    found["published_over_ours_bytes"] = round(whole / found["ours"]["bytes"], 1)
    return found


def _apart(who: str, frames: int, side: tuple[int, int], channels: int, apart: float, repeat: int) -> dict[str, Any]:
    """`_job` in a process of its own, whose peak is nobody else's."""
    told = json.dumps([who, frames, side, channels, apart, repeat])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training.ot", told], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the measurement of {who} ended with {done.returncode}: {done.stderr[-500:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _job(who: str, frames: int, side: tuple[int, int], channels: int, apart: float, repeat: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fake, real = (one.to(device) for one in predictions(frames, side, channels, apart))
    signals: dict[str, float] = {}

    def work() -> Tensor:
        if who == "published":
            return published.transport_gradient(fake, real)
        done = ot.transported(fake, real, Transport())
        signals.update({name: round(float(value), 5) for name, value in done.signals.items()})
        return done.residual

    # Libraries are loaded and threads started by a small one.
    small = slice(0, 1), slice(None), slice(0, 1), slice(0, 4), slice(0, 4)
    published.transport_gradient(fake[small], real[small])
    ot.transported(fake[small], real[small], Transport())
    before = peak(device)
    times = []
    for _ in range(repeat):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return {
        "frames": frames,
        "s": round(statistics.median(times), 4),
        "all_s": [round(one, 4) for one in times],
        "bytes": peak(device) - before,
        "signals": signals,
    }


def predictions(frames: int, side: tuple[int, int], channels: int, apart: float) -> tuple[Tensor, Tensor]:
    """Smooth random latents, as pictures are, of unit variance, and others `apart` times as far as they spread."""
    made = torch.Generator().manual_seed(0)

    def smooth() -> Tensor:
        shape = frames, channels, 2 * side[0] + 4, 2 * side[1] + 4
        shown = functional.avg_pool2d(torch.randn(shape, generator=made), 5, stride=1)
        return (shown / shown.std()).transpose(0, 1)[None]

    fake, other = smooth(), smooth()
    return fake, fake + apart * (other - fake)


def named(device: torch.device) -> str:
    """What a figure says that it was measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"


def peak(device: torch.device) -> int:
    """The most memory that was taken so far, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(_job(*json.loads(sys.argv[1]))))
