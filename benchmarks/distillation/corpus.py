"""Clips as networks take them: latents, contexts and text, all computed once, and batches determined by seeds."""

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
from training.encoding.examples import Example, pad_text
from training.models.networks import Conditions

TEXT_DIM, TEXT_TOKENS = 32, 8
# A network either follows a depth track or fills a hole. All clips of a batch have the same task.
TASKS = ("depth", "inpainting")
_CHUNK = 64


def pixels(scenes: Sequence[Scene]) -> Tensor:
    """Clips as float [N, 3, T, H, W] in [-1, 1]."""
    return vcu.pixels(_video(np.stack([scene.clip for scene in scenes])))


def embed_caption(caption: str) -> Tensor:
    """A caption as [1, tokens, dim]: a vector determined by the letters of each word, zeros after the last word."""
    words = [seeded_random.normal((1, TEXT_DIM), torch.device("cpu"), 0, "word", word) for word in caption.split()]
    return pad_text(torch.cat([torch.zeros(0, TEXT_DIM), *words]), TEXT_TOKENS)


class Corpus:
    """Clips for training or for measurement."""

    def __init__(self, scenes: Sequence[Scene], codec: Codec, device: torch.device) -> None:
        device_codec = codec.to(device)
        clips = _video(np.stack([scene.clip for scene in scenes]))
        self.tracks = torch.from_numpy(np.stack([scene.depth for scene in scenes]))
        self.shapes = torch.from_numpy(np.stack([scene.shapes for scene in scenes]))
        self.hidden = torch.from_numpy(np.stack([scene.hidden for scene in scenes]))
        self.clips = clips
        names = sorted({scene.source for scene in scenes})
        self.sources = torch.tensor([names.index(scene.source) for scene in scenes])
        """The index of the source that each clip was cut from, int64 [N]."""
        self._device = device
        encode: vcu.Encode = device_codec.encode
        clean, contexts = [], []
        for start in range(0, len(scenes), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            chunk_clips = clips[chunk].to(device)
            frames, height, width = chunk_clips.shape[2:]
            shape: vcu.Shape = frames, height, width
            track = self.tracks[chunk].to(device)[:, None].expand_as(chunk_clips)
            no_references: list[list[Tensor]] = [[] for _ in chunk_clips]
            clean.append(encode(vcu.pixels(chunk_clips)))
            contexts.append(
                {
                    "depth": vcu.context(encode, track.contiguous(), None, no_references, shape),
                    "inpainting": vcu.context(
                        encode, chunk_clips, self.hidden[chunk].to(device)[:, None], no_references, shape
                    ),
                }
            )
        self.clean = torch.cat(clean)
        self.contexts = {task: torch.cat([batch[task] for batch in contexts]) for task in TASKS}
        self.text = torch.cat([embed_caption(scene.caption) for scene in scenes]).to(device)
        self.empty = embed_caption("").to(device)

    def __len__(self) -> int:
        return len(self.clean)

    def example(self, seed: int, position: int, size: int, drop: float = 0.0) -> Example:
        """The batch at a position in the order of a seed; a share `drop` of its captions is empty."""
        task = TASKS[seeded_random.integer(len(TASKS), seed, "task", position)]
        rows = torch.randint(len(self), (size,), generator=seeded_random.generator(seed, "clips", position))
        dropped = seeded_random.uniform(size, seed, "caption", position) < drop
        text = torch.where(dropped.to(self._device)[:, None, None], self.empty, self.text[rows])
        _, length, height, width = self.clips.shape[1:]
        bucket = Bucket("scenes", task, length, height, width, 0)
        return Example(position, bucket, self.clean[rows], Conditions(text, self.contexts[task][rows]))

    def conditions(self, rows: Sequence[int]) -> Conditions:
        """The conditions of clips, with the task that `task_of` assigns to each."""
        context = torch.stack([self.contexts[task_of(row)][row] for row in rows])
        return Conditions(self.text[list(rows)], context)


def task_of(row: int) -> str:
    """The task of the clip of this index: tasks alternate."""
    return TASKS[row % len(TASKS)]


def _video(frames: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(frames).permute(0, 4, 1, 2, 3)
