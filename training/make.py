"""A video from a prompt, a condition video, its mask and references, by a trained model: `vdot-train sample`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from numpy.typing import NDArray

from pipeline.decode import picture
from pipeline.errors import ClipError, UsageError
from training import draws, vcu
from training.examples import text_embedder
from training.latents import autoencoder
from training.models import Conditions
from training.student import Trained

Frames = NDArray[np.uint8]
# The grid's frames a second, at which Wan was trained.
FPS = 16.0


def video(
    trained: Trained,
    prompt: str,
    *,
    shape: vcu.Shape,
    condition: Frames | None = None,
    mask: NDArray[np.bool_] | None = None,
    references: Sequence[Frames] = (),
    seed: int = 0,
) -> Frames:
    """uint8 [T, H, W, 3] RGB of a shape (T = 4n + 1, H and W multiples of 16).

    `condition` uint8 [T, H, W, 3]: a control track, or what is kept under a mask; `mask` bool [T, H, W]: true where
    something is to be made; `references`: pictures uint8 [h, w, 3]. Raises ValueError where shapes do not fit,
    UsageError for more than the network has positions for.
    """
    device = next(trained.network.transformer.parameters()).device
    latent = vcu.latent_shape(shape, 1, len(references))
    trained.network.check_sides(latent[2:])
    embed = text_embedder(trained.folder, device, trained.model.text_tokens)
    text, free = embed(prompt), embed(trained.model.negative_prompt)
    vae = autoencoder(trained.folder, device)
    frames = None if condition is None else torch.from_numpy(condition).permute(3, 0, 1, 2)[None]
    shown = [torch.from_numpy(one.copy()) for one in references]
    hidden = None if mask is None else torch.from_numpy(mask)[None, None]
    context = vcu.context(vcu.encoder(vae), frames, hidden, [shown], shape)
    made = trained.sampling.make(
        trained.network,
        Conditions(text, context.to(device)),
        free,
        lambda step: draws.normal(latent, device, seed, "sample", step),
    )
    shown_at_last: Frames = vcu.frames(vcu.decoder(vae)(vcu.trim(made, len(references))))[0]
    return shown_at_last


def read_video(file: Path, shape: vcu.Shape) -> Frames:
    """The first T frames of a video on the grid of 16 frames a second, scaled to cover H x W and cut in the middle:
    uint8 [T, H, W, 3] RGB. Raises UsageError where it cannot be read or is shorter."""
    length, height, width = shape
    found: list[Frames] = []

    def show(frame: av.VideoFrame, until: float) -> None:
        """A frame is shown until the next one begins."""
        while len(found) < length and len(found) / FPS < until - 1e-6:
            found.append(_covering(frame.to_ndarray(format="rgb24"), height, width))

    try:
        with av.open(str(file)) as container:
            if not container.streams.video:
                raise UsageError(f"{file} holds no video, whatever else it holds")
            shown: av.VideoFrame | None = None
            # Some begin at another time than 0: cut from a longer one, or with frames that wait for later ones.
            begins = 0.0
            for frame in container.decode(video=0):
                at = float(frame.time or 0)
                if shown is None:
                    begins = at
                else:
                    show(shown, at - begins)
                shown = frame
                if len(found) == length:
                    break
            if shown is not None:
                lasts = float((shown.duration or 0) * (shown.time_base or 0)) or 1 / FPS
                show(shown, float(shown.time or 0) - begins + lasts)
    except (FFmpegError, OSError) as error:
        raise UsageError(f"{file} cannot be read as a video ({error})") from error
    if len(found) < length:
        raise UsageError(f"{file} has {len(found)} frames at 16 a second, and {length} are needed: --frames")
    return np.stack(found)


def read_picture(file: Path) -> Frames:
    """A picture (PNG) as uint8 [h, w, 3] RGB. Raises UsageError where it cannot be read."""
    try:
        return picture(file.read_bytes())
    except (OSError, ClipError) as error:
        raise UsageError(f"{file} cannot be read as a PNG picture ({error})") from error


def _covering(frame: Frames, height: int, width: int) -> Frames:
    shown = vcu.covered(torch.from_numpy(frame).permute(2, 0, 1)[None], (height, width))
    return np.ascontiguousarray(shown[0].permute(1, 2, 0).numpy())
