"""Makes the files of the reference matrix with FFmpeg: numbered cards, encoded, tagged, timed and turned."""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import card
import numpy as np
import packed_b_frames
from numpy.typing import NDArray
from reference_sources import CODECS, Source

from benchmarks import ffmpeg

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
# Just before MPEG-TS's clock of 33 bits at 90 kHz wraps to zero.
_WRAP_S = 2**33 / 90_000 - 1.3
_STARTS_S = {"late": 7.3, "days": 200_000.0, "negative": -0.5, "wraps": _WRAP_S}
_TIMINGS = {
    # One frame in five is missing; every other frame is shown longer; one frame is held for most of a second; nothing
    # was recorded for three seconds.
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
    """Write a source's file into this folder. Raises AssertionError if FFmpeg refuses to write it."""
    path = folder / f"source.{source.container}"
    is_packed = source.groups == "packed"
    is_turned = source.turn != "0" and not _is_turned_in_stream(source)
    is_trimmed = source.edits.startswith("trimmed")
    if not (is_packed or is_turned or is_trimmed):
        return _encode(source, path, _muxer_arguments(source))
    encoded = _encode(source, folder / f"encoded.{source.container}", _plain_muxer_arguments(source))
    if is_packed:
        packed_b_frames.pack(encoded, path)
    else:
        options = _header_turn_arguments(source) if is_turned else []
        options += ["-ss", "0.53"] if source.edits == "trimmed start" else []
        options += ["-t", "1.9"] if source.edits == "trimmed end" else []
        ffmpeg.run(*options, "-i", encoded, "-map", "0", "-c", "copy", *_muxer_arguments(source), path)
    encoded.unlink()
    return path


def _encode(source: Source, path: Path, muxer: list[str]) -> Path:
    width, height = map(int, source.size.split("x"))
    layout = "rgba" if source.alpha else "rgb24"
    arguments = ["-f", "rawvideo", "-pix_fmt", layout, "-s", source.size, "-framerate", source.rate]
    arguments += ["-itsoffset", "0.7"] if source.sound == "begins first" else []
    arguments += [
        "-i",
        "-",
        *_sound_arguments(source),
        "-map",
        "0:v",
        "-vf",
        _build_filters(source),
        "-fps_mode",
        "passthrough",
    ]
    arguments += ["-enc_time_base", "1/30000"] if source.timing in ("alternating", "held", "gap") else []
    arguments += ["-threads", "1", "-strict", "-2", "-c:v", *_codec_arguments(source), "-map_metadata", "-1", *muxer]
    in_stream = _is_turned_in_stream(source)
    cards = _draw_cards(
        _count_frames(source), width, height, _displayed_aspect(source), source.turn, in_stream, source.alpha
    )
    ffmpeg.run(*arguments, path, stdin=cards)
    return path


def _count_frames(source: Source) -> int:
    return round(SECONDS * Fraction(source.rate))


def _displayed_aspect(source: Source) -> float:
    """The aspect of the picture as displayed, before it is turned."""
    width, height = map(int, source.size.split("x"))
    return float(width * Fraction(source.aspect) / height)


def _is_turned_in_stream(source: Source) -> bool:
    """Whether H.264's own message turns the picture because the container's header cannot."""
    return source.turn != "0" and source.container not in ("mp4", "mov", "fragmented", "3gp", "mkv")


def _header_turn_arguments(source: Source) -> list[str]:
    turn, _, mirrored = source.turn.partition(" ")
    return ["-display_rotation", turn, *(["-display_hflip"] if mirrored else [])]


@lru_cache(maxsize=8)
def _draw_cards(count: int, width: int, height: int, aspect: float, turn: str, in_stream: bool, alpha: bool) -> bytes:
    """Raw pictures of `width` x `height` that show upright cards once they are turned."""
    degrees, _, mirrored = turn.partition(" ")
    quarters = int(degrees) // 90
    if quarters % 2:
        width, height, aspect = height, width, 1 / aspect
    return b"".join(
        _orient(card.draw(number, width, height, aspect, alpha), quarters, bool(mirrored), in_stream).tobytes()
        for number in range(count)
    )


def _orient(picture: NDArray[np.uint8], quarters: int, mirrored: bool, in_stream: bool) -> NDArray[np.uint8]:
    """The picture to store so that `picture` is shown. A header's matrix turns first, H.264's message mirrors first."""
    if mirrored and not in_stream:
        picture = picture[:, ::-1]
    picture = np.rot90(picture, -quarters)
    if mirrored and in_stream:
        picture = picture[:, ::-1]
    return np.ascontiguousarray(picture)


def _build_filters(source: Source) -> str:
    space, primaries, transfer = _MATRICES[source.matrix]
    if source.layout == "pal8":
        parts = ["split[a][b];[a]palettegen=reserve_transparent=0[p];[b][p]paletteuse=dither=none"]
    elif source.gray:
        # swscale makes gray of full range only; the luma plane of a colour picture has the requested range
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


def _codec_arguments(source: Source) -> list[str]:
    codec = CODECS[source.codec]
    arguments = codec.arguments.split()
    if source.codec == "hevc":
        frames = {"no B-frames": "bframes=0:open-gop=0", "B-frames": "bframes=2:open-gop=0"}
        arguments[-1] += ":" + frames.get(source.groups, "bframes=2:open-gop=1:keyint=12:min-keyint=12")
    elif codec.b_frames:
        arguments += _GROUPS[source.groups].split()
        if source.codec == "h264" and source.groups == "open groups":
            arguments += ["-x264-params", "open-gop=1"]
    if _is_turned_in_stream(source):
        turn, _, mirrored = source.turn.partition(" ")
        flip = ":flip=horizontal" if mirrored else ""
        arguments += ["-bsf:v", f"h264_metadata=display_orientation=insert:rotate={turn}{flip}"]
    return arguments


def _sound_arguments(source: Source) -> list[str]:
    if source.sound == "none":
        return []
    seconds = SECONDS + (4 if source.sound == "longer" else 0)
    codec = "pcm_s16le" if source.container in ("avi", "mov") else "aac"
    return ["-f", "lavfi", "-i", f"sine=d={seconds}:r=16000", "-map", "1:a", "-c:a", codec]


def _plain_muxer_arguments(source: Source) -> list[str]:
    return ["-f", *_MUXERS.get(source.container, source.container).split()]


def _muxer_arguments(source: Source) -> list[str]:
    arguments = _plain_muxer_arguments(source)
    if source.start != "zero":
        arguments += ["-output_ts_offset", str(_STARTS_S[source.start])]
    if source.start == "negative":
        arguments += ["-avoid_negative_ts", "disabled"]
    if source.edits == "no edit list":
        arguments += ["-use_editlist", "0"]
    return arguments
