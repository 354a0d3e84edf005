"""Writes a mixture as the files and the CSV that the published VDOT trainer reads, so that nobody is locked in.

    videos/<clip>.mp4            the target; the trainer finds it by the name of the source video
    <task>/<clip>.mp4            the condition: a control track, or the clip with gray where it must be filled in
    <task>.mask/<clip>.mp4       white where it must be filled in
    references/<clip>_<n>.png    reference pictures
    train.csv, held_out.csv      a row per clip and task
    mixture                      the hash of the mixture that all this follows from

Columns as its loader names them: task_name, src_video_path, mask_video_path, ref_image_path (with commas), prompt, and
internvl_short, which is where it looks for the prompt. [hhhh1138/VDOT: training/utils/dataset.py and
training/trainer/distillation_vace.py, read for the facts]
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.catalog.catalog import check_no_dataset
from pipeline.errors import ClipError, UsageError
from pipeline.formats import shards
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip
from pipeline.formats.conditions import (
    MASKS,
    REFERENCE,
    TEXT,
    build_condition,
    make_generator,
    read_caption,
    reference_names,
    track_names,
)
from pipeline.mixture.mixture import HELD_OUT, TRAIN, Mixture, read
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch

COLUMNS = ("task_name", "src_video_path", "mask_video_path", "ref_image_path", "prompt", "internvl_short")
# Masks are thresholded when read; a finer quality keeps their edges where they are.
_MASK_CRF = 8
_BATCH = 1_000
# The file that says which mixture a folder was written from.
_MARKER = "mixture"


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """How many rows each CSV has by task, and how many clips and tasks were left out, by reason."""

    folder: str
    rows: dict[str, dict[str, int]]
    left_out: dict[str, int]


def to_csv(mixture: str, target: Path, *, frames: int = 81, workers: int | None = None) -> ExportSummary:
    """Write what `mixture`, a folder that `mix` made, draws into the folder `target`; existing files stay.

    `frames`: only clips of this length, because that trainer makes noise of one shape for all. `workers`: processes,
    else one per core. Raises `UsageError` when `mixture` is not one or `target` holds another, and `RunError` or
    `StorageError` when a disk is full or a store keeps failing.
    """
    drawn, samples = read(mixture)
    folder = Folder(str(target.absolute()))
    check_no_dataset(folder)
    if not folder.create(_MARKER, drawn.hash.encode()) and folder.read(_MARKER).decode() != drawn.hash:
        raise UsageError(f"{target} holds the files of another mixture: choose another folder")
    counts: dict[str, Counter[str]] = {TRAIN: Counter(), HELD_OUT: Counter()}
    left_out: Counter[str] = Counter()
    with Scratch() as scratch, ExitStack() as files:
        tables = {}
        for split in counts:
            file = files.enter_context((scratch.path / split).open("w", newline=""))
            tables[split] = csv.DictWriter(file, COLUMNS)
            tables[split].writeheader()
        pool = files.enter_context(ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")))
        # Not all at once: `map` would hold a row and a future for each of millions of clips.
        for batch in samples.iter_batches(_BATCH):
            rows = batch.to_pylist()
            left_out[f"clips of another length than {frames} frames"] += sum(row["frames"] != frames for row in rows)
            rows = [row for row in rows if row["frames"] == frames]
            for sample, (clip_rows, missing) in zip(
                rows, pool.map(partial(_export_clip, drawn, folder), rows), strict=True
            ):
                tables[sample["split"]].writerows(clip_rows)
                counts[sample["split"]].update(row["task_name"] for row in clip_rows)
                left_out.update(missing)
        files.close()
        for split in counts:
            folder.put(f"{split}.csv", scratch.path / split)
    return ExportSummary(folder.url, {split: dict(counter) for split, counter in counts.items()}, dict(+left_out))


def _export_clip(
    mixture: Mixture, target: Folder, sample: Mapping[str, Any]
) -> tuple[list[dict[str, str]], Counter[str]]:
    """Write the files of one clip; its rows, and what was left out by reason."""
    clip_id = sample["clip_id"]
    out = Folder(mixture.datasets[sample["dataset"]][0])
    members: dict[str, bytes] = {}
    try:
        for place in sample["places"]:
            members |= shards.read_sample(out, clip_id, place["shard"], place["offset"], place["bytes"])
    except (FileNotFoundError, KeyError, tarfile.TarError):
        return [], Counter({"clips whose shard is damaged or gone (`vdot-data verify`)": 1})
    prompt = read_caption(members)
    if not prompt:
        return [], Counter({"clips without a caption": 1})
    _write_file(target, f"videos/{clip_id}.mp4", members["mp4"])
    references = [
        _write_file(target, f"references/{clip_id}_{number}.png", members[name])
        for number, name in enumerate(reference_names(members))
    ]
    rows, left_out = [], Counter[str]()
    for task in sample["tasks"]:
        reference_paths = references if REFERENCE in mixture.parts[task] else []
        try:
            video, mask = _write_condition(mixture.seed, target, clip_id, task, mixture.parts[task], members)
        except (ValueError, ClipError) as error:
            left_out[f"{task}: {error}"] += 1
            continue
        if video or reference_paths:
            rows.append(dict(zip(COLUMNS, (task, video, mask, ",".join(reference_paths), prompt, prompt), strict=True)))
        else:
            # That trainer finds a clip by the name of its source video or reference.
            left_out[f"{task}: its form has no row without a source video or a reference"] += 1
    return rows, left_out


def _write_condition(
    seed: int, target: Folder, clip_id: str, task: str, parts: Sequence[str], members: Mapping[str, bytes]
) -> tuple[str, str]:
    """Write source video and mask, and return their paths; "" for what the task does not have. Raises ValueError
    as `condition`, and ClipError for a clip or track that cannot be decoded."""
    picture_parts = [part for part in parts if part not in (REFERENCE, TEXT)]
    if len(picture_parts) == 1 and f"{picture_parts[0]}.mp4" in members:
        # As stored; the composites with that track share the file.
        return _write_file(target, f"{picture_parts[0]}/{clip_id}.mp4", members[f"{picture_parts[0]}.mp4"]), ""
    if not picture_parts:
        return "", ""
    masked = any(part in MASKS for part in picture_parts)
    names = f"{task}/{clip_id}.mp4", f"{task}.mask/{clip_id}.mp4" if masked else ""
    assert target.local is not None
    paths = tuple(str(target.local / name) if name else "" for name in names)
    if not all(Path(path).exists() for path in paths if path):
        fps = json.loads(members["json"])["fps"]
        tracks = {track: partial(decode_clip, members[name]) for track, name in track_names(members).items()}
        frames = decode_clip(members["mp4"])
        result = build_condition(picture_parts, frames, tracks, [], make_generator(seed, 0, clip_id, task))
        assert result.video is not None
        if result.mask is not None:
            white = np.repeat(np.uint8(255) * result.mask[..., None], 3, axis=-1)
            _write_file(target, names[1], encode_clip(white, fps, _MASK_CRF))
        _write_file(target, names[0], encode_clip(result.video, fps))
    return paths[0], paths[1]


def _write_file(target: Folder, name: str, data: bytes) -> str:
    """Write a file, and return its path; one that exists is the same, as all follows from the mixture."""
    assert target.local is not None
    target.create(name, data)
    return str(target.local / name)
