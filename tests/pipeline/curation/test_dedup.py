"""Tests near duplicates in a dataset, without Ray: rows, best clips, explanations, takedown and damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest
import small_dataset
import vectors
from small_dataset import identity

from annotators.networks.picture_embedding import ClipEmbedding
from pipeline.catalog.catalog import Catalog, values
from pipeline.catalog.cleanup import find_unfinished
from pipeline.catalog.ledger import Ledger
from pipeline.curation.dedup import Summary, dedup, format_summary
from pipeline.curation.select import load_selection, select
from pipeline.errors import RunError, UsageError
from pipeline.formats import embeddings
from pipeline.recipe import recipe
from pipeline.recipe.blueprint import Blueprint
from pipeline.reporting.explain import explain, format_text
from pipeline.sources.expand import Source
from pipeline.sources.source_list import write
from pipeline.storage.folder import Folder
from pipeline.upkeep.forget import forget
from pipeline.upkeep.verify import verify

# The stored clips of the small dataset: a0 and b0 show the same; a2 and b2 are alone.
CLIPS = {"a0": (1.0, 0.0), "b0": (1.0, 0.1), "a2": (0.0, 1.0, 0.0), "b2": (0.0, 0.0, 1.0)}


@pytest.fixture
def embedded(dataset: Any) -> Any:
    """A dataset with an embedding of every stored clip."""
    vectors.embed(dataset, CLIPS)
    return dataset


def read_groups(dataset: Any) -> dict[str, tuple[str | None, str | None, int | None]]:
    """Short name -> (group, best, number of members) by the current rows."""
    short = {identity(name): name for name in CLIPS}
    return {
        short[clip]: (short.get(row["duplicate_group"]), short.get(row["duplicate_of"]), row["duplicates"])
        for (clip, layer), row in dataset.rows().items()
        if layer == "duplicates"
    }


def run_dedup(dataset: Any, **options: Any) -> Summary:
    """Run `dedup`, and reload the dataset's catalog."""
    result = dedup(dataset.url, **options)
    dataset.catalog = Catalog(dataset.out, dataset.scratch)
    return result


def test_groups_become_rows_of_a_layer(embedded: Any) -> None:
    result = run_dedup(embedded)
    assert (result.compared, result.embedded, result.groups, result.duplicates, result.changed) == (4, 0, 1, 1, 4)
    name = min("a0", "b0", key=identity)
    assert read_groups(embedded) == {
        "a0": (name, None if name == "a0" else name, 2), "b0": (name, None if name == "b0" else name, 2),
        "a2": (None, None, 1), "b2": (None, None, 1),
    }  # fmt: skip
    worse = embedded.row("b0" if name == "a0" else "a0", "duplicates")
    assert worse["duplicate_similarity"] == pytest.approx(1 / 1.01**0.5, abs=1e-3)
    assert (worse["status"], worse["shard"], worse["licence"]) == ("compared", None, "CC0")
    assert worse["lineage"][0]["weights_licence"] == "Apache-2.0"
    report = verify(embedded.url, 1)
    assert (report.problems, report.checked["parts of embeddings"], report.checked["layers"]) == ([], 1, 5)
    explanation = format_text(explain(embedded.url, worse["clip_id"]))
    assert f"It is a near duplicate of {identity(name)} (cosine 0.995), the best of 2." in explanation
    assert "recipe None" not in explanation
    assert "It is the best of 2 near duplicates." in format_text(explain(embedded.url, identity(name)))
    assert "It has no near duplicate." in format_text(explain(embedded.url, identity("a2")))


def test_only_what_changed_is_written(embedded: Any) -> None:
    assert run_dedup(embedded).changed == 4
    assert run_dedup(embedded).changed == 0
    strict = run_dedup(embedded, threshold=0.999)
    assert (strict.changed, strict.groups) == (2, 0)
    assert set(read_groups(embedded).values()) == {(None, None, 1)}
    assert run_dedup(embedded).changed == 2


def test_a_clip_that_is_no_longer_stored_has_no_duplicates(embedded: Any) -> None:
    run_dedup(embedded)
    embedded.commit(embedded.clip("b0", "rejected", rule="too_dark", detail="dark"))
    assert run_dedup(embedded).changed == 2
    assert read_groups(embedded)["b0"] == (None, None, None)
    assert read_groups(embedded)["a0"] == (None, None, 1)


def test_another_takes_the_place_of_a_best_one_that_is_rejected(embedded: Any) -> None:
    run_dedup(embedded)
    best, second = sorted(("a0", "b0"), key=identity)
    assert select(embedded.url, ["duplicate_rank = 1"]).selected == 2
    embedded.commit(embedded.clip(best, "rejected", rule="too_dark", detail="dark"))
    select(embedded.url, ["duplicate_rank = 1"], name="unique")
    assert identity(second) in load_selection(embedded.out, "unique")["clip_id"].to_pylist()


def test_of_a_group_without_one_nothing_is_known(embedded: Any) -> None:
    vectors.embed(embedded, {"a2": (0.0, 1.0), "b2": (1.0, 0.05)}, number=1)
    shutil.rmtree(Path(embedded.url, "embeddings"))
    vectors.embed(embedded, CLIPS | {"b2": (0.0, 1.0, 0.0)})
    assert run_dedup(embedded).groups == 2
    forgotten, remaining = sorted(("a2", "b2"), key=identity)
    forget(embedded.url, identity(forgotten))
    assert read_groups(embedded)[remaining] == (None, None, None)
    assert read_groups(embedded)["a0"][2] == 2
    assert verify(embedded.url, 1).problems == []


@pytest.mark.parametrize(
    ("first_change", "second_change", "best"),
    [
        ({"source_width": 640}, {"source_width": 1280}, "b0"),
        ({"source_width": 1280}, {"source_width": 640}, "a0"),
        ({"source_width": 640}, {}, "a0"),
        ({"status": "pending", "source_width": 1280}, {"source_width": 640}, "b0"),
        ({"sharpness": 0.5}, {"sharpness": 0.9}, "b0"),
        ({"sharpness": 0.5}, {}, "a0"),
        ({"noise": 1.0, "blockiness": 0.1}, {"noise": 2.0, "blockiness": 0.0}, "a0"),
        ({"noise": 1.0, "blockiness": 0.1}, {"noise": 1.0, "blockiness": 0.0}, "b0"),
    ],
)
def test_the_best_of_a_group(
    embedded: Any, first_change: dict[str, Any], second_change: dict[str, Any], best: str
) -> None:
    filters = ["sharpness", "noise", "blockiness"]
    chosen = recipe.parse(f"{small_dataset.RECIPE}\nfilters: {[*filters, 'luma', 'contrast']}", "of the test")
    embedded.blueprint = Blueprint.for_ingest(chosen, ("title",))
    for name, change in (("a0", first_change), ("b0", second_change)):
        row = embedded.row(name)
        location = {key: row[key] for key in ("shard", "offset", "bytes")}
        # Without a height the number of a source's pixels is unknown.
        size = {"source_height": 480} if "source_width" in change else {}
        embedded.commit(embedded.clip(name, "kept", **location) | size | change)
    run_dedup(embedded)
    duplicate = "b0" if best == "a0" else "a0"
    assert {name: row[1] for name, row in read_groups(embedded).items() if name in ("a0", "b0")} == {
        best: None,
        duplicate: best,
    }


def test_another_licence_keeps_what_was_found(embedded: Any) -> None:
    """Rows of the layer are rewritten with those of their source, and manifest columns do not count as changes."""
    run_dedup(embedded)
    groups = read_groups(embedded)
    listed = write([Source("/videos/a.mp4", 1000, "1", {"licence": "CC-BY-4.0"})], None, embedded.scratch / "listing")
    for rows in Ledger(embedded.catalog, embedded.blueprint, listed).revise():
        embedded.catalog.commit(rows)
    assert read_groups(embedded) == groups
    assert embedded.row("a0", "duplicates")["licence"] == "CC-BY-4.0"
    assert run_dedup(embedded).changed == 0


def test_forgetting_takes_the_embedding_and_every_mention(embedded: Any) -> None:
    run_dedup(embedded)
    name = min("a0", "b0", key=identity)
    remaining = "b0" if name == "a0" else "a0"
    forget(embedded.url, identity(name))
    (part,) = Path(embedded.url, "embeddings").glob("*.parquet")
    assert {row[0] for row in duckdb.sql(f"SELECT clip_id FROM '{part}'").fetchall()} == {
        identity(clip) for clip in CLIPS if clip != name
    }
    rows = values(embedded.catalog.connect(), "SELECT * FROM parts WHERE kind <> 'forgotten'")
    assert not any(identity(name) in str(row) for row in rows)
    assert read_groups(embedded)[remaining] == (None, None, None)
    assert verify(embedded.url, 1).problems == []
    assert run_dedup(embedded).compared == 3
    assert read_groups(embedded)[remaining] == (None, None, 1)
    forget(embedded.url, "a.mp4")
    forget(embedded.url, "b.mp4")
    assert not list(Path(embedded.url, "embeddings").iterdir())


def test_an_embedding_that_comes_after_its_clip_was_forgotten(embedded: Any) -> None:
    """On an object store, an older pass may still run when a clip is forgotten."""
    forget(embedded.url, identity("a0"))
    vectors.embed(embedded, {"a0": (1.0, 0.0)}, number=1)
    report = verify(embedded.url, 1)
    assert [problem.name for problem in report.problems] == ["fedcba987654-000001.parquet"]
    assert "forgotten; `vdot-data dedup` removes them" in report.problems[0].sentence
    run_dedup(embedded)
    assert verify(embedded.url, 1).problems == []


def test_a_damaged_part(embedded: Any) -> None:
    vectors.embed(embedded, {"a0": (1.0, 0.0)}, number=1)
    part = Path(embedded.url, "embeddings/fedcba987654-000001.parquet")
    data = bytearray(part.read_bytes())
    data[len(data) // 4] ^= 1
    part.write_bytes(data)
    with pytest.raises(RunError, match=rf"{part} is damaged .*; delete it, and `vdot-data dedup` computes"):
        dedup(embedded.url)
    (problem,) = verify(embedded.url, 1).problems
    assert (problem.kind, problem.name) == ("embeddings", part.name)
    # It may hold the embedding that must be forgotten.
    forget(embedded.url, identity("b2"))
    assert not part.exists()
    assert verify(embedded.url, 1).problems == []
    assert run_dedup(embedded).compared == 3


def test_parts_are_read_by_anybody_and_sorted_out(embedded: Any) -> None:
    folder = Path(embedded.url, "embeddings")
    vectors.embed(embedded, {"a0": (0.0, 0.0, 1.0)}, number=1)
    (folder / "notes.parquet").write_bytes(b"not ours")
    (folder / ".vdot-0123456789abcdef.tmp").write_bytes(b"half")
    assert [name for name, _ in find_unfinished(embedded.catalog)] == ["embeddings/.vdot-0123456789abcdef.tmp"]
    row = duckdb.sql(f"SELECT * FROM '{folder}/fedcba987654-000001.parquet'").fetchall()[0]
    assert (row[0], row[1], row[2][:3]) == (identity("a0"), ClipEmbedding.version, [0.0, 0.0, 1.0])
    # The first vector of a clip counts; another version's never does.
    table = vectors.table([identity("a0")], vectors.normalize([[1.0] * 8]))
    embeddings.append_part(embedded.out, "000000000000", 0, "older", table)
    assert run_dedup(embedded).groups == 1
    assert not find_unfinished(embedded.catalog)
    assert (folder / "notes.parquet").exists()


def test_nothing_to_compare(dataset: Any) -> None:
    for name in ("a0", "a2", "b0", "b2"):
        dataset.commit(dataset.clip(name, "rejected", rule="too_dark", detail="dark"))
    result = dedup(dataset.url)
    assert (result.compared, result.groups, result.changed) == (0, 0, 0)
    assert "compared 0 clips" in format_summary(result)


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.01, float("nan")])
def test_a_threshold_that_is_no_cosine(embedded: Any, threshold: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        dedup(embedded.url, threshold=threshold)


def test_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no catalog"):
        dedup(str(tmp_path))


@pytest.mark.long
def test_on_an_object_store(s3: Any, tmp_path: Path) -> None:
    remote = small_dataset.Dataset(f"{s3.url}/out", tmp_path / "scratch").fill()
    vectors.embed(remote, CLIPS)
    assert run_dedup(remote).groups == 1
    forget(remote.url, identity("a0"))
    assert sum(len(ids) for ids in embeddings.read_ids(remote.out, ClipEmbedding.version)) == 3
    assert verify(remote.url, 1).problems == []


def test_the_order_of_ingest_changes_nothing(filled_dataset: Path, tmp_path: Path) -> None:
    results = []
    for number, order in enumerate((("a0", "a2", "b0", "b2"), ("b2", "b0", "a2", "a0"))):
        shutil.copytree(filled_dataset, tmp_path / f"out{number}")
        dataset = small_dataset.Dataset(str(tmp_path / f"out{number}"), tmp_path / "scratch")
        for part, name in enumerate(order):
            row = dataset.row(name)
            dataset.catalog = Catalog(Folder(dataset.url), dataset.scratch)
            dataset.commit(dataset.clip(name, row["status"], **{key: row[key] for key in ("shard", "offset", "bytes")}))
            vectors.embed(dataset, {name: CLIPS[name]}, part)
        run_dedup(dataset)
        results.append(read_groups(dataset))
    assert results[0] == results[1]
