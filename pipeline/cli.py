"""The command line of the data side. Progress and tables go to stderr, answers to stdout."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, NoReturn

import duckdb
import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from pipeline.errors import RunError, UsageError
from pipeline.remote import StorageError

app = typer.Typer(
    help="From raw video to annotated, filtered, explainable training shards.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# A copy of stderr, which `engine` points elsewhere for a moment.
console = Console(file=os.fdopen(os.dup(2), "w"))

# What typer exits with for Ctrl-C.
_INTERRUPTED = 130


def _version(asked: bool) -> None:
    if asked:
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


Out = Annotated[str, typer.Argument(help="The dataset: a folder or any fsspec URL.", show_default=False)]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster to join: auto, or HOST:6379.")]
Cpus = Annotated[int | None, typer.Option(min=1, help="CPUs of the local Ray; all by default.")]
Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable summary on stdout.")]


@app.command()
def ingest(
    sources: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, URLs (s3://, gs://, https://) or manifests.")
    ],
    out: Annotated[str, typer.Option(help="Where the dataset goes: a folder or any fsspec URL.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="A recipe (YAML) that changes the default one.")] = None,
    exclude: Annotated[str | None, typer.Option(help="A manifest of sources to leave out.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first N sources.")] = None,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Do not trust size and date: hash known sources again.")
    ] = False,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Bring raw videos in: clips, tracks, signals and verdicts, in shards and a catalog. Run it again to go on."""
    from pipeline.console import Display
    from pipeline.ingest import ingest as run

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
def annotate(
    out: Out,
    annotator: Annotated[str, typer.Option("--with", help="The annotator that makes the layer.", show_default=False)],
    retry: Annotated[bool, typer.Option("--retry", help="Try again where it failed.")] = False,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Add one more layer to the clips that exist."""
    from pipeline.console import Display
    from pipeline.ingest import annotate as run

    with Display(console) as display:
        summary = run(out, annotator, retry=retry, address=address, cpus=cpus, watcher=display)
    _close(summary, as_json)


@app.command()
def retry(
    out: Out,
    recipe: Annotated[Path | None, typer.Option(help="Another recipe; else the one OUT was made with.")] = None,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Try every failed source and clip once more."""
    from pipeline.console import Display
    from pipeline.ingest import retry as run

    with Display(console) as display:
        summary = run(out, recipe_file=recipe, address=address, cpus=cpus, watcher=display)
    _close(summary, as_json)


@app.command()
def dedup(
    out: Out,
    threshold: Annotated[
        float | None, typer.Option(help="Cosine from which on clips show the same; chosen by measurement.")
    ] = None,
    address: Address = None,
    cpus: Cpus = None,
    as_json: Json = False,
) -> None:
    """Find clips that show the same (re-encoded, cropped, mirrored), and the best of each group."""
    from pipeline import dedup as pass_
    from pipeline.console import Display

    with Display(console) as display:
        done = pass_.dedup(
            out,
            threshold=pass_.THRESHOLD if threshold is None else threshold,
            address=address,
            cpus=cpus,
            watcher=display,
        )
    console.print(pass_.summary(done), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        typer.echo(done.as_json())


@app.command()
def verify(
    out: Out,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core by default.")] = None,
    mark_failed: Annotated[
        bool, typer.Option("--mark-failed", help="Record what is damaged as failed, for `retry` to make it again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold every row of the catalog against the bytes; lists what is wrong and exits with 1 if anything is."""
    from pipeline import mend
    from pipeline import verify as checks

    report = checks.verify(out, workers)
    if as_json:
        typer.echo(report.as_json())
    else:
        for line in checks.lines(report):
            typer.echo(line)
    console.print(checks.summary(report), highlight=False, soft_wrap=True, markup=False)
    if mark_failed and report.damage:
        marked = mend.mark_failed(report)
        console.print(f"marked as failed: {marked} clips and layers; `vdot-data retry` makes them again", markup=False)
    if report.count:
        raise typer.Exit(1)


@app.command()
def select(
    out: Out,
    where: Annotated[
        list[str] | None,
        typer.Option(help="An SQL predicate over the catalog's columns; more of them are all to hold."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Judge by the rules of this recipe instead.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Judge with this rule changed, as in 'too_dark: luma < 30'; 'NAME:' drops it."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep the selection under this name.")] = None,
    against: Annotated[str | None, typer.Option(help="Compare with this selection; else with the newest.")] = None,
    as_json: Json = False,
) -> None:
    """Choose clips by what was measured, and see what each condition costs. No model runs."""
    from pipeline import select as selecting
    from pipeline.console import selected

    done = selecting.select(out, where or (), recipe_file=recipe, rules=rule or (), name=name, against=against)
    _show(selected(done), done.as_json() if as_json else None)


@app.command()
def mix(
    mixture: Annotated[Path, typer.Argument(help="A YAML file: datasets, tasks and their shares.", show_default=False)],
    out: Annotated[str | None, typer.Option(help="Where the mixture goes, for trainers to read.")] = None,
    as_json: Json = False,
) -> None:
    """Draw up what a training run sees: shares per task, caps, a held-out part; pinned, with a hash."""
    from pipeline import mix as mixing
    from pipeline.console import mixed

    done = mixing.mix(mixture, out)
    _show(mixed(done), done.as_json() if as_json else None)


@app.command()
def report(
    out: Out,
    html: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write one HTML page: what was kept and what was not, why, and what other thresholds would do."""
    from pipeline import report as reporting

    done = reporting.report(out, html)
    told = (
        f"{done.file}: {done.clips} clips, {done.shown} of them shown, {done.size / 1e6:.1f} MB; open it in a browser"
    )
    console.print(told, highlight=False, soft_wrap=True, markup=False)
    if as_json:
        typer.echo(done.as_json())


@app.command()
def view(
    out: Out,
    what: Annotated[str, typer.Argument(help="A clip id or the beginning of one.")],
    html: Annotated[Path | None, typer.Option(help="Write the page there, and open nothing.")] = None,
) -> None:
    """Open one sample in the browser: the clip and its tracks in step, and all that is known of it."""
    from pipeline import view as viewing

    file = html or Path(tempfile.mkdtemp(prefix="vdot-view-")) / "view.html"
    viewing.view(out, what, file)
    typer.echo(file)
    if html is None:
        typer.launch(file.as_uri())


@app.command()
def explain(
    out: Out,
    what: Annotated[str, typer.Argument(help="A clip id or the beginning of one; a source's URI or file name.")],
    as_json: Json = False,
) -> None:
    """Say why a clip or a source is in or out, and where everything about it came from."""
    from pipeline import explain as explaining

    facts = explaining.explain(out, what)
    typer.echo(explaining.as_json(facts) if as_json else explaining.text(facts))


@app.command()
def forget(
    out: Out,
    what: Annotated[str, typer.Argument(help="A clip id or the beginning of one; a source's URI or file name.")],
    reason: Annotated[str | None, typer.Option(help="Kept in the record of what was removed.")] = None,
    as_json: Json = False,
) -> None:
    """Remove a clip, or a source and all of its clips, for good: rows and bytes. It cannot come back."""
    from pipeline import forget as forgetting

    done = forgetting.forget(out, what, reason)
    console.print(forgetting.summary(done), highlight=False, soft_wrap=True, markup=False)
    if as_json:
        typer.echo(done.as_json())


@app.command()
def doctor(
    out: Annotated[str | None, typer.Argument(help="A dataset to check too.", show_default=False)] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Check this machine, a dataset and every node of a cluster; exits with 1 if something would not work."""
    from pipeline import doctor as checkup

    checks = checkup.doctor(out, address)
    if as_json:
        typer.echo(checkup.as_json(checks))
    else:
        _wide().print(checkup.table(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(1)


@app.command()
def weights(
    only_list: Annotated[bool, typer.Option("--list", help="Show the table; fetch nothing.")] = False,
) -> None:
    """Fetch every weight that is missing or damaged, check them all, and say under which licence each is used."""
    from annotators import weights as files
    from pipeline import registry
    from pipeline.doctor import weights_table

    if not only_list:
        try:
            files.fetch(registry.weights().values())
        except files.MissingWeights as error:
            raise RunError(str(error)) from error
    _wide().print(weights_table())


def _show(parts: Iterable[Table | str], answer: str | None) -> None:
    for part in parts:
        console.print(part, highlight=False, soft_wrap=True)
    if answer is not None:
        typer.echo(answer)


def _wide() -> Console:
    """Stdout for a table: as wide as the terminal, and wide enough for long paths in a pipe."""
    return Console() if sys.stdout.isatty() else Console(width=250)


def _close(summary: object, as_json: bool) -> None:
    from pipeline.console import closing, timing
    from pipeline.ingest import Summary

    assert isinstance(summary, Summary)
    console.print(closing(summary))
    console.print(timing(summary), highlight=False, soft_wrap=True)
    if as_json:
        typer.echo(summary.as_json())


def main() -> None:
    """Run the command line: exit status 0 for done, 1 for a run that could not go on, 2 for bad arguments."""
    logging.basicConfig(format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    logging.getLogger("vdot_data").setLevel(logging.INFO)
    # Before a run has anything in hand, SIGTERM is what Ctrl-C is.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for argument in sys.argv:
            if not argument.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in argument):
                raise UsageError(f"the argument {argument!r} is not UTF-8, and no catalog can hold it: rename the file")
        app()
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        _end(1, "stopped on request; whatever was committed is kept, and the same command goes on from here")
    except UsageError as error:
        _end(2, str(error))
    except ImportError as error:
        _end(2, f"{error}: this needs pip install 'vdot-data[ingest]'")
    except (RunError, StorageError, OSError) as error:
        _end(1, str(error))
    except duckdb.Error as error:
        _end(1, f"the catalog cannot be read: {str(error).splitlines()[0]} (`vdot-data verify` says what is damaged)")


def _end(status: int, sentence: str) -> NoReturn:
    console.print(f"vdot-data: {sentence}", style="red", highlight=False, soft_wrap=True, markup=False)
    sys.exit(status)


if __name__ == "__main__":
    main()
