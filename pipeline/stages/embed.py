"""The only stage of the Ray plan of `dedup`: stored clips in, their embeddings out.

An error in one clip becomes its failure here (`errors.attempt`); only `RunError` is raised.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np
import pyarrow as pa

from annotators.networks.picture_embedding import SIZE, ClipEmbedding
from pipeline.attempts import Attempts, Permission, describe_deaths
from pipeline.errors import ErrorCode, Failure, attempt
from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.embeddings import Vectors
from pipeline.storage.folder import Folder
from pipeline.video import process

_SCHEMA = pa.schema(
    [("clip_id", pa.string()), ("embedding", pa.list_(pa.float16(), SIZE))]
    + [(name, pa.string()) for name in ("code", "detail")]
)


class StoredClip(TypedDict):
    """Where a clip's sample is."""

    clip_id: str
    shard: str
    offset: int
    bytes: int


class EmbedStage:
    """Stored clips (rows of `StoredClip`) to rows of clip_id and embedding, or code and detail."""

    def __init__(self, out: Folder, attempts: Attempts) -> None:
        process.prepare()
        self._out, self._attempts, self._embed = out, attempts, ClipEmbedding()

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = []
        for clip in batch.to_pylist():
            unit = f"embedding of clip {clip['clip_id']}"
            permission = self._attempts.begin(unit)
            if permission is Permission.STOP:
                break
            is_dead = permission is Permission.DEAD
            result = describe_deaths("embedded this clip") if is_dead else self._embed_clip(clip)
            row = (
                {"code": result.code, "detail": result.detail} if isinstance(result, Failure) else {"embedding": result}
            )
            rows.append({"clip_id": clip["clip_id"], **row})
            self._attempts.end(unit)
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def _embed_clip(self, clip: StoredClip) -> Vectors | Failure:
        def read() -> bytes:
            return shards.read_sample(self._out, clip["clip_id"], clip["shard"], clip["offset"], clip["bytes"])["mp4"]

        mp4 = attempt(ErrorCode.STORAGE_ERROR, read)
        if isinstance(mp4, Failure):
            return mp4
        return attempt(ErrorCode.ANNOTATOR_ERROR, lambda: self._embed(decode_clip(mp4)).astype(np.float16))
