"""The packets of a wild file, and the frames in them, past what cannot be read or decoded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import av
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream


class Packets:
    """A file's packets up to its end, or to where it cannot be read on; then `error` says why.

    What comes after the last frame may be anything: whether frames are missing is not told by this.
    """

    def __init__(self, packets: Iterator[Packet[Any]]) -> None:
        self._packets = packets
        self.error: FFmpegError | None = None

    def __iter__(self) -> Iterator[Packet[Any]]:
        while True:
            try:
                packet = next(self._packets, None)
            except FFmpegError as error:
                self.error = _survived(error)
                return
            if packet is None:
                return
            yield packet


class Decoder:
    """The frames in a stream's packets; after a packet that is refused it goes on at the next key frame.

    `error` is why the first one was refused, `lost` how many gave no frame for such a reason, `lost_before` how many of
    them came before the first frame: a broadcast may have been joined midway. `resumed_at` is the time stamp of the key
    frame at which it went on last, until it is taken note of.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._stream = stream
        self._waits = self._begun = False
        self.error: FFmpegError | None = None
        self.lost = self.lost_before = 0
        self.resumed_at: int | None = None

    def frames(self, packet: Packet[Any]) -> list[av.VideoFrame]:
        """The frames that come out when this packet of the stream goes in."""
        if self._waits and packet.size and not packet.is_keyframe:
            self._lose()
            return []
        try:
            frames = self._stream.decode(packet)
        except FFmpegError as error:
            self.error = self.error or _survived(error)
            self._waits = True
            self._lose()
            return []
        if self._waits:
            self._waits, self.resumed_at = False, packet.pts
        self._begun = self._begun or bool(frames)
        return frames

    def _lose(self) -> None:
        self.lost += 1
        self.lost_before += not self._begun


def _survived(error: FFmpegError) -> FFmpegError:
    """The error, unless memory has run out: that is raised."""
    if isinstance(error, MemoryError):
        raise error
    return error
