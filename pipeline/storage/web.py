"""So that a URL of the web is asked for as it is written, and what the server answers is said in its own words."""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import quote

import aiohttp
import yarl
from fsspec.implementations.http import HTTPFileSystem

from pipeline.storage.object_store import AnswerError, split_authority

# What a request line cannot carry, or not without doubt; and a percent sign that begins no escape.
_UNSENDABLE = re.compile(r"[^!#-;=?-~]|%(?![0-9A-Fa-f]{2})")
_REDIRECTS = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 425, 429)
# Ends of a handshake that a next one need not meet.
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class Web(HTTPFileSystem):  # type: ignore[misc]
    """HTTP and HTTPS with URLs as they are written, since a signature may cover every character of one.

    The library decodes and encodes them again: `%2F` in a query goes out as `/`.
    """

    def __init__(self, *args: Any, client_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        session = {"requote_redirect_url": False, "middlewares": (_ask_as_written,)}
        super().__init__(*args, client_kwargs=session | (client_kwargs or {}), **options)

    def encode_url(self, url: str) -> yarl.URL:
        """What is sent for a URL."""
        return as_written(url)

    def _raise_not_found_for_status(self, response: aiohttp.ClientResponse, url: str) -> None:
        response.raise_for_status()  # the library's own error for 404 holds nothing but the URL

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await super()._info(url, **options)
        except FileNotFoundError as error:  # the library says so of every failure
            cause = error.__cause__
            if isinstance(cause, ValueError) and not isinstance(cause, aiohttp.ClientError):
                raise AnswerError(f"the server redirects to what is not a URL of the web: {cause}") from cause
            raise cause or error from None
        return info


def as_written(url: str) -> yarl.URL:
    """The URL to send: as given but for the fragment and for what no URL can hold, which is escaped.

    Raises ValueError for a host or port that cannot be.
    """
    scheme, _, rest = url.partition("://")
    authority, target = split_authority(rest)
    host = yarl.URL(f"{scheme}://{authority}")  # a host has an encoding of its own
    sent = _UNSENDABLE.sub(_escaped, target.partition("#")[0])
    return yarl.URL(f"{scheme}://{host.raw_authority}{sent}", encoded=True)


def _escaped(character: re.Match[str]) -> str:
    return quote(character[0], safe="", errors="surrogateescape")


async def _ask_as_written(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Middleware, called for each redirect too: what a `Location` holds is sent as the server wrote it."""
    try:
        request.url = as_written(str(request.url))
    except ValueError as error:  # a source's own URL is checked before: it comes from a server
        raise aiohttp.InvalidUrlRedirectClientError(request.url) from error
    response = await handler(request)
    if 300 <= response.status < 400 and not (response.status in _REDIRECTS and "Location" in response.headers):
        # The client takes it for the file.
        response.close()
        raise aiohttp.ClientResponseError(
            response.request_info, (), status=response.status, message=response.reason or ""
        )
    return response


def answer(error: aiohttp.ClientResponseError) -> str:
    """The status that a server answered, in a few words."""
    return f"the server answers {error.status} {error.message}".rstrip()


def final_answer(error: Exception) -> Exception | None:
    """What to raise where asking again brings the same answer; None for an error that may pass."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return AnswerError(_redirects(error))
    if isinstance(error, aiohttp.ClientResponseError):
        return _final_status(error)
    if isinstance(error, aiohttp.NonHttpUrlRedirectClientError | aiohttp.InvalidUrlRedirectClientError):
        return AnswerError(f"the server redirects to {error}, which is not a URL of the web")
    if isinstance(error, aiohttp.InvalidURL):
        return AnswerError(f"{error.args[0]} is not a URL of the web")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return AnswerError(f"the server's certificate is not valid: {_reason(error.certificate_error)}")
    if isinstance(error, aiohttp.ClientConnectorSSLError) and not isinstance(error.os_error, _BROKEN_OFF):
        return AnswerError(f"no secure connection to the server: {_reason(error.os_error)}")
    return None


def _redirects(error: aiohttp.TooManyRedirects) -> str:
    urls = [str(response.url) for response in error.history]
    again = next((url for index, url in enumerate(urls) if url in urls[:index]), None)
    how = f"in a circle, again and again to {again}" if again else f"{len(urls)} times and on, last at {urls[-1]}"
    return f"the server redirects {how}; open it in a browser to see whether it wants a login, and give the final URL"


def _final_status(error: aiohttp.ClientResponseError) -> Exception | None:
    status, words = error.status, answer(error)
    if status in (401, 403):
        return PermissionError(f"{words}; the URL may need a login or may have expired")
    if status in (404, 410):
        return FileNotFoundError(words)
    if 300 <= status < 400:
        return AnswerError(f"{words} and does not say where the file is")
    return AnswerError(words) if 400 <= status < 500 and status not in _MAY_PASS else None


def _reason(error: BaseException) -> str:
    """The part of a TLS error that is for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
