"""The metrics of the distillation study are what they claim, its codec is orthonormal, its tracks are exact."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks.distillation import codec, metrics, report, scenes, toy  # noqa: E402
from benchmarks.distillation.arms import ARMS, settings  # noqa: E402
from benchmarks.distillation.control import Pooled  # noqa: E402
from benchmarks.distillation.sizes import SIZES  # noqa: E402
from training.objectives import published  # noqa: E402
from training.trainer.metrics import Signals  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch with one thread: beside another test its threads would wait for each other, ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clips(count: int, frames: int = 5, side: int = 32) -> torch.Tensor:
    shown = np.stack([scenes.scene(seed, frames, side).clip for seed in range(count)])
    return torch.from_numpy(shown).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


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
    """Samples of the same conditions, of one distribution: with pairs of one condition MMD would be below 0."""
    once = torch.ones(1, 40, dtype=torch.float64)
    found = []
    for seed in range(200):
        middle = draw(3 * seed, 40, 6)
        a, b = middle + 0.1 * draw(3 * seed + 1, 40, 6), middle + 0.1 * draw(3 * seed + 2, 40, 6)
        found.append(metrics.mmd(*kernels(a, b, "rbf"), once))
    same = torch.stack(found)
    assert abs(float(same.mean())) < 4 * float(same.std() / 200**0.5)


def test_weights_count_conditions_as_repeating_them_would_but_for_pairs_of_one() -> None:
    own, others, between = kernels(draw(0, 5, 3), draw(1, 5, 3) + 0.5, "rbf")
    weights = torch.tensor([[2, 0, 1, 1, 1]])
    rows = torch.arange(5).repeat_interleave(weights[0])
    kernel = own + others - between - between.T
    pairs = [(i, j) for i in rows.tolist() for j in rows.tolist() if i != j]
    wanted = sum(float(kernel[i, j]) for i, j in pairs) / len(pairs)
    found = metrics.mmd(own, others, between, weights)
    assert float(found) == pytest.approx(wanted)


@pytest.mark.parametrize("width", [1, 8, 256])
def test_sliced_distance_of_a_shift_is_the_shift(width: int) -> None:
    a, by = draw(0, 50, width).double(), draw(1, width).double()
    along = metrics.directions(width)
    assert torch.allclose(along.T @ along, torch.eye(width, dtype=torch.float64), atol=1e-9)
    drawn = metrics.draws(torch.arange(50), 3)
    found = metrics.sliced((a + by) @ along, a[torch.randperm(50)] @ along, torch.ones(1, 50, dtype=torch.int64))
    assert float(found) == pytest.approx(float(by.square().mean().sqrt()))
    assert metrics.sliced((a + by) @ along, a @ along, drawn).tolist() == pytest.approx([float(found)] * 3)


def test_what_was_cut_from_one_clip_is_drawn_together() -> None:
    sources = torch.tensor([0, 1, 0, 2, 2, 2])
    drawn = metrics.draws(sources, 400)
    assert drawn.shape == (400, 6)
    for one, other in ((0, 2), (3, 4), (4, 5)):
        assert torch.equal(drawn[:, one], drawn[:, other])
    assert (drawn[:, [0, 1, 3]].sum(dim=1) == 3).all()
    assert drawn.float().mean(dim=0).tolist() == pytest.approx([1] * 6, abs=0.15)
    assert torch.equal(drawn, metrics.draws(sources, 400))


def test_intervals_of_clips_that_were_cut_in_many_are_as_wide_as_of_clips() -> None:
    of_clip = draw(0, 30).double().repeat_interleave(8)
    alone, together = (
        (weights @ of_clip) / weights.sum(dim=1)
        for weights in (
            metrics.draws(sources, 2000).double() for sources in (torch.arange(240), torch.arange(240) // 8)
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
    found = Pooled.matching(Pooled.__new__(Pooled), fake, fake, real, Signals())
    wanted = published.TRANSPORT * published.FACTOR * published.transport_gradient(fake, real)
    assert torch.allclose(found, wanted, atol=1e-3 * float(wanted.abs().max()))
    far = published.TRANSPORT * published.FACTOR * published.transport_gradient(fake, draw(2, 2, 16, 3, 8, 8))
    moved = Pooled.matching(Pooled.__new__(Pooled), fake, fake, draw(2, 2, 16, 3, 8, 8), Signals())
    assert float(torch.cosine_similarity(far.flatten(), moved.flatten(), dim=0)) < 0.99


def test_tracks_are_exact_and_scenes_follow_from_their_seed() -> None:
    for seed in range(20):
        one, again = scenes.scene(seed), scenes.scene(seed)
        assert one.clip.shape == (scenes.FRAMES, scenes.SIDE, scenes.SIDE, 3)
        assert np.array_equal(one.clip, again.clip) and one.caption == again.caption
        # To what rounding three colours leaves.
        assert np.abs(scenes.luma(one.clip) - one.depth).max() <= 0.51
        assert np.array_equal(one.depth > scenes.NEAR, one.shapes)
        assert one.hidden.any(axis=(1, 2)).all()
    assert not np.array_equal(scenes.scene(0).clip, scenes.scene(1).clip)


def test_a_clip_follows_its_own_track() -> None:
    made = [scenes.scene(seed) for seed in range(3)]
    shown = torch.from_numpy(np.stack([one.clip for one in made])).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
    track = torch.from_numpy(np.stack([one.depth for one in made]))
    shapes = torch.from_numpy(np.stack([one.shapes for one in made]))
    hidden = torch.from_numpy(np.stack([one.hidden for one in made]))
    assert float(metrics.track_error(shown, track).max()) < 0.3
    assert float(metrics.track_error(shown, track.flip(0))[0]) > 3
    assert float(metrics.track_overlap(shown, shapes).min()) > 0.99
    other = shown.masked_fill(hidden[:, None], 0.5)
    assert float(metrics.kept_psnr(other, shown, hidden).min()) > 100
    assert float(metrics.kept_psnr(shown.masked_fill(~hidden[:, None], 0.5), shown, hidden).max()) < 20
    assert float(metrics.steadiness(shown[:, :, :1].expand_as(shown)).min()) == 1


def test_the_codec_is_orthonormal_whitened_and_comes_back() -> None:
    shown = clips(24)
    own = codec.fit(shown)
    for part in (own.first, own.rest):
        assert torch.allclose(part.axes.T @ part.axes, torch.eye(codec.CHANNELS), atol=1e-5)
    latents = own.encode(shown)
    assert latents.shape == (24, 16, 2, 4, 4)
    for frame in range(2):
        rows = latents[:, :, frame].permute(0, 2, 3, 1).flatten(0, 2)
        assert torch.allclose(rows.mean(dim=0), torch.zeros(16), atol=1e-3)
        covariance = rows.T @ rows / len(rows)
        assert torch.allclose(covariance, torch.eye(16), atol=2e-2)
    # What lies in the span of the components comes back as it was.
    assert torch.allclose(own.encode(own.decode(latents)), latents, atol=1e-3)
    assert own.psnr(shown) > 25
    assert torch.equal(codec.parse(own.tensors()).encode(shown), latents)
    assert own.encode(shown[:, :, :1]).shape == (24, 16, 1, 4, 4)


def test_arms_differ_in_the_objective_alone() -> None:
    told = {letter: settings(arm, SIZES["cpu"], 0).model_dump() for letter, arm in ARMS.items()}
    for letter, one in told.items():
        changed = {name for name in one if one[name] != told["A"][name]}
        assert changed <= {"objective", "transport", "gan"}, letter
    # The last control is told by its loop alone.
    assert len({(repr(told[letter]), arm.loop) for letter, arm in ARMS.items()}) == len(ARMS)


def test_an_interval_holds_its_mean_and_differences_are_paired() -> None:
    values = np.array([1.0, 2.0, 3.0])
    replicates = values[:, None] + np.random.default_rng(0).normal(0.5, 0.1, (3, 200))
    found = report.interval(values, replicates)
    assert found["mean"] == 2
    assert found["low"] < 2 < found["high"]
    assert report.interval(values - values, replicates - replicates) == {"mean": 0, "low": 0, "high": 0}


def test_a_perfect_score_of_one_gaussian_is_that_of_its_formula() -> None:
    middle, at, sigma = draw(0, 1, 4), draw(1, 7, 4), torch.tensor([0.7])
    keep, width = 0.3, toy._WIDTH
    gain = keep * width**2 / (keep**2 * width**2 + 0.7**2)
    assert torch.allclose(toy.posterior(at, sigma, middle), middle + gain * (at - keep * middle), atol=1e-6)


def test_plain_dmd_finds_the_modes_of_the_toy() -> None:
    found = toy.run(toy._two_modes(0), None, 60, 0.3, 0)
    assert toy.told(toy._two_modes(0))["modes"] == 2
    assert found["end"]["modes"] == 8
