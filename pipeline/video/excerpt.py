"""Copies the packets of a stretch of a long video to a file of its own, so that hours of it need not be read.

Runs inside `pipeline.video.sandbox`, like everything that reads untrusted files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import av

from pipeline.storage.object_store import filesystem
from pipeline.video import sandbox_child
from pipeline.video.header_length import read_duration
from pipeline.video.probe import open_video


def cut(
    uri: str, target: Path, max_pixels: int, longest_s: float, share: float
) -> Iterator[tuple[float, float] | None]:
    """Copy `longest_s` seconds of a longer video to `into`, a Matroska file, from the key frame before `share`
    (0 to 1) of the range where a stretch may begin. From a URL, only the header and those seconds are read.

    Yields (seconds of the whole video, seconds copied) once, or None if the video is no longer than that or does not
    say how long it is. Raises ClipError as `open_video`, what reading a URL raises, and FFmpegError for what Matroska
    cannot hold.
    """
    with _open_source(uri) as file, open_video(file, max_pixels) as (container, stream):
        whole_s = read_duration(container, stream)
        if whole_s is None or whole_s <= longest_s:
            yield None
            return
        container.seek((container.start_time or 0) + round((whole_s - longest_s) * share * av.time_base))
        first = taken_s = None
        with av.open(str(target), "w", format="matroska") as copy:
            track = copy.add_stream_from_template(stream)
            for packet in container.demux(stream):
                if packet.dts is None:
                    continue
                first = packet.dts if first is None else first
                # From zero, or the file would seem to lack its beginning.
                packet.dts, packet.pts = packet.dts - first, None if packet.pts is None else packet.pts - first
                taken_s = float(packet.dts * packet.time_base)
                if taken_s > longest_s:
                    break
                packet.stream = track
                copy.mux(packet)
                sandbox_child.report_progress()
        yield (whole_s, taken_s) if taken_s else None


def warm_up() -> Iterator[None]:
    """Yields None, to wait until a sandbox has loaded everything that `cut` needs."""
    yield None


@contextmanager
def _open_source(uri: str) -> Iterator[str | IO[bytes]]:
    if "://" not in uri:
        yield uri
        return
    store, path = filesystem(uri)
    with store.open(path, "rb") as file:
        yield file
