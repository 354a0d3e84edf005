"""Stored latents equal the model's encoding of the decoded clip, name the model, and fit no other."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import tiny_model
from hypothesis import strategies as st

from annotators.base import Sample
from annotators.weights import MissingWeights
from pipeline.errors import UsageError
from pipeline.formats.conditions import MASKS, build_condition, make_generator, to_gray
from pipeline.recipe import registry
from pipeline.recipe.blueprint import Blueprint
from pipeline.recipe.recipe import parse
from training.data import latents_file
from training.encoding import latents as module
from training.encoding import masked_latents
from training.encoding.latents import Latents
from training.encoding.masked_latents import MaskedLatents
from training.models import folder as model_folder

pytestmark = pytest.mark.usefixtures("one_thread")

CAPTION = "a red  square moves over\nsquares"
# float16 has eleven bits of precision.
EXACT = {"rtol": 6e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(autouse=True)
def named(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDOT_MODEL", str(model))


def clip(seed: int = 0, shape: tuple[int, int, int] = (9, 48, 64)) -> Any:
    """A plain square that moves over a textured background."""
    rng = np.random.default_rng(seed)
    behind = rng.integers(60, 190, (shape[1] // 8, shape[2] // 8, 3)).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([behind.astype(np.uint8)] * shape[0])
    for number, frame in enumerate(frames):
        frame[8:32, 8 + number : 32 + number] = (220, 40, 30)
    return frames


FRAMES, POSE, MASK = clip(), clip(1), np.repeat((clip()[..., :1] == 220) * np.uint8(255), 3, axis=-1)
PICTURE = clip(2)[0, :24, :56]


def sample(**changes: Any) -> Sample:
    tracks = {"pose": lambda: POSE, "mask": lambda: MASK}
    return Sample(
        **{"clip_id": "0" * 32, "tracks": tracks, "pictures": {"ref": [PICTURE]}, "caption": CAPTION} | changes
    )


@pytest.fixture(scope="module")
def data(model: Path) -> bytes:
    """The bytes of the clip's latents file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VDOT_MODEL", str(model))
        return Latents(Latents.choose())(FRAMES, 16.0, sample=sample()).files["latents.safetensors"]


@pytest.fixture(scope="module")
def stored(data: bytes) -> latents_file.StoredLatents:
    """The content of that file."""
    return latents_file.read(data)


def encode(model: Path, values: Any) -> Any:
    """Pixels in -1..1, [T, H, W, 3], encoded by calling the autoencoder directly."""
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(model / "vae", low_cpu_mem_usage=False)
    with torch.inference_mode():
        latent = vae.encode(torch.tensor(values, dtype=torch.float32).permute(3, 0, 1, 2)[None]).latent_dist.mode()[0]
    mean, std = (torch.tensor(vae.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))
    return ((latent - mean) / std).numpy()


def scale_pixels(frames: Any) -> Any:
    return frames.astype(np.float32) / 127.5 - 1


def gap(actual: Any, reference: Any) -> float:
    """The relative distance of two latents."""
    first, second = (np.asarray(latent, np.float64) for latent in (actual, reference))
    return float(np.linalg.norm(first - second) / np.linalg.norm(second))


@hypothesis.given(st.text() | st.sampled_from(["Tom &amp;amp; Jerry’s", "cafÃ©\u200b  “x”", "\ufb01n\x1f&lt;b&gt;"]))
def test_words_reach_the_text_encoder_as_in_wans_pipeline(caption: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert module.clean_caption(caption) == prompt_clean(caption)


def test_what_is_stored_is_what_the_model_makes_of_the_pixels(stored: Any, model: Path) -> None:
    assert set(stored.tensors) == {"clip", "gray", "pose", "reference.0", "text"}
    assert all(tensor.dtype == np.float16 for tensor in stored.tensors.values())
    for key, frames in (("clip", FRAMES), ("gray", to_gray(FRAMES)), ("pose", POSE)):
        assert stored.tensors[key].shape == (16, 3, 6, 8)
        np.testing.assert_allclose(stored.tensors[key], encode(model, scale_pixels(frames)), **EXACT)
    assert stored.caption == CAPTION


def test_a_reference_lies_on_a_white_canvas_as_in_diffusers(stored: Any, model: Path) -> None:
    import torch
    from diffusers import WanVACEPipeline
    from diffusers.video_processor import VideoProcessor
    from PIL import Image

    # Sides that are multiples of 8: diffusers rounds others, and VACE does not.
    pipeline: Any = SimpleNamespace(video_processor=VideoProcessor(vae_scale_factor=8))
    pictures = [[Image.fromarray(PICTURE)]]
    shape = {"height": 48, "width": 64, "num_frames": 9, "dtype": torch.float32, "device": torch.device("cpu")}
    ((canvas,),) = WanVACEPipeline.preprocess_conditions(pipeline, None, None, pictures, 1, **shape)[2]
    assert stored.tensors["reference.0"].shape == (16, 1, 6, 8)
    direct = encode(model, canvas.permute(1, 2, 0)[None].numpy())
    np.testing.assert_allclose(stored.tensors["reference.0"], direct, **EXACT)


def test_text_is_the_padded_embedding_without_its_padding(stored: Any, model: Path) -> None:
    import torch
    from transformers import AutoTokenizer, UMT5EncoderModel

    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder").eval()
    padded = tokenizer("a red square moves over squares", padding="max_length", max_length=64, return_tensors="pt")
    with torch.inference_mode():
        full = encoder(**padded).last_hidden_state[0].numpy()
    # Six words and the end.
    assert stored.tensors["text"].shape == (7, 32)
    np.testing.assert_allclose(stored.tensors["text"], full[:7], **EXACT)


def test_a_long_caption_is_cut_and_a_missing_one_left_out() -> None:
    latents = Latents(Latents.choose())
    long, none = (
        latents_file.read(latents(FRAMES, 16.0, sample=sample(caption=caption)).files["latents.safetensors"])
        for caption in ("red " * 600, None)
    )
    assert long.tensors["text"].shape == (512, 32)
    assert "text" not in none.tensors
    assert none.caption is None


def test_a_caption_is_cut_before_it_is_embedded_as_the_pipeline_does(model: Path) -> None:
    import torch
    from diffusers import WanVACEPipeline
    from transformers import AutoTokenizer, UMT5EncoderModel

    from training.encoding.examples import make_text_embedder

    parts: dict[str, Any] = dict.fromkeys(("transformer", "vae", "scheduler"))
    text_encoder = UMT5EncoderModel.from_pretrained(model / "text_encoder").eval()
    pipe = WanVACEPipeline(AutoTokenizer.from_pretrained(model / "tokenizer"), text_encoder, **parts)
    caption = "a red square moves over the dog and runs fast"
    with torch.inference_mode():
        expected = pipe._get_t5_prompt_embeds(caption, max_sequence_length=6, device="cpu", dtype=torch.float32)
    embedding = make_text_embedder(model, torch.device("cpu"), 6)(caption)
    assert embedding.shape == expected.shape == (1, 6, 32)
    np.testing.assert_allclose(embedding, expected, **EXACT)


def test_what_the_autoencoder_would_drop_or_the_names_confuse_is_refused() -> None:
    latents = Latents(Latents.choose())
    with pytest.raises(ValueError, match="a clip of 8 frames has no latents: the autoencoder takes 4n\\+1"):
        latents(FRAMES[:8], 16.0, sample=sample())
    for name in ("clip", "text", "gray", "reference"):
        with pytest.raises(ValueError, match=f"a track cannot be named '{name}'"):
            latents(FRAMES, 16.0, sample=sample(tracks={name: lambda: POSE}))


@pytest.mark.long
def test_the_same_clip_gives_the_same_bytes(data: bytes) -> None:
    script = """
import hashlib, test_latents
from training.encoding.latents import Latents
annotation = Latents(Latents.choose())(test_latents.FRAMES, 16.0, sample=test_latents.sample())
print(hashlib.sha256(annotation.files["latents.safetensors"]).hexdigest())
"""
    paths = os.pathsep.join(str(Path(module.__file__).parent) for module in (tiny_model, sys.modules[__name__]))
    # With as many threads as here: the bytes are only reproducible for the same number.
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashlib.sha256(data).hexdigest()


def test_masking_a_latent_is_not_masking_its_pixels(stored: Any, model: Path) -> None:
    """With zeros in the hole the latent is off by 52 %. With the latent of gray in it by 10 %, which is 78 % of these
    pixels' distance from gray; and by 54 % of it on kept squares, because their receptive field includes the hole."""
    hidden = MASK[..., :1] > 127
    pixels, nothing = (
        encode(model, values) for values in (np.where(hidden, 0, scale_pixels(FRAMES)), 0 * scale_pixels(FRAMES))
    )
    # All squares and groups of frames with a hidden pixel.
    squares = hidden[..., 0].reshape(9, 6, 8, 8, 8).any((2, 4))
    hole = np.stack([squares[0], squares[1:5].any(0), squares[5:].any(0)])
    zeroed, filled = (np.where(hole, value, stored.tensors["clip"]) for value in (0, nothing))
    assert gap(zeroed, pixels) > 0.4
    assert gap(filled, pixels) > 0.08
    assert gap(filled - nothing, pixels - nothing) > 0.5
    assert gap((filled - nothing)[:, ~hole], (pixels - nothing)[:, ~hole]) > 0.3
    assert gap(stored.tensors["clip"], encode(model, scale_pixels(FRAMES))) < 1e-3


def test_masked_variants_are_the_conditions_of_their_draws(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masked_latents, "VARIANTS", 3)
    annotation = MaskedLatents(MaskedLatents.choose())(FRAMES, 16.0, sample=sample())
    stored = latents_file.read(annotation.files["masked_latents.safetensors"])
    assert set(stored.made_by) == {"vae"}
    for task in MASKS:
        draws = (make_generator(0, epoch, "0" * 32, task) for epoch in range(3))
        drawn = [build_condition((task,), FRAMES, sample().tracks, (), draw) for draw in draws]
        # Each distinct mask once: `firstframe` has only one.
        distinct: dict[bytes, Any] = {}
        for task_condition in drawn:
            assert task_condition.mask is not None
            distinct.setdefault(task_condition.mask.tobytes(), task_condition)
        assert stored.count_variants(task) == len(distinct)
        for number, task_condition in enumerate(distinct.values()):
            np.testing.assert_array_equal(stored.unpack_mask(task, number, FRAMES.shape[:3]), task_condition.mask)
            kept_mask, video = ~task_condition.mask[..., None], scale_pixels(task_condition.video)
            for name, pixels in (("inactive", video * kept_mask), ("reactive", video * ~kept_mask)):
                latents = stored.tensors[f"{task}.{number}.{name}"]
                np.testing.assert_allclose(latents, encode(model, pixels), **EXACT)
    assert stored.count_variants("firstframe") == 1
    assert stored.count_variants("outpaint") == 3
    with pytest.raises(KeyError):
        stored.unpack_mask("inpaint", 3, FRAMES.shape[:3])
    for shape in ((9, 48, 80), (5, 48, 64)):
        with pytest.raises(ValueError, match="is not of the shape"):
            stored.unpack_mask("inpaint", 0, shape)


def test_latents_of_another_model_are_refused_in_a_sentence(stored: Any, model: Path, tmp_path: Path) -> None:
    fingerprints = model_folder.fingerprints(model)
    assert stored.find_mismatch(fingerprints) is None
    other_fingerprints = model_folder.fingerprints(tiny_model.write(tmp_path / "other", seed=1))
    assert stored.find_mismatch(other_fingerprints) == (
        f"the stored latents were made by another text_encoder ({fingerprints['text_encoder'][:12]}; this model's is "
        f"{other_fingerprints['text_encoder'][:12]}): encode them again, or run `vdot-data annotate` with this model"
    )
    assert "another vae" in str(
        stored.find_mismatch(other_fingerprints | {"text_encoder": fingerprints["text_encoder"]})
    )
    assert "this model's is none" in str(stored.find_mismatch({}))


@pytest.mark.parametrize(
    "spoilt", [b"", b"\x80\x04K\x01.", b"\xff" * 64, lambda data: data[:-1], lambda data: data.replace(b"F16", b"F99")]
)
def test_other_bytes_are_no_latents(data: bytes, spoilt: Any) -> None:
    with pytest.raises(ValueError, match="these bytes are not stored latents"):
        latents_file.read(spoilt(data) if callable(spoilt) else spoilt)


def test_a_newer_format_and_a_file_of_somebody_else_are_refused(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.numpy import save

    with pytest.raises(ValueError, match="not stored latents"):
        latents_file.read(save({"clip": np.zeros(3, np.float16)}))
    with monkeypatch.context() as patch:
        patch.setattr(latents_file, "FORMAT", 2)
        newer = latents_file.to_bytes(stored)
    with pytest.raises(ValueError, match="these latents have format 2, and this version reads 1"):
        latents_file.read(newer)
    with pytest.raises(ValueError, match="the latents of clip are not finite"):
        latents_file.to_bytes(latents_file.StoredLatents({"clip": np.full(3, np.inf, np.float16)}, {}))


def test_lineage_names_the_weights_and_their_licence(model: Path) -> None:
    recipe = parse("filters: []\nstages: [[latents]]\nrules: {}\ntasks: {}", "of this test")
    (entry,) = Blueprint.for_ingest(recipe, ()).with_weights().lineage
    fingerprints = model_folder.fingerprints(model)
    assert entry["weights_id"] == "tiny/vae+tiny/text_encoder"
    assert entry["weights_sha256"] == f"{fingerprints['vae']}+{fingerprints['text_encoder']}"
    assert entry["weights_licence"] == "apache-2.0"


def unset(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("VDOT_MODEL")


def nowhere(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("VDOT_MODEL", "/no/such/folder")


def pickled(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").rename(folder / "vae/diffusion_pytorch_model.bin")


def cut_short(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "vae/config.json").write_text("{")


def bare(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "find_spec", lambda name: None if name == "diffusers" else name)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (unset, "set VDOT_MODEL to its folder in diffusers' layout"),
        (nowhere, "The model '/no/such/folder' is neither a folder here nor a hub id"),
        (pickled, "has no vae/diffusion_pytorch_model.safetensors: save it as safetensors"),
        (cut_short, "vae/config.json cannot be read"),
        (bare, r"pip install 'vdot-data\[train\]'"),
    ],
)
@pytest.mark.parametrize("name", ["latents", "masked_latents"])
def test_a_model_that_will_not_do_is_one_sentence_before_anything_starts(
    name: str, spoil: Any, words: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    monkeypatch.setenv("VDOT_MODEL", str(folder))
    spoil(folder, monkeypatch)
    with pytest.raises(UsageError, match=words):
        registry.choose_weights([name])
    assert not {"tiny/vae", "model/vae"} & registry.collect_weights().keys(), (
        "weights of the user's are not fetched for all"
    )


def test_a_node_with_other_weights_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model.write(tmp_path / "model")
    monkeypatch.setenv("VDOT_MODEL", str(folder))
    weights = Latents.choose()
    tiny_model.write(folder, seed=1)
    with pytest.raises(MissingWeights, match="vae is not what the run started with: copy the model to every node"):
        Latents(weights)


def test_workers_elsewhere_find_a_folder_that_was_named_from_here(
    model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("VDOT_MODEL", "tiny")
    weights = Latents.choose()
    assert weights[0].id == "tiny/vae"
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VDOT_MODEL")
    Latents(weights)


def test_the_registry_loads_these_annotators_without_a_framework() -> None:
    script = """
import json, sys
from pipeline.recipe import registry
files = [registry.load_annotator(name).files for name in ("latents", "masked_latents")]
import training.data.latents_file
print(json.dumps(sorted({"torch", "diffusers", "transformers", "safetensors"} & set(sys.modules))))
"""
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []
