"""Adapters as other programs load them: under diffusers' or the original names, correctly scaled."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanVACEPipeline, WanVACETransformer3DModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tiny_run import DISTILL, train

from pipeline.errors import UsageError
from training import commands
from training.export import conversion
from training.models import networks, weight_names

pytestmark = pytest.mark.usefixtures("one_thread")
Tensors = dict[str, torch.Tensor]
ADAPTERS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The warnings of diffusers from now on, whatever verbosity a trainer has set."""
    logger = logging.getLogger("diffusers")
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = True
    yield lambda: [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    logger.setLevel(before[0])
    logger.propagate = before[1]


def pipeline(folder: Path) -> Any:
    """diffusers' pipeline with only a model's transformer, which is enough for adapters."""
    transformer = WanVACETransformer3DModel.from_pretrained(folder / "transformer")
    return WanVACEPipeline(None, None, None, FlowMatchEulerDiscreteScheduler(), transformer)


def velocity(transformer: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    with torch.no_grad():
        return transformer(
            hidden_states=normal(1, 16, 3, 4, 4), timestep=torch.tensor([800.0]),
            encoder_hidden_states=normal(1, 8, 32), control_hidden_states=normal(1, 96, 3, 4, 4), return_dict=False,
        )[0]  # fmt: skip


def add_random_adapter(folder: Path, **settings: Any) -> Any:
    """A transformer with a random adapter."""
    transformer = networks.load(folder, torch.float32)
    config = {"r": 4, "lora_alpha": 4, "target_modules": networks.LORA_TARGETS} | settings
    transformer.add_adapter(LoraConfig(**config), adapter_name="student")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in transformer.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return transformer


def save_adapter(transformer: Any, folder: Path, metadata: bool = False) -> Path:
    """The adapter of a transformer as diffusers saves it."""
    settings = transformer.peft_config["student"].to_dict() if metadata else None
    layers = get_peft_model_state_dict(transformer, adapter_name="student")
    WanVACEPipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings
    )
    return folder / ADAPTERS


def fuse_adapter(transformer: Any) -> Tensors:
    transformer.fuse_lora(adapter_names=["student"])
    transformer.unload_lora()
    return dict(transformer.state_dict())


def apply_adapters(base: Tensors, adapters: Tensors) -> tuple[Tensors, int]:
    """Original weights plus an original adapter file, read like ComfyUI's generic map; and the number of its layers."""
    actual = dict(base)
    downs = [name for name in adapters if name.endswith(".lora_A.weight")]
    for name in downs:
        layer = name.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
        up = adapters[name.replace("lora_A", "lora_B")]
        actual[f"{layer}.weight"] = base[f"{layer}.weight"] + up @ adapters[name]
    assert 2 * len(downs) == len(adapters)
    return actual, len(downs)


def assert_close(actual: Tensors, expected: Tensors) -> None:
    assert actual.keys() == expected.keys()
    assert all(torch.allclose(actual[name], expected[name], atol=1e-5) for name in expected)


def test_an_export_is_what_diffusers_and_comfyui_load(
    config: Any, model: Path, tmp_path: Path, complaints: Callable[[], list[str]]
) -> None:
    train("distill", config(DISTILL, model={"lora_rank": 4}, steps=2), tmp_path / "run")
    commands.export(tmp_path / "run", tmp_path / "whole")
    commands.export(tmp_path / "run", tmp_path / "adapters", lora=True)
    card = (tmp_path / "adapters/README.md").read_text()
    assert "pipe.load_lora_weights(folder)" in card
    names = load_file(tmp_path / "adapters" / ADAPTERS)
    assert all(name.startswith("transformer.") for name in names)

    pipe = pipeline(model)
    before = velocity(pipe.transformer)
    pipe.load_lora_weights(tmp_path / "adapters")
    assert complaints() == []
    layers = [name for name, module in pipe.transformer.named_modules() if hasattr(module, "lora_A")]
    trained = networks.add_adapters(networks.load(model, torch.float32), 4, ("student",))
    assert len(layers) == sum(hasattr(module, "lora_A") for module in trained.modules()) == len(names) // 2 == 50
    fused_export = pipeline(tmp_path / "whole").transformer
    expected = velocity(fused_export)
    assert torch.allclose(velocity(pipe.transformer), expected, atol=1e-6)
    assert (before - expected).abs().max() > 1e-4

    conversion.convert([tmp_path / "adapters" / ADAPTERS], tmp_path / "original.safetensors")
    base = weight_names.to_original(networks.load(model, torch.float32).state_dict())
    merged, count = apply_adapters(base, load_file(tmp_path / "original.safetensors"))
    assert count == 50
    assert_close(merged, weight_names.to_original(fused_export.state_dict()))
    conversion.convert([tmp_path / "original.safetensors"], tmp_path / "again.safetensors")
    restored = load_file(tmp_path / "again.safetensors")
    assert restored.keys() == names.keys()
    assert all(torch.equal(restored[name], names[name]) for name in names)


def test_names_without_a_prefix_of_earlier_exports_are_read(tiny: Path, tmp_path: Path) -> None:
    transformer = add_random_adapter(tiny)
    transformer.save_lora_adapter(tmp_path / "old", adapter_name="student")
    assert next(iter(load_file(tmp_path / "old" / ADAPTERS))).startswith("blocks.")
    for name, file in (("old", tmp_path / "old" / ADAPTERS), ("new", save_adapter(transformer, tmp_path / "new"))):
        conversion.convert([file], tmp_path / f"{name}.safetensors")
    old, new = (load_file(tmp_path / f"{name}.safetensors") for name in ("old", "new"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in new)


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": 4},
        {"lora_alpha": 1},
        {"lora_alpha": 32},
        {"lora_alpha": 12, "use_rslora": True},
        {"lora_alpha": 8, "alpha_pattern": {"to_q": 2, "^blocks.0.ffn.net.2": 16}},
        {"lora_alpha": 8, "rank_pattern": {"to_q": 2, r"vace_blocks\.0\.attn1\.to_k": 8}, "alpha_pattern": {"to_q": 3}},
    ],
)
def test_the_scale_of_an_adapter_of_diffusers_is_kept(
    settings: dict[str, Any], tiny: Path, tmp_path: Path, complaints: Callable[[], list[str]]
) -> None:
    file = save_adapter(add_random_adapter(tiny, **settings), tmp_path / "saved", metadata=True)
    expected = fuse_adapter(add_random_adapter(tiny, **settings))
    conversion.convert([file], tmp_path / "original.safetensors")
    base = weight_names.to_original(networks.load(tiny, torch.float32).state_dict())
    assert_close(
        apply_adapters(base, load_file(tmp_path / "original.safetensors"))[0], weight_names.to_original(expected)
    )
    # And back: diffusers then loads the same change of every layer.
    conversion.convert([tmp_path / "original.safetensors"], tmp_path / "back.safetensors")
    pipe = pipeline(tiny)
    pipe.load_lora_weights(tmp_path / "back.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert_close(dict(pipe.transformer.state_dict()), expected)
    assert complaints() == []


BLOCK_LAYERS = [*(f"{kind}_attn.{name}" for kind in ("self", "cross") for name in "qkvo"), "ffn.0", "ffn.2"]
OUTER_LAYERS = [*(f"{kind}_embedding.{number}" for kind in ("text", "time") for number in (0, 2))]
OUTER_LAYERS += ["time_projection.1", "head.head"]


def make_original(style: str, dtype: torch.dtype, alpha: float | None, bias: bool = False) -> Tensors:
    """The tensors of another tool's file, with all kinds of layers that diffusers reads."""
    generator = torch.Generator().manual_seed(2)
    names = [f"blocks.{block}.{layer}" for block in range(3) for layer in BLOCK_LAYERS]
    # diffusers reads no alpha of these.
    names += OUTER_LAYERS if alpha is None else []
    down, up = ("lora_A", "lora_B") if style == "AB" else ("lora_down", "lora_up")
    tensors: Tensors = {}
    for number, name in enumerate(names):
        layer = f"lora_unet_{name.replace('.', '_')}" if style == "kohya" else f"diffusion_model.{name}"
        rank = 4 if alpha is None else 2 + number % 3
        tensors[f"{layer}.{down}.weight"] = torch.randn(rank, 24, generator=generator).to(dtype)
        tensors[f"{layer}.{up}.weight"] = torch.randn(24, rank, generator=generator).to(dtype)
        if alpha is not None:
            tensors[f"{layer}.alpha"] = torch.tensor(alpha + number % 2)
        if bias:
            tensors[f"{layer}.diff_b"] = torch.randn(24, generator=generator).to(dtype)
    return tensors


@pytest.mark.parametrize(
    "tensors",
    [
        make_original("AB", torch.float32, None),
        make_original("AB", torch.bfloat16, None, bias=True),
        make_original("AB", torch.float16, 0.001),
        make_original("down", torch.float32, None),
        make_original("down", torch.bfloat16, 1.0),
        make_original("down", torch.float16, 3.0, bias=True),
        make_original("kohya", torch.bfloat16, 2.0),
        make_original("kohya", torch.float32, 64.0),
    ],
    ids=str([*range(8)])[1:-1].split(", "),
)
def test_what_others_saved_is_converted_as_diffusers_would(tensors: Tensors, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "theirs.safetensors")
    conversion.convert([tmp_path / "theirs.safetensors"], tmp_path / "ours.safetensors")
    expected = WanVACEPipeline.lora_state_dict(tmp_path / "theirs.safetensors")
    actual = load_file(tmp_path / "ours.safetensors")
    assert actual.keys() == expected.keys()
    assert all(actual[name].dtype == expected[name].dtype for name in expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_original_names_of_blocks_are_what_diffusers_reads(tiny: Path, tmp_path: Path) -> None:
    file = save_adapter(add_random_adapter(tiny, target_modules=r"blocks\.\d+\..*(to_q|to_out\.0|net\.2)"), tmp_path)
    conversion.convert([file], tmp_path / "original.safetensors")
    pipe = pipeline(tiny)
    pipe.load_lora_weights(tmp_path / "original.safetensors")
    actual = get_peft_model_state_dict(pipe.transformer, adapter_name="default_0")
    expected = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_other_tools_prefixes_are_read(tmp_path: Path) -> None:
    pair = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)}
    for prefix, ending in (
        ("", ""), ("diffusion_model.", ""), ("model.diffusion_model.", ""), ("base_model.model.", ""),
        ("pipe.dit.", ".default"), ("transformer.", ""),
    ):  # fmt: skip
        tensors = {}
        for name, tensor in pair.items():
            part, _, weight = name.partition(".")
            tensors[f"{prefix}vace_blocks.1.before_proj.{part}{ending}.{weight}"] = tensor
        save_file(tensors, tmp_path / "theirs.safetensors")
        conversion.convert([tmp_path / "theirs.safetensors"], tmp_path / "ours.safetensors")
        actual = load_file(tmp_path / "ours.safetensors")
        assert [*actual] == [f"transformer.vace_blocks.1.proj_in.{name}" for name in pair], prefix
        (tmp_path / "ours.safetensors").unlink()


def test_what_is_no_adapter_of_a_vace_transformer_is_named(tmp_path: Path) -> None:
    down, up = torch.zeros(2, 4), torch.zeros(4, 2)
    query = "diffusion_model.blocks.0.self_attn.q"
    good = {f"{query}.lora_A.weight": down, f"{query}.lora_B.weight": up}
    out = tmp_path / "out.safetensors"
    for tensors, message in (
        (
            {"text_model.q.lora_A.weight": down, "text_model.q.lora_B.weight": up},
            "'text_model.q' is not a layer of a VACE",
        ),
        ({f"{query}.lora_A.weight": down}, "'blocks.0.self_attn.q' lacks the matrix up"),
        ({f"{query}.lora_A.weight": down, f"{query}.lora_B.weight": down}, "which do not fit together"),
        (good | {f"{query}.alpha": torch.zeros(3)}, r"an alpha of \[3\], and one number is needed"),
        (good | {f"{query}.alpha": torch.tensor(float("nan"))}, "is scaled by nan"),
        (good | {f"{query}.dora_scale": torch.zeros(4)}, "dora_scale' does not belong to a LoRA"),
        (good | {"diffusion_model.blocks.0.norm3.diff": torch.ones(4)}, r"a full difference \(\.diff\)"),
        (good | {"diffusion_model.blocks.0.norm3.diff_b": torch.ones(4)}, "only a bias, which a LoRA cannot hold"),
        (good | {"transformer.blocks.1.attn1.to_q.lora_A.weight": down}, "is not a layer of a VACE transformer"),
        (good | {"blocks.0.self_attn.q.lora_down.weight": down}, "appears twice, under different names"),
        (good | {"head.head.weight": down}, "'head.head.weight' does not belong to a LoRA"),
    ):
        save_file({name: tensor.clone() for name, tensor in tensors.items()}, tmp_path / "bad.safetensors")
        with pytest.raises(UsageError, match=f"bad.safetensors: .*{message}"):
            conversion.convert([tmp_path / "bad.safetensors"], out)
    for settings in ("{", "[1]", '{"lora_alpha": "much"}', '{"lora_alpha": 1, "alpha_pattern": {"(": 2}}'):
        save_file(good, tmp_path / "bad.safetensors", {"lora_adapter_metadata": settings})
        with pytest.raises(UsageError, match="header's lora_adapter_metadata cannot be read"):
            conversion.convert([tmp_path / "bad.safetensors"], out)
    for name in "ab":
        save_file({f"{query[:-1]}{'qk'[name == 'b']}.{end}": tensor.clone() for end, tensor in
                   (("lora_A.weight", down), ("lora_B.weight", up))}, tmp_path / f"{name}.safetensors")  # fmt: skip
    with pytest.raises(UsageError, match="adapters are converted one file at a time"):
        conversion.convert([tmp_path / "a.safetensors", tmp_path / "b.safetensors"], out)
    assert not out.exists()


def test_differences_of_nothing_are_left_out(tmp_path: Path) -> None:
    query = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{query}.lora_A.weight": torch.ones(2, 4), f"{query}.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors | {"diffusion_model.blocks.0.norm3.diff": torch.zeros(4)}, tmp_path / "theirs.safetensors")
    conversion.convert([tmp_path / "theirs.safetensors"], tmp_path / "ours.safetensors")
    assert len(load_file(tmp_path / "ours.safetensors")) == 2


def test_a_file_of_several_ranks_says_so_to_every_version_of_diffusers(tmp_path: Path) -> None:
    from safetensors import safe_open

    tensors = {
        f"diffusion_model.{layer}.lora_{part}.weight": torch.ones((rank, 4) if part == "A" else (4, rank))
        for layer, rank in {"blocks.0.self_attn.q": 2, "blocks.1.self_attn.q": 2, "head.head": 3}.items()
        for part in "AB"
    }
    save_file(tensors, tmp_path / "theirs.safetensors")
    conversion.convert([tmp_path / "theirs.safetensors"], tmp_path / "ours.safetensors")
    with safe_open(tmp_path / "ours.safetensors", "pt") as opened:
        settings = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert settings["transformer.r"] == settings["transformer.lora_alpha"] == 2
    assert settings["transformer.rank_pattern"] == settings["transformer.alpha_pattern"] == {"^proj_out": 3}
