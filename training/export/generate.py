"""A video from a prompt, a condition video, its mask and references, by a trained model: `vdot-train sample`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from training.diffusion import seeded_random
from training.encoding import vcu
from training.encoding.examples import text_embedder
from training.encoding.latents import autoencoder
from training.encoding.video_files import Frames
from training.export.trained_model import Trained
from training.models.networks import Conditions


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
        lambda step: seeded_random.normal(latent, device, seed, "sample", step),
    )
    shown_at_last: Frames = vcu.frames(vcu.decoder(vae)(vcu.trim(made, len(references))))[0]
    return shown_at_last
