"""Tests that pictures are as a player shows them: transparency, gray, crops of the container, changing sizes."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange
from numbered import LIMIT, four_corners, write

from benchmarks.ffmpeg import run
from pipeline.video.containers import is_fragmented, read_crop
from pipeline.video.display import Display, thumbnail, to_rgb
from pipeline.video.frames import cut_windows, read_frames
from pipeline.video.grid import Grid, shots_of
from pipeline.video.probe import probe_video


def ffmpeg(*arguments: object, pictures: np.ndarray | None = None) -> None:
    """Run FFmpeg's own program; `pictures`, uint8 [T, H, W, 3 or 4], is its input if it reads from `-`."""
    stdin = None if pictures is None else pictures.tobytes()
    run(*arguments, stdin=stdin)


def raw_input(pictures: np.ndarray) -> tuple[object, ...]:
    """Arguments that describe the pictures to FFmpeg."""
    height, width, channels = pictures.shape[1:]
    layout = {1: "gray", 3: "rgb24", 4: "rgba"}[channels]
    return ("-f", "rawvideo", "-pix_fmt", layout, "-s", f"{width}x{height}", "-r", 25, "-i", "-")


def read_first_frame(path: Path) -> np.ndarray:
    """The first frame as it is displayed."""
    source = probe_video(path, LIMIT)
    frame = next(read_frames(path, source)).frame
    return to_rgb(frame, source.display, (source.display.width, source.display.height))


def read_first_with_ffmpeg(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The first frame as FFmpeg's own program shows it."""
    scaling = ("-sws_flags", "accurate_rnd+full_chroma_int")
    arguments = ("-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", *scaling, "-")
    picture = run("-i", path, *arguments).stdout
    return np.frombuffer(picture, np.uint8).reshape(shape)


CUTOUT = {
    "qtrle": ("c.mov", "argb"),
    "png": ("c.mov", "rgba"),
    "apng": ("c.apng", "rgba"),
    "prores_ks": ("c.mov", "yuva444p10le"),
    "ffv1": ("c.mkv", "yuva420p"),
    "utvideo": ("c.avi", "gbrap"),
    "gif": ("c.gif", "pal8"),
    "rawvideo": ("c.nut", "bgra"),
}


@pytest.mark.parametrize("codec", [*CUTOUT])
def test_what_is_transparent_is_black(tmp_path: Path, codec: str) -> None:
    name, layout = CUTOUT[codec]
    picture = np.dstack([four_corners(160, 96), np.full((96, 160), 255, np.uint8)])
    # Under an alpha of 0 there is noise, which must be invisible; under one of 128 the colours are halved.
    noise = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    picture[:48, :80] = np.dstack([noise, np.zeros((48, 80), np.uint8)])
    is_partial = codec not in ("gif", "prores_ks")
    picture[48:, 80:, 3] = 128 if is_partial else 255
    pictures = np.stack([picture] * 3)
    palette = "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none"
    arguments = ("-vf", palette) if codec == "gif" else ("-c:v", codec, "-pix_fmt", layout)
    ffmpeg(*raw_input(pictures), *arguments, tmp_path / name, pictures=pictures)
    displayed = read_first_frame(tmp_path / name).astype(int)
    inner = displayed[4:44, 4:76]
    assert inner.max() <= 3
    expected = four_corners(160, 96).astype(int)
    assert np.abs(displayed[4:44, 84:156] - expected[4:44, 84:156]).mean() < 6
    assert np.abs(displayed[52:92, 84:156] - expected[52:92, 84:156] * (0.5 if is_partial else 1)).mean() < 6
    source = probe_video(tmp_path / name, LIMIT)
    assert thumbnail(next(read_frames(tmp_path / name, source)).frame)[2:10, 2:20].max() <= 6


@pytest.mark.parametrize("background", [0, 255])
def test_transparency_shows_the_background(background: int) -> None:
    frame = av.VideoFrame.from_ndarray(np.dstack([four_corners(64, 48), np.zeros((48, 64), np.uint8)]), "rgba")
    assert (to_rgb(frame, Display(64, 48), (32, 32), background=background) == background).all()


@pytest.mark.parametrize("layout", ["gray", "gray10le", "ya8", "gray16le"])
@pytest.mark.parametrize("limited", [True, False])
def test_gray_of_either_range(layout: str, limited: bool) -> None:
    levels = np.array([16, 81, 128, 235] if limited else [0, 76, 128, 255], np.uint8)
    flat = av.VideoFrame.from_ndarray(np.repeat(levels, 16)[None].repeat(48, axis=0), "gray")
    flat.color_range = ColorRange.JPEG
    frame = flat.reformat(format=layout)
    frame.color_range = ColorRange.MPEG if limited else ColorRange.JPEG
    displayed = to_rgb(frame, Display(64, 48), (64, 48))[24, 8::16, 0]
    expected = np.rint((levels.astype(float) - 16) * 255 / 219) if limited else levels
    # More than eight bits are first rounded to eight.
    assert np.abs(displayed.astype(int) - expected).max() <= (1 if layout in ("gray", "ya8") else 2)


@pytest.mark.parametrize("codec", ["libx265", "libx264", "libsvtav1", "ffv1"])
def test_gray_that_a_file_says_is_limited(tmp_path: Path, codec: str) -> None:
    levels = np.repeat(np.array([16, 60, 128, 235], np.uint8), 40)[None].repeat(96, axis=0)
    pictures = np.stack([levels[..., None]] * 5)
    layout = "gray" if codec != "libsvtav1" else "yuv420p"
    # The levels are already limited, so they are stored unchanged.
    arguments = (
        ("-vf", f"setrange=tv,format={layout}", "-color_range", "tv", "-crf", 4)
        if codec != "ffv1"
        else ("-vf", "setrange=tv,format=gray", "-color_range", "tv")
    )
    extra = {"libx265": ("-x265-params", "range=limited:log-level=none")}.get(codec, ())
    path = tmp_path / "g.mkv"
    ffmpeg(*raw_input(pictures), "-c:v", codec, *arguments, *extra, path, pictures=pictures)
    source = probe_video(path, LIMIT)
    frame = next(read_frames(path, source)).frame
    stored = np.frombuffer(frame.planes[0], np.uint8).reshape(-1, frame.planes[0].line_size)[48, 20:160:40]
    if frame.color_range != ColorRange.MPEG:
        pytest.fail(f"{codec} wrote {frame.color_range}: the test file is not of the kind")
    displayed = to_rgb(frame, source.display, (160, 96))[48, 20::40, 0]
    assert np.abs(displayed.astype(int) - np.clip(np.rint((stored.astype(float) - 16) * 255 / 219), 0, 255)).max() <= 2


@pytest.mark.parametrize("turn", [0, 90])
@pytest.mark.parametrize("crop", [(0, 40, 0, 40), (20, 0, 60, 0), (3, 5, 7, 9)])
def test_a_crop_of_the_container(tmp_path: Path, crop: tuple[int, int, int, int], turn: int) -> None:
    left, top, right, bottom = crop
    inner = four_corners(160, 96)
    picture = np.full(
        (96 + top + bottom + (top + bottom) % 2, 160 + left + right + (left + right) % 2, 3), 255, np.uint8
    )
    picture[..., 1:] = 0
    picture[top : top + 96, left : left + 160] = inner
    bottom, right = picture.shape[0] - top - 96, picture.shape[1] - left - 160

    def prepare(stream: Any) -> None:
        if turn:
            stream.set_display_rotation(turn)

    plain = write(tmp_path / "p.mp4", [picture] * 3, layout="yuv444p", options={"crf": "4"}, prepare=prepare)
    aperture = add_clean_aperture(plain, tmp_path / "c.mp4", picture.shape, crop)
    # FFmpeg writes the aperture into Matroska as PixelCrop.
    ffmpeg("-i", aperture, "-c", "copy", tmp_path / "c.mkv")
    for path in (aperture, tmp_path / "c.mkv"):
        displayed = read_first_frame(path)
        expected = np.rot90(inner, turn // 90)
        assert displayed.shape == expected.shape, path.name
        assert np.abs(displayed.astype(int) - expected).mean() < 3, path.name
        assert np.abs(displayed.astype(int) - read_first_with_ffmpeg(path, displayed.shape)).max() <= 2, path.name


def add_clean_aperture(plain: Path, path: Path, shape: tuple[int, ...], crop: tuple[int, int, int, int]) -> Path:
    """Write an MP4 with a clean aperture: the box is inserted at the end of the sample's description."""
    height, width = shape[:2]
    left, top, right, bottom = crop[0], crop[1], width - crop[0] - 160, height - crop[1] - 96
    data = bytearray(plain.read_bytes())
    numbers = [160, 1, 96, 1, left - right, 2, top - bottom, 2]
    box = (40).to_bytes(4) + b"clap" + b"".join(number.to_bytes(4, signed=True) for number in numbers)
    position = data.index(b"avc1", data.index(b"stsd")) - 4
    entry = int.from_bytes(data[position : position + 4])
    data[position + entry : position + entry] = box
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = data.index(name, data.index(b"moov")) - 4
        data[start : start + 4] = (int.from_bytes(data[start : start + 4]) + 40).to_bytes(4)
    assert data.index(b"mdat") < data.index(b"moov")  # otherwise chunk offsets would now be wrong
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("sizes", [((320, 240), (240, 320)), ((320, 240), (640, 480)), ((320, 180), (320, 240))])
def test_a_circle_stays_round_where_the_size_changes(tmp_path: Path, sizes: tuple[tuple[int, int], ...]) -> None:
    parts = []
    for number, (width, height) in enumerate(sizes):
        y, x = np.mgrid[:height, :width]
        radius = min(width, height) / 3
        disc = np.hypot(x - width / 2, y - height / 2) < radius
        pictures = np.repeat((disc[..., None] * np.uint8(255)).repeat(3, axis=2)[None], 50, axis=0)
        part = tmp_path / f"{number}.ts"
        ffmpeg(*raw_input(pictures), "-c:v", "libx264", "-pix_fmt", "yuv420p", "-output_ts_offset", 2.08 * number, part,
               pictures=pictures)  # fmt: skip
        parts.append(part.read_bytes())
    path = tmp_path / "changes.ts"
    path.write_bytes(b"".join(parts))
    source = probe_video(path, LIMIT)
    decoded = list(read_frames(path, source))
    assert len(decoded) == 100
    times = np.array([frame.time_s for frame in decoded])
    same_aspect = abs(sizes[0][0] / sizes[0][1] - sizes[1][0] / sizes[1][1]) < 0.01
    assert [index for index, frame in enumerate(decoded) if not frame.joined] == ([] if same_aspect else [50])
    shots = shots_of([(0, 99)], times, times[-1] + 0.04, np.array([frame.joined for frame in decoded]))
    windows = Grid(min_frames=5).windows("x", shots, times)
    clips = list(cut_windows(iter(decoded), source, windows, 16.0, (320, 240)))
    assert len(clips) == (1 if same_aspect else 2)
    for _, clip in clips:
        for picture in clip[:: len(clip) - 1]:
            rows, columns = np.nonzero(picture[..., 0] > 128)
            disc_width, disc_height = np.ptp(columns) + 1, np.ptp(rows) + 1
            if disc_width < 318 and disc_height < 238:  # not cut off by the crop to the first part's shape
                assert disc_width / disc_height == pytest.approx(1, abs=0.03)


def test_the_pixels_shape_holds_for_every_size(tmp_path: Path) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)

    path = write(tmp_path / "s.ts", [four_corners(176, 144)] * 5, prepare=prepare)
    assert probe_video(path, LIMIT).display == Display(256, 144)


@pytest.mark.parametrize(("orientation", "turn"), [(1, 0), (3, 180), (6, 270), (8, 90)])
def test_a_camera_that_writes_exif_into_its_frames(tmp_path: Path, orientation: int, turn: int) -> None:
    plain, path = tmp_path / "p.avi", tmp_path / "exif.avi"
    stored = four_corners(160, 96)
    ffmpeg(*raw_input(np.stack([stored] * 3)), "-c:v", "mjpeg", "-q:v", 2, plain, pictures=np.stack([stored] * 3))
    entry = b"\x01\x12\x00\x03\x00\x00\x00\x01" + orientation.to_bytes(2) + b"\x00\x00"
    tiff = b"Exif\x00\x00MM\x00\x2a\x00\x00\x00\x08\x00\x01" + entry + b"\x00\x00\x00\x00"
    with av.open(plain) as source, av.open(path, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                jpeg = bytes(packet)
                exif = av.Packet(jpeg[:2] + b"\xff\xe1" + (len(tiff) + 2).to_bytes(2) + tiff + jpeg[2:])
                exif.pts, exif.dts, exif.time_base, exif.stream = packet.pts, packet.dts, packet.time_base, stream
                target.mux(exif)
    expected = np.rot90(stored, turn // 90)
    displayed = read_first_frame(path)
    assert displayed.shape == expected.shape
    assert np.abs(displayed.astype(int) - expected).mean() < 6


def test_a_pixels_shape_that_changes_midway_and_back(tmp_path: Path) -> None:
    parts = []
    for number, aspect in enumerate(("1/1", "64/45", "1/1")):
        pictures = np.stack([four_corners(160, 96)] * 25)
        part = tmp_path / f"{number}.ts"
        offset = 1.08 * number
        codec = ("-c:v", "libx264", "-bf", 0, "-output_ts_offset", offset)
        ffmpeg(*raw_input(pictures), "-vf", f"setsar={aspect}", *codec, part, pictures=pictures)
        parts.append(part.read_bytes())
    path = tmp_path / "wide.ts"
    path.write_bytes(b"".join(parts))
    decoded = list(read_frames(path, probe_video(path, LIMIT)))
    assert len(decoded) == 75
    assert {frame.display.width for frame in decoded[:24] + decoded[-24:]} == {160}
    assert {frame.display.width for frame in decoded[26:49]} == {round(160 * 64 / 45)}
    assert decoded[-1].display == decoded[0].display
    assert sum(not frame.joined for frame in decoded) == 2


def test_a_hostile_box_leads_nowhere(tmp_path: Path) -> None:
    path = write(tmp_path / "h.mp4", [four_corners(160, 96)] * 3)
    data = bytearray(path.read_bytes())
    position = data.index(b"moov") - 4
    child = (1).to_bytes(4) + b"trak" + (2**63 - 20).to_bytes(8)
    data[position + 8 : position + 8] = child
    data[position : position + 4] = (int.from_bytes(data[position : position + 4]) + len(child)).to_bytes(4)
    path.write_bytes(data)
    assert read_crop(path, "mov,mp4", track_id=1, number=0, width=160, height=96) is None
    assert not is_fragmented(path)
