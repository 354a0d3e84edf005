"""Columns of a table as numpy's arrays. Not by `to_numpy`, which imports pandas where that is installed (as `pa.array`,
`pa.scalar` and comparing with a value do), and a trainer would wait for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def whole(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array; `combine_chunks` would copy even a single chunk."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def numbers(values: pa.Array) -> Numbers:
    """An array of whole numbers without nulls, int64 [N]."""
    return np.from_dlpack(values).astype(np.int64)


def codes(values: pa.Array) -> tuple[Numbers, list[Any]]:
    """Equal values as equal numbers 0, 1, ..., in order of their first coming; and the values."""
    encoded = values.dictionary_encode()
    return numbers(encoded.indices), encoded.dictionary.to_pylist()
