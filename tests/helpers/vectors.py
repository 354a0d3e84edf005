"""Makes embeddings for tests without a network: vectors of the right length for the clips of a small dataset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from small_dataset import identity

from annotators.networks.picture_embedding import SIZE, ClipEmbedding
from pipeline.formats import embeddings
from pipeline.formats.embeddings import Vectors


def normalize(vectors: Any) -> Vectors:
    """Rows of any length as unit vectors, float16 [N, D]."""
    rows = np.array(vectors, np.float64).reshape(len(vectors), -1)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def table(ids: list[str], vectors: Vectors) -> pa.Table:
    """The table that `embeddings.append` takes."""
    flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float16()), vectors.shape[1])
    return pa.table({"clip_id": pa.array(ids, pa.string()), "embedding": flat})


def embed(dataset: Any, clips: dict[str, tuple[float, ...]], number: int = 0) -> None:
    """Store embeddings that begin with these numbers for clips (by short name)."""
    rows = normalize([[*numbers, *[0.0] * (SIZE - len(numbers))] for numbers in clips.values()])
    ids = [identity(name) for name in clips]
    embeddings.append_part(dataset.out, "fedcba987654", number, ClipEmbedding.version, table(ids, rows))
