"""Tests manifests: rows of any common format name sources, and their other columns reach the catalog."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.formats import schema
from pipeline.sources import json_manifests
from pipeline.sources.expand import expand_sources, normalise

ROWS = [
    {"caption": 'ein Bär, "quoted"', "path": "b.mp4", "n": 1, "tags": ["x", "y"], "score": float("nan")},
    {"caption": None, "path": "../tree/a/1.mkv", "n": 2, "tags": [], "score": 0.5},
    {"caption": "gone", "path": "missing.mp4", "n": 3, "tags": None, "score": None},
    {"caption": "far", "path": "S3://bucket/x.mp4", "n": 4, "tags": None, "score": None},
]


def test_a_licence_is_a_licence_however_it_is_spelt(tree: Path) -> None:
    (tree / "list.csv").write_text("File ,License,Title\nb.mp4,CC0,x\n")
    assert [source.manifest for source in expand_sources([str(tree / "list.csv")])] == [
        {"licence": "CC0", "Title": "x"}
    ]
    (tree / "both.jsonl").write_text('{"URI": "b.mp4", "LICENCE": null, "license": "CC0"}\n')
    assert [source.manifest for source in expand_sources([str(tree / "both.jsonl")])] == [{"licence": "CC0"}]


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
        list(expand_sources([str(tree / name)]))


def test_what_is_nested_in_a_manifest_is_kept_as_json(tree: Path) -> None:
    (tree / "a.jsonl").write_text('{"path": "b.mp4", "tags": ["x", {"b": 1, "a": [{}]}]}\n')
    assert next(expand_sources([str(tree / "a.jsonl")])).manifest == {"tags": '["x", {"a": [{}], "b": 1}]'}


def test_columns_that_differ_in_case_alone_are_refused() -> None:
    for names in (["Status"], ["Title", "title"]):
        with pytest.raises(UsageError, match="rename it"):
            schema.build_schema({}, names)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("location", ["local", "memory"])
def test_manifests(tree: Path, kind: str, location: str) -> None:
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
    if location == "memory":
        base, argument = "memory://dir/tree", f"memory://dir/tree/list.{kind}"
        fsspec.filesystem("memory").pipe_file("/dir/tree/b.mp4", b"b.mp4")
        fsspec.filesystem("memory").pipe_file(f"/dir/tree/list.{kind}", manifest.read_bytes())
    sources = list(expand_sources([argument]))
    assert [source.uri for source in sources] == [
        f"{base}/b.mp4",
        f"{base}/a/1.mkv",
        f"{base}/missing.mp4",
        "s3://bucket/x.mp4",
    ]
    nested = {} if kind == "csv" else {"tags": '["x", "y"]'}
    assert sources[0].manifest == {"caption": 'ein Bär, "quoted"', "n": "1", **nested}
    assert "caption" not in sources[1].manifest
    assert sources[1].manifest.get("score", "0.5") == "0.5"
    assert sources[0].size == 5
    assert sources[2].size is sources[2].stamp is sources[3].size is None
    assert sources[0].content == (b"b.mp4" if location == "memory" else None)


EXPECTED = [("b.mp4", {"licence": "CC0"}), ("a/1.mkv", {"licence": "MIT"})]
OBJECTS = [{"path": source, **columns} for source, columns in EXPECTED]
TEXTS = [source for source, _ in EXPECTED]
COLUMNS = {"path": TEXTS, "licence": ["CC0", "MIT"]}

# Shapes in which tools write a list: each gives EXPECTED with its columns, or only the sources.
JSON_WITH_COLUMNS = {
    "a list of objects": json.dumps(OBJECTS),
    "the same, indented": json.dumps(OBJECTS, indent=2),
    "the same on lines of its own": "[\n" + ",\n".join(json.dumps(row) for row in OBJECTS) + "\n]\n",
    "a list in an object": json.dumps({"version": 1, "info": {"a": [1]}, "videos": OBJECTS, "tags": ["x"]}),
    "a list in an object, first": json.dumps({"data": OBJECTS, "count": 2}, indent=1),
    "JSON lines": "".join(json.dumps(row) + "\n" for row in OBJECTS),
    "JSON lines with blank ones": "\n" + "\r\n\r\n".join(json.dumps(row) for row in OBJECTS),
    "columns": json.dumps(COLUMNS),
    "columns by number, as pandas writes them": json.dumps(
        {name: {str(index): cell for index, cell in enumerate(cells)} for name, cells in COLUMNS.items()}
    ),
}
JSON_OF_TEXTS = {
    "a list of texts": json.dumps(TEXTS),
    "a list of texts in an object": json.dumps({"name": "set", "files": TEXTS, "sizes": [1, 2]}),
    "one column": json.dumps({"video": TEXTS}),
    "a column among other things": json.dumps({"path": TEXTS, "version": 1}),
    "both kinds of row": json.dumps([{"url": TEXTS[0]}, TEXTS[1]]),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in JSON_WITH_COLUMNS.items()])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_a_json_manifest_in_any_common_shape(tree: Path, text: str, bom: str) -> None:
    (tree / "list.json").write_text(bom + text, encoding="utf-8")
    expected = [(f"{tree}/{source}", columns) for source, columns in EXPECTED]
    assert [(source.uri, source.manifest) for source in expand_sources([str(tree / "list.json")])] == expected


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in JSON_OF_TEXTS.items()])
def test_a_json_manifest_of_names_alone(tree: Path, text: str) -> None:
    (tree / "list.json").write_text(text)
    assert [source.uri for source in expand_sources([str(tree / "list.json")])] == [f"{tree}/{name}" for name in TEXTS]
    (tree / "row.json").write_text('{"path": "b.mp4", "licence": "CC0"}')
    (row,) = expand_sources([str(tree / "row.json")])
    assert row.manifest == {"licence": "CC0"}, "one row is a manifest too"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("  \n", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ('{"a": 1} trailing', "is not JSON"),
        ("[]", "lists no source"),
        ("{}", "has no list of sources"),
        ("null", "holds no list of sources"),
        ('"b.mp4"', "holds no list of sources"),
        ("3", "holds no list of sources"),
        ("[1, 2]", "row 1 is neither an object nor a text"),
        ('["b.mp4", ["b.mp4"]]', "row 2 is neither an object nor a text"),
        ('["b.mp4", ""]', "row 2 has no source"),
        ('[{"path": "b.mp4"}, {"caption": "x"}]', "no source column"),
        ('{"frames": 3, "codec": "h264"}', "has no list of sources, under frames, codec: expected a list"),
        ('{"train": [{"path": "b.mp4"}], "test": [{"path": "b.mp4"}]}', "has 2 lists of sources"),
        ('{"train": ["b.mp4"], "tags": ["x"]}', "has 2 lists of sources"),
        ('{"clip": {"path": "b.mp4"}}', "has no list of sources"),
        ('{"path": ["b.mp4", "c.mp4"], "title": ["x"], "tags": ["y"]}', "has 3 lists of sources"),
        ('[{"path": "b.mp4", "title": "x", "title": "y"}]', "says 'x' and 'y' in two columns"),
        ('["\\ud800.mp4"]', "row 1 has half a character"),
        ('{"path": "b.mp4", "title": "\\udfff"}\n{"path": "b.mp4"}', "row 1 has half a character"),
        (b'["caf\xe9.mp4"]', "not UTF-8"),
        (b"\0\0\0\x18ftypisom", "is not JSON"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".JSON"])
def test_json_without_a_list_of_sources_is_one_sentence(
    tree: Path, text: str | bytes, message: str, suffix: str
) -> None:
    path = tree / f"list{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message) as caught:
        list(expand_sources([str(path)]))
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_a_json_document_that_is_too_large_is_one_sentence(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_manifests, "MAX_JSON_BYTES", 1000)
    (tree / "list.json").write_text(json.dumps(["b.mp4"] * 500))
    with pytest.raises(UsageError, match=r"would have to be read whole: save it as \.jsonl"):
        list(expand_sources([str(tree / "list.json")]))
    (tree / "lines.json").write_text('{"path": "b.mp4"}\n' * 500)
    assert len(list(expand_sources([str(tree / "lines.json")]))) == 500, "lines are read one by one"


def format_tables(rows: list[tuple[str, ...]]) -> dict[str, str]:
    """The rows in each text format; the first row has the names of the columns."""
    names, *values = rows
    objects = [dict(zip(names, row, strict=True)) for row in values]
    lines = "".join(json.dumps(row) + "\n" for row in objects)
    texts = {".jsonl": lines, ".ndjson": lines, ".json": json.dumps(objects)}
    for suffix, dialect in ((".csv", "excel"), (".tsv", "excel-tab")):
        buffer = io.StringIO()
        csv.writer(buffer, dialect).writerows(rows)
        texts[suffix] = buffer.getvalue()
    return texts


cells = st.text(st.characters(codec="utf-8", exclude_characters="\0\r\n"), max_size=8).map(lambda text: f"x{text}")


@pytest.mark.parametrize("packed", ["", ".gz", ".GZ"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(values=st.lists(st.tuples(cells, cells), min_size=1, max_size=4))
def test_every_format_gives_the_same_rows(tmp_path: Path, packed: str, values: list[tuple[str, str]]) -> None:
    for suffix, text in format_tables(
        [("path", "caption"), *((f"/v/{name}|.mp4", words) for name, words in values)]
    ).items():
        path = tmp_path / f"list{suffix.upper()}{packed}"
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
        assert [(source.uri, source.manifest["caption"]) for source in expand_sources([str(path)])] == [
            (normalise(f"/v/{name}|.mp4"), words) for name, words in values
        ]


@pytest.mark.parametrize("name", ["list.csv.gz", "list.json.gz", "list.txt.gz", "list.jsonl.gz", "list.parquet.gz"])
def test_a_damaged_archive_is_one_sentence(tree: Path, name: str) -> None:
    packed = gzip.compress(b"path\n" + os.urandom(1000).hex().encode())
    for data in (b"path\nb.mp4\n", packed[:-400], packed[:100] + bytes(50) + packed[150:], b""):
        (tree / name).write_bytes(data)
        with pytest.raises(UsageError, match=name):
            list(expand_sources([str(tree / name)]))


def test_a_manifest_can_leave_sources_out_in_every_format(tree: Path) -> None:
    for suffix, text in format_tables([("path",), ("b.mp4",), ("a/1.mkv",)]).items():
        (tree / f"not{suffix}").write_text(text)
        remaining = [source.uri for source in expand_sources([str(tree)], exclude=str(tree / f"not{suffix}"))]
        assert remaining == [f"{tree}/a/2.MOV", f"{tree}/a/deep/x.webm"]
    for name in ("b.mp4", "b.mp4.gz", "x.gz"):
        with pytest.raises(UsageError, match="is not a manifest"):
            list(expand_sources([str(tree)], exclude=str(tree / name)))
