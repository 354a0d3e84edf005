"""The command line `vdot-train`. Logs go to stderr, results to stdout; torchrun starts it on several GPUs:

torchrun --nproc-per-node 8 -m training.cli distill CONFIG.yaml --out RUN
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from annotators.weights import MissingWeights
from pipeline import extras
from pipeline.errors import RunError, UsageError
from pipeline.storage.object_store import StorageError

console = Console(stderr=True)
app = typer.Typer(
    help="Teach a VACE model, distil it into a few steps, sample and export it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Argument(help="A configuration (YAML); see training/configs.")]
Out = Annotated[Path, typer.Option(help="The folder of the run.", show_default=False)]
Resume = Annotated[str | None, typer.Option(help="Resume from a checkpoint: latest, or its folder.")]
Trained = Annotated[Path, typer.Argument(help="A run, a checkpoint of one, or an export.")]


@app.command()
def teach(config: Config, out: Out, resume: Resume = None) -> None:
    """Train a VACE model by flow matching, from scratch or from a checkpoint."""
    from training import commands

    commands.teach(config, out, resume)


@app.command()
def distill(config: Config, out: Out, resume: Resume = None) -> None:
    """Distil a VACE model into a few steps: distribution matching, optimal transport and a discriminator."""
    from training import commands

    commands.distill(config, out, resume)


@app.command()
def plan(
    config: Config,
    teaching: Annotated[bool, typer.Option("--teach", help="The configuration is for `teach`.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="GPUs of the run.")] = 1,
    memory_gb: Annotated[
        float | None, typer.Option(min=1, help="Memory of each GPU in GB; refuse what exceeds it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Estimate the memory that a run needs on each GPU, before anything is loaded."""
    from training import commands

    estimate = commands.plan_memory(config, teaching, devices)
    for part in estimate.parts:
        console.print(f"{part.size / 1e9:8.2f} GB  {part.name} ({part.detail})", highlight=False, soft_wrap=True)
    bucket = estimate.bucket
    console.print(
        f"{estimate.total / 1e9:8.2f} GB on each of {devices}, for {estimate.clips} x {bucket.task} "
        f"{bucket.frames}x{bucket.height}x{bucket.width}, an estimate\n"
        f"{estimate.host / 1e9:8.2f} GB of the host for each process, while networks are loaded",
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        part_bytes = {part.name: round(part.size) for part in estimate.parts}
        sizes = {"bytes": round(estimate.total), "parts": part_bytes, "host_bytes": round(estimate.host)}
        typer.echo(json.dumps({**sizes, "devices": devices}))
    if memory_gb is not None:
        estimate.check_fits(memory_gb * 1e9)


@app.command()
def sample(
    trained: Trained,
    out: Annotated[Path, typer.Option(help="The video, an mp4.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What the video should show.")] = "",
    video: Annotated[Path | None, typer.Option(help="A control track, or what a mask keeps.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A video: white where content is generated.")] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="A picture (PNG, JPEG or WebP) of a subject to show; repeatable.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="4n + 1 frames, 16 a second.")] = 81,
    height: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = 480,
    width: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = 832,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
) -> None:
    """Make a video with a trained model, by the schedule stored with it."""
    from training import commands

    commands.sample(trained, out, prompt, video, mask, reference or [], (frames, height, width), seed)


@app.command()
def export(
    trained: Trained,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.", show_default=False)],
    lora: Annotated[bool, typer.Option("--lora", help="Only the adapters.")] = False,
) -> None:
    """Write a trained model for other tools: a folder for `WanVACEPipeline.from_pretrained`, with a model card."""
    from training import commands

    commands.export(trained, out, lora)


@app.command()
def convert(
    weights: Annotated[
        list[Path],
        typer.Argument(
            help="Safetensors of one VACE transformer, or a file of adapters (LoRA) to one.", dir_okay=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="A file that does not exist yet.", show_default=False)],
) -> None:
    """Rename a transformer's weights, or adapters, from the original VACE names (ComfyUI, LightX2V, DiffSynth) to
    diffusers' names, or back."""
    from training.export import conversion

    conversion.convert(weights, out)


def configure_logging() -> None:
    """Send logs to stderr: formatted on a terminal, otherwise as plain lines."""
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else logging.StreamHandler()
    logging.basicConfig(format="%(message)s", handlers=[handler])
    for name in ("vdot_data", "training"):
        logging.getLogger(name).setLevel(logging.INFO)


def main() -> None:
    """Run the command line. Exit status: 0 done, 1 a run that failed, 2 bad arguments."""
    configure_logging()
    try:
        app()
    except (UsageError, MissingWeights) as error:
        _exit_with_error(2, str(error))
    except ImportError as error:
        advice = extras.suggest_install(error, "train")
        if advice is None:
            raise
        _exit_with_error(2, advice)
    except (RunError, StorageError, OSError) as error:
        _exit_with_error(1, str(error))


def _exit_with_error(status: int, message: str) -> NoReturn:
    console.print(f"vdot-train: {message}", style="red", highlight=False, soft_wrap=True, markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
