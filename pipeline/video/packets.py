"""Reads the packets of an untrusted file and decodes their frames, skipping what cannot be read or decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import av
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

# How often a demuxer may ask to be called again without giving a packet; each time it has read 64 KB.
_MOST_IDLE = 100_000


class Packets:
    """A file's packets up to its end, or to where it cannot be read further; then `error` says why.

    Anything may follow the last frame: `error` does not mean that frames are missing.
    """

    def __init__(self, demux: Callable[[], Iterator[Packet[Any]]]) -> None:
        """`demux` continues reading at the current position of the file."""
        self._demux = demux
        self.error: FFmpegError | None = None

    def __iter__(self) -> Iterator[Packet[Any]]:
        packets, idle = self._demux(), 0
        while True:
            try:
                packet = next(packets, None)
            except FFmpegError as error:
                # Within a long stretch of damage the demuxer of MPEG-TS asks to be called again.
                if isinstance(error, BlockingIOError) and idle < _MOST_IDLE:
                    packets, idle = self._demux(), idle + 1
                    continue
                self.error = _check_memory(error)
                return
            if packet is None:
                return
            idle = 0
            yield packet


class Decoder:
    """The frames in a stream's packets; after a refused packet decoding resumes at the next key frame.

    `error` is why the first one was refused, `lost` how many gave no frame for such a reason, `lost_before` how many of
    them came before the first frame: a broadcast may have been joined midway. `resumed_at` is the time stamp of the key
    frame at which decoding last resumed, until the caller resets it.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._waits = self._begun = False
        self.error: FFmpegError | None = None
        self.lost = self.lost_before = 0
        self.resumed_at: int | None = None

    def frames(self, packet: Packet[Any]) -> list[av.VideoFrame]:
        """The frames that the decoder returns for this packet of the stream."""
        if self._waits and packet.size and not packet.is_keyframe:
            self._lose()
            return []
        try:
            frames = self._stream.decode(packet)
        except FFmpegError as error:
            self.error = self.error or _check_memory(error)
            self._waits = True
            self._lose()
            return []
        if self._waits:
            self._waits, self.resumed_at = False, packet.pts
        self._begun = self._begun or bool(frames)
        return frames

    def flush(self) -> list[av.VideoFrame]:
        """The frames that are still in the decoder, when the packets ended early."""
        try:
            return self._stream.decode(None)
        except FFmpegError as error:
            self.error = self.error or _check_memory(error)
            return []

    def _lose(self) -> None:
        self.lost += 1
        self.lost_before += not self._begun


def _check_memory(error: FFmpegError) -> FFmpegError:
    """Return the error, unless memory has run out: that is raised."""
    if isinstance(error, MemoryError):
        raise error
    return error
