"""So that files, folders, globs, URLs and manifests become one stream of sources with one form of name."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import RunError, UsageError
from pipeline.sources import manifests
from pipeline.sources.globbing import Test, is_video, parse_glob, walk_local, walk_remote
from pipeline.storage.object_store import (
    KEYED,
    WEB,
    AnswerError,
    StorageError,
    filesystem,
    retried,
    split_authority,
    stamp_of,
)

# memory:// lives in one process, so its bytes travel with the row to the workers.
MOST_CARRIED_BYTES = 256 * 10**6

T = TypeVar("T")

_SYNONYMS = {"s3a": "s3", "gcs": "gs"}
_URL = re.compile("[A-Za-z][A-Za-z0-9+.:-]*://")


@dataclass(frozen=True)
class Source:
    """One video file as the user gave it.

    `uri` is an absolute path or a URL; `size` in bytes and `stamp` (etag, or mtime in ns) are None where only
    another request would tell; `manifest` holds the other columns of the manifest's row; `content` the bytes
    of a source that workers cannot reach.
    """

    uri: str
    size: int | None = None
    stamp: str | None = None
    manifest: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def expand_sources(arguments: Iterable[str], exclude: str | None = None) -> Iterator[Source]:
    """The sources behind what the user gave, in order, never all in memory; a URI given twice comes twice.

    `exclude` is a manifest of URIs to leave out. Raises UsageError, when the iteration gets there, for an
    argument that names nothing, and RunError when a store keeps failing.
    """
    left_out: set[bytes] = set()
    if exclude is not None:
        uri = normalise(exclude)
        if not manifests.is_manifest(uri):
            raise UsageError(f"{exclude} is not a manifest: expected {manifests.SUFFIXES}")
        left_out = {_digest(normalise(row, _folder(uri))) for row, _ in manifests.rows(uri)}
    for argument in arguments:
        for source in _named(argument):
            if not left_out or _digest(source.uri) not in left_out:
                yield source


def normalise(text: str, base: str | None = None) -> str:
    """The one form of a path or URL: absolute, without `file://`, its protocol's first name in small letters.

    A relative path counts from the folder `base` (a path or URL), from the current one without it. What follows a
    bucket is a key, of which every character counts, and a URL of the web keeps all but its fragment.
    """
    if not _URL.match(text):
        if base is not None and "://" in base and not text.startswith("/"):
            return normalise(_joined(base, text))
        return _absolute(f"{base}/{text}" if base is not None and not text.startswith("/") else text)
    protocol, _, rest = text.partition("://")
    protocol = _SYNONYMS.get(protocol.lower(), protocol.lower())
    if protocol in ("file", "local"):
        return _absolute(rest)
    if protocol in WEB:
        return f"{protocol}://{_of_the_web(rest)}"
    return f"{protocol}://{rest.lstrip('/') if protocol in ('s3', 'gs', 'memory') else rest}"


def _of_the_web(rest: str) -> str:
    rest = re.sub("[\t\r\n]", "", rest).partition("#")[0]  # line ends as browsers read them
    authority, target = split_authority(rest)
    login, at, host = authority.rpartition("@")
    return f"{login}{at}{host.lower()}{target}"


def _joined(base: str, text: str) -> str:
    """A relative name in a folder of a store or the web: `.` and `..` lead about, an empty part is a name like others.

    None leads out of the bucket or the host.
    """
    protocol, _, folder = base.partition("://")
    # A query is the server's business.
    path = re.split("[?#]", text, maxsplit=1)[0] if protocol in WEB else text
    parts = folder.split("/")
    for part in path.split("/"):
        if part == "..":
            del parts[max(len(parts) - 1, 1) :]
        elif part != ".":
            parts.append(part)
    return f"{protocol}://{'/'.join(parts)}{text[len(path) :]}"


def _absolute(path: str) -> str:
    # POSIX keeps two leading slashes apart from one; no system that runs this does.
    return re.sub("^//", "/", os.path.abspath(path))  # noqa: PTH100


def _digest(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(errors="surrogateescape"), digest_size=16).digest()


def _folder(uri: str) -> str:
    protocol, separator, path = uri.partition("://") if "://" in uri else ("", "", uri)
    if protocol in WEB:
        path = path.partition("?")[0]
    folder = path.rpartition("/")[0]
    return f"{protocol}{separator}{folder}" or "/"


def _named(argument: str) -> Iterator[Source]:
    if not argument.strip():
        raise UsageError("a source's name is empty")
    uri = normalise(argument)
    try:
        yield from _remote(argument, uri) if "://" in uri else _local(argument, uri)
    except AnswerError as error:
        raise UsageError(f"{argument} cannot be listed: {error}") from error
    except StorageError as error:
        raise RunError(f"{argument} cannot be listed: {error}") from error
    except PermissionError as error:
        raise UsageError(f"{argument} cannot be listed: {error}") from error


def _local(argument: str, path: str) -> Iterator[Source]:
    if Path(path).is_dir():
        yield from _some(f"no video file in the folder {argument}", _walk_local(path, is_video))
    elif os.path.lexists(path):
        yield from _rows_or(_local_source(path))
    elif has_magic(path):
        for source in _some(f"no file matches {argument}", _walk_local(*parse_glob(argument, path))):
            yield from _rows_or(source)
    else:
        raise UsageError(f"{argument} does not exist")


def _walk_local(root: str, wanted: Test, *enter: Test) -> Iterator[Source]:
    if Path(root).is_dir():
        yield from map(_local_source, walk_local(root, wanted, *enter))


def _remote(argument: str, uri: str) -> Iterator[Source]:
    fs, path = filesystem(uri)
    protocol = uri.partition("://")[0]
    if protocol in WEB:
        yield from _rows_or(Source(uri))
        return
    trimmed = uri if uri.endswith("://") else uri.rstrip("/")
    # A filesystem's own paths leave out the protocol and, for some, the host: what stands before them.
    before = trimmed.removesuffix(path) if path and trimmed.endswith(path) else f"{protocol}://"

    def walk(root: str, wanted: Test, *enter: Test) -> Iterator[Source]:
        for entry in walk_remote(fs, root, wanted, *enter):
            yield _remote_source(normalise(before + entry.path), entry.size, entry.stamp)

    nothing = f"no video file in the folder {argument}"
    if protocol in KEYED and path.endswith("/"):  # s3fs would leave out the slash, and more than this one
        yield from _some(nothing, walk(path.removesuffix("/"), is_video))
        return
    info = _described(fs, uri, path)
    if info is None and has_magic(path):
        for source in _some(f"no file matches {argument}", walk(*parse_glob(argument, path))):
            yield from _rows_or(source)
    elif info is None:
        raise UsageError(f"{argument} does not exist")
    elif info["type"] == "directory":
        yield from _some(nothing, walk(path, is_video))
    else:
        yield from _rows_or(_remote_source(uri, info["size"], stamp_of(info)))


def _described(fs: Any, uri: str, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = retried(f"looking for {uri}", lambda: fs.info(path))
    except FileNotFoundError:
        return None
    return info


def _some(sentence: str, items: Iterator[T]) -> Iterator[T]:
    first = next(items, None)
    if first is None:
        raise UsageError(sentence)
    yield first
    yield from items


def _rows_or(source: Source) -> Iterator[Source]:
    """The rows of a manifest that the user named; else the file itself, whatever its suffix."""
    if not manifests.is_manifest(source.uri):
        yield source
        return
    for text, columns in _some(f"the manifest {source.uri} lists no source", manifests.rows(source.uri)):
        uri = normalise(text, _folder(source.uri))
        if "://" not in uri:
            yield _local_source(uri, columns)
        elif uri.startswith("memory://"):
            yield _carried(uri, columns)
        else:
            yield Source(uri, manifest=columns)


def _local_source(path: str, columns: dict[str, str] | None = None) -> Source:
    try:
        path.encode()
    except UnicodeEncodeError:  # no catalog can hold it: what can be read of it fails as a source, with a code
        return Source(os.fsencode(path).decode(errors="backslashreplace"), manifest=columns or {})
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # missing, or no possible name: it fails as a source, with a code
        return Source(path, manifest=columns or {})
    if not stat.S_ISREG(status.st_mode):
        return Source(path, manifest=columns or {})
    return Source(path, status.st_size, str(status.st_mtime_ns), columns or {})


def _remote_source(uri: str, size: int | None, stamp: str | None) -> Source:
    return _carried(uri, {}) if uri.startswith("memory://") else Source(uri, size, stamp)


def _carried(uri: str, columns: dict[str, str]) -> Source:
    fs, path = filesystem(uri)
    info = _described(fs, uri, path)
    if info is None:
        return Source(uri, manifest=columns)
    if info["size"] > MOST_CARRIED_BYTES:
        raise UsageError(f"{uri} is too large to carry to the workers ({info['size']} bytes): write it to a file")
    return Source(uri, info["size"], stamp_of(info), columns, fs.cat_file(path))
