"""A stretch of a long video as a file of its own: packets are copied, so that hours of it need not be read.

Runs inside `pipeline.video.sandbox`, as all that reads wild files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import av

from pipeline.storage.object_store import filesystem
from pipeline.video import sandbox_child
from pipeline.video.header_length import duration
from pipeline.video.probe import open_video


def cut(uri: str, into: Path, max_pixels: int, longest_s: float, at: float) -> Iterator[tuple[float, float] | None]:
    """Copy `longest_s` seconds of a longer video to `into`, a Matroska file, from the key frame before the share `at`
    (0 to 1) of where a stretch may begin. Of a URL no more is read than the header and those seconds.

    Yields (seconds of the whole, seconds that were copied) once, or None where the video is no longer than that or
    does not say how long it is. Raises ClipError as `video.opened`, what reading a URL raises, and FFmpegError for what
    Matroska cannot hold.
    """
    with _file(uri) as file, open_video(file, max_pixels) as (container, stream):
        whole_s = duration(container, stream)
        if whole_s is None or whole_s <= longest_s:
            yield None
            return
        container.seek((container.start_time or 0) + round((whole_s - longest_s) * at * av.time_base))
        first = taken_s = None
        with av.open(str(into), "w", format="matroska") as copy:
            track = copy.add_stream_from_template(stream)
            for packet in container.demux(stream):
                if packet.dts is None:
                    continue
                first = packet.dts if first is None else first
                # From zero on, or the file would seem to lack what comes before.
                packet.dts, packet.pts = packet.dts - first, None if packet.pts is None else packet.pts - first
                taken_s = float(packet.dts * packet.time_base)
                if taken_s > longest_s:
                    break
                packet.stream = track
                copy.mux(packet)
                sandbox_child.alive()
        yield (whole_s, taken_s) if taken_s else None


def ready() -> Iterator[None]:
    """Nothing: for whoever waits until a sandbox has loaded all that `cut` needs."""
    yield None


@contextmanager
def _file(uri: str) -> Iterator[str | IO[bytes]]:
    if "://" not in uri:
        yield uri
        return
    store, path = filesystem(uri)
    with store.open(path, "rb") as file:
        yield file
