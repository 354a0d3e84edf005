"""Compares what the pipeline stores of a file with what `ffmpeg` shows of it, at every point of the grid."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import card
import ffmpeg_frames
import numpy as np
import reference_files
from numpy.typing import NDArray
from reference_sources import Source, coverage, sources

from pipeline.errors import ClipError
from pipeline.formats import clip_decode
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.stages import sandboxed
from pipeline.video.frames import ThumbnailChunk
from pipeline.video.grid import shots_of

# The pipeline's grid with shorter clips, so that a source of two seconds has several.
FPS = 16
RECIPE = """
grid: {fps: 16, frames: 17, min_frames: 5}
filters: [luma]
stages: [[scribble]]
rules: {}
tasks: {}
"""
# How far a patch's colours may be from what ffmpeg shows: the loss of our own x264 (crf 18, 4:2:0); more for pixel
# formats with one colour for four pixels across, which bleeds into a patch when it is scaled.
TOLERANCE, TOLERANCES = 4.0, {"yuv410p": 5.0, "yuv411p": 5.0}
# How far the disc may be off: a share of its size, and pixels.
_ROUND, _ROUND_PIXELS = 0.03, 1.0
# A grid point shows a frame that starts up to 1 ms after it; a time this near to that limit may go either way, because
# windows begin at full microseconds.
_EARLY_S, _EITHER_S = Fraction(1, 1000), Fraction(2, 1_000_000)


@dataclass(frozen=True)
class StoredClip:
    """A clip as it is read back: uint8 [T, H, W, 3] RGB, and its start in the source."""

    start_s: float
    frames: NDArray[np.uint8]


@dataclass
class Comparison:
    """How much was compared of one source, and its faults."""

    frames: int = 0
    points: int = 0
    patches: int = 0
    worst: float = 0.0
    faults: list[str] = field(default_factory=list)


@cache
def _blueprint() -> Blueprint:
    return Blueprint.for_ingest(recipe.parse(RECIPE, "reference"), ())


def store(path: Path) -> tuple[list[float], sandboxed.ScanResult, list[StoredClip]]:
    """Run the pipeline's stages on a file as one shot; returns its frames' times, the scan's summary, and its clips."""
    blueprint = _blueprint()
    *parts, end = sandboxed.scan(path, blueprint)
    assert isinstance(end, sandboxed.ScanResult)
    thumbs = [part for part in parts if isinstance(part, ThumbnailChunk)]
    times = np.concatenate([part.times for part in thumbs])
    joined = np.concatenate([part.joined for part in thumbs])
    grid = blueprint.recipe.grid
    shots = shots_of([(0, len(times) - 1)], times, end.end_s, joined)
    windows = grid.windows("reference", shots, times)
    size = grid.size(end.probe.display.width, end.probe.display.height)
    assert size is not None
    clips = []
    for stored_clip in sandboxed.cut_clips(path, windows, size, None, {}, blueprint):
        assert stored_clip.mp4 is not None, stored_clip.verdict
        planes = clip_decode.decode_planar(stored_clip.mp4, (stored_clip.window.frames, size[1], size[0]))
        clips.append(StoredClip(stored_clip.window.start_s, np.moveaxis(planes, 0, -1)))
    return times.tolist(), end, clips


def compare(source: Source, folder: Path) -> Comparison:
    """Make a source's file, run the pipeline on it and compare."""
    path = reference_files.make(source, folder)
    reference = ffmpeg_frames.decode(path)
    times, end, clips = store(path)
    result = check(reference, clips, source.layout)
    first = times[0]
    reference_times = [float(time - reference.times[0]) for time in reference.times]
    result.frames = len(reference_times)
    if len(times) != len(reference_times):
        result.faults.append(f"{len(times)} frames of {len(reference_times)} were read")
    else:
        differences = [
            abs(time - first - reference_time) for time, reference_time in zip(times, reference_times, strict=True)
        ]
        if max(differences) > 2e-3:
            result.faults.append(f"frame {int(np.argmax(differences))} comes {max(differences):.4f} s early or late")
    if end.tally.unused:
        result.faults.append(f"{end.tally.unused} of {end.tally.decoded} decoded frames were not used")
    last_s, end_s = reference_times[-1] + float(reference.durations[-1]), end.end_s - first
    if not -0.003 <= end_s - last_s <= 0.12:
        result.faults.append(f"it ends at {end_s:.3f} s; ffmpeg shows it until {last_s:.3f} s")
    return result


def check(reference: ffmpeg_frames.Video, clips: list[StoredClip], layout: str) -> Comparison:
    """Check numbers, colours and shapes of every frame of these clips of a source; the first clip starts with it.

    `layout` is the source's pixel format.
    """
    tolerance = TOLERANCES.get(layout, TOLERANCE)
    result = Comparison()
    if not clips:
        result.faults.append("no clip")
        return result
    height, width = reference.pictures.shape[1:3]
    card_area = card.Area(0, 0, width, height)
    numbers = [card.number(picture, card_area) for picture in reference.pictures]
    if any(after <= before for before, after in pairwise(numbers)):
        result.faults.append(f"the source itself is not in order: {numbers}")
    if any(after <= before for before, after in pairwise(reference.times)):
        result.faults.append("ffmpeg's own times go back: the source cannot be a reference")
    origin = min(clip.start_s for clip in clips)
    for clip in clips:
        area = _covering_area(reference, *clip.frames.shape[2:0:-1])
        starts = Fraction(clip.start_s - origin).limit_denominator(10**6) + reference.times[0]
        for point, picture in enumerate(clip.frames):
            time = starts + Fraction(point, FPS) + _EARLY_S
            candidates = {
                _latest_index(reference.times, time - _EITHER_S),
                _latest_index(reference.times, time + _EITHER_S),
            }
            number = card.number(picture, area)
            result.points += 1
            if number not in {numbers[index] for index in candidates}:
                expected = " or ".join(str(numbers[index]) for index in candidates)
                result.faults.append(f"{float(time):.3f} s shows frame {number}, not {expected}")
                continue
            index = next(index for index in candidates if numbers[index] == number)
            _check_colours(result, picture, area, reference.pictures[index], card_area, tolerance)
        _check_disc(result, clip.frames[len(clip.frames) // 2], area)
    return result


def _latest_index(times: list[Fraction], limit: Fraction) -> int:
    return max(0, sum(time <= limit for time in times) - 1)


def _covering_area(reference: ffmpeg_frames.Video, width: int, height: int) -> card.Area:
    """The area of a picture that is scaled to cover `width` x `height` and cropped at the centre."""
    reference_height, reference_width = reference.pictures.shape[1:3]
    display_width = reference_width * float(reference.aspect)
    scale = max(width / display_width, height / reference_height)
    scaled_width, scaled_height = display_width * scale, reference_height * scale
    return card.Area((width - scaled_width) / 2, (height - scaled_height) / 2, scaled_width, scaled_height)


def _check_colours(
    result: Comparison,
    picture: NDArray[np.uint8],
    area: card.Area,
    reference: NDArray[np.uint8],
    reference_area: card.Area,
    tolerance: float,
) -> None:
    differences = np.abs(card.colours(picture, area) - card.colours(reference, reference_area)).max(axis=1)
    result.patches += len(differences)
    result.worst = max(result.worst, float(differences.max()))
    if differences.max() > tolerance:
        index = int(differences.argmax())
        measured, expected = card.colours(picture, area)[index], card.colours(reference, reference_area)[index]
        text = "{} is {}, ffmpeg shows {}"
        result.faults.append(text.format([*card.PATCHES][index], measured.round().tolist(), expected.round().tolist()))


def _check_disc(result: Comparison, picture: NDArray[np.uint8], area: card.Area) -> None:
    measured, expected = card.disc(picture, area), card.expected_disc(area)
    tolerance = max(_ROUND_PIXELS, _ROUND * expected[2])
    if any(abs(value - target) > tolerance for value, target in zip(measured, expected, strict=True)):
        text = "the disc's centre and size are {}, not {}"
        result.faults.append(text.format(np.round(measured, 1).tolist(), np.round(expected, 1).tolist()))


def check_matrix(folder: Path, sources: Iterable[Source]) -> dict[str, Comparison]:
    """Compare each of these sources; results by name. A source's file is removed before the next is made."""
    results: dict[str, Comparison] = {}
    for index, source in enumerate(sources):
        source_folder = folder / str(index)
        source_folder.mkdir()
        try:
            results[source.name] = compare(source, source_folder)
        except ClipError as error:
            results[source.name] = Comparison(faults=[f"{error.code}: {error.detail}"])
        except AssertionError as error:
            error.add_note(f"the source is: {source.name}")
            raise
        shutil.rmtree(source_folder)
    return results


def summarize(sources: Sequence[Source], results: Mapping[str, Comparison]) -> dict[str, Any]:
    """The figures of a comparison."""
    covered, possible = coverage(sources)
    worst: dict[str, float] = {}
    for source in sources:
        worst[source.codec] = max(worst.get(source.codec, 0.0), round(results[source.name].worst, 2))
    return {
        "sources": len(results),
        "codecs": len({source.codec for source in sources}),
        "containers": len({source.container for source in sources}),
        "codec and container": len({(source.codec, source.container) for source in sources}),
        "pairs of values": covered,
        "pairs of values that a file can have": possible,
        "frames": sum(result.frames for result in results.values()),
        "grid points": sum(result.points for result in results.values()),
        "patches": sum(result.patches for result in results.values()),
        "worst colour error by codec": worst,
        "sources with a fault": sum(bool(result.faults) for result in results.values()),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        chosen = sources()
        outcome = check_matrix(Path(temporary), chosen)
    json.dump(summarize(chosen, outcome), sys.stdout, indent=2)
    sys.stdout.write("\n")
    for name, result in outcome.items():
        if result.faults:
            sys.stderr.write(f"{name}: {len(result.faults)} faults, {result.faults[0]}\n")
