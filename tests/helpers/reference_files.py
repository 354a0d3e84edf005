"""Makes the files of the reference matrix with FFmpeg: numbered cards, encoded, tagged, timed and turned as asked."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import card
import ffmpeg
import numpy as np
import packed_b_frames
from numpy.typing import NDArray
from reference_sources import CODECS, Source

SECONDS = 2.5
_SCALE = "scale=flags=accurate_rnd+full_chroma_int+full_chroma_inp+bicubic"
_MUXERS = {
    "mkv": "matroska",
    "fragmented": "mp4 -movflags +frag_keyframe+empty_moov+default_base_moof",
    "ts": "mpegts",
    "mpg": "vob",
    "m2v": "mpeg2video",
    "y4m": "yuv4mpegpipe",
}
_MATRICES = {
    "bt601": ("smpte170m", "smpte170m", "smpte170m"),
    "bt709": ("bt709", "bt709", "bt709"),
    "bt2020": ("bt2020nc", "bt2020", "bt2020-10"),
    "smpte240m": ("smpte240m", "smpte240m", "smpte240m"),
    "fcc": ("fcc", "bt470m", "bt470m"),
}
# Just before MPEG-TS's clock of 33 bits at 90 kHz starts again from zero.
_WRAP_S = 2**33 / 90_000 - 1.3
_STARTS_S = {"late": 7.3, "days": 200_000.0, "negative": -0.5, "wraps": _WRAP_S}
_TIMINGS = {
    # One frame in five is not there; every other frame is shown longer; one is held for most of a second; nothing was
    # recorded for three seconds.
    "dropped": "select='mod(n+2\\,5)'",
    "alternating": "settb=1/30000,setpts='(N+0.4*mod(N\\,2))/({rate}*TB)'",
    "held": "settb=1/30000,setpts='(N/({rate})+0.8*gte(N\\,1.2*({rate})))/TB'",
    "gap": "settb=1/30000,setpts='(N/({rate})+3*gte(N\\,1.2*({rate})))/TB'",
}
_GROUPS = {
    "no B-frames": "-bf 0 -g 25",
    "B-frames": "-bf 2 -g 24",
    "open groups": "-bf 2 -g 12",
    "packed": "-bf 1 -g 24",
}


def make(source: Source, folder: Path) -> Path:
    """The file of a source in this folder. Raises AssertionError where FFmpeg refuses to write it."""
    path = folder / f"source.{source.container}"
    packed = source.groups == "packed"
    turned = source.turn != "0" and not _turned_in_stream(source)
    trimmed = source.edits.startswith("trimmed")
    if not (packed or turned or trimmed):
        return _encode(source, path, _muxer(source))
    encoded = _encode(source, folder / f"encoded.{source.container}", _plain_muxer(source))
    if packed:
        packed_b_frames.pack(encoded, path)
    else:
        how = _header_turn(source) if turned else []
        how += ["-ss", "0.53"] if source.edits == "trimmed start" else []
        how += ["-t", "1.9"] if source.edits == "trimmed end" else []
        ffmpeg.run(*how, "-i", encoded, "-map", "0", "-c", "copy", *_muxer(source), path)
    encoded.unlink()
    return path


def _encode(source: Source, path: Path, muxer: list[str]) -> Path:
    width, height = map(int, source.size.split("x"))
    layout = "rgba" if source.alpha else "rgb24"
    how = ["-f", "rawvideo", "-pix_fmt", layout, "-s", source.size, "-framerate", source.rate]
    how += ["-itsoffset", "0.7"] if source.sound == "begins first" else []
    how += ["-i", "-", *_sound(source), "-map", "0:v", "-vf", _filters(source), "-fps_mode", "passthrough"]
    how += ["-enc_time_base", "1/30000"] if source.timing in ("alternating", "held", "gap") else []
    how += ["-threads", "1", "-strict", "-2", "-c:v", *_codec(source), "-map_metadata", "-1", *muxer]
    in_stream = _turned_in_stream(source)
    cards = _cards(_count(source), width, height, _aspect(source), source.turn, in_stream, source.alpha)
    ffmpeg.run(*how, path, stdin=cards)
    return path


def _count(source: Source) -> int:
    return round(SECONDS * Fraction(source.rate))


def _aspect(source: Source) -> float:
    """The shape of the picture as it is shown, before it is turned."""
    width, height = map(int, source.size.split("x"))
    return float(width * Fraction(source.aspect) / height)


def _turned_in_stream(source: Source) -> bool:
    """Whether H.264's own message turns the picture, because the container's header cannot."""
    return source.turn != "0" and source.container not in ("mp4", "mov", "fragmented", "3gp", "mkv")


def _header_turn(source: Source) -> list[str]:
    turn, _, mirrored = source.turn.partition(" ")
    return ["-display_rotation", turn, *(["-display_hflip"] if mirrored else [])]


@lru_cache(maxsize=8)
def _cards(count: int, width: int, height: int, aspect: float, turn: str, in_stream: bool, alpha: bool) -> bytes:
    """Raw pictures of `width` x `height` that show upright cards once they are turned."""
    degrees, _, mirrored = turn.partition(" ")
    quarters = int(degrees) // 90
    if quarters % 2:
        width, height, aspect = height, width, 1 / aspect
    return b"".join(
        _stored(card.drawn(number, width, height, aspect, alpha), quarters, bool(mirrored), in_stream).tobytes()
        for number in range(count)
    )


def _stored(picture: NDArray[np.uint8], quarters: int, mirrored: bool, in_stream: bool) -> NDArray[np.uint8]:
    """What is stored so that `picture` is shown. A header's matrix turns first, H.264's own message mirrors first."""
    if mirrored and not in_stream:
        picture = picture[:, ::-1]
    picture = np.rot90(picture, -quarters)
    if mirrored and in_stream:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _filters(source: Source) -> str:
    space, primaries, transfer = _MATRICES[source.matrix]
    if source.layout == "pal8":
        parts = ["split[a][b];[a]palettegen=reserve_transparent=0[p];[b][p]paletteuse=dither=none"]
    elif source.gray:
        # swscale makes gray of full range alone; the luma plane of a colour picture has the range asked for
        deep = "yuv444p10le" if source.layout.endswith("10le") else "yuv444p"
        parts = [f"{_SCALE}:out_range={source.range}", f"format={deep}", "extractplanes=y"]
    elif source.yuv:
        parts = [f"{_SCALE}:out_range={source.range}:out_color_matrix={source.matrix}", f"format={source.layout}"]
    else:
        parts = [_SCALE, f"format={source.layout}"]
    if not source.tagged:
        parts.append("setparams=range=unspecified:colorspace=unknown:color_primaries=unknown:color_trc=unknown")
    elif source.yuv:
        parts.append(f"setparams=range={source.range}:colorspace={space}")
        parts.append(f"setparams=color_primaries={primaries}:color_trc={transfer}")
    elif source.gray:
        parts.append(f"setparams=range={source.range}")
    if source.aspect != "1":
        parts.append(f"setsar={source.aspect}")
    if source.timing != "constant":
        parts.append(_TIMINGS[source.timing].format(rate=source.rate))
    return ",".join(parts)


def _codec(source: Source) -> list[str]:
    codec = CODECS[source.codec]
    arguments = codec.arguments.split()
    if source.codec == "hevc":
        frames = {"no B-frames": "bframes=0:open-gop=0", "B-frames": "bframes=2:open-gop=0"}
        arguments[-1] += ":" + frames.get(source.groups, "bframes=2:open-gop=1:keyint=12:min-keyint=12")
    elif codec.b_frames:
        arguments += _GROUPS[source.groups].split()
        if source.codec == "h264" and source.groups == "open groups":
            arguments += ["-x264-params", "open-gop=1"]
    if _turned_in_stream(source):
        turn, _, mirrored = source.turn.partition(" ")
        flip = ":flip=horizontal" if mirrored else ""
        arguments += ["-bsf:v", f"h264_metadata=display_orientation=insert:rotate={turn}{flip}"]
    return arguments


def _sound(source: Source) -> list[str]:
    if source.sound == "none":
        return []
    seconds = SECONDS + (4 if source.sound == "longer" else 0)
    codec = "pcm_s16le" if source.container in ("avi", "mov") else "aac"
    return ["-f", "lavfi", "-i", f"sine=d={seconds}:r=16000", "-map", "1:a", "-c:a", codec]


def _plain_muxer(source: Source) -> list[str]:
    return ["-f", *_MUXERS.get(source.container, source.container).split()]


def _muxer(source: Source) -> list[str]:
    how = _plain_muxer(source)
    if source.start != "zero":
        how += ["-output_ts_offset", str(_STARTS_S[source.start])]
    if source.start == "negative":
        how += ["-avoid_negative_ts", "disabled"]
    if source.edits == "no edit list":
        how += ["-use_editlist", "0"]
    return how
