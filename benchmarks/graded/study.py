"""Measures every fault at every strength, once for each source, and keeps the measurements: thresholds can then be
tried on them in seconds."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from annotators.base import Annotator, Filter, Frames
from annotators.networks.picture_embedding import Likeness
from benchmarks.graded import codecs
from benchmarks.graded.faults import FAULTS, Fault, Kind, Scene
from benchmarks.graded.sources import GRID, HALVES, Material, Source, load, on_grid, thumbnails
from pipeline.recipe import output_checks, registry
from pipeline.storage.atomic import complete_file
from pipeline.video.shots import Evidence, TransNet

# The sources of each half that faults are made from, at most, and those that dear ones are made from.
_MOST, _DEAR = 12, 6
# What a camera or a site codes a video with.
_CRF = 23
# Filters that are asked of still faults look at every so many frames.
_STRIDE = 4

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one fault at one strength (0: an untouched piece) of one source."""

    source: str
    half: str
    fault: str
    strength: float
    values: Values


class Study:
    """Holds what measures, loaded once."""

    def __init__(self) -> None:
        """Load the networks; raises `weights.MissingWeights` if a file is absent or damaged."""
        import torch

        # Windows of 100 thumbnails are too little work to share among cores that others use.
        torch.set_num_threads(1)
        self.detector = TransNet()
        self._likeness = Likeness()
        self._makers: dict[str, Filter | Annotator] = {}

    def measure(
        self, sources: Sequence[Source], kept: Path | None, faults: Sequence[Fault] = FAULTS, quick: bool = False
    ) -> Iterator[Measured]:
        """Everything of these sources, source by source. What lies in the folder `kept` is not measured again, unless
        something that measures it has another version by now. `quick`: three strengths instead of eight."""
        for number, source in enumerate(sources):
            # The next one of the same half is what a cut or a dissolve goes to, so that the halves share nothing.
            others = [*sources[number + 1 :], *sources[:number]]
            other = next((other for other in others if other.half == source.half), source)
            yield from self._of_source(source, other, _chosen(sources, source, faults), kept, quick)

    def _of_source(
        self, source: Source, other: Source, faults: Sequence[Fault], kept: Path | None, quick: bool
    ) -> Iterator[Measured]:
        material, joined = _Loaded(source), _Loaded(other)
        # Untouched, of each piece all that any of these faults asks for.
        pieces: dict[float, Values] = {}
        for name in dict.fromkeys(chain(*(_measured_by(fault) for fault in faults))):
            file = kept / f"{_plain(source.name)}.untouched.{_plain(name)}.json" if kept else None
            measure = partial(self._untouched, name, material, quick)
            for number, values in _stored(file, self._key((name,), ()), measure):
                pieces[number] = pieces.get(number, {}) | values
        yield from (Measured(source.name, source.half, UNTOUCHED, 0.0, values) for values in pieces.values())
        for fault in faults:
            strengths = fault.strengths[::3] if quick else fault.strengths
            file = kept / f"{_plain(source.name)}.{_plain(fault.name)}.json" if kept else None
            measure = partial(self._faulty, fault, strengths, source, material, joined)
            for strength, values in _stored(file, self._key(_measured_by(fault), strengths), measure):
                yield Measured(source.name, source.half, fault.name, strength, values)

    def _untouched(self, name: str, loaded: _Loaded, quick: bool) -> Iterator[tuple[float, Values]]:
        """What one filter or annotator, the shot detector or the embedding says of the pieces, by their number."""
        material = loaded()
        if material is None:
            return
        if name == Kind.SHOT.value:
            yield 0, _as_lists(self.detector.evidence([material.thumbs]))
            return
        # Words and copies take long, and do not change within a shot.
        few = quick or name in ("text", Kind.COPY.value)
        for number, piece in enumerate(material.pieces[:1] if few else material.pieces):
            frames = on_grid(piece)
            if name == Kind.COPY.value:
                yield number, {"embedding": self._likeness(frames).astype(float).round(5).tolist()}
            else:
                yield number, self._signals(frames, (name,))

    def _faulty(
        self, fault: Fault, strengths: Sequence[float], source: Source, loaded: _Loaded, joined: _Loaded
    ) -> Iterator[tuple[float, Values]]:
        material = loaded()
        if material is None:
            return
        other = (joined() or material).small if fault.joins else material.small
        frames, fps = material.pieces[0], GRID.fps
        if fault.kind is Kind.SHOT:
            frames, fps = material.small, material.fps
        elif not fault.coded:
            frames = on_grid(frames)
        if fault.still:
            frames = frames[::_STRIDE]
        if fault.held and STANDS not in source.tags:
            frames = frames[len(frames) // 2 :][:1].repeat(len(frames), axis=0)
        rooted = self._likeness(frames) if fault.kind is Kind.COPY else None
        for strength in strengths:
            rng = np.random.default_rng(zlib.crc32(f"{source.name} {fault.name}".encode()))
            made = fault.make(Scene(frames, _as_long(other, frames), fps, rng), strength)
            if fault.coded:
                made = on_grid(codecs.x264(made, _CRF, "veryfast"))
            if fault.still:
                made = made.repeat(_STRIDE, axis=0)
            if fault.kind is Kind.SHOT:
                yield strength, _as_lists(self.detector.evidence([thumbnails(made)]))
            elif rooted is not None:
                yield strength, {"cosine": float(rooted @ self._likeness(made))}
            else:
                yield strength, self._signals(made, fault.signals)

    def _signals(self, frames: Frames, names: Sequence[str]) -> Values:
        """As ingest would measure them, with the clip's size, which rules ask for."""
        values: Values = {"width": frames.shape[2], "height": frames.shape[1]}
        for name in names:
            maker = self._maker(name)
            if name in _annotators():
                values |= output_checks.annotate(maker, frames, GRID.fps, {}).signals
            else:
                values |= output_checks.measure(maker, frames, GRID.fps)
        return values

    def _maker(self, name: str) -> Any:
        if name not in self._makers:
            owner = registry.load_annotator(name) if name in _annotators() else registry.load_filter(name)
            self._makers[name] = owner()
        return self._makers[name]

    def _key(self, names: Sequence[str], strengths: Sequence[float]) -> str:
        """What measurements depend on; they are made again where it has changed."""
        versions = {Kind.SHOT.value: self.detector.version, Kind.COPY.value: Likeness.version}
        made_by = {name: versions.get(name) or self._maker(name).version for name in names}
        return json.dumps([REVISION, list(strengths), made_by])


class _Loaded:
    """The material of a source, loaded when it is first asked for."""

    def __init__(self, source: Source) -> None:
        self._load = lru_cache(partial(load, source))

    def __call__(self) -> Material | None:
        return self._load()


def _stored(
    file: Path | None, key: str, measure: Callable[[], Iterable[tuple[float, Values]]]
) -> list[tuple[float, Values]]:
    """What lies in a file under this key, or what is measured now, and then lies there."""
    stored = json.loads(file.read_text()) if file and file.exists() else {}
    if stored.get("key") == key:
        return [(strength, values) for strength, values in stored["rows"]]
    rows = list(measure())
    if file:
        with complete_file(file, json.dumps({"key": key, "rows": rows}).encode()) as whole:
            whole.replace(file)
    return rows


def _measured_by(fault: Fault) -> tuple[str, ...]:
    """What measures a fault: filters and annotators by name, the shot detector or the embedding by the fault's kind."""
    return fault.signals or (fault.kind.value,)


STANDS = "static_camera"
"""The tag of a source whose camera stands."""

UNTOUCHED = "untouched"
"""The name of what has no fault."""

REVISION = 1
"""Changes when the faults or what is kept of them do."""


def _chosen(sources: Sequence[Source], source: Source, faults: Sequence[Fault]) -> list[Fault]:
    """The faults that are made from a source."""
    chosen = []
    for fault in faults:
        fit = [one for one in sources if one.half == source.half and not one.tags & fault.excused]
        if source in fit[: _DEAR if fault.dear else _MOST]:
            chosen.append(fault)
    return chosen


def _annotators() -> frozenset[str]:
    return frozenset(registry.find_registered("annotators"))


def _as_long(other: Frames, frames: Frames) -> Frames:
    """Its last frame held for as long as `frames` goes on."""
    return other[np.minimum(np.arange(len(frames)), len(other) - 1)]


def _as_lists(evidence: Evidence) -> Values:
    return {name: values.astype(float).round(4).tolist() for name, values in asdict(evidence).items()}


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def halves(sources: Sequence[Source], most: int | None) -> list[Source]:
    """At most so many sources of each half."""
    return [source for half in HALVES for source in [one for one in sources if one.half == half][:most]]
