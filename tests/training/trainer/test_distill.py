"""The training loop on a tiny model: exact resume, any number of processes, and which weights are trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_mixture
import torch
from tiny_run import DISTILL, LONG, equal, logged, options, processes, stored, train

from pipeline.errors import UsageError
from pipeline.mixture.mixture import Step
from training import commands
from training import config as config_module
from training.distributed import join_world
from training.encoding.examples import ExampleEncoder
from training.export import trained_model
from training.models import assemble, networks
from training.models.networks import Conditions, Denoiser
from training.trainer.loop import pick_held_out

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("method", ["distill", *LONG])
def test_two_and_two_steps_are_four(method: str, config: Any, tmp_path: Path) -> None:
    command, settings, changes = options(method)
    train(command, config(settings, **changes), tmp_path / "whole")
    train(command, config(settings, **changes, steps=2), tmp_path / "parts")
    train(command, config(settings, **changes), tmp_path / "parts", "latest")
    equal(stored(tmp_path / "whole", 4), stored(tmp_path / "parts", 4))
    uninterrupted, resumed = (
        [{name: value for name, value in entry.items() if "time" not in name} for entry in logged(tmp_path / out)]
        for out in ("whole", "parts")
    )
    assert uninterrupted == resumed
    assert [entry["step"] for entry in uninterrupted] == [1, 2, 3, 4]


@pytest.mark.long
@pytest.mark.parametrize("method", ["distill", *LONG])
def test_two_processes_are_one(method: str, config: Any, tmp_path: Path) -> None:
    command, settings, changes = options(method)
    file = config(settings, **changes)
    train(command, file, tmp_path / "one")
    processes(2, command, file, "--out", tmp_path / "two")
    # AdamW divides by the root of tiny squares, so another order of summation shows in single weights.
    equal(stored(tmp_path / "one", 4), stored(tmp_path / "two", 4), 1e-3)
    for single, double in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        for name in single:
            if isinstance(single[name], float) and "time" not in name:
                assert double[name] == pytest.approx(single[name], rel=2e-3, abs=1e-5), name


@pytest.mark.long
def test_what_two_processes_began_one_goes_on_with(config: Any, tmp_path: Path) -> None:
    processes(2, "distill", config(DISTILL, steps=2), "--out", tmp_path / "run")
    train("distill", config(DISTILL), tmp_path / "run", "latest")
    train("distill", config(DISTILL), tmp_path / "whole")
    equal(stored(tmp_path / "whole", 4), stored(tmp_path / "run", 4), 1e-3)


@pytest.mark.long
def test_a_checkpoint_that_lost_one_of_its_files_is_not_read(config: Any, tmp_path: Path) -> None:
    file = config(DISTILL, steps=2)
    processes(2, "distill", file, "--out", tmp_path / "run")
    shards = sorted((tmp_path / "run/checkpoints/step-0000002").glob("*.safetensors"))
    assert len(shards) == 2
    for number, message in ((0, "has lost a part of"), (1, "has lost a part of|is of another model")):
        copy = tmp_path / f"lost-{number}"
        shutil.copytree(tmp_path / "run", copy)
        (copy / "checkpoints/step-0000002" / shards[number].name).unlink()
        with pytest.raises(UsageError, match=message):
            train("distill", config(DISTILL), copy, "latest")


def test_everything_learns_and_the_frozen_does_not(config: Any, tmp_path: Path) -> None:
    train("distill", config(DISTILL), tmp_path / "run")
    before, after = stored(tmp_path / "run", 2), stored(tmp_path / "run", 4)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    # Some weights of Wan's norms get no gradient, because nothing depends on their scale at first.
    for role in ("student", "fake", "judge", "average.student"):
        own = {name for name in after if name.startswith(f"{role}.")}
        assert len(own & moved) > 0.9 * len(own), role
    # The EMA differs from the weights and from its earlier values.
    name = "blocks.0.attn1.to_q.weight"
    assert not torch.equal(after[f"average.student.{name}"], after[f"student.{name}"])


@pytest.mark.long
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
    command, settings, _ = options(method)
    predictions: list[torch.Tensor] = []

    def predict(example: Any, method: Any, *_: Any) -> Any:
        with torch.no_grad():
            predictions.append(
                method.student.predict_velocity(example.clean, torch.ones(len(example.clean)), example.conditions)
            )
        return np.zeros((1, 16, 16, 3), np.uint8)

    monkeypatch.setattr(commands, "_render_comparison", predict)
    train(command, config(settings, **mixture, evaluation={"every": 1, "clips": 1}), tmp_path / "run")
    train(command, config(settings, **mixture), tmp_path / "blind")
    equal(stored(tmp_path / "run", 4), stored(tmp_path / "blind", 4))
    trained = trained_model.load(tmp_path / "run", torch.device("cpu"))
    assert trained.metadata is not None
    run_config = config_module.parse_stored(trained.metadata.kind, trained.metadata.config, "config")
    example_encoder = ExampleEncoder(model, run_config.model, run_config.data, torch.device("cpu"))
    example = pick_held_out(run_config, example_encoder, {})[0]
    with torch.no_grad():
        expected = trained.network.predict_velocity(example.clean, torch.ones(len(example.clean)), example.conditions)
    assert torch.allclose(predictions[-1], expected, atol=1e-5)


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
    entry = logged(tmp_path / "run")[0]
    assert ("ot/diagonal" in entry) == (changes.get("objective") is None and changes.get("transport", 1) is not None)
    assert ("judge/loss" in entry) == (changes.get("gan", 1) is not None and changes.get("objective") != "published")


def test_the_teacher_sees_no_adapter_and_the_student_its_own(model: Path) -> None:
    from training.models.networks import Conditions, Denoiser, add_adapters, load

    bare, adapted = load(model, torch.float32), add_adapters(load(model, torch.float32), 4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1 if ".student." in name else 0.2)
    generator = torch.Generator().manual_seed(0)
    noisy, context, text = (
        torch.randn(shape, generator=generator) for shape in ((1, 16, 3, 4, 4), (1, 96, 3, 4, 4), (1, 8, 32))
    )
    predictions = {}
    for role in (None, "student", "fake", None):
        predictions[role] = Denoiser(adapted, torch.float32, role).predict_velocity(
            noisy, torch.ones(1), Conditions(text, context)
        )
    plain = Denoiser(bare, torch.float32).predict_velocity(noisy, torch.ones(1), Conditions(text, context))
    assert torch.equal(predictions[None], plain)
    assert not torch.allclose(predictions["student"], plain)
    assert not torch.allclose(predictions["student"], predictions["fake"])


def test_a_network_is_narrowed_as_diffusers_loads_it(model: Path) -> None:
    narrowed = networks.cast_weights(networks.load(model, torch.float32), torch.bfloat16)
    for name, parameter in networks.load(model, torch.bfloat16).named_parameters():
        cast = narrowed.get_parameter(name)
        assert cast.dtype == parameter.dtype, name
        assert torch.equal(cast, parameter), name


def test_time_is_embedded_in_float32_whatever_the_rest_computes_in(model: Path, config: Any) -> None:
    settings = config_module.load(config(DISTILL, model={"dtype": "bfloat16"}), config_module.Distill)
    embeddings: dict[torch.dtype, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(2)
    noisy = torch.randn((1, 16, 3, 4, 4), generator=generator)
    conditions = Conditions(
        torch.randn((1, 8, 32), generator=generator), torch.randn((1, 96, 3, 4, 4), generator=generator)
    )
    with join_world() as world, torch.no_grad():
        sharded = assemble.build_distillation(settings, model, world).student
        for network in (sharded, Denoiser(networks.load(model, torch.float32), torch.float32)):

            def record(_module: Any, _inputs: Any, output: torch.Tensor, dtype: torch.dtype = network.dtype) -> None:
                embeddings[dtype] = output

            networks.get_time_embedder(network.transformer).register_forward_hook(record)
            network.predict_velocity(noisy, torch.tensor([0.9375]), conditions)
    assert torch.equal(embeddings[torch.bfloat16], embeddings[torch.float32])
