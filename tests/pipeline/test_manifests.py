"""Manifests: rows of any common format name sources, and their other columns reach the catalog."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.errors import UsageError
from pipeline.sources import expand

ROWS = [
    {"caption": 'ein Bär, "quoted"', "path": "b.mp4", "n": 1, "tags": ["x", "y"], "score": float("nan")},
    {"caption": None, "path": "../tree/a/1.mkv", "n": 2, "tags": [], "score": 0.5},
    {"caption": "gone", "path": "missing.mp4", "n": 3, "tags": None, "score": None},
    {"caption": "far", "path": "S3://bucket/x.mp4", "n": 4, "tags": None, "score": None},
]


def test_a_licence_is_a_licence_however_it_is_spelt(tree: Path) -> None:
    (tree / "list.csv").write_text("File ,License,Title\nb.mp4,CC0,x\n")
    assert [source.manifest for source in expand([str(tree / "list.csv")])] == [{"licence": "CC0", "Title": "x"}]
    (tree / "both.jsonl").write_text('{"URI": "b.mp4", "LICENCE": null, "license": "CC0"}\n')
    assert [source.manifest for source in expand([str(tree / "both.jsonl")])] == [{"licence": "CC0"}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "path,title,title\nb.mp4,x,y\n"),
        ("a.csv", "path,path\nb.mp4,c.mp4\n"),
        ("a.jsonl", '{"path": "b.mp4", "title": "x", "title": "y"}\n'),
        ("a.csv", "path,licence,license\nb.mp4,CC0,MIT\n"),
    ],
)
def test_two_columns_that_contradict_each_other_are_refused(tree: Path, name: str, text: str) -> None:
    (tree / name).write_text(text)
    with pytest.raises(UsageError, match=r"row 1 says '.*' and '.*' in two columns"):
        list(expand([str(tree / name)]))


def test_what_is_nested_in_a_manifest_is_kept_as_json(tree: Path) -> None:
    (tree / "a.jsonl").write_text('{"path": "b.mp4", "tags": ["x", {"b": 1, "a": [{}]}]}\n')
    assert next(expand([str(tree / "a.jsonl")])).manifest == {"tags": '["x", {"a": [{}], "b": 1}]'}


def test_columns_that_differ_in_case_alone_are_refused() -> None:
    for names in (["Status"], ["Title", "title"]):
        with pytest.raises(UsageError, match="rename it"):
            schema.full({}, names)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", ["local", "memory"])
def test_manifests(tree: Path, kind: str, where: str) -> None:
    manifest = tree / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), manifest)
    elif kind == "jsonl":
        manifest.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        pa_rows = [
            "caption,Path,n",
            '"ein Bär, ""quoted""",b.mp4,1',
            ",../tree/a/1.mkv,2",
            "gone,missing.mp4,3",
        ]
        manifest.write_text("\ufeff" + "\r\n".join([*pa_rows, "far,S3://bucket/x.mp4,4", ""]), encoding="utf-8")
    base, argument = str(tree), str(manifest)
    if where == "memory":
        base, argument = "memory://dir/tree", f"memory://dir/tree/list.{kind}"
        fsspec.filesystem("memory").pipe_file("/dir/tree/b.mp4", b"b.mp4")
        fsspec.filesystem("memory").pipe_file(f"/dir/tree/list.{kind}", manifest.read_bytes())
    found = list(expand([argument]))
    assert [source.uri for source in found] == [
        f"{base}/b.mp4",
        f"{base}/a/1.mkv",
        f"{base}/missing.mp4",
        "s3://bucket/x.mp4",
    ]
    nested = {} if kind == "csv" else {"tags": '["x", "y"]'}
    assert found[0].manifest == {"caption": 'ein Bär, "quoted"', "n": "1", **nested}
    assert "caption" not in found[1].manifest
    assert found[1].manifest.get("score", "0.5") == "0.5"
    assert found[0].size == 5
    assert found[2].size is found[2].stamp is found[3].size is None
    assert found[0].content == (b"b.mp4" if where == "memory" else None)
