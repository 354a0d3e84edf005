"""Samples of a trained model, and exports for other tools."""

from __future__ import annotations

import json
import os
import resource
import wave
from collections import Counter
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
import small_mixture
import torch
from safetensors.torch import load_file
from tiny_run import DISTILL, TEACH, equal, stored, train

from pipeline.errors import RunError, UsageError
from pipeline.formats.clip_decode import decode_frames
from pipeline.formats.clip_encode import encode_clip
from pipeline.mixture.mixture import Step
from training import commands
from training.config import Size, Teach, load
from training.demo import tiny_model
from training.diffusion import seeded_random
from training.encoding import video_files
from training.encoding.examples import ExampleEncoder
from training.export import generate, trained_model
from training.models import folder, networks
from training.models.networks import Conditions, Denoiser
from training.sampling.diffusers_scheduler import StoredSteps
from training.trainer.loop import pick_held_out

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.long
def test_the_same_held_out_clips_are_sampled_by_the_average(config: Any, tmp_path: Path) -> None:
    mixture = small_mixture.make(tmp_path, 6, step=Step(2), held=2)
    config_file = config(DISTILL, data={"mixture": str(mixture)}, evaluation={"every": 2, "clips": 2})
    train("distill", config_file, tmp_path / "run")
    films = sorted((tmp_path / "run/samples").glob("*.mp4"))
    assert [file.stem for file in films] == ["step-0000002", "step-0000004"]
    (length, height, width), _ = next(decode_frames(films[0].read_bytes()))
    # Clips above, samples below; two clips of any shape side by side.
    assert (length, height) in ((9, 96), (5, 64), (9, 64))
    assert width >= 96
    assert films[0].read_bytes() != films[1].read_bytes()
    # Training does not depend on evaluation.
    train("distill", config(DISTILL, data={"mixture": str(mixture)}), tmp_path / "blind")
    equal(stored(tmp_path / "run", 4), stored(tmp_path / "blind", 4))


def test_samples_are_of_every_task_and_of_no_clip_twice(config: Any, model: Path, tmp_path: Path) -> None:
    mixture = small_mixture.make(tmp_path, 12, step=Step(8), held=6)
    for clips, expected in ((5, 5), (3, 3), (10, 10), (1000, 30)):
        settings = load(config(TEACH, data={"mixture": str(mixture)}, evaluation={"every": 2, "clips": clips}), Teach)
        example_encoder = ExampleEncoder(model, settings.model, settings.data, torch.device("cpu"))
        examples = pick_held_out(settings, example_encoder, {})
        assert len(examples) == expected
        counts = Counter(example.bucket.task for example in examples)
        assert len(counts) == min(clips, 5)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len({(example.bucket.task, example.clean.mean()) for example in examples}) == expected


@pytest.mark.long
def test_a_student_is_sampled_and_exported_as_it_was_trained(config: Any, model: Path, tmp_path: Path) -> None:
    for name, changes in {"whole": {}, "lora": {"model": {"lora_rank": 4}}}.items():
        out = tmp_path / name
        train("distill", config(DISTILL, **changes), out)
        commands.export(out, tmp_path / f"{name}-model")
        films = []
        for source in (out, out / "checkpoints/step-0000004", tmp_path / f"{name}-model"):
            commands.sample(source, tmp_path / "made.mp4", "a red dog", None, None, [], (9, 32, 48), 5)
            films.append((tmp_path / "made.mp4").read_bytes())
        assert films[0] == films[1]
        if name == "whole":
            assert films[0] == films[2]
        else:
            weights = load_file(tmp_path / "lora-model/transformer/diffusion_pytorch_model.safetensors")
            base = load_file(model / "transformer/diffusion_pytorch_model.safetensors")
            tensors = stored(out, 4)
            lora_a, lora_b = (
                tensors[f"average.student.blocks.1.attn1.to_q.lora_{letter}.student.weight"] for letter in "AB"
            )
            layer = "blocks.1.attn1.to_q.weight"
            assert torch.allclose(weights[layer], base[layer] + lora_b @ lora_a, atol=1e-6)
            assert not torch.equal(weights[layer], base[layer])
        card = (tmp_path / f"{name}-model/README.md").read_text()
        assert "4 steps at the timesteps 1000, 937.5, 833.333, 625 (shift 5)" in card
        assert "license: apache-2.0" in card
    with pytest.raises(UsageError, match="exists already"):
        commands.export(tmp_path / "whole", tmp_path / "whole-model")
    with pytest.raises(UsageError, match="has no adapters"):
        commands.export(tmp_path / "whole", tmp_path / "other", lora=True)
    commands.export(tmp_path / "lora", tmp_path / "adapters", lora=True)
    with pytest.raises(UsageError, match="adapters has only adapters, for other programs"):
        trained_model.load(tmp_path / "adapters", torch.device("cpu"))
    base, trained = networks.load(model, torch.float32), trained_model.load(tmp_path / "lora", torch.device("cpu"))
    base.load_lora_adapter(tmp_path / "adapters/pytorch_lora_weights.safetensors", adapter_name="student")
    conditions = Conditions(torch.randn(1, 8, 32), torch.randn(1, 96, 3, 4, 4))
    inputs = torch.randn(1, 16, 3, 4, 4), torch.tensor([0.8]), conditions
    expected = trained.network.predict_velocity(*inputs)
    assert torch.allclose(Denoiser(base, torch.float32, "student").predict_velocity(*inputs), expected, atol=1e-5)
    assert not torch.allclose(Denoiser(base, torch.float32).predict_velocity(*inputs), expected, atol=1e-5)
    StoredSteps.from_pretrained(tmp_path / "adapters", subfolder="scheduler")


@pytest.mark.parametrize(("fps", "numbers"), [(24, [0, 1, 3, 4, 6, 7, 9, 10, 12]), (8, [0, 0, 1, 1, 2, 2, 3, 3, 4])])
def test_a_condition_shows_what_was_on_the_screen(fps: int, numbers: list[int], tmp_path: Path) -> None:
    frames = np.stack([np.full((64, 64, 3), 16 * number, np.uint8) for number in range(max(numbers) + 1)])
    (tmp_path / "video.mp4").write_bytes(encode_clip(frames, fps))
    frames_read = video_files.read_video(tmp_path / "video.mp4", (9, 64, 64))
    assert [round(float(frame.mean()) / 16) for frame in frames_read] == numbers
    # A clip cut from a longer one has later timestamps, and shows the same.
    with av.open(tmp_path / "video.mp4") as read, av.open(tmp_path / "later.mkv", "w") as later:
        stream = later.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.pts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + 1000, packet.dts + 1000, stream
                later.mux(packet)
    with av.open(tmp_path / "later.mkv") as later:
        assert next(later.decode(video=0)).pts > 0
    assert np.array_equal(video_files.read_video(tmp_path / "later.mkv", (9, 64, 64)), frames_read)


def test_sound_without_pictures_is_no_video(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(UsageError, match=r"sound\.wav cannot be read as a video"):
        video_files.read_video(tmp_path / "sound.wav", (9, 64, 64))


def test_an_export_is_what_the_pipeline_of_diffusers_loads(config: Any, tmp_path: Path) -> None:
    from diffusers import WanVACEPipeline

    train("distill", config(DISTILL), tmp_path / "run")
    commands.export(tmp_path / "run", tmp_path / "model")
    pipe = WanVACEPipeline.from_pretrained(tmp_path / "model")
    pipe.scheduler = StoredSteps.from_pretrained(tmp_path / "model", subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    timesteps: list[float] = []

    def record(_pipe: Any, _step: int, time: Any, tensors: Any) -> Any:
        timesteps.append(float(time))
        return tensors

    film = pipe(
        prompt_embeds=torch.zeros(1, 8, 32), height=32, width=48, num_frames=9, num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=8, output_type="np", callback_on_step_end=record,
    ).frames  # fmt: skip
    assert film.shape == (1, 9, 32, 48, 3)
    assert timesteps == pytest.approx([1000, 937.5, 833.33, 625], abs=0.01)
    with pytest.raises(UsageError, match="this student makes 4 steps, not 50"):
        pipe.scheduler.set_timesteps(50)
    file = tmp_path / "model/schedule.json"
    schedule = json.loads(file.read_text())
    for changes, message in (
        ({"distilled": None}, "stores no schedule"),
        ({"distilled": schedule["distilled"] | {"shift": 8}}, "contradicts itself"),
        ({"config": {}}, r"schedule\.json is damaged: config\.model: folder: Field required"),
        ({"taught": {"steps": 0, "shift": 5, "cfg": 4}}, r"schedule\.json is damaged: taught\.steps: "),
    ):
        file.write_text(json.dumps(schedule | changes))
        with pytest.raises(UsageError, match=message):
            trained_model.load(tmp_path / "model", torch.device("cpu"))


@pytest.mark.long
def test_the_pipeline_of_diffusers_makes_what_sample_makes(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import WanVACEPipeline
    from diffusers.schedulers import scheduling_flow_match_euler_discrete
    from PIL import Image

    train("distill", config(DISTILL), tmp_path / "run")
    commands.export(tmp_path / "run", tmp_path / "model")
    rng = np.random.default_rng(0)
    shape, latent = (9, 32, 48), (1, 16, 4, 4, 6)
    video, picture = rng.integers(256, size=(9, 32, 48, 3), dtype=np.uint8), rng.integers(256, size=(32, 48, 3))
    mask = np.zeros(shape, bool)
    mask[:, 8:24, 16:40] = True
    reference = picture.astype(np.uint8)
    trained = trained_model.load(tmp_path / "model", torch.device("cpu"))

    def sample(prompt: str, seed: int) -> Any:
        return generate.video(
            trained, prompt, shape=shape, condition=video, mask=mask, references=[reference], seed=seed
        ).astype(float)

    expected = sample("a red  dog &amp; fast", 5)
    # The scheduler also draws after the last step, and multiplies that noise by 0.
    noises = iter([seeded_random.normal(latent, torch.device("cpu"), 5, "sample", step) for step in range(1, 5)])
    monkeypatch.setattr(scheduling_flow_match_euler_discrete, "randn_tensor", lambda *_, **__: next(noises))
    pipe = WanVACEPipeline.from_pretrained(tmp_path / "model")
    pipe.scheduler = StoredSteps.from_pretrained(tmp_path / "model", subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    film = pipe(
        prompt="a red  dog &amp; fast",
        video=[Image.fromarray(frame) for frame in video],
        mask=[Image.fromarray(np.uint8(255 * frame)) for frame in mask],
        reference_images=[Image.fromarray(reference)],
        latents=seeded_random.normal(latent, torch.device("cpu"), 5, "sample", 0),
        height=32, width=48, num_frames=9, num_inference_steps=4, guidance_scale=1.0, max_sequence_length=8,
    ).frames[0] * 255  # fmt: skip
    assert np.abs(film - expected).max() <= 1
    for different in (sample("the square moves over", 5), sample("a red dog & fast", 6)):
        assert np.abs(different - expected).max() > 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (10, 32, 48)}, "4n . 1 frames"),
        ({"shape": (9, 30, 48)}, "multiples of 16"),
        ({"shape": (40_001, 32, 48)}, r"has \d+ positions a side .* takes 10001 x 2 x 3"),
        ({"mask": "clip.mp4"}, "a mask belongs to a video"),
        ({"video": "clip.mp4", "shape": (81, 32, 48)}, "has 9 frames at 16 a second, and 81 are needed"),
        ({"video": "absent.mp4"}, "absent.mp4 cannot be read as a video"),
        ({"references": ["absent.png"]}, "absent.png cannot be read as a picture"),
        ({"trained": "."}, "is not a run with a checkpoint"),
        ({"out": "pipe"}, "pipe cannot be written: name a file"),
    ],
)
def test_what_cannot_be_sampled_is_named(options: dict[str, Any], message: str, config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    (tmp_path / "clip.mp4").write_bytes(small_mixture.members(0)["mp4"])
    os.mkfifo(tmp_path / "pipe")

    def at(name: str) -> Path | None:
        return tmp_path / options[name] if name in options else None

    pictures_ = [tmp_path / name for name in options.get("references", [])]
    with pytest.raises(UsageError, match=message):
        commands.sample(
            at("trained") or tmp_path / "run", at("out") or tmp_path / "made.mp4", "", at("video"), at("mask"),
            pictures_, options.get("shape", (9, 32, 48)), 0,
        )  # fmt: skip


@pytest.mark.long
def test_a_video_that_memory_does_not_hold_is_named(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 300 * 2**20, limits[1]))
    try:
        # The pixels alone take 380 MB.
        with pytest.raises(RunError, match=r"121 frames of 512 x 512 does not fit into memory: .*allocate"):
            commands.sample(tmp_path / "run", tmp_path / "made.mp4", "", None, None, [], (121, 512, 512), 0)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_the_demonstrations_model_is_one_that_the_pipeline_can_count_on(mixture: Path, tmp_path: Path) -> None:
    from diffusers import AutoencoderKLWan

    psnr = tiny_model.make(str(mixture), Size(frames=5, height=32, width=48), tmp_path, pictures=1, steps=1)
    assert 0 < psnr < 30
    folder.check(tmp_path, ("vae", "text_encoder", "transformer"))
    vae = AutoencoderKLWan.from_pretrained(tmp_path / "vae").config
    # As `WanVACEPipeline` counts.
    assert 2 ** len(vae.temperal_downsample) == vae.scale_factor_spatial == 8
    assert 2 ** sum(vae.temperal_downsample) == vae.scale_factor_temporal == 4
