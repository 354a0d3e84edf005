"""The command line of the training side. Logs go to stderr, answers to stdout; torchrun starts it on many GPUs:

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
Resume = Annotated[str | None, typer.Option(help="Go on from a checkpoint: latest, or its folder.")]
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
    teaching: Annotated[bool, typer.Option("--teach", help="The configuration is one of `teach`.")] = False,
    devices: Annotated[int, typer.Option(min=1, help="GPUs of the run.")] = 1,
    memory_gb: Annotated[
        float | None, typer.Option(min=1, help="Memory of each GPU in GB; refuse what exceeds it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """What a run needs of each GPU's memory, before anything is loaded."""
    from training import commands

    made = commands.planned(config, teaching, devices)
    for part in made.parts:
        console.print(f"{part.size / 1e9:8.2f} GB  {part.name} ({part.of})", highlight=False, soft_wrap=True)
    bucket = made.bucket
    console.print(
        f"{made.total / 1e9:8.2f} GB on each of {devices}, for {made.clips} x {bucket.task} "
        f"{bucket.frames}x{bucket.height}x{bucket.width}, an estimate\n"
        f"{made.host / 1e9:8.2f} GB of the host for each process, while networks are loaded",
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        told = {part.name: round(part.size) for part in made.parts}
        sizes = {"bytes": round(made.total), "parts": told, "host_bytes": round(made.host)}
        typer.echo(json.dumps({**sizes, "devices": devices}))
    if memory_gb is not None:
        made.refuse(memory_gb * 1e9)


@app.command()
def sample(
    trained: Trained,
    out: Annotated[Path, typer.Option(help="The video, an mp4.", show_default=False)],
    prompt: Annotated[str, typer.Option(help="What it is to show.")] = "",
    video: Annotated[Path | None, typer.Option(help="A control track, or what is kept under a mask.")] = None,
    mask: Annotated[Path | None, typer.Option(help="A video: white where something is to be made.")] = None,
    reference: Annotated[
        list[Path] | None, typer.Option(help="A picture (PNG, JPEG or WebP) of what is to be seen; repeat it.")
    ] = None,
    frames: Annotated[int, typer.Option(min=1, help="4n + 1 frames, 16 a second.")] = 81,
    height: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = 480,
    width: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = 832,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
) -> None:
    """Make a video with a trained model, by the schedule that is stored with it."""
    from training import commands

    commands.sample(trained, out, prompt, video, mask, reference or [], (frames, height, width), seed)


@app.command()
def export(
    trained: Trained,
    out: Annotated[Path, typer.Option(help="A folder that does not exist yet.", show_default=False)],
    lora: Annotated[bool, typer.Option("--lora", help="The adapters alone.")] = False,
) -> None:
    """Write a trained model for others: a folder that `WanVACEPipeline.from_pretrained` loads, with a model card."""
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
    """Rename a transformer's weights, or adapters: those of the original VACE release (ComfyUI, LightX2V, DiffSynth) as
    diffusers has them, and the other way round."""
    from training.export import conversion

    conversion.convert(weights, out)


def logged() -> None:
    """Show what is logged: dressed on a terminal, else as it is, a line each."""
    handler = RichHandler(console=console, show_path=False) if console.is_terminal else logging.StreamHandler()
    logging.basicConfig(format="%(message)s", handlers=[handler])
    for name in ("vdot_data", "training"):
        logging.getLogger(name).setLevel(logging.INFO)


def main() -> None:
    """Run the command line: exit status 0 for done, 1 for a run that could not go on, 2 for bad arguments."""
    logged()
    try:
        app()
    except (UsageError, MissingWeights) as error:
        _end(2, str(error))
    except ImportError as error:
        advice = extras.suggest_install(error, "train")
        if advice is None:
            raise
        _end(2, advice)
    except (RunError, StorageError, OSError) as error:
        _end(1, str(error))


def _end(status: int, sentence: str) -> NoReturn:
    console.print(f"vdot-train: {sentence}", style="red", highlight=False, soft_wrap=True, markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
