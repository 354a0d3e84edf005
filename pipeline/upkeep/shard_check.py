"""Checks one shard against the catalog's rows, in a separate process, so that many are inspected at once."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

import av
from av.error import FFmpegError

from pipeline.errors import ClipError
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.schema import BASE_LAYER
from pipeline.formats.shards import compute_digest, digest_in_name
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

_PICTURES = {"jpg": "mjpeg", "png": "png"}


class Subject(StrEnum):
    """What a problem is about."""

    PART = "part"
    SOURCE = "source"
    CLIP = "clip"
    SHARD = "shard"
    EMBEDDINGS = "embeddings"
    REPORT = "report"


class Piece(StrEnum):
    """Which of a clip's bytes. A member equals its text, so values read from a catalog need no conversion."""

    SAMPLE = "sample"
    PREVIEW = "preview"


@dataclass(frozen=True, slots=True)
class Damage:
    """Damaged bytes: a whole shard, or one clip's sample or preview (`what`) of a layer in it."""

    shard: str
    clip_id: str | None = None
    layer: str | None = None
    what: Piece | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem: `kind` and `name` say where, `sentence` says what; `damage` is what can
    be made again from the source."""

    kind: Subject
    name: str
    sentence: str
    damage: Damage | None = None

    @property
    def text(self) -> str:
        """The problem as one line."""
        return f"{self.kind} {self.name}: {self.sentence}"


@dataclass(frozen=True, slots=True)
class Stored:
    """What the catalog says of one sample or preview (`what`) in a shard."""

    clip_id: str
    layer: str
    what: Piece
    offset: int
    size: int
    frames: int | None
    height: int | None
    width: int | None


@dataclass(slots=True)
class _Sample:
    """The members of one key in a tar: from the first one's header to the end of the last one's padding."""

    start: int
    end: int
    members: list[tarfile.TarInfo]


def inspect_shard(out: Folder, shard: str, rows: list[Stored]) -> list[Problem]:
    """Find the problems of a shard and of the samples that the catalog places in it.

    Members are decoded only if the checksum is right, so that no decoder sees bytes that the pipeline did not write.
    """
    try:
        with _open_shard(out, shard) as file:
            return _inspect_file(file, shard, rows)
    except FileNotFoundError:
        return [Problem(Subject.SHARD, shard, "was there and is gone: another run may be at work")]
    except OSError as error:
        # Not damage: a store that does not answer says nothing about the bytes.
        return [Problem(Subject.SHARD, shard, f"cannot be read: {error}")]


def _inspect_file(file: BinaryIO, shard: str, rows: list[Stored]) -> list[Problem]:
    checksum = compute_digest(file)
    if checksum != digest_in_name(shard):
        return [Problem(Subject.SHARD, shard, f"is damaged: its bytes hash to {checksum}", Damage(shard))]
    file.seek(0)
    try:
        samples, problems = _index_samples(file, shard)
    except tarfile.TarError as error:
        return [Problem(Subject.SHARD, shard, f"is not a tar: {error}", Damage(shard))]
    for row in rows:
        damage = Damage(shard, row.clip_id, row.layer, row.what)
        problems += [
            Problem(Subject.CLIP, row.clip_id, text, damage) for text in _check_sample(file, shard, row, samples)
        ]
    return problems


def _check_sample(file: BinaryIO, shard: str, row: Stored, samples: dict[str, _Sample]) -> Iterator[str]:
    """What is wrong with the catalog's row of one sample or preview."""
    sample = samples.get(row.clip_id)
    if sample is None:
        yield f"its {row.what} is not in {shard}, where the catalog places it"
    elif (row.offset, row.size) != (sample.start, sample.end - sample.start):
        actual = f"its {row.what} is at {sample.start}, {sample.end - sample.start} bytes long"
        yield f"{actual}, in {shard}; the catalog says {row.offset}, {row.size}"
    else:
        yield from _check_members(file, row, sample)


@contextmanager
def _open_shard(out: Folder, shard: str) -> Iterator[BinaryIO]:
    if out.local is not None:
        with (out.local / shard).open("rb") as file:
            yield file
        return
    with Scratch() as scratch:
        copy: Path = scratch.path / "shard.tar"
        out.download(shard, copy)
        with copy.open("rb") as file:
            yield file


def _index_samples(file: BinaryIO, shard: str) -> tuple[dict[str, _Sample], list[Problem]]:
    """Index the samples of a tar by key; members of one key must follow each other."""
    samples: dict[str, _Sample] = {}
    problems: list[Problem] = []
    last = ""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for entry in tar:
            key = entry.name.partition(".")[0]
            end = entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if key == last:
                samples[key].members.append(entry)
                samples[key].end = end
            elif key in samples:
                problems.append(Problem(Subject.SHARD, shard, f"holds clip {key} twice"))
            else:
                samples[key] = _Sample(entry.offset, end, [entry])
            last = key
    return samples, problems


def _check_members(file: BinaryIO, row: Stored, sample: _Sample) -> Iterator[str]:
    """What is wrong with the members of one sample or preview."""
    names = Counter(entry.name.partition(".")[2] for entry in sample.members)
    for name, count in names.items():
        if count > 1:
            yield f"has {count} members named {name}"
    if row.what == Piece.PREVIEW:
        needed = {"jpg"}
    elif row.layer == BASE_LAYER:
        needed = {"mp4", "json"}
    else:
        needed = {f"{row.layer}.json"}
    for name in sorted(needed - set(names)):
        yield f"its {row.what} has no member {name}"
    for entry in sample.members:
        file.seek(entry.offset_data)
        problem = _check_member(entry.name.rpartition(".")[2], file.read(entry.size), row)
        if problem:
            yield f"its {entry.name.partition('.')[2]} {problem}"


def _check_member(kind: str, data: bytes, row: Stored) -> str | None:
    """What is wrong with the bytes of a member, by the last part of its name."""
    if kind == "mp4":
        try:
            shape = decode_clip(data).shape[:3]
        except ClipError as error:
            return f"cannot be decoded: {error.detail}"
        expected = (row.frames, row.height, row.width)
        return None if shape == expected else f"is {shape} (frames, height, width); the catalog says {expected}"
    if kind == "json":
        try:
            clip_id = json.loads(data).get("clip_id")
        except (ValueError, AttributeError) as error:
            return f"is not a JSON object: {error}"
        return None if clip_id == row.clip_id else f"is that of clip {clip_id}"
    if kind == "txt":
        try:
            data.decode()
        except UnicodeDecodeError as error:
            return f"is not UTF-8 text: {error}"
    if kind == "safetensors":
        return _check_tensors(data)
    if kind in _PICTURES:
        try:
            decoder = av.CodecContext.create(_PICTURES[kind], "r")
            return None if decoder.decode(av.Packet(data)) else "holds no picture"
        except FFmpegError as error:
            return f"cannot be decoded: {error}"
    return None


def _check_tensors(data: bytes) -> str | None:
    """What is wrong with a safetensors file: the length of its header, the JSON header, or the tensors it places."""
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        declared = max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        return f"is not a safetensors file: {error!r}"
    actual = len(data) - 8 - length
    return None if declared == actual else f"holds {actual} bytes of tensors; its header says {declared}"
