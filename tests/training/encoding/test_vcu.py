"""A context equals what diffusers' pipeline passes to its transformer, except where VACE differs.

diffusers 0.42 differs from VACE in two things, and we follow VACE: it puts the references in reverse order, and it
resizes a reference whose sides are not multiples of 8 by Lanczos first. It takes one clip at a time; we take a batch.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_mixture
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.formats.conditions import Condition, build_condition, make_generator
from pipeline.mixture.mixture import Step
from training.data.stream import Stream
from training.encoding.vcu import (
    Encode,
    context,
    covered,
    encoder,
    fitted,
    latent_shape,
    of_batch,
    of_latents,
    pixels,
    trim,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = LENGTH, HEIGHT, WIDTH = (17, 32, 48)
# All in float32; swapped halves or an inverted mask would be off by 0.1 or more.
CLOSE = {"rtol": 0.0, "atol": 2e-5}


def noise(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def subject() -> Any:
    """A white disc that moves to the right, on black."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    discs = [(rows - 16) ** 2 + (columns - 12 - step) ** 2 < 64 for step in range(LENGTH)]
    return np.repeat(np.uint8(255) * np.stack(discs)[..., None], 3, axis=-1)


FRAMES = noise(1, *SHAPE)
TRACKS = {"pose": lambda: noise(2, *SHAPE), "depth": lambda: noise(3, *SHAPE), "mask": subject}
# Smaller than the clip, larger, tall, wide; sides are multiples of 8.
SMALL, LARGE, TALL, WIDE = noise(4, 16, 24), noise(5, 96, 80), noise(6, 64, 16), noise(7, 8, 72)
TASKS: dict[str, tuple[Any, ...]] = {
    "text": (),
    "pose": (),
    "depth": (),
    "gray": (),
    "inpaint": (),
    "outpaint": (),
    "firstframe": (),
    "extension": (),
    "reference": (TALL,),
    "reference of two": (LARGE, WIDE),
    "reference of three": (WIDE, SMALL, TALL),
    "reference+pose": (WIDE, LARGE),
    "reference+inpaint": (LARGE,),
    "inpaint+pose": (),
    "firstframe+depth": (),
}


def make_condition(task: str, seed: int = 0) -> Condition:
    parts, references = task.split(" ")[0].split("+"), TASKS[task]
    return build_condition(parts, FRAMES, TRACKS, references, make_generator(seed, 0, "clip", task))


def tensors(*conditions: Condition) -> tuple[Tensor | None, Tensor | None, list[list[Tensor]]]:
    """The video, mask and references of a batch, as `context` takes them."""
    video = mask = None
    if conditions[0].video is not None:
        video = torch.stack(
            [torch.from_numpy(task_condition.video.copy()).permute(3, 0, 1, 2) for task_condition in conditions]
        )
    if conditions[0].mask is not None:
        mask = torch.stack([torch.from_numpy(task_condition.mask)[None] for task_condition in conditions])
    return (
        video,
        mask,
        [[torch.from_numpy(picture) for picture in task_condition.references] for task_condition in conditions],
    )


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """diffusers' pipeline, tiny, with random weights. A fixture, so that only this file pays for the import."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    pipeline = diffusers.WanVACEPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=diffusers.AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1] * 4, num_res_blocks=1, temperal_downsample=[False, True, True]
        ).eval(),
        transformer=diffusers.WanVACETransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            text_dim=32,
            ffn_dim=32,
            num_layers=3,
            rope_max_seq_len=32,
            vace_layers=[0, 2],
        ).eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def encode(pipeline: Any) -> Encode:
    return encoder(pipeline.vae)


def run_pipeline(pipeline: Any, task_condition: Condition, output: str = "latent") -> tuple[Tensor, Tensor, Any]:
    """The context and noise that the transformer gets for a condition, and the pipeline's result.

    Frames are PIL pictures of the exact size, which diffusers copies without loss; a mask is black and white.
    """
    image = pytest.importorskip("PIL.Image")
    calls: list[dict[str, Any]] = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    result = pipeline(
        video=None if task_condition.video is None else [image.fromarray(frame) for frame in task_condition.video],
        mask=None
        if task_condition.mask is None
        else [image.fromarray(np.uint8(255) * mask) for mask in task_condition.mask],
        reference_images=[image.fromarray(picture) for picture in task_condition.references] or None,
        prompt_embeds=torch.ones(1, 4, 32),
        height=HEIGHT,
        width=WIDTH,
        num_frames=LENGTH,
        num_inference_steps=1,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type=output,
    )
    hook.remove()
    (call,) = calls
    return call["control_hidden_states"], call["hidden_states"], result.frames


def reverse_references(task_condition: Condition) -> Condition:
    """The condition with its references reversed, which diffusers reverses again."""
    return Condition(task_condition.video, task_condition.mask, task_condition.references[::-1])


@pytest.mark.parametrize("task", TASKS)
def test_a_context_is_what_the_transformer_of_diffusers_receives(task: str, pipeline: Any, encode: Encode) -> None:
    task_condition = make_condition(task)
    theirs, _, _ = run_pipeline(pipeline, reverse_references(task_condition))
    ours = context(encode, *tensors(task_condition), SHAPE)
    assert ours.shape == theirs.shape == (1, 96, len(task_condition.references) + 5, 4, 6)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    # The 64 channels of the mask, and the zeros of the references, are identical.
    assert torch.equal(ours[:, 32:], theirs[:, 32:])
    assert torch.equal(ours[:, 16:, : len(task_condition.references)], theirs[:, 16:, : len(task_condition.references)])


def test_references_keep_their_order_as_in_vace(pipeline: Any, encode: Encode) -> None:
    """VACE puts `[*ref_latent, latent]` one after the other (`vace_encode_frames`); diffusers' `prepare_video_latents`
    prepends each one, so the last comes first."""
    task_condition = make_condition("reference of three")
    ours = context(encode, *tensors(task_condition), SHAPE)
    theirs, _, _ = run_pipeline(pipeline, task_condition)
    for place, picture in enumerate(task_condition.references):
        alone = encode(fitted(torch.from_numpy(picture), HEIGHT, WIDTH)[None, :, None])[0, :, 0]
        torch.testing.assert_close(ours[0, :16, place], alone, **CLOSE)
        torch.testing.assert_close(theirs[0, :16, 2 - place], alone, **CLOSE)
    assert (ours[:, :16, :3] - theirs[:, :16, :3]).abs().max() > 0.05


def test_a_reference_of_odd_sides_is_resized_once_as_in_vace(pipeline: Any, encode: Encode) -> None:
    """diffusers' `preprocess_conditions` passes a reference to `VideoProcessor.preprocess`, which makes its sides
    multiples of 8 by Lanczos; VACE's `prepare_source` does not."""
    picture = noise(8, 37, 53)
    task_condition = Condition(None, None, (picture,))
    scale = min(HEIGHT / 37, WIDTH / 53)
    # As in VACE: int(37 x 32 / 37) x int(53 x 32 / 37), in the middle of 32 x 48.
    small = functional.interpolate(
        torch.from_numpy(picture).permute(2, 0, 1)[None] / 127.5 - 1, (32, int(53 * scale)), mode="bilinear"
    )
    canvas = torch.ones(1, 3, 1, HEIGHT, WIDTH)
    canvas[:, :, 0, :, 1:46] = small
    ours = context(encode, *tensors(task_condition), SHAPE)[:, :16, :1]
    torch.testing.assert_close(ours, encode(canvas), **CLOSE)
    assert (ours - run_pipeline(pipeline, task_condition)[0][:, :16, :1]).abs().max() > 1e-3


@pytest.mark.parametrize("task", ["text", "pose", "inpaint", "reference of two", "reference+inpaint"])
def test_a_batch_is_its_clips_one_by_one(task: str, encode: Encode) -> None:
    first, second = make_condition(task, seed=0), make_condition(task, seed=1)
    video = None if second.video is None else second.video[:, ::-1].copy()
    second = Condition(video, second.mask, (SMALL, TALL)[: len(first.references)])
    batch = context(encode, *tensors(first, second), SHAPE)
    torch.testing.assert_close(batch[:1], context(encode, *tensors(first), SHAPE), **CLOSE)
    torch.testing.assert_close(batch[1:], context(encode, *tensors(second), SHAPE), **CLOSE)
    if task != "text":
        assert (batch[0] - batch[1]).abs().max() > 0.01


@pytest.mark.parametrize("references", [0, 1, 2])
def test_noise_is_longer_by_the_references_and_the_result_is_not(references: int, pipeline: Any) -> None:
    task_condition = Condition(None, None, (TALL, WIDE)[:references])
    _, start, sampled = run_pipeline(pipeline, task_condition)
    assert tuple(start.shape) == tuple(sampled.shape) == latent_shape(SHAPE, 1, references)
    _, _, video = run_pipeline(pipeline, task_condition, output="pt")
    vae = pipeline.vae
    mean, std = (torch.tensor(part).view(1, -1, 1, 1, 1) for part in (vae.config.latents_mean, vae.config.latents_std))
    with torch.no_grad():
        decoded = vae.decode(trim(sampled, references) * std + mean).sample
    assert decoded.shape[2] == LENGTH
    torch.testing.assert_close((decoded / 2 + 0.5).clamp(0, 1).transpose(1, 2), video, **CLOSE)


def test_an_encoder_keeps_the_dtype_of_its_autoencoder_and_no_gradient(pipeline: Any) -> None:
    vae = copy.deepcopy(pipeline.vae).to(torch.bfloat16)
    low_precision = context(encoder(vae), *tensors(make_condition("reference+inpaint")), SHAPE)
    assert low_precision.dtype == torch.bfloat16
    assert not low_precision.requires_grad
    float32_context = context(encoder(pipeline.vae), *tensors(make_condition("reference+inpaint")), SHAPE)
    assert not float32_context.requires_grad
    # Three significant digits, of numbers up to 3.
    torch.testing.assert_close(low_precision.float(), float32_context, rtol=0.02, atol=0.05)


def test_clips_may_be_encoded_one_by_one(pipeline: Any, encode: Encode) -> None:
    batch = tensors(make_condition("reference+inpaint", 0), make_condition("reference+inpaint", 1))
    vae = copy.deepcopy(pipeline.vae)
    vae.enable_slicing()
    torch.testing.assert_close(context(encoder(vae), *batch, SHAPE), context(encode, *batch, SHAPE), **CLOSE)


# The following tests do not need diffusers.


def average_squares(clips: Tensor) -> Tensor:
    """An `Encode` with predictable latents: the mean colour of each square of every fourth frame."""
    squares = functional.avg_pool3d(clips[:, :, ::4], (1, 8, 8))
    return squares.repeat(1, 6, 1, 1, 1)[:, :16]


@pytest.mark.parametrize("white", [True, False])
def test_white_is_made_and_black_is_kept(white: bool) -> None:
    video = torch.full((1, 3, *SHAPE), 255, dtype=torch.uint8)
    mask = torch.full((1, 1, *SHAPE), white)
    inactive, reactive, squares = context(average_squares, video, mask, [[]], SHAPE).split([16, 16, 64], dim=1)
    assert (inactive == (0 if white else 1)).all()
    assert (reactive == (1 if white else 0)).all()
    assert (squares == white).all()


@pytest.mark.parametrize("length", [1, 5, 17, 33, 81])
def test_a_mask_in_time_is_torchs_nearest_exact(length: int) -> None:
    """VACE resizes all 64 channels by `interpolate`; of the first latent frame it takes the mask of frame 1."""
    shape = (length, 16, 16)
    mask = torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(length)) > 0.5
    video = torch.zeros(2, 3, *shape, dtype=torch.uint8)
    ours = context(average_squares, video, mask, [[], []], shape)[:, 32:]
    # [VACE: vace_encode_masks]
    squares = mask[:, 0].float().view(2, length, 2, 8, 2, 8).permute(0, 3, 5, 1, 2, 4).reshape(2, 64, length, 2, 2)
    assert torch.equal(ours, functional.interpolate(squares, ((length + 3) // 4, 2, 2), mode="nearest-exact"))
    if length > 1:
        assert torch.equal(ours[:, :, 0], squares[:, :, 1])
        assert not torch.equal(ours[:, :, 0], squares[:, :, 0])


def test_a_channel_of_the_mask_is_a_place_in_the_square() -> None:
    mask = torch.rand(1, 1, 1, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) > 0.5
    video = torch.zeros(1, 3, 1, HEIGHT, WIDTH, dtype=torch.uint8)
    squares = context(average_squares, video, mask, [[]], (1, HEIGHT, WIDTH))[0, 32:, 0]
    for row in range(HEIGHT):
        for column in range(WIDTH):
            assert squares[8 * (row % 8) + column % 8, row // 8, column // 8] == mask[0, 0, 0, row, column]


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (16, 24, (0, 32), (0, 48)),
        (32, 48, (0, 32), (0, 48)),
        (64, 16, (0, 32), (20, 28)),
        (8, 72, (13, 18), (0, 48)),
        # 49 x (32 / 49) is a little less than 32, and VACE rounds down.
        (49, 49, (0, 31), (8, 39)),
        # One pixel high, not zero.
        (1, 1000, (15, 16), (0, 48)),
    ],
)
def test_a_reference_stands_in_the_middle_of_white(
    height: int, width: int, rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    canvas = fitted(torch.zeros(height, width, 3, dtype=torch.uint8), HEIGHT, WIDTH)
    expected = torch.ones(3, HEIGHT, WIDTH)
    expected[:, slice(*rows), slice(*columns)] = -1
    torch.testing.assert_close(canvas, expected, **CLOSE)


def test_a_reference_is_resized_linearly_without_antialiasing() -> None:
    picture = torch.from_numpy(noise(9, 4 * HEIGHT, 4 * WIDTH))
    # A canvas pixel is sampled between the middle two of the four that it covers.
    four = pixels(picture).permute(2, 0, 1).reshape(3, HEIGHT, 4, WIDTH, 4)
    torch.testing.assert_close(fitted(picture, HEIGHT, WIDTH), four[:, :, 1:3, :, 1:3].mean((2, 4)), **CLOSE)
    exact = torch.from_numpy(noise(9, HEIGHT, WIDTH))
    assert torch.equal(fitted(exact, HEIGHT, WIDTH), pixels(exact).permute(2, 0, 1))


def test_pixels_go_from_minus_one_to_one() -> None:
    assert pixels(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1, -0.6, 1])


@pytest.mark.parametrize(
    ("task", "calls"),
    [("text", [1]), ("pose", [1, 3]), ("inpaint", [6]), ("reference of two", [1, 6]), ("reference+inpaint", [6, 3])],
)
def test_clips_take_one_call_and_references_another(task: str, calls: list[int]) -> None:
    batch_sizes: list[int] = []

    def counting(clips: Tensor) -> Tensor:
        batch_sizes.append(len(clips))
        return average_squares(clips)

    context(counting, *tensors(*[make_condition(task, seed) for seed in range(3)]), SHAPE)
    assert batch_sizes == calls


VIDEO = torch.zeros(1, 3, *SHAPE, dtype=torch.uint8)
MASK = torch.ones(1, 1, *SHAPE, dtype=torch.bool)
PICTURE = torch.from_numpy(SMALL)


@pytest.mark.parametrize(
    ("video", "mask", "references", "shape", "says"),
    [
        (None, None, [[]], (16, 32, 48), "4n \\+ 1 frames, this one 16"),
        (None, None, [[]], (0, 32, 48), "4n \\+ 1 frames"),
        (None, None, [[]], (-3, 32, 48), "4n \\+ 1 frames"),
        (None, None, [[]], (17, 40, 48), "multiples of 16, these are 40 and 48"),
        (None, None, [[]], (17, 32, 56), "multiples of 16"),
        (None, None, [[]], (17, 0, 48), "4n \\+ 1 frames, this one 17 of 0 x 48"),
        (None, None, [[PICTURE], []], SHAPE, "same number of references, these have \\[0, 1\\]"),
        (None, None, [], SHAPE, "same number of references"),
        (VIDEO, None, [[], []], SHAPE, "the video is \\[1, 3, 17, 32, 48\\], not \\[2, 3"),
        (VIDEO[:, :, :13], None, [[]], SHAPE, "the video is"),
        (VIDEO, MASK.expand(1, 3, *SHAPE), [[]], SHAPE, "the mask is"),
        (VIDEO, MASK.float(), [[]], SHAPE, "a mask is bool"),
        (None, MASK, [[]], SHAPE, "belongs to a video"),
        (VIDEO.float(), None, [[]], SHAPE, "uint8, these are torch.float32"),
        (None, None, [[PICTURE / 255]], SHAPE, "uint8, these are torch.float32"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    video: Any, mask: Any, references: Sequence[Sequence[Tensor]], shape: Any, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        context(average_squares, video, mask, references, shape)


def test_a_latent_shape_is_refused_like_a_context() -> None:
    assert latent_shape((81, 480, 832), 2, 1) == (2, 16, 22, 60, 104)
    with pytest.raises(ValueError, match="multiples of 16"):
        latent_shape((81, 480, 840), 1)


def test_importing_it_needs_torch_alone() -> None:
    code = "import sys, training.encoding.vcu; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert not {"diffusers", "transformers", "ray", "cv2", "av", "annotators", "pipeline"} & set(loaded)


def test_a_batch_of_another_form_is_refused(tmp_path: Path) -> None:
    batch = next(iter(next(iter(Stream(small_mixture.make(tmp_path, 2, step=Step(1)))))))
    with pytest.raises(ValueError, match=r"of pixels, not of latents: check `batch.form`, and call `of_batch`"):
        of_latents(batch, torch.zeros(1, 16, 3, 6, 8))
    with pytest.raises(ValueError, match="of members, not of pixels"):
        of_batch(average_squares, replace(batch, form="members"))


@pytest.mark.parametrize("sides", [(48, 80), (96, 64), (32, 48), (20, 30)])
def test_a_clip_at_another_size_covers_it_and_is_cut_in_the_middle(sides: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(4)
    clip = torch.randint(0, 256, (2, 3, *sides), generator=generator, dtype=torch.uint8)
    mask = torch.rand((2, 1, *sides), generator=generator) > 0.5
    scale = max(32 / sides[0], 48 / sides[1])
    scaled_sides = max(32, round(sides[0] * scale)), max(48, round(sides[1] * scale))
    top, left = (scaled_sides[0] - 32) // 2, (scaled_sides[1] - 48) // 2
    expected = functional.interpolate(clip.float(), scaled_sides, mode="bilinear", antialias=True)
    actual = covered(clip, (32, 48))
    assert actual.dtype == torch.uint8
    assert actual.shape == (2, 3, 32, 48)
    assert (actual - expected[:, :, top : top + 32, left : left + 48]).abs().max() <= 1.5
    mask_actual = covered(mask, (32, 48), mask=True)
    mask_expected = functional.interpolate(mask.float(), scaled_sides, mode="nearest-exact")
    assert mask_actual.dtype == torch.bool
    assert torch.equal(mask_actual.float(), mask_expected[:, :, top : top + 32, left : left + 48])
