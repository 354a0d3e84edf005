"""Tests that no frame is lost or misplaced, whatever times a container states, and that no clip has a gap."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numbered import LIMIT, number_of, numbered, read_clips, read_timeline, write

from benchmarks.ffmpeg import run as ffmpeg
from pipeline.video import frames
from pipeline.video.display import thumbnail
from pipeline.video.frames import collect_times, cut_windows, read_frames
from pipeline.video.grid import Grid, Window, count_missing_frames, shots_of, typical_step
from pipeline.video.probe import probe_video

ANNEX_B = ("-bsf:v", "h264_mp4toannexb")


def numbers_by_ffmpeg(path: Path) -> list[int]:
    """The numbers of all frames that FFmpeg's own program shows, none repeated or dropped for a constant rate."""
    layout = ("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    pictures = ffmpeg("-i", path, *layout).stdout
    return [number_of(picture) for picture in np.frombuffer(pictures, np.uint8).reshape(-1, 96, 160, 3)]


def check_every_frame_in_order(path: Path, count: int, first: int = 0, fps: float = 25.0) -> None:
    """Check that a source of numbered frames gives all in even steps, and each grid point shows the right frame."""
    _, times, end_s = read_timeline(path)
    assert len(times) == count
    np.testing.assert_allclose(np.diff(times), 1 / fps, atol=1.5e-3)
    assert 1 / typical_step(times, end_s) == pytest.approx(fps, rel=2e-3)
    for start_s, numbers in read_clips(path, [(0, count - 1)], Grid(min_frames=5)).items():
        grid_times = start_s - times[0] + np.arange(len(numbers)) / 16
        # A grid point within a millisecond of a frame's time may show that frame or the one before.
        earliest, latest = np.floor((grid_times + 1e-4) * fps), np.floor((grid_times + 3e-3) * fps)
        assert (np.minimum(earliest, count - 1) + first <= numbers).all()
        assert (numbers <= np.minimum(latest, count - 1) + first).all()


@pytest.fixture(scope="module", params=[1, 3, 7], ids="{} B-frames".format)
def reordered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 numbered frames of H.264 with B-frames."""
    options = {"bf": str(request.param), "g": "40", "x264-params": "b-adapt=0:open-gop=1:force-cfr=1"}
    return write(tmp_path_factory.mktemp("reordered") / "b.mp4", map(numbered, range(150)), options=options)


@pytest.mark.parametrize("name", ["b.avi", "b.mkv", "b.ts", "b.flv", "b.mov", "b.nut", "b.mxf", "b.asf"])
def test_reordered_frames_in_any_container(reordered: Path, tmp_path: Path, name: str) -> None:
    ffmpeg("-i", reordered, "-c", "copy", *(ANNEX_B if name.endswith(("avi", "asf")) else ()), tmp_path / name)
    check_every_frame_in_order(tmp_path / name, 150)


def test_a_stream_without_times_and_one_remuxed_from_it(reordered: Path, tmp_path: Path) -> None:
    raw, remuxed = tmp_path / "b.h264", tmp_path / "remuxed.mp4"
    ffmpeg("-i", reordered, "-c", "copy", *ANNEX_B, raw)
    check_every_frame_in_order(raw, 150)
    ffmpeg("-fflags", "+genpts", "-i", raw, "-c", "copy", remuxed)
    # The file has only decoding times, and an edit list drops the frames that were decoded first.
    source, times, _ = read_timeline(remuxed)
    decoded = [number_of(thumbnail(frame.frame, size=(160, 96))) for frame in read_frames(remuxed, source)]
    assert decoded == numbers_by_ffmpeg(remuxed)
    assert len(times) >= 146
    # If a decoder finds that more frames are reordered than the header says, one frame comes a step late.
    assert sum(np.abs(np.diff(times) - 0.04) > 1.5e-3) <= 1


@pytest.mark.parametrize("b_frames", [1, 2])
def test_mpeg4_with_b_frames_in_avi(tmp_path: Path, b_frames: int) -> None:
    path = write(tmp_path / "m.avi", map(numbered, range(150)), codec="mpeg4", options={"bf": str(b_frames), "b": "2M"})
    check_every_frame_in_order(path, 150)


@pytest.mark.parametrize("start", [1.52, -0.4, 90_000.0, 1_700_000_000.0])
@pytest.mark.parametrize("name", ["o.mkv", "o.mp4", "o.ts", "o.nut", "o.asf"])
def test_a_source_may_start_at_any_time(reordered: Path, tmp_path: Path, name: str, start: float) -> None:
    if name == "o.ts" and start > 95_000:
        start %= 95_000  # 33 bits of a 90 kHz clock
    if name in ("o.nut", "o.asf") and start > 1e9:
        start = 200_000.0  # their muxers accept no larger times
    annex_b = ANNEX_B if name == "o.asf" else ()
    ffmpeg("-i", reordered, "-c", "copy", *annex_b, "-copyts", "-output_ts_offset", start, tmp_path / name)
    source, times, _ = read_timeline(tmp_path / name)
    check_every_frame_in_order(tmp_path / name, len(times), first=150 - len(times))
    # An edit list cuts off what lies before zero, as FFmpeg's own program does.
    assert len(times) == 150 or start < 0
    assert source.duration_s == pytest.approx(6.0, abs=0.6)


def test_a_length_that_is_another_tracks(reordered: Path, tmp_path: Path) -> None:
    subtitle, second_video = tmp_path / "s.srt", write(tmp_path / "w.mp4", (numbered(n, 80, 48) for n in range(300)))
    subtitle.write_text("1\n00:00:00,000 --> 00:00:30,000\nlonger than the video\n")
    for name, second_input, track in (
        ("s.mkv", subtitle, "1:s"),
        ("v.mkv", second_video, "1:v"),
        ("v.ts", second_video, "1:v"),
    ):
        target = tmp_path / name
        maps = ("-map", "0:v", "-map", track)
        second = ("-disposition:v:1", "0") if second_input is second_video else ()
        ffmpeg("-i", reordered, "-i", second_input, *maps, "-c", "copy", "-disposition:v:0", "default", *second, target)
        with av.open(target) as container:
            assert container.streams.best("video") is container.streams.video[0]
        check_every_frame_in_order(target, 150)


def test_two_recordings_joined(reordered: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "1.ts", tmp_path / "2.ts"
    ffmpeg("-i", reordered, "-c", "copy", "-output_ts_offset", 500, first)
    ffmpeg("-i", reordered, "-c", "copy", second)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    source = probe_video(joined, LIMIT)
    decoded = list(read_frames(joined, source))
    assert len(decoded) == 300
    assert [index for index, frame in enumerate(decoded) if not frame.joined] == [150]
    np.testing.assert_allclose(np.diff([frame.time_s for frame in decoded]), 0.04, atol=2e-3)
    shots = shots_of([(0, 299)], *collect_times(decoded))
    assert [(shot.first, shot.last) for shot in shots] == [(0, 149), (150, 299)]


@pytest.mark.parametrize("gap_s", [1.5, 10.0, 3600.0])
@pytest.mark.parametrize("name", ["g.mp4", "g.mkv"])
def test_a_gap_is_in_no_clip_and_changes_no_rate(tmp_path: Path, gap_s: float, name: str) -> None:
    pts = [*range(75), *(75 + round(gap_s * 25) + index for index in range(75))]
    path = write(tmp_path / name, map(numbered, range(150)), pts=pts, options={"bf": "2"})
    _, times, end_s = read_timeline(path)
    assert len(times) == 150
    assert 1 / typical_step(times, end_s) == pytest.approx(25, rel=2e-3)
    clips = read_clips(path, [(0, 149)], Grid(min_frames=5))
    assert [len(numbers) for numbers in clips.values()] == [49, 49]
    first, second = clips.values()
    assert (first[0], first[-1], second[0], second[-1]) == (0, 74, 75, 149)


def test_slow_sources_and_single_frames_have_no_gaps() -> None:
    slow = np.arange(20) * 2.0
    assert [(shot.first, shot.last) for shot in shots_of([(0, 19)], slow, 40.0)] == [(0, 19)]
    assert typical_step(slow, 40.0) == 2.0
    assert shots_of([(0, 0)], np.zeros(1), 5.0)[0].end_s == 5.0
    assert typical_step(np.zeros(1), 5.0) == 5.0


def test_frames_that_repeat_a_time_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "r.nut", map(numbered, range(60)), codec="mpeg4", options={"b": "2M"})
    repeated = tmp_path / "repeated.nut"
    with av.open(path) as source, av.open(repeated, "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for index, packet in enumerate(source.demux(video=0)):
            if packet.dts is not None:
                packet.time_base = Fraction(1, 25)
                packet.pts, packet.dts = index + 1 - (index % 30 == 7), index
                packet.stream = stream
                target.mux(packet)
    tally = frames.Tally()
    assert len(list(read_frames(repeated, probe_video(repeated, LIMIT), tally=tally))) == 60 - tally.unused
    assert (tally.decoded, tally.unused) == (60, 2)


def test_frames_that_a_file_has_lost_are_counted() -> None:
    times = np.delete(np.arange(300) / 30, [7, *range(100, 140)])
    assert count_missing_frames(times) == 41
    assert count_missing_frames(np.round(times, 3)) == 41
    assert count_missing_frames(np.arange(300) / 30) == 0
    # Many missing frames are counted as well.
    assert count_missing_frames(np.delete(np.arange(1500) / 25, np.s_[5::6])) == 249
    # With a variable rate the number is unknown.
    assert count_missing_frames(np.cumsum(np.random.default_rng(0).uniform(0.02, 0.2, 100))) is None
    assert count_missing_frames(np.zeros(1)) is None


@pytest.mark.parametrize("name", ["a.ogv", "a.mkv", "a.ts", "a.mp4", "a.avi", "a.flv"])
def test_what_comes_after_the_last_frame_is_nobodys_business(tmp_path: Path, name: str) -> None:
    plain = write(tmp_path / "p.mp4", map(numbered, range(75)), options={"bf": "2"})
    codec = ("-c:v", "libtheora", "-q:v", "8") if name == "a.ogv" else ("-c", "copy")
    ffmpeg("-i", plain, *codec, *(ANNEX_B if name == "a.avi" else ()), tmp_path / name)
    garbage = np.random.default_rng(1).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + garbage)
    _, times, _ = read_timeline(tmp_path / name)
    assert len(times) == 75


def test_empty_packets_of_an_avi_are_no_loss(reordered: Path, tmp_path: Path) -> None:
    path = tmp_path / "late.avi"
    sound = ("-f", "lavfi", "-i", "sine=d=3")
    ffmpeg(*sound, "-itsoffset", 0.7, "-i", reordered, "-map", 0, "-map", 1, "-c:v", "copy", *ANNEX_B, path)
    check_every_frame_in_order(path, 150)


@pytest.mark.parametrize("share", [0.13, 0.35, 0.62])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_broadcast_joined_midway(tmp_path: Path, share: float, b_frames: int) -> None:
    whole_stream, path = tmp_path / "w.ts", tmp_path / "midway.ts"
    options = {"bf": str(b_frames), "g": "40", "sc_threshold": "0"}
    ffmpeg("-i", write(tmp_path / "p.mp4", map(numbered, range(150)), options=options), "-c", "copy", whole_stream)
    data = whole_stream.read_bytes()
    path.write_bytes(data[int(len(data) * share) // 188 * 188 :])
    source, times, _ = read_timeline(path)
    numbers = [number_of(thumbnail(frame.frame, size=(160, 96))) for frame in read_frames(path, source)]
    # From the first key frame; there is one every 40 frames.
    assert numbers == list(range(150 - len(numbers), 150))
    assert len(numbers) >= 150 * (1 - share) - 60
    np.testing.assert_allclose(np.diff(times), 0.04, atol=2e-3)


def test_a_packet_that_is_refused_costs_what_depends_on_it(tmp_path: Path) -> None:
    plain = write(tmp_path / "p.mp4", map(numbered, range(600)), options={"bf": "2", "g": "12", "sc_threshold": "0"})
    path = tmp_path / "d.mkv"
    with av.open(plain) as plain_container, av.open(path, "w") as target:
        stream = target.add_stream_from_template(plain_container.streams.video[0])
        for index, packet in enumerate(plain_container.demux(video=0)):
            if packet.dts is None:
                continue
            if index == 303:
                packet.update(b"\xff" * packet.size)
            packet.stream = stream
            target.mux(packet)
    source = probe_video(path, LIMIT)
    decoded = list(read_frames(path, source))
    numbers = [number_of(thumbnail(frame.frame, size=(160, 96))) for frame in decoded]
    assert numbers == sorted({*numbers})
    assert 588 <= len(numbers) < 600
    # A shot ends where frames are missing, and they are counted.
    (resumed,) = [index for index, frame in enumerate(decoded) if not frame.joined]
    assert numbers[resumed] == 312
    assert count_missing_frames(np.array([frame.time_s for frame in decoded])) == 600 - len(numbers)


def test_a_dropout_of_a_broadcast_costs_what_was_in_it(tmp_path: Path) -> None:
    plain = write(tmp_path / "p.mp4", map(numbered, range(600)), options={"bf": "2", "g": "12", "sc_threshold": "0"})
    whole_stream, path = tmp_path / "w.ts", tmp_path / "dropout.ts"
    ffmpeg("-i", plain, "-c", "copy", whole_stream)
    data = whole_stream.read_bytes()
    middle = len(data) // 2 // 188 * 188
    # More bytes than the demuxer scans at once, but they replace nothing: at most two frames are lost.
    path.write_bytes(data[:middle] + bytes(188 * 2000) + data[middle:])
    numbers = [
        number_of(thumbnail(frame.frame, size=(160, 96))) for frame in read_frames(path, probe_video(path, LIMIT))
    ]
    assert numbers == sorted({*numbers})
    assert len(numbers) >= 585
    assert numbers[-1] == 599


def test_windows_of_an_older_version_begin_with_the_first_frame(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", map(numbered, range(60)), pts=range(2, 62))
    source = probe_video(path, LIMIT)
    early = Window("x", 0.04, 2.0, 17)
    ((_, clip),) = cut_windows(read_frames(path, source), source, [early], 16.0, (160, 96))
    assert [number_of(picture) for picture in clip[:3]] == [0, 0, 2]


def test_the_typical_rate_of_a_recording_that_holds() -> None:
    steps = np.full(300, 1 / 30)
    steps[::20] = 0.6
    times = np.cumsum(steps)
    assert 1 / typical_step(times, times[-1] + 1 / 30) == pytest.approx(30)
    assert 1 / typical_step(np.round(np.arange(300) * 1001 / 30000, 3), 10.1) == pytest.approx(29.97, abs=0.02)
    assert typical_step(np.array([0.0, 0.1, 5.0]), 5.1) == pytest.approx(0.1)
    assert typical_step(np.array([0.0, 4.0]), 5.1) == 4.0
