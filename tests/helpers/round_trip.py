"""Encodes a short clip of any shape, and reads it back with every reader that a user may have."""

from __future__ import annotations

import io
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.formats import clip_decode
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip

FRAMES = 3
# The loss of x264 at crf 18 and 4:2:0 on a smooth picture: at the worst pixel, and on average.
WORST, MEAN = 12, 2.0


def clip(width: int, height: int) -> NDArray[np.uint8]:
    """Smooth pictures that grow brighter, without edges that 4:2:0 would blur: uint8 [FRAMES, height, width, 3] RGB."""
    # At most 2 levels per pixel: readers differ in how they place chroma between pixels
    red = 60 + np.arange(width) * min(2.0, 120 / width)
    green = 70 + np.arange(height) * min(2.0, 120 / height)
    picture = np.empty((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1], picture[..., 2] = red[None, :], green[:, None], 100
    return np.stack([picture + np.uint8(5 * index) for index in range(FRAMES)])


def problems(width: int, height: int, folder: Path) -> list[str]:
    """The problems of a round trip of this shape, by reader; no reader may raise."""
    pictures = clip(width, height)
    mp4 = encode_clip(pictures, 16.0)
    planes = clip_decode.decode_planar(mp4, (FRAMES, height, width))
    readings = {
        "planar": np.moveaxis(planes, 0, -1),
        "decode": decode_clip(mp4),
        "PyAV": _read_with_pyav(mp4),
        "OpenCV": _read_with_opencv(mp4, folder / "clip.mp4"),
    }
    sentences = []
    for name, reading in readings.items():
        if reading.shape != pictures.shape:
            sentences.append(f"{name} reads {reading.shape} of {pictures.shape}")
            continue
        difference = np.maximum(reading, pictures) - np.minimum(reading, pictures)
        if difference.max() > WORST or difference.mean() > MEAN:
            sentences.append(f"{name} is {difference.max()} levels off, {difference.mean():.2f} on average")
    return sentences


def _read_with_pyav(mp4: bytes) -> NDArray[np.uint8]:
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def _read_with_opencv(mp4: bytes, path: Path) -> NDArray[np.uint8]:
    path.write_bytes(mp4)
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    frames = []
    while (read := capture.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return np.stack(frames) if frames else np.empty(0, np.uint8)
