"""Sampling of a video from a prompt, a condition video, its mask and references: `vdot-train sample`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from training.diffusion import seeded_random
from training.encoding import vcu
from training.encoding.examples import make_text_embedder
from training.encoding.latents import load_autoencoder
from training.encoding.video_files import Frames
from training.export.trained_model import TrainedModel
from training.models.networks import Conditions


def video(
    trained: TrainedModel,
    prompt: str,
    *,
    shape: vcu.Shape,
    condition: Frames | None = None,
    mask: NDArray[np.bool_] | None = None,
    references: Sequence[Frames] = (),
    seed: int = 0,
) -> Frames:
    """uint8 [T, H, W, 3] RGB of a shape (T = 4n + 1, H and W multiples of 16).

    `condition` uint8 [T, H, W, 3]: a control track, or what a mask keeps; `mask` bool [T, H, W]: true where content is
    generated; `references`: pictures uint8 [h, w, 3]. Raises ValueError if shapes do not fit, UsageError for more than
    the network has positions for.
    """
    device = next(trained.network.transformer.parameters()).device
    latent_shape = vcu.latent_shape(shape, 1, len(references))
    trained.network.check_sides(latent_shape[2:])
    embed = make_text_embedder(trained.folder, device, trained.model.text_tokens)
    text, negative = embed(prompt), embed(trained.model.negative_prompt)
    vae = load_autoencoder(trained.folder, device)
    condition_tensor = None if condition is None else torch.from_numpy(condition).permute(3, 0, 1, 2)[None]
    pictures = [torch.from_numpy(picture.copy()) for picture in references]
    mask_tensor = None if mask is None else torch.from_numpy(mask)[None, None]
    context = vcu.context(vcu.encoder(vae), condition_tensor, mask_tensor, [pictures], shape)
    latents = trained.sampler.sample(
        trained.network,
        Conditions(text, context.to(device)),
        negative,
        lambda step: seeded_random.normal(latent_shape, device, seed, "sample", step),
    )
    film: Frames = vcu.frames(vcu.decoder(vae)(vcu.trim(latents, len(references))))[0]
    return film
