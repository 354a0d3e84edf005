"""The command line of the data side. Progress and tables go to stderr, answers to stdout."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import duckdb
import typer
from rich.console import Console
from rich.logging import RichHandler

from pipeline import extras
from pipeline.cli import curation
from pipeline.cli.options import (
    Address,
    Cpus,
    Exclude,
    Json,
    Limit,
    Out,
    Recipe,
    Sources,
    Workers,
    console,
    keep_stderr,
    print_json,
    show,
)
from pipeline.errors import RunError, UsageError
from pipeline.stop import interrupt_at_sigterm
from pipeline.storage.object_store import StorageError

app = typer.Typer(
    help="From raw video to annotated, filtered, explainable training shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# What typer exits with for Ctrl-C.
_INTERRUPTED = 130


def _version(requested: bool) -> None:
    if requested:
        import pipeline

        typer.echo(pipeline.version())
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


@app.command()
def ingest(
    sources: Sources,
    out: Annotated[str, typer.Option(help="Where the dataset goes: a folder or any fsspec URL.", show_default=False)],
    recipe: Recipe = None,
    exclude: Exclude = None,
    limit: Limit = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Do not trust size and date: hash known sources again.")
    ] = False,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Bring raw videos in: clips, tracks, signals and verdicts, in shards and a catalog. Run it again to resume."""
    from pipeline.cli.tables import Display
    from pipeline.ingest.commands import ingest as run

    with Display(console) as display:
        summary = run(
            sources,
            out,
            recipe_file=recipe,
            exclude=exclude,
            limit=limit,
            rehash=rehash,
            address=address,
            cpus=cpus,
            watcher=display,
        )
    _close(summary, as_json)


@app.command()
def plan(
    sources: Sources,
    out: Annotated[
        str | None, typer.Option(help="The dataset they would go to; only what is new to it counts.")
    ] = None,
    recipe: Recipe = None,
    exclude: Exclude = None,
    limit: Limit = None,
    probe: Annotated[int, typer.Option(min=3, help="Sources to ingest for it, here, into scratch.")] = 20,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs of the cluster to estimate for; this machine's by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Estimate what an ingest would make, take and cost from a few of its sources; exits with 1 if it would fail."""
    from pipeline.cli.tables import Display, describe_plan
    from pipeline.ingest import forecast as planning
    from pipeline.upkeep.checks import has_failure

    with Display(console) as display:
        result = planning.plan(
            sources, out, recipe_file=recipe, exclude=exclude, limit=limit, probe=probe, cpus=cpus, watcher=display
        )
    show(describe_plan(result), result.as_dict() if as_json else None)
    if has_failure(result.checks):
        raise typer.Exit(1)


@app.command()
def annotate(
    out: Out,
    annotator: Annotated[str, typer.Option("--with", help="The annotator that makes the layer.", show_default=False)],
    retry: Annotated[bool, typer.Option("--retry", help="Try again where it failed.")] = False,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Add one more layer to the clips that exist."""
    from pipeline.cli.tables import Display
    from pipeline.ingest.commands import annotate as run

    with Display(console) as display:
        summary = run(out, annotator, retry=retry, address=address, cpus=cpus, watcher=display)
    _close(summary, as_json)


@app.command()
def retry(
    out: Out,
    recipe: Annotated[Path | None, typer.Option(help="Another recipe; by default the one OUT was made with.")] = None,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Try every failed source and clip once more."""
    from pipeline.cli.tables import Display
    from pipeline.ingest.commands import retry as run

    with Display(console) as display:
        summary = run(out, recipe_file=recipe, address=address, cpus=cpus, watcher=display)
    _close(summary, as_json)


@app.command()
def dedup(
    out: Out,
    threshold: Annotated[
        float | None, typer.Option(help="The least cosine of clips that show the same; chosen by measurement.")
    ] = None,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Find clips that show the same (re-encoded, cropped, mirrored), and the best of each group."""
    from pipeline.cli.tables import Display
    from pipeline.curation import dedup as pass_

    with Display(console) as display:
        least_cosine = pass_.THRESHOLD if threshold is None else threshold
        result = pass_.dedup(out, threshold=least_cosine, address=address, cpus=cpus, watcher=display)
    console.print(pass_.format_summary(result), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print_json(result)


@app.command()
def verify(
    out: Out,
    workers: Workers = None,
    mark_failed: Annotated[
        bool, typer.Option("--mark-failed", help="Record what is damaged as failed, for `retry` to make it again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every row of the catalog against the bytes; lists what is wrong and exits with 1 if anything is."""
    from pipeline.upkeep import mark_damaged
    from pipeline.upkeep import verify as checks

    report = checks.verify(out, workers)
    if as_json:
        print_json(report)
    else:
        for line in checks.problem_lines(report):
            typer.echo(line)
    console.print(checks.format_summary(report), highlight=False, soft_wrap=True, markup=False)
    if mark_failed and report.damage:
        marked = mark_damaged.mark_failed(report)
        console.print(f"marked as failed: {marked} clips and layers; `vdot-data retry` makes them again", markup=False)
    if report.count:
        raise typer.Exit(1)


@app.command()
def forget(
    out: Out,
    what: Annotated[str, typer.Argument(help="A clip id or the beginning of one; a source's URI or file name.")],
    reason: Annotated[str | None, typer.Option(help="Kept in the record of what was removed.")] = None,
    as_json: Json = False,
) -> None:
    """Remove a clip, or a source and all of its clips, for good: rows and bytes. It cannot come back."""
    from pipeline.upkeep import forget as forgetting

    result = forgetting.forget(out, what, reason)
    console.print(forgetting.format_summary(result), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print_json(result)


app.add_typer(curation.commands)


@app.command()
def doctor(
    out: Annotated[str | None, typer.Argument(help="A dataset to check too.", show_default=False)] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Check this machine, a dataset and every node of a cluster; exits with 1 if something would not work."""
    from pipeline.upkeep import doctor as checkup
    from pipeline.upkeep.checks import has_failure, make_table

    checks = checkup.doctor(out, address)
    if as_json:
        print_json(checks)
    else:
        _wide().print(make_table(checks))
    if has_failure(checks):
        raise typer.Exit(1)


@app.command()
def weights(
    only_list: Annotated[bool, typer.Option("--list", help="Show sources and paths too; fetch nothing.")] = False,
) -> None:
    """Fetch every weight that is missing or damaged, check them all, and say under which licence each is used."""
    from annotators import weights as files
    from pipeline.recipe import registry
    from pipeline.upkeep.doctor import list_weights

    if not only_list:
        try:
            files.fetch(registry.collect_weights().values())
        except files.MissingWeights as error:
            raise RunError(str(error)) from error
    for line in list_weights(in_full=only_list):
        typer.echo(line)


def _wide() -> Console:
    """Stdout for a table: as wide as the terminal, and wide enough for long paths in a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=250)


def _close(summary: object, as_json: bool) -> None:
    from pipeline.cli.tables import format_timing, summary_table
    from pipeline.ingest.commands import Summary

    assert isinstance(summary, Summary)
    console.print(summary_table(summary))
    console.print(format_timing(summary), highlight=False, soft_wrap=True)
    if as_json:
        print_json(summary)
    if defects := summary.count_defects():
        raise RunError(
            f"{defects} failed by a defect of vdot-data, not of your files: please report what `explain` says"
        )


def main() -> None:
    """Run the command line: exit status 0 for done, 1 for a run that could not continue, 2 for bad arguments."""
    keep_stderr()
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    logging.getLogger("vdot_data").setLevel(logging.INFO)
    interrupt_at_sigterm()
    try:
        for argument in sys.argv:
            if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise UsageError(f"the argument {argument!r} is not UTF-8, and no catalog can hold it: rename the file")
        app()
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _end(1, "stopped on request; everything committed is kept, and the same command resumes here")
    except UsageError as error:
        _end(2, str(error))
    except RuntimeError as error:
        # DuckDB's error for a Ctrl-C while it works.
        if "interrupted" not in str(error).lower():
            raise
        _end(1, "stopped on request")
    except ImportError as error:
        advice = extras.suggest_install(error, "ingest")
        if advice is None:
            raise
        _end(2, advice)
    except (RunError, StorageError, OSError) as error:
        _end(1, str(error))
    except duckdb.Error as error:
        _end(1, f"the catalog cannot be read: {str(error).splitlines()[0]} (`vdot-data verify` says what is damaged)")


def _end(status: int, sentence: str) -> NoReturn:
    console.print(f"vdot-data: {sentence}", style="red", highlight=False, soft_wrap=True, markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
