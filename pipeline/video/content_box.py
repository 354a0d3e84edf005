"""Finds the picture inside letterbox or pillarbox bars, from frames spread over a source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import av
from av.error import FFmpegError

from filters import bars
from pipeline.video.display import Box, to_rgb
from pipeline.video.frames import read_frames
from pipeline.video.packets import Decoder, Packets
from pipeline.video.probe import Probe, Progress, decode_error, open_video, unwatched

# Frames to look at, and the longest source that is decoded from end to end for them.
_SPREAD, _SPREAD_BY_DECODING_S = 12, 60.0


def find_content_box(path: str | Path, source: Probe, progress: Progress = unwatched) -> Box | None:
    """The picture inside letterbox or pillarbox bars: (x0, y0, x1, y1) in displayed pixels, or None.

    Looks at about a dozen frames spread over the file. `progress` and errors: see `read_frames`.
    """
    display = source.display
    size = (display.width, display.height)
    return bars.find_content(to_rgb(frame, display, size) for frame in _sample_frames(path, source, progress))


def _sample_frames(path: str | Path, source: Probe, progress: Progress) -> Iterator[av.VideoFrame]:
    """Frames at even steps of a source of up to a minute; for a longer one, the key frames nearest to them.

    A source that is longer than its header says is read for a minute: it may have no end.
    """
    length_s = source.duration_s or float(_SPREAD)
    if length_s <= _SPREAD_BY_DECODING_S:
        next_s = -math.inf
        with closing(read_frames(path, source, progress)) as decoded:
            first_s = None
            for time_s, _, frame, display, _ in decoded:
                first_s = time_s if first_s is None else first_s
                if time_s - first_s > _SPREAD_BY_DECODING_S:
                    return
                if time_s >= next_s and display == source.display:
                    next_s = time_s + length_s / _SPREAD
                    yield frame
        return
    with open_video(path, source.max_pixels) as (container, stream):
        shape = None
        for index in range(_SPREAD):
            try:
                container.seek((container.start_time or 0) + round(length_s * index / _SPREAD * av.time_base))
            except FFmpegError as error:
                raise decode_error(error, "seeking failed") from error
            # A place that cannot be decoded is skipped; the pass over the whole source counts what is lost.
            packets, decoder = Packets(lambda: container.demux(stream)), Decoder(stream)
            frame = next((frame for packet in packets for frame in decoder.frames(packet)), None)
            progress()
            if frame is None:
                continue
            shape = shape or (frame.width, frame.height)
            if shape == (frame.width, frame.height):
                yield frame
