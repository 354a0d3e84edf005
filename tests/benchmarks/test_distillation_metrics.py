"""Tests that the distillation study's metrics are correct, its codec orthonormal and its tracks exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.distillation import codec, metrics, report, scenes, toy  # noqa: E402
from benchmarks.distillation.arms import ARMS, build_config  # noqa: E402
from benchmarks.distillation.control import PooledDistillation  # noqa: E402
from benchmarks.distillation.sizes import SIZES  # noqa: E402
from training.objectives import published  # noqa: E402
from training.trainer.metrics import Signals  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def limit_threads() -> Iterator[None]:
    """Run PyTorch with one thread: beside another test, threads waiting for each other would take ten times as long."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clips(count: int, frames: int = 5, side: int = 32) -> torch.Tensor:
    videos = np.stack([scenes.build_scene(seed, frames, side).clip for seed in range(count)])
    return torch.from_numpy(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def kernels(a: torch.Tensor, b: torch.Tensor, name: str) -> list[torch.Tensor]:
    if name == "cubic":
        return [metrics.cubic(a, a), metrics.cubic(b, b), metrics.cubic(a, b)]
    scale = metrics.bandwidth(b)
    return [metrics.rbf(a, a, scale), metrics.rbf(b, b, scale), metrics.rbf(a, b, scale)]


@pytest.mark.parametrize("name", ["rbf", "cubic"])
def test_mmd_of_one_distribution_is_0_on_average_and_of_two_is_not(name: str) -> None:
    once = torch.ones(1, 40, dtype=torch.float64)
    same = torch.stack(
        [metrics.mmd(*kernels(draw(2 * s, 40, 6), draw(2 * s + 1, 40, 6), name), once) for s in range(200)]
    )
    error = float(same.std() / 200**0.5)
    assert abs(float(same.mean())) < 4 * error
    assert float(same.min()) < 0
    shifted = metrics.mmd(*kernels(draw(0, 40, 6) + 1, draw(1, 40, 6), name), once)
    assert float(shifted) > 5 * float(same.std())


def test_what_two_sets_share_condition_by_condition_is_no_nearness() -> None:
    """Samples of one distribution with the same conditions: if pairs of one condition counted, MMD would be below 0."""
    once = torch.ones(1, 40, dtype=torch.float64)
    distances = []
    for seed in range(200):
        middle = draw(3 * seed, 40, 6)
        a, b = middle + 0.1 * draw(3 * seed + 1, 40, 6), middle + 0.1 * draw(3 * seed + 2, 40, 6)
        distances.append(metrics.mmd(*kernels(a, b, "rbf"), once))
    same = torch.stack(distances)
    assert abs(float(same.mean())) < 4 * float(same.std() / 200**0.5)


def test_weights_count_conditions_as_repeating_them_would_but_for_pairs_of_one() -> None:
    within_a, within_b, between = kernels(draw(0, 5, 3), draw(1, 5, 3) + 0.5, "rbf")
    weights = torch.tensor([[2, 0, 1, 1, 1]])
    rows = torch.arange(5).repeat_interleave(weights[0])
    kernel = within_a + within_b - between - between.T
    pairs = [(i, j) for i in rows.tolist() for j in rows.tolist() if i != j]
    expected = sum(float(kernel[i, j]) for i, j in pairs) / len(pairs)
    distance = metrics.mmd(within_a, within_b, between, weights)
    assert float(distance) == pytest.approx(expected)


@pytest.mark.parametrize("width", [1, 8, 256])
def test_sliced_distance_of_a_shift_is_the_shift(width: int) -> None:
    a, shift = draw(0, 50, width).double(), draw(1, width).double()
    directions = metrics.directions(width)
    assert torch.allclose(directions.T @ directions, torch.eye(width, dtype=torch.float64), atol=1e-9)
    counts = metrics.bootstrap_counts(torch.arange(50), 3)
    distance = metrics.sliced(
        (a + shift) @ directions, a[torch.randperm(50)] @ directions, torch.ones(1, 50, dtype=torch.int64)
    )
    assert float(distance) == pytest.approx(float(shift.square().mean().sqrt()))
    assert metrics.sliced((a + shift) @ directions, a @ directions, counts).tolist() == pytest.approx(
        [float(distance)] * 3
    )


def test_what_was_cut_from_one_clip_is_drawn_together() -> None:
    sources = torch.tensor([0, 1, 0, 2, 2, 2])
    counts = metrics.bootstrap_counts(sources, 400)
    assert counts.shape == (400, 6)
    for first, second in ((0, 2), (3, 4), (4, 5)):
        assert torch.equal(counts[:, first], counts[:, second])
    assert (counts[:, [0, 1, 3]].sum(dim=1) == 3).all()
    assert counts.float().mean(dim=0).tolist() == pytest.approx([1] * 6, abs=0.15)
    assert torch.equal(counts, metrics.bootstrap_counts(sources, 400))


def test_intervals_of_clips_that_were_cut_in_many_are_as_wide_as_of_clips() -> None:
    of_clip = draw(0, 30).double().repeat_interleave(8)
    alone, together = (
        (weights @ of_clip) / weights.sum(dim=1)
        for weights in (
            metrics.bootstrap_counts(sources, 2000).double() for sources in (torch.arange(240), torch.arange(240) // 8)
        )
    )
    assert float(together.std() / alone.std()) == pytest.approx(8**0.5, rel=0.1)


def test_diversity_is_the_mean_distance_within_a_condition() -> None:
    samples = torch.zeros(2, 3, 4)
    samples[0, 0, 0] = 3.0
    assert metrics.diversity(samples).tolist() == pytest.approx([2.0, 0.0])


def test_the_control_is_the_published_gradient_where_its_plan_moves_nothing() -> None:
    fake = draw(0, 2, 16, 3, 8, 8)
    real = fake + 1e-3 * draw(1, 2, 16, 3, 8, 8)
    control = PooledDistillation.__new__(PooledDistillation)
    gradient = control.matching_gradient(fake, fake, real, Signals())
    expected = published.TRANSPORT * published.FACTOR * published.transport_gradient(fake, real)
    assert torch.allclose(gradient, expected, atol=1e-3 * float(expected.abs().max()))
    distant = draw(2, 2, 16, 3, 8, 8)
    published_gradient = published.TRANSPORT * published.FACTOR * published.transport_gradient(fake, distant)
    gradient = control.matching_gradient(fake, fake, distant, Signals())
    assert float(torch.cosine_similarity(published_gradient.flatten(), gradient.flatten(), dim=0)) < 0.99


def test_tracks_are_exact_and_scenes_follow_from_their_seed() -> None:
    for seed in range(20):
        scene, repeated = scenes.build_scene(seed), scenes.build_scene(seed)
        assert scene.clip.shape == (scenes.FRAMES, scenes.SIDE, scenes.SIDE, 3)
        assert np.array_equal(scene.clip, repeated.clip) and scene.caption == repeated.caption
        # Up to the rounding of three colours.
        assert np.abs(scenes.luma(scene.clip) - scene.depth).max() <= 0.51
        assert np.array_equal(scene.depth > scenes.NEAR, scene.shapes)
        assert scene.hidden.any(axis=(1, 2)).all()
    assert not np.array_equal(scenes.build_scene(0).clip, scenes.build_scene(1).clip)


def test_a_clip_follows_its_own_track() -> None:
    samples = [scenes.build_scene(seed) for seed in range(3)]
    pixels = torch.from_numpy(np.stack([scene.clip for scene in samples])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    track = torch.from_numpy(np.stack([scene.depth for scene in samples]))
    shapes = torch.from_numpy(np.stack([scene.shapes for scene in samples]))
    hidden = torch.from_numpy(np.stack([scene.hidden for scene in samples]))
    assert float(metrics.track_error(pixels, track).max()) < 0.3
    assert float(metrics.track_error(pixels, track.flip(0))[0]) > 3
    assert float(metrics.track_overlap(pixels, shapes).min()) > 0.99
    filled = pixels.masked_fill(hidden[:, None], 0.5)
    assert float(metrics.kept_psnr(filled, pixels, hidden).min()) > 100
    assert float(metrics.kept_psnr(pixels.masked_fill(~hidden[:, None], 0.5), pixels, hidden).max()) < 20
    assert float(metrics.steadiness(pixels[:, :, :1].expand_as(pixels)).min()) == 1


def test_the_codec_is_orthonormal_whitened_and_comes_back() -> None:
    pixels = clips(24)
    fitted = codec.fit(pixels)
    for part in (fitted.first_frame, fitted.later_frames):
        assert torch.allclose(part.axes.T @ part.axes, torch.eye(codec.CHANNELS), atol=1e-5)
    latents = fitted.encode(pixels)
    assert latents.shape == (24, 16, 2, 4, 4)
    for frame in range(2):
        rows = latents[:, :, frame].permute(0, 2, 3, 1).flatten(0, 2)
        assert torch.allclose(rows.mean(dim=0), torch.zeros(16), atol=1e-3)
        covariance = rows.T @ rows / len(rows)
        assert torch.allclose(covariance, torch.eye(16), atol=2e-2)
    # Clips in the span of the components are reconstructed exactly.
    assert torch.allclose(fitted.encode(fitted.decode(latents)), latents, atol=1e-3)
    assert fitted.psnr(pixels) > 25
    assert torch.equal(codec.parse(fitted.tensors()).encode(pixels), latents)
    assert fitted.encode(pixels[:, :, :1]).shape == (24, 16, 1, 4, 4)


def test_arms_differ_in_the_objective_alone() -> None:
    configs = {letter: build_config(arm, SIZES["cpu"], 0).model_dump() for letter, arm in ARMS.items()}
    for letter, config in configs.items():
        changed = {name for name in config if config[name] != configs["A"][name]}
        assert changed <= {"objective", "transport", "gan"}, letter
    # The last control differs in its loop alone.
    assert len({(repr(configs[letter]), arm.loop) for letter, arm in ARMS.items()}) == len(ARMS)


def test_an_interval_holds_its_mean_and_differences_are_paired() -> None:
    values = np.array([1.0, 2.0, 3.0])
    replicates = values[:, None] + np.random.default_rng(0).normal(0.5, 0.1, (3, 200))
    interval = report.interval(values, replicates)
    assert interval["mean"] == 2
    assert interval["low"] < 2 < interval["high"]
    assert report.interval(values - values, replicates - replicates) == {"mean": 0, "low": 0, "high": 0}


def test_a_perfect_score_of_one_gaussian_is_that_of_its_formula() -> None:
    middle, noisy, sigma = draw(0, 1, 4), draw(1, 7, 4), torch.tensor([0.7])
    keep, width = 0.3, toy._WIDTH
    gain = keep * width**2 / (keep**2 * width**2 + 0.7**2)
    assert torch.allclose(toy.posterior(noisy, sigma, middle), middle + gain * (noisy - keep * middle), atol=1e-6)


def test_plain_dmd_finds_the_modes_of_the_toy() -> None:
    result = toy.run(toy._two_modes(0), None, 60, 0.3, 0)
    assert toy.summarize(toy._two_modes(0))["modes"] == 2
    assert result["end"]["modes"] == 8
