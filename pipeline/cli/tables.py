"""What a person sees of a run: live progress on a terminal, plain lines in a pipe, and a closing table. On stderr."""

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

if TYPE_CHECKING:
    # To show a selection takes none of what an ingest does.
    from pipeline.curation.make_mixture import Mixed
    from pipeline.curation.select import Condition, Selection
    from pipeline.curation.vdot_csv import Exported
    from pipeline.ingest.commands import Summary
    from pipeline.ingest.forecast import Plan

# A pipe gets one line in this many seconds; a terminal is redrawn four times a second.
LINE_S = 10.0
# Shapes of clips that are listed.
_BUCKETS = 16
PENDING = "The rule met a value that is not known (a licence?), or annotators are yet to run: `vdot-data explain`."


def text(progress: Progress) -> str:
    """One line: what is done, how fast, and how long the rest may take."""
    elapsed = max(time.monotonic() - progress.started, 1e-3)
    clips = {name: progress.clips[name] for name in ("kept", "rejected", "failed", "pending")}
    total = sum(clips.values())
    parts = [f"{progress.done}/{progress.work} {progress.unit}"]
    # Work without verdicts (a pass over what is there) has no clips of its own to count.
    parts += [f"{total} clips ({total / elapsed:.2f}/s)"] if total or not progress.done else []
    parts += [f"{count} {name}" for name, count in clips.items() if count]
    if progress.clips["source failed"]:
        parts.append(f"{progress.clips['source failed']} sources failed")
    if progress.draining:
        parts.append("stopping: finishing what is in hand")
    elif 0 < progress.done < progress.work:
        left = elapsed / progress.done * (progress.work - progress.done)
        parts.append(f"about {clock(left)} left")
    elif not total and not progress.done:
        parts.append("starting workers")
    return ", ".join(parts) + f", {clock(elapsed)} gone"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


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
            self._live.update(text(progress))
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + LINE_S
            self._console.print(text(progress), highlight=False, soft_wrap=True)


def closing(summary: Summary) -> Table:
    """What became of everything in OUT, with what to do about failures."""
    table = Table(title=escape(f"{summary.out} ({summary.layer})"), title_justify="left")
    for name in ("what", "verdict", "why"):
        table.add_column(name)
    table.add_column("count", justify="right")
    table.add_column("what to do", max_width=70)
    for what, tallies in (("clips", summary.clips), ("sources", summary.sources)):
        for status, reasons in tallies.items():
            for reason, count in reasons.items():
                advice = ADVICE[ErrorCode(reason)] if status == "failed" else PENDING if status == "pending" else ""
                table.add_row(*map(escape, (what, status, reason, str(count), advice)))
        table.add_section()
    return table


def selected(done: Selection) -> Iterator[Table | str]:
    """What a selection holds, and what each of its conditions costs."""
    verdicts = ", ".join(f"{count} {status}" for status, count in done.verdicts.items()) or "no clips"
    yield escape(f"{done.out}, catalog part {done.sequence}: {verdicts}")
    if done.rules:
        yield _conditions("rule", done.rules)
    if done.where:
        yield _conditions("where", done.where)
    kept = done.verdicts.get("kept", 0)
    share = f" ({100 * done.selected / kept:.1f} %)" if kept else ""
    undecided = f"; {done.undecided} are undecided, as a column is null" if done.undecided else ""
    yield (
        f"selected {done.selected} of {kept} kept clips{share}: {clock(done.seconds)} of video, "
        f"{done.bytes / 1e6:.1f} MB{undecided}"
    )
    if done.against:
        yield escape(f"against {done.against.name}: {done.against.added} new, {done.against.removed} gone")
    if done.rules and done.verdicts.get("pending"):
        yield f"{done.verdicts['pending']} are pending: `vdot-data ingest` with this recipe annotates just those"
    if done.file:
        yield escape(f"kept as {done.out}/{done.file}")


def _conditions(what: str, conditions: list[Condition]) -> Table:
    table = Table(what)
    for name in ("removes", "alone", "undecided"):
        table.add_column(name, justify="right")
    # A recipe has twenty rules, of which few do anything; what was asked for by hand is told in full.
    telling = [one for one in conditions if one.removes or one.undecided or what == "where"]
    for one in telling:
        table.add_row(escape(" ".join(one.text.split())), str(one.removes), str(one.alone), str(one.undecided))
    if len(telling) < len(conditions):
        table.add_row(f"{len(conditions) - len(telling)} more", "0", "0", "0")
    return table


def mixed(done: Mixed) -> Iterator[Table | str]:
    """What a mixture draws, per task and per shape."""
    yield escape(", ".join(f"{name}: {count} clips selected" for name, count in done.selected.items()))
    table = Table("task")
    for name in ("share", "clips", "video", "sources", "held out", "passes"):
        table.add_column(name, justify="right")
    for one in done.tasks:
        numbers = (str(one.clips), clock(one.seconds), str(one.sources), str(one.held_out), f"{one.passes:.2f}")
        table.add_row(escape(one.task), f"{100 * one.share:.1f} %", *numbers)
    yield table
    table = Table("picture", "frames", "references")
    table.add_column("clips", justify="right")
    for bucket in done.buckets[:_BUCKETS]:
        size = f"{bucket.width}x{bucket.height}"
        table.add_row(size, str(bucket.frames), str(bucket.references), str(bucket.clips))
    yield table
    if len(done.buckets) > _BUCKETS:
        yield f"... and {len(done.buckets) - _BUCKETS} rarer shapes"
    yield from (f"[yellow]warning:[/] {escape(one)}" for one in done.warnings)
    steps = f"{done.steps} steps of {done.micro_batches} micro-batches"
    yield f"{steps} draw each clip once on average, or oftener; the first position is {done.begins}"
    yield f"mixture {done.hash}" + (f", kept in {escape(done.out)}" if done.out else "")


def exported(done: Exported) -> Iterator[Table | str]:
    """What was written for another trainer, and what it has no form for."""
    table = Table("task")
    for split in done.rows:
        table.add_column(f"{split}.csv", justify="right")
    for task in dict.fromkeys(task for rows in done.rows.values() for task in rows):
        table.add_row(escape(task), *(str(rows.get(task, 0)) for rows in done.rows.values()))
    yield table
    for reason, count in done.left_out.items():
        yield escape(f"left out: {count} {reason}")
    yield escape(f"written to {done.folder}; shares and caption drop-out are the trainer's own to set")


def planned(done: Plan) -> Iterator[Table | str]:
    """What an ingest would make and cost, and what stands in its way."""
    from pipeline.upkeep.checks import table as checked

    if not done.sources:
        yield "nothing to do: every source is there already, or left out"
        return
    yield f"{len(done.probed)} of {done.sources} new sources probed in {clock(done.probe_s)}" + (
        f": {', '.join(f'{count} {codec}' for codec, count in done.codecs.items())}" if done.codecs else ""
    )
    table = Table("what")
    for name in ("expected", "from", "to", "in the probe"):
        table.add_column(name, justify="right")
    for name, found in done.quantities.items():
        what, shown = _PLANNED[name]
        ends = ("-" if end is None else shown(found.sampled + end) for end in (found.low, found.high))
        table.add_row(what, shown(found.total), *ends, shown(found.sampled))
    wall = ("-" if seconds is None else clock(seconds) for seconds in done.wall_s)
    table.add_row(f"wall time on {done.cpus} CPUs", *wall, clock(done.probe_s))
    yield table
    yield "Counts and sizes lie between `from` and `to` about nine times in ten. Work on a GPU is not foretold."
    if done.checks:
        yield checked(done.checks)


# How each quantity of a plan is called and written.
_PLANNED: dict[str, tuple[str, Callable[[float], str]]] = {
    "kept_clips": ("clips kept", lambda count: f"{count:,.0f}"),
    "rejected_clips": ("clips rejected", lambda count: f"{count:,.0f}"),
    "pending_clips": ("clips pending", lambda count: f"{count:,.0f}"),
    "failed": ("failed sources and clips", lambda count: f"{count:,.0f}"),
    "video_s": ("video (h:mm:ss)", clock),
    "kept_s": ("video in kept clips", clock),
    "bytes": ("shards", lambda size: f"{size / 1e9:,.2f} GB"),
    "work_s": ("work of one core", clock),
}


def timing(summary: Summary) -> str:
    """Wall time and each step's share of the work."""
    total = sum(summary.seconds.values())
    shares = sorted(summary.seconds.items(), key=lambda step: -step[1])
    parts = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in shares if total)
    return f"{clock(summary.wall_s)} wall" + (f"; of {clock(total)} of work: {parts}" if total else "")
