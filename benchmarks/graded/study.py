"""Measures every fault at every strength, once for each source, and stores the measurements.

Thresholds can then be tried on them in seconds.
"""

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

from annotators.base import Annotator, ClipInput, Filter, Frames
from annotators.networks.picture_embedding import ClipEmbedding
from benchmarks.graded import codecs
from benchmarks.graded.faults import FAULTS, Fault, Kind, Scene
from benchmarks.graded.sources import GRID, HALVES, Material, Source, load_material, put_on_grid, thumbnails
from pipeline.recipe import output_checks, registry
from pipeline.storage.atomic import write_file
from pipeline.video.shots import Evidence, TransNet

# The most sources of each half that faults are made from, and the most for slow faults.
_MAX_SOURCES, _MAX_SLOW_SOURCES = 12, 6
# The quality at which a camera or a site encodes a video.
_CRF = 23
# The filters that measure still faults look at every fourth frame.
_STRIDE = 4

Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """The values of one fault at one strength (0: an untouched piece) of one source."""

    source: str
    half: str
    fault: str
    strength: float
    values: Values


class Study:
    """Holds the networks, filters and annotators that measure, loaded once."""

    def __init__(self) -> None:
        """Load the networks; raises `weights.MissingWeights` if a file is absent or damaged."""
        import torch

        # Windows of 100 thumbnails are too little work to share among cores that other processes use.
        torch.set_num_threads(1)
        self.detector = TransNet()
        self._likeness = ClipEmbedding()
        self._makers: dict[str, Filter | Annotator] = {}

    def measure(
        self, sources: Sequence[Source], cache: Path | None, faults: Sequence[Fault] = FAULTS, quick: bool = False
    ) -> Iterator[Measurement]:
        """All measurements of these sources, source by source. Those in the folder `cache` are reused while the shot
        detector, the embedding, filters and annotators have the same version. `quick`: three strengths of eight."""
        for number, source in enumerate(sources):
            # A cut or a dissolve goes to the next source of the same half, so that the halves share nothing.
            candidates = [*sources[number + 1 :], *sources[:number]]
            neighbour = next((neighbour for neighbour in candidates if neighbour.half == source.half), source)
            yield from self._measure_source(source, neighbour, _select_faults(sources, source, faults), cache, quick)

    def _measure_source(
        self, source: Source, neighbour: Source, faults: Sequence[Fault], cache: Path | None, quick: bool
    ) -> Iterator[Measurement]:
        material, neighbour_material = _LazyMaterial(source), _LazyMaterial(neighbour)
        # First the untouched pieces, with all signals that any of these faults needs.
        pieces: dict[float, Values] = {}
        for name in dict.fromkeys(chain(*(_signal_names(fault) for fault in faults))):
            file = cache / f"{_file_name(source.name)}.untouched.{_file_name(name)}.json" if cache else None
            measure = partial(self._measure_untouched, name, material, quick)
            for number, values in _load_or_measure(file, self._cache_key((name,), ()), measure):
                pieces[number] = pieces.get(number, {}) | values
        yield from (Measurement(source.name, source.half, UNTOUCHED, 0.0, values) for values in pieces.values())
        for fault in faults:
            strengths = fault.strengths[::3] if quick else fault.strengths
            file = cache / f"{_file_name(source.name)}.{_file_name(fault.name)}.json" if cache else None
            measure = partial(self._measure_fault, fault, strengths, source, material, neighbour_material)
            for strength, values in _load_or_measure(file, self._cache_key(_signal_names(fault), strengths), measure):
                yield Measurement(source.name, source.half, fault.name, strength, values)

    def _measure_untouched(self, name: str, loaded: _LazyMaterial, quick: bool) -> Iterator[tuple[float, Values]]:
        """The values of one filter or annotator, the shot detector or the embedding by the number of the piece."""
        material = loaded()
        if material is None:
            return
        if name == Kind.SHOT.value:
            yield 0, _to_lists(self.detector.evidence([material.thumbs]))
            return
        # Words and embeddings take long, and do not change within a shot.
        only_first = quick or name in ("text", Kind.COPY.value)
        for number, piece in enumerate(material.pieces[:1] if only_first else material.pieces):
            frames = put_on_grid(piece)
            if name == Kind.COPY.value:
                yield number, {"embedding": self._likeness(frames).astype(float).round(5).tolist()}
            else:
                yield number, self._measure_signals(frames, (name,))

    def _measure_fault(
        self,
        fault: Fault,
        strengths: Sequence[float],
        source: Source,
        loaded: _LazyMaterial,
        neighbour_material: _LazyMaterial,
    ) -> Iterator[tuple[float, Values]]:
        material = loaded()
        if material is None:
            return
        second = (neighbour_material() or material).small if fault.joins else material.small
        frames, fps = material.pieces[0], GRID.fps
        if fault.kind is Kind.SHOT:
            frames, fps = material.small, material.fps
        elif not fault.coded:
            frames = put_on_grid(frames)
        if fault.still:
            frames = frames[::_STRIDE]
        if fault.held and STANDS not in source.tags:
            frames = frames[len(frames) // 2 :][:1].repeat(len(frames), axis=0)
        embedding = self._likeness(frames) if fault.kind is Kind.COPY else None
        for strength in strengths:
            rng = np.random.default_rng(zlib.crc32(f"{source.name} {fault.name}".encode()))
            faulty = fault.make(Scene(frames, _fit_length(second, len(frames)), fps, rng), strength)
            if fault.coded:
                faulty = put_on_grid(codecs.x264(faulty, _CRF, "veryfast"))
            if fault.still:
                faulty = faulty.repeat(_STRIDE, axis=0)
            if fault.kind is Kind.SHOT:
                yield strength, _to_lists(self.detector.evidence([thumbnails(faulty)]))
            elif embedding is not None:
                yield strength, {"cosine": float(embedding @ self._likeness(faulty))}
            else:
                yield strength, self._measure_signals(faulty, fault.signals)

    def _measure_signals(self, frames: Frames, names: Sequence[str]) -> Values:
        """Signals as ingest would measure them, with the clip's size, which rules need."""
        values: Values = {"width": frames.shape[2], "height": frames.shape[1]}
        for name in names:
            maker = self._load_maker(name)
            if name in _annotators():
                values |= output_checks.annotate(maker, ClipInput(frames, GRID.fps)).signals
            else:
                values |= output_checks.measure(maker, frames, GRID.fps)
        return values

    def _load_maker(self, name: str) -> Any:
        if name not in self._makers:
            maker_class = registry.load_annotator(name) if name in _annotators() else registry.load_filter(name)
            self._makers[name] = maker_class()
        return self._makers[name]

    def _cache_key(self, names: Sequence[str], strengths: Sequence[float]) -> str:
        """Everything that measurements depend on; stored ones under another key are not reused."""
        network_versions = {Kind.SHOT.value: self.detector.version, Kind.COPY.value: ClipEmbedding.version}
        versions = {name: network_versions.get(name) or self._load_maker(name).version for name in names}
        return json.dumps([REVISION, list(strengths), versions])


class _LazyMaterial:
    """The material of a source, loaded on first use."""

    def __init__(self, source: Source) -> None:
        self._load = lru_cache(partial(load_material, source))

    def __call__(self) -> Material | None:
        return self._load()


def _load_or_measure(
    file: Path | None, key: str, measure: Callable[[], Iterable[tuple[float, Values]]]
) -> list[tuple[float, Values]]:
    """The measurements stored in a file under this key; otherwise measures and stores them."""
    stored = json.loads(file.read_text()) if file and file.exists() else {}
    if stored.get("key") == key:
        return [(strength, values) for strength, values in stored["rows"]]
    rows = list(measure())
    if file:
        write_file(file, json.dumps({"key": key, "rows": rows}).encode())
    return rows


def _signal_names(fault: Fault) -> tuple[str, ...]:
    """What measures a fault: the names of filters and annotators, or the kind for shot detector and embedding."""
    return fault.signals or (fault.kind.value,)


STANDS = "static_camera"
"""The tag of a source whose camera stands."""

UNTOUCHED = "untouched"
"""The fault's name of pieces without a fault."""

REVISION = 1
"""Changes when the faults or their stored values change."""


def _select_faults(sources: Sequence[Source], source: Source, faults: Sequence[Fault]) -> list[Fault]:
    """The faults that are made from a source."""
    chosen = []
    for fault in faults:
        candidates = [
            candidate for candidate in sources if candidate.half == source.half and not candidate.tags & fault.excused
        ]
        if source in candidates[: _MAX_SLOW_SOURCES if fault.slow else _MAX_SOURCES]:
            chosen.append(fault)
    return chosen


def _annotators() -> frozenset[str]:
    return frozenset(registry.find_registered("annotators"))


def _fit_length(frames: Frames, count: int) -> Frames:
    """The first `count` frames, the last one repeated if there are fewer."""
    return frames[np.minimum(np.arange(count), len(frames) - 1)]


def _to_lists(evidence: Evidence) -> Values:
    return {name: values.astype(float).round(4).tolist() for name, values in asdict(evidence).items()}


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def limit_halves(sources: Sequence[Source], limit: int | None) -> list[Source]:
    """At most `limit` sources of each half."""
    return [source for half in HALVES for source in [source for source in sources if source.half == half][:limit]]
