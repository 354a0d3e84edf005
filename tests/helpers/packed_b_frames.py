"""Writes AVI files as DivX and XviD did: a P-frame and the B-frame that is shown before it in one packet."""

from __future__ import annotations

from pathlib import Path

import av

_VOP = b"\x00\x00\x01\xb6"
# FFmpeg, and every player before it, recognizes such a file by user data with a version that ends with a p.
_MARK = b"\x00\x00\x01\xb2DivX503b1393p"
# A frame that is not coded, in place of the B-frame.
_EMPTY = _VOP + b"\x51\x20\x7f"


def pack(source: Path, target: Path) -> Path:
    """Write the same MPEG-4 frames packed; no two of their B-frames may be neighbours."""
    with av.open(str(source)) as plain, av.open(str(target), "w", format="avi") as packed:
        stream = plain.streams.video[0]
        track = packed.add_stream_from_template(stream)
        coded = [bytes(packet) for packet in plain.demux(stream) if packet.size]
        first = coded[0].index(_VOP)
        coded[0] = coded[0][:first] + _MARK + coded[0][first:]
        packets: list[bytes] = []
        for data in coded:
            if _is_b_frame(data):
                packets[-1] += data
                packets.append(_EMPTY)
            else:
                packets.append(data)
        assert _EMPTY in packets, f"{source.name} has no B-frames"
        for index, data in enumerate(packets):
            packet = av.Packet(data)
            packet.dts, packet.time_base, packet.stream = index, 1 / stream.average_rate, track
            packet.is_keyframe = data[data.index(_VOP) + 4] >> 6 == 0
            packed.mux(packet)
    return target


def _is_b_frame(data: bytes) -> bool:
    # vop_coding_type, the first two bits of a VOP: I, P, B, S
    return data[data.index(_VOP) + 4] >> 6 == 2
