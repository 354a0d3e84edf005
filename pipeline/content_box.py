"""Where the picture is inside letterbox or pillarbox bars, by frames from all over a source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import av
from av.error import FFmpegError

from filters import bars
from pipeline.display import Box, to_rgb
from pipeline.video import Probe, Progress, decode_error, frames, opened, unwatched

# Frames that are looked at, and the longest source that is decoded for them from end to end.
_SPREAD, _SPREAD_BY_DECODING_S = 12, 60.0


def content_box(path: str | Path, source: Probe, progress: Progress = unwatched) -> Box | None:
    """Where the picture is inside letterbox or pillarbox bars: (x0, y0, x1, y1) in displayed pixels, or None.

    Looks at about a dozen frames spread over the file. `progress` and errors: see `frames`.
    """
    display = source.display
    size = (display.width, display.height)
    return bars.content(to_rgb(frame, display, size) for frame in _spread(path, source, progress))


def _spread(path: str | Path, source: Probe, progress: Progress) -> Iterator[av.VideoFrame]:
    """Frames at even steps of a source of up to a minute; of a longer one the key frames next to them.

    A source that lasts longer than it says is looked at for a minute: it may have no end.
    """
    length_s = source.duration_s or float(_SPREAD)
    if length_s <= _SPREAD_BY_DECODING_S:
        due_s = -math.inf
        with closing(frames(path, source, progress)) as decoded:
            first_s = None
            for time_s, _, frame, display, _ in decoded:
                first_s = time_s if first_s is None else first_s
                if time_s - first_s > _SPREAD_BY_DECODING_S:
                    return
                if time_s >= due_s and display == source.display:
                    due_s = time_s + length_s / _SPREAD
                    yield frame
        return
    with opened(path, source.max_pixels) as (container, stream):
        try:
            for index in range(_SPREAD):
                container.seek((container.start_time or 0) + round(length_s * index / _SPREAD * av.time_base))
                yield from islice(container.decode(stream), 1)
                progress()
        except FFmpegError as error:
            raise decode_error(error, "seeking failed") from error
