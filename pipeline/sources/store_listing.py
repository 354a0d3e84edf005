"""Lists every name in a folder of a store, page by page, and ends whatever the store answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from pipeline.storage.object_store import StorageError, protocols, retry, stamp_of

# A store may answer with an empty page when it has much to skip, but not forever.
MAX_IDLE_PAGES = 100


class Entry(NamedTuple):
    """A file or folder in a folder: its path in the filesystem (a folder's without its final slash), and of a file the
    size in bytes and the stamp."""

    path: str
    is_folder: bool
    size: int | None = None
    stamp: str | None = None


class _Page(NamedTuple):
    """One answer of a store: keys, prefixes shared by more keys up to their next slash, a token for the next page."""

    objects: list[dict[str, Any]]
    prefixes: list[str]
    token: str | None


def list_entries(fs: Any, folder: str) -> Iterator[Entry]:
    """The files and folders directly in a folder, sorted by name (page by page); nothing if there is no such folder.

    In S3 and GCS all keys are listed, including those with `//` or a leading slash: the keys in a folder begin with
    `folder` and one slash, so `bucket/` holds `bucket//a`. They are listed in pages, however flat the bucket; in any
    other store a folder is one listing in memory. Raises PermissionError, and StorageError when the store keeps
    failing or its pages do not end.
    """
    fetch_page = next((_PAGES[name] for name in sorted(protocols(fs)) if name in _PAGES), None)
    bucket = fs.split_path(folder)[0] if fetch_page is not None else ""
    if fetch_page is None or not bucket:
        return _list_folder(fs, folder)
    return _list_pages(fs, bucket, folder, fetch_page)


def _list_pages(
    fs: Any, bucket: str, folder: str, fetch_page: Callable[[Any, str, str, str | None], _Page]
) -> Iterator[Entry]:
    prefix = f"{folder[len(bucket) + 1 :]}/" if len(folder) > len(bucket) else ""
    token: str | None = None
    tokens: set[str] = set()
    previous: list[Entry] = []
    idle = 0
    while True:
        try:
            page = retry(f"listing {folder}", partial(fetch_page, fs, bucket, prefix, token))
        except FileNotFoundError:
            return
        listed = _page_entries(bucket, page)
        idle = 0 if listed and listed != previous else idle + 1
        if idle == 0:
            yield from listed
        token, previous = page.token, listed
        if not token:
            return
        if token in tokens or idle > MAX_IDLE_PAGES:
            raise StorageError(f"listing {folder}: the store keeps returning the same page of names")
        tokens.add(token)


def _page_entries(bucket: str, page: _Page) -> list[Entry]:
    listed = [
        Entry(f"{bucket}/{item['Key']}", False, item["Size"], stamp_of(item))
        for item in page.objects
        # An empty object named like a folder is its marker; one with bytes is a file.
        if not item["Key"].endswith("/") or item["Size"]
    ]
    listed += [Entry(f"{bucket}/{prefix.removesuffix('/')}", True) for prefix in page.prefixes]
    return _sort_by_path(listed)


def _sort_by_path(listed: Iterable[Entry]) -> list[Entry]:
    return sorted(listed, key=lambda entry: entry.path)


def _fetch_s3_page(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    """s3fs itself would hold the descriptions of a million keys at once."""
    options = fs.req_kw if token is None else fs.req_kw | {"ContinuationToken": token}
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Delimiter="/", Prefix=prefix, **options)
    token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
    if page.get("IsTruncated") and not token:
        raise StorageError(f"listing {bucket}/{prefix}: the store has more names, but sent no token to get them")
    return _Page(page.get("Contents", []), [item["Prefix"] for item in page.get("CommonPrefixes", [])], token)


def _fetch_gcs_page(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    """gcsfs itself would take `raw//` for `raw`."""
    options = {"prefix": prefix or None, "pageToken": token}
    page = fs.call("GET", "b/{}/o", bucket, delimiter="/", json_out=True, **options)
    objects = [item | {"Key": item["name"], "Size": int(item.get("size", 0))} for item in page.get("items", [])]
    return _Page(objects, page.get("prefixes", []), page.get("nextPageToken"))


_PAGES = {"s3": _fetch_s3_page, "gs": _fetch_gcs_page}


def _list_folder(fs: Any, folder: str) -> Iterator[Entry]:
    """A folder as fsspec lists it; one without a name (`folder//a`), which fsspec takes for `folder`, by search."""
    if folder.endswith("/") and folder.strip("/"):
        yield from _find_files(fs, f"{folder}/")
        return
    try:
        infos = retry(f"listing {folder}", lambda: fs.ls(folder, detail=True))
    except FileNotFoundError:
        return
    # Not the descriptions themselves, which take 1 kB each. A file named like a folder is its marker.
    listed = _sort_by_path(
        _make_entry(info) for info in infos if info["type"] == "directory" or not info["name"].endswith("/")
    )
    yield from (entry for entry in listed if entry.path != folder)
    if any(entry.is_folder and entry.path == folder for entry in listed):
        yield from _find_files(fs, f"{folder}//")


def _find_files(fs: Any, prefix: str) -> list[Entry]:
    """The files, at any depth, whose path begins with `prefix`."""
    folder = prefix.rstrip("/")
    try:
        infos = retry(f"listing {folder}", lambda: fs.find(folder, detail=True))
    except FileNotFoundError:
        return []
    return _sort_by_path(
        _make_entry(info)
        for name, info in infos.items()
        if name.startswith(prefix) and info["type"] != "directory" and not name.endswith("/")
    )


def _make_entry(info: dict[str, Any]) -> Entry:
    if info["type"] == "directory":
        return Entry(info["name"].rstrip("/"), True)
    return Entry(info["name"], False, info["size"], stamp_of(info))
