"""Tests the command `annotate --with latents`: stored latents are those that the model makes of the stored clip."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import tiny_model

from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.conditions import to_gray
from pipeline.storage.folder import Folder
from training.data import latents_file
from training.models import folder

MEMBER = "latents.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def out(local_dataset: Any, tmp_path: Path) -> program.Out:
    """A dataset that may be changed."""
    return program.Out(shutil.copytree(local_dataset.url, tmp_path / "out"))


@pytest.fixture(scope="module")
def gpu() -> Iterator[str]:
    """A running cluster that declares a GPU; without a real one, the model uses the CPU."""
    with program.cluster(1, memory=4 * 10**9, gpus=1) as ray_cluster:
        yield ray_cluster.address


def read_layer(out: program.Out) -> dict[str, tuple[dict[str, Any], latents_file.StoredLatents]]:
    """Clip id -> the row of its latents, and the stored latents."""
    layers = {}
    for row in out.query("SELECT * FROM clips WHERE layer = 'latents'"):
        members = shards.read_sample(Folder(out.url), row["clip_id"], row["shard"], row["offset"], row["bytes"])
        assert set(members) == {MEMBER, "latents.json"}
        layers[row["clip_id"]] = row, latents_file.read(members[MEMBER])
    return layers


def encode(model: Path, frames: Any) -> Any:
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(model / "vae", low_cpu_mem_usage=False)
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        latent = vae.encode(pixels).latent_dist.mode()[0]
    mean, std = (torch.tensor(vae.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))
    return ((latent - mean) / std).numpy()


@pytest.mark.slow
@pytest.mark.long
def test_the_latents_of_a_dataset_are_those_of_its_stored_clips(
    vdot: Any, out: program.Out, model: Path, gpu: str, tmp_path: Path
) -> None:
    """On a cluster without the variable in its nodes' environment, with a relative name of the folder."""
    base = out.samples()
    command = ("annotate", out.url, "--with", "latents", "--address", gpu)
    process = vdot(*command, env={"VDOT_MODEL": model.name}, cwd=model.parent, timeout=300)
    assert process.returncode == 0, process.stderr
    fingerprints = folder.fingerprints(model)
    stored = read_layer(out)
    assert stored.keys() == base.keys()
    for clip, (row, latents) in stored.items():
        assert latents.find_mismatch(fingerprints) is None
        assert set(latents.tensors) == {"clip", "gray", "scribble"}
        entry = row["lineage"][-1]
        assert (entry["name"], entry["weights_licence"]) == ("latents", "apache-2.0")
        assert entry["weights_sha256"] == f"{fingerprints['vae']}+{fingerprints['text_encoder']}"
        assert [entry["name"] for entry in row["lineage"]] == ["scribble", "latents"]
        if clip == min(stored):
            frames = decode_clip(base[clip]["mp4"])
            for key, pictures in (
                ("clip", frames), ("gray", to_gray(frames)), ("scribble", decode_clip(base[clip]["scribble.mp4"])),
            ):  # fmt: skip
                np.testing.assert_allclose(latents.tensors[key], encode(model, pictures), rtol=6e-4, atol=1e-4)
    assert vdot("verify", out.url).returncode == 0

    rerun = vdot(*command, "--json", env={"VDOT_MODEL": str(model)})
    assert '"done": {}' in rerun.stdout, "nothing is left to do"

    second_model = tiny_model.write(tmp_path / "other", seed=1)
    assert "made by another vae" in str(
        latents.find_mismatch(folder.fingerprints(second_model) | {"text_encoder": fingerprints["text_encoder"]})
    )
    renewed = vdot(*command, env={"VDOT_MODEL": str(second_model)}, timeout=300)
    assert renewed.returncode == 0, renewed.stderr
    assert all(
        latents.find_mismatch(folder.fingerprints(second_model)) is None for _, latents in read_layer(out).values()
    )
    assert vdot("verify", out.url).returncode == 0


@pytest.mark.long
def test_without_a_model_nothing_starts_and_everything_else_works(vdot: Any, out: program.Out) -> None:
    unset = {"VDOT_MODEL": ""}
    files = out.files()
    # Nothing listens at this address: a run that reached Ray would report that.
    process = vdot("annotate", out.url, "--with", "latents", "--address", "127.0.0.1:1", env=unset)
    assert process.returncode == 2
    assert "set VDOT_MODEL to its folder in diffusers' layout" in " ".join(process.stderr.split())
    assert out.files() == files
    for command in (("weights", "--list"), ("doctor", out.url), ("verify", out.url)):
        process = vdot(*command, env=unset)
        assert "VDOT_MODEL" not in process.stdout + process.stderr, command
