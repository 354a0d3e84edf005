"""`vdot-train sample` reads videos and pictures of any format exactly as ingest does."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numbered import LIMIT, four_corners, number_of, numbered, write
from PIL import Image, ImageOps

from pipeline.errors import UsageError
from pipeline.video.display import display_of, to_rgb
from pipeline.video.frames import cut_windows, read_frames, read_thumbnails
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import probe_video
from training.encoding.video_files import read_picture, read_video

CASES = Path(__file__).parents[2] / "data/cases"
FPS, LENGTH = 16.0, 17
TINT = np.array([1.0, 0.6, 0.4])


def ingest_clip(path: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The first clip that ingest makes of a file of one shot, before it is encoded."""
    length, height, width = shape
    source = probe_video(path, LIMIT)
    pieces = [*read_thumbnails(read_frames(path, source))]
    times, joined = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("times", "joined"))
    shots = shots_of([(0, len(times) - 1)], times, float(pieces[-1].ends[-1]), joined)
    windows = Grid(FPS, length, min_frames=length).windows("x", shots[:1], times)
    ((_, clip),) = cut_windows(read_frames(path, source), source, windows[:1], FPS, (width, height))
    return clip


@dataclass(frozen=True)
class Wild:
    """An arbitrary video: its encoding, its display properties, and the start of its frames in milliseconds."""

    name: str
    codec: str
    options: tuple[tuple[str, str], ...]
    rotation: int
    mirrored: bool
    aspect: Fraction
    matrix: int
    full: bool
    times: tuple[int, ...]

    def write(self, folder: Path) -> Path:
        path = folder / self.name
        matrix = Colorspace.ITU709 if self.matrix == 1 else Colorspace.ITU601
        levels = ColorRange.JPEG if self.full else ColorRange.MPEG
        with av.open(path, "w") as container:
            stream = container.add_stream(self.codec, rate=25, options=dict(self.options))
            stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
            stream.codec_context.time_base = Fraction(1, 25) if self.name.endswith("avi") else Fraction(1, 1000)
            stream.codec_context.sample_aspect_ratio = self.aspect
            stream.codec_context.colorspace, stream.codec_context.color_range = self.matrix, levels
            if self.rotation or self.mirrored:
                stream.set_display_rotation(self.rotation, hflip=self.mirrored)
            for number, time_ms in enumerate(self.times):
                frame = av.VideoFrame.from_ndarray(picture_of(number), "rgb24").reformat(
                    format="yuv420p", dst_colorspace=matrix, dst_color_range=levels
                )
                frame.pts = round(Fraction(time_ms, 1000) / stream.codec_context.time_base)
                frame.time_base = stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        wide, high = round(160 * self.aspect), 96
        return (high, wide) if self.rotation in (90, 270) else (wide, high)

    def expected(self, early_ms: float = 1.0) -> list[int]:
        """The frame number at each grid point, which may be a frame that begins up to `early_ms` later."""
        begins = np.array(self.times) - self.times[0]
        return [
            int(np.searchsorted(begins, point * 1000 / FPS + early_ms, side="right")) - 1 for point in range(LENGTH)
        ]

    def stored(self, picture: np.ndarray) -> np.ndarray:
        """A displayed picture rotated back to its orientation in the file."""
        if self.mirrored:
            picture = picture[:, ::-1]
        return np.rot90(picture, -self.rotation // 90)


def block_centers(picture: np.ndarray) -> np.ndarray:
    """The colours at the centers of the blocks of a numbered picture."""
    height, width = picture.shape[:2]
    rows = ((np.arange(2) + 0.5) * height / 2).astype(int)
    columns = ((np.arange(5) + 0.5) * width / 5).astype(int)
    return picture[rows][:, columns].astype(int)


def picture_of(number: int) -> np.ndarray:
    return (numbered(number) * TINT).round().astype(np.uint8)


@st.composite
def wild(draw: Any) -> Wild:
    h264, bent = "libx264", {"bf": draw(st.sampled_from(["0", "3"])), "preset": "veryfast", "crf": "10"}
    kinds: dict[str, tuple[str, dict[str, str]]] = {
        "v.mp4": (h264, bent),
        "v.mov": (h264, bent),
        "v.mkv": (h264, bent),
        "v.ts": (h264, bent),
        "v.avi": ("mpeg4", {"b": "4M"}),
        "v.webm": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "b": "2M"}),
    }
    name = draw(st.sampled_from([*kinds]))
    codec, options = kinds[name]
    turns = name in ("v.mp4", "v.mov")
    steps = st.lists(st.integers(8, 180), min_size=12, max_size=12)
    even = name == "v.avi" or draw(st.booleans())
    begins = 0 if name == "v.avi" else draw(st.sampled_from([0, 480, 2000, 3_600_000]))
    times = np.cumsum([begins] + [40] * 34 if even else [begins, *draw(steps), *[40] * 30])
    return Wild(
        name,
        codec,
        tuple(options.items()),
        draw(st.sampled_from([0, 90, 180, 270])) if turns else 0,
        turns and draw(st.booleans()),
        draw(st.sampled_from([Fraction(1), Fraction(4, 3), Fraction(8, 9)])),
        # AVI has no tags; 2 means unspecified.
        2 if name == "v.avi" else draw(st.sampled_from([1, 2, 6])),
        name != "v.avi" and draw(st.booleans()),
        tuple(times.tolist()),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=wild())
def test_a_video_is_seen_as_ingest_sees_it(file: Wild, tmp_path: Path) -> None:
    # Excludes frames exactly at the limit, where float rounding decides.
    assume(file.expected(0.9) == file.expected(1.1))
    path = file.write(tmp_path)
    width, height = file.size
    frames = read_video(path, (LENGTH, height, width))
    assert np.array_equal(frames, ingest_clip(path, (LENGTH, height, width)))
    assert [number_of(file.stored(frame)) for frame in frames] == file.expected()
    for frame, number in zip(frames, file.expected(), strict=True):
        assert np.abs(block_centers(file.stored(frame)) - block_centers(picture_of(number))).max() <= 12


def test_an_upright_phones_video_stands_upright() -> None:
    case = CASES / "phone_rot90.mp4"
    shape = (17, 160, 96)
    frames = read_video(case, shape)
    assert np.array_equal(frames, ingest_clip(case, shape))
    top = frames[:, :16].reshape(-1, 3).mean(axis=0)
    assert top[0] > 150
    assert max(top[1:]) < 60


@pytest.mark.parametrize(
    "name",
    [
        "packed_b.avi", "h264_bf.avi", "raw_remuxed_ff9.mp4", "subs_longer.mkv", "two_videos.mkv", "copyts_cut.mkv",
        "unix_epoch.mkv", "circle.ts", "gap_60s.mp4", "gray_limited_hevc.mp4", "crop.mkv", "portrait_360x640.mp4",
    ],
)  # fmt: skip
def test_real_shapes_of_trouble_are_read_as_ingest_reads_them(name: str) -> None:
    shape = (33, 96, 160)
    assert np.array_equal(read_video(CASES / name, shape), ingest_clip(CASES / name, shape))


def test_what_is_transparent_is_black_in_a_video(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 160, 4), np.uint8)
    noise[..., 3] = 0
    noise[32:64, 64:96] = (200, 100, 50, 255)
    with av.open(tmp_path / "alpha.mov", "w") as container:
        stream = container.add_stream("qtrle", rate=16)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "argb"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "rgba").reformat(format="argb")))
        container.mux(stream.encode(None))
    frames = read_video(tmp_path / "alpha.mov", (5, 96, 160))
    assert frames[:, :32].max() == frames[:, 64:].max() == 0
    assert np.abs(frames[:, 40:56, 72:88].astype(int) - (200, 100, 50)).max() <= 1


def test_only_as_much_is_decoded_as_is_seen(tmp_path: Path) -> None:
    """A video without its end can be read up to there."""
    source = write(tmp_path / "whole.mkv", map(numbered, range(200)))
    (tmp_path / "cut.mkv").write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    frames = read_video(tmp_path / "cut.mkv", (17, 96, 160))
    assert np.array_equal(frames, read_video(source, (17, 96, 160)))
    with pytest.raises(UsageError, match=r"cut\.mkv cannot be read as a video \(decoded \d+ frames"):
        read_video(tmp_path / "cut.mkv", (121, 96, 160))


def test_a_pause_ends_what_is_seen(tmp_path: Path) -> None:
    times = [40 * number + (60_000 if number >= 50 else 0) for number in range(100)]
    path = write(tmp_path / "gap.mkv", map(numbered, range(100)), pts=times, unit=Fraction(1, 1000))
    assert number_of(read_video(path, (33, 96, 160))[-1]) == 49
    with pytest.raises(UsageError, match=r"gap\.mkv has 33 frames at 16 a second, and 37 are needed: --frames"):
        read_video(path, (37, 96, 160))


def test_more_frames_than_a_clip_can_have_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mkv", map(numbered, range(5)))
    with pytest.raises(UsageError, match="--frames: "):
        read_video(path, (40_001, 96, 160))


def encode_picture(picture: Image.Image, layout: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, layout, **options)
    return buffer.getvalue()


def colours(*, alpha: bool = False) -> Image.Image:
    patches = np.random.default_rng(1).integers(0, 256, (6, 10, 4 if alpha else 3), np.uint8)
    return Image.fromarray(np.repeat(np.repeat(patches, 16, axis=0), 16, axis=1))


def decode_like_ingest(data: bytes) -> np.ndarray:
    """A picture decoded by FFmpeg as in ingest, on white."""
    codec = {b"\x89PNG": "png", b"RIFF": "webp"}.get(data[:4], "mjpeg")
    (frame,) = av.CodecContext.create(codec, "r").decode(av.Packet(data))
    display = display_of(frame, 1.0, None)
    return to_rgb(frame, display, (display.width, display.height), background=255)


JPEG = {"quality": 95, "subsampling": 0}


@pytest.mark.parametrize(
    "data",
    [
        encode_picture(colours(), "PNG"),
        encode_picture(colours(alpha=True), "PNG"),
        encode_picture(colours(alpha=True).quantize(64), "PNG"),
        encode_picture(colours(alpha=True).convert("LA"), "PNG"),
        encode_picture(colours().convert("1"), "PNG"),
        encode_picture(colours().convert("I;16"), "PNG"),
        encode_picture(colours(), "JPEG", **JPEG),
        encode_picture(colours(), "JPEG", **JPEG, progressive=True),
        encode_picture(colours().convert("L"), "JPEG", **JPEG),
        encode_picture(colours().convert("CMYK"), "JPEG", **JPEG),
        encode_picture(colours().resize((1600, 960), Image.Resampling.NEAREST), "JPEG", **JPEG),
        encode_picture(colours().resize((1600, 960), Image.Resampling.NEAREST), "WEBP", quality=95),
        encode_picture(colours(alpha=True), "WEBP", lossless=True, exact=True),
        encode_picture(colours(alpha=True), "WEBP", quality=95),
    ],
    ids=map(str, range(14)),
)
def test_a_picture_has_the_colours_that_ingest_would_see(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(data)
    actual, expected = read_picture(tmp_path / "picture"), decode_like_ingest(data)
    assert actual.shape == expected.shape
    # The center of each patch: readers differ in how they smooth the edges of subsampled colour.
    middle = (
        slice(actual.shape[0] // 12, None, actual.shape[0] // 6),
        slice(actual.shape[1] // 20, None, actual.shape[1] // 10),
    )
    assert np.abs(actual[middle].astype(int) - expected[middle]).max() <= 4


@pytest.mark.parametrize("layout", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_cameras_picture_is_upright(layout: str, orientation: int, tmp_path: Path) -> None:
    upright = Image.fromarray(four_corners(64, 96))
    tag = Image.Exif()
    tag[0x0112] = orientation
    # Storing the inverse orientation makes the tag restore the upright picture.
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    turning = Image.Exif()
    turning[0x0112] = inverse
    stored = ImageOps.exif_transpose(Image.open(io.BytesIO(encode_picture(upright, "PNG", exif=turning))))
    (tmp_path / "picture").write_bytes(encode_picture(stored, layout, exif=tag))
    actual = read_picture(tmp_path / "picture")
    assert actual.shape == (96, 64, 3)
    assert np.abs(actual.astype(int) - four_corners(64, 96)).mean() < 6


def test_a_subject_on_transparency_stands_on_white(tmp_path: Path) -> None:
    cutout = np.zeros((96, 160, 4), np.uint8)
    cutout[..., :3] = np.random.default_rng(0).integers(0, 256, (96, 160, 3))
    cutout[32:64, 64:96] = (200, 100, 50, 255)
    for layout, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        (tmp_path / "cutout").write_bytes(encode_picture(Image.fromarray(cutout), layout, **options))
        actual = read_picture(tmp_path / "cutout")
        assert actual[:32].min() == actual[64:].min() == 255
        assert np.array_equal(actual[40, 80], (200, 100, 50))
    assert np.array_equal(read_picture(CASES / "cutout.png")[0, 0], (255, 255, 255))


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    jpeg, png = encode_picture(colours(), "JPEG"), encode_picture(colours(), "PNG")
    for data in (
        b"",
        b"no picture",
        jpeg[: len(jpeg) // 2],
        png[: len(png) // 2],
        png[:30],
        encode_picture(colours(), "GIF"),
    ):
        (tmp_path / "file.png").write_bytes(data)
        with pytest.raises(UsageError, match=r"file\.png cannot be read as a picture, PNG, JPEG or WebP"):
            read_picture(tmp_path / "file.png")
