"""Scores rules and signals on a folder of labelled clips: what they find, what they miss, and their false alarms.

The folder holds videos and `labels.json`, a list of {"file", "kind", "tags", "shows", "path", "truth"}. `kind` is
"original" for an unmodified clip; a derived clip names in `path` what it was made from ("-i dev/NAME"). The clips go
through the usual ingest, with every signal measured (`score_all`).
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from pipeline.catalog.catalog import Catalog
from pipeline.curation.dedup import dedup
from pipeline.errors import UsageError
from pipeline.formats.schema import DUPLICATES_LAYER
from pipeline.ingest.commands import ingest
from pipeline.recipe import recipe as recipes
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.rules import parse_columns
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch
from pipeline.video.content_box import find_content_box
from pipeline.video.probe import probe_video

# Tags that also apply to clips derived from a clip.
_INHERITED = frozenset({"person", "face", "grayscale"})
_INPUT_FILE = re.compile(r"-i \S*?([^/\s]+\.(?:mp4|mkv|webm|avi|mov))")
# Some originals state their cuts only in their description.
_DESCRIBED_CUTS = re.compile(r"hard cuts at ([\d,]+)")
# Keys of `truth` that name the file that a clip is a copy of.
_COPY_OF = ("duplicate_of", "mirror_of")
# The size limit: the clips are trusted files.
_MAX_PIXELS = 8192 * 4320


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of clip: the tags that mark a file as one, and the rules or the predicate that should find it.

    `rules`: any of these of the recipe; `predicate`: used where no rule applies. Negatives are the files with a tag in
    `among`, derived ones too, or without `among` the unmodified files. `excused`: negatives with one of these tags are
    not counted, as either answer is right there.
    """

    name: str
    tags: frozenset[str]
    rules: tuple[str, ...] = ()
    predicate: str = ""
    excused: frozenset[str] = frozenset()
    among: frozenset[str] = frozenset()

    def counts(self, label: _Label) -> bool:
        """Whether a file counts for this kind, as a positive or as a negative."""
        if label.tags & self.tags:
            return True
        return bool(label.tags & self.among) if self.among else label.original and not label.tags & self.excused


def _build_kind(name: str, tags: str, rules: str = "", predicate: str = "", excused: str = "", among: str = "") -> Kind:
    sets = [frozenset(text.split()) for text in (tags, excused, among)]
    return Kind(name, sets[0], tuple(rules.split()), predicate, *sets[1:])


KINDS = (
    _build_kind("still, slideshow", "still slideshow", "still slideshow"),
    _build_kind("dark", "dark", "too_dark black"),
    _build_kind("bright", "overexposed", "too_bright"),
    _build_kind("blur", "blur", "blurred"),
    _build_kind("noise", "noise", "noisy"),
    _build_kind("compression damage", "blocky", "blocky", excused="degraded"),
    _build_kind("letterbox, pillarbox", "letterbox pillarbox", "bars"),
    _build_kind("blurred sides", "blurpad", "blurred_sides"),
    _build_kind("grayscale", "grayscale", "grayscale"),
    _build_kind("flash", "flash", "flashing", excused="flicker"),
    _build_kind("shake", "shake", "shaky", excused="handheld"),
    _build_kind("subtitles, titles", "text", "overlay_text", excused="watermark"),
    _build_kind("watermark", "watermark", "watermark", excused="text"),
    # The camera's motion is known only for clips with these tags.
    _build_kind("camera pans", "known_flow", predicate="camera = 'pan'", among="camera_motion static_camera"),
    _build_kind("camera zooms", "zoom", predicate="camera = 'zoom'", among="camera_motion static_camera"),
    _build_kind("camera shakes", "shake", predicate="camera = 'shake'", among="camera_motion static_camera"),
    _build_kind("camera stands", "static_camera", predicate="camera = 'still'", among="camera_motion"),
    _build_kind("people", "person", predicate="pose_coverage >= 0.8"),
    _build_kind("faces", "face", predicate="face_coverage >= 0.2", excused="person"),
)


@dataclass(frozen=True, slots=True)
class KindResult:
    """How well one kind of clip was recognized: files found of the positives, false alarms of the negatives."""

    kind: str
    by: str
    found: int
    of: int
    false_alarms: int
    others: int
    missed: list[str]
    alarms: list[str]
    unmeasured: list[str]


@dataclass(frozen=True, slots=True)
class SignalError:
    """The largest error of a signal over the files where its value is known."""

    signal: str
    unit: str
    largest: float | None
    files: int
    worst: str | None
    unmeasured: list[str]


@dataclass(frozen=True, slots=True)
class _Label:
    file: str
    original: bool
    tags: frozenset[str]
    truth: dict[str, Any]
    fps: float
    # The file, those that it was made from, and those that it is a copy of.
    family: frozenset[str]


def measure(folder: Path, recipe_file: Path | None, out: Path | None) -> dict[str, Any]:
    """Ingest the labelled clips (into `out`, resuming if it exists, or into a temporary folder) and score them.

    Raises `UsageError` for a folder without labels, and what `ingest` raises.
    """
    labels = _load_labels(folder)
    recipe = recipes.load(recipe_file).model_copy(update={"score_all": True})
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary, Scratch() as scratch:
        file = Path(temporary) / "recipe.yaml"
        file.write_text(recipe.text)
        dataset = str(out or Path(temporary) / "out")
        ingest([str(folder / label.file) for label in labels], dataset, recipe_file=file)
        dedup(dataset)
        con = Catalog(Folder(dataset), scratch.path).connect()
        return {
            "files": len(labels),
            "kinds": [asdict(result) for result in _score_all(labels, con, recipe)],
            "errors": [
                asdict(error)
                for error in (*_measure_boxes(labels, folder), *_measure_pans(labels, con, recipe.grid.fps))
            ],
        }


def _score_all(labels: list[_Label], con: duckdb.DuckDBPyConnection, recipe: Recipe) -> Iterator[KindResult]:
    yield _score_cuts(labels, con)
    yield from _score_kinds(labels, con, recipe)
    yield from _score_words(labels, con)
    yield _score_duplicates(labels, con)


def _load_labels(folder: Path) -> list[_Label]:
    try:
        entries = {entry["file"]: entry for entry in json.loads((folder / "labels.json").read_text())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder} needs a labels.json, a list of objects with a file each: {error}") from error
    labels = []
    for name, entry in entries.items():
        if not (folder / name).is_file():
            raise UsageError(f"{folder / 'labels.json'} names {name}, which is not there")
        ancestry = _ancestry(name, entries)
        inherited = {tag for ancestor in ancestry for tag in entries.get(ancestor, {}).get("tags", ())} & _INHERITED
        tags = frozenset(entry.get("tags", ())) | inherited
        truth = entry.get("truth") or {}
        match = _DESCRIBED_CUTS.search(entry.get("shows", ""))
        if match:
            truth = {"cuts_frames": [int(number) for number in match[1].split(",")]} | truth
        family = ancestry | {truth[key] for key in _COPY_OF if key in truth}
        fps = float(entry.get("fps") or 0)
        labels.append(_Label(name, entry.get("kind") != "derived", tags, truth, fps, family))
    return labels


def _ancestry(name: str, entries: dict[str, Any]) -> frozenset[str]:
    """A clip and everything that it was made from."""
    entry = entries.get(name, {})
    parents = set(_INPUT_FILE.findall(entry.get("path", ""))) - {name} if entry.get("kind") == "derived" else ()
    return frozenset({name}).union(*(_ancestry(parent, entries) for parent in parents))


def _score_kinds(labels: list[_Label], con: duckdb.DuckDBPyConnection, recipe: Recipe) -> Iterator[KindResult]:
    """A file is recognized by any of its clips; kinds for which the recipe has no rule or signal are omitted."""
    columns = _columns(con)
    for kind in KINDS:
        rules = [rule for rule in kind.rules if rule in recipe.rules]
        if not rules and not kind.predicate:
            continue
        if kind.predicate and not columns.issuperset(parse_columns(kind.name, kind.predicate, con)):
            continue
        predicate = kind.predicate or " OR ".join(f"({recipe.rules[rule]}\n)" for rule in rules)
        rows = con.execute(
            f"SELECT source_uri, bool_or({predicate}), bool_and(status <> 'failed' AND ({predicate}) IS NOT NULL) "
            "FROM clips WHERE layer = 'base' GROUP BY 1"
        ).fetchall()
        claimed = {Path(uri).name for uri, answer, _ in rows if answer}
        measured = claimed | {Path(uri).name for uri, _, is_measured in rows if is_measured}
        relevant = [label for label in labels if kind.counts(label)]
        yield _count_result(kind.name, kind.predicate or ", ".join(rules), kind.tags, relevant, claimed, measured)


def _columns(con: duckdb.DuckDBPyConnection) -> set[str]:
    return {name for (name, *_) in con.execute("DESCRIBE clips").fetchall()}


def _count_result(
    name: str, by: str, tags: frozenset[str], labels: list[_Label], claimed: set[str], measured: set[str]
) -> KindResult:
    files = {label.file for label in labels}
    of_kind = {label.file for label in labels if label.tags & tags}
    positives, negatives = of_kind & measured, (files - of_kind) & measured
    missed, alarms = sorted(positives - claimed), sorted(negatives & claimed)
    return KindResult(
        name,
        by,
        len(positives & claimed),
        len(positives),
        len(alarms),
        len(negatives),
        missed,
        alarms,
        sorted(files - measured),
    )


def _score_cuts(labels: list[_Label], con: duckdb.DuckDBPyConnection) -> KindResult:
    """Hard cuts by frame, dissolves by time; a file with a cut that is not in its label is a false alarm."""
    rows = con.execute("SELECT source_uri, source_fps, shots FROM sources WHERE shots IS NOT NULL").fetchall()
    scanned = {Path(uri).name: (fps, shots) for uri, fps, shots in rows}
    hits, total, files = 0, 0, 0
    missed: list[str] = []
    alarms: list[str] = []
    unmeasured: list[str] = []
    for label in labels:
        known_keys = label.truth.keys() & {"cuts_frames", "cuts_s", "dissolve_s"}
        if label.tags & {"cuts", "fade"} and not known_keys:
            continue
        if label.file not in scanned:
            unmeasured.append(label.file)
            continue
        fps, shots = scanned[label.file]
        # (first and last frame at which the new shot may start), from one shot to the next
        detected = [(before["last"] + 1, after["first"]) for before, after in pairwise(shots)]
        true_cuts = [(cut, cut) for cut in label.truth.get("cuts_frames", ())]
        true_cuts += [(round(time * fps), round(time * fps)) for time in label.truth.get("cuts_s", ())]
        if "dissolve_s" in label.truth:
            true_cuts.append(tuple(round(time * fps) for time in label.truth["dissolve_s"]))
        matched = {(low, high) for low, high in true_cuts for first, last in detected if first <= high and low <= last}
        false_cuts = [cut for cut in detected if not any(cut[0] <= high and low <= cut[1] for low, high in true_cuts)]
        hits, total, files = hits + len(matched), total + len(true_cuts), files + 1
        missed += [f"{label.file} at frame {low}" for low, high in true_cuts if (low, high) not in matched]
        alarms += [f"{label.file} at frame {', '.join(str(first) for first, _ in false_cuts)}"] if false_cuts else []
    return KindResult("cuts", "shots", hits, total, len(alarms), files, missed, alarms, unmeasured)


def _score_duplicates(labels: list[_Label], con: duckdb.DuckDBPyConnection) -> KindResult:
    """Copies that `dedup` puts into one group with their originals; a false alarm is a pair of unrelated files in one
    group."""
    rows = con.execute(
        "SELECT DISTINCT duplicate_group, source_uri FROM clips WHERE layer = ? AND duplicate_group IS NOT NULL",
        [DUPLICATES_LAYER],
    ).fetchall()
    groups: dict[str, set[str]] = {}
    for group, uri in rows:
        groups.setdefault(group, set()).add(Path(uri).name)
    together = {pair for files in groups.values() for pair in combinations(sorted(files), 2)}
    copies = [(label.file, label.truth[key]) for label in labels for key in _COPY_OF if key in label.truth]
    by_file = {label.file: label for label in labels}
    # These are copies of an unknown original.
    unknown_copies = {
        label.file for label in labels if "near_duplicate" in label.tags and not label.truth.keys() & {*_COPY_OF}
    }
    alarms = [
        f"{first} and {second}"
        for first, second in sorted(together)
        if not {first, second} & unknown_copies and by_file[first].family.isdisjoint(by_file[second].family)
    ]
    missed = [file for file, original in copies if tuple(sorted((file, original))) not in together]
    pairs = len(labels) * (len(labels) - 1) // 2
    return KindResult(
        "near duplicates", "dedup", len(copies) - len(missed), len(copies), len(alarms), pairs, missed, alarms, []
    )


def _score_words(labels: list[_Label], con: duckdb.DuckDBPyConnection) -> Iterator[KindResult]:
    """Lines of text known to be in a picture, compared by letters; spaces, punctuation and case are ignored."""
    if "words" not in _columns(con):
        return
    rows = con.execute(
        "SELECT source_uri, string_agg(words, ' / '), bool_and(status <> 'failed') FROM clips WHERE layer = 'base' "
        "GROUP BY 1"
    ).fetchall()
    read = {Path(uri).name: _letters(words or "") for uri, words, measured in rows if measured}
    expected = {
        label.file: [*label.truth.get("text", ()), *filter(None, [label.truth.get("watermark_text")])]
        for label in labels
    }
    lines = [(file, line) for file, texts in expected.items() if file in read for line in texts]
    missed = [f"{line!r} in {file}" for file, line in lines if _letters(line) not in read[file]]
    unmeasured = sorted(file for file, texts in expected.items() if texts and file not in read)
    yield KindResult(
        "lines of words, read", "words", len(lines) - len(missed), len(lines), 0, 0, missed, [], unmeasured
    )


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _measure_boxes(labels: list[_Label], folder: Path) -> Iterator[SignalError]:
    """Errors of the content box that `crop_bars` cuts to."""
    errors: dict[str, float | None] = {}
    for label in labels:
        expected, columns = label.truth.get("content_box"), label.truth.get("content_box_x")
        if expected is None and columns is None:
            continue
        path = folder / label.file
        measured_box = find_content_box(path, probe_video(path, _MAX_PIXELS))
        if measured_box is None:
            errors[label.file] = None
        else:
            errors[label.file] = float(
                np.abs(
                    np.subtract(measured_box, expected)
                    if expected
                    else np.subtract(measured_box[::2], np.array(columns))
                ).max()
            )
    yield from _largest_error("content box", "px", errors)


def _measure_pans(labels: list[_Label], con: duckdb.DuckDBPyConnection, fps: float) -> Iterator[SignalError]:
    """Errors of the clips' mean motion against known flow, in source pixels per source frame."""
    columns = _columns(con)
    for signal in [name for name in ("motion", "camera_pan") if name in columns]:
        errors: dict[str, float | None] = {}
        for label in (label for label in labels if "flow" in label.truth and label.fps):
            rows = con.execute(
                f"SELECT {signal} * least(source_width / width, source_height / height) FROM clips "
                "WHERE layer = 'base' AND suffix(source_uri, ?) AND source_width IS NOT NULL",
                ["/" + label.file],
            ).fetchall()
            expected = float(np.hypot(*label.truth["flow"]))
            lengths = [length for (length,) in rows if length is not None]
            errors[label.file] = max((abs(length * fps / label.fps - expected) for length in lengths), default=None)
        yield from _largest_error(f"flow of a known pan ({signal})", "px/frame", errors)


def _largest_error(signal: str, unit: str, errors: dict[str, float | None]) -> Iterator[SignalError]:
    if errors:
        measured = {file: error for file, error in errors.items() if error is not None}
        worst = max(measured, key=lambda file: measured[file], default=None)
        largest = round(measured[worst], 3) if worst else None
        yield SignalError(signal, unit, largest, len(errors), worst, sorted(errors.keys() - measured.keys()))


def format_table(result: dict[str, Any]) -> str:
    """The result as tables in Markdown."""
    lines = [
        "| what | detected by | found | false alarms | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for kind in result["kinds"]:
        claimed = kind["found"] + kind["false_alarms"]
        precision = f"{kind['found'] / claimed:.2f}" if claimed else "-"
        recall = f"{kind['found'] / kind['of']:.2f}" if kind["of"] else "-"
        counts = f"{kind['found']} of {kind['of']} | {kind['false_alarms']} of {kind['others']}"
        lines.append(f"| {kind['kind']} | `{kind['by']}` | {counts} | {precision} | {recall} |")
    lines += ["", "| what | largest error | files |", "|---|---|---|"]
    lines += [
        f"| {error['signal']} | {error['largest']} {error['unit']} | {error['files']} |" for error in result["errors"]
    ]
    return "\n".join(lines)
