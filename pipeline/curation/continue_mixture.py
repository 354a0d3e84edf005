"""Where a new mixture takes over from an older one, so that changed weights or predicates do not begin again."""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.mixture.mixture import StartPoint, read_all
from pipeline.mixture.order import Order


def begins(after: str, order: Order, samples: pa.Table) -> StartPoint:
    """What the mixture with this order and these samples begins with, if it comes after `after`, as in
    `demo/mixed@4800`: a mixture and a position of it.

    A bucket whose clips are the same goes on where it was, so that none comes again before its pass is over; one whose
    clips are others begins its next pass. Raises `UsageError` when there is no such mixture, or no step of it begins at
    that position.
    """
    url, _, number = after.rpartition("@")
    if not url or not (number.isascii() and number.isdigit()):
        raise UsageError(f"{after!r} is not a mixture and a position, as in demo/mixed@4800")
    old, old_samples = read_all(url)
    position, micro_batches = int(number), old.step.micro_batches
    if position < old.begins.position or (position - old.begins.position) % micro_batches:
        raise UsageError(
            f"no step of {url} begins at position {position}: they begin at {old.begins.position} and every "
            f"{micro_batches} from there on"
        )
    before = Order(old, old_samples)
    drawn = before.count_drawn(position)
    for bucket in order.buckets:
        was, now = (
            table["clip_id"].take(pa.array(one.rows(bucket)))
            for one, table in ((before, old_samples), (order, samples))
        )
        if bucket in drawn and len(was) and not was.equals(now):
            drawn[bucket] = -(-drawn[bucket] // len(was)) * len(now)
    return StartPoint(position, drawn)
