"""Masked tasks without an encoder on the trainer's card: a few draws of each mask, encoded once and used again.

A layer of its own because it is large: two latents for each variant, so up to 13 times 8 MB for a clip of
81 x 480 x 832. Composites of a mask and a control track are not among them: they need the encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from annotators.base import Annotation, Frames, Sample, Signal, Weight
from pipeline.formats.conditions import MASKS, build_condition, make_generator
from training.data.latents_file import INACTIVE, MASK, REACTIVE, Stored, packed, written
from training.encoding.latents import Encoder, checked, chosen
from training.models.folder import VAE

# Draws of each task: those of the epochs 0, 1, ... of seed 0.
VARIANTS = 4


class MaskedLatents:
    """Of each masked task, the two halves of the context and the mask, for `VARIANTS` draws or as many as differ (the
    first frame is always the first frame).

    Makes one file, `masked_latents.safetensors`; what is in it stands in `stored_latents`.
    """

    name: ClassVar[str] = "masked_latents"
    version: ClassVar[str] = "1"
    tracks: ClassVar[tuple[str, ...]] = ()
    signals: ClassVar[Mapping[str, Signal]] = {}
    weights: ClassVar[tuple[Weight, ...]] = ()
    files: ClassVar[tuple[str, ...]] = ("masked_latents.safetensors",)
    sample: ClassVar[bool] = True
    gpu: ClassVar[bool] = True
    _parts: ClassVar[tuple[str, ...]] = (VAE,)

    @classmethod
    def choose(cls) -> tuple[Weight, ...]:
        """The autoencoder of the user's model. Raises `MissingWeights` where none is named."""
        return chosen(cls._parts)

    def __init__(self, weights: tuple[Weight, ...]) -> None:
        """Load what `choose` gave. Raises `MissingWeights` where this node has another model."""
        folder, self._made_by = checked(weights, self._parts)
        self._encoder = Encoder(folder)

    def __call__(self, frames: Frames, fps: float, *, sample: Sample) -> Annotation:
        """Encode the masked tasks of one clip: uint8 [T, H, W, 3] RGB."""
        made: dict[str, NDArray[Any]] = {}
        for task in MASKS:
            drawn: list[NDArray[np.bool_]] = []
            for epoch in range(VARIANTS):
                draw = make_generator(0, epoch, sample.clip_id, task)
                given = build_condition((task,), frames, sample.tracks, (), draw)
                assert given.video is not None
                assert given.mask is not None
                if any(np.array_equal(given.mask, mask) for mask in drawn):
                    continue
                key, shown = f"{task}.{len(drawn)}", given.mask[..., None]
                drawn.append(given.mask)
                pixels = np.asarray(given.video, np.float32) / 127.5 - 1
                made[f"{key}.{INACTIVE}"] = self._encoder.pixels(np.where(shown, np.float32(0), pixels))
                made[f"{key}.{REACTIVE}"] = self._encoder.pixels(np.where(shown, pixels, np.float32(0)))
                made[f"{key}.{MASK}"] = packed(given.mask)
        stored = Stored(made, self._made_by)
        return Annotation(files={self.files[0]: written(stored)})
