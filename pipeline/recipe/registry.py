"""Annotators and filters by name, found by entry point, so that another package adds one without touching this one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, cast

from annotators.base import Annotator, Filter, Signal, Weight
from annotators.weights import MissingWeights
from pipeline.errors import ErrorCode, Failure, UsageError, attempt, did_you_mean
from pipeline.formats.schema import BASE_LAYER, DUPLICATES_LAYER
from pipeline.video.shots import TransNet

Group = Literal["annotators", "filters"]

# What the pipeline reads of a class before it makes one.
_FILTER = ("name", "version", "signals")
_NEEDED: dict[Group, tuple[str, ...]] = {"annotators": (*_FILTER, "tracks", "weights"), "filters": _FILTER}


# A file becomes a member <id>.<name>: readers group by the first dot and go by the last, and some know small letters
# alone. The endings of the pipeline's own members mean what the pipeline makes of them. A tar has room for 100 letters.
_FILE = re.compile(r"(?=.{3,60}$)[a-z0-9_]+(\.[a-z0-9_]+)*\.(?!(mp4|png|jpg|json|txt)$)[a-z0-9_]+")


def available(group: Group) -> dict[str, EntryPoint]:
    """Every registered annotator or filter. Raises `UsageError` when two packages claim one name."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=f"vdot_data.{group}"):
        if point.name in found and found[point.name].value != point.value:
            raise UsageError(f"two packages register {point.name!r}: {found[point.name].value} and {point.value}")
        found[point.name] = point
    return found


def _class(group: Group, name: str) -> Any:
    found = available(group)
    if name not in found:
        raise UsageError(f"no {group[:-1]} named {name!r}{did_you_mean(name, found)}")
    point = found[name]
    who = f"the {group[:-1]} {name!r} ({point.value})"
    # Its module may raise anything.
    owner = attempt(ErrorCode.INTERNAL_ERROR, point.load)
    if isinstance(owner, Failure):
        raise UsageError(
            f"{who} cannot be loaded: {owner.detail}; those of vdot-data need pip install 'vdot-data[ingest]'"
        )
    missing = [attribute for attribute in _NEEDED[group] if not hasattr(owner, attribute)]
    if missing:
        raise UsageError(f"{who} has no {', '.join(missing)}")
    if name in (BASE_LAYER, DUPLICATES_LAYER):
        raise UsageError(f"{who}: {name!r} is the name of a layer of vdot-data's own")
    if owner.name != name:
        raise UsageError(f"{who} calls itself {owner.name!r}: the entry point and the class must bear one name")
    for file in files(owner):
        if not _FILE.fullmatch(file):
            raise UsageError(
                f"{who} makes a file {file!r}: its name must be of small letters, digits and underscores, with dots "
                "between, at most 60 long, and end in a format of its own (not mp4, png, jpg, json or txt)"
            )
    return owner


def annotator(name: str) -> type[Annotator]:
    """The annotator class registered under `name`. Raises `UsageError` for an unknown name or an unfit class."""
    return cast("type[Annotator]", _class("annotators", name))


def filter_(name: str) -> type[Filter]:
    """The filter class registered under `name`. Raises `UsageError` for an unknown name or an unfit class."""
    return cast("type[Filter]", _class("filters", name))


def _owners(annotators: Iterable[str], filters: Iterable[str]) -> list[type[Filter] | type[Annotator]]:
    return [*(filter_(name) for name in filters), *(annotator(name) for name in annotators)]


def signals(annotators: Iterable[str], filters: Iterable[str]) -> dict[str, Signal]:
    """Every signal that these make, by name. Raises `UsageError` when two make the same one."""
    found: dict[str, Signal] = {}
    for owner in _owners(annotators, filters):
        for signal, meaning in owner.signals.items():
            if signal in found:
                raise UsageError(f"two annotators or filters make the signal {signal!r}")
            found[signal] = meaning
    return found


def maker(made: str) -> str | None:
    """The name of a registered annotator or filter that makes this signal or track, or None."""
    for group in ("annotators", "filters"):
        for name in sorted(available(group)):
            try:
                owner = _class(group, name)
            except UsageError:
                # One that nobody asked for, and that does not fit.
                continue
            if made in (*owner.signals, *getattr(owner, "tracks", ())):
                return name
    return None


def needs(owner: type[Annotator] | Annotator) -> tuple[str, ...]:
    """The signals and tracks of others that an annotator is called with."""
    return tuple(getattr(owner, "needs", ()))


def pictures(owner: type[Annotator] | Annotator) -> tuple[str, ...]:
    """The names of the pictures that an annotator makes."""
    return tuple(getattr(owner, "pictures", ()))


def files(owner: type[Annotator] | Annotator) -> tuple[str, ...]:
    """The names of the files that an annotator makes."""
    return tuple(getattr(owner, "files", ()))


def takes_sample(owner: type[Annotator] | Annotator) -> bool:
    """Whether an annotator is called with whatever was made before it."""
    return getattr(owner, "sample", False) is True


def takes_gpu(name: str) -> bool:
    """Whether the annotator registered under `name` uses a GPU. Raises as `annotator`."""
    return getattr(annotator(name), "gpu", False) is True


def chosen(annotators: Iterable[str]) -> dict[str, tuple[Weight, ...]]:
    """The weights that the user names, of each of these that asks for them.

    Raises `UsageError` where none are named, or some that will not do.
    """
    asking = {name: choose for name in annotators if (choose := getattr(annotator(name), "choose", None))}
    try:
        return {name: tuple(choose()) for name, choose in asking.items()}
    except MissingWeights as error:
        raise UsageError(str(error)) from error


def captions(owner: type[Annotator] | Annotator) -> bool:
    """Whether an annotator writes captions."""
    return getattr(owner, "caption", False) is True


def check_outputs(annotators: Iterable[str]) -> None:
    """Raises `UsageError` when two of these make the same track or file, or pictures of one name."""
    found: dict[str, str] = {}
    for name in annotators:
        owner = annotator(name)
        made = [f"track {track!r}" for track in owner.tracks] + [f"pictures {one!r}" for one in pictures(owner)]
        made += [f"file {file!r}" for file in files(owner)]
        for one in made:
            if found.setdefault(one, name) != name:
                raise UsageError(f"{found[one]!r} and {name!r} both make the {one}")


def foundations(annotators: Iterable[str], filters: Iterable[str]) -> dict[str, set[str]]:
    """Each annotator -> the earlier ones and the filters of which it uses something, directly or not.

    Raises `UsageError` when one needs what no filter and no earlier annotator makes.
    """
    makers = {made: name for name in filters for made in filter_(name).signals}
    signals_known, tracks_known = set(makers), set()
    found: dict[str, set[str]] = {}
    for name in annotators:
        owner = annotator(name)
        for needed in needs(owner):
            if needed not in makers:
                made_by = maker(needed)
                cure = (
                    f"put {made_by} into the recipe before it (a layer builds on the base layer)"
                    if made_by
                    else "nothing installed makes it"
                )
                raise UsageError(f"{name!r} needs {needed!r}: {cure}")
            if needed in signals_known and needed in tracks_known:
                raise UsageError(f"{name!r} needs {needed!r}, which is a signal and a track here: rename one of them")
        direct = {makers[needed] for needed in needs(owner)}
        if takes_sample(owner):
            direct |= {earlier for earlier in found if _fills_sample(annotator(earlier))}
        found[name] = direct.union(*(found.get(one, ()) for one in direct))
        makers |= dict.fromkeys((*owner.signals, *owner.tracks), name)
        signals_known |= set(owner.signals)
        tracks_known |= set(owner.tracks)
    return found


def _fills_sample(owner: type[Annotator]) -> bool:
    """Whether something that an annotator makes is in a `Sample`."""
    return bool(owner.tracks or pictures(owner) or captions(owner))


def weights(annotators: Iterable[str] | None = None, filters: Iterable[str] | None = None) -> dict[str, Weight]:
    """The weights of these, by id; of every registered annotator and filter, and of the shot detector, where none are
    named. Those that a user chooses are not among them.

    Raises `UsageError` when two different ones share an id.
    """
    found = {weight.id: weight for weight in TransNet.weights} if annotators is None and filters is None else {}
    annotators = sorted(available("annotators")) if annotators is None else annotators
    filters = sorted(available("filters")) if filters is None else filters
    for owner in _owners(annotators, filters):
        for weight in _weights_of(owner):
            if found.setdefault(weight.id, weight) != weight:
                raise UsageError(f"two annotators or filters mean different files by the weight {weight.id!r}")
    return found


def _weights_of(owner: type[Filter] | type[Annotator]) -> tuple[Weight, ...]:
    # Few filters have any, and those without need not say so.
    used: tuple[Weight, ...] = getattr(owner, "weights", ())
    return used


def lineage(annotators: Iterable[str], filters: Iterable[str]) -> list[dict[str, Any]]:
    """Who makes a clip's values: name, version and weights (id, sha256, licence) of each filter and annotator."""
    return [
        {"name": owner.name, "version": owner.version} | lineage_of(_weights_of(owner))
        for owner in _owners(annotators, filters)
    ]


def lineage_of(used: tuple[Weight, ...]) -> dict[str, str | None]:
    """What a lineage says of weights."""
    return {
        "weights_id": "+".join(weight.id for weight in used) or None,
        "weights_sha256": "+".join(weight.sha256 for weight in used) or None,
        "weights_licence": "+".join(sorted({weight.licence for weight in used})) or None,
    }
