"""Clips as the networks are given them: latents, contexts and text, all made once; batches that follow from seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.distillation.codec import Codec
from benchmarks.distillation.scenes import Scene
from pipeline.mixture.mixture import Bucket
from training.diffusion import seeded_random
from training.encoding import vcu
from training.encoding.examples import Example, padded
from training.models.networks import Conditions

TEXT_DIM, TEXT_TOKENS = 32, 8
# What a network is asked for: to follow a depth track, or to fill a hole. Each batch is of one of them.
TASKS = ("depth", "inpainting")
_CHUNK = 64


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Clips as float [N, 3, T, H, W] in [-1, 1]."""
    return vcu.pixels(_video(np.stack([scene.clip for scene in scenes])))


def embedded(caption: str) -> Tensor:
    """A caption as [1, tokens, dim]: for each word a vector that follows from its letters, zeros after the last."""
    words = [seeded_random.normal((1, TEXT_DIM), torch.device("cpu"), 0, "word", word) for word in caption.split()]
    return padded(torch.cat([torch.zeros(0, TEXT_DIM), *words]), TEXT_TOKENS)


class Corpus:
    """Clips that are trained on or measured with."""

    def __init__(self, scenes: Sequence[Scene], codec: Codec, device: torch.device) -> None:
        own = codec.to(device)
        clips = _video(np.stack([scene.clip for scene in scenes]))
        self.tracks = torch.from_numpy(np.stack([scene.depth for scene in scenes]))
        self.shapes = torch.from_numpy(np.stack([scene.shapes for scene in scenes]))
        self.hidden = torch.from_numpy(np.stack([scene.hidden for scene in scenes]))
        self.clips = clips
        names = sorted({scene.source for scene in scenes})
        self.sources = torch.tensor([names.index(scene.source) for scene in scenes])
        """The number of what each clip was cut from, int64 [N]."""
        self._device = device
        encode: vcu.Encode = own.encode
        clean, contexts = [], []
        for at in range(0, len(scenes), _CHUNK):
            some = slice(at, at + _CHUNK)
            shown = clips[some].to(device)
            told = tuple(shown.shape[2:])
            shape: vcu.Shape = told[0], told[1], told[2]
            track = self.tracks[some].to(device)[:, None].expand_as(shown)
            none: list[list[Tensor]] = [[] for _ in shown]
            clean.append(encode(vcu.pixels(shown)))
            contexts.append(
                {
                    "depth": vcu.context(encode, track.contiguous(), None, none, shape),
                    "inpainting": vcu.context(encode, shown, self.hidden[some].to(device)[:, None], none, shape),
                }
            )
        self.clean = torch.cat(clean)
        self.contexts = {task: torch.cat([each[task] for each in contexts]) for task in TASKS}
        self.text = torch.cat([embedded(scene.caption) for scene in scenes]).to(device)
        self.empty = embedded("").to(device)

    def __len__(self) -> int:
        return len(self.clean)

    def example(self, seed: int, position: int, size: int, drop: float = 0.0) -> Example:
        """The batch at a position of the order of a seed; a share `drop` of its captions is left out."""
        task = TASKS[seeded_random.integer(len(TASKS), seed, "task", position)]
        rows = torch.randint(len(self), (size,), generator=seeded_random.generator(seed, "clips", position))
        dropped = seeded_random.uniform(size, seed, "caption", position) < drop
        text = torch.where(dropped.to(self._device)[:, None, None], self.empty, self.text[rows])
        _, length, height, width = self.clips.shape[1:]
        bucket = Bucket("scenes", task, length, height, width, 0)
        return Example(position, bucket, self.clean[rows], Conditions(text, self.contexts[task][rows]))

    def asked(self, rows: Sequence[int]) -> Conditions:
        """The conditions of clips: every other one is of another task."""
        context = torch.stack([self.contexts[task_of(row)][row] for row in rows])
        return Conditions(self.text[list(rows)], context)


def task_of(row: int) -> str:
    """What is asked of the clip of this number."""
    return TASKS[row % len(TASKS)]


def _video(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3)
