"""Formats what people see of a run, on stderr: live progress on a terminal, plain lines in a pipe, and tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from pipeline.engine.progress import Progress
from pipeline.errors import ADVICE, ErrorCode
from pipeline.formats.schema import Status

if TYPE_CHECKING:
    # Showing a selection needs none of the packages of an ingest.
    from pipeline.curation.make_mixture import MixtureSummary
    from pipeline.curation.select import Condition, Selection
    from pipeline.curation.vdot_csv import ExportSummary
    from pipeline.ingest.commands import Summary
    from pipeline.ingest.forecast import Plan

# A pipe gets one line in this many seconds; a terminal is redrawn four times a second.
LINE_S = 10.0
# The most shapes of clips that are listed.
_BUCKETS = 16
PENDING = "The rule met a value that is not known (a licence?), or annotators are yet to run: `vdot-data explain`."


def format_progress(progress: Progress) -> str:
    """Format progress as one line: what is done, how fast, and how long the rest may take."""
    elapsed = max(time.monotonic() - progress.started, 1e-3)
    clips = {name: progress.clips[name] for name in (Status.KEPT, Status.REJECTED, Status.FAILED, Status.PENDING)}
    total = sum(clips.values())
    parts = [f"{progress.finished}/{progress.work} {progress.unit}"]
    # Work without verdicts (a pass over stored clips) has no clips of its own to count.
    parts += [f"{total} clips ({total / elapsed:.2f}/s)"] if total or not progress.finished else []
    parts += [f"{count} {name}" for name, count in clips.items() if count]
    if progress.failed_sources:
        parts.append(f"{progress.failed_sources} sources failed")
    if progress.draining:
        parts.append("stopping: finishing work in progress")
    elif 0 < progress.finished < progress.work:
        remaining_s = elapsed / progress.finished * (progress.work - progress.finished)
        parts.append(f"about {format_clock(remaining_s)} left")
    elif not total and not progress.finished:
        parts.append("starting workers")
    return ", ".join(parts) + f", {format_clock(elapsed)} gone"


def format_clock(seconds: float) -> str:
    """Format seconds as h:mm:ss or m:ss."""
    total = round(seconds)
    hours, minutes, remainder = total // 3600, total // 60 % 60, total % 60
    return f"{hours}:{minutes:02}:{remainder:02}" if hours else f"{minutes}:{remainder:02}"


class Display:
    """A watcher of `Run` progress; a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._next = time.monotonic() + LINE_S

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        if self._live:
            self._live.update(format_progress(progress))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_S
            self._console.print(format_progress(progress), highlight=False, soft_wrap=True)


def summary_table(summary: Summary) -> Table:
    """The verdicts of everything in OUT, with what to do about failures."""
    table = Table(title=escape(f"{summary.out} ({summary.layer})"), title_justify="left")
    for name in ("what", "verdict", "why"):
        table.add_column(name)
    table.add_column("count", justify="right")
    table.add_column("what to do", max_width=70)
    for kind, tallies in (("clips", summary.clips), ("sources", summary.sources)):
        for status, reasons in tallies.items():
            for reason, count in reasons.items():
                table.add_row(*map(escape, (kind, status, reason, str(count), _advise(status, reason))))
        table.add_section()
    return table


def _advise(status: str, reason: str) -> str:
    """What to do about a verdict; "" where there is nothing to do."""
    if status == Status.FAILED:
        return ADVICE[ErrorCode(reason)]
    return PENDING if status == Status.PENDING else ""


def describe_selection(selection: Selection) -> Iterator[Table | str]:
    """Describe a selection, and what each of its conditions costs."""
    verdicts = ", ".join(f"{count} {status}" for status, count in selection.verdicts.items()) or "no clips"
    yield escape(f"{selection.out}, catalog part {selection.sequence}: {verdicts}")
    if selection.rules:
        yield _condition_table("rule", selection.rules)
    if selection.where:
        yield _condition_table("where", selection.where)
    kept_count = selection.verdicts.get(Status.KEPT, 0)
    share = f" ({100 * selection.selected / kept_count:.1f} %)" if kept_count else ""
    undecided = f"; {selection.undecided} are undecided, as a column is null" if selection.undecided else ""
    yield (
        f"selected {selection.selected} of {kept_count} kept clips{share}: {format_clock(selection.seconds)} of video, "
        f"{selection.bytes / 1e6:.1f} MB{undecided}"
    )
    if selection.against:
        yield escape(
            f"against {selection.against.name}: {selection.against.added} new, {selection.against.removed} gone"
        )
    pending_count = selection.verdicts.get(Status.PENDING, 0)
    if selection.rules and pending_count:
        yield f"{pending_count} are pending: `vdot-data ingest` with this recipe annotates just those"
    if selection.file:
        yield escape(f"kept as {selection.out}/{selection.file}")


def _condition_table(kind: str, conditions: list[Condition]) -> Table:
    table = Table(kind)
    for name in ("removes", "alone", "undecided"):
        table.add_column(name, justify="right")
    # A recipe has twenty rules, of which few remove anything; conditions given by hand are all listed.
    listed = [condition for condition in conditions if condition.removes or condition.undecided or kind == "where"]
    for condition in listed:
        table.add_row(
            escape(" ".join(condition.text.split())),
            str(condition.removes),
            str(condition.alone),
            str(condition.undecided),
        )
    if len(listed) < len(conditions):
        table.add_row(f"{len(conditions) - len(listed)} more", "0", "0", "0")
    return table


def describe_mixture(mixture: MixtureSummary) -> Iterator[Table | str]:
    """Describe what a mixture draws, per task and per shape."""
    yield escape(", ".join(f"{name}: {count} clips selected" for name, count in mixture.selected.items()))
    table = Table("task")
    for name in ("share", "clips", "video", "sources", "held out", "passes"):
        table.add_column(name, justify="right")
    for task in mixture.tasks:
        numbers = (
            str(task.clips),
            format_clock(task.seconds),
            str(task.sources),
            str(task.held_out),
            f"{task.passes:.2f}",
        )
        table.add_row(escape(task.task), f"{100 * task.share:.1f} %", *numbers)
    yield table
    table = Table("picture", "frames", "references")
    table.add_column("clips", justify="right")
    for bucket in mixture.buckets[:_BUCKETS]:
        size = f"{bucket.width}x{bucket.height}"
        table.add_row(size, str(bucket.frames), str(bucket.references), str(bucket.clips))
    yield table
    if len(mixture.buckets) > _BUCKETS:
        yield f"... and {len(mixture.buckets) - _BUCKETS} rarer shapes"
    yield from (f"[yellow]warning:[/] {escape(warning)}" for warning in mixture.warnings)
    steps = f"{mixture.steps} steps of {mixture.micro_batches} micro-batches"
    yield f"{steps} draw each clip once on average, or more than once; the first position is {mixture.begins}"
    yield f"mixture {mixture.hash}" + (f", kept in {escape(mixture.out)}" if mixture.out else "")


def describe_export(export: ExportSummary) -> Iterator[Table | str]:
    """Describe what was written for another trainer, and what was left out."""
    table = Table("task")
    for split in export.rows:
        table.add_column(f"{split}.csv", justify="right")
    for task in dict.fromkeys(task for rows in export.rows.values() for task in rows):
        table.add_row(escape(task), *(str(rows.get(task, 0)) for rows in export.rows.values()))
    yield table
    for reason, count in export.left_out.items():
        yield escape(f"left out: {count} {reason}")
    yield escape(f"written to {export.folder}; shares and caption drop-out are the trainer's own to set")


def describe_plan(plan: Plan) -> Iterator[Table | str]:
    """Describe what an ingest would make and cost, and what would stop it."""
    from pipeline.upkeep.checks import make_table

    if not plan.sources:
        yield "nothing to do: every source is there already, or left out"
        return
    yield f"{len(plan.probed)} of {plan.sources} new sources probed in {format_clock(plan.probe_s)}" + (
        f": {', '.join(f'{count} {codec}' for codec, count in plan.codecs.items())}" if plan.codecs else ""
    )
    table = Table("what")
    for name in ("expected", "from", "to", "in the probe"):
        table.add_column(name, justify="right")
    for name, estimate in plan.quantities.items():
        title, format_value = _QUANTITIES[name]
        ends = ("-" if end is None else format_value(estimate.sampled + end) for end in (estimate.low, estimate.high))
        table.add_row(title, format_value(estimate.total), *ends, format_value(estimate.sampled))
    wall = ("-" if seconds is None else format_clock(seconds) for seconds in plan.wall_s)
    table.add_row(f"wall time on {plan.cpus} CPUs", *wall, format_clock(plan.probe_s))
    yield table
    yield "Counts and sizes lie between `from` and `to` about nine times in ten. Work on a GPU is not estimated."
    if plan.checks:
        yield make_table(plan.checks)


# The title and the format of each quantity of a plan.
_QUANTITIES: dict[str, tuple[str, Callable[[float], str]]] = {
    "kept_clips": ("clips kept", lambda count: f"{count:,.0f}"),
    "rejected_clips": ("clips rejected", lambda count: f"{count:,.0f}"),
    "pending_clips": ("clips pending", lambda count: f"{count:,.0f}"),
    "failed": ("failed sources and clips", lambda count: f"{count:,.0f}"),
    "video_s": ("video (h:mm:ss)", format_clock),
    "kept_s": ("video in kept clips", format_clock),
    "bytes": ("shards", lambda size: f"{size / 1e9:,.2f} GB"),
    "work_s": ("work of one core", format_clock),
}


def format_timing(summary: Summary) -> str:
    """Format the wall time and each step's share of the work."""
    total = sum(summary.seconds.values())
    shares = sorted(summary.seconds.items(), key=lambda step: -step[1])
    parts = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in shares if total)
    return f"{format_clock(summary.wall_s)} wall" + (f"; of {format_clock(total)} of work: {parts}" if total else "")
