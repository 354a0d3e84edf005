"""Decoding, proved on files whose every frame bears its number, and on real clips where the folder is there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace

from pipeline import encode, video
from pipeline.errors import ClipError, ErrorCode
from pipeline.grid import Grid, shots_of

CLIPS = Path(__file__).parents[2].parent / "shared/clips"
LIMIT = 1 << 26
# Numbers are drawn as 2 rows of 5 black or white blocks that fill the picture.
ROWS, COLUMNS = 2, 5


def numbered(number: int, width: int = 160, height: int = 96) -> np.ndarray:
    bits = [(number >> bit) & 1 for bit in range(ROWS * COLUMNS)]
    blocks = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 215 + 20
    rows = np.arange(height) * ROWS // height
    columns = np.arange(width) * COLUMNS // width
    return np.repeat(blocks[rows][:, columns, None], 3, axis=2)


def number_of(picture: np.ndarray) -> int:
    height, width = picture.shape[:2]
    y = ((np.arange(ROWS) + 0.5) * height / ROWS).astype(int)
    x = ((np.arange(COLUMNS) + 0.5) * width / COLUMNS).astype(int)
    bits = (picture[y][:, x].mean(axis=2) > 128).ravel()
    return int(sum(int(bit) << index for index, bit in enumerate(bits)))


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    pts: Sequence[int] | None = None,
    unit: Fraction = Fraction(1, 25),
    codec: str = "libx264",
    layout: str = "yuv420p",
    options: dict[str, str] | None = None,
    prepare: Callable[[Any], None] | None = None,
) -> Path:
    """A video file of `pictures` at `pts` (in `unit`)."""
    with av.open(path, "w") as container:
        stream = None
        for index, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=25, options=options or {})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = layout
                stream.codec_context.time_base = unit
                if prepare:
                    prepare(stream)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(
                format=layout, dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG
            )
            frame.pts = pts[index] if pts else index
            frame.time_base = unit
            container.mux(stream.encode(frame))
        assert stream is not None
        container.mux(stream.encode(None))
    return path


def code_of(path: Path, limit: int = LIMIT) -> tuple[ErrorCode, str]:
    with pytest.raises(ClipError) as caught:
        list(video.frames(path, video.probe(path, limit)))
    return caught.value.code, caught.value.detail


def whole(path: Path) -> tuple[video.Probe, np.ndarray, float]:
    """Probe, timestamps and end."""
    source = video.probe(path, LIMIT)
    pieces = list(video.thumbnails(video.frames(path, source)))
    return source, np.concatenate([times for times, _, _ in pieces]), float(pieces[-1][1][-1])


def shown(path: Path, ranges: list[tuple[int, int]], grid: Grid) -> dict[float, list[int]]:
    """The numbers in each clip, by the clip's start."""
    source, times, end_s = whole(path)
    windows = grid.windows("x", shots_of(ranges, times, end_s), times)
    size = grid.size(source.width, source.height)
    assert size is not None
    cut = {}
    for window, clip in video.cut(video.frames(path, source), source, windows, grid.fps, size):
        assert clip.shape == (window.frames, size[1], size[0], 3)
        cut[window.start_s] = [number_of(picture) for picture in clip]
    assert list(cut) == [window.start_s for window in windows]
    return cut


# Every frame in its place


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("b.mp4", "libx264", {"bf": "3", "preset": "veryfast"}),
        ("b.mkv", "libx264", {"bf": "3", "preset": "veryfast"}),
        ("v.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
        ("m.avi", "mpeg4", {"b": "2M"}),
    ],
)
def test_grid_points_show_the_frame_of_their_time(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = write(tmp_path / name, map(numbered, range(130)), codec=codec, options=options)
    cut = shown(path, [(0, 59), (60, 129)], Grid(frames=33, min_frames=5))
    assert [(round(start, 2), len(numbers)) for start, numbers in cut.items()] == [
        (0.0, 33),
        (2.06, 5),
        (2.4, 33),
        (4.46, 9),
    ]
    for start, numbers in cut.items():
        last = 59 if start < 2.4 else 129
        expected = [min(int((start + k / 16 + 1.01e-3) * 25), last) for k in range(len(numbers))]
        assert numbers == expected


def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = np.cumsum([0, 1, 40, 200, 3, 77, 500, 12, 12, 900, 33, 41, 41, 300, 80]).tolist()
    path = write(tmp_path / "vfr.mp4", map(numbered, range(len(pts))), pts=pts, unit=Fraction(1, 1000))
    _, times, _ = whole(path)
    np.testing.assert_allclose(times, np.array(pts) / 1000, atol=1e-4)
    ((_, numbers),) = shown(path, [(0, len(pts) - 1)], Grid(min_frames=5)).items()
    expected = [int(np.searchsorted(pts, k * 62.5 + 1.01, side="right")) - 1 for k in range(len(numbers))]
    assert numbers == expected


def test_an_edit_list_cuts_off_the_start(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.mp4", map(numbered, range(100)), options={"bf": "2", "g": "50"})
    path = tmp_path / "trimmed.mp4"
    with av.open(plain) as source, av.open(path, "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                shift = round(Fraction(10, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                target.mux(packet)
    _, times, end_s = whole(path)
    assert (len(times), times[0]) == (90, 0.0)
    assert end_s == pytest.approx(3.6)
    ((_, numbers),) = shown(path, [(0, 89)], Grid(min_frames=5)).items()
    assert numbers[:4] == [10, 11, 13, 14]


def test_some_of_the_windows_and_memory_of_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", map(numbered, range(130)))
    source, times, end_s = whole(path)
    grid = Grid(frames=17, min_frames=5)
    windows = grid.windows("x", shots_of([(0, 129)], times, end_s), times)
    chosen = [windows[3], windows[1]]
    clips = video.cut(video.frames(path, source), source, chosen, 16.0, (144, 96))
    got = [(window, number_of(clip[0])) for window, clip in clips]
    assert got == [(windows[1], int(17 / 16 * 25)), (windows[3], int(51 / 16 * 25))]


@pytest.mark.parametrize("name", ["p.mp4", "p.mkv"])
def test_progress_is_told_long_before_the_first_clip(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, map(numbered, range(130)), options={"bf": "3"})
    source, times, end_s = whole(path)
    calls: list[None] = []

    def progress() -> None:
        calls.append(None)

    last = Grid(frames=17, min_frames=5).windows("x", shots_of([(0, 129)], times, end_s), times)[-1]
    decoded = video.frames(path, source, progress)
    assert [window for window, _ in video.cut(decoded, source, [last], 16.0, (144, 96))] == [last]
    assert 100 < len(calls) < 300
    calls.clear()
    list(video.thumbnails(video.frames(path, source, progress)))
    assert len(calls) > 129
    calls.clear()
    video.content_box(path, source, progress)
    assert len(calls) > 129


def test_progress_is_told_while_nothing_is_shown(tmp_path: Path) -> None:
    """An edit list that begins late: the frames before are decoded and dropped."""
    plain = write(tmp_path / "plain.mp4", map(numbered, range(100)), options={"bf": "0", "g": "200"})
    path = tmp_path / "trimmed.mp4"
    with av.open(plain) as source, av.open(path, "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                shift = round(Fraction(90, 25) / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = stream
                target.mux(packet)
    calls: list[None] = []
    shown_ = list(video.frames(path, video.probe(path, LIMIT), lambda: calls.append(None)))
    assert len(shown_) == 10
    assert len(calls) >= 100


# The right picture


def four_corners(width: int, height: int) -> np.ndarray:
    """Red, green, blue and white quarters: any turn or mirror shows."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = (200, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 200, 30)
    picture[height // 2 :, : width // 2] = (30, 30, 200)
    picture[height // 2 :, width // 2 :] = (220, 220, 220)
    return picture


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_and_mirror(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    stored = four_corners(160, 96)

    def prepare(stream: Any) -> None:
        # a right angle anticlockwise, then left and right exchanged, as FFmpeg's -display_rotation has it
        stream.set_display_rotation(degrees, hflip=mirrored)

    path = write(tmp_path / "r.mp4", [stored] * 3, prepare=prepare)
    source = video.probe(path, LIMIT)
    expected = np.rot90(stored, degrees // 90)
    if mirrored:
        expected = expected[:, ::-1]
    assert (source.width, source.height) == expected.shape[1::-1]
    frame = next(video.frames(path, source))[2]
    assert frame.rotation % 360 == degrees or mirrored
    picture = video.to_rgb(frame, source, (source.width, source.height))
    assert np.abs(picture.astype(int) - expected).mean() < 6


def test_a_real_rotated_clip_is_upright() -> None:
    path, straight = CLIPS / "d_rot90.mp4", CLIPS / "d_cuts3.mp4"
    if not path.exists():
        pytest.skip("the folder of real clips is not on this machine")
    source = video.probe(path, LIMIT)
    assert (source.width, source.height, source.rotation) == (360, 640, 90)
    turned = video.to_rgb(next(video.frames(path, source))[2], source, (352, 640))
    other = video.probe(straight, LIMIT)
    first = video.to_rgb(next(video.frames(straight, other))[2], other, (640, 352))
    assert np.abs(np.rot90(first).astype(int) - turned).mean() < 8


def test_sample_aspect_ratio_and_odd_sizes(tmp_path: Path) -> None:
    def prepare(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)

    path = write(tmp_path / "s.mkv", [four_corners(175, 143)] * 3, layout="yuv444p", prepare=prepare)
    source = video.probe(path, LIMIT)
    assert (source.width, source.height) == (233, 143)
    size = Grid().size(source.width, source.height)
    assert size == (224, 128)
    picture = video.to_rgb(next(video.frames(path, source))[2], source, size)
    assert np.abs(picture.astype(int) - four_corners(*size)).mean() < 6


def test_a_box_is_cut_out_before_scaling(tmp_path: Path) -> None:
    framed = np.zeros((160, 320, 3), np.uint8)
    framed[20:140, 80:240] = four_corners(160, 120)
    path = write(tmp_path / "boxed.mp4", [framed] * 3)
    source = video.probe(path, LIMIT)
    frame = next(video.frames(path, source))[2]
    picture = video.to_rgb(frame, source, (80, 60), (80, 20, 240, 140))
    assert np.abs(picture.astype(int) - four_corners(80, 60)).mean() < 6


@pytest.mark.parametrize(("tag", "red", "blue"), [(1, 0.2126, 0.0722), (5, 0.299, 0.114), (6, 0.299, 0.114)])
@pytest.mark.parametrize("full", [False, True])
def test_colour_matrix_and_range(tag: int, red: float, blue: float, full: bool) -> None:
    source = video.Probe(64, 64, 0, False, 25.0, 1.0, "h264", "yuv420p", 1, LIMIT)
    for rgb in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50), (255, 255, 255), (0, 0, 0)]:
        assert np.abs(flat(rgb, red, blue, full, tag, source).astype(int) - rgb).max() <= 2


def test_an_untagged_picture_is_bt601_if_small_and_bt709_if_large() -> None:
    small = video.Probe(64, 64, 0, False, 25.0, 1.0, "h264", "yuv420p", 1, LIMIT)
    large = video.Probe(1280, 64, 0, False, 25.0, 1.0, "h264", "yuv420p", 1, LIMIT)
    assert np.abs(flat((200, 60, 60), 0.299, 0.114, False, 2, small).astype(int) - (200, 60, 60)).max() <= 2
    assert np.abs(flat((200, 60, 60), 0.2126, 0.0722, False, 2, large).astype(int) - (200, 60, 60)).max() <= 2


def flat(rgb: tuple[int, int, int], red: float, blue: float, full: bool, tag: int, source: video.Probe) -> np.ndarray:
    """A flat yuv420p frame made with the textbook formula, read back as RGB at (48, 48)."""
    r, g, b = (level / 255 for level in rgb)
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / 2 / (1 - blue), (r - y) / 2 / (1 - red)
    levels = (255 * y, 128 + 255 * u, 128 + 255 * v) if full else (16 + 219 * y, 128 + 224 * u, 128 + 224 * v)
    frame = av.VideoFrame(source.width, source.height, "yuv420p")
    for plane, level in zip(frame.planes, levels, strict=True):
        plane.update(bytes([min(255, round(level))]) * plane.buffer_size)
    frame.colorspace, frame.color_range = tag, ColorRange.JPEG if full else ColorRange.MPEG
    return video.to_rgb(frame, source, (48, 48))


def test_ten_bits(tmp_path: Path) -> None:
    if "libx265" not in av.codecs_available:
        pytest.skip("this FFmpeg has no HEVC encoder")
    options = {"preset": "ultrafast", "x265-params": "log-level=none"}
    path = write(tmp_path / "h.mp4", map(numbered, range(40)), codec="libx265", layout="yuv420p10le", options=options)
    assert video.probe(path, LIMIT).pix_fmt == "yuv420p10le"
    ((_, numbers),) = shown(path, [(0, 39)], Grid(min_frames=5)).items()
    assert numbers == [int(k / 16 * 25 + 0.03) for k in range(25)]


# What is not a good video


def audio_only(path: Path, cover: bool = False) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        picture = None
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        frame.rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if picture:
            still = av.VideoFrame.from_ndarray(four_corners(64, 64), "rgb24").reformat(format="yuvj420p")
            container.mux(picture.encode(still))
            container.mux(picture.encode(None))
    return path


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    def file(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    good = write(tmp_path / "good.mp4", map(numbered, range(4)))
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{good}\n#EXT-X-ENDLIST\n".encode()
    assert code_of(tmp_path / "missing.mp4")[0] == ErrorCode.SOURCE_UNREADABLE
    assert code_of(file("empty.mp4", b""))[0] == ErrorCode.SOURCE_EMPTY
    assert code_of(file("page.mp4", b"<html>404 not found</html>" * 50))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("notes.txt", b"plain text\n" * 50))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("list.m3u8", playlist))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("random.mp4", np.random.default_rng(0).bytes(5000)))[0] == ErrorCode.NOT_VIDEO
    assert code_of(file("one byte.mp4", b"x"))[0] == ErrorCode.NOT_VIDEO
    assert code_of(audio_only(tmp_path / "a.m4a")) == (ErrorCode.NOT_VIDEO, "the file has no video stream")
    assert code_of(audio_only(tmp_path / "c.mp4", cover=True))[0] == ErrorCode.NOT_VIDEO
    assert code_of(good, 160 * 96 - 1)[0] == ErrorCode.TOO_LARGE


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    source, times, end_s = whole(write(tmp_path / "one.mp4", [numbered(5)]))
    assert (source.frames, times.tolist()) == (1, [0.0])
    assert end_s == pytest.approx(0.04)


@pytest.mark.parametrize("name", ["t.mp4", "t.mkv", "t.webm", "t.avi"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    codec, options = ("libvpx-vp9", {"deadline": "realtime"}) if name == "t.webm" else ("mpeg4", {"b": "1M"})
    noise = np.random.default_rng(0).integers(0, 255, (150, 64, 64, 3), dtype=np.uint8)
    path = write(tmp_path / name, noise, codec=codec, options=options)
    if name == "t.mp4":  # the index first, else nothing at all can be read of the rest
        faststart = tmp_path / "f.mp4"
        with av.open(path) as source, av.open(faststart, "w", options={"movflags": "faststart"}) as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = faststart
    whole(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    code, detail = code_of(path)
    assert code == ErrorCode.DECODE_ERROR
    assert detail.startswith("decoded ")


def test_sound_that_outlasts_the_picture_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "long.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        sound = container.add_stream("aac", rate=16000)
        for index in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(index), "rgb24")))
        container.mux(stream.encode(None))
        for second in range(6):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
            frame.rate, frame.pts = 16000, second * 16000
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    assert len(whole(path)[1]) == 25


def test_real_clips_decode_whole_and_the_truncated_one_does_not() -> None:
    if not CLIPS.exists():
        pytest.skip("the folder of real clips is not on this machine")
    code, detail = code_of(CLIPS / "d_truncated.mp4")
    assert code == ErrorCode.DECODE_ERROR
    assert "of 247 frames" in detail
    chosen = ["d_av1.mkv", "d_vp9.webm", "d_hevc10.mp4", "DVR-Scan__issue53_brightness_change.avi"]
    labels = {label["file"]: label for label in json.loads((CLIPS / "labels.json").read_text())}
    for name in [*chosen, "d_rot90.mp4", "sample-videos__again.mkv", "learning-area__rabbit320.webm"]:
        assert len(whole(CLIPS / name)[1]) == labels[name]["frames"], name


# Bars


def moving(width: int, height: int, count: int = 13) -> np.ndarray:
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
    return np.stack([np.roll(coarse, 8 * k, axis=1)[:height, :width] for k in range(count)]).astype(np.uint8)


@pytest.mark.parametrize("colour", [0, 255])
@pytest.mark.parametrize("box", [(0, 24, 160, 104), (32, 0, 128, 128), (16, 16, 144, 112)])
def test_bars_are_found(tmp_path: Path, box: tuple[int, int, int, int], colour: int) -> None:
    framed = np.full((13, 128, 160, 3), colour, np.uint8)
    x0, y0, x1, y1 = box
    framed[:, y0:y1, x0:x1] = moving(x1 - x0, y1 - y0)
    path = write(tmp_path / "b.mp4", framed)
    found = video.content_box(path, video.probe(path, LIMIT))
    assert found is not None
    assert np.abs(np.array(found) - box).max() <= 2


def test_dark_pictures_and_titles_have_no_bars(tmp_path: Path) -> None:
    spot = np.zeros((13, 128, 160, 3), np.uint8)
    spot[:, 40:90, 50:110] = moving(60, 50)
    title = np.zeros((13, 128, 160, 3), np.uint8)
    title[:, 56:72, 20:140:8] = 255
    one_sided = moving(160, 128)
    one_sided[:, :30] = 0
    for index, pictures in enumerate([spot, title, one_sided, moving(160, 128), np.zeros_like(spot)]):
        path = write(tmp_path / f"{index}.mp4", pictures)
        assert video.content_box(path, video.probe(path, LIMIT)) is None, index


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("d_letterbox.mp4", (0, 60, 640, 420)),
        ("d_pillarbox.mp4", (187, 0, 667, 270)),
        ("d_dark.mp4", None),
        ("d_fade_black.mp4", None),
        ("d_title_card.mp4", None),
        ("torchcodec__nasa_13013.mp4", None),
    ],
)
def test_bars_of_real_clips(name: str, box: tuple[int, int, int, int] | None) -> None:
    path = CLIPS / name
    if not path.exists():
        pytest.skip(f"the clip {name} is not on this machine")
    found = video.content_box(path, video.probe(path, LIMIT))
    if box is None:
        assert found is None
    else:
        assert found is not None
        assert np.abs(np.array(found) - box).max() <= 4


# Our own clips


def test_a_clip_comes_back_frame_for_frame_in_its_colours(tmp_path: Path) -> None:
    frames = np.stack([numbered(index) for index in range(33)])
    mp4 = encode.encode(frames, 16.0)
    assert mp4 == encode.encode(frames, 16.0)
    assert mp4.index(b"moov") < mp4.index(b"mdat")
    assert not any(word in mp4 for word in (b"x264", b"Lavf", b"Lavc"))
    assert [number_of(picture) for picture in encode.decode(mp4)] == list(range(33))
    with av.open(io.BytesIO(mp4)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        assert [packet.pts for packet in packets] == [packet.dts for packet in packets]
        assert float(packets[-1].pts * packets[-1].time_base) == 2.0

    colours = np.stack([four_corners(160, 96)] * 5)
    mp4 = encode.encode(colours, 16.0)
    (tmp_path / "c.mp4").write_bytes(mp4)
    ours = encode.decode(mp4)[2]
    ok, theirs = cv2.VideoCapture(str(tmp_path / "c.mp4")).read()
    assert ok
    with av.open(io.BytesIO(mp4)) as container:
        naive = next(container.decode(video=0)).to_ndarray(format="rgb24")
    for picture, allowed in ((ours, 2), (theirs[..., ::-1], 4), (naive, 4)):
        for y, x in ((20, 30), (20, 130), (70, 30), (70, 130)):
            assert np.abs(picture[y, x].astype(int) - colours[0, y, x]).max() <= allowed


def test_a_damaged_clip_of_ours_is_refused() -> None:
    mp4 = encode.encode(np.random.default_rng(0).integers(0, 255, (9, 64, 64, 3), dtype=np.uint8), 16.0)
    for wrong in (b"", b"no clip", mp4[: len(mp4) // 2]):
        with pytest.raises(ClipError) as caught:
            encode.decode(wrong)
        assert caught.value.code == ErrorCode.DECODE_ERROR
