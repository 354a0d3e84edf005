"""The training loop on a tiny model: what it learns from, that it goes on exactly, and what it says when it cannot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import program
import pytest
import small_mixture
import tiny_model
import torch
import yaml
from safetensors.torch import load_file

from annotators.weights import MissingWeights
from pipeline.decode import pictures
from pipeline.errors import RunError, UsageError
from pipeline.mixture import Bucket, Step
from training import assemble, distill, run, student
from training import config as config_module
from training.examples import Example, Examples
from training.loop import held_out
from training.models import Conditions
from training.parallel import world
from training.signals import Signals

pytestmark = pytest.mark.usefixtures("one_thread")

DISTILL = {
    "student": {"lr": 1e-3},
    "critic": {"lr": 1e-3},
    "student_every": 2,
    "gan": {"start": 0, "width": 16},
    "average": {"start": 0, "decay": 0.5},
}
TEACH = {"optimizer": {"lr": 1e-3}, "average": {"start": 0, "decay": 0.5}}
COMMON = {"seed": 3, "steps": 4, "saves": {"every": 2, "keep": 2}, "evaluation": {"every": 0}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_mixture.make(tmp_path_factory.mktemp("data"), 6, step=Step(2))


@pytest.fixture
def config(model: Path, mixture: Path, tmp_path: Path) -> Any:
    """Writes a configuration and says where."""

    def write(method: dict[str, Any], name: str = "config", **changes: Any) -> Path:
        told: dict[str, Any] = {
            "model": {"folder": str(model), "dtype": "float32", "text_tokens": 8},
            "data": {"mixture": str(mixture), "form": "pixels", "workers": 0},
            **COMMON,
            **method,
        }
        for key, value in changes.items():
            told[key] = told[key] | value if isinstance(value, dict) and isinstance(told.get(key), dict) else value
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(told))
        return file

    return write


def train(command: str, file: Path, out: Path, resume: str | None = None) -> None:
    """What `vdot-train` does, in this process."""
    {"teach": run.teach, "distill": run.distill}[command](file, out, resume)


def processes(count: int, *arguments: Any) -> None:
    """The same by torchrun, in so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "training.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def options(method: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Command, configuration, and changes to it."""
    if method == "teach":
        return "teach", TEACH, {}
    return "distill", DISTILL, {"model": {"lora_rank": 4}} if method == "lora" else {}


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("teach", "lora")]


def stored(out: Path, step: int) -> dict[str, Any]:
    """All tensors of a checkpoint, whole."""
    import torch

    from training.checkpoint import HuggingFaceStorageReader, dcp

    at = out / f"checkpoints/step-{step:07d}"
    reader = HuggingFaceStorageReader(str(at))
    shapes = {name: one.size for name, one in reader.read_metadata().state_dict_metadata.items()}
    found = {name: torch.empty(size) for name, size in shapes.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(at)))
    return found


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def equal(one: dict[str, Any], other: dict[str, Any], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        difference = float((one[name] - other[name]).abs().max())
        assert difference <= tolerance * max(1.0, float(one[name].abs().max())), (name, difference)


@pytest.mark.parametrize("method", ["distill", *LONG])
def test_two_and_two_steps_are_four(method: str, config: Any, tmp_path: Path) -> None:
    command, told, changes = options(method)
    train(command, config(told, **changes), tmp_path / "whole")
    train(command, config(told, **changes, steps=2), tmp_path / "parts")
    train(command, config(told, **changes), tmp_path / "parts", "latest")
    equal(stored(tmp_path / "whole", 4), stored(tmp_path / "parts", 4))
    whole, parts = (
        [{name: value for name, value in one.items() if "time" not in name} for one in logged(tmp_path / out)]
        for out in ("whole", "parts")
    )
    assert whole == parts
    assert [one["step"] for one in whole] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["distill", *LONG])
def test_two_processes_are_one(method: str, config: Any, tmp_path: Path) -> None:
    command, told, changes = options(method)
    file = config(told, **changes)
    train(command, file, tmp_path / "one")
    processes(2, command, file, "--out", tmp_path / "two")
    # AdamW divides by the square root of tiny squares: sums in another order are seen in single weights.
    equal(stored(tmp_path / "one", 4), stored(tmp_path / "two", 4), 1e-3)
    for one, two in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        for name in one:
            if isinstance(one[name], float) and "time" not in name:
                assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-5), name


@pytest.mark.long
def test_what_two_processes_began_one_goes_on_with(config: Any, tmp_path: Path) -> None:
    processes(2, "distill", config(DISTILL, steps=2), "--out", tmp_path / "run")
    train("distill", config(DISTILL), tmp_path / "run", "latest")
    train("distill", config(DISTILL), tmp_path / "whole")
    equal(stored(tmp_path / "whole", 4), stored(tmp_path / "run", 4), 1e-3)


def test_everything_learns_and_the_frozen_does_not(config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL), tmp_path / "run")
    before, after = stored(tmp_path / "run", 2), stored(tmp_path / "run", 4)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    # Wan's norms have weights that no gradient reaches, as nothing depends on their scale at first.
    for role in ("student", "fake", "judge", "average.student"):
        own = {name for name in after if name.startswith(f"{role}.")}
        assert len(own & moved) > 0.9 * len(own), role
    # The average is neither the weights nor what it was.
    name = "blocks.0.attn1.to_q.weight"
    assert not torch.equal(after[f"average.student.{name}"], after[f"student.{name}"])


def test_adapters_learn_and_nothing_else(config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL, model={"lora_rank": 4, "dtype": "bfloat16"}), tmp_path / "run")
    before, after = stored(tmp_path / "run", 2), stored(tmp_path / "run", 4)
    assert all("lora_" in name or ".judge." in f".{name}" for name in after)
    for role in ("student", "fake"):
        own = {name for name in after if name.startswith(f"{role}.")}
        assert own
        assert all(not torch.equal(before[name], after[name]) for name in own), role


@pytest.mark.parametrize("method", ["teach", pytest.param("distill", marks=pytest.mark.long)])
def test_looking_changes_nothing_and_sees_the_average(
    method: str, config: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture = {"data": {"mixture": str(small_mixture.make(tmp_path, 6, step=Step(2), held=2))}}
    command, told, _ = options(method)
    seen: list[torch.Tensor] = []

    def look(example: Any, method: Any, *_: Any) -> Any:
        with torch.no_grad():
            seen.append(method.student.velocity(example.clean, torch.ones(len(example.clean)), example.conditions))
        return np.zeros((1, 16, 16, 3), np.uint8)

    monkeypatch.setattr(run, "_shown", look)
    train(command, config(told, **mixture, evaluation={"every": 1, "clips": 1}), tmp_path / "run")
    train(command, config(told, **mixture), tmp_path / "blind")
    equal(stored(tmp_path / "run", 4), stored(tmp_path / "blind", 4))
    found = student.load(tmp_path / "run", torch.device("cpu"))
    examples = Examples(model, found.run.model, found.run.data, torch.device("cpu"))
    example = held_out(config_module.load(tmp_path / "config.yaml", type(found.run)), examples, model)[0]
    with torch.no_grad():
        wanted = found.network.velocity(example.clean, torch.ones(len(example.clean)), example.conditions)
    assert torch.allclose(seen[-1], wanted, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "published", "student_every": 1, "gan": {"smoothness": 0}},
        {"objective": "published", "gan": None},
        {"objective": "per_frame", "gan": None, "transport": None},
        {"gan": None},
        {"transport": {"rho": 1.0, "position": 1.0}},
    ],
    ids=lambda changes: ",".join(map(str, changes)),
)
def test_every_objective_goes_through_the_loop(changes: dict[str, Any], config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL | {"steps": 2}, **changes), tmp_path / "run")
    said = logged(tmp_path / "run")[0]
    assert ("ot/diagonal" in said) == (changes.get("objective") is None and changes.get("transport", 1) is not None)
    assert ("judge/loss" in said) == (changes.get("gan", 1) is not None and changes.get("objective") != "published")


def test_the_adversarial_gradient_has_its_ratio(model: Path, config: Any) -> None:
    told = config_module.load(config(DISTILL, gan={"ratio": 0.3}), config_module.Distill)
    with world() as here:
        method = distill.Distillation(told, assemble.distillation(told, model, here), torch.zeros(1, 8, 32))
        drawn = torch.Generator().manual_seed(0)
        clean, context, text, sample = (
            torch.randn(shape, generator=drawn)
            for shape in ((2, 16, 3, 4, 4), (2, 96, 3, 4, 4), (2, 8, 32), (2, 16, 3, 4, 4))
        )
        bucket = Bucket("films", "pose", 9, 32, 32, 0)
        example = Example(7, bucket, clean, Conditions(text, context))
        both = method.gradient(example, sample, Signals())
        alone = method.gradient(example, sample, Signals(), judge=False)
    added = both - alone
    assert float(added.norm() / alone.norm()) == pytest.approx(0.3, rel=1e-3)
    # Mean 1 of what a direction is over: the same at every size.
    assert 0.1 < float(alone.norm() * alone.numel() ** 0.5) < 10


def test_the_teacher_sees_no_adapter_and_the_student_its_own(model: Path) -> None:
    from training.models import Conditions, Denoiser, adapted, load

    alone, base = load(model, torch.float32), adapted(load(model, torch.float32), 4)
    for name, one in base.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(one, std=0.1 if ".student." in name else 0.2)
    drawn = torch.Generator().manual_seed(0)
    noisy, context, text = (
        torch.randn(shape, generator=drawn) for shape in ((1, 16, 3, 4, 4), (1, 96, 3, 4, 4), (1, 8, 32))
    )
    said = {}
    for role in (None, "student", "fake", None):
        said[role] = Denoiser(base, torch.float32, role).velocity(noisy, torch.ones(1), Conditions(text, context))
    plain = Denoiser(alone, torch.float32).velocity(noisy, torch.ones(1), Conditions(text, context))
    assert torch.equal(said[None], plain)
    assert not torch.allclose(said["student"], plain)
    assert not torch.allclose(said["student"], said["fake"])


@pytest.mark.long
def test_going_on_before_the_newest_is_refused(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH), tmp_path / "run")
    with pytest.raises(UsageError, match="holds step-0000004, after step 2"):
        train("teach", config(TEACH, steps=6), tmp_path / "run", str(tmp_path / "run/checkpoints/step-0000002"))
    train("teach", config(TEACH, steps=3), tmp_path / "other", str(tmp_path / "run/checkpoints/step-0000002"))
    # Nothing is left to do.
    train("teach", config(TEACH, steps=3), tmp_path / "run", "latest")
    assert {file.name for file in (tmp_path / "run/checkpoints").iterdir()} == {"step-0000002", "step-0000004"}


@pytest.mark.long
def test_another_base_is_refused(model: Path, config: Any, tmp_path: Path) -> None:
    changes = {"lora_rank": 4}
    train("distill", config(DISTILL, model=changes, steps=2), tmp_path / "run")
    other = tiny_model.write(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="holds another transformer than"):
        train("distill", config(DISTILL, model=changes | {"folder": str(other)}), tmp_path / "run", "latest")


def test_a_run_that_is_there_is_not_begun_again(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    with pytest.raises(UsageError, match=r"holds a run already .step-0000002.: --resume latest"):
        train("teach", config(TEACH), tmp_path / "run")
    with pytest.raises(UsageError, match="has the kind teach, and this run distill"):
        train("distill", config(DISTILL), tmp_path / "run", "latest")
    with pytest.raises(UsageError, match="is no checkpoint"):
        train("teach", config(TEACH), tmp_path / "run", str(tmp_path / "nowhere"))
    changed = config(TEACH | {"optimizer": {"lr": 5e-3}})
    with pytest.raises(UsageError, match=r"optimizer\.lr: 0\.001, now 0\.005"):
        train("teach", changed, tmp_path / "run", "latest")


def test_a_schedule_that_does_not_match_the_checkpoint_is_refused(config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL, steps=2), tmp_path / "run")
    with pytest.raises(UsageError, match=r"937\.5.*this run .*960"):
        train("distill", config(DISTILL, schedule={"shift": 8}), tmp_path / "run", "latest")


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint(
    config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("distill", config(DISTILL, steps=2), tmp_path / "run")
    kept = stored(tmp_path / "run", 2)
    monkeypatch.setattr(distill, "velocity", lambda clean, noise: noise * torch.nan)
    with pytest.raises(RunError, match=r"step 3 .*the fake score's loss is not finite.*step-0000002 is whole"):
        train("distill", config(DISTILL), tmp_path / "run", "latest")
    equal(stored(tmp_path / "run", 2), kept)
    monkeypatch.undo()
    train("distill", config(DISTILL), tmp_path / "run", "latest")


def test_a_full_disk_keeps_the_last_checkpoint(config: Any, tmp_path: Path) -> None:
    with program.mounted(tmp_path / "small", "size=9m") as small:
        with pytest.raises(
            RunError, match=r"the checkpoint of step \d+ cannot be written .*No space.*last one is step"
        ):
            train("distill", config(DISTILL, steps=40, saves={"every": 1, "keep": 40}), small / "run")
        last = max((small / "run/checkpoints").glob("step-*"))
        assert not list((small / "run/checkpoints").glob(".*"))
        assert stored(small / "run", int(last.name[5:]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("no folder", "is no folder here, and no hub id"),
        ("no transformer", r"has no transformer/config\.json"),
        ("no weights", "cannot be loaded|no file named"),
        ("a weight less", "lacks 1 weights, blocks.0.attn1.to_q.weight first"),
        ("another shape", "cannot be loaded|of another shape"),
        ("no VAE", "has no vae/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(damage: str, said: str, model: Path, config: Any, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights = broken / "transformer/diffusion_pytorch_model.safetensors"
    if damage == "no folder":
        shutil.rmtree(broken)
    elif damage == "no transformer":
        shutil.rmtree(broken / "transformer")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "no VAE":
        shutil.rmtree(broken / "vae")
    else:
        found = load_file(weights)
        name = "blocks.0.attn1.to_q.weight"
        found.pop(name)
        if damage == "another shape":
            found[name] = torch.zeros(3, 3)
        save_file(found, weights, metadata={"format": "pt"})
    with pytest.raises((UsageError, MissingWeights), match=said):
        train("distill", config(DISTILL, model={"folder": str(broken)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_latents_is_refused(model: Path, config: Any, tmp_path: Path) -> None:
    from diffusers import WanVACETransformer3DModel

    other = tmp_path / "other"
    shutil.copytree(model, other)
    told = WanVACETransformer3DModel.load_config(other / "transformer")
    WanVACETransformer3DModel.from_config(told | {"text_dim": 16}).save_pretrained(other / "transformer")
    with pytest.raises(UsageError, match="the student's text_dim is 16 and the teacher's 32: they cannot share"):
        train("distill", config(DISTILL, model={"student": str(other)}), tmp_path / "run")


def test_latents_that_are_not_there_are_named(config: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no latents that fit this model: store them .*form: pixels"):
        train("teach", config(TEACH, data={"form": "latents"}), tmp_path / "run")


@pytest.mark.long
def test_the_same_held_out_clips_are_sampled_by_the_average(config: Any, tmp_path: Path) -> None:
    mixture = small_mixture.make(tmp_path, 6, step=Step(2), held=2)
    told = config(DISTILL, data={"mixture": str(mixture)}, evaluation={"every": 2, "clips": 2})
    train("distill", told, tmp_path / "run")
    made = sorted((tmp_path / "run/samples").glob("*.mp4"))
    assert [file.stem for file in made] == ["step-0000002", "step-0000004"]
    (length, height, width), _ = next(pictures(made[0].read_bytes()))
    # Clips above, samples below; two clips of one shape or another side by side.
    assert (length, height) in ((9, 96), (5, 64), (9, 64))
    assert width >= 96
    assert made[0].read_bytes() != made[1].read_bytes()
    # What is trained does not depend on what is looked at.
    train("distill", config(DISTILL, data={"mixture": str(mixture)}), tmp_path / "blind")
    equal(stored(tmp_path / "run", 4), stored(tmp_path / "blind", 4))


@pytest.mark.long
def test_a_student_is_sampled_and_exported_as_it_was_trained(config: Any, model: Path, tmp_path: Path) -> None:
    for name, changes in {"whole": {}, "lora": {"model": {"lora_rank": 4}}}.items():
        out = tmp_path / name
        train("distill", config(DISTILL, **changes), out)
        run.export(out, tmp_path / f"{name}-model")
        made = []
        for where in (out, out / "checkpoints/step-0000004", tmp_path / f"{name}-model"):
            run.sample(where, tmp_path / "made.mp4", "a red dog", None, None, [], (9, 32, 48), 5)
            made.append((tmp_path / "made.mp4").read_bytes())
        assert made[0] == made[1]
        if name == "whole":
            assert made[0] == made[2]
        else:
            weights = load_file(tmp_path / "lora-model/transformer/diffusion_pytorch_model.safetensors")
            base = load_file(model / "transformer/diffusion_pytorch_model.safetensors")
            learnt = stored(out, 4)
            a, b = (learnt[f"average.student.blocks.1.attn1.to_q.lora_{one}.student.weight"] for one in "AB")
            layer = "blocks.1.attn1.to_q.weight"
            assert torch.allclose(weights[layer], base[layer] + b @ a, atol=1e-6)
            assert not torch.equal(weights[layer], base[layer])
        card = (tmp_path / f"{name}-model/README.md").read_text()
        assert "4 steps at the timesteps 1000, 937.5, 833.333, 625 (shift 5)" in card
        assert "license: apache-2.0" in card
    with pytest.raises(UsageError, match="exists already"):
        run.export(tmp_path / "whole", tmp_path / "whole-model")
    with pytest.raises(UsageError, match="has no adapters"):
        run.export(tmp_path / "whole", tmp_path / "other", lora=True)
    run.export(tmp_path / "lora", tmp_path / "adapters", lora=True)
    assert (tmp_path / "adapters/pytorch_lora_weights.safetensors").is_file()


def test_an_export_is_what_the_pipeline_of_diffusers_loads(config: Any, tmp_path: Path) -> None:
    from diffusers import WanVACEPipeline

    from training.scheduler import StoredSteps

    train("distill", config(DISTILL), tmp_path / "run")
    run.export(tmp_path / "run", tmp_path / "model")
    pipe = WanVACEPipeline.from_pretrained(tmp_path / "model")
    pipe.scheduler = StoredSteps.from_pretrained(tmp_path / "model", subfolder="scheduler")
    pipe.set_progress_bar_config(disable=True)
    seen: list[float] = []

    def note(_pipe: Any, _step: int, time: Any, kept: Any) -> Any:
        seen.append(float(time))
        return kept

    made = pipe(
        prompt_embeds=torch.zeros(1, 8, 32), height=32, width=48, num_frames=9, num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=8, output_type="np", callback_on_step_end=note,
    ).frames  # fmt: skip
    assert made.shape == (1, 9, 32, 48, 3)
    assert seen == pytest.approx([1000, 937.5, 833.33, 625], abs=0.01)
    with pytest.raises(UsageError, match="this student makes 4 steps, not 50"):
        pipe.scheduler.set_timesteps(50)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"shape": (10, 32, 48)}, "4n . 1 frames"),
        ({"shape": (9, 30, 48)}, "multiples of 16"),
        ({"mask": "clip.mp4"}, "a mask belongs to a video"),
        ({"video": "clip.mp4", "shape": (81, 32, 48)}, "has 9 frames at 16 a second, and 81 are needed"),
        ({"video": "absent.mp4"}, "absent.mp4 cannot be read as a video"),
        ({"references": ["absent.png"]}, "absent.png cannot be read as a PNG"),
        ({"trained": "."}, "is no run with a checkpoint"),
    ],
)
def test_what_cannot_be_sampled_is_named(options: dict[str, Any], said: str, config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH, steps=2), tmp_path / "run")
    (tmp_path / "clip.mp4").write_bytes(small_mixture.members(0)["mp4"])

    def at(name: str) -> Path | None:
        return tmp_path / options[name] if name in options else None

    pictures_ = [tmp_path / one for one in options.get("references", [])]
    with pytest.raises(UsageError, match=said):
        run.sample(
            at("trained") or tmp_path / "run", tmp_path / "made.mp4", "", at("video"), at("mask"), pictures_,
            options.get("shape", (9, 32, 48)), 0,
        )  # fmt: skip


def test_sigterm_ends_with_a_checkpoint(config: Any, tmp_path: Path) -> None:
    file = config(TEACH, steps=100_000, saves={"every": 100_000})
    job = subprocess.Popen(
        [sys.executable, "-m", "training.cli", "teach", str(file), "--out", str(tmp_path / "run")],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
    )
    log = tmp_path / "run/log.jsonl"
    program.poll(lambda: (log.is_file() and log.read_text()) or job.poll() is not None, 60, "a first step")
    job.send_signal(signal.SIGTERM)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 1
    assert "stopped on request at step" in said
    assert "Traceback" not in said
    (kept,) = (tmp_path / "run/checkpoints").glob("step-*")
    assert int(kept.name[5:]) == len(log.read_text().splitlines())


@pytest.mark.long
def test_the_log_of_a_run_that_was_killed_goes_on(config: Any, tmp_path: Path) -> None:
    train("teach", config(TEACH), tmp_path / "run")
    (tmp_path / "run/checkpoints/step-0000004/checkpoint.json").unlink()
    with (tmp_path / "run/log.jsonl").open("a") as file:
        file.write('{"step": 5, "cut sho')
    train("teach", config(TEACH), tmp_path / "run", "latest")
    assert [one["step"] for one in logged(tmp_path / "run")] == [1, 2, 3, 4]
