"""All metrics of a set of samples, each with bootstrap replicates over the sources of the conditions."""

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
    """A reference in one space: the kernel's scale, the reference's rows, kernels and projections."""

    scale: float
    rows: Tensor
    rbf: Tensor
    cubic: Tensor
    directions: Tensor
    projected: Tensor


class Evaluator:
    """Measures latents that were sampled with the conditions of the held-out clips."""

    def __init__(
        self, size: Size, corpus: Corpus, train: Corpus, codec: Codec, reference: Tensor, diverse: Tensor
    ) -> None:
        """`reference` and `diverse`: the teacher's samples in many steps, from the two methods of `Sampler`."""
        self._corpus, self._codec = corpus, codec
        self._features = metrics.Features()
        train_features = self._compute_features(train.clean.cpu()[: 4 * len(corpus)])
        self._mean, self._spread = train_features.mean(dim=0), train_features.std(dim=0).clamp(min=1e-6)
        self._replicates = metrics.bootstrap_counts(corpus.sources, size.replicates)
        diverse_sources = corpus.sources[: size.diversity[0]].unique(return_inverse=True)[1]
        self._diverse_replicates = metrics.bootstrap_counts(diverse_sources, size.replicates, 1)
        held_out = corpus.clean.cpu()
        self._spaces = {
            f"{origin}/{name}": _build_space(rows)
            for origin, latents in (("teacher", reference), ("held_out", held_out))
            for name, rows in self._embed(latents)
        }
        self._std = float(reference.std())
        self._diverse = metrics.diversity(diverse)

    def __call__(self, latents: Tensor, diverse: Tensor | None, bootstrap: bool = True) -> dict[str, list[float]]:
        """Each metric: its value, followed by the values of the replicates if `bootstrap` is set."""
        weights = _condition_weights(self._replicates, bootstrap)
        results: dict[str, Tensor] = {}
        rows = dict(self._embed(latents))
        for name, space in self._spaces.items():
            samples = rows[name.split("/")[1]]
            results[f"{name}/mmd_rbf"] = metrics.mmd(
                metrics.rbf(samples, samples, space.scale),
                space.rbf,
                metrics.rbf(samples, space.rows, space.scale),
                weights,
            )
            results[f"{name}/mmd_cubic"] = metrics.mmd(
                metrics.cubic(samples, samples), space.cubic, metrics.cubic(samples, space.rows), weights
            )
            results[f"{name}/sliced"] = metrics.sliced(samples.double() @ space.directions, space.projected, weights)
        for name, values in self._sample_metrics(latents):
            shares = weights * values.isfinite()
            results[name] = (shares * values.nan_to_num()).sum(dim=1) / shares.sum(dim=1).clamp(min=1)
        flat = latents.flatten(1).double()
        shares = weights.double() / weights.sum(dim=1, keepdim=True)
        spread = shares @ flat.square().mean(dim=1) - (shares @ flat.mean(dim=1)) ** 2
        results["saturation"] = spread.sqrt() / self._std
        if diverse is not None:
            weights = _condition_weights(self._diverse_replicates, bootstrap).double()
            results["diversity"] = (weights @ metrics.diversity(diverse)) / (weights @ self._diverse)
        return {name: [float(f"{value:.6g}") for value in values.tolist()] for name, values in results.items()}

    def _sample_metrics(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The metrics of single samples, NaN where a metric does not apply: float64 [n]."""
        clips = self._decode(latents)
        corpus = self._corpus
        is_depth = torch.tensor([task_of(row) == "depth" for row in range(len(latents))])
        nans = torch.full((len(latents),), torch.nan)
        yield "track_error", torch.where(is_depth, metrics.track_error(clips, corpus.tracks), nans).double()
        yield "track_overlap", torch.where(is_depth, metrics.track_overlap(clips, corpus.shapes), nans).double()
        psnr = metrics.kept_psnr(clips, vcu.pixels(corpus.clips), corpus.hidden)
        yield "kept_psnr", torch.where(is_depth, nans, psnr).double()
        yield "steadiness", metrics.steadiness(clips).double()

    def _embed(self, latents: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield "latent", latents.flatten(1)
        yield "features", (self._compute_features(latents) - self._mean) / self._spread

    def _decode(self, latents: Tensor) -> Tensor:
        return self._codec.decode(latents.cpu()).clamp(-1, 1)

    def _compute_features(self, latents: Tensor) -> Tensor:
        return torch.cat([self._features(self._decode(chunk)) for chunk in latents.split(_CHUNK)])


def _condition_weights(replicates: Tensor, bootstrap: bool) -> Tensor:
    """How often each condition counts: once each, then as the replicates draw them."""
    once = torch.ones_like(replicates[:1])
    return torch.cat([once, replicates]) if bootstrap else once


def _build_space(rows: Tensor) -> _Space:
    scale, directions = metrics.bandwidth(rows), metrics.directions(rows.shape[1])
    return _Space(
        scale, rows, metrics.rbf(rows, rows, scale), metrics.cubic(rows, rows), directions, rows.double() @ directions
    )
