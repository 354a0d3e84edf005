"""Tests that the flow annotator measures known motion, and that its colours decode to the motion."""

from __future__ import annotations

import io

import av
import cv2
import numpy as np
import pytest
import real_clips
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from annotators.flow import Flow, decode_flow, encode_flow


def decode_clip(name: str, frames: int) -> NDArray[np.uint8]:
    with av.open(str(real_clips.path(name))) as container:
        decoded = container.decode(video=0)
        return np.stack([next(decoded).to_ndarray(format="rgb24") for _ in range(frames)])


def texture(height: int, width: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def make_pan(dx: float, dy: float, frames: int = 4, size: tuple[int, int] = (128, 192)) -> NDArray[np.uint8]:
    """A clip whose content moves by (dx, dy) pixels per frame."""
    image = texture(*size)
    shifts = [np.array([[1, 0, k * dx], [0, 1, k * dy]], np.float32) for k in range(frames)]
    return np.stack([cv2.warpAffine(image, matrix, size[::-1], borderMode=cv2.BORDER_REFLECT) for matrix in shifts])


def encode_and_decode(frames: NDArray[np.uint8], crf: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"crf": str(crf), "bf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_colours_are_those_of_the_middlebury_wheel() -> None:
    flow = np.array([[0, 0], [8, 0], [-8, 0], [0, 8], [0, -8], [4, 0], [800, 0]], np.float32)
    # Computed by hand from the wheel's segments: right is red, and left is the 28th of the 55 colours.
    white, red, pink = (255, 255, 255), (255, 0, 0), (255, 127.5, 127.5)
    expected = [white, red, (0, 209, 255), (255, 229.5, 0), (88, 0, 255), pink, red]
    assert np.abs(encode_flow(flow, 8.0) - np.array(expected)).max() <= 1


@settings(deadline=None)
@given(
    scale=st.floats(1, 300),
    length=st.floats(0, 1),
    angle=st.floats(-np.pi, np.pi),
    shape=st.sampled_from([(2,), (1, 2), (3, 5, 2), (2, 3, 4, 2)]),
)
def test_decoding_inverts_encoding(scale: float, length: float, angle: float, shape: tuple[int, ...]) -> None:
    vector = scale * length * np.array([np.cos(angle), np.sin(angle)])
    flow = np.broadcast_to(vector, shape).astype(np.float32)
    painted = encode_flow(flow, scale)
    assert painted.dtype == np.uint8
    assert painted.shape == (*shape[:-1], 3)
    decoded = decode_flow(painted, scale)
    assert decoded.dtype == np.float32
    assert np.abs(decoded - flow).max() <= 0.01 * scale


@settings(deadline=None)
@given(st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
def test_any_colour_decodes_to_flow_within_the_scale(red: int, green: int, blue: int) -> None:
    flow = decode_flow(np.array([red, green, blue], np.uint8), 10.0)
    assert np.hypot(*flow) <= 10.001


def test_flow_longer_than_the_scale_keeps_its_direction() -> None:
    decoded = decode_flow(encode_flow(np.array([[30, -40]], np.float32), 5.0), 5.0)
    np.testing.assert_allclose(decoded, [[3, -4]], atol=0.05)


@pytest.mark.parametrize("crf", [16, 18])
def test_flow_survives_video_encoding(crf: int) -> None:
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    turning = [
        np.stack([-y * cosine + x * sine, x * cosine + y * sine], -1) * 6
        for cosine, sine in ((1, 0), (0.8, 0.6), (0, 1))
    ]
    flow = np.stack(turning).astype(np.float32)
    scale = float(np.hypot(flow[..., 0], flow[..., 1]).max())
    decoded = decode_flow(encode_and_decode(encode_flow(flow, scale), crf), scale)
    error = np.hypot(*np.moveaxis(decoded - flow, -1, 0))
    assert error.mean() < 0.02 * scale
    assert np.percentile(error, 99) < 0.06 * scale


@pytest.mark.parametrize("motion", [(3.0, 0.0), (-2.0, 5.0), (0.5, -0.25)])
def test_known_pans_are_measured(motion: tuple[float, float]) -> None:
    annotation = Flow()(make_pan(*motion), 16.0)
    track = annotation.tracks["flow"]
    flow = decode_flow(track, annotation.data["flow"]["scale"])
    inner = flow[:, 16:-16, 16:-16]
    assert np.abs(np.median(inner, axis=(0, 1, 2)) - motion).max() < 0.1
    assert annotation.signals["motion"] == pytest.approx(np.hypot(*motion), abs=0.3)


def test_the_track_is_aligned_with_the_clip() -> None:
    clip = make_pan(3, 0, frames=3)
    clip = np.concatenate([clip, clip[-1:]])  # the third pair stands still
    annotation = Flow()(clip, 16.0)
    track = annotation.tracks["flow"]
    assert track.shape == clip.shape
    assert track.dtype == np.uint8
    np.testing.assert_array_equal(track[0], track[1])
    flow = decode_flow(track, annotation.data["flow"]["scale"])
    assert [round(float(np.median(field[..., 0]))) for field in flow] == [3, 3, 3, 0]


def test_noise_is_not_motion() -> None:
    still = np.repeat(texture(128, 192)[None], 5, axis=0)
    assert Flow()(still, 16.0).signals["motion"] == pytest.approx(0, abs=0.01)
    noise = np.random.default_rng(2).normal(0, 5, still.shape)
    noisy = (still + noise).clip(0, 255).astype(np.uint8)
    assert Flow()(noisy, 16.0).signals["motion"] < 0.1
    annotation = Flow()(still, 16.0)
    assert annotation.data["flow"]["scale"] == 1.0
    assert annotation.tracks["flow"].min() > 250


def test_bytes_depend_neither_on_threads_nor_on_the_clip_before() -> None:
    clip = make_pan(2, 1)
    threads = cv2.getNumThreads()
    annotator = Flow()
    try:
        cv2.setNumThreads(1)
        single_threaded = annotator(clip, 16.0)
        annotator(make_pan(-7, 3), 16.0)
        cv2.setNumThreads(4)
        multi_threaded = annotator(clip, 16.0)
    finally:
        cv2.setNumThreads(threads)
    np.testing.assert_array_equal(single_threaded.tracks["flow"], multi_threaded.tracks["flow"])
    assert (single_threaded.signals, single_threaded.data) == (multi_threaded.signals, multi_threaded.data)


@pytest.mark.parametrize("size", [(64, 64), (144, 176), (272, 640), (640, 272), (8, 64), (64, 12), (4, 4)])
def test_every_size_works(size: tuple[int, int]) -> None:
    clip = make_pan(1, 1, frames=2, size=size)
    annotation = Flow()(clip, 16.0)
    assert annotation.tracks["flow"].shape == clip.shape
    assert set(annotation.signals) == set(Flow.signals)


def test_one_frame_has_no_motion_to_measure() -> None:
    with pytest.raises(ValueError, match="two frames"):
        Flow()(np.zeros((1, 64, 64, 3), np.uint8), 16.0)


def test_the_known_pan_clip() -> None:
    annotation = Flow()(decode_clip("d_pan_known.mp4", 12), 25.0)
    flow = decode_flow(annotation.tracks["flow"], annotation.data["flow"]["scale"])
    assert np.abs(np.median(flow, axis=(0, 1, 2)) - (-4, -2)).max() < 0.3
    assert annotation.signals["motion"] == pytest.approx(np.hypot(4, 2), abs=0.3)


def test_the_still_clip_stands_still() -> None:
    motion = Flow()(real_clips.still("kivy__city.mpg", 6), 25.0).signals["motion"]
    assert isinstance(motion, float)
    assert motion < 0.05
