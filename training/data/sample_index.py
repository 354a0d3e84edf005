"""Fast lookup of a clip's id and the places of its layers by row of a mixture's samples, in arrays."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.mixture.arrow_arrays import combine_chunks, encode_values, to_int64
from training.data.shard_reader import Place


class Lookup:
    """The clips of a mixture, by row."""

    def __init__(self, samples: pa.Table) -> None:
        """`samples`: the table of the mixture, of which only the clip ids are kept."""
        self._ids = combine_chunks(samples["clip_id"])
        places = combine_chunks(samples["places"])
        self._begins = to_int64(places.offsets)
        values = places.values
        self._layers, self._shards = encode_values(values.field("layer")), encode_values(values.field("shard"))
        self._offsets, self._sizes = to_int64(values.field("offset")), to_int64(values.field("bytes"))
        checksums = values.field("crc32")
        checksum_values = pa.Array.from_buffers(
            checksums.type, len(checksums), [None, checksums.buffers()[1]], offset=checksums.offset
        )
        # -1: unknown.
        self._checksums = np.where(to_int64(pc.is_valid(checksums).cast(pa.int64())), to_int64(checksum_values), -1)

    def clip_id(self, row: int) -> str:
        """The id of a clip."""
        return str(self._ids[row])

    def places(self, row: int) -> tuple[Place, ...]:
        """The places of a clip's layers, the base layer first."""
        return tuple(map(self._place, range(self._begins[row], self._begins[row + 1])))

    def _place(self, index: int) -> Place:
        (layers, layer_names), (shards, shard_names) = self._layers, self._shards
        checksum = int(self._checksums[index])
        sizes = int(self._offsets[index]), int(self._sizes[index])
        return Place(layer_names[layers[index]], shard_names[shards[index]], *sizes, None if checksum < 0 else checksum)
