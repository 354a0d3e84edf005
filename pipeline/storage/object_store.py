"""Opens every store in one way, and retries transient errors of all of them by one rule."""

from __future__ import annotations

import errno
import random
import re
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec import get_filesystem_class
from fsspec.core import url_to_fs

from pipeline import extras
from pipeline.errors import RunError, UsageError

T = TypeVar("T")

ATTEMPTS = 8
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 10.0
_FINAL = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_FINAL_ERRNOS = {errno.EINVAL, errno.ENAMETOOLONG, errno.ENOSYS, errno.EPERM, errno.EMSGSIZE, errno.EREMCHG}
FULL = {errno.ENOSPC, errno.EDQUOT}
# S3 answers that s3fs reports as "invalid argument" although the same request may well succeed next time.
_DAMAGED_ON_THE_WAY = {"IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
# Network errors of the client libraries that are not an OSError; looked up only where the library is loaded.
_LIBRARY_ERRORS = {
    "aiohttp": "ClientError",
    "botocore.exceptions": "BotoCoreError",
    "botocore.parsers": "ResponseParserError",
    "gcsfs.retry": "HttpError",
}
_BOTOCORE_TRANSIENT = ("HTTPClientError", "ConnectionError", "IncompleteReadError")


# What a URL's protocol says of its store. fsspec opens others too: their folders are listed whole, and no dataset is
# written to them.
SYNONYMS = {"s3a": "s3", "gcs": "gs"}
# Stores of flat keys, in which `//` and a slash in front are part of a name.
KEYED = frozenset(("s3", "gs", *SYNONYMS))
# Stores whose fsspec filesystem asks the server for "only if absent". The fallback of fsspec looks first and
# writes after, so that two writers can both win.
CREATES_IF_ABSENT = KEYED | {"memory"}
WEB = frozenset(("http", "https"))


class StorageError(OSError):
    """Storage kept failing after all retries, or refused in a way that no retry can fix."""


class AnswerError(StorageError):
    """A server's final answer about one URL: asking again gives the same answer, and other URLs may well be fine."""


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url`, without a listing cache, and the path in it; a key keeps every character.

    Raises UsageError for a protocol that is unknown or whose package is not installed.
    """
    protocol, _, key = url.partition("://")
    try:
        if protocol in WEB:
            return _open_web(url)
        # "::" chains filesystems (`zip://a.mp4::s3://bucket/a.zip`), but after a bucket all of it is the key.
        fs, path = url_to_fs(url.replace("::", ":") if protocol in KEYED else url, use_listings_cache=False)
    except ImportError as error:
        raise UsageError(f"{url}: {extras.suggest_install(error) or error}") from error
    except ValueError as error:
        raise UsageError(f"{url} is not a URL that can be used: {error}") from error
    if "s3" in protocols(fs):
        # botocore retries each call and `retry` each operation; a third loop between the two would turn a server
        # that never answers into an hour of waiting.
        fs.retries = 1
    return fs, key if protocol in KEYED else str(path)


def _open_web(url: str) -> tuple[Any, str]:
    get_filesystem_class("http")  # its ImportError says which packages are needed
    # Loaded only for the web, as its package may be absent.
    from pipeline.storage.web import WebFileSystem, to_verbatim_url

    to_verbatim_url(url)
    return WebFileSystem(use_listings_cache=False), url


def split_authority(after_scheme: str) -> tuple[str, str]:
    """Split what follows `http://` after the host and port."""
    authority = re.split("[/?#]", after_scheme, maxsplit=1)[0]
    return authority, after_scheme[len(authority) :]


def protocols(fs: Any) -> set[str]:
    """The protocols by which fsspec knows this filesystem."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def stamp_of(info: dict[str, Any]) -> str | None:
    """The value in an object's fsspec description that changes when the object does; None if there is none."""
    for key in ("ETag", "etag", "md5Hash", "LastModified", "updated", "mtime", "created"):
        if info.get(key):
            return str(info[key]).strip('"')
    return None


def retry(action: str, work: Callable[[], T]) -> T:
    """Run `work`, which talks to a store, and run it again after each transient error, with backoff and jitter.

    tenacity would save the loop alone: what takes the lines is to decide which errors are final, and to name them.

    Raises the error itself if it is final (missing, forbidden, exists already), otherwise StorageError with a
    sentence that begins with `action`, and RunError when the local disk is full.
    """
    delay, failures = FIRST_DELAY_S, 0
    while True:
        try:
            return work()
        except _transport_errors() as error:
            final = _final_error(error, action)
            if final is error:
                raise
            if final is not None:
                raise final from error
            failures += 1
            if failures == ATTEMPTS:
                raise StorageError(f"{action} failed {ATTEMPTS} times: {describe_error(error)}") from error
        time.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
        delay = min(delay * 2, LONGEST_DELAY_S)


def _transport_errors() -> tuple[type[Exception], ...]:
    loaded = ((sys.modules.get(module), name) for module, name in _LIBRARY_ERRORS.items())
    return (OSError, *(getattr(module, name) for module, name in loaded if module is not None))


def describe_error(error: BaseException) -> str:
    """An error in a few words; its type comes first, unless the system or a server gives a reason."""
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is not None and isinstance(error, aiohttp.ClientResponseError) and error.status:
        from pipeline.storage.web import describe_status

        return describe_status(error)
    if aiohttp is not None and isinstance(error, aiohttp.ClientPayloadError):
        return "the server closed the connection before the end of the file"
    if isinstance(error, OSError) and error.strerror and error.errno:
        return error.strerror
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def s3_error_code(error: BaseException) -> str:
    """The S3 error code behind an error that s3fs has translated; empty if there is none."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _final_error(error: Exception, action: str) -> Exception | None:
    """What to raise at once because no retry helps; None for a transient error."""
    if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, _transport_errors()):
        return _final_error(error.__cause__, action)  # fsspec reports every web error as "not found"
    if isinstance(error, (*_FINAL, StorageError)):
        return error
    answer = _final_web_error(error)
    if answer is not None:
        return answer
    if isinstance(error, OSError):
        if error.errno in FULL:
            return RunError(f"no space left on the disk: {action}")
        if error.errno in _FINAL_ERRNOS and s3_error_code(error) not in _DAMAGED_ON_THE_WAY:
            return StorageError(error.errno, f"{action} was refused: {describe_error(error)}")
    return _final_library_error(error, action)


def _final_web_error(error: Exception) -> Exception | None:
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is None or not isinstance(error, aiohttp.ClientError):
        return None
    from pipeline.storage.web import final_error

    return final_error(error)


def _final_library_error(error: Exception, action: str) -> Exception | None:
    status = vars(error).get("code")  # gcsfs
    if status in (401, 403):
        return PermissionError(errno.EACCES, f"{action} was refused: {describe_error(error)}")
    if status in (404, 410):
        return FileNotFoundError(errno.ENOENT, f"{action}: {describe_error(error)}")
    if isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429):
        return StorageError(f"{action} was refused: {describe_error(error)}")
    botocore = sys.modules.get("botocore.exceptions")
    if botocore is not None and isinstance(error, botocore.BotoCoreError):
        if isinstance(error, tuple(getattr(botocore, name) for name in _BOTOCORE_TRANSIENT)):
            return None
        if isinstance(error, botocore.NoCredentialsError | botocore.PartialCredentialsError):
            return PermissionError(errno.EACCES, f"{action}: {error}")
        return StorageError(f"{action} was refused: {describe_error(error)}")
    return None
