"""Tests keys of a store: each is listed under a URI that reads back the same key, and every listing ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ClipError, ErrorCode, RunError, UsageError
from pipeline.sources import store_listing
from pipeline.sources.expand import Source, expand_sources, normalise
from pipeline.sources.fetch import fetch_source
from pipeline.sources.globbing import is_video, walk_remote
from pipeline.storage.object_store import StorageError, filesystem

# Parts of keys that some parsers misread; "" makes `//`.
PARTS = ["", "a", ".", "..", " a b", "%2F", "a#b?c=d", "p+q&<'\">", "[x]*", "ü😀~\\", "x::y"]


def keys() -> list[str]:
    """Every combination of up to two parts, and of three of the worst."""
    worst = itertools.product(["", "a", "http:"], repeat=3)
    combinations = [*itertools.product(PARTS), *itertools.product(PARTS, PARTS), *worst]
    # With "v", because a file named `.mp4` has no suffix.
    return [f"{'/'.join(parts)}v.mp4" for parts in combinations]


@pytest.fixture(scope="module")
def bucket(module_s3: Any) -> str:
    """A bucket full of odd keys, each with itself as its bytes."""
    store = fsspec.filesystem("s3")
    for key in keys():
        store.call_s3("put_object", Bucket=module_s3.bucket, Key=key, Body=key.encode())
    for marker in ("", "a/", "a//", "..//", "empty/"):
        store.call_s3("put_object", Bucket=module_s3.bucket, Key=f"{marker}/", Body=b"")
    return str(module_s3.bucket)


def read_content(source: Source, scratch: Path) -> str:
    fetched = fetch_source(source, scratch)
    text = fetched.path.read_text()
    fetched.discard()
    return text


def list_uris(*arguments: str) -> list[str]:
    return [source.uri for source in expand_sources(arguments)]


def test_every_key_of_a_bucket_comes_once_and_reads_back_as_itself(bucket: str, tmp_path: Path) -> None:
    sources = list(expand_sources([f"s3://{bucket}"]))
    assert sorted(source.uri for source in sources) == sorted(f"s3://{bucket}/{key}" for key in keys())
    for source in sources:
        key = source.uri.removeprefix(f"s3://{bucket}/")
        assert read_content(source, tmp_path) == key
        assert normalise(source.uri) == source.uri
    for source in sources[::3]:
        assert list(expand_sources([source.uri])) == [source], "named alone it is the same source, stamp and all"


@pytest.mark.parametrize("folder", ["", "/", "//", "a/", "a//", "../", "[x]*/", "a#b?c=d/", "x::y/", "http://"])
def test_a_folder_is_what_its_name_and_a_slash_begin(bucket: str, folder: str) -> None:
    expected = sorted(f"s3://{bucket}/{key}" for key in keys() if key.startswith(folder))
    assert sorted(list_uris(f"s3://{bucket}/{folder}")) == expected
    if not folder.removesuffix("/").endswith("/") and folder.strip("/"):
        below = folder.removesuffix("/")
        assert sorted(list_uris(f"s3://{bucket}/{below}")) == expected, "the slash may be left out"


@pytest.mark.parametrize(
    ("glob", "matches"),
    [
        ("*", lambda key: "/" not in key),
        ("/*", lambda key: key.startswith("/") and key.count("/") == 1),
        ("//*", lambda key: key.startswith("//") and key.count("/") == 2),
        ("a/*", lambda key: key.startswith("a/") and key.count("/") == 1),
        ("a//*.mp4", lambda key: key.startswith("a//") and key.count("/") == 2),
        ("**", lambda key: True),
        ("a/**", lambda key: key.startswith("a/")),
        ("**/av.mp4", lambda key: key == "av.mp4" or key.endswith("/av.mp4")),
        ("*/av.mp4", lambda key: key.endswith("/av.mp4") and key.count("/") == 1 and not key.startswith("/")),
        ("http://?v.mp4", lambda key: key == "http://av.mp4"),
    ],
)
def test_globs_over_odd_keys(bucket: str, glob: str, matches: Any) -> None:
    assert sorted(list_uris(f"s3://{bucket}/{glob}")) == sorted(
        f"s3://{bucket}/{key}" for key in keys() if matches(key)
    )


@pytest.mark.parametrize("folder", ["", "/", "m", "m/", "m//", "..", "m/..", "m/%2F", "m#?"])
def test_rows_of_a_manifest_count_from_its_own_folder(bucket: str, folder: str, tmp_path: Path) -> None:
    store = fsspec.filesystem("s3")
    # One slash follows the folder's name, whatever the name ends with; for the bucket itself there is none.
    prefix = f"{folder}/" if folder else ""
    rows = {"in.mp4": "in.mp4", "./in.mp4": "in.mp4", "sub//in.mp4": "sub//in.mp4", "/in.mp4": None}
    rows |= {"sub/../in.mp4": "in.mp4", "a%2Fb #?.mp4": "a%2Fb #?.mp4", f"s3://{bucket}/http://av.mp4": None}
    for name in {name for name in rows.values() if name is not None}:
        store.call_s3("put_object", Bucket=bucket, Key=f"{prefix}{name}", Body=name.encode())
    text = "\n".join(row for row in rows if not row.startswith("/"))
    store.call_s3("put_object", Bucket=bucket, Key=f"{prefix}list.txt", Body=text.encode())
    sources = list(expand_sources([f"s3://{bucket}/{prefix}list.txt"]))
    expected = [name for row, name in rows.items() if name is not None]
    assert [source.uri for source in sources] == [f"s3://{bucket}/{prefix}{name}" for name in expected] + [
        f"s3://{bucket}/http://av.mp4"
    ]
    assert [read_content(source, tmp_path) for source in sources] == [*expected, "http://av.mp4"]
    store.rm_file(f"{bucket}/{prefix}list.txt")
    for name in set(expected):
        store.call_s3("delete_object", Bucket=bucket, Key=f"{prefix}{name}")


part = st.text(st.sampled_from("ab é%[]*?#+:.\n\\"), max_size=4)


@given(parts=st.lists(part, min_size=1, max_size=5))
def test_a_key_is_its_uri_whatever_it_is_made_of(parts: list[str]) -> None:
    key = "/".join(parts)
    uri = f"s3://bucket/{key}"
    assert normalise(uri) == normalise(f"S3A://bucket/{key}") == normalise(uri, "s3://other/folder") == uri
    _, path = filesystem(uri)
    assert path == f"bucket/{key}"


def test_a_key_that_cannot_be_addressed_is_one_sentence_and_never_another_object(
    module_s3: Any, tmp_path: Path
) -> None:
    store = fsspec.filesystem("s3")
    for key in ("odd/v", "odd/v?versionId=3.mp4", "odd/dir.mp4/", "odd/dir.mp4"):
        store.call_s3("put_object", Bucket=module_s3.bucket, Key=key, Body=key.encode())
    sources = {source.uri.rpartition("odd/")[2]: source for source in expand_sources([f"{module_s3.url}/odd"])}
    assert set(sources) == {"dir.mp4", "dir.mp4/", "v?versionId=3.mp4"}
    assert read_content(sources["dir.mp4"], tmp_path) == "odd/dir.mp4"
    for name, message in (("dir.mp4/", "ends in a slash"), ("v?versionId=3.mp4", "if .versionId= is part of the key")):
        with pytest.raises(ClipError, match=message) as caught:
            fetch_source(sources[name], tmp_path)
        assert caught.value.code in (ErrorCode.SOURCE_UNREADABLE, ErrorCode.STORAGE_ERROR)
    for key in ("odd/v", "odd/v?versionId=3.mp4", "odd/dir.mp4/", "odd/dir.mp4"):
        store.call_s3("delete_object", Bucket=module_s3.bucket, Key=key)


def test_what_is_not_there_is_one_sentence(module_s3: Any) -> None:
    for name in ("absent", "absent//", "/absent", "absent/x.mp4", "//"):
        with pytest.raises(UsageError, match=r"does not exist|no video file"):
            list_uris(f"s3://nowhere/{name}")
    with pytest.raises(UsageError, match="does not exist"):
        list_uris(f"{module_s3.url}/absent//x.mp4")


@pytest.fixture
def memory() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    yield store
    for name in [name for name in store.store if name.startswith("/odd/")]:
        del store.store[name]


def test_a_store_that_is_listed_by_fsspec_gives_every_name_too(memory: Any) -> None:
    names = [name for name in keys() if "::" not in name and "://" not in name]  # fsspec reads those as chains
    for name in names:
        memory.pipe_file(f"/odd/{name}", name.encode())
    sources = list(expand_sources(["memory://odd"]))
    assert sorted(source.uri for source in sources) == sorted(f"memory://odd/{name}" for name in names)
    assert all(source.content == source.uri.removeprefix("memory://odd/").encode() for source in sources)
    assert list_uris("memory://odd/a//*") == sorted(
        f"memory://odd/{name}" for name in names if name.startswith("a//") and name.count("/") == 2
    )
    assert list_uris("memory://odd//av.mp4") == ["memory://odd//av.mp4"]


class FakeStore:
    """A store with answers that a real one should never give; it speaks GCS, for which there is no test server."""

    protocol = ("gs", "gcs")

    def __init__(self, page: Any) -> None:
        self.page, self.calls = page, 0

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def call(self, method: str, path: str, bucket: str, **parameters: Any) -> dict[str, Any]:
        self.calls += 1
        assert self.calls < 2000, "the listing does not end"
        response: dict[str, Any] = self.page(self.calls, **parameters)
        return response


def gcs_pages(*names: str) -> Any:
    """The pages of a bucket with these keys, two names per page, as in the JSON API."""

    def page(_: int, prefix: str | None, delimiter: str, pageToken: str | None, **__: Any) -> dict[str, Any]:
        heads: dict[str, bool] = {}
        for name in sorted(names):
            if name.startswith(prefix or ""):
                head, slash, _rest = name[len(prefix or "") :].partition(delimiter)
                heads[f"{prefix or ''}{head}{slash}"] = bool(slash)
        start = int(pageToken or 0)
        page_entries = list(heads.items())[start : start + 2]
        response: dict[str, Any] = {"nextPageToken": str(start + 2)} if start + 2 < len(heads) else {}
        prefixes = [name for name, is_prefix in page_entries if is_prefix]
        items = [{"name": name, "size": "3", "etag": f"e-{name}"} for name, is_prefix in page_entries if not is_prefix]
        return response | ({"prefixes": prefixes} if prefixes else {}) | ({"items": items} if items else {})

    return page


def test_gcs_gives_every_key_too() -> None:
    names = keys()
    entries = list(walk_remote(FakeStore(gcs_pages(*names)), "bucket", is_video))
    assert sorted(entry.path for entry in entries) == sorted(f"bucket/{name}" for name in names)
    assert all((entry.size, entry.stamp) == (3, f"e-{entry.path.removeprefix('bucket/')}") for entry in entries)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (lambda n, **_: {"items": [{"name": "raw/a.mp4"}], "nextPageToken": "same"}, "same page"),
        (lambda n, **_: {"items": [{"name": "raw/a.mp4"}], "nextPageToken": str(n)}, "same page"),
        (lambda n, **_: {"items": [{"name": f"raw/{n}.mp4"}], "nextPageToken": str(n % 5)}, "same page"),
        (lambda n, **_: {"nextPageToken": str(n)}, "same page"),
        (lambda n, **_: {"prefixes": ["raw/"]}, "impossible folder"),
        (lambda n, **_: {"prefixes": ["other/"]}, "impossible folder"),
        (lambda n, **_: {"prefixes": [""]}, "impossible folder"),
        (lambda n, prefix, **_: {"prefixes": [f"{prefix}{'deeper' * 10}/"]}, "impossible folder"),
    ],
)
def test_a_listing_ends_whatever_the_store_answers(page: Any, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        list(walk_remote(FakeStore(page), "bucket/raw", is_video))


def test_empty_pages_on_the_way_are_fine() -> None:
    pages: list[dict[str, Any]] = [{"nextPageToken": str(n)} for n in range(store_listing.MAX_IDLE_PAGES - 1)]
    pages.append({"items": [{"name": "raw/a.mp4"}]})
    (entry,) = walk_remote(FakeStore(lambda n, **_: pages[n - 1]), "bucket/raw", is_video)
    assert entry.path == "bucket/raw/a.mp4"


def test_a_store_that_stays_odd_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    store = FakeStore(lambda n, **_: {"prefixes": ["raw/"]})
    monkeypatch.setattr("pipeline.sources.expand.filesystem", lambda uri: (store, "bucket/raw/"))
    with pytest.raises(RunError, match=r"gs://bucket/raw/ cannot be listed: .* impossible folder"):
        list_uris("gs://bucket/raw/")
