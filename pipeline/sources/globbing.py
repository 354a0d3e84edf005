"""Lists folders and globs, on a disk or in a store, lazily, in order, and without cycles."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from glob import has_magic
from pathlib import PurePosixPath
from typing import Any

from fsspec.utils import glob_translate

from pipeline.errors import UsageError
from pipeline.sources.store_listing import Entry, list_entries
from pipeline.storage.object_store import StorageError

# fmt: off
VIDEO_SUFFIXES = frozenset((
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf",
    ".m1v", ".m2p", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mpv", ".mts",
    ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
))
# fmt: on

# The longest path that any store or disk allows (S3: 1024 bytes; Linux: 4096).
MAX_NAME = 4096  # characters

NameTest = Callable[[str], bool]


def is_video(path: str) -> bool:
    """Whether the suffix is one of a video file."""
    return PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def _always(path: str) -> bool:
    return True


def parse_glob(argument: str, path: str) -> tuple[str, NameTest, NameTest]:
    """The folder that a glob walks, a test for wanted files, and one for folders that may hold some.

    As for a folder, only files with a video's suffix are wanted, unless the glob itself ends in a suffix.
    """
    parts = path.split("/")
    if any("**" in part and part != "**" for part in parts):
        raise UsageError(f"{argument}: ** must be a whole part of a path")
    first_magic = next(index for index, part in enumerate(parts) if has_magic(part))
    root = "/".join(parts[:first_magic]) or "/"
    if root == "/" and not path.startswith("/"):
        raise UsageError(f"{argument}: a glob needs a bucket or host without wildcards")
    # ** stands for any folders, including those without a name (`a//b.mp4` in a store).
    pattern = re.compile(glob_translate(path).replace("(?:.+/)?", "(?:.*/)?"))
    part_patterns = [re.compile(glob_translate(part)) for part in parts]
    suffix = PurePosixPath(parts[-1]).suffix
    any_suffix = len(suffix) > 1 and not has_magic(suffix)
    first_deep = parts.index("**") if "**" in parts else len(parts)

    def is_wanted(file: str) -> bool:
        return pattern.match(file) is not None and (any_suffix or is_video(file))

    def may_enter(folder: str) -> bool:
        *above, name = folder.split("/")
        depth = len(above)
        return depth >= first_deep or (depth < len(parts) - 1 and part_patterns[depth].match(name) is not None)

    return root, is_wanted, may_enter


def walk_local(root: str, is_wanted: NameTest, may_enter: NameTest = _always) -> Iterator[str]:
    """The wanted files under a folder, in sorted order; a link to a folder is followed once and never in a cycle.

    Raises PermissionError for a folder that may not be read.
    """
    followed: set[tuple[int, int]] = set()
    stack = [(_identity(os.stat(root)), _scan(root))]  # noqa: PTH116
    while stack:
        entry = next(stack[-1][1], None)
        if entry is None:
            stack.pop()
        elif not _is_folder(entry):
            if is_wanted(entry.path):
                yield entry.path
        elif may_enter(entry.path):
            identity = _identity(entry.stat())
            if entry.is_symlink():
                if identity in followed or any(identity == above for above, _ in stack):
                    continue
                followed.add(identity)
            stack.append((identity, _scan(entry.path)))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link cycle, or a place without access: it fails as a source, with a code
        return False


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _scan(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return iter(sorted(entries, key=lambda entry: entry.name))


def walk_remote(fs: Any, root: str, is_wanted: NameTest, may_enter: NameTest = _always) -> Iterator[Entry]:
    """The wanted files under a folder of a store, in sorted order; `root` as `list_entries` takes it.

    Raises PermissionError, and StorageError when the store keeps failing or answers with folders without end.
    """
    stack = [(root, list_entries(fs, root))]
    while stack:
        folder, remaining = stack[-1]
        entry = next(remaining, None)
        if entry is None:
            stack.pop()
        elif not entry.is_folder:
            if is_wanted(entry.path):
                yield entry
        elif may_enter(entry.path):
            # Each step is one level deeper and the depth is bounded, so the walk ends.
            if not entry.path.startswith(f"{folder.rstrip('/')}/" if folder.strip("/") else "") or (
                len(entry.path) > MAX_NAME
            ):
                raise StorageError(f"listing {folder}: the store lists an impossible folder in it: {entry.path}")
            stack.append((entry.path, list_entries(fs, entry.path)))
