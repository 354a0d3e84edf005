"""Explains why a clip is in or out: everything the catalog knows about one clip or source, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb

from annotators.base import Signal
from pipeline.catalog.catalog import Catalog, open_dataset, values
from pipeline.catalog.find import find
from pipeline.catalog.predicates import CLIP_ROWS_QUERY, IS_BASE, kind_sql
from pipeline.errors import ADVICE, ErrorCode, UsageError
from pipeline.formats.schema import BASE_LAYER, COLUMNS, DUPLICATES, DUPLICATES_LAYER, Kind, Status
from pipeline.recipe import registry
from pipeline.recipe.recipe import Recipe
from pipeline.recipe.recipe import parse as parse_recipe
from pipeline.storage.scratch import Scratch

Facts = dict[str, Any]
"""What is known, as plain JSON-able values; see `explain`."""

_SOURCE_COLUMNS = (
    *("source_uri", "source_hash", "source_size", "same_as", "source_width", "source_height", "source_fps"),
    *("source_duration_s", "source_frames", "source_frames_unused", "source_frames_missing", "source_codec"),
    *("detector", "content_box", "licence"),
)
_LAYER_COLUMNS = ("layer", "status", "shard", "offset", "bytes", "sequence", "run_id")
# Most files have a frame or two with wrong times; only more than this, and more than 1 %, are reported.
_FEW_FRAMES = 3
_CLIP_COLUMNS = ("clip_id", "source_uri", "start_s", "end_s", "width", "height", "fps", "frames", "licence")


def explain(out: str, name: str) -> Facts:
    """What is known of a clip (`name`: its id, or its first six digits or more) or a source (URI, path or file name).

    kind: clip or source; verdict: status with its rule or code and what these mean; for a clip its signals, lineage,
    layers with the place of their bytes, its near duplicates, and the history of its verdicts; for a source its
    clips. Raises `UsageError` when there is no such clip or source.
    """
    with Scratch() as scratch:
        catalog = Catalog(open_dataset(out), scratch.path)
        con = catalog.connect()
        target = find(con, name)
        facts = _clip_facts(con, target.clip_id) if target.clip_id else _source_facts(con, target.source_uri)
        return {"out": catalog.out.url, **facts}


def _source_facts(con: duckdb.DuckDBPyConnection, uri: str) -> Facts:
    row = values(con, "SELECT * FROM sources WHERE source_uri = ?", [uri])[0]
    chosen = _find_recipe(con, row)
    clips = values(
        con,
        "SELECT clip_id, start_s, end_s, status, coalesce(rule, code) AS why FROM clips "
        f"WHERE source_uri = ? AND {IS_BASE} ORDER BY start_s",
        [uri],
    )
    twins = values(con, "SELECT source_uri FROM sources WHERE same_as = ? ORDER BY source_uri", [uri])
    windows = {window["clip_id"] for window in row["windows"] or []} - {clip["clip_id"] for clip in clips}
    return {
        "kind": Kind.SOURCE.value,
        "source": {name: row[name] for name in _SOURCE_COLUMNS},
        "shots": len(row["shots"] or []),
        "manifest": _manifest_facts(row, chosen),
        "verdict": _verdict_facts(row, chosen),
        "clips": clips,
        "clips_without_verdict": len(windows),
        "twins": [twin["source_uri"] for twin in twins],
        "history": _read_history(con, f"{kind_sql(Kind.SOURCE)} AND source_uri = ?", uri),
    }


def _clip_facts(con: duckdb.DuckDBPyConnection, clip_id: str) -> Facts:
    layers = values(con, CLIP_ROWS_QUERY, [clip_id])
    row, recipe = layers[0], _find_recipe(con, layers[0])
    return {
        "kind": Kind.CLIP.value,
        "clip": {name: row[name] for name in _CLIP_COLUMNS},
        "manifest": _manifest_facts(row, recipe),
        "verdict": _verdict_facts(row, recipe),
        "tasks": row["tasks"] or [],
        "duplicates": next(
            ({name: layer[name] for name in DUPLICATES} for layer in layers if layer["layer"] == DUPLICATES_LAYER), None
        ),
        "signals": {name: signal for layer in layers for name, signal in _signal_facts(layer, recipe).items()},
        "captions": {layer["layer"]: layer["caption"] for layer in layers if layer["caption"]},
        # A layer's foundations belong to the base layer.
        "lineage": [
            entry | {"layer": layer["layer"]}
            for layer in layers
            for entry in layer["lineage"] or []
            if layer["layer"] in (BASE_LAYER, entry["name"])
        ],
        "layers": [
            {name: layer[name] for name in _LAYER_COLUMNS} | {"verdict": _verdict_facts(layer, None)}
            for layer in layers
        ],
        "preview": {name: row[f"preview_{name}"] for name in ("shard", "offset", "bytes")},
        "history": _read_history(con, f"{kind_sql(Kind.CLIP)} AND clip_id = ?", clip_id),
    }


def _find_recipe(con: duckdb.DuckDBPyConnection, row: Facts) -> Recipe | None:
    """The recipe that gave a row its verdict, if the catalog has it."""
    texts = values(
        con,
        "SELECT recipe FROM runs WHERE recipe_hash = ? AND recipe IS NOT NULL ORDER BY sequence DESC LIMIT 1",
        [row["recipe_hash"]],
    )
    return parse_recipe(texts[0]["recipe"], "of the dataset") if texts else None


def _declared_signals(recipe: Recipe | None, layer: str) -> dict[str, tuple[str, Signal]]:
    """The signals of a layer with who makes them, as far as the packages that make them are installed here."""
    declared: dict[str, tuple[str, Signal]] = {}
    annotators = [layer] if layer != BASE_LAYER else recipe.annotators if recipe else ()
    filters = recipe.filters if recipe and layer == BASE_LAYER else ()
    for maker, *names in [*((name, [], [name]) for name in filters), *((name, [name], []) for name in annotators)]:
        try:
            declared |= {name: (maker, signal) for name, signal in registry.collect_signals(*names).items()}
        except (UsageError, ImportError):
            continue
    return declared


def _signal_facts(row: Facts, recipe: Recipe | None) -> Facts:
    """The signals of one layer: value, unit, meaning, and whether what measures them was run on the clip."""
    declared = _declared_signals(recipe, row["layer"])
    makers = {entry["name"] for entry in row["lineage"] or []}
    return {
        name: {"value": row.get(name), "unit": signal.unit, "meaning": signal.meaning, "measured": maker in makers}
        for name, (maker, signal) in declared.items()
        if name in row and (row["layer"] == BASE_LAYER or row[name] is not None)
    }


def _manifest_facts(row: Facts, recipe: Recipe | None) -> Facts:
    """Columns that are neither the catalog's nor a known signal: those of the manifest."""
    declared = _declared_signals(recipe, BASE_LAYER)
    return {
        name: value
        for name, value in row.items()
        if name not in COLUMNS.names and name not in declared and value is not None
    }


def _verdict_facts(row: Facts, recipe: Recipe | None) -> Facts:
    verdict = {name: row[name] for name in ("status", "rule", "code", "stage", "detail", "same_as", "recipe_hash")}
    verdict["rule_sql"] = recipe.rules.get(row["rule"]) if recipe and row["rule"] else None
    verdict["advice"] = ADVICE[ErrorCode(row["code"])] if row["code"] in ADVICE else None
    return verdict


def _read_history(con: duckdb.DuckDBPyConnection, where: str, name: str) -> list[Facts]:
    """Every row that was ever written, oldest first."""
    return values(
        con,
        "SELECT sequence, layer, run_id, recipe_hash, status, coalesce(rule, code) AS why, "
        "(SELECT any_value(r.started) FROM runs r WHERE r.run_id = p.run_id) AS started "
        f"FROM parts p WHERE {where} ORDER BY sequence",
        [name],
    )


def format_text(facts: Facts) -> str:
    """Format the facts as sentences."""
    return "\n".join(_clip_text(facts) if facts["kind"] == Kind.CLIP else _source_text(facts))


def _verdict_text(verdict: Facts) -> Iterator[str]:
    status, detail = verdict["status"], verdict["detail"]
    if status == Status.REJECTED:
        yield f"It is rejected by the rule {verdict['rule']}: {detail or verdict['rule_sql']}"
    elif status == Status.FAILED:
        yield f"It failed with {verdict['code']} in the step {verdict['stage']}: {detail}"
        if verdict["advice"]:
            yield f"What to do: {verdict['advice']}"
    elif status == Status.PENDING:
        rule = f" on the rule {verdict['rule']}: {verdict['rule_sql']}" if verdict["rule"] else ""
        yield f"It is pending{rule} ({detail})"
    elif status == Status.SAME:
        yield f"It has the same content as {verdict['same_as']}, which holds the clips."
    elif status == Status.FORGOTTEN:
        yield "Its content was removed with `vdot-data forget` and is refused."
    elif status == Status.CUT:
        yield "It was cut into clips."
    else:
        yield f"It is {status}: no rule of the recipe {verdict['recipe_hash']} rejects it."


def _source_text(facts: Facts) -> Iterator[str]:
    source = facts["source"]
    yield f"Source {source['source_uri']}"
    if source["source_width"]:
        yield (
            f"{source['source_width']}x{source['source_height']}, {source['source_fps']:.2f} fps, "
            f"{source['source_duration_s']:.2f} s, {source['source_codec']}"
        )
    yield from _frames_text(source)
    if source["detector"]:
        yield f"Shots: {facts['shots']}, found by {source['detector']}"
    yield from _verdict_text(facts["verdict"])
    if source["licence"]:
        yield f"Licence: {source['licence']}"
    yield from (f"{name}: {value}" for name, value in facts["manifest"].items())
    for clip in facts["clips"]:
        reason = f" ({clip['why']})" if clip["why"] else ""
        yield f"  clip {clip['clip_id']}  {clip['start_s']:.2f} to {clip['end_s']:.2f} s  {clip['status']}{reason}"
    if facts["clips_without_verdict"]:
        yield f"{facts['clips_without_verdict']} of its clips have no verdict yet; the next ingest continues with them."
    if facts["twins"]:
        yield f"The same content came also as {', '.join(facts['twins'])}."
    yield from _history_text(facts["history"])


def _frames_text(source: Facts) -> Iterator[str]:
    """How many frames a source has, and how many are unused or missing if more than a few."""
    count = source["source_frames"]
    if count is None:
        return
    few = max(_FEW_FRAMES, count / 100)
    yield f"Decoded frames: {count}"
    if (source["source_frames_unused"] or 0) > few:
        yield f"{source['source_frames_unused']} of them are not used: their time stamps repeat or go back."
    if (source["source_frames_missing"] or 0) > few:
        missing = source["source_frames_missing"]
        yield f"Between them there is room for {missing} more: the file has lost them, or nothing was recorded."


def _layer_suffix(layer: str) -> str:
    return "" if layer == BASE_LAYER else f" (layer {layer})"


def _clip_text(facts: Facts) -> Iterator[str]:
    clip = facts["clip"]
    yield f"Clip {clip['clip_id']}"
    size = f", {clip['width']}x{clip['height']}" if clip["width"] else ""
    rate = f" at {clip['fps']:g} fps" if clip["fps"] else ""
    yield f"It shows {clip['source_uri']} from {clip['start_s']:.3f} to {clip['end_s']:.3f} s."
    yield f"It has {clip['frames']} frames{rate}{size}."
    yield from _verdict_text(facts["verdict"])
    yield from _duplicates_text(facts["duplicates"] or {})
    if facts["tasks"]:
        yield f"Tasks: {', '.join(facts['tasks'])}"
    for layer, caption in facts["captions"].items():
        yield f"Caption{_layer_suffix(layer)}: {caption}"
    if clip["licence"]:
        yield f"Licence: {clip['licence']}"
    yield from (f"{name}: {value}" for name, value in facts["manifest"].items())
    if facts["signals"]:
        yield "Signals:"
    for name, signal in facts["signals"].items():
        value = signal["value"]
        absent = "none" if signal["measured"] else "not measured"
        formatted = absent if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        unit = f"[{signal['unit']}] " if signal["unit"] else ""
        yield f"  {name} = {formatted}  {unit}{signal['meaning']}"
    if facts["lineage"]:
        yield "Made by:"
    for entry in facts["lineage"]:
        weights = f", weights {entry['weights_id']} ({entry['weights_licence']})" if entry["weights_id"] else ""
        yield f"  {entry['name']} {entry['version']}{weights}{_layer_suffix(entry['layer'])}"
    for layer in facts["layers"]:
        if layer["status"] == Status.FAILED and layer["layer"] != BASE_LAYER:
            yield f"Layer {layer['layer']}:"
            yield from _verdict_text(layer["verdict"])
        elif layer["shard"]:
            yield f"Layer {layer['layer']}: {layer['shard']}, {layer['bytes']} bytes from {layer['offset']} on"
            if "://" not in facts["out"]:
                yield f"  tar -xf '{facts['out']}/{layer['shard']}' --wildcards '{clip['clip_id']}.*'"
    yield from _history_text(facts["history"])


def _duplicates_text(layer: Facts) -> Iterator[str]:
    if layer.get("duplicate_of"):
        cosine = f"cosine {layer['duplicate_similarity']:.3f}"
        yield f"It is a near duplicate of {layer['duplicate_of']} ({cosine}), the best of {layer['duplicates']}."
    elif layer.get("duplicate_group"):
        yield f"It is the best of {layer['duplicates']} near duplicates."
    elif layer.get("duplicates"):
        yield "It has no near duplicate."


def _history_text(history: list[Facts]) -> Iterator[str]:
    if len(history) > 1:
        yield "History:"
        for row in history:
            reason = f" ({row['why']})" if row["why"] else ""
            start = f", started {row['started']}" if row["started"] else ""
            recipe_text = f", recipe {row['recipe_hash']}" if row["recipe_hash"] else ""
            verdict = f"{row['status']}{reason} by run {row['run_id']}{start}{recipe_text}"
            yield f"  part {row['sequence']}, layer {row['layer']}: {verdict}"
