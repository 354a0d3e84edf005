"""Converts a decoded frame to RGB as a player would show it: upright, in square pixels, in its colours, opaque."""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from pipeline.errors import ClipError, ErrorCode
from pipeline.formats.clip_decode import PLANAR, planes, to_packed
from pipeline.video.containers import Crop

Box = tuple[int, int, int, int]
"""A part of a picture: x0, y0, x1, y1."""

_PLANAR_ALPHA = "gbrap"
# AVCOL_SPC_UNSPECIFIED and _RESERVED.
_NO_MATRIX = (2, 3)
# Full chroma and exact rounding: without them swscale's fast path darkens a picture by 2 levels.
_SCALE = Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# Limited range to full, for gray: swscale treats every gray as full range, whatever the frame says.
_EXPANDED = np.clip(np.rint((np.arange(256) - 16) * 255 / 219), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Display:
    """How a stored picture is shown.

    `width` and `height` are those of the picture as displayed, in square pixels: cropped, stretched and turned.
    `rotation` is the counterclockwise turn for the stored picture (0, 90, 180 or 270 degrees), before it is mirrored
    left to right if `mirrored`. `crop` is what the container leaves out of the stored picture.
    """

    width: int
    height: int
    rotation: int = 0
    mirrored: bool = False
    crop: Crop | None = None


def display_of(frame: av.VideoFrame, aspect: float, crop: Crop | None) -> Display:
    """How a frame with this sample aspect ratio (width to height of a stored pixel) is shown."""
    left, top, right, bottom = crop or (0, 0, 0, 0)
    width, height = max(1, round((frame.width - left - right) * aspect)), frame.height - top - bottom
    rotation, mirrored = _read_orientation(frame)
    if rotation in (90, 270):
        width, height = height, width
    return Display(width, height, rotation, mirrored, crop)


def to_rgb(
    frame: av.VideoFrame,
    display: Display,
    size: tuple[int, int],
    box: Box | None = None,
    background: int = 0,
) -> NDArray[np.uint8]:
    """A decoded frame as uint8 [H, W, 3] RGB of `size` (width, height), as a player would show it.

    The frame is turned, stretched to square pixels, scaled (bicubic) until it covers `size` and cropped at the centre.
    `box` selects a part, in displayed pixels. Transparent pixels show `background` (a gray level, 0 to 255).
    If the file names no colour matrix, BT.709 is assumed for HD and BT.601 below, as players do. HDR is not tone
    mapped. Raises ClipError DECODE_ERROR for a pixel format that FFmpeg cannot turn into RGB.
    """
    width, height = size
    x0, y0, x1, y1 = box or (0, 0, display.width, display.height)
    scale = max(width / (x1 - x0), height / (y1 - y0))
    scaled_width = max(width, round(display.width * scale))
    scaled_height = max(height, round(display.height * scale))
    stored = (scaled_height, scaled_width) if display.rotation in (90, 270) else (scaled_width, scaled_height)
    picture = to_packed(_reformat(_normalise(frame, display.crop, background), PLANAR, _SCALE, stored))
    if display.rotation:
        picture = np.rot90(picture, display.rotation // 90)
    if display.mirrored:
        picture = picture[:, ::-1]
    left = min(max(0, round((x0 + x1) / 2 * scale - width / 2)), scaled_width - width)
    top = min(max(0, round((y0 + y1) / 2 * scale - height / 2)), scaled_height - height)
    return np.ascontiguousarray(picture[top : top + height, left : left + width])


def thumbnail(frame: av.VideoFrame, crop: Crop | None = None, size: tuple[int, int] = (48, 27)) -> NDArray[np.uint8]:
    """A decoded frame squeezed to `size` (width, height), not turned: uint8 [height, width, 3] RGB."""
    small = _reformat(_normalise(frame, crop, 0), "rgb24", Interpolation.AREA, size)
    return np.asarray(small.to_ndarray(), np.uint8)


def _normalise(frame: av.VideoFrame, crop: Crop | None, background: int) -> av.VideoFrame:
    """The frame without what swscale cannot handle: a crop, transparency, gray of limited range. Most have none."""
    transparent = _is_transparent(frame.format)
    limited = frame.format.name.startswith(("gray", "ya")) and frame.color_range == ColorRange.MPEG
    if not (crop or transparent or limited):
        return frame
    full = _reformat(frame, _PLANAR_ALPHA if transparent else PLANAR, _SCALE)
    picture = to_packed(full)
    if limited:
        picture = _EXPANDED[picture]
    if transparent:
        picture = _blend(picture, planes(full)[3], background)
    left, top, right, bottom = crop or (0, 0, 0, 0)
    visible = picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(visible), "rgb24")


def _is_transparent(layout: av.VideoFormat) -> bool:
    """Whether a pixel format has an alpha channel; a palette's colours may be transparent too."""
    return layout.has_palette or any(component.is_alpha for component in layout.components)


def _blend(picture: NDArray[np.uint8], alpha: NDArray[np.uint8], background: int) -> NDArray[np.uint8]:
    """Colours over a gray background; straight alpha, as in PNG, QuickTime and ProRes."""
    share = alpha[..., None].astype(np.uint16)
    return ((picture * share + background * (255 - share) + 127) // 255).astype(np.uint8)


def _reformat(
    frame: av.VideoFrame, layout: str, interpolation: Interpolation, size: tuple[int, int] | None = None
) -> av.VideoFrame:
    """The stored picture in RGB of this layout, scaled to `size` if given; a new scaler costs almost nothing."""
    width, height = size or (frame.width, frame.height)
    matrix = None
    if frame.colorspace in _NO_MATRIX:
        is_hd = frame.width >= 1280 or frame.height > 576
        matrix = Colorspace.ITU709 if is_hd else Colorspace.ITU601
    try:
        return VideoReformatter().reformat(
            frame,
            width,
            height,
            format=layout,
            src_colorspace=matrix,
            dst_color_range=ColorRange.JPEG,
            interpolation=interpolation,
            threads=1,
        )
    except FFmpegError as error:
        if isinstance(error, MemoryError):
            raise
        text = f"{frame.format.name} cannot be turned into RGB: {error.strerror}"
        raise ClipError(ErrorCode.DECODE_ERROR, text) from error


def _read_orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """Counterclockwise turn in degrees, then mirrored or not, from the frame's display matrix.

    The matrix (a b u c d v x y w) takes a stored (x, y) to (a x + c y, b x + d y), with y pointing down.
    """
    try:
        side_data = frame.side_data
    except ValueError:  # of a kind that PyAV does not know, such as EXIF: only the turn is available
        return round(frame.rotation / 90) % 4 * 90, False
    if "DISPLAYMATRIX" not in side_data:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(side_data["DISPLAYMATRIX"]), np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (180 if d < 0 else 0), (a < 0) != (d < 0)
    return (90 if b < 0 else 270), (b < 0) == (c < 0)
