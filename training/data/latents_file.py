"""Latents as they are stored, one safetensors file a clip: written by the annotator, read by the trainer.

    clip             [16, T', h, w]    the clip
    gray, pose, ...  [16, T', h, w]    each control track; gray is made from the clip
    reference.<k>    [16, 1, h, w]     a reference picture on a white canvas of the clip's size
    text             [tokens, dim]     the caption's embedding without padding; absent where there is no caption
    <task>.<k>.inactive .reactive      [16, T', h, w], of masked variant k; <task>.<k>.mask: its packed mask

All are float16: latents have a deviation of about 1, so that it costs 2 bytes and an eighth of bfloat16's error, and
numpy knows it; masks are uint8.

Numpy alone, because trainers read it; the format holds no code.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]

FORMAT = 1
NORMALISATION = "(mode of the posterior - latents_mean) / latents_std"
CLIP, TEXT, REFERENCE = "clip", "text", "reference"
INACTIVE, REACTIVE, MASK = "inactive", "reactive", "mask"
# One key, because safetensors writes those of its metadata in no fixed order, and bytes must not vary.
_KEY = "vdot"


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored of one clip.

    tensors: as above. made_by: part of the model ("vae", "text_encoder") -> its fingerprint
    (`model_folder.fingerprint`). caption: the words that `text` stands for, if any.
    """

    tensors: Mapping[str, NDArray[Any]]
    made_by: Mapping[str, str]
    caption: str | None = None

    def misfit(self, model: Mapping[str, str]) -> str | None:
        """Why a model cannot use these, in one sentence; None where it can. `model`: its `fingerprints`."""
        for part, made_by in self.made_by.items():
            if model.get(part) != made_by:
                other = model.get(part) or "none"
                return (
                    f"the stored latents were made by another {part} ({made_by[:12]}; this model's is {other[:12]}): "
                    "encode anew, or `vdot-data annotate` with this model"
                )
        return None

    def variants(self, task: str) -> int:
        """How many masked variants of a task there are."""
        return sum(key.startswith(f"{task}.") and key.endswith(f".{MASK}") for key in self.tensors)

    def mask(self, task: str, variant: int, shape: tuple[int, int, int]) -> Mask:
        """The mask of a variant, true where something is to be made: bool [T, H, W], which is `shape`.

        Raises `KeyError` where there is no such variant, `ValueError` where it is of another shape.
        """
        size = shape[0] * shape[1] * shape[2]
        unpacked = zlib.decompressobj()
        try:
            # No more than the shape has room for, whatever the bytes say.
            bits = unpacked.decompress(self.tensors[f"{task}.{variant}.{MASK}"].tobytes(), -(-size // 8))
        except zlib.error as error:
            raise ValueError(f"the mask {task}.{variant} cannot be unpacked: {error}") from error
        if len(bits) != -(-size // 8) or not unpacked.eof:
            raise ValueError(f"the mask {task}.{variant} is not of the shape {shape}")
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(bool).reshape(shape)


def packed(mask: Mask) -> NDArray[np.uint8]:
    """A mask, bool of any shape, as uint8 [bytes]: a bit a pixel, deflated."""
    return np.frombuffer(zlib.compress(np.packbits(mask).tobytes()), np.uint8)


def written(latents: Stored) -> bytes:
    """What `read` reads; the same bytes for the same latents. Raises `ValueError` for values that are not finite."""
    from safetensors.numpy import save

    for key, tensor in latents.tensors.items():
        if tensor.dtype == np.float16 and not np.isfinite(tensor).all():
            raise ValueError(f"the latents of {key} are not finite in float16")
    about = {
        "format": FORMAT,
        "made_by": dict(latents.made_by),
        "normalisation": NORMALISATION,
        "caption": latents.caption,
    }
    made: bytes = save(dict(latents.tensors), {_KEY: json.dumps(about, sort_keys=True)})
    return made


def read(data: bytes) -> Stored:
    """The latents in a file that `written` made. Raises `ValueError` for any other bytes, in a sentence."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        if about["format"] != FORMAT:
            raise ValueError(f"these latents have format {about['format']}, and this version reads {FORMAT}")
        made_by, caption = about["made_by"], about["caption"]
        if not isinstance(made_by, dict) or not isinstance(caption, str | None):
            raise TypeError(about)
        return Stored(tensors, made_by, caption)
    except (SafetensorError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"these bytes are no stored latents: {error!r}") from error
