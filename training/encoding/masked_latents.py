"""The `masked_latents` annotator: a few draws of each masked task, encoded once, so that training needs no encoder.

A separate layer because it is large: two latents for each variant, so up to 13 times 8 MB for a clip of 81 x 480 x 832.
Tasks that combine a mask and a control track are not included: they need the encoder.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Annotator, Frames, Sample, Weight
from pipeline.formats.conditions import MASKS, build_condition, make_generator
from training.data.latents_file import INACTIVE, MASK, REACTIVE, StoredLatents, pack_mask, to_bytes
from training.encoding.latents import Encoder, check_weights, choose_weights
from training.models.folder import VAE

# Draws of each task: those of epochs 0, 1, ... with seed 0.
VARIANTS = 4


class MaskedLatents(Annotator):
    """For each masked task the two halves of the context and the mask, for `VARIANTS` draws or as many as differ
    (`firstframe` has only one).

    Makes one file, `masked_latents.safetensors`, whose format is defined in `training.data.latents_file`.
    """

    name: ClassVar[str] = "masked_latents"
    version: ClassVar[str] = "1"
    files: ClassVar[tuple[str, ...]] = ("masked_latents.safetensors",)
    sample: ClassVar[bool] = True
    gpu: ClassVar[bool] = True
    _parts: ClassVar[tuple[str, ...]] = (VAE,)

    @classmethod
    def choose(cls) -> tuple[Weight, ...]:
        """The autoencoder of the user's model. Raises `MissingWeights` if none is named."""
        return choose_weights(cls._parts)

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        """Load the weights from `choose`. Raises `MissingWeights` if this node has another model."""
        folder, self._made_by = check_weights(weights, self._parts)
        self._encoder = Encoder(folder)

    def __call__(self, frames: Frames, fps: float, *, sample: Sample) -> Annotation:
        """Encode the masked tasks of one clip: uint8 [T, H, W, 3] RGB."""
        tensors: dict[str, NDArray[Any]] = {}
        for task in MASKS:
            masks: list[NDArray[np.bool_]] = []
            for epoch in range(VARIANTS):
                draw = make_generator(0, epoch, sample.clip_id, task)
                task_condition = build_condition((task,), frames, sample.tracks, (), draw)
                assert task_condition.video is not None
                assert task_condition.mask is not None
                if any(np.array_equal(task_condition.mask, mask) for mask in masks):
                    continue
                key, hidden = f"{task}.{len(masks)}", task_condition.mask[..., None]
                masks.append(task_condition.mask)
                pixels = np.asarray(task_condition.video, np.float32) / 127.5 - 1
                tensors[f"{key}.{INACTIVE}"] = self._encoder.pixels(np.where(hidden, np.float32(0), pixels))
                tensors[f"{key}.{REACTIVE}"] = self._encoder.pixels(np.where(hidden, pixels, np.float32(0)))
                tensors[f"{key}.{MASK}"] = pack_mask(task_condition.mask)
        stored = StoredLatents(tensors, self._made_by)
        return Annotation(files={self.files[0]: to_bytes(stored)})
