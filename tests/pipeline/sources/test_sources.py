"""Tests sources: every kind of argument becomes the same stream of rows, and bytes arrive complete."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ClipError, ErrorCode, UsageError
from pipeline.sources import expand
from pipeline.sources import fetch as fetching
from pipeline.sources.expand import Source, expand_sources, normalise
from pipeline.sources.fetch import fetch_source
from pipeline.storage import object_store
from pipeline.storage.folder import Folder
from pipeline.storage.scratch import Scratch


def list_uris(*arguments: object, exclude: str | None = None) -> list[str]:
    return [source.uri for source in expand_sources(map(str, arguments), exclude)]


def test_files_folders_and_globs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [str(tree / name) for name in ("a/1.mkv", "a/2.MOV", "a/deep/x.webm", "b.mp4")]
    assert list_uris(tree) == list_uris(f"{tree}/") == list_uris(f"file://{tree}") == list_uris(f"{tree}/**") == videos
    assert list_uris(f"{tree}/*") == [videos[3]]
    assert list_uris(f"{tree}/?/[0-9].*") == videos[:2]
    assert list_uris(f"{tree}/**/x.webm") == list_uris(f"{tree}/*/deep/*") == [videos[2]]
    assert list_uris(tree / "a/odd.bin") == list_uris(f"{tree}/**/*.bin") == [str(tree / "a/odd.bin")]
    assert list_uris(tree / "b.mp4", tree / "b.mp4") == [videos[3]] * 2
    monkeypatch.chdir(tree)
    assert list_uris("b.mp4", "a") == [videos[3], *videos[:3]]
    (tree / "what[1].mp4").touch()
    assert list_uris(tree / "what[1].mp4") == [str(tree / "what[1].mp4")], "a name that looks like a glob"

    source = next(expand_sources([str(tree / "b.mp4")]))
    status = (tree / "b.mp4").stat()
    assert source == Source(str(tree / "b.mp4"), status.st_size, str(status.st_mtime_ns), {}, None)


def test_links_are_followed_and_never_round(tree: Path) -> None:
    (tree / "a/up").symlink_to(tree)
    (tree / "again").symlink_to(tree / "a")
    (tree / "z.mp4").symlink_to(tree / "b.mp4")
    (tree / "broken.mp4").symlink_to(tree / "nowhere")
    names = [uri.removeprefix(str(tree)) for uri in list_uris(tree)]
    assert names[:4] == ["/a/1.mkv", "/a/2.MOV", "/a/deep/x.webm", "/again/1.mkv"]
    assert names[-3:] == ["/b.mp4", "/broken.mp4", "/z.mp4"]
    assert len(names) == 9


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{tree}/absent.mp4", "absent.mp4 does not exist"),
        ("{tree}/*.flv", r"no file matches .*\*\.flv"),
        ("{tree}/absent/*.flv", "no file matches"),
        ("{tree}/a**b", "whole part"),
        ("{tree}/empty", "no video file in the folder .*empty"),
        ("nonsense://x/y.mp4", "nonsense"),
        ("memory://absent", "absent does not exist"),
        ("{tree}/none.csv", "none.csv has no source column"),
        ("{tree}/wide.csv", "row 1 has more cells"),
        ("{tree}/nameless.csv", "row 2 has 'CC0' in a column without a name"),
        ("{tree}/hole.csv", "row 2 has no source"),
        ("{tree}/bad.jsonl", "line 2 is not JSON"),
        ("{tree}/list.jsonl", "line 1 is not a JSON object"),
        ("{tree}/void.csv", "void.csv lists no source"),
        ("{tree}/bad.parquet", "bad.parquet cannot be read"),
        ("{tree}/latin.txt", "latin.txt cannot be read"),
    ],
)
def test_what_names_nothing_is_one_sentence(tree: Path, argument: str, message: str) -> None:
    (tree / "empty").mkdir()
    (tree / "none.csv").write_text("name,caption\nx,y\n")
    (tree / "wide.csv").write_text("path,caption\nx,y,z\n")
    (tree / "nameless.csv").write_text("path,caption,\nb.mp4,y,\nb.mp4,z,CC0\n")
    (tree / "hole.csv").write_text("path,caption\nx,y\n,z\n")
    (tree / "bad.jsonl").write_text('{"path": "x"}\n{"path"\n')
    (tree / "list.jsonl").write_text('["x"]\n')
    (tree / "void.csv").write_text("path,caption\n")
    (tree / "bad.parquet").write_bytes(b"PAR1")
    (tree / "latin.txt").write_bytes(b"caf\xe9.mp4\n")
    with pytest.raises(UsageError, match=message):
        list(expand_sources([argument.format(tree=tree)]))


def test_a_name_that_no_catalog_can_hold_fails_alone(tree: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/caf\xe9.mp4")).touch()
    sources = list(expand_sources([str(tree)]))
    assert len(sources) == 5
    assert sources[-1] == Source(f"{tree}/caf\\xe9.mp4")
    assert fetch_failure(sources[-1], tmp_path) == ErrorCode.SOURCE_UNREADABLE


def test_a_flat_bucket_is_listed_a_page_at_a_time(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(f"{s3.url}/flat")
    expected = [f"a b+%{number}.mp4" for number in range(5)] + ["sub/x.mp4", "z.mp4"]
    for name in expected:
        folder.put(name, b"x")
    s3fs = pytest.importorskip("s3fs")
    call_s3, methods = s3fs.S3FileSystem.call_s3, []

    def small(self: Any, method: str, **parameters: Any) -> Any:
        methods.append(method)
        return call_s3(self, method, **parameters, MaxKeys=2)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", small)
    assert list_uris(f"{s3.url}/flat") == [f"s3://bucket/flat/{name}" for name in expected]
    assert methods.count("list_objects_v2") > 3


def test_text_manifests_and_exclude(tree: Path) -> None:
    (tree / "list.txt").write_text(f"# ours\nb.mp4\n\n  a/1.mkv  \nfile://{tree}/b.mp4\n")
    assert list_uris(tree / "list.txt") == [f"{tree}/b.mp4", f"{tree}/a/1.mkv", f"{tree}/b.mp4"]
    (tree / "not.txt").write_text("../tree/b.mp4\n./a/2.MOV\n")
    assert list_uris(tree, exclude=str(tree / "not.txt")) == [f"{tree}/a/1.mkv", f"{tree}/a/deep/x.webm"]
    assert list_uris(tree / "list.txt", exclude=str(tree / "not.txt")) == [f"{tree}/a/1.mkv"]
    with pytest.raises(UsageError, match="is not a manifest: expected"):
        list_uris(tree, exclude=str(tree))


def test_memory_sources_carry_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/carry/one.mp4", b"bytes")
    (source,) = expand_sources(["memory://carry"])
    assert (source.uri, source.size, source.content) == ("memory://carry/one.mp4", 5, b"bytes")
    assert list_uris("memory:///carry/one.mp4", "memory://carry/*") == ["memory://carry/one.mp4"] * 2
    monkeypatch.setattr(expand, "MAX_CARRIED_BYTES", 4)
    with pytest.raises(UsageError, match="too large to carry"):
        list_uris("memory://carry")


names = st.text(st.sampled_from("ab é%[]*?#."), min_size=1, max_size=5).filter(lambda name: set(name) != {"."})


@given(parts=st.lists(names, min_size=1, max_size=4), count=st.integers(0, 3))
def test_all_forms_of_a_path_agree(parts: list[str], count: int) -> None:
    path = "/".join(parts)
    folder = str(Path.cwd())
    expected = normalise(path)
    assert expected == f"{folder.rstrip('/')}/{path}"
    assert normalise(expected) == expected
    assert normalise(f"file://{expected}") == normalise(f"FILE://{expected}") == normalise(f"/{expected}") == expected
    assert normalise(f"./{path}") == normalise("x/../" * count + path) == normalise(path, folder) == expected
    assert normalise(path, "/data") == normalise(f"../data/{path}", "/data/") == f"/data/{path}"
    remote = f"s3://bucket/{path}"
    assert normalise(path, "s3://bucket") == normalise(f"../{path}", "s3://bucket/m") == normalise(remote) == remote
    assert normalise(f"S3A://bucket/{path}") == remote
    assert normalise(normalise(f"memory:///{path}")) == normalise(f"memory://{path}")


def test_a_listing_of_20000_files_stays_flat_in_memory(tmp_path: Path) -> None:
    for folder in range(200):
        (tmp_path / f"{folder:03}").mkdir()
        for file in range(100):
            os.close(os.open(tmp_path / f"{folder:03}/{file:03}.mp4", os.O_CREAT | os.O_WRONLY))
    tracemalloc.start()
    count = sum(1 for _ in expand_sources([str(tmp_path)]))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 500_000


def test_sources_in_a_store_that_fails_now_and_then(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(fetching, "READ_AHEAD", 300_000)
    monkeypatch.setattr(fetching, "CHUNK", 100_000)
    data = os.urandom(3_000_000)
    folder = Folder(f"{s3.url}/in")
    for name in ("b.mp4", "2024-1/a.mp4", "2024-2/a.mov", "2023/a.mp4", "notes.md"):
        folder.put(name, data)
    folder.put("list.txt", b"b.mp4\n2023/a.mp4\n")
    s3.faults(0.1)
    assert list_uris(f"{s3.url}/in") == [
        f"s3://bucket/in/{name}" for name in ("2023/a.mp4", "2024-1/a.mp4", "2024-2/a.mov", "b.mp4")
    ]
    assert list_uris("s3://bucket/in/2024-*/*") == ["s3://bucket/in/2024-1/a.mp4", "s3://bucket/in/2024-2/a.mov"]
    assert list_uris("s3://bucket/**/a.mp4") == ["s3://bucket/in/2023/a.mp4", "s3://bucket/in/2024-1/a.mp4"]
    assert list_uris("s3://bucket/in/list.txt") == ["s3://bucket/in/b.mp4", "s3://bucket/in/2023/a.mp4"]
    for argument in ("s3://bucket/absent", "s3://absent/x.mp4", "s3://bucket/in/*.flv"):
        with pytest.raises(UsageError):
            list_uris(argument)
    (source,) = expand_sources(["s3://bucket/in/b.mp4"])
    assert source.size == len(data)
    for uri in ("s3://bucket/in/b.mp4", "s3://bucket/in/2023/a.mp4"):
        fetched = fetch_source(Source(uri), tmp_path)
        assert fetched.path.read_bytes() == data
        assert (fetched.sha256, fetched.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert fetched.stamp == source.stamp == hashlib.md5(data).hexdigest()
        fetched.path.unlink()
    folder.put("empty.mp4", b"")
    assert fetch_failure(Source("s3://bucket/in/empty.mp4"), tmp_path) == ErrorCode.SOURCE_EMPTY
    assert fetch_failure(Source("s3://bucket/in/absent.mp4"), tmp_path) == ErrorCode.SOURCE_UNREADABLE
    assert fetch_failure(Source("s3://bucket/in"), tmp_path) == ErrorCode.SOURCE_UNREADABLE
    s3.faults(1.0)
    monkeypatch.setattr(object_store, "LONGEST_DELAY_S", 0.01)
    assert fetch_failure(Source("s3://bucket/in/b.mp4"), tmp_path) == ErrorCode.STORAGE_ERROR
    assert list(tmp_path.iterdir()) == []


def fetch_failure(source: Source, scratch: Path) -> ErrorCode:
    with pytest.raises(ClipError) as caught:
        fetch_source(source, scratch)
    return caught.value.code


class Web(BaseHTTPRequestHandler):
    """/ranges serves parts, /whole never does; both interrupt one of their answers in the middle."""

    data = os.urandom(1_000_000)
    gets: ClassVar[dict[str, int]] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        kind = self.path.split("?")[0].strip("/").removesuffix(".mp4")
        if kind not in ("ranges", "whole", "empty"):
            self.send_error({"secret": 403, "bad": 500}.get(kind, 404))
            return
        body, status = b"" if kind == "empty" else self.data, 200
        if kind == "ranges" and "Range" in self.headers:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            body, status = body[int(first) : int(last) + 1 if last else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{len(self.data)}")
        self.end_headers()
        if self.command == "GET":
            self.gets[kind] = self.gets.get(kind, 0) + 1
            breaks = self.gets[kind] == {"ranges": 3, "whole": 2}.get(kind)
            self.wfile.write(body[: len(body) // 2] if breaks else body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def web() -> Iterator[str]:
    Web.gets.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("kind", ["ranges", "whole"])
def test_the_web(web: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(object_store, "LONGEST_DELAY_S", 0.002)
    monkeypatch.setattr(fetching, "READ_AHEAD", 200_000)
    monkeypatch.setattr(fetching, "CHUNK", 100_000)
    (source,) = expand_sources([f"{web}/{kind}.mp4?a=*"])
    assert source == Source(f"{web}/{kind}.mp4?a=*")
    fetched = fetch_source(source, tmp_path)
    assert fetched.path.read_bytes() == Web.data
    assert fetched.sha256 == hashlib.sha256(Web.data).hexdigest()
    assert Web.gets[kind] >= 3, "the broken answer was met"
    fetched.path.unlink()
    assert fetch_failure(Source(f"{web}/absent.mp4"), tmp_path) == ErrorCode.SOURCE_UNREADABLE
    assert fetch_failure(Source(f"{web}/secret.mp4"), tmp_path) == ErrorCode.SOURCE_UNREADABLE
    assert fetch_failure(Source(f"{web}/empty.mp4"), tmp_path) == ErrorCode.SOURCE_EMPTY
    assert fetch_failure(Source(f"{web}/bad.mp4"), tmp_path) == ErrorCode.STORAGE_ERROR
    assert fetch_failure(Source("http://127.0.0.1:9/x.mp4"), tmp_path) == ErrorCode.STORAGE_ERROR
    assert list(tmp_path.iterdir()) == []


def test_local_bytes_are_hashed_in_place(tree: Path, tmp_path: Path) -> None:
    source = next(expand_sources([str(tree / "b.mp4")]))
    fetched = fetch_source(source, tmp_path)
    assert fetched.path == tree / "b.mp4"
    assert fetched.sha256 == hashlib.sha256(b"b.mp4").hexdigest()
    assert (fetched.size, fetched.stamp) == (source.size, source.stamp)
    carried = fetch_source(Source("memory://x", 3, "s", {}, b"abc"), tmp_path)
    assert (carried.path.read_bytes(), carried.size, carried.stamp) == (b"abc", 3, "s")


def test_what_is_no_readable_file_fails_with_a_code(tree: Path, tmp_path: Path) -> None:
    os.mkfifo(tree / "fifo.mp4")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket.mp4"))
        sources = list(expand_sources([str(tree), str(tree / "fifo.mp4")]))
        assert [source.size for source in sources if "fifo" in source.uri] == [None, None]
        for name in ("fifo.mp4", "socket.mp4", "absent.mp4", "a", "nul\0.mp4", "x" * 300):
            assert fetch_failure(Source(str(tree / name)), tmp_path) == ErrorCode.SOURCE_UNREADABLE, name
    assert fetch_failure(Source("/dev/null"), tmp_path) == ErrorCode.SOURCE_UNREADABLE
    assert fetch_failure(Source("nonsense://x"), tmp_path) == ErrorCode.SOURCE_UNREADABLE
    (tree / "empty.mp4").touch()
    assert fetch_failure(Source(str(tree / "empty.mp4")), tmp_path) == ErrorCode.SOURCE_EMPTY
    assert (tree / "empty.mp4").exists(), "the user's own file stays"


def test_scratch_removes_what_the_killed_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VDOT_SCRATCH", str(tmp_path / "scratch"))
    code = "import os; from pipeline.storage.scratch import Scratch; scratch = Scratch(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    (orphan,) = (tmp_path / "scratch").iterdir()
    (tmp_path / "scratch/vdot-mine-keep").mkdir()
    with Scratch() as first, Scratch() as second:
        assert not orphan.exists()
        assert first.path.is_dir()
        assert second.path.is_dir()
        (first.path / "file").touch()
    assert [path.name for path in (tmp_path / "scratch").iterdir()] == ["vdot-mine-keep"]
