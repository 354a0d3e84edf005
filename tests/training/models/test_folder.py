"""A model's folder: its fingerprints, its licence, and hub ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from annotators.weights import MissingWeights
from training.encoding.latents import Latents
from training.models import folder as model_folder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, "unknown"),
        ("# No head\n", "unknown"),
        ("---\nlicense: [a, b]\n---\n", "unknown"),
        ("---\n{\n---\n", "unknown"),
        ("---\ntags: [x]\nlicense: mit\n---\n# Card\n", "mit"),
    ],
)
def test_the_licence_is_what_the_card_states(card: str | None, licence: str, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert model_folder.licence(tmp_path) == licence


def test_a_fingerprint_follows_weights_and_normalisation_and_nothing_else(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    before = model_folder.fingerprints(copy)
    assert before == model_folder.fingerprints(model)
    config = copy / "vae/config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps(values | {"_diffusers_version": "99"}))
    (copy / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read")
    assert model_folder.fingerprints(copy) == before
    config.write_text(json.dumps(values | {"latents_std": [1.0] * 16}))
    after = model_folder.fingerprints(copy)
    assert after["vae"] != before["vae"]
    assert after["text_encoder"] == before["text_encoder"]


def test_weights_in_several_files_are_all_hashed(model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    folder = copy / "text_encoder"
    shard = (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    index = {"weight_map": {"a": shard.name, "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MissingWeights, match=r"has no text_encoder/model-2-of-2\.safetensors"):
        model_folder.fingerprint(copy, "text_encoder")
    fingerprints = []
    for data in (b"one", b"another"):
        (folder / "model-2-of-2.safetensors").write_bytes(data)
        fingerprints.append(model_folder.fingerprint(copy, "text_encoder"))
    assert fingerprints[0] != fingerprints[1]


def test_a_hub_id_is_pinned_to_its_commit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache is filled by hand, so the network is not used."""
    from huggingface_hub import constants

    commit = "0123456789abcdef" * 2 + "01234567"
    cached = tmp_path / "models--somebody--tiny"
    shutil.copytree(model, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("VDOT_MODEL", "somebody/tiny")
    weights = Latents.choose()
    assert [weight.source for weight in weights] == [f"somebody/tiny@{commit}"] * 2
    assert weights[0].id == f"somebody/tiny@{commit}/vae"
    assert model_folder.resolve_folder(weights[0].source) == cached / "snapshots" / commit
    monkeypatch.setenv("VDOT_MODEL", "somebody/else")
    with pytest.raises(MissingWeights, match="the hub does not provide it"):
        Latents.choose()
