"""Chooses the sources of the reference matrix so that they include every pair of values that may matter."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cache


@dataclass(frozen=True)
class Codec:
    """An encoder of FFmpeg and what it can write. The first layout and container are its usual ones."""

    arguments: str
    layouts: tuple[str, ...]
    containers: tuple[str, ...]
    size: str = "192x144"
    aspect: str = "1"
    rates: tuple[str, ...] = ()
    b_frames: bool = False
    vfr: bool = True


CODECS = {
    "h264": Codec(
        "libx264 -preset superfast -crf 12",
        ("yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "gray"),
        ("mp4", "mov", "fragmented", "3gp", "mkv", "ts", "avi", "flv", "nut", "mpg", "mxf", "h264"),
        b_frames=True,
    ),
    "h264rgb": Codec("libx264rgb -preset superfast -crf 8", ("rgb24", "bgr0"), ("mkv", "mp4")),
    "hevc": Codec(
        "libx265 -preset ultrafast -crf 12 -x265-params pools=none:frame-threads=1:log-level=error",
        ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "gray", "gbrp"),
        ("mp4", "mov", "fragmented", "mkv", "ts", "flv", "hevc"),
        b_frames=True,
    ),
    "vp8": Codec(
        "libvpx -deadline realtime -cpu-used 8 -b:v 4M -auto-alt-ref 0",
        ("yuv420p", "yuva420p"),
        ("webm", "mkv", "ogg", "nut", "ivf", "avi"),
    ),
    "vp9": Codec(
        "libvpx-vp9 -deadline realtime -cpu-used 8 -crf 10 -b:v 0",
        ("yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuva420p", "gbrp"),
        ("webm", "mp4", "mkv", "ivf"),
    ),
    "av1": Codec(
        "libaom-av1 -usage realtime -cpu-used 8 -crf 10",
        ("yuv420p", "yuv444p", "yuv420p10le", "gray"),
        ("mp4", "webm", "mkv", "ivf", "obu"),
    ),
    "mpeg4": Codec(
        "mpeg4 -q:v 2", ("yuv420p",), ("avi", "mp4", "mov", "3gp", "mkv", "nut", "ts", "m4v"), b_frames=True
    ),
    "xvid": Codec("libxvid -q:v 2", ("yuv420p",), ("avi", "mkv"), b_frames=True, vfr=False),
    "msmpeg4": Codec("msmpeg4 -q:v 2", ("yuv420p",), ("avi", "asf")),
    "mpeg2": Codec(
        "mpeg2video -q:v 2", ("yuv420p", "yuv422p"), ("mpg", "ts", "mkv", "mp4", "mxf", "m2v"), b_frames=True, vfr=False
    ),
    "mpeg1": Codec(
        "mpeg1video -q:v 2",
        ("yuv420p",),
        ("mpg", "mkv"),
        rates=("25", "24000/1001", "24", "30000/1001", "30", "50", "60000/1001", "60"),
        b_frames=True,
        vfr=False,
    ),
    "mjpeg": Codec("mjpeg -q:v 2", ("yuvj420p", "yuvj422p", "yuvj444p"), ("avi", "mov", "mkv", "nut", "mjpeg")),
    "prores": Codec("prores_ks", ("yuv422p10le", "yuv444p10le", "yuva444p10le"), ("mov", "mkv", "nut")),
    "ffv1": Codec(
        "ffv1",
        (
            *("yuv420p", "yuv422p", "yuv444p", "yuv410p", "yuv411p", "yuv440p", "yuv420p10le", "yuv422p10le"),
            *("yuv444p12le", "gray", "gray10le", "yuva420p", "yuva444p", "bgr0", "bgra", "gbrp", "gbrp10le"),
        ),
        ("mkv", "avi", "nut", "mov"),
    ),
    "theora": Codec("libtheora -q:v 10", ("yuv420p", "yuv422p", "yuv444p"), ("ogg", "mkv"), vfr=False),
    "wmv2": Codec("wmv2 -q:v 2", ("yuv420p",), ("asf", "avi", "mkv")),
    "h263": Codec("h263 -q:v 2", ("yuv420p",), ("3gp", "mov", "avi"), size="176x144", aspect="12/11", vfr=False),
    "flv1": Codec("flv -q:v 2", ("yuv420p",), ("flv", "mkv")),
    "gif": Codec("gif", ("pal8",), ("gif",)),
    "qtrle": Codec("qtrle", ("rgb24", "argb", "gray"), ("mov",)),
    "png": Codec("png -pred mixed", ("rgb24", "rgba", "gray", "pal8"), ("mov", "mkv", "nut", "avi")),
    "apng": Codec("apng -plays 1", ("rgb24", "rgba"), ("apng",)),
    "dnxhr": Codec("dnxhd -profile:v dnxhr_hq", ("yuv422p",), ("mov", "mxf", "mkv"), size="256x144"),
    "raw": Codec("rawvideo", ("yuv420p", "rgb24", "bgr0", "uyvy422", "gray", "rgba"), ("nut", "avi", "mkv")),
    "raw in mov": Codec("rawvideo", ("uyvy422",), ("mov",)),
    "y4m": Codec("wrapped_avframe", ("yuv420p", "yuv422p", "yuv444p", "gray"), ("y4m",), vfr=False),
    "v210": Codec("v210", ("yuv422p10le",), ("mov", "mkv", "avi")),
    "dv": Codec("dvvideo", ("yuv420p",), ("avi", "dv"), "720x576", "16/15", rates=("25",), vfr=False),
    "jpeg2000": Codec("jpeg2000 -pred dwt53", ("yuv420p", "rgb24", "gray"), ("mov", "mxf", "mkv")),
    "rv20": Codec("rv20 -q:v 2", ("yuv420p",), ("rm", "mkv"), vfr=False),
    "wmv1": Codec("wmv1 -q:v 2", ("yuv420p",), ("asf", "avi")),
    "svq1": Codec("svq1 -q:v 1", ("yuv410p",), ("mov",)),
    "utvideo": Codec("utvideo", ("yuv420p", "yuv422p", "gbrp", "gbrap"), ("avi", "mkv")),
    "huffyuv": Codec("huffyuv", ("yuv422p", "rgb24", "bgra"), ("avi", "mkv")),
}
RATES = ("25", "10", "15", "24000/1001", "24", "30000/1001", "30", "50", "60000/1001", "60")
TURNS = ("0", "90", "180", "270", "0 mirrored", "90 mirrored", "180 mirrored", "270 mirrored")
# How many of the turns a container's header can store; in other containers H.264 may carry all of them in the stream.
_TURNS_IN = {"mp4": 8, "mov": 8, "fragmented": 8, "3gp": 8, "mkv": 4}
# Containers that store each frame's own time, and those that may begin late or before zero.
_VFR = ("mp4", "mov", "fragmented", "3gp", "mkv", "webm", "ts", "flv", "nut", "asf", "ivf")
_LATE = ("mp4", "mov", "3gp", "mkv", "webm", "ts", "flv", "nut", "asf", "mpg")
# With B-frames, FFmpeg itself does not know the presentation time of every frame in these.
_UNTIMED = (("xvid", "mkv"), ("h264", "mpg"), ("h264", "mxf"))
_NO_ASPECT = ("flv", "ivf", "obu", "apng", "gif", "mjpeg", "webm", "rm", "mxf")


@dataclass(frozen=True)
class Source:
    """A source: how it is encoded, tagged, timed and turned. The values of each axis are in `AXES`."""

    codec: str = "h264"
    container: str = "mp4"
    layout: str = "yuv420p"
    rate: str = "25"
    size: str = "192x144"
    range: str = "tv"
    matrix: str = "bt601"
    tagged: bool = True
    turn: str = "0"
    aspect: str = "1"
    start: str = "zero"
    groups: str = "no B-frames"
    timing: str = "constant"
    edits: str = "none"
    sound: str = "none"

    @property
    def name(self) -> str:
        """The codec, the container and the differences from the usual source, in words."""
        usual = Source()
        parts = [self.codec, self.container]
        for axis in fields(self)[2:]:
            value = getattr(self, axis.name)
            if value != getattr(usual, axis.name):
                parts.append("untagged" if axis.name == "tagged" else f"{axis.name} {value}")
        return ", ".join(parts).replace("/", "|")

    @property
    def alpha(self) -> bool:
        """Whether its encoded pictures have an alpha channel."""
        return self.layout.startswith(("yuva", "gbrap")) or self.layout in ("argb", "rgba", "bgra")

    @property
    def gray(self) -> bool:
        return self.layout.startswith("gray")

    @property
    def yuv(self) -> bool:
        """Whether it has a range and a matrix."""
        return self.layout.startswith(("yuv", "uyvy"))

    def fits(self) -> bool:
        """Whether such a file exists: FFmpeg writes it, and it is not the same as another source."""
        codec = CODECS[self.codec]
        turns = _TURNS_IN.get(self.container, 8 if self.codec == "h264" else 1)
        limits = (
            self.layout in codec.layouts,
            self.container in codec.containers,
            codec.b_frames or self.groups == "no B-frames",
            # FFmpeg's own times of these go back, stand still or have a gap: it cannot be the reference
            self.groups == "no B-frames" or (self.codec, self.container) not in _UNTIMED,
            self.container != "m4v" or "/" not in self.rate,
            # One packet with a P- and a B-frame: MPEG-4 in AVI
            self.groups != "packed" or (self.codec == "mpeg4" and self.container == "avi"),
            TURNS.index(self.turn) < turns,
            self.timing == "constant" or (codec.vfr and self.container in _VFR),
            self.start == "zero" or self.container in _LATE,
            self.start != "negative" or self.container in ("mp4", "mov"),
            self.start != "wraps" or self.container == "ts",
            self.edits == "none" or (self.container in ("mp4", "mov") and self.start == "zero"),
            self.aspect == codec.aspect or (codec.aspect == "1" and self.container not in _NO_ASPECT),
            self.yuv or (self.matrix == "bt601" and (self.range == "tv" or self.gray)),
            not self.layout.startswith("yuvj") or self.range == "pc",
            not self.gray or self.matrix == "bt601",
            self.size == codec.size or codec.size == Source.size,
            not codec.rates or self.rate in codec.rates,
            # PS, MXF and 3GP hold what broadcasters and phones write
            self.container not in ("mpg", "mxf", "3gp") or self.layout in ("yuv420p", "yuv422p"),
            self.container != "flv" or self.codec != "h264" or self.layout == "yuv420p",
            self.container != "gif" or self.rate in ("10", "25", "50"),
            self.container != "mxf" or self.rate in ("25", "24", "30", "24000/1001", "30000/1001", "50", "60"),
            # MPEG-2 can only state that pixels are square or that the picture is 4:3 or 16:9
            self.codec != "mpeg2"
            or self.aspect == "1"
            or (self.aspect == "4/3" and self.size in ("192x144", "320x240")),
            self.codec not in ("mpeg1", "rv20", "svq1") or self.aspect == "1",
            self.codec != "rv20" or self.size in ("192x144", "320x240"),
            # On a card this narrow, patches have only a few pixels
            self.aspect != "1/2" or self.size != "144x192",
            self.codec != "qtrle" or self.layout != "gray" or self.size in ("192x144", "320x240", "640x352"),
            self.sound == "none" or self.container in ("mp4", "mov", "mkv", "ts", "avi"),
        )
        return all(limits)


AXES: dict[str, tuple[str | bool, ...]] = {
    "codec": tuple(CODECS),
    "container": tuple(dict.fromkeys(name for codec in CODECS.values() for name in codec.containers)),
    "layout": tuple(dict.fromkeys(name for codec in CODECS.values() for name in codec.layouts)),
    "rate": RATES,
    "size": ("192x144", "320x240", "198x150", "144x192", "358x202", "640x352"),
    "range": ("tv", "pc"),
    "matrix": ("bt601", "bt709", "bt2020", "smpte240m", "fcc"),
    "tagged": (True, False),
    "turn": TURNS,
    "aspect": ("1", "4/3", "16/15", "1/2", "40/33"),
    "start": ("zero", "late", "days", "negative", "wraps"),
    "groups": ("no B-frames", "B-frames", "open groups", "packed"),
    "timing": ("constant", "dropped", "alternating", "held", "gap"),
    "edits": ("none", "trimmed start", "trimmed end", "no edit list"),
    "sound": ("none", "as long", "longer", "begins first"),
}
# The pairs of axes whose values are combined wherever a file can have both.
PAIRS = (
    ("codec", "container"),
    ("codec", "layout"),
    ("codec", "groups"),
    ("codec", "range"),
    ("container", "rate"),
    ("container", "timing"),
    ("container", "start"),
    ("container", "turn"),
    ("container", "aspect"),
    ("container", "groups"),
    ("container", "sound"),
    ("layout", "range"),
    ("layout", "matrix"),
    ("range", "matrix"),
    ("matrix", "tagged"),
    ("range", "tagged"),
    ("turn", "aspect"),
    ("turn", "size"),
    ("size", "aspect"),
    ("rate", "timing"),
    ("start", "groups"),
    ("start", "timing"),
    ("start", "sound"),
    ("timing", "groups"),
    ("timing", "sound"),
    ("edits", "groups"),
    ("edits", "timing"),
    ("edits", "sound"),
    ("edits", "turn"),
)

Pair = tuple[str, object, str, object]


def pairs_of(source: Source) -> set[Pair]:
    """The pairs of values that a source combines."""
    return {(first, getattr(source, first), second, getattr(source, second)) for first, second in PAIRS}


def single() -> Iterator[Source]:
    """The usual source of each codec, and every value of every other axis once on an otherwise usual source."""
    for name, codec in CODECS.items():
        yield _usual(name)
        for layout in codec.layouts[1:]:
            yield _with_layout(_usual(name), layout)
    for container in AXES["container"]:
        name = next(name for name, codec in CODECS.items() if container in codec.containers)
        yield replace(_usual(name), container=str(container))
    for axis in ("rate", "size", "matrix", "tagged", "range", "turn", "aspect", "start", "groups", "timing"):
        yield from _variations(Source(), axis)
    for axis in ("edits", "sound"):
        yield from _variations(Source(groups="B-frames"), axis)
    yield replace(Source(), container="ts", start="wraps")
    yield Source(codec="mpeg4", container="avi", groups="packed")
    # Players take HD without a matrix tag as BT.709, and HD tagged as BT.601 as that.
    yield Source(size="1280x720", rate="10", matrix="bt709", tagged=False)
    yield Source(size="1280x720", rate="10", matrix="bt601")
    yield Source(codec="ffv1", container="mkv", layout="yuv444p", size="199x149")


def covering(limit: int, seed: int) -> list[Source]:
    """Sources that combine as many pairs as `limit` allows, those with the most pairs first; fixed by the seed."""
    rng = random.Random(seed)
    simplest = _simplest()
    missing = sorted(simplest.keys() - _pairs(single()), key=repr)
    chosen: list[Source] = []
    while missing and len(chosen) < limit:
        candidates = [_vary(rng, simplest[rng.choice(missing)]) for _ in range(60)]
        best = max(candidates, key=lambda source: len(pairs_of(source).intersection(missing)))
        chosen.append(best)
        missing = [pair for pair in missing if pair not in pairs_of(best)]
    return chosen


def coverage(chosen: Iterable[Source]) -> tuple[int, int]:
    """How many of the pairs that a file can have are in these sources, and how many pairs exist."""
    possible = _simplest().keys()
    return len(possible & _pairs(chosen)), len(possible)


def sources(limit: int = 120, seed: int = 20) -> list[Source]:
    """The complete matrix: every single variation, and up to `limit` combinations; none twice."""
    return list(dict.fromkeys([*single(), *covering(limit, seed)]))


def _pairs(chosen: Iterable[Source]) -> set[Pair]:
    return {pair for source in chosen for pair in pairs_of(source)}


def _usual(codec: str) -> Source:
    settings = CODECS[codec]
    source = Source(codec=codec, container=settings.containers[0], size=settings.size, aspect=settings.aspect)
    return _with_layout(source, settings.layouts[0])


def _with_layout(source: Source, layout: str) -> Source:
    return replace(source, layout=layout, range="pc" if layout.startswith("yuvj") else "tv")


def _variations(source: Source, axis: str) -> Iterator[Source]:
    variations = (replace(source, **{axis: value}) for value in AXES[axis])  # type: ignore[arg-type]
    return (variation for variation in variations if variation.fits())


@cache
def _simplest() -> dict[Pair, list[Source]]:
    """Every pair of `PAIRS` that some file has, with otherwise usual files that have it."""
    plain_sources = [
        replace(_with_layout(_usual(name), layout), container=container)
        for name, codec in CODECS.items()
        for container in codec.containers
        for layout in codec.layouts
    ]
    files: dict[Pair, list[Source]] = {}
    for first, second in PAIRS:
        for first_value, second_value in itertools.product(AXES[first], AXES[second]):
            values = {first: first_value, second: second_value}
            fixed = {axis: values[axis] for axis in ("codec", "container", "layout") if axis in values}
            free = {axis: value for axis, value in values.items() if axis not in fixed}
            candidates = [
                replace(source, **free)  # type: ignore[arg-type]
                for source in plain_sources
                if all(getattr(source, axis) == value for axis, value in fixed.items())
            ]
            fitting = [source for source in candidates if source.fits()]
            if fitting:
                files[first, first_value, second, second_value] = fitting
    return files


def _vary(rng: random.Random, files: list[Source]) -> Source:
    """One of these files with other values on a few of its usual axes, as many as fit together."""
    # Every codec is equally likely, however many layouts and containers it has.
    codec = rng.choice(sorted({source.codec for source in files}))
    source = rng.choice([source for source in files if source.codec == codec])
    usual = _with_layout(_usual(codec), source.layout)
    for axis in rng.sample([*AXES], 9):
        if axis not in ("codec", "container", "layout") and getattr(source, axis) == getattr(usual, axis):
            variation = replace(source, **{axis: rng.choice(AXES[axis])})  # type: ignore[arg-type]
            source = variation if variation.fits() else source
    return source
