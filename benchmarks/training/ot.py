"""Measures the transport's gradient and the published algorithm's: time and memory, in one run, each in a process.

Both get the same two predictions, latents [1, C, T', h, w] whose frames have N tokens. By default their distance is
their own spread, where plans are hardest to find among those that occur in training.
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
from training.objectives.ot import TransportOptions

# Matrices that the published algorithm keeps for a frame: 2 for each iteration, and what differentiating them takes.
_PUBLISHED_MATRICES = 2 * published.ITERATIONS * 1.1


def measure(frames: int, side: tuple[int, int], channels: int, distance: float, repeat: int) -> dict[str, Any]:
    """Seconds and bytes of both, for `frames` latent frames of `side` tokens.

    The published algorithm gets fewer frames if memory does not suffice, so its figures are also given per frame: its
    frames are independent, and it keeps all of them.
    """
    size = side[0] * side[1]
    cuda = torch.cuda.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else psutil.virtual_memory().available
    published_frames = max(1, min(frames, int(0.7 * memory / (_PUBLISHED_MATRICES * 4 * size**2))))
    results = {
        "device": describe_device(torch.device("cuda" if cuda else "cpu")),
        "torch": torch.__version__,
        "tokens": size,
        "channels": channels,
        "apart": distance,
        "repeat": repeat,
        "ours": _run_job("ours", frames, side, channels, distance, repeat),
        "published": _run_job("published", published_frames, side, channels, distance, repeat),
    }
    for name in ("s", "bytes"):
        per_frame = {key: results[key][name] / results[key]["frames"] for key in ("ours", "published")}
        results[f"published_over_ours_{name}_a_frame"] = round(per_frame["published"] / per_frame["ours"], 1)
    # The published algorithm's memory grows with frames, ours is a fixed workspace: so the totals are compared, too.
    published_bytes = results["published"]["bytes"] / published_frames * frames
    results["published_bytes_for_all_frames"] = {
        "bytes": round(published_bytes),
        "measured": published_frames == frames,
    }
    results["published_over_ours_bytes"] = round(published_bytes / results["ours"]["bytes"], 1)
    return results


def _run_job(
    algorithm: str, frames: int, side: tuple[int, int], channels: int, distance: float, repeat: int
) -> dict[str, Any]:
    """Run `_measure_algorithm` in a process of its own, for a peak memory of its own."""
    arguments = json.dumps([algorithm, frames, side, channels, distance, repeat])
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.training.ot", arguments], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise RuntimeError(f"the measurement of {algorithm} ended with {process.returncode}: {process.stderr[-500:]}")
    return dict(json.loads(process.stdout.splitlines()[-1]))


def _measure_algorithm(
    algorithm: str, frames: int, side: tuple[int, int], channels: int, distance: float, repeat: int
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    fake, real = (latents.to(device) for latents in predictions(frames, side, channels, distance))
    signals: dict[str, float] = {}

    def work() -> Tensor:
        if algorithm == "published":
            return published.transport_gradient(fake, real)
        transport = ot.compute_transport(fake, real, TransportOptions())
        signals.update({name: round(float(value), 5) for name, value in transport.signals.items()})
        return transport.residual

    # A small run first loads libraries and starts threads.
    small = slice(0, 1), slice(None), slice(0, 1), slice(0, 4), slice(0, 4)
    published.transport_gradient(fake[small], real[small])
    ot.compute_transport(fake[small], real[small], TransportOptions())
    before = peak_memory(device)
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {
        "frames": frames,
        "s": round(statistics.median(times), 4),
        "all_s": [round(seconds, 4) for seconds in times],
        "bytes": peak_memory(device) - before,
        "signals": signals,
    }


def predictions(frames: int, side: tuple[int, int], channels: int, distance: float) -> tuple[Tensor, Tensor]:
    """Two random latents of unit variance, smooth as pictures are, `distance` times their spread apart."""
    generator = torch.Generator().manual_seed(0)

    def smooth() -> Tensor:
        shape = frames, channels, 2 * side[0] + 4, 2 * side[1] + 4
        noise = functional.avg_pool2d(torch.randn(shape, generator=generator), 5, stride=1)
        return (noise / noise.std()).transpose(0, 1)[None]

    fake, second = smooth(), smooth()
    return fake, fake + distance * (second - fake)


def describe_device(device: torch.device) -> str:
    """The device as named in results."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"


def peak_memory(device: torch.device) -> int:
    """The peak memory so far, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    print(json.dumps(_measure_algorithm(*json.loads(sys.argv[1]))))
