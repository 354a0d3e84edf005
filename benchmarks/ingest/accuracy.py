"""How well rules and signals tell what is known of a folder of labelled clips: what they find, miss and wrongly claim.

The folder holds videos and `labels.json`, a list of {"file", "kind", "tags", "shows", "path", "truth"}. `kind` is
"original" for a clip that nobody has touched; a derived one names in `path` what it was made from ("-i dev/NAME").
The clips go through ingest as anybody's would, with every signal measured (`score_all`).
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

# What a clip keeps when another one is made from it.
_INHERITED = frozenset({"person", "face", "grayscale"})
_MADE_FROM = re.compile(r"-i \S*?([^/\s]+\.(?:mp4|mkv|webm|avi|mov))")
# Cuts that are known only from an original's description.
_TOLD_CUTS = re.compile(r"hard cuts at ([\d,]+)")
# What `truth` calls the file that a copy shows again.
_COPY_OF = ("duplicate_of", "mirror_of")
# The clips are trusted to be no larger.
_PIXELS = 8192 * 4320


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of clip: the tags that say a file is one, and what should find it.

    `rules`: any of these of the recipe; a predicate of its own where no rule is meant. `excused`: others with one
    of these tags are not counted, as either answer is right there. `among`: others are those with one of these tags,
    derived ones too; without it, those that nobody has touched.
    """

    name: str
    tags: frozenset[str]
    rules: tuple[str, ...] = ()
    predicate: str = ""
    excused: frozenset[str] = frozenset()
    among: frozenset[str] = frozenset()

    def counts(self, label: _Label) -> bool:
        """Whether a file says anything of this kind: it is one, or surely none and untouched."""
        if label.tags & self.tags:
            return True
        return bool(label.tags & self.among) if self.among else label.original and not label.tags & self.excused


def _kind(name: str, tags: str, rules: str = "", predicate: str = "", excused: str = "", among: str = "") -> Kind:
    sets = [frozenset(text.split()) for text in (tags, excused, among)]
    return Kind(name, sets[0], tuple(rules.split()), predicate, *sets[1:])


KINDS = (
    _kind("still, slideshow", "still slideshow", "still slideshow"),
    _kind("dark", "dark", "too_dark black"),
    _kind("bright", "overexposed", "too_bright"),
    _kind("blur", "blur", "blurred"),
    _kind("noise", "noise", "noisy"),
    _kind("compression damage", "blocky", "blocky", excused="degraded"),
    _kind("letterbox, pillarbox", "letterbox pillarbox", "bars"),
    _kind("blurred sides", "blurpad", "blurred_sides"),
    _kind("grayscale", "grayscale", "grayscale"),
    _kind("flash", "flash", "flashing", excused="flicker"),
    _kind("shake", "shake", "shaky", excused="handheld"),
    _kind("subtitles, titles", "text", "overlay_text", excused="watermark"),
    _kind("watermark", "watermark", "watermark", excused="text"),
    # Only of clips with these tags is the camera known.
    _kind("camera pans", "known_flow", predicate="camera = 'pan'", among="camera_motion static_camera"),
    _kind("camera zooms", "zoom", predicate="camera = 'zoom'", among="camera_motion static_camera"),
    _kind("camera shakes", "shake", predicate="camera = 'shake'", among="camera_motion static_camera"),
    _kind("camera stands", "static_camera", predicate="camera = 'still'", among="camera_motion"),
    _kind("people", "person", predicate="pose_coverage >= 0.8"),
    _kind("faces", "face", predicate="face_coverage >= 0.2", excused="person"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """How one kind of clip was told: files found of those that are one, false alarms among others; see `Kind`."""

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
class Error:
    """A signal held against a known number: the largest error over these files."""

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
    # The file, those that it was made from, and those that it is known to show again.
    family: frozenset[str]


def measure(folder: Path, recipe_file: Path | None, out: Path | None) -> dict[str, Any]:
    """Ingest the labelled clips (into `out`, to go on from there, or a folder that is removed) and score them.

    Raises `UsageError` for a folder without labels, and what `ingest` raises.
    """
    labels = _labels(folder)
    recipe = recipes.load(recipe_file).model_copy(update={"score_all": True})
    with tempfile.TemporaryDirectory(prefix="vdot-bench-") as temporary, Scratch() as scratch:
        file = Path(temporary) / "recipe.yaml"
        file.write_text(recipe.text)
        where = str(out or Path(temporary) / "out")
        ingest([str(folder / label.file) for label in labels], where, recipe_file=file)
        dedup(where)
        con = Catalog(Folder(where), scratch.path).connect()
        return {
            "files": len(labels),
            "kinds": [asdict(found) for found in _every(labels, con, recipe)],
            "errors": [asdict(error) for error in (*_boxes(labels, folder), *_pans(labels, con, recipe.grid.fps))],
        }


def _every(labels: list[_Label], con: duckdb.DuckDBPyConnection, recipe: Recipe) -> Iterator[Found]:
    yield _cuts(labels, con)
    yield from _kinds(labels, con, recipe)
    yield from _words(labels, con)
    yield _duplicates(labels, con)


def _labels(folder: Path) -> list[_Label]:
    try:
        entries = {entry["file"]: entry for entry in json.loads((folder / "labels.json").read_text())}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{folder} needs a labels.json, a list of objects with a file each: {error}") from error
    labels = []
    for name, entry in entries.items():
        if not (folder / name).is_file():
            raise UsageError(f"{folder / 'labels.json'} names {name}, which is not there")
        line = _line(name, entries)
        inherited = {tag for one in line for tag in entries.get(one, {}).get("tags", ())} & _INHERITED
        tags = frozenset(entry.get("tags", ())) | inherited
        truth = entry.get("truth") or {}
        told = _TOLD_CUTS.search(entry.get("shows", ""))
        if told:
            truth = {"cuts_frames": [int(number) for number in told[1].split(",")]} | truth
        family = line | {truth[key] for key in _COPY_OF if key in truth}
        fps = float(entry.get("fps") or 0)
        labels.append(_Label(name, entry.get("kind") != "derived", tags, truth, fps, family))
    return labels


def _line(name: str, entries: dict[str, Any]) -> frozenset[str]:
    """A clip and everything that it was made from."""
    entry = entries.get(name, {})
    made_from = set(_MADE_FROM.findall(entry.get("path", ""))) - {name} if entry.get("kind") == "derived" else ()
    return frozenset({name}).union(*(_line(one, entries) for one in made_from))


def _kinds(labels: list[_Label], con: duckdb.DuckDBPyConnection, recipe: Recipe) -> Iterator[Found]:
    """A file is told by any of its clips; kinds that the recipe cannot tell are left out."""
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
        told = {Path(uri).name for uri, answer, _ in rows if answer}
        measured = told | {Path(uri).name for uri, _, whole in rows if whole}
        counted = [label for label in labels if kind.counts(label)]
        yield _found(kind.name, kind.predicate or ", ".join(rules), kind.tags, counted, told, measured)


def _columns(con: duckdb.DuckDBPyConnection) -> set[str]:
    return {name for (name, *_) in con.execute("DESCRIBE clips").fetchall()}


def _found(name: str, by: str, tags: frozenset[str], labels: list[_Label], told: set[str], measured: set[str]) -> Found:
    every = {label.file for label in labels}
    of_kind = {label.file for label in labels if label.tags & tags}
    meant, others = of_kind & measured, (every - of_kind) & measured
    missed, alarms = sorted(meant - told), sorted(others & told)
    return Found(
        name, by, len(meant & told), len(meant), len(alarms), len(others), missed, alarms, sorted(every - measured)
    )


def _cuts(labels: list[_Label], con: duckdb.DuckDBPyConnection) -> Found:
    """Hard cuts by frame, dissolves by time; a file with a cut that is not known is a false alarm."""
    rows = con.execute("SELECT source_uri, source_fps, shots FROM sources WHERE shots IS NOT NULL").fetchall()
    scanned = {Path(uri).name: (fps, shots) for uri, fps, shots in rows}
    found, of, files = 0, 0, 0
    missed: list[str] = []
    alarms: list[str] = []
    unmeasured: list[str] = []
    for label in labels:
        known = label.truth.keys() & {"cuts_frames", "cuts_s", "dissolve_s"}
        if label.tags & {"cuts", "fade"} and not known:
            continue
        if label.file not in scanned:
            unmeasured.append(label.file)
            continue
        fps, shots = scanned[label.file]
        # (first frame that may be of the new shot, last one), from one shot to the next
        seen = [(before["last"] + 1, after["first"]) for before, after in pairwise(shots)]
        true = [(cut, cut) for cut in label.truth.get("cuts_frames", ())]
        true += [(round(at * fps), round(at * fps)) for at in label.truth.get("cuts_s", ())]
        if "dissolve_s" in label.truth:
            true.append(tuple(round(at * fps) for at in label.truth["dissolve_s"]))
        matched = {(low, high) for low, high in true for first, last in seen if first <= high and low <= last}
        false = [cut for cut in seen if not any(cut[0] <= high and low <= cut[1] for low, high in true)]
        found, of, files = found + len(matched), of + len(true), files + 1
        missed += [f"{label.file} at frame {low}" for low, high in true if (low, high) not in matched]
        alarms += [f"{label.file} at frame {', '.join(str(first) for first, _ in false)}"] if false else []
    return Found("cuts", "shots", found, of, len(alarms), files, missed, alarms, unmeasured)


def _duplicates(labels: list[_Label], con: duckdb.DuckDBPyConnection) -> Found:
    """Copies that `dedup` puts into one group with what they are copies of; a false alarm is a pair of files in one
    group that have nothing in common."""
    rows = con.execute(
        "SELECT DISTINCT duplicate_group, source_uri FROM clips WHERE layer = ? AND duplicate_group IS NOT NULL",
        [DUPLICATES_LAYER],
    ).fetchall()
    groups: dict[str, set[str]] = {}
    for group, uri in rows:
        groups.setdefault(group, set()).add(Path(uri).name)
    together = {pair for files in groups.values() for pair in combinations(sorted(files), 2)}
    copies = [(label.file, label.truth[key]) for label in labels for key in _COPY_OF if key in label.truth]
    known = {label.file: label for label in labels}
    # Of a copy that does not say of what, nothing is known.
    unsure = {label.file for label in labels if "near_duplicate" in label.tags and not label.truth.keys() & {*_COPY_OF}}
    alarms = [
        f"{one} and {other}"
        for one, other in sorted(together)
        if not {one, other} & unsure and known[one].family.isdisjoint(known[other].family)
    ]
    missed = [file for file, original in copies if tuple(sorted((file, original))) not in together]
    pairs = len(labels) * (len(labels) - 1) // 2
    return Found(
        "near duplicates", "dedup", len(copies) - len(missed), len(copies), len(alarms), pairs, missed, alarms, []
    )


def _words(labels: list[_Label], con: duckdb.DuckDBPyConnection) -> Iterator[Found]:
    """Lines of text that are known to be in a picture, letter by letter; spaces, signs and capitals do not count."""
    if "words" not in _columns(con):
        return
    rows = con.execute(
        "SELECT source_uri, string_agg(words, ' / '), bool_and(status <> 'failed') FROM clips WHERE layer = 'base' "
        "GROUP BY 1"
    ).fetchall()
    read = {Path(uri).name: _letters(words or "") for uri, words, measured in rows if measured}
    known = {
        label.file: [*label.truth.get("text", ()), *filter(None, [label.truth.get("watermark_text")])]
        for label in labels
    }
    lines = [(file, line) for file, texts in known.items() if file in read for line in texts]
    missed = [f"{line!r} in {file}" for file, line in lines if _letters(line) not in read[file]]
    unmeasured = sorted(file for file, texts in known.items() if texts and file not in read)
    yield Found("lines of words, read", "words", len(lines) - len(missed), len(lines), 0, 0, missed, [], unmeasured)


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _boxes(labels: list[_Label], folder: Path) -> Iterator[Error]:
    """The content box that `crop_bars` cuts to."""
    errors: dict[str, float | None] = {}
    for label in labels:
        box, across = label.truth.get("content_box"), label.truth.get("content_box_x")
        if box is None and across is None:
            continue
        path = folder / label.file
        found = find_content_box(path, probe_video(path, _PIXELS))
        if found is None:
            errors[label.file] = None
        else:
            errors[label.file] = float(
                np.abs(np.subtract(found, box) if box else np.subtract(found[::2], np.array(across))).max()
            )
    yield from _largest("content box", "px", errors)


def _pans(labels: list[_Label], con: duckdb.DuckDBPyConnection, fps: float) -> Iterator[Error]:
    """Known flow in source pixels a source frame, against the clips' mean motion brought to the same unit."""
    columns = _columns(con)
    for signal in [one for one in ("motion", "camera_pan") if one in columns]:
        errors: dict[str, float | None] = {}
        for label in (label for label in labels if "flow" in label.truth and label.fps):
            rows = con.execute(
                f"SELECT {signal} * least(source_width / width, source_height / height) FROM clips "
                "WHERE layer = 'base' AND suffix(source_uri, ?) AND source_width IS NOT NULL",
                ["/" + label.file],
            ).fetchall()
            known = float(np.hypot(*label.truth["flow"]))
            lengths = [length for (length,) in rows if length is not None]
            errors[label.file] = max((abs(length * fps / label.fps - known) for length in lengths), default=None)
        yield from _largest(f"flow of a known pan ({signal})", "px/frame", errors)


def _largest(signal: str, unit: str, errors: dict[str, float | None]) -> Iterator[Error]:
    if errors:
        measured = {file: error for file, error in errors.items() if error is not None}
        worst = max(measured, key=lambda file: measured[file], default=None)
        largest = round(measured[worst], 3) if worst else None
        yield Error(signal, unit, largest, len(errors), worst, sorted(errors.keys() - measured.keys()))


def table(result: dict[str, Any]) -> str:
    """The result as tables in Markdown."""
    lines = [
        "| what | told by | found | false alarms | precision | recall |",
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
