"""VACE's context tensors from the conditions of a micro-batch: what `WanVACEPipeline` does for one clip, for a batch.

A context has 96 channels in this order: 16 latent channels of what is kept ("inactive"), 16 of what is generated or of
a control track ("reactive"), and 64 of the mask, one for each pixel of a latent's square, row by row. References are
extra latent frames before the clip's, and lengthen the noise by as many.
[VACE: vace/models/wan/wan_vace.py; Apache-2.0, read for the rules]

Tensors are [batch, channel, time, height, width]. Needs only PyTorch, so that any encoder can be used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from training.data.stream import Batch

Encode = Callable[[Tensor], Tensor]
"""Pixels float [N, 3, T, H, W] in [-1, 1] -> latents [N, 16, T', H / 8, W / 8] with T' = (T + 3) / 4, normalised."""
Shape = tuple[int, int, int]
"""T, H, W of a clip in pixels: T = 4n + 1, H and W multiples of 16."""

# The Wan 2.1 autoencoder: the first frame and then groups of 4, squares of 8 x 8 pixels, 16 channels.
_GROUP, _SQUARE, CHANNELS = 4, 8, 16
# The transformer takes 2 x 2 latents as a token.
_SIDE = 2 * _SQUARE


def encoder(vae: Any) -> Encode:
    """The `Encode` of an autoencoder with the interface of diffusers' `AutoencoderKLWan`, in its dtype, on its device
    and without gradient: the mode of the posterior, normalised by its config's `latents_mean` and `latents_std`."""
    mean, std = _statistics(vae)

    def encode(clips: Tensor) -> Tensor:
        with torch.no_grad():
            latents = vae.encode(clips.to(vae.device, vae.dtype)).latent_dist.mode()
            return ((latents.float() - mean.to(latents.device)) / std.to(latents.device)).to(vae.dtype)

    return encode


def decoder(vae: Any) -> Callable[[Tensor], Tensor]:
    """The inverse: normalised latents [N, 16, T', h, w] -> pixels float32 [N, 3, T, H, W], about within [-1, 1]."""
    mean, std = _statistics(vae)

    def decode(latents: Tensor) -> Tensor:
        with torch.no_grad():
            denormalized = latents.float().to(vae.device) * std.to(vae.device) + mean.to(vae.device)
            return torch.as_tensor(vae.decode(denormalized.to(vae.dtype), return_dict=False)[0]).float()

    return decode


def frames(pixels: Tensor) -> NDArray[np.uint8]:
    """Pixels float [N, 3, T, H, W] in [-1, 1] as uint8 [N, T, H, W, 3] RGB."""
    pixel_values = pixels.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    rgb: NDArray[np.uint8] = pixel_values.permute(0, 2, 3, 4, 1).cpu().numpy()
    return rgb


def latent_shape(shape: Shape, batch: int, references: int = 0) -> tuple[int, int, int, int, int]:
    """The shape of sampled latents, and so of their noise: [B, 16, R + T', H / 8, W / 8] with R `references` for each
    clip. Raises `ValueError` for a shape that does not divide into tokens."""
    length, height, width = shape
    if min(shape) < 1 or length % _GROUP != 1:
        raise ValueError(f"a clip has 4n + 1 frames, this one {length} of {height} x {width}")
    if height % _SIDE or width % _SIDE:
        raise ValueError(f"height and width are multiples of {_SIDE}, these are {height} and {width}")
    return batch, CHANNELS, references + (length + _GROUP - 1) // _GROUP, height // _SQUARE, width // _SQUARE


def trim(latents: Tensor, references: int) -> Tensor:
    """Sampled latents [B, 16, R + T', h, w] without the R frames of the references, as the autoencoder decodes them."""
    return latents[:, :, references:]


def pixels(frames: Tensor) -> Tensor:
    """uint8 of any shape as float32 in [-1, 1]: x / 127.5 - 1. Raises `ValueError` for another dtype."""
    if frames.dtype != torch.uint8:
        raise ValueError(f"frames and pictures are uint8, these are {frames.dtype}")
    return frames.float().div_(127.5).sub_(1)


def context(
    encode: Encode,
    video: Tensor | None,
    mask: Tensor | None,
    references: Sequence[Sequence[Tensor]],
    shape: Shape,
    gray: Tensor | None = None,
) -> Tensor:
    """The context [B, 96, R + T', H / 8, W / 8] of the B clips of one task, in the dtype and on the device of `encode`.

    `video` uint8 [B, 3, T, H, W]; None: no video (only text or references), which is gray, 0.0. `mask` bool
    [B, 1, T, H, W], true where content is generated; None: everywhere. `references`: the R >= 0 pictures of each clip,
    uint8 [h, w, 3] of any size, in VACE's order (diffusers' pipeline reverses it). `gray`: the result of `nothing` for
    this shape, so that it is not encoded again. Raises `ValueError` for inputs that do not fit together.

    `encode` is called once for the clips, once for all references, and once for gray if needed and not given. With a
    mask it gets 2 B clips of 12 T H W bytes, and the autoencoder's workspace grows with 2 B (hardly with T, because it
    works in groups of frames). If that is too much, let `encode` work clip by clip (diffusers: `vae.enable_slicing()`).
    """
    batch, counts = len(references), {len(pictures) for pictures in references}
    if len(counts) != 1:
        raise ValueError(f"the clips of a batch have the same number of references, these have {sorted(counts)}")
    (count,) = counts
    _, _, _, height, width = latent_shape(shape, batch, count)
    _check_shapes(video, mask, batch, shape)
    halves = _encode_halves(encode, video, mask, batch, shape, gray)
    clips = torch.cat([halves, _mask_channels(mask, batch, shape).to(halves)], dim=1)
    if not count:
        return clips
    canvases = torch.stack([fitted(picture, *shape[1:]) for pictures in references for picture in pictures])
    # Each picture is a clip of one frame: the autoencoder would mix frames of one clip.
    return _prepend_references(
        encode(canvases[:, :, None]).reshape(batch, count, CHANNELS, height, width).transpose(1, 2), clips
    )


def nothing(encode: Encode, shape: Shape) -> Tensor:
    """The latents of gray video, [1, 16, T', h, w]: a constant for each shape, which a trainer computes only once."""
    return encode(torch.zeros(1, 3, *shape))


def of_latents(batch: Batch, gray: Tensor) -> Tensor:
    """The context of a micro-batch of the form "latents", in the dtype and on the device of `gray`; see `nothing`.

    Raises `ValueError` for one of another form: a stream falls back to pixels where no latents fit.
    """
    _check_form(batch, "latents", "of_batch")
    count, bucket = len(batch.keys), batch.bucket
    shape = (bucket.frames, bucket.height, bucket.width)
    halves = [
        torch.from_numpy(batch.arrays[name]).to(gray) if name in batch.arrays else gray.expand(count, -1, -1, -1, -1)
        for name in ("inactive", "reactive")
    ]
    mask = torch.from_numpy(batch.arrays["mask"]) if "mask" in batch.arrays else None
    clips = torch.cat([*halves, _mask_channels(mask, count, shape).to(gray)], dim=1)
    if not bucket.references:
        return clips
    references = [
        np.concatenate([item[f"reference.{number}"] for number in range(bucket.references)], axis=1)
        for item in batch.items
    ]
    return _prepend_references(torch.from_numpy(np.stack(references)).to(gray), clips)


def of_batch(encode: Encode, batch: Batch, gray: Tensor | None = None) -> Tensor:
    """The context of a micro-batch of the form "pixels"; see `context`. Raises `ValueError` for another form."""
    _check_form(batch, "pixels", "of_latents")
    video, mask = (torch.from_numpy(batch.arrays[name]) if name in batch.arrays else None for name in ("video", "mask"))
    references = [[torch.from_numpy(picture) for picture in item.values()] for item in batch.items]
    bucket = batch.bucket
    return context(encode, video, mask, references, (bucket.frames, bucket.height, bucket.width), gray)


def covering(height: int, width: int, shape: tuple[int, int]) -> tuple[tuple[int, int], tuple[slice, slice]]:
    """The size to scale a picture of `height` x `width` to so that it covers `shape`, and the slices of its center."""
    scale = max(shape[0] / height, shape[1] / width)
    sides = max(shape[0], round(height * scale)), max(shape[1], round(width * scale))
    top, left = ((side - target) // 2 for side, target in zip(sides, shape, strict=True))
    return sides, (slice(top, top + shape[0]), slice(left, left + shape[1]))


def covered(pictures: Tensor, shape: tuple[int, int], *, mask: bool = False) -> Tensor:
    """Pictures [N, C, H, W], uint8 or bool, scaled to cover `shape` and center-cropped, in their dtype: bilinear with
    antialiasing, masks by nearest neighbour."""
    sides, middle = covering(pictures.shape[2], pictures.shape[3], shape)
    if sides != tuple(pictures.shape[2:]):
        options: dict[str, Any] = {"mode": "nearest-exact"} if mask else {"mode": "bilinear", "antialias": True}
        # In integers: two to four times as fast as in float32, and off by at most 1.
        pictures = functional.interpolate(pictures.to(torch.uint8), sides, **options).to(pictures.dtype)
    return pictures[:, :, *middle]


def fitted(picture: Tensor, height: int, width: int) -> Tensor:
    """A picture uint8 [h, w, 3] scaled to fit, centered on a white canvas: float32 [3, H, W] in [-1, 1].

    Bilinear, without antialiasing, and sides rounded down, as in VACE. (diffusers first resizes the sides to multiples
    of 8 by Lanczos, which distorts a picture slightly.)
    """
    scale = min(height / picture.shape[0], width / picture.shape[1])
    # At least one pixel, however thin the picture.
    tall, wide = (max(1, int(side * scale)) for side in picture.shape[:2])
    image = pixels(picture).permute(2, 0, 1)[None]
    top, left = (height - tall) // 2, (width - wide) // 2
    canvas = image.new_ones(3, height, width)
    canvas[:, top : top + tall, left : left + wide] = functional.interpolate(image, (tall, wide), mode="bilinear")[0]
    return canvas


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of an autoencoder's latents, float32 [1, 16, 1, 1, 1] each."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return mean, std


def _check_form(batch: Batch, form: str, alternative: str) -> None:
    if batch.form != form:
        raise ValueError(
            f"this batch is of {batch.form}, not of {form}: check `batch.form`, and call `{alternative}` for it"
        )


def _prepend_references(references: Tensor, clips: Tensor) -> Tensor:
    """The context of clips [B, 96, T', h, w] after that of their references [B, 16, R, h, w], whose reactive half and
    mask are zeros, because they are kept."""
    return torch.cat([functional.pad(references, (0, 0) * 3 + (0, clips.shape[1] - CHANNELS)), clips], dim=2)


def _check_shapes(video: Tensor | None, mask: Tensor | None, batch: int, shape: Shape) -> None:
    for name, tensor, channels in (("video", video, 3), ("mask", mask, 1)):
        if tensor is not None and tuple(tensor.shape) != (batch, channels, *shape):
            raise ValueError(f"the {name} is {list(tensor.shape)}, not {[batch, channels, *shape]}")
    if mask is not None and (video is None or mask.dtype != torch.bool):
        raise ValueError(f"a mask is bool and belongs to a video, this one is {mask.dtype}")


def _encode_halves(
    encode: Encode, video: Tensor | None, mask: Tensor | None, batch: int, shape: Shape, gray: Tensor | None
) -> Tensor:
    """Latents [B, 32, T', h, w] of what is kept and of what is generated. Gray is encoded once for all clips."""
    if video is None or mask is None:
        inactive = (nothing(encode, shape) if gray is None else gray).expand(batch, -1, -1, -1, -1)
        reactive = inactive if video is None else encode(pixels(video))
        return torch.cat([inactive.to(reactive), reactive], dim=1)
    masked_clips = pixels(video).repeat(2, 1, 1, 1, 1)
    masked_clips[:batch].masked_fill_(mask, 0)
    masked_clips[batch:].masked_fill_(~mask, 0)
    return torch.cat(encode(masked_clips).chunk(2), dim=1)


def _mask_channels(mask: Tensor | None, batch: int, shape: Shape) -> Tensor:
    """The mask as [B, 64, T', h, w]: channel 8 y + x holds the pixel at (y, x) of each square.

    A latent frame gets the mask of the frame that "nearest-exact" picks: for the first one that is frame 1, not frame
    0, so a kept first frame shows only in the inactive half. VACE and diffusers do the same.
    """
    _, _, groups, *sides = latent_shape(shape, batch)
    if mask is None:
        return torch.ones(batch, _SQUARE**2, groups, *sides, dtype=torch.bool)
    frames = functional.interpolate(torch.arange(shape[0])[None, None].float(), groups, mode="nearest-exact")
    picked = mask[:, :, frames[0, 0].long().to(mask.device)]
    return functional.pixel_unshuffle(picked.transpose(1, 2), _SQUARE).transpose(1, 2)
