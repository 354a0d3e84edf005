"""Latents from the stream: their context equals that of the pixels, and without matching latents batches are pixels."""

from __future__ import annotations

from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_mixture
import tiny_model
from small_dataset import identity

from annotators.base import Sample
from pipeline.errors import UsageError
from pipeline.formats import clip_decode
from pipeline.formats.clip_decode import decode_clip
from pipeline.mixture.mixture import Step
from training.data.stream import Stream
from training.models import folder

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def encoder(model: Path) -> Any:
    diffusers = pytest.importorskip("diffusers")
    from training.encoding import vcu

    return vcu.encoder(diffusers.AutoencoderKLWan.from_pretrained(model / "vae", low_cpu_mem_usage=False).eval())


@pytest.fixture(scope="module")
def layers(model: Path) -> small_mixture.Layers:
    """Both layers of latents, as the annotators make them."""
    pytest.importorskip("diffusers")
    from training.encoding.latents import Latents
    from training.encoding.masked_latents import MaskedLatents

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDOT_MODEL", str(model))
        makers = [maker(maker.choose()) for maker in (Latents, MaskedLatents)]

    @cache
    def encode_layers(number: int) -> dict[str, dict[str, bytes]]:
        members = small_mixture.members(number)
        sample = Sample(
            identity(f"s{number}"),
            {name: partial(decode_clip, members[f"{name}.mp4"]) for name in ("pose", "mask")},
            {"ref": [clip_decode.decode_png(members[name]) for name in sorted(members) if name.startswith("ref.")]},
            members["txt"].decode(),
        )
        return {maker.name: maker(decode_clip(members["mp4"]), 16.0, sample=sample).files for maker in makers}

    return encode_layers


def test_the_context_of_latents_is_that_of_the_pixels(
    layers: small_mixture.Layers, model: Path, encoder: Any, tmp_path: Path
) -> None:
    import torch

    from training.encoding import vcu

    mixed = str(small_mixture.make(tmp_path, 6, layers=layers, step=Step(1, 60)))
    of_model = {"form": "latents", "model": folder.fingerprints(model)}
    latents, pixels = Stream(mixed, workers=1, **of_model), Stream(mixed)  # type: ignore[arg-type]
    tasks = set()
    nothing = cache(partial(vcu.nothing, encoder))
    for step, pixel_step in zip(islice(latents, 60), pixels, strict=False):
        if step.bucket.task in tasks:
            continue
        for batch, pixel_batch in zip(step, pixel_step, strict=True):
            assert (batch.form, batch.keys, batch.captions) == ("latents", pixel_batch.keys, pixel_batch.captions)
            shape = (batch.bucket.frames, batch.bucket.height, batch.bucket.width)
            context = vcu.of_latents(batch, nothing(shape))
            direct = vcu.of_batch(encoder, pixel_batch)
            assert context.shape == direct.shape
            if "mask" not in batch.arrays:
                # float16 has eleven bits of precision.
                torch.testing.assert_close(context, direct, rtol=2e-3, atol=2e-3)
            clip = encoder(vcu.pixels(torch.from_numpy(pixel_batch.arrays["clip"])))
            torch.testing.assert_close(torch.from_numpy(batch.arrays["clip"]).float(), clip, rtol=2e-3, atol=2e-3)
            assert [("text" in item) for item in batch.items] == [bool(caption) for caption in batch.captions]
            tasks.add(batch.bucket.task)
        if len(tasks) == len(small_mixture.PARTS):
            break
    latents.close()
    assert tasks == {*small_mixture.PARTS}
    assert latents.latents_unusable_reasons == set()


def test_masked_latents_are_those_of_masked_pixels(
    layers: small_mixture.Layers, model: Path, encoder: Any, tmp_path: Path
) -> None:
    import numpy as np
    import torch

    mixed = str(small_mixture.make(tmp_path, 2, layers=layers))
    stream = Stream(mixed, form="latents", model=folder.fingerprints(model))
    numbers = {identity(f"s{number}"): number for number in range(2)}
    drawn = set()
    for step in islice(stream, STEPS):
        for batch in step:
            if batch.bucket.task != "inpaint":
                continue
            frames = decode_clip(small_mixture.members(numbers[batch.keys[0]])["mp4"])
            mask = batch.arrays["mask"][0, 0]
            drawn.add((batch.keys[0], mask.tobytes()))
            inactive = np.where(mask[..., None], 0, np.asarray(frames, np.float32) / 127.5 - 1)
            direct = encoder(torch.from_numpy(inactive).float().permute(3, 0, 1, 2)[None])
            torch.testing.assert_close(torch.from_numpy(batch.arrays["inactive"]).float(), direct, rtol=2e-3, atol=2e-3)
    # Several variants of a clip are drawn.
    assert len(drawn) > len({key for key, _ in drawn})


def test_where_no_latents_fit_there_are_pixels_and_it_is_said(
    layers: small_mixture.Layers, model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def partial_layers(number: int) -> dict[str, dict[str, bytes]]:
        clip_layers = dict(layers(number))
        if number % 4 == 1:
            return {}
        if number % 4 == 3:
            clip_layers["captioner"] = {"captioner.txt": b"something else"}
        del clip_layers["masked_latents"]
        return clip_layers

    mixed = str(small_mixture.make(tmp_path, 6, layers=partial_layers, step=Step(2, 100)))
    fingerprints = folder.fingerprints(model)
    latents, pixels = Stream(mixed, form="latents", model=fingerprints), Stream(mixed)
    forms = set()
    for step, pixel_step in zip(islice(latents, STEPS), pixels, strict=False):
        for batch, pixel_batch in zip(step, pixel_step, strict=True):
            numbers = {number for number in range(6) if identity(f"s{number}") in batch.keys}
            lacking = batch.bucket.task in ("inpaint", "extension") or {1, 3, 5} & numbers
            assert batch.form == ("pixels" if lacking else "latents")
            forms.add(batch.form)
            if lacking:
                assert {name: array.tobytes() for name, array in batch.arrays.items()} == {
                    name: array.tobytes() for name, array in pixel_batch.arrays.items()
                }
    assert forms == {"pixels", "latents"}
    assert any("--with masked_latents" in reason for reason in latents.latents_unusable_reasons)
    assert any("--with latents" in reason for reason in latents.latents_unusable_reasons)
    assert any("other captions" in reason for reason in latents.latents_unusable_reasons)
    assert len(caplog.records) == len(latents.latents_unusable_reasons)

    mismatched = Stream(mixed, form="latents", model=fingerprints | {"vae": "0" * 64})
    assert {batch.form for step in islice(mismatched, STEPS) for batch in step} == {"pixels"}
    assert any("made by another vae" in reason for reason in mismatched.latents_unusable_reasons)
    with pytest.raises(UsageError, match="latents must be of your model"):
        Stream(mixed, form="latents")
