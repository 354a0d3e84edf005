"""Which clip a row of a mixture's samples is and where its layers lie, in arrays: a training run asks for each clip."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.mixture.arrow_arrays import combine_chunks, encode_values, to_int64
from training.data.shard_reader import Place


class Lookup:
    """The clips of a mixture, by row."""

    def __init__(self, samples: pa.Table) -> None:
        """`samples`: the table of the mixture, which is not kept but for the clips' ids."""
        self._ids = combine_chunks(samples["clip_id"])
        places = combine_chunks(samples["places"])
        self._begins = to_int64(places.offsets)
        found = places.values
        self._layers, self._shards = encode_values(found.field("layer")), encode_values(found.field("shard"))
        self._offsets, self._sizes = to_int64(found.field("offset")), to_int64(found.field("bytes"))
        sums = found.field("crc32")
        raw = pa.Array.from_buffers(sums.type, len(sums), [None, sums.buffers()[1]], offset=sums.offset)
        # -1: not known.
        self._sums = np.where(to_int64(pc.is_valid(sums).cast(pa.int64())), to_int64(raw), -1)

    def clip_id(self, row: int) -> str:
        """The id of a clip."""
        return str(self._ids[row])

    def places(self, row: int) -> tuple[Place, ...]:
        """Where a clip's layers lie, the base layer first."""
        return tuple(map(self._place, range(self._begins[row], self._begins[row + 1])))

    def _place(self, at: int) -> Place:
        (layers, layer_names), (shards, shard_names) = self._layers, self._shards
        total = int(self._sums[at])
        sizes = int(self._offsets[at]), int(self._sizes[at])
        return Place(layer_names[layers[at]], shard_names[shards[at]], *sizes, None if total < 0 else total)
