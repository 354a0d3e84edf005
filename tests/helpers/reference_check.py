"""Holds what the pipeline stores of a file against what `ffmpeg` shows of it, at every point of the grid."""

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
import ffmpeg
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

# The grid of the pipeline in all but length: a source of two seconds has several clips.
FPS = 16
RECIPE = """
grid: {fps: 16, frames: 17, min_frames: 5}
filters: [luma]
stages: [[scribble]]
rules: {}
tasks: {}
"""
# How far the colours of a patch may be from what ffmpeg shows: what our own x264 (crf 18, 4:2:0) loses; and of pixel
# formats of which one colour covers four pixels across, which bleeds into a patch when it is scaled.
TOLERANCE, TOLERANCES = 4.0, {"yuv410p": 5.0, "yuv411p": 5.0}
# How far the disc may be off: a share of its size, and pixels.
_ROUND, _ROUND_PIXELS = 0.03, 1.0
# A grid point shows a frame that starts up to 1 ms after it; a time so near to that limit may go either way, because
# windows begin at whole microseconds.
_EARLY_S, _EITHER_S = Fraction(1, 1000), Fraction(2, 1_000_000)


@dataclass(frozen=True)
class Stored:
    """One clip as it is read back: uint8 [T, H, W, 3] RGB, and when it starts in the source."""

    start_s: float
    frames: NDArray[np.uint8]


@dataclass
class Comparison:
    """What was compared of one source, and what was wrong."""

    frames: int = 0
    points: int = 0
    patches: int = 0
    worst: float = 0.0
    faults: list[str] = field(default_factory=list)


@cache
def _blueprint() -> Blueprint:
    return Blueprint.for_ingest(recipe.parse(RECIPE, "reference"), ())


def stored(path: Path) -> tuple[list[float], sandboxed.Scanned, list[Stored]]:
    """What the pipeline makes of a file as one shot: its frames' times, what it says of the whole, and its clips."""
    blueprint = _blueprint()
    *parts, end = sandboxed.scan(path, blueprint)
    assert isinstance(end, sandboxed.Scanned)
    thumbs = [part for part in parts if isinstance(part, ThumbnailChunk)]
    times = np.concatenate([part.times for part in thumbs])
    joined = np.concatenate([part.joined for part in thumbs])
    grid = blueprint.recipe.grid
    shots = shots_of([(0, len(times) - 1)], times, end.end_s, joined)
    windows = grid.windows("reference", shots, times)
    size = grid.size(end.probe.display.width, end.probe.display.height)
    assert size is not None
    clips = []
    for cut in sandboxed.clips(path, windows, size, None, {}, blueprint):
        assert cut.mp4 is not None, cut.values
        planes = clip_decode.decode_planar(cut.mp4, (cut.window.frames, size[1], size[0]))
        clips.append(Stored(cut.window.start_s, np.moveaxis(planes, 0, -1)))
    return times.tolist(), end, clips


def compared(source: Source, folder: Path) -> Comparison:
    """Make a source, take it through the pipeline and compare."""
    path = reference_files.make(source, folder)
    reference = ffmpeg.shown(path)
    times, end, clips = stored(path)
    result = check(reference, clips, source.layout)
    first = times[0]
    theirs = [float(time - reference.times[0]) for time in reference.times]
    result.frames = len(theirs)
    if len(times) != len(theirs):
        result.faults.append(f"{len(times)} frames of {len(theirs)} were read")
    else:
        off = [abs(time - first - other) for time, other in zip(times, theirs, strict=True)]
        if max(off) > 2e-3:
            result.faults.append(f"frame {int(np.argmax(off))} comes {max(off):.4f} s early or late")
    if end.tally.unused:
        result.faults.append(f"{end.tally.unused} of {end.tally.decoded} decoded frames were not used")
    last_s, end_s = theirs[-1] + float(reference.durations[-1]), end.end_s - first
    if not -0.003 <= end_s - last_s <= 0.12:
        result.faults.append(f"it ends at {end_s:.3f} s; ffmpeg shows it until {last_s:.3f} s")
    return result


def check(reference: ffmpeg.Shown, clips: list[Stored], layout: str) -> Comparison:
    """Numbers, colours and shapes of every frame of these clips of one source, the first of which starts with it.

    `layout` is the source's pixel format.
    """
    tolerance = TOLERANCES.get(layout, TOLERANCE)
    result = Comparison()
    if not clips:
        result.faults.append("no clip")
        return result
    high, wide = reference.pictures.shape[1:3]
    whole = card.Area(0, 0, wide, high)
    numbers = [card.number(picture, whole) for picture in reference.pictures]
    if any(after <= before for before, after in pairwise(numbers)):
        result.faults.append(f"the source itself is not in order: {numbers}")
    if any(after <= before for before, after in pairwise(reference.times)):
        result.faults.append("ffmpeg's own times go back: the source is no reference")
    origin = min(clip.start_s for clip in clips)
    for clip in clips:
        area = _area(reference, *clip.frames.shape[2:0:-1])
        starts = Fraction(clip.start_s - origin).limit_denominator(10**6) + reference.times[0]
        for point, picture in enumerate(clip.frames):
            at = starts + Fraction(point, FPS) + _EARLY_S
            right = {_latest(reference.times, at - _EITHER_S), _latest(reference.times, at + _EITHER_S)}
            shown = card.number(picture, area)
            result.points += 1
            if shown not in {numbers[index] for index in right}:
                expected = " or ".join(str(numbers[index]) for index in right)
                result.faults.append(f"{float(at):.3f} s shows frame {shown}, not {expected}")
                continue
            index = next(index for index in right if numbers[index] == shown)
            _colours(result, picture, area, reference.pictures[index], whole, tolerance)
        _shape(result, clip.frames[len(clip.frames) // 2], area)
    return result


def _latest(times: list[Fraction], limit: Fraction) -> int:
    return max(0, sum(time <= limit for time in times) - 1)


def _area(reference: ffmpeg.Shown, width: int, height: int) -> card.Area:
    """Where a picture that is scaled to cover `width` x `height` and cropped at the centre lies."""
    high, wide = reference.pictures.shape[1:3]
    across = wide * float(reference.aspect)
    scale = max(width / across, height / high)
    across, down = across * scale, high * scale
    return card.Area((width - across) / 2, (height - down) / 2, across, down)


def _colours(
    result: Comparison,
    picture: NDArray[np.uint8],
    area: card.Area,
    other: NDArray[np.uint8],
    whole: card.Area,
    tolerance: float,
) -> None:
    off = np.abs(card.colours(picture, area) - card.colours(other, whole)).max(axis=1)
    result.patches += len(off)
    result.worst = max(result.worst, float(off.max()))
    if off.max() > tolerance:
        name = [*card.PATCHES][int(off.argmax())]
        ours, theirs = card.colours(picture, area)[off.argmax()], card.colours(other, whole)[off.argmax()]
        result.faults.append(f"{name} is {ours.round().tolist()}, ffmpeg shows {theirs.round().tolist()}")


def _shape(result: Comparison, picture: NDArray[np.uint8], area: card.Area) -> None:
    got, expected = card.disc(picture, area), card.expected_disc(area)
    allowed = max(_ROUND_PIXELS, _ROUND * expected[2])
    if any(abs(a - b) > allowed for a, b in zip(got, expected, strict=True)):
        text = "the disc's centre and size are {}, not {}"
        result.faults.append(text.format(np.round(got, 1).tolist(), np.round(expected, 1).tolist()))


def matrix(folder: Path, sources: Iterable[Source]) -> dict[str, Comparison]:
    """Each of these sources compared, by its name; a file is gone before the next is made."""
    results: dict[str, Comparison] = {}
    for index, source in enumerate(sources):
        place = folder / str(index)
        place.mkdir()
        try:
            results[source.name] = compared(source, place)
        except ClipError as error:
            results[source.name] = Comparison(faults=[f"{error.code}: {error.detail}"])
        except AssertionError as error:
            error.add_note(f"the source is: {source.name}")
            raise
        shutil.rmtree(place)
    return results


def summary(sources: Sequence[Source], results: Mapping[str, Comparison]) -> dict[str, Any]:
    """What was compared, in figures."""
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
    with tempfile.TemporaryDirectory() as made:
        chosen = sources()
        outcome = matrix(Path(made), chosen)
    json.dump(summary(chosen, outcome), sys.stdout, indent=2)
    sys.stdout.write("\n")
    for name, result in outcome.items():
        if result.faults:
            sys.stderr.write(f"{name}: {len(result.faults)} faults, {result.faults[0]}\n")
