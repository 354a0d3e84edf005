"""HTTP and HTTPS as an fsspec filesystem: URLs are sent as written, and the server's answers are reported as given."""

from __future__ import annotations

import re
import ssl
from typing import Any
from urllib.parse import quote

import aiohttp
import yarl
from fsspec.implementations.http import HTTPFileSystem

from pipeline.storage.object_store import AnswerError, split_authority

# Characters that a request line cannot carry, or not safely; and a percent sign that does not begin an escape.
_UNSENDABLE = re.compile(r"[^!#-;=?-~]|%(?![0-9A-Fa-f]{2})")
_REDIRECTS = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 425, 429)
# Failed handshakes that a retry may not meet again.
_BROKEN_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


class WebFileSystem(HTTPFileSystem):  # type: ignore[misc]
    """HTTP and HTTPS with URLs as they are written, since a signature may cover every character of one.

    The library decodes and encodes them again: `%2F` in a query goes out as `/`.
    """

    def __init__(self, *args: Any, client_kwargs: dict[str, Any] | None = None, **options: Any) -> None:
        session = {"requote_redirect_url": False, "middlewares": (_request_verbatim,)}
        super().__init__(*args, client_kwargs=session | (client_kwargs or {}), **options)

    def encode_url(self, url: str) -> yarl.URL:
        """The URL to send."""
        return to_verbatim_url(url)

    def _raise_not_found_for_status(self, response: aiohttp.ClientResponse, url: str) -> None:
        response.raise_for_status()  # the library's own error for 404 holds nothing but the URL

    async def _info(self, url: str, **options: Any) -> dict[str, Any]:
        try:
            info: dict[str, Any] = await super()._info(url, **options)
        except FileNotFoundError as error:  # the library raises it for every failure
            cause = error.__cause__
            if isinstance(cause, ValueError) and not isinstance(cause, aiohttp.ClientError):
                raise AnswerError(f"the server redirects to what is not a URL of the web: {cause}") from cause
            raise cause or error from None
        return info


def to_verbatim_url(url: str) -> yarl.URL:
    """The URL to send: as given, without the fragment, and with characters that no URL can hold escaped.

    Raises ValueError for an impossible host or port.
    """
    scheme, _, after_scheme = url.partition("://")
    authority, target = split_authority(after_scheme)
    host = yarl.URL(f"{scheme}://{authority}")  # a host has its own encoding
    escaped = _UNSENDABLE.sub(_escape, target.partition("#")[0])
    return yarl.URL(f"{scheme}://{host.raw_authority}{escaped}", encoded=True)


def _escape(character: re.Match[str]) -> str:
    return quote(character[0], safe="", errors="surrogateescape")


async def _request_verbatim(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Middleware, called for each redirect too: a `Location` is sent as the server wrote it."""
    try:
        request.url = to_verbatim_url(str(request.url))
    except ValueError as error:  # a redirect: the URL of a source is checked before
        raise aiohttp.InvalidUrlRedirectClientError(request.url) from error
    response = await handler(request)
    if 300 <= response.status < 400 and not (response.status in _REDIRECTS and "Location" in response.headers):
        # Otherwise the client would take its body for the file.
        response.close()
        raise aiohttp.ClientResponseError(
            response.request_info, (), status=response.status, message=response.reason or ""
        )
    return response


def describe_status(error: aiohttp.ClientResponseError) -> str:
    """The status of a server's answer, in a few words."""
    return f"the server answers {error.status} {error.message}".rstrip()


def final_error(error: Exception) -> Exception | None:
    """What to raise if asking again gives the same answer; None for an error that may pass."""
    if isinstance(error, aiohttp.TooManyRedirects):
        return AnswerError(_describe_redirects(error))
    if isinstance(error, aiohttp.ClientResponseError):
        return _final_status(error)
    if isinstance(error, aiohttp.NonHttpUrlRedirectClientError | aiohttp.InvalidUrlRedirectClientError):
        return AnswerError(f"the server redirects to {error}, which is not a URL of the web")
    if isinstance(error, aiohttp.InvalidURL):
        return AnswerError(f"{error.args[0]} is not a URL of the web")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return AnswerError(f"the server's certificate is not valid: {_describe_tls_error(error.certificate_error)}")
    if isinstance(error, aiohttp.ClientConnectorSSLError) and not isinstance(error.os_error, _BROKEN_OFF):
        return AnswerError(f"no secure connection to the server: {_describe_tls_error(error.os_error)}")
    return None


def _describe_redirects(error: aiohttp.TooManyRedirects) -> str:
    urls = [str(response.url) for response in error.history]
    repeated = next((url for index, url in enumerate(urls) if url in urls[:index]), None)
    course = f"in a circle, repeatedly to {repeated}" if repeated else f"{len(urls)} times, last to {urls[-1]}"
    return (
        f"the server redirects {course}; open it in a browser to see whether it wants a login, and give the final URL"
    )


def _final_status(error: aiohttp.ClientResponseError) -> Exception | None:
    status, message = error.status, describe_status(error)
    if status in (401, 403):
        return PermissionError(f"{message}; the URL may need a login or may have expired")
    if status in (404, 410):
        return FileNotFoundError(message)
    if 300 <= status < 400:
        return AnswerError(f"{message} and does not say where the file is")
    return AnswerError(message) if 400 <= status < 500 and status not in _MAY_PASS else None


def _describe_tls_error(error: BaseException) -> str:
    """The part of a TLS error that is for people."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return (getattr(error, "reason", None) or str(error)).replace("_", " ").lower()
