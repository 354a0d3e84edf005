"""Where a new mixture takes over from an older one, so that changed weights or predicates do not start over."""

from __future__ import annotations

import pyarrow as pa

from pipeline.errors import UsageError
from pipeline.mixture.mixture import StartPoint, read_all
from pipeline.mixture.order import Order


def find_beginning(after: str, order: Order, samples: pa.Table) -> StartPoint:
    """Where the mixture with this order and these samples begins if it continues `after`: a mixture and a position of
    it, as in `demo/mixed@4800`.

    A bucket with the same clips continues where it was, so that no clip repeats before its pass is over; one with other
    clips begins its next pass. Raises `UsageError` when there is no such mixture, or no step of it begins at that
    position.
    """
    url, _, position_text = after.rpartition("@")
    if not url or not (position_text.isascii() and position_text.isdigit()):
        raise UsageError(f"{after!r} is not a mixture and a position, as in demo/mixed@4800")
    old, old_samples = read_all(url)
    position, micro_batches = int(position_text), old.step.micro_batches
    if position < old.begins.position or (position - old.begins.position) % micro_batches:
        raise UsageError(
            f"no step of {url} begins at position {position}: they begin at {old.begins.position} and every "
            f"{micro_batches} after that"
        )
    old_order = Order(old, old_samples)
    drawn = old_order.count_drawn(position)
    for bucket in order.buckets:
        old_clips, new_clips = (
            table["clip_id"].take(pa.array(bucket_order.rows(bucket)))
            for bucket_order, table in ((old_order, old_samples), (order, samples))
        )
        if bucket in drawn and len(old_clips) and not old_clips.equals(new_clips):
            drawn[bucket] = -(-drawn[bucket] // len(old_clips)) * len(new_clips)
    return StartPoint(position, drawn)
