"""The commands that look at a dataset and choose from it; none of them runs a model."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import Json, Out, Workers, console, print_json, show
from pipeline.errors import RunError

commands = typer.Typer()


@commands.command()
def select(
    out: Out,
    where: Annotated[
        list[str] | None,
        typer.Option(help="An SQL predicate over the catalog's columns; if repeated, all must hold."),
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="Judge by the rules of this recipe instead.")] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(help="Judge with this rule changed, as in 'too_dark: luma < 30'; 'NAME:' drops it."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Keep the selection under this name.")] = None,
    against: Annotated[str | None, typer.Option(help="Compare with this selection instead of the newest.")] = None,
    as_json: Json = False,
) -> None:
    """Choose clips by what was measured, and see what each condition costs. No model runs."""
    from pipeline.cli.tables import describe_selection
    from pipeline.curation import select as selecting

    selection = selecting.select(out, where or (), recipe_file=recipe, rules=rule or (), name=name, against=against)
    show(describe_selection(selection), selection if as_json else None)


@commands.command()
def mix(
    mixture: Annotated[Path, typer.Argument(help="A YAML file: datasets, tasks and their shares.", show_default=False)],
    out: Annotated[str | None, typer.Option(help="Where the mixture goes, for trainers to read.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Continue from MIXTURE@POSITION, an older one and where its training stopped.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw up what a training run sees: shares per task, caps, a held-out part; pinned, with a hash."""
    from pipeline.cli.tables import describe_mixture
    from pipeline.curation import make_mixture as mixing

    summary = mixing.mix(mixture, out, after)
    show(describe_mixture(summary), summary if as_json else None)


@commands.command()
def to_csv(
    mixture: Annotated[str, typer.Argument(help="A folder that `mix` made.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Where videos, masks, references and the CSV go.", show_default=False)],
    frames: Annotated[int, typer.Option(min=1, help="Only clips of this length: that trainer takes one shape.")] = 81,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Write a mixture as the files and the CSV that the published VDOT trainer reads."""
    from pipeline.cli.tables import describe_export
    from pipeline.curation import vdot_csv

    export = vdot_csv.to_csv(mixture, to, frames=frames, workers=workers)
    show(describe_export(export), export if as_json else None)
    if not any(export.rows.values()):
        raise RunError("no row was written; what was left out says why")


@commands.command()
def report(
    out: Out,
    html: Annotated[
        Path | None,
        typer.Option(help="A file for the page, outside OUT; report.html in OUT by default.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page: pictures of what was kept and what was not, why, and what other thresholds would do."""
    from pipeline.reporting import report as reporting

    result = reporting.report(out, html)
    message = (
        f"{result.file}: {result.clips} clips, {result.shown} cards, {result.size / 1e6:.1f} MB; open it in a browser"
    )
    console.print(message, highlight=False, soft_wrap=True, markup=False)
    if as_json:
        print_json(result)


@commands.command()
def view(
    out: Out,
    what: Annotated[str, typer.Argument(help="A clip id or the beginning of one.")],
    html: Annotated[Path | None, typer.Option(help="Write the page there, and do not open it.")] = None,
) -> None:
    """Open one sample in the browser: the clip and its tracks in step, and all that is known of it."""
    from pipeline.reporting import clip_page as viewing

    file = html or Path(tempfile.mkdtemp(prefix="vdot-view-")) / "view.html"
    viewing.view(out, what, file)
    typer.echo(file)
    if html is None and not webbrowser.open(file.as_uri()):
        console.print("there is no browser here: open the file in one")


@commands.command()
def explain(
    out: Out,
    what: Annotated[str, typer.Argument(help="A clip id or the beginning of one; a source's URI or file name.")],
    as_json: Json = False,
) -> None:
    """Say why a clip or a source is in or out, and where everything about it came from."""
    from pipeline.reporting import explain as explaining

    facts = explaining.explain(out, what)
    if as_json:
        print_json(facts)
    else:
        typer.echo(explaining.format_text(facts))
