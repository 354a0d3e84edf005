"""Ingests hundreds of damaged files at once: each must get a verdict, without crash, hang or a good file blamed.

Small videos of many codecs and containers are damaged at random, and FFmpeg's own program decodes each for a second
opinion. What must not happen is listed in the result by name:

- `no_verdict`: a source without an outcome, or with a clip that has none;
- `our_faults`: a source with a code that blames the program (INTERNAL_ERROR, WORKER_DIED), or reports that its decoder
  crashed or hung;
- `clips_failed`: a clip that failed although its source was cut;
- `blamed`: a source that failed although FFmpeg decodes as many frames as the undamaged file has, without a complaint;
- `unlike`: a source with another outcome than the undamaged file although FFmpeg decodes the same frames of both;
- `verify`: what `verify` finds in the dataset.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ffmpeg
from benchmarks.ingest.mutations import MUTATIONS, mutate
from pipeline.catalog.catalog import Catalog, values
from pipeline.errors import ErrorCode
from pipeline.sources.globbing import is_video
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.upkeep.verify import verify

# Light, because only reading is tested; a shot of two seconds makes a clip.
RECIPE = """\
shots: adaptive
grid: {fps: 8, frames: 17, min_frames: 9, area: 20480, multiple: 16}
filters: [luma]
stages: [[scribble]]
rules: {}
tasks: {}
encode: {preset: ultrafast}
limits: {stall_s: 20}
commit: {shard_mb: 16, every_s: 10}
"""
FORMATS = {
    "h264.mp4": "-c:v libx264 -c:a aac -movflags +faststart",
    "h264-index-last.mp4": "-c:v libx264 -bf 3 -g 12",
    "h264-fragments.mp4": "-c:v libx264 -movflags frag_keyframe+empty_moov -g 16",
    "h264.mov": "-c:v libx264 -c:a pcm_s16le",
    "h264.mkv": "-c:v libx264 -bf 2 -c:a aac",
    "h264.ts": "-c:v libx264 -g 8 -c:a aac",
    "h264.flv": "-c:v libx264 -c:a aac",
    "h264.avi": "-c:v libx264 -bf 0",
    "hevc.mp4": "-c:v libx265 -x265-params log-level=none -tag:v hvc1",
    "hevc10.mkv": "-c:v libx265 -x265-params log-level=none -pix_fmt yuv420p10le",
    "av1.mp4": "-c:v libsvtav1 -preset 12",
    "av1.mkv": "-c:v libaom-av1 -cpu-used 8",
    "vp8.webm": "-c:v libvpx -deadline realtime -c:a libvorbis",
    "vp9.webm": "-c:v libvpx-vp9 -deadline realtime",
    "mpeg4.avi": "-c:v mpeg4 -bf 2 -c:a mp3",
    "mpeg4.mp4": "-c:v mpeg4 -q:v 4",
    "mpeg2.mpg": "-c:v mpeg2video -r 25 -c:a mp2",
    "mpeg2.ts": "-c:v mpeg2video -r 25 -bf 2",
    "mpeg1.mpg": "-c:v mpeg1video -r 25",
    "h263.3gp": "-c:v h263 -s 128x96",
    "flv1.flv": "-c:v flv",
    "wmv2.wmv": "-c:v wmv2 -c:a wmav2",
    "theora.ogv": "-c:v libtheora -c:a libvorbis",
    "mjpeg.avi": "-c:v mjpeg -q:v 8",
    "prores.mov": "-c:v prores -profile:v 0 -s 128x96",
    "ffv1.mkv": "-c:v ffv1 -s 128x96",
}
"""File name -> FFmpeg's arguments to write it."""
_PICTURES = ("testsrc2=size=160x128:rate=16:duration=2.5", "mandelbrot=size=160x128:rate=16,trim=duration=2.5")
_LARGEST_REAL = 256 << 10
# Codes that say what is wrong with a file; any other blames the program, or reports that it crashed or hung.
_FILE_CODES = frozenset(
    (ErrorCode.NOT_VIDEO, ErrorCode.SOURCE_EMPTY, ErrorCode.DECODE_ERROR, ErrorCode.TOO_LARGE, ErrorCode.OUT_OF_MEMORY)
)


@dataclass(frozen=True, slots=True)
class Mutant:
    """A file to be ingested, the name of its original (its own, if undamaged), and its mutation."""

    file: Path
    original: str
    mutation: str | None


def measure(clips: Path | None, count: int, seed: int, out: Path | None = None) -> dict[str, Any]:
    """Damage, ingest and check `count` files, made from synthetic videos and from the small ones in `clips`.

    Files and dataset are kept in the new folder `out` if it is given. Raises `RunError` if FFmpeg cannot make the
    videos, and `subprocess.TimeoutExpired` if the ingest hangs.
    """
    with tempfile.TemporaryDirectory(prefix="vdot-mutants-") as temporary, Scratch() as scratch:
        folder = out or Path(temporary)
        files = write_mutants(folder, write_originals(folder, clips), count, seed)
        status, seconds = _ingest(folder, count)
        con = Catalog(Folder(str(folder / "out")), scratch.path).connect()
        sources = {Path(row["source_uri"]).name: row for row in values(con, "SELECT * FROM sources")}
        rows = values(con, "SELECT * FROM clips")
        with ThreadPoolExecutor(2) as pool:
            readings = dict(
                zip(
                    (mutant.file.name for mutant in files),
                    pool.map(ffmpeg.decode, [mutant.file for mutant in files]),
                    strict=True,
                )
            )
        return {
            "mutants": count,
            "originals": sum(mutant.mutation is None for mutant in files),
            "seed": seed,
            "exit_status": status,
            "seconds": round(seconds, 1),
            "mutations": dict(sorted(Counter(mutant.mutation or "none" for mutant in files).items())),
            "sources": _count_statuses(sources.values()),
            "clips": _count_statuses(rows),
            "ffmpeg_clean": sum(reading.is_clean for reading in readings.values()),
            **_find_wrong(files, sources, rows, readings),
            "verify": [problem.text for problem in verify(str(folder / "out"), 1).problems],
        }


def list_faults(result: dict[str, Any]) -> list[str]:
    """Everything in a result that must not happen, a sentence each."""
    lists = ("no_verdict", "our_faults", "clips_failed", "blamed", "unlike", "verify")
    problems = [f"{name}: {entry}" for name in lists for entry in result[name]]
    return problems + ([f"exit status {result['exit_status']}"] if result["exit_status"] else [])


def write_originals(folder: Path, clips: Path | None) -> list[Path]:
    """Write a small video of every format, and copies of the real ones that are small."""
    target = folder / "originals"
    target.mkdir(parents=True)
    files = []
    for number, (name, arguments) in enumerate(FORMATS.items()):
        pictures = ["-f", "lavfi", "-i", _PICTURES[number % len(_PICTURES)]]
        sound = ["-f", "lavfi", "-i", "sine=duration=2.5"] if "-c:a" in arguments else []
        files.append(ffmpeg.make_video(target / name, [*pictures, *sound, "-pix_fmt", "yuv420p", *arguments.split()]))
    real = sorted(clips.iterdir()) if clips else []
    for file in real:
        if is_video(file.name) and file.stat().st_size <= _LARGEST_REAL and ffmpeg.decode(file).is_clean:
            files.append(target / f"real-{file.name}")
            files[-1].write_bytes(file.read_bytes())
    return files


def write_mutants(folder: Path, sources: list[Path], count: int, seed: int) -> list[Mutant]:
    """Write `count` damaged files into `folder`/videos, beside a copy of each original; the same for the same seed."""
    target = folder / "videos"
    target.mkdir()
    contents = {source.name: source.read_bytes() for source in sources}
    files = []
    for name, content in contents.items():
        files.append(Mutant(target / name, name, None))
        files[-1].file.write_bytes(content)
    # Every pair of original and mutation occurs once before any occurs twice.
    pairs = [(source.name, mutation) for mutation in MUTATIONS for source in sources]
    rng = random.Random(seed)  # noqa: S311
    order: list[tuple[str, str]] = []
    while len(order) < count:
        order += rng.sample(pairs, len(pairs))
    for number, (name, mutation) in enumerate(order[:count]):
        donor = contents[rng.choice([candidate for candidate in contents if candidate != name])]
        file = target / f"{number:04d}-{mutation}-{name}"
        file.write_bytes(mutate(mutation, contents[name], donor, f"{seed} {number}"))
        files.append(Mutant(file, name, mutation))
    return files


def _ingest(folder: Path, count: int) -> tuple[int, float]:
    """Run ingest; returns exit status and seconds. Raises `subprocess.TimeoutExpired` if it hangs."""
    (folder / "recipe.yaml").write_text(RECIPE)
    program = Path(sys.executable).with_name("vdot-data")
    options = ["--out", folder / "out", "--recipe", folder / "recipe.yaml", "--json"]
    command = [str(part) for part in (program, "ingest", folder / "videos", *options)]
    started = time.monotonic()
    process = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=folder, timeout=300 + 10 * count)
    return process.returncode, time.monotonic() - started


def _count_statuses(rows: Any) -> dict[str, int]:
    """The number of rows by status, and by code for those that failed."""
    return dict(sorted(Counter(" ".join(filter(None, (row["status"], row["code"]))) for row in rows).items()))


def _find_wrong(
    files: list[Mutant],
    sources: dict[str, dict[str, Any]],
    rows: list[dict[str, Any]],
    readings: dict[str, ffmpeg.Reading],
) -> dict[str, list[str]]:
    """The lists in this module's docstring that are about single files."""
    clips: dict[str, list[dict[str, Any]]] = {mutant.file.name: [] for mutant in files}
    for row in rows:
        clips[Path(row["source_uri"]).name].append(row)
    wrong: dict[str, list[str]] = {
        name: [] for name in ("no_verdict", "our_faults", "clips_failed", "blamed", "unlike")
    }
    for mutant in files:
        name = mutant.file.name
        source = sources.get(name)
        if source is None:
            wrong["no_verdict"].append(name)
            continue
        entry = f"{name}: {source['status']} {source['code'] or ''} {source['detail'] or ''}".strip()
        reading, original_reading = readings[name], readings[mutant.original]
        if not _is_settled(source, clips[name]):
            wrong["no_verdict"].append(entry)
        if source["code"] and source["code"] not in _FILE_CODES:
            wrong["our_faults"].append(entry)
        if source["status"] == "failed" and reading.is_clean and len(reading.frames) == len(original_reading.frames):
            wrong["blamed"].append(entry)
        expected = _describe_outcome(sources[mutant.original], clips[mutant.original])
        if reading.frames == original_reading.frames and _describe_outcome(source, clips[name]) != expected:
            wrong["unlike"].append(entry)
        wrong["clips_failed"] += [
            f"{name} {row['start_s']:.2f} s: {row['code']} {row['detail']}"
            for row in clips[name]
            if row["status"] == "failed"
        ]
    return wrong


def _is_settled(source: dict[str, Any], clips: list[dict[str, Any]]) -> bool:
    """Whether each of a source's clips has a verdict; a source with the content of another has no clips of its own."""
    listed = {window["clip_id"] for window in source["windows"] or ()}
    judged = {row["clip_id"] for row in clips if row["status"] != "pending"}
    return source["status"] == "same" or listed == judged


def _describe_outcome(source: dict[str, Any], clips: list[dict[str, Any]]) -> tuple[Any, ...]:
    # Without the clips' starts: an edit list may shift them, while the program's own time stamps begin at zero.
    return source["status"], source["code"], sorted((row["frames"], row["status"]) for row in clips)
