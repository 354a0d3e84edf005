"""All metrics of one set of samples, each with what bootstrap over what their conditions were cut from makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.distillation import metrics
from benchmarks.distillation.codec import Codec
from benchmarks.distillation.corpus import Corpus, task_of
from benchmarks.distillation.sizes import Size
from training.encoding import vcu

PRIMARY = "teacher/features/mmd_rbf"
_CHUNK = 64


@dataclass(frozen=True, slots=True)
class _Space:
    """A reference in one space: how rows are brought into it, kernels and projections of the reference."""

    scale: float
    rows: Tensor
    rbf: Tensor
    cubic: Tensor
    directions: Tensor
    projected: Tensor


class Judge:
    """Measures latents that were made from the conditions of the clips that are held out."""

    def __init__(
        self, size: Size, corpus: Corpus, train: Corpus, codec: Codec, reference: Tensor, diverse: Tensor
    ) -> None:
        """`reference` and `diverse`: what the teacher makes in many steps, as `Sampler` has it."""
        self._corpus, self._codec = corpus, codec
        self._features = metrics.Features()
        known = self._seen(train.clean.cpu()[: 4 * len(corpus)])
        self._mean, self._spread = known.mean(dim=0), known.std(dim=0).clamp(min=1e-6)
        self._drawn = metrics.draws(corpus.sources, size.replicates)
        few = corpus.sources[: size.diversity[0]].unique(return_inverse=True)[1]
        self._drawn_diverse = metrics.draws(few, size.replicates, 1)
        held_out = corpus.clean.cpu()
        self._spaces = {
            f"{whose}/{name}": _space(rows)
            for whose, latents in (("teacher", reference), ("held_out", held_out))
            for name, rows in self._rows(latents)
        }
        self._std = float(reference.std())
        self._diverse = metrics.diversity(diverse)

    def __call__(self, latents: Tensor, diverse: Tensor | None, bootstrap: bool = True) -> dict[str, list[float]]:
        """Each metric: its value, and after it those of the replicates if there is to be a bootstrap."""
        weights = _counted(self._drawn, bootstrap)
        found: dict[str, Tensor] = {}
        rows = dict(self._rows(latents))
        for name, space in self._spaces.items():
            own = rows[name.split("/")[1]]
            found[f"{name}/mmd_rbf"] = metrics.mmd(
                metrics.rbf(own, own, space.scale), space.rbf, metrics.rbf(own, space.rows, space.scale), weights
            )
            found[f"{name}/mmd_cubic"] = metrics.mmd(
                metrics.cubic(own, own), space.cubic, metrics.cubic(own, space.rows), weights
            )
            found[f"{name}/sliced"] = metrics.sliced(own.double() @ space.directions, space.projected, weights)
        for name, values in self._each(latents):
            shares = weights * values.isfinite()
            found[name] = (shares * values.nan_to_num()).sum(dim=1) / shares.sum(dim=1).clamp(min=1)
        flat = latents.flatten(1).double()
        shares = weights.double() / weights.sum(dim=1, keepdim=True)
        spread = shares @ flat.square().mean(dim=1) - (shares @ flat.mean(dim=1)) ** 2
        found["saturation"] = spread.sqrt() / self._std
        if diverse is not None:
            weights = _counted(self._drawn_diverse, bootstrap).double()
            found["diversity"] = (weights @ metrics.diversity(diverse)) / (weights @ self._diverse)
        return {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in found.items()}

    def _each(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        """What can be said of each sample, no number where it does not apply: float64 [n]."""
        clips = self._decoded(latents)
        corpus = self._corpus
        of_depth = torch.tensor([task_of(row) == "depth" for row in range(len(latents))])
        none = torch.full((len(latents),), torch.nan)
        yield "track_error", torch.where(of_depth, metrics.track_error(clips, corpus.tracks), none).double()
        yield "track_overlap", torch.where(of_depth, metrics.track_overlap(clips, corpus.shapes), none).double()
        kept = metrics.kept_psnr(clips, vcu.pixels(corpus.clips), corpus.hidden)
        yield "kept_psnr", torch.where(of_depth, none, kept).double()
        yield "steadiness", metrics.steadiness(clips).double()

    def _rows(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "latent", latents.flatten(1)
        yield "features", (self._seen(latents) - self._mean) / self._spread

    def _decoded(self, latents: Tensor) -> Tensor:
        return self._codec.decode(latents.cpu()).clamp(-1, 1)

    def _seen(self, latents: Tensor) -> Tensor:
        return torch.cat([self._features(self._decoded(some)) for some in latents.split(_CHUNK)])


def _counted(drawn: Tensor, bootstrap: bool) -> Tensor:
    """Each condition once, and then as replicates draw them."""
    once = torch.ones_like(drawn[:1])
    return torch.cat([once, drawn]) if bootstrap else once


def _space(rows: Tensor) -> _Space:
    scale, directions = metrics.bandwidth(rows), metrics.directions(rows.shape[1])
    return _Space(
        scale, rows, metrics.rbf(rows, rows, scale), metrics.cubic(rows, rows), directions, rows.double() @ directions
    )
