"""Tests that the catalog is read in folders of any name, and that the sweep removes only leftovers of ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.catalog import Catalog
from pipeline.catalog.cleanup import check_complete, sweep
from pipeline.errors import RunError
from pipeline.recipe.rules import quote_text
from pipeline.storage.folder import Folder


@pytest.mark.parametrize("name", ["it's", 'a"b', "back\\slash", "a[b]*?", "a b\u00e4"])
def test_any_path(dataset: Any, tmp_path: Path, name: str) -> None:
    Path(dataset.url).rename(tmp_path / name)
    con = Catalog(Folder(str(tmp_path / name)), tmp_path).connect()
    assert con.execute("SELECT count(*) FROM clips WHERE layer = 'base'").fetchone() == (6,)
    assert con.execute(f"SELECT {quote_text(name)}").fetchone() == (name,)


def test_connections_spill_apart(dataset: Any) -> None:
    folders = {dataset.catalog.connect().execute("SELECT current_setting('temp_directory')").fetchone() for _ in "ab"}
    assert len(folders) == 2


def test_what_a_killed_writer_left_is_swept(dataset: Any) -> None:
    root = Path(dataset.url)
    old_files = [root / folder / ".vdot-0123.tmp" for folder in ("", "catalog", "shards", "pending", "previews")]
    for path in old_files:
        path.write_bytes(b"half")
        os.utime(path, (1, 1))
    young_file = root / "shards/.vdot-4567.tmp"
    young_file.write_bytes(b"half")
    os.utime(young_file, (2**32, 2**32))
    swept = sweep(dataset.catalog)
    assert {str(path.relative_to(root)) for path in old_files} <= set(swept)
    assert not any(path.exists() for path in old_files)
    assert young_file.exists()


def test_only_what_is_ours_is_swept_or_read(dataset: Any) -> None:
    root = Path(dataset.url)
    foreign_files = [
        root / "shards/imagenet-000.tar",
        root / "previews/holiday.jpg",
        root / "catalog/000000000003 (1).parquet",
    ]
    for path in foreign_files:
        path.write_bytes(b"precious")
        os.utime(path, (1, 1))
    sweep(Catalog(dataset.out, dataset.scratch))
    assert all(path.exists() for path in foreign_files)


@pytest.mark.parametrize("lost", ["3", "34", "1234567"])
def test_what_a_lost_part_names_is_not_taken_for_a_leftover(dataset: Any, lost: str) -> None:
    for number in lost:
        (Path(dataset.url) / f"catalog/{int(number):012d}.parquet").unlink(missing_ok=True)
    with pytest.raises(RunError, match="no catalog" if len(lost) > 2 else f"lacks part 0*{lost[0]}.parquet"):
        check_complete(Catalog(dataset.out, dataset.scratch))
