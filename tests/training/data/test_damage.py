"""Damaged and hostile shards: unreadable clips are left out and listed, the same on all ranks."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tarfile
import zlib
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import small_mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from small_dataset import identity
from small_mixture import STEPS, run, seen

from pipeline.errors import RunError
from pipeline.formats import shards
from pipeline.mixture.mixture import read_all
from training.data.stream import Stream


def shard_of(mixture: Path, number: int) -> tuple[Path, int, int]:
    """The shard of a clip, and the clip's offset and size in it."""
    _, samples = read_all(str(mixture))
    row = samples["clip_id"].to_pylist().index(identity(f"s{number}"))
    place = samples["places"][row].as_py()[0]
    return mixture.parent / "data" / place["shard"], place["offset"], place["bytes"]


def cut_short(mixture: Path) -> set[int]:
    path, offset, size = shard_of(mixture, 3)
    os.truncate(path, offset + size // 2)
    return {3, 4}


def gone(mixture: Path) -> set[int]:
    shard_of(mixture, 7)[0].unlink()
    return {5, 6, 7, 8, 9}


def overwritten(mixture: Path) -> set[int]:
    path, offset, size = shard_of(mixture, 2)
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(size))
    return {2}


def flipped(mixture: Path) -> set[int]:
    """Flip one bit of a video, which no decoder would notice."""
    path, offset, size = shard_of(mixture, 6)
    with path.open("r+b") as file:
        file.seek(offset)
        position = offset + file.read(size).index(b"mdat") + 200
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 4]))
    return {6}


def emptied(mixture: Path) -> set[int]:
    shard_of(mixture, 11)[0].write_bytes(b"")
    return {10, 11}


@pytest.mark.parametrize("damage", [cut_short, gone, overwritten, flipped, emptied])
def test_damage_is_left_out_with_a_count_and_the_same_for_all(private_mixture: Path, damage: Any) -> None:
    before = run(private_mixture, 1, 0, STEPS)
    lost = {identity(f"s{number}") for number in damage(private_mixture)}
    stream = Stream(str(private_mixture))
    batches = [seen(batch) for step in islice(stream, STEPS) for batch in step]
    assert {entry.key for entry in stream.damaged.values()} == lost
    assert all(entry.why and entry.shard.startswith("shards/") for entry in stream.damaged.values())
    assert not {key for batch in batches for key in batch[2]} & lost
    # Undamaged clips stay where they were, and clips of the same bucket replace the damaged ones.
    for batch_before, batch in zip(before, batches, strict=True):
        assert batch_before[:2] == batch[:2]
        if not set(batch_before[2]) & lost:
            assert batch_before == batch
    assert run(private_mixture, 2, 2, STEPS) == batches
    assert run(private_mixture, 4, 0, STEPS) == batches
    late = run(private_mixture, 1, 1, 9, {"mixture": stream.mixture.hash, "split": "train", "position": 60})
    assert late == batches[60:]


@pytest.mark.parametrize("workers", [0, 1])
def test_too_much_damage_ends_the_run_with_a_name(private_mixture: Path, workers: int) -> None:
    gone(private_mixture)
    stream = Stream(str(private_mixture), workers=workers, max_damaged=3)
    with pytest.raises(RunError, match=r"more than 3 clips.*clip [0-9a-f]{32} in shards/.*data.*the shard is gone"):
        [batch for step in islice(stream, 200) for batch in step]
    stream.close()


def test_a_bucket_of_which_nothing_is_left_is_said(private_mixture: Path) -> None:
    for path in (private_mixture.parent / "data/shards").iterdir():
        path.unlink()
    with pytest.raises(RunError, match="all 6 are damaged"):
        [batch for step in islice(Stream(str(private_mixture)), 200) for batch in step]


def hostile(name: str, **attributes: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        for attribute, value in attributes.items():
            setattr(entry, attribute, value)
        tar.addfile(entry)
    return buffer.getvalue()[:512]


@pytest.mark.parametrize(
    "header",
    [
        hostile("../../etc/passwd"),
        hostile("/etc/passwd"),
        hostile("k.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        hostile("k.mp4", type=tarfile.LNKTYPE, linkname="k.json"),
        hostile("k.mp4", type=tarfile.DIRTYPE),
        hostile("k.mp4", type=tarfile.CHRTYPE),
        hostile("k.mp4")[:124] + b"77777777777\0" + hostile("k.mp4")[136:],
        b"\xff" * 512,
    ],
)
def test_what_no_writer_of_ours_wrote_is_refused(header: bytes) -> None:
    with pytest.raises(tarfile.TarError):
        list(shards.iterate_members(memoryview(header)))


@given(st.integers(0, 511), st.integers(1, 255), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_a_header_with_a_wrong_byte_is_refused_or_says_the_same(position: int, change: int, number: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo(f"{number:032x}.pose.mp4")
        entry.size = 700 * number
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    archive = buffer.getvalue()
    before = [(name, bytes(data)) for name, data in shards.iterate_members(memoryview(archive))]
    assert before == [(entry.name, bytes(entry.size))]
    corrupted = bytearray(archive)
    corrupted[position] ^= change
    with contextlib.suppress(tarfile.TarError):
        assert [(name, bytes(data)) for name, data in shards.iterate_members(memoryview(bytes(corrupted)))] == before


def test_members_that_are_not_what_they_should_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged_members = dict(small_mixture.members(1))
    damaged_members["ref.0.png"] = (
        damaged_members["ref.0.png"][:16] + b"\x00\x01\x00\x00" * 2 + damaged_members["ref.0.png"][24:]
    )
    damaged_members["pose.mp4"] = small_mixture.members(0)["pose.mp4"]
    original = small_mixture.members
    monkeypatch.setattr(small_mixture, "members", lambda number: damaged_members if number == 1 else original(number))
    stream = Stream(str(small_mixture.make(tmp_path)))
    for step in islice(stream, 60):
        list(step)
    reasons = {(damage.task, damage.why) for damage in stream.damaged.values()}
    wrong_shape = "CLIP_DAMAGED: a clip's mp4 cannot be read"
    assert {damage.key for damage in stream.damaged.values()} == {identity("s1")}
    assert ("pose", f"{wrong_shape}: it is 9 frames of 64x48, and should be 5 frames of 48x32") in reasons
    assert {"text", "inpaint", "extension"} & {task for task, _ in reasons} == set()


@pytest.mark.parametrize("wrong", ["codec", "picture"])
def test_what_no_encoder_of_ours_makes_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    members = dict(small_mixture.members(1))
    if wrong == "codec":
        members["mp4"] = members["mp4"].replace(b"avc1", b"avcX")
    else:
        # A PNG whose first chunk is not its header hides its size.
        png = members["ref.0.png"]
        text = struct.pack(">I", 0) + b"tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
        members["ref.0.png"] = png[:8] + text + png[8:]
    original = small_mixture.members
    monkeypatch.setattr(small_mixture, "members", lambda number: members if number == 1 else original(number))
    stream = Stream(str(small_mixture.make(tmp_path)))
    for step in islice(stream, 60):
        list(step)
    assert {damage.key for damage in stream.damaged.values()} == {identity("s1")}
    tasks = {*small_mixture.PARTS} if wrong == "codec" else {"reference_pose"}
    assert {damage.task for damage in stream.damaged.values()} == tasks
