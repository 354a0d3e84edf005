"""Expands files, folders, globs, URLs and manifests into one stream of sources with names in one form."""

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
from pipeline.sources.globbing import NameTest, is_video, parse_glob, walk_local, walk_remote
from pipeline.storage.object_store import (
    KEYED,
    SYNONYMS,
    WEB,
    AnswerError,
    StorageError,
    filesystem,
    retry,
    split_authority,
    stamp_of,
)

# memory:// lives in one process, so its bytes travel with the row to the workers.
MAX_CARRIED_BYTES = 256 * 10**6

T = TypeVar("T")

_URL = re.compile("[A-Za-z][A-Za-z0-9+.:-]*://")


@dataclass(frozen=True)
class Source:
    """One video file that the user named.

    `uri` is an absolute path or a URL; `size` in bytes and `stamp` (etag, or mtime in ns) are None if they would need
    another request; `manifest` holds the other columns of the manifest's row; `content` the bytes of a source that
    workers cannot reach.
    """

    uri: str
    size: int | None = None
    stamp: str | None = None
    manifest: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None


def expand_sources(arguments: Iterable[str], exclude: str | None = None) -> Iterator[Source]:
    """The sources that the arguments name, in order, never all in memory; a URI named twice comes twice.

    `exclude` is a manifest of URIs to leave out. Raises UsageError for an argument that names nothing, when the
    iteration reaches it, and RunError when a store keeps failing.
    """
    excluded: set[bytes] = set()
    if exclude is not None:
        uri = normalise(exclude)
        if not manifests.is_manifest(uri):
            raise UsageError(f"{exclude} is not a manifest: expected {manifests.SUFFIXES}")
        excluded = {_hash_uri(normalise(row, _folder_of(uri))) for row, _ in manifests.read_rows(uri)}
    for argument in arguments:
        for source in _expand_argument(argument):
            if not excluded or _hash_uri(source.uri) not in excluded:
                yield source


def normalise(text: str, base: str | None = None) -> str:
    """The one form of a path or URL: absolute, without `file://`, with the protocol in lower case and without synonyms.

    A relative path starts at the folder `base` (a path or URL), or at the current one. What follows a bucket is a key,
    which keeps every character, and a web URL keeps all but its fragment.
    """
    if not _URL.match(text):
        if base is not None and "://" in base and not text.startswith("/"):
            return normalise(_join(base, text))
        return _make_absolute(f"{base}/{text}" if base is not None and not text.startswith("/") else text)
    protocol, _, path = text.partition("://")
    protocol = SYNONYMS.get(protocol.lower(), protocol.lower())
    if protocol in ("file", "local"):
        return _make_absolute(path)
    if protocol in WEB:
        return f"{protocol}://{_normalise_web_address(path)}"
    return f"{protocol}://{path.lstrip('/') if protocol in KEYED | {'memory'} else path}"


def _normalise_web_address(address: str) -> str:
    address = re.sub("[\t\r\n]", "", address).partition("#")[0]  # line ends as browsers read them
    authority, target = split_authority(address)
    login, separator, host = authority.rpartition("@")
    return f"{login}{separator}{host.lower()}{target}"


def _join(base: str, text: str) -> str:
    """Resolve a relative name in a folder of a store or the web: `.` and `..` navigate, an empty part is a name.

    None leads out of the bucket or the host.
    """
    protocol, _, folder = base.partition("://")
    # A query is left as it is.
    path = re.split("[?#]", text, maxsplit=1)[0] if protocol in WEB else text
    parts = folder.split("/")
    for part in path.split("/"):
        if part == "..":
            del parts[max(len(parts) - 1, 1) :]
        elif part != ".":
            parts.append(part)
    return f"{protocol}://{'/'.join(parts)}{text[len(path) :]}"


def _make_absolute(path: str) -> str:
    # POSIX allows two leading slashes to differ from one; on no system that runs this do they.
    return re.sub("^//", "/", os.path.abspath(path))  # noqa: PTH100


def _hash_uri(uri: str) -> bytes:
    return hashlib.blake2b(uri.encode(errors="surrogateescape"), digest_size=16).digest()


def _folder_of(uri: str) -> str:
    protocol, separator, path = uri.partition("://") if "://" in uri else ("", "", uri)
    if protocol in WEB:
        path = path.partition("?")[0]
    folder = path.rpartition("/")[0]
    return f"{protocol}{separator}{folder}" or "/"


def _expand_argument(argument: str) -> Iterator[Source]:
    if not argument.strip():
        raise UsageError("a source's name is empty")
    uri = normalise(argument)
    try:
        yield from _expand_remote(argument, uri) if "://" in uri else _expand_local(argument, uri)
    except AnswerError as error:
        raise UsageError(f"{argument} cannot be listed: {error}") from error
    except StorageError as error:
        raise RunError(f"{argument} cannot be listed: {error}") from error
    except PermissionError as error:
        raise UsageError(f"{argument} cannot be listed: {error}") from error


def _expand_local(argument: str, path: str) -> Iterator[Source]:
    if Path(path).is_dir():
        yield from _require_some(f"no video file in the folder {argument}", _walk_local(path, is_video))
    elif os.path.lexists(path):
        yield from _expand_manifest(_make_local_source(path))
    elif has_magic(path):
        for source in _require_some(f"no file matches {argument}", _walk_local(*parse_glob(argument, path))):
            yield from _expand_manifest(source)
    else:
        raise UsageError(f"{argument} does not exist")


def _walk_local(root: str, is_wanted: NameTest, *may_enter: NameTest) -> Iterator[Source]:
    if Path(root).is_dir():
        yield from map(_make_local_source, walk_local(root, is_wanted, *may_enter))


def _expand_remote(argument: str, uri: str) -> Iterator[Source]:
    fs, path = filesystem(uri)
    protocol = uri.partition("://")[0]
    if protocol in WEB:
        yield from _expand_manifest(Source(uri))
        return
    trimmed = uri if uri.endswith("://") else uri.rstrip("/")
    # A filesystem's own paths leave out the protocol and sometimes the host: this puts them back.
    prefix = trimmed.removesuffix(path) if path and trimmed.endswith(path) else f"{protocol}://"

    def walk(root: str, is_wanted: NameTest, *may_enter: NameTest) -> Iterator[Source]:
        for entry in walk_remote(fs, root, is_wanted, *may_enter):
            yield _make_remote_source(normalise(prefix + entry.path), entry.size, entry.stamp)

    empty_message = f"no video file in the folder {argument}"
    if protocol in KEYED and path.endswith("/"):  # s3fs would drop the slash, and more than one
        yield from _require_some(empty_message, walk(path.removesuffix("/"), is_video))
        return
    info = _describe(fs, uri, path)
    if info is None and has_magic(path):
        for source in _require_some(f"no file matches {argument}", walk(*parse_glob(argument, path))):
            yield from _expand_manifest(source)
    elif info is None:
        raise UsageError(f"{argument} does not exist")
    elif info["type"] == "directory":
        yield from _require_some(empty_message, walk(path, is_video))
    else:
        yield from _expand_manifest(_make_remote_source(uri, info["size"], stamp_of(info)))


def _describe(fs: Any, uri: str, path: str) -> dict[str, Any] | None:
    try:
        info: dict[str, Any] = retry(f"looking for {uri}", lambda: fs.info(path))
    except FileNotFoundError:
        return None
    return info


def _require_some(message: str, items: Iterator[T]) -> Iterator[T]:
    first = next(items, None)
    if first is None:
        raise UsageError(message)
    yield first
    yield from items


def _expand_manifest(source: Source) -> Iterator[Source]:
    """The rows of a manifest that the user named; otherwise the file itself, whatever its suffix."""
    if not manifests.is_manifest(source.uri):
        yield source
        return
    for text, columns in _require_some(f"the manifest {source.uri} lists no source", manifests.read_rows(source.uri)):
        uri = normalise(text, _folder_of(source.uri))
        if "://" not in uri:
            yield _make_local_source(uri, columns)
        elif uri.startswith("memory://"):
            yield _make_carried_source(uri, columns)
        else:
            yield Source(uri, manifest=columns)


def _make_local_source(path: str, columns: dict[str, str] | None = None) -> Source:
    try:
        path.encode()
    except UnicodeEncodeError:  # no catalog can hold it: a readable form of it fails as a source, with a code
        return Source(os.fsencode(path).decode(errors="backslashreplace"), manifest=columns or {})
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):  # missing, or an impossible name: it fails as a source, with a code
        return Source(path, manifest=columns or {})
    if not stat.S_ISREG(status.st_mode):
        return Source(path, manifest=columns or {})
    return Source(path, status.st_size, str(status.st_mtime_ns), columns or {})


def _make_remote_source(uri: str, size: int | None, stamp: str | None) -> Source:
    return _make_carried_source(uri, {}) if uri.startswith("memory://") else Source(uri, size, stamp)


def _make_carried_source(uri: str, columns: dict[str, str]) -> Source:
    fs, path = filesystem(uri)
    info = _describe(fs, uri, path)
    if info is None:
        return Source(uri, manifest=columns)
    if info["size"] > MAX_CARRIED_BYTES:
        raise UsageError(f"{uri} is too large to carry to the workers ({info['size']} bytes): write it to a file")
    return Source(uri, info["size"], stamp_of(info), columns, fs.cat_file(path))
