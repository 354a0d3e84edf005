"""Table columns as numpy arrays.

Not by `to_numpy`, which imports pandas if it is installed (as `pa.array`, `pa.scalar` and comparisons with a value do),
and a trainer would wait for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def combine_chunks(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; pyarrow's `combine_chunks` would copy even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def to_int64(values: pa.Array) -> Numbers:
    """An array of integers without nulls as int64 [N]."""
    return np.from_dlpack(values).astype(np.int64)


def encode_values(values: pa.Array) -> tuple[Numbers, list[Any]]:
    """Equal values as equal numbers 0, 1, ..., in order of first appearance; and the values."""
    encoded = values.dictionary_encode()
    return to_int64(encoded.indices), encoded.dictionary.to_pylist()
