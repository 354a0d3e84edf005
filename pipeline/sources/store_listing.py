"""So that a folder of a store is listed with every name in it, a page at a time, and to an end whatever is answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from pipeline.storage.object_store import StorageError, protocols, retried, stamp_of

# A store may answer with an empty page when it has much to skip, but not for ever.
MOST_IDLE_PAGES = 100


class Entry(NamedTuple):
    """What lies in a folder: its path in the filesystem (a folder's without the slash that ends it), what it is, its
    size in bytes and its stamp, None for a folder."""

    path: str
    is_folder: bool
    size: int | None = None
    stamp: str | None = None


class _Page(NamedTuple):
    """One answer of a store: keys, what more keys share up to their next slash, and what to ask with next."""

    objects: list[dict[str, Any]]
    prefixes: list[str]
    token: str | None


def entries(fs: Any, folder: str) -> Iterator[Entry]:
    """What lies right in a folder, sorted by name (page by page); nothing if there is no such folder.

    In S3 and GCS all keys are listed, those with `//` or a slash in front too: there `folder` and one slash are what
    the keys in it begin with, so `bucket/` holds `bucket//a`. They are listed in pages, however flat the bucket; any
    other store's folder is one listing in memory. Raises PermissionError, and StorageError when the store keeps
    failing or its pages do not end.
    """
    pages = next((_PAGES[name] for name in sorted(protocols(fs)) if name in _PAGES), None)
    bucket = fs.split_path(folder)[0] if pages is not None else ""
    if pages is None or not bucket:
        return _listed(fs, folder)
    return _paged(fs, bucket, folder, pages)


def _paged(fs: Any, bucket: str, folder: str, ask: Callable[[Any, str, str, str | None], _Page]) -> Iterator[Entry]:
    prefix = f"{folder[len(bucket) + 1 :]}/" if len(folder) > len(bucket) else ""
    token: str | None = None
    tokens: set[str] = set()
    before: list[Entry] = []
    idle = 0
    while True:
        try:
            page = retried(f"listing {folder}", partial(ask, fs, bucket, prefix, token))
        except FileNotFoundError:
            return
        listed = _entries_of(bucket, page)
        idle = 0 if listed and listed != before else idle + 1
        if idle == 0:
            yield from listed
        token, before = page.token, listed
        if not token:
            return
        if token in tokens or idle > MOST_IDLE_PAGES:
            raise StorageError(f"listing {folder}: the store gives the same page of names again and again")
        tokens.add(token)


def _entries_of(bucket: str, page: _Page) -> list[Entry]:
    listed = [
        Entry(f"{bucket}/{item['Key']}", False, item["Size"], stamp_of(item))
        for item in page.objects
        # An empty object named like a folder is its marker; one with bytes is somebody's file.
        if not item["Key"].endswith("/") or item["Size"]
    ]
    listed += [Entry(f"{bucket}/{prefix.removesuffix('/')}", True) for prefix in page.prefixes]
    return _by_path(listed)


def _by_path(listed: Iterable[Entry]) -> list[Entry]:
    return sorted(listed, key=lambda entry: entry.path)


def _s3_page(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    """s3fs itself would hold the descriptions of a million keys at once."""
    options = fs.req_kw if token is None else fs.req_kw | {"ContinuationToken": token}
    page = fs.call_s3("list_objects_v2", Bucket=bucket, Delimiter="/", Prefix=prefix, **options)
    token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
    if page.get("IsTruncated") and not token:
        raise StorageError(f"listing {bucket}/{prefix}: the store has more names and does not say how to get them")
    return _Page(page.get("Contents", []), [item["Prefix"] for item in page.get("CommonPrefixes", [])], token)


def _gcs_page(fs: Any, bucket: str, prefix: str, token: str | None) -> _Page:
    """gcsfs itself would take `raw//` for `raw`."""
    options = {"prefix": prefix or None, "pageToken": token}
    page = fs.call("GET", "b/{}/o", bucket, delimiter="/", json_out=True, **options)
    objects = [item | {"Key": item["name"], "Size": int(item.get("size", 0))} for item in page.get("items", [])]
    return _Page(objects, page.get("prefixes", []), page.get("nextPageToken"))


_PAGES = {"s3": _s3_page, "gs": _gcs_page}


def _listed(fs: Any, folder: str) -> Iterator[Entry]:
    """A folder as fsspec lists it; a folder without a name (`folder//a`), which it takes for `folder`, by search."""
    if folder.endswith("/") and folder.strip("/"):
        yield from _searched(fs, f"{folder}/")
        return
    try:
        infos = retried(f"listing {folder}", lambda: fs.ls(folder, detail=True))
    except FileNotFoundError:
        return
    # Not the descriptions themselves, which take a kilobyte each. A file named like a folder is its marker.
    listed = _by_path(
        _entry_of(info) for info in infos if info["type"] == "directory" or not info["name"].endswith("/")
    )
    yield from (entry for entry in listed if entry.path != folder)
    if any(entry.is_folder and entry.path == folder for entry in listed):
        yield from _searched(fs, f"{folder}//")


def _searched(fs: Any, prefix: str) -> list[Entry]:
    """The files, at any depth, that are named so from the beginning."""
    folder = prefix.rstrip("/")
    try:
        infos = retried(f"listing {folder}", lambda: fs.find(folder, detail=True))
    except FileNotFoundError:
        return []
    return _by_path(
        _entry_of(info)
        for name, info in infos.items()
        if name.startswith(prefix) and info["type"] != "directory" and not name.endswith("/")
    )


def _entry_of(info: dict[str, Any]) -> Entry:
    if info["type"] == "directory":
        return Entry(info["name"].rstrip("/"), True)
    return Entry(info["name"], False, info["size"], stamp_of(info))
