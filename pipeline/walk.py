"""So that folders and globs, on a disk or in a store, are listed lazily, in order, and never in circles."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from glob import has_magic
from pathlib import PurePosixPath
from typing import Any

from fsspec.utils import glob_translate

from pipeline.errors import UsageError
from pipeline.remote import protocols, retried, stamp_of

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".3g2", ".3gp", ".avi", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv",
))
# fmt: on

Test = Callable[[str], bool]
# The path in its filesystem, whether it is a folder, the size in bytes, the stamp.
Found = tuple[str, bool, int | None, str | None]


def is_video(path: str) -> bool:
    """Whether the suffix is one of a video file."""
    return PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def _always(path: str) -> bool:
    return True


def parse_glob(argument: str, path: str) -> tuple[str, Test, Test]:
    """Of a glob: the folder to walk, which files in it are wanted, which folders on the way can hold any.

    As for a folder, only files with a video's suffix are wanted, unless the glob itself ends in a suffix.
    """
    parts = path.split("/")
    if any("**" in part and part != "**" for part in parts):
        raise UsageError(f"{argument}: ** must be a whole part of a path")
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    root = "/".join(parts[:first]) or "/"
    if root == "/" and not path.startswith("/"):
        raise UsageError(f"{argument}: a glob needs a bucket or host without wildcards")
    whole = re.compile(glob_translate(path))
    each = [re.compile(glob_translate(part)) for part in parts]
    suffix = PurePosixPath(parts[-1]).suffix
    any_suffix = len(suffix) > 1 and not has_magic(suffix)
    deep = parts.index("**") if "**" in parts else len(parts)

    def wanted(file: str) -> bool:
        return whole.match(file) is not None and (any_suffix or is_video(file))

    def enter(folder: str) -> bool:
        *above, name = folder.split("/")
        depth = len(above)
        return depth >= deep or (depth < len(parts) - 1 and each[depth].match(name) is not None)

    return root, wanted, enter


def walk_local(root: str, wanted: Test, enter: Test = _always) -> Iterator[str]:
    """The wanted files under a folder, in sorted order; a link to a folder is followed once and never round.

    Raises PermissionError for a folder that may not be read.
    """
    followed: set[tuple[int, int]] = set()
    stack = [(_identity(os.stat(root)), _scan(root))]  # noqa: PTH116
    while stack:
        entry = next(stack[-1][1], None)
        if entry is None:
            stack.pop()
        elif not _is_folder(entry):
            if wanted(entry.path):
                yield entry.path
        elif enter(entry.path):
            identity = _identity(entry.stat())
            if entry.is_symlink():
                if identity in followed or any(identity == above for above, _ in stack):
                    continue
                followed.add(identity)
            stack.append((identity, _scan(entry.path)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round, or where nobody may look: it fails as a source, with a code
        return False


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def walk_remote(fs: Any, root: str, wanted: Test, enter: Test = _always) -> Iterator[Found]:
    """The wanted files under a folder of a store, in sorted order.

    A folder of S3 is listed a page at a time, however flat the bucket; any other store's folder is one listing in
    memory. Raises PermissionError, and StorageError when the store keeps failing.
    """
    stack = [_list(fs, root)]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif not found[1]:
            if wanted(found[0]):
                yield found
        elif enter(found[0]):
            stack.append(_list(fs, found[0]))


def _list(fs: Any, folder: str) -> Iterator[Found]:
    if "s3" in protocols(fs) and fs.split_path(folder)[0]:
        return _list_s3(fs, folder)
    try:
        infos = retried(f"listing {folder}", lambda: fs.ls(folder, detail=True))
    except FileNotFoundError:
        infos = []
    # Not the descriptions themselves, which take a kilobyte each. A file named like a folder is its marker.
    found = (
        (info["name"].rstrip("/"), info["type"] == "directory", info["size"], stamp_of(info))
        for info in infos
        if info["type"] == "directory" or not info["name"].endswith("/")
    )
    return iter(sorted((entry for entry in found if entry[0] != folder), key=lambda entry: entry[0]))


def _list_s3(fs: Any, folder: str) -> Iterator[Found]:
    """Page by page: s3fs itself would hold the descriptions of a million keys at once."""
    bucket, key, _ = fs.split_path(folder)
    ask = {"Bucket": bucket, "Delimiter": "/", "Prefix": f"{key.rstrip('/')}/" if key else "", **fs.req_kw}
    while True:
        try:
            page = retried(f"listing {folder}", lambda: fs.call_s3("list_objects_v2", **ask))
        except FileNotFoundError:
            return
        found: list[Found] = [
            (f"{bucket}/{info['Key']}", False, info["Size"], stamp_of(info))
            for info in page.get("Contents", [])
            if not info["Key"].endswith("/")
        ]
        found += [
            (f"{bucket}/{info['Prefix'].rstrip('/')}", True, None, None) for info in page.get("CommonPrefixes", [])
        ]
        yield from sorted(found, key=lambda entry: entry[0])
        if not page.get("IsTruncated"):
            return
        ask["ContinuationToken"] = page["NextContinuationToken"]
