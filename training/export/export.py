"""A trained model as others load it: a folder for `WanVACEPipeline.from_pretrained`, with its schedule and a card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.errors import RunError, UsageError
from training.export.trained_model import SCHEDULE, Trained
from training.models import assemble
from training.models import folder as model_folder
from training.models.networks import STUDENT
from training.sampling.samplers import Few
from training.trainer.checkpoint import Told

# How a card says that a model is loaded; `folder` is where it lies.
_LOADED = "pipe = WanVACEPipeline.from_pretrained(folder)\n"
_LOADED_LORA = 'pipe = WanVACEPipeline.from_pretrained("{base}")\npipe.load_lora_weights(folder)\n'
# Who does not read diffusers' names of layers.
_CONVERTED = (
    "\n- **Other programs**: ComfyUI, LightX2V and DiffSynth read the names of the original release: `vdot-train "
    "convert\n  pytorch_lora_weights.safetensors --out FILE.safetensors`. Strength 1; there is no alpha."
)
_PARTS = ("vae", "text_encoder", "tokenizer")


def export(trained: Trained, out: Path, *, lora: bool = False) -> None:
    """Write the average of a run's student as a folder in diffusers' layout, whole or not at all; or, with `lora`, as
    LoRA files beside which the base is needed.

    Raises UsageError where `out` exists, or there is no LoRA; RunError where it cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another folder")
    if trained.told is None:
        raise UsageError(f"{trained.folder} is an export already")
    if lora and trained.network.adapter is None:
        raise UsageError("this student has no adapters, as it was trained whole: export it without --lora")
    half = out.with_name(f".{out.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    try:
        half.mkdir(parents=True)
        (_lora if lora else _whole)(trained, half)
        _scheduler(trained, half)
        (half / SCHEDULE).write_text(json.dumps(_said(trained, trained.told), indent=1))
        (half / "README.md").write_text(_card(trained, trained.told, lora))
        # safetensors writes files that nobody else can read.
        mode = (half / "README.md").stat().st_mode
        for file in half.rglob("*.safetensors"):
            file.chmod(mode)
        half.rename(out)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(half, ignore_errors=True)
        raise RunError(f"{out} cannot be written: {error}") from error


def _lora(trained: Trained, out: Path) -> None:
    from diffusers import WanVACEPipeline
    from peft import get_peft_model_state_dict

    # Without the settings of peft, which other versions of it may not know: what they say is the rank, and scale 1.
    layers = get_peft_model_state_dict(trained.network.transformer, adapter_name=STUDENT)
    WanVACEPipeline.save_lora_weights(out, transformer_lora_layers=layers)


def _whole(trained: Trained, out: Path) -> None:
    transformer = trained.network.transformer
    if trained.network.adapter is not None:
        transformer.fuse_lora(adapter_names=[STUDENT])
        transformer.unload_lora()
    transformer.save_pretrained(out / "transformer", safe_serialization=True)
    for part in _PARTS:
        shutil.copytree(trained.folder / part, out / part)
    classes = {
        "_class_name": "WanVACEPipeline",
        "transformer": ["diffusers", "WanVACETransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", _tokenizer(trained.folder)],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (out / "model_index.json").write_text(json.dumps(classes, indent=2))


def _scheduler(trained: Trained, out: Path) -> None:
    from training.sampling import diffusers_scheduler

    found = trained.sampling
    made = diffusers_scheduler.of(found.schedule) if isinstance(found, Few) else diffusers_scheduler.taught(found.shift)
    made.save_pretrained(out / "scheduler")


def _tokenizer(folder: Path) -> str:
    """The class that a pipeline is told; tokenizers that are saved as one file load under a general one."""
    try:
        told = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
        return str(told["tokenizer_class"])
    except (OSError, ValueError, KeyError, TypeError):
        return "AutoTokenizer"


def _said(trained: Trained, told: Told) -> dict[str, Any]:
    """What `student.Exported` reads."""
    earlier = [{"step": one.step, "config": _plain(one.config)} for one in told.earlier]
    history = {"step": told.step, "mixture": told.stream.mixture, "config": _plain(told.config), "earlier": earlier}
    return trained.sampling.as_json() | history


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without what is nobody's business: where things lay on the machine that trained it."""
    model = config["model"] | {"folder": model_folder.title(config["model"]["folder"]), "student": None}
    return config | {"data": None, "model": model}


def _card(trained: Trained, told: Told, lora: bool) -> str:
    model = trained.model
    # The weights began as the student's, where that is another model than the teacher.
    licence = model_folder.licence(assemble.student_folder(model, trained.folder))
    base = model_folder.title(model.student or model.folder)
    found = trained.sampling
    if isinstance(found, Few):
        schedule = found.schedule
        steps = ", ".join(f"{time:g}" for time in schedule.as_json()["timesteps"])
        how = (
            f"{schedule.steps} steps at the timesteps {steps} (shift {schedule.shift:g}), new noise after each, no "
            "guidance. Other steps or an ODE sampler give worse videos; diffusers' own schedulers make others. The "
            "pipeline's `generator` decides the first noise alone; `torch.manual_seed` decides all.\n\n"
            "```python\nfrom diffusers import WanVACEPipeline\n"
            "from training import StoredSteps  # vdot-data\n\n"
            'folder = "."  # where this card lies\n'
            f"{_LOADED_LORA.format(base=base) if lora else _LOADED}"
            'pipe.scheduler = StoredSteps.from_pretrained(folder, subfolder="scheduler")\n'
            "# And video=, mask=, reference_images=; the sizes are those of what it was trained on.\n"
            'made = pipe(prompt="...", height=480, width=832, num_frames=81, guidance_scale=1.0,\n'
            f"            num_inference_steps={schedule.steps}, max_sequence_length={model.text_tokens})\n```"
        )
    else:
        how = f"{found.steps} steps of Euler's method, shift {found.shift:g}, guidance {found.cfg:g}."
    return f"""---
license: {licence}
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-video
---
# {"LoRA of a" if lora else "A"} VACE model {"distilled" if isinstance(found, Few) else "trained"} with vdot-data

- **Base**: {base} (licence as its card states it: {licence})
- **Sampling**: {how}{_CONVERTED if lora else ""}
- **Training**: {told.step} steps, {told.updates[STUDENT]} updates of the student; the weights are their moving
  average. All settings: `{SCHEDULE}`{"".join(f"; others until step {one.step}" for one in told.earlier)}.
- **Data**: mixture {told.stream.mixture}, up to position {told.stream.position}. Licences of clips stand in the
  catalogs of the data sets.

| data set | task | clips | share |
|---|---|---|---|
{"".join(f"| {one.dataset} | {one.task} | {one.clips} | {one.share} |{chr(10)}" for one in told.data)}"""
