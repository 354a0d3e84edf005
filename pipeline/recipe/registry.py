"""Loads annotators and filters by name, from entry points, so that other packages can add some."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from annotators.base import Annotator, Filter, Signal, Weight
from annotators.weights import MissingWeights
from pipeline.errors import ErrorCode, Failure, UsageError, attempt, did_you_mean
from pipeline.formats.records import LineageEntry, WeightColumns
from pipeline.formats.schema import BASE_LAYER, DUPLICATES_LAYER
from pipeline.video.shots import TransNet

Group = Literal["annotators", "filters"]

# The attributes that the pipeline reads of a class before creating an instance.
_FILTER = ("name", "version", "signals")
_NEEDED: dict[Group, tuple[str, ...]] = {"annotators": (*_FILTER, "tracks", "weights"), "filters": _FILTER}


# A file becomes a member <id>.<name>: readers group by the first dot and decode by the last, and some know only small
# letters. The suffixes of the pipeline's own members are reserved. A tar holds names of 100 letters.
_FILE = re.compile(r"(?=.{3,60}$)[a-z0-9_]+(\.[a-z0-9_]+)*\.(?!(mp4|png|jpg|json|txt)$)[a-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Declaration:
    """What an annotator or a filter declares of itself; see `Annotator`."""

    tracks: tuple[str, ...]
    pictures: tuple[str, ...]
    files: tuple[str, ...]
    weights: tuple[Weight, ...]
    needs: tuple[str, ...]
    caption: bool
    sample: bool
    gpu: bool
    clips_per_call: int
    choose: Callable[[], tuple[Weight, ...]] | None


def declare(owner: type[Annotator] | type[Filter] | Annotator) -> Declaration:
    """What a class, or an object of it, declares. One that does not derive from `Annotator` gets its defaults: packages
    that were written before there was a base class need not know it."""

    def read(name: str) -> Any:
        return getattr(owner, name, getattr(Annotator, name))

    return Declaration(
        tracks=tuple(read("tracks")),
        pictures=tuple(read("pictures")),
        files=tuple(read("files")),
        weights=tuple(read("weights")),
        needs=tuple(read("needs")),
        caption=read("caption") is True,
        sample=read("sample") is True,
        gpu=read("gpu") is True,
        clips_per_call=read("clips_per_call"),
        choose=read("choose"),
    )


def find_registered(group: Group) -> dict[str, EntryPoint]:
    """Every registered annotator or filter. Raises `UsageError` when two packages claim one name."""
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"vdot_data.{group}"):
        if point.name in points and points[point.name].value != point.value:
            raise UsageError(f"two packages register {point.name!r}: {points[point.name].value} and {point.value}")
        points[point.name] = point
    return points


def _load_class(group: Group, name: str) -> Any:
    points = find_registered(group)
    if name not in points:
        raise UsageError(f"no {group[:-1]} named {name!r}{did_you_mean(name, points)}")
    point = points[name]
    subject = f"the {group[:-1]} {name!r} ({point.value})"
    # Its module may raise anything.
    owner = attempt(ErrorCode.INTERNAL_ERROR, point.load)
    if isinstance(owner, Failure):
        raise UsageError(
            f"{subject} cannot be loaded: {owner.detail}; those of vdot-data need pip install 'vdot-data[ingest]'"
        )
    missing = [attribute for attribute in _NEEDED[group] if not hasattr(owner, attribute)]
    if missing:
        raise UsageError(f"{subject} has no {', '.join(missing)}")
    if name in (BASE_LAYER, DUPLICATES_LAYER):
        raise UsageError(f"{subject}: {name!r} is the name of a layer of vdot-data's own")
    if owner.name != name:
        raise UsageError(
            f"{subject} calls itself {owner.name!r}: the entry point and the class must have the same name"
        )
    clips_per_call = declare(owner).clips_per_call
    if not isinstance(clips_per_call, int) or clips_per_call < 1:
        raise UsageError(f"{subject} declares clips_per_call = {clips_per_call!r}: it must be a whole number from 1 on")
    if clips_per_call > 1 and not hasattr(owner, "annotate_clips"):
        raise UsageError(f"{subject} declares clips_per_call, and has no annotate_clips: derive it from Annotator")
    for file in declare(owner).files:
        if not _FILE.fullmatch(file):
            raise UsageError(
                f"{subject} makes a file {file!r}: its name must be small letters, digits and underscores, with dots "
                "between, at most 60 long, and end in a format of its own (not mp4, png, jpg, json or txt)"
            )
    return owner


def load_annotator(name: str) -> type[Annotator]:
    """The annotator class registered under `name`. Raises `UsageError` for an unknown name or an unfit class."""
    return cast("type[Annotator]", _load_class("annotators", name))


def load_filter(name: str) -> type[Filter]:
    """The filter class registered under `name`. Raises `UsageError` for an unknown name or an unfit class."""
    return cast("type[Filter]", _load_class("filters", name))


def _load_owners(annotators: Iterable[str], filters: Iterable[str]) -> list[type[Filter] | type[Annotator]]:
    return [*(load_filter(name) for name in filters), *(load_annotator(name) for name in annotators)]


def collect_signals(annotators: Iterable[str], filters: Iterable[str]) -> dict[str, Signal]:
    """Every signal that these make, by name. Raises `UsageError` if two make the same one."""
    collected: dict[str, Signal] = {}
    for owner in _load_owners(annotators, filters):
        for name, signal in owner.signals.items():
            if name in collected:
                raise UsageError(f"two annotators or filters make the signal {name!r}")
            collected[name] = signal
    return collected


def find_maker(output: str) -> str | None:
    """The name of a registered annotator or filter that makes this signal or track, or None."""
    for group in ("annotators", "filters"):
        for name in sorted(find_registered(group)):
            try:
                owner = _load_class(group, name)
            except UsageError:
                # An unfit class that nobody asked for.
                continue
            if output in (*owner.signals, *declare(owner).tracks):
                return name
    return None


def choose_weights(annotators: Iterable[str]) -> dict[str, tuple[Weight, ...]]:
    """The weights that the user names, for each of these that asks for them.

    Raises `UsageError` if none are named, or some that do not fit.
    """
    choosers = {name: choose for name in annotators if (choose := declare(load_annotator(name)).choose)}
    try:
        return {name: tuple(choose()) for name, choose in choosers.items()}
    except MissingWeights as error:
        raise UsageError(str(error)) from error


def check_outputs(annotators: Iterable[str]) -> None:
    """Raises `UsageError` if two of these make the same track or file, or pictures of the same name."""
    makers: dict[str, str] = {}
    for name in annotators:
        owner = load_annotator(name)
        outputs = [f"track {track!r}" for track in owner.tracks] + [
            f"pictures {picture!r}" for picture in declare(owner).pictures
        ]
        outputs += [f"file {file!r}" for file in declare(owner).files]
        for output in outputs:
            if makers.setdefault(output, name) != name:
                raise UsageError(f"{makers[output]!r} and {name!r} both make the {output}")


def find_foundations(annotators: Iterable[str], filters: Iterable[str]) -> dict[str, set[str]]:
    """Each annotator -> the earlier ones and the filters that it depends on, directly or not.

    Raises `UsageError` if one needs what no filter and no earlier annotator makes.
    """
    makers = {output: name for name in filters for output in load_filter(name).signals}
    earlier_signals, earlier_tracks = set(makers), set()
    foundations: dict[str, set[str]] = {}
    for name in annotators:
        owner = load_annotator(name)
        for input_name in declare(owner).needs:
            if input_name not in makers:
                candidate = find_maker(input_name)
                remedy = (
                    f"put {candidate} into the recipe before it (a layer builds on the base layer)"
                    if candidate
                    else "nothing installed makes it"
                )
                raise UsageError(f"{name!r} needs {input_name!r}: {remedy}")
            if input_name in earlier_signals and input_name in earlier_tracks:
                raise UsageError(
                    f"{name!r} needs {input_name!r}, which is a signal and a track here: rename one of them"
                )
        direct = {makers[input_name] for input_name in declare(owner).needs}
        if declare(owner).sample:
            direct |= {earlier for earlier in foundations if _fills_sample(load_annotator(earlier))}
        foundations[name] = direct.union(*(foundations.get(maker, ()) for maker in direct))
        makers |= dict.fromkeys((*owner.signals, *owner.tracks), name)
        earlier_signals |= set(owner.signals)
        earlier_tracks |= set(owner.tracks)
    return foundations


def _fills_sample(owner: type[Annotator]) -> bool:
    """Whether an annotator makes something that is part of a `Sample`."""
    return bool(owner.tracks or declare(owner).pictures or declare(owner).caption)


def collect_weights(annotators: Iterable[str] | None = None, filters: Iterable[str] | None = None) -> dict[str, Weight]:
    """The weights of these, by id; by default of every registered annotator and filter, and of the shot detector. Those
    that a user chooses are not included.

    Raises `UsageError` if two different ones share an id.
    """
    collected = {weight.id: weight for weight in TransNet.weights} if annotators is None and filters is None else {}
    annotators = sorted(find_registered("annotators")) if annotators is None else annotators
    filters = sorted(find_registered("filters")) if filters is None else filters
    for owner in _load_owners(annotators, filters):
        for weight in declare(owner).weights:
            if collected.setdefault(weight.id, weight) != weight:
                raise UsageError(f"two annotators or filters mean different files by the weight {weight.id!r}")
    return collected


def build_lineage(annotators: Iterable[str], filters: Iterable[str]) -> list[LineageEntry]:
    """What makes a clip's values: name, version and weights (id, sha256, licence) of each filter and annotator."""
    return [
        {"name": owner.name, "version": owner.version, **describe_weights(declare(owner).weights)}
        for owner in _load_owners(annotators, filters)
    ]


def describe_weights(used: tuple[Weight, ...]) -> WeightColumns:
    """The entries of a lineage for weights."""
    return {
        "weights_id": "+".join(weight.id for weight in used) or None,
        "weights_sha256": "+".join(weight.sha256 for weight in used) or None,
        "weights_licence": "+".join(sorted({weight.licence for weight in used})) or None,
    }
