"""The file format of stored latents, one safetensors file a clip: written by the annotator, read by the trainer.

    clip             [16, T', h, w]    the clip
    gray, pose, ...  [16, T', h, w]    each control track; gray is made from the clip
    reference.<k>    [16, 1, h, w]     a reference picture on a white canvas of the clip's size
    text             [tokens, dim]     the caption's embedding without padding; absent if there is no caption
    <task>.<k>.inactive .reactive      [16, T', h, w], of masked variant k; <task>.<k>.mask: its packed mask

All are float16: latents have a standard deviation of about 1, so it takes 2 bytes with an eighth of bfloat16's error,
and numpy supports it; masks are uint8.

Needs no library but numpy and safetensors, because trainers read it. The format cannot contain code.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.formats.canonical_json import canonical_json

Mask = NDArray[np.bool_]

FORMAT = 1
NORMALISATION = "(mode of the posterior - latents_mean) / latents_std"
CLIP, TEXT, REFERENCE = "clip", "text", "reference"
INACTIVE, REACTIVE, MASK = "inactive", "reactive", "mask"
# One key, because safetensors writes metadata in no fixed order, and the bytes must be reproducible.
_KEY = "vdot"


@dataclass(frozen=True, slots=True)
class StoredLatents:
    """The stored latents of one clip.

    tensors: as above. made_by: part of the model ("vae", "text_encoder") -> its fingerprint
    (`model_folder.fingerprint`). caption: the text that `text` embeds, if any.
    """

    tensors: Mapping[str, NDArray[Any]]
    made_by: Mapping[str, str]
    caption: str | None = None

    def find_mismatch(self, model: Mapping[str, str]) -> str | None:
        """Why a model cannot use these, in one sentence; None if it can. `model`: its `fingerprints`."""
        for part, made_by in self.made_by.items():
            if model.get(part) != made_by:
                own = model.get(part) or "none"
                return (
                    f"the stored latents were made by another {part} ({made_by[:12]}; this model's is {own[:12]}): "
                    "encode them again, or run `vdot-data annotate` with this model"
                )
        return None

    def count_variants(self, task: str) -> int:
        """The number of masked variants of a task."""
        return sum(key.startswith(f"{task}.") and key.endswith(f".{MASK}") for key in self.tensors)

    def unpack_mask(self, task: str, variant: int, shape: tuple[int, int, int]) -> Mask:
        """The mask of a variant, true where content is generated: bool [T, H, W], which is `shape`.

        Raises `KeyError` if there is no such variant, `ValueError` if it is of another shape.
        """
        size = shape[0] * shape[1] * shape[2]
        decompressor = zlib.decompressobj()
        try:
            # Bounded by the shape, so that hostile bytes cannot exhaust memory.
            bits = decompressor.decompress(self.tensors[f"{task}.{variant}.{MASK}"].tobytes(), -(-size // 8))
        except zlib.error as error:
            raise ValueError(f"the mask {task}.{variant} cannot be unpacked: {error}") from error
        if len(bits) != -(-size // 8) or not decompressor.eof:
            raise ValueError(f"the mask {task}.{variant} is not of the shape {shape}")
        return np.unpackbits(np.frombuffer(bits, np.uint8), count=size).astype(bool).reshape(shape)


def pack_mask(mask: Mask) -> NDArray[np.uint8]:
    """A mask, bool of any shape, as uint8 [bytes]: one bit a pixel, deflated."""
    return np.frombuffer(zlib.compress(np.packbits(mask).tobytes()), np.uint8)


def to_bytes(latents: StoredLatents) -> bytes:
    """The file's bytes, the same for the same latents. Raises `ValueError` for values that are not finite."""
    from safetensors.numpy import save

    for key, tensor in latents.tensors.items():
        if tensor.dtype == np.float16 and not np.isfinite(tensor).all():
            raise ValueError(f"the latents of {key} are not finite in float16")
    header = {
        "format": FORMAT,
        "made_by": dict(latents.made_by),
        "normalisation": NORMALISATION,
        "caption": latents.caption,
    }
    data: bytes = save(dict(latents.tensors), {_KEY: canonical_json(header)})
    return data


def read(data: bytes) -> StoredLatents:
    """The latents in bytes from `to_bytes`. Raises `ValueError` with a sentence for any other bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_KEY])
        if header["format"] != FORMAT:
            raise ValueError(f"these latents have format {header['format']}, and this version reads {FORMAT}")
        made_by, caption = header["made_by"], header["caption"]
        if not isinstance(made_by, dict) or not isinstance(caption, str | None):
            raise TypeError(header)
        return StoredLatents(tensors, made_by, caption)
    except (SafetensorError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"these bytes are not stored latents: {error!r}") from error
