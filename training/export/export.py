"""Export of a trained model: a folder for `WanVACEPipeline.from_pretrained`, with its schedule and a model card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pipeline.errors import RunError, UsageError
from pipeline.storage.atomic import new_folder
from training.export.trained_model import SCHEDULE, TrainedModel
from training.models import assemble
from training.models import folder as model_folder
from training.models.networks import STUDENT
from training.sampling.samplers import StudentSampler
from training.trainer.checkpoint import Metadata

# The code in a model card that loads the model from `folder`.
_LOADED = "pipe = WanVACEPipeline.from_pretrained(folder)\n"
_LOADED_LORA = 'pipe = WanVACEPipeline.from_pretrained("{base}")\npipe.load_lora_weights(folder)\n'
# For programs that do not read diffusers' layer names.
_CONVERTED = (
    "\n- **Other programs**: ComfyUI, LightX2V and DiffSynth read the names of the original release: `vdot-train "
    "convert\n  pytorch_lora_weights.safetensors --out FILE.safetensors`. Strength 1; there is no alpha."
)
_PARTS = ("vae", "text_encoder", "tokenizer")


def export(trained: TrainedModel, out: Path, *, lora: bool = False) -> None:
    """Write the EMA of a run's student atomically as a folder in diffusers' layout; or, with `lora`, as LoRA files that
    need the base model.

    Raises UsageError if `out` exists, or there is no LoRA; RunError if it cannot be written.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: choose another folder")
    if trained.metadata is None:
        raise UsageError(f"{trained.folder} is an export already")
    if lora and trained.network.adapter is None:
        raise UsageError("this student has no adapters, because it was trained in full: export it without --lora")
    try:
        with new_folder(out) as unfinished:
            (_save_lora if lora else _save_full)(trained, unfinished)
            _save_scheduler(trained, unfinished)
            (unfinished / SCHEDULE).write_text(json.dumps(_describe_training(trained, trained.metadata), indent=1))
            (unfinished / "README.md").write_text(_render_card(trained, trained.metadata, lora))
            # safetensors makes files readable by their owner only.
            mode = (unfinished / "README.md").stat().st_mode
            for file in unfinished.rglob("*.safetensors"):
                file.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{out} cannot be written: {error}") from error


def _save_lora(trained: TrainedModel, out: Path) -> None:
    from diffusers import WanVACEPipeline
    from peft import get_peft_model_state_dict

    # Without the settings of peft, which other versions may not know: they would only state the rank, and scale 1.
    layers = get_peft_model_state_dict(trained.network.transformer, adapter_name=STUDENT)
    WanVACEPipeline.save_lora_weights(out, transformer_lora_layers=layers)


def _save_full(trained: TrainedModel, out: Path) -> None:
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
        "tokenizer": ["transformers", _tokenizer_class(trained.folder)],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    (out / "model_index.json").write_text(json.dumps(classes, indent=2))


def _save_scheduler(trained: TrainedModel, out: Path) -> None:
    from training.sampling import diffusers_scheduler

    sampler = trained.sampler
    scheduler = (
        diffusers_scheduler.make_scheduler(sampler.schedule)
        if isinstance(sampler, StudentSampler)
        else diffusers_scheduler.make_teacher_scheduler(sampler.shift)
    )
    scheduler.save_pretrained(out / "scheduler")


def _tokenizer_class(folder: Path) -> str:
    """The tokenizer class for a pipeline's index; tokenizers saved as one file load as `AutoTokenizer`."""
    try:
        config = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
        return str(config["tokenizer_class"])
    except (OSError, ValueError, KeyError, TypeError):
        return "AutoTokenizer"


def _describe_training(trained: TrainedModel, metadata: Metadata) -> dict[str, Any]:
    """The content of `trained_model.Exported`."""
    earlier = [{"step": entry.step, "config": _strip_private(entry.config)} for entry in metadata.earlier]
    history = {
        "step": metadata.step,
        "mixture": metadata.stream.mixture,
        "config": _strip_private(metadata.config),
        "earlier": earlier,
    }
    return trained.sampler.as_dict() | history


def _strip_private(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without private details: paths on the machine that trained it."""
    model = config["model"] | {"folder": model_folder.title(config["model"]["folder"]), "student": None}
    return config | {"data": None, "model": model}


def _render_card(trained: TrainedModel, metadata: Metadata, lora: bool) -> str:
    model = trained.model
    # The weights derive from the student's model, if that is not the teacher's.
    licence = model_folder.licence(assemble.student_folder(model, trained.folder))
    base = model_folder.title(model.student or model.folder)
    sampler = trained.sampler
    if isinstance(sampler, StudentSampler):
        schedule = sampler.schedule
        steps = ", ".join(f"{time:g}" for time in schedule.as_dict()["timesteps"])
        sampling = (
            f"{schedule.steps} steps at the timesteps {steps} (shift {schedule.shift:g}), new noise after each, no "
            "guidance. Other steps or an ODE sampler give worse videos; diffusers' own schedulers take others. The "
            "pipeline's `generator` decides the first noise alone; `torch.manual_seed` decides all.\n\n"
            "```python\nfrom diffusers import WanVACEPipeline\n"
            "from training import StoredSteps  # vdot-data\n\n"
            'folder = "."  # the folder of this card\n'
            f"{_LOADED_LORA.format(base=base) if lora else _LOADED}"
            'pipe.scheduler = StoredSteps.from_pretrained(folder, subfolder="scheduler")\n'
            "# Also video=, mask=, reference_images=; use the sizes that it was trained on.\n"
            'output = pipe(prompt="...", height=480, width=832, num_frames=81, guidance_scale=1.0,\n'
            f"              num_inference_steps={schedule.steps}, max_sequence_length={model.text_tokens})\n```"
        )
    else:
        sampling = f"{sampler.steps} steps of Euler's method, shift {sampler.shift:g}, guidance {sampler.cfg:g}."
    verb = "distilled" if isinstance(sampler, StudentSampler) else "trained"
    return f"""---
license: {licence}
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-video
---
# {"LoRA of a" if lora else "A"} VACE model {verb} with vdot-data

- **Base**: {base} (licence as its card states it: {licence})
- **Sampling**: {sampling}{_CONVERTED if lora else ""}
- **Training**: {metadata.step} steps, {metadata.updates[STUDENT]} updates of the student; the weights are their moving
  average. All settings: `{SCHEDULE}`{"".join(f"; others until step {entry.step}" for entry in metadata.earlier)}.
- **Data**: mixture {metadata.stream.mixture}, up to position {metadata.stream.position}. The licences of clips are
  in the catalogs of the data sets.

| data set | task | clips | share |
|---|---|---|---|
{"".join(f"| {entry.dataset} | {entry.task} | {entry.clips} | {entry.share} |{chr(10)}" for entry in metadata.data)}"""
