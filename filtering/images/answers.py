"""One answer of a server: what its head and its body amount to, or what went wrong, as a status and in words."""

import asyncio
import os
import re
import ssl
from dataclasses import dataclass, replace
from typing import Any

import aiohttp

from filtering.images.addresses import ConnectError
from filtering.images.codings import CodingError, UnknownCodingError, codings_of, undone
from filtering.images.containers import begins_as_image
from filtering.images.fetch_config import FetchConfig
from filtering.images.headers import opts_out, retry_after, whole_of

LINE_BYTES, HEADERS = 2**16, 500
"""Of the head of an answer at most; browsers stop at some 256 kB for all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What came of one request."""

    status: str
    http_status: int | None = None
    body: bytes = b""
    delimited: bool = True
    """Whether the head said where the body ends. Otherwise one that was cut looks as if it were whole."""
    message: str | None = None
    answered: bool = False
    """Whether the head of an answer was there."""
    retry_after: float | None = None
    location: str | None = None


_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITH_IMAGE = frozenset({200, 201, 203})


async def read(response: Any, config: FetchConfig) -> Answer:
    """The answer whose head has come. Raises what aiohttp raises for a connection that fails."""
    code: int = response.status
    headers = response.headers
    location = (headers.get("Location") or None) if code in _REDIRECTS else None
    size = whole_of(headers.get("Content-Range")) if code == 206 else None
    if config.respect_opt_out and (code in _WITH_IMAGE or size is not None or location is not None):
        for tag in headers.getall("X-Robots-Tag", ()):
            if opts_out(tag, config.agent):
                return Answer(status="opt_out", http_status=code, message=in_one_line(f"X-Robots-Tag: {tag}"))
    if code not in _WITH_IMAGE and size is None:
        return Answer(
            status=f"http_{code}",
            http_status=code,
            message=in_one_line(f"{code} {response.reason or ''}"),
            retry_after=retry_after(headers.get("Retry-After")),
            location=location,
        )
    answer = await _read_body(response, config.max_bytes)
    if answer.status != "success":
        return answer
    if size is not None and len(answer.body) != size:
        return Answer(status="incomplete", http_status=code, message=f"{len(answer.body)} of {size} bytes came")
    return await _unpacked(answer, headers, config.max_bytes)


async def _read_body(response: Any, most: int) -> Answer:
    """The body as it came; `too_large` beyond so many bytes."""
    code: int = response.status
    announced: int | None = response.content_length
    if announced is not None and announced > most:
        return Answer(status="too_large", http_status=code, message=f"{announced} bytes announced, at most {most} wanted")
    chunks, size = [], 0
    try:
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > most:
                return Answer(status="too_large", http_status=code, message=f"more than {most} bytes")
    except aiohttp.ClientPayloadError:
        came = f"{size} bytes" if announced is None else f"{size} of {announced} bytes"
        return Answer(status="incomplete", http_status=code, message=f"the connection ended after {came} of the body")
    delimited = announced is not None or "chunked" in codings_of(response.headers.getall("Transfer-Encoding", ()))
    if not size and not delimited:
        return Answer(status="incomplete", http_status=code, message="the connection ended before the body")
    return Answer(status="success", http_status=code, body=b"".join(chunks), delimited=delimited)


async def _unpacked(answer: Answer, headers: Any, most: int) -> Answer:
    """The answer with what HTTP did to its body undone: content codings come before transfer codings, chunks are last."""
    transfer = codings_of(headers.getall("Transfer-Encoding", ()))
    if transfer[-1:] == ["chunked"]:
        del transfer[-1]  # done already
    codings = codings_of(headers.getall("Content-Encoding", ())) + transfer
    if not codings:
        return answer
    try:
        body = await asyncio.to_thread(undone, answer.body, codings, most)
    except UnknownCodingError as error:
        body = error.body
        if not begins_as_image(body):  # browsers ignore codings that they do not know, such as "none" or "utf-8"
            return Answer(status=error.status, http_status=answer.http_status, message=in_one_line(str(error)))
    except CodingError as error:
        return Answer(status=error.status, http_status=answer.http_status, message=in_one_line(str(error)))
    return replace(answer, body=body)


class DisconnectedError(Exception):
    """The connection ended before the head of an answer was there. aiohttp would repeat the request for its own errors."""


# In this order: aiohttp's exceptions inherit from one another.
_FAILURES: tuple[tuple[type[BaseException], str], ...] = (
    (TimeoutError, "timeout"),
    (aiohttp.ClientConnectorDNSError, "dns"),
    (aiohttp.ClientSSLError, "tls"),
    (aiohttp.ClientPayloadError, "incomplete"),
    (aiohttp.ClientConnectionError, "connect"),
    (DisconnectedError, "connect"),
    (aiohttp.ClientResponseError, "bad_http"),
    (OSError, "connect"),
    (ValueError, "bad_url"),  # aiohttp.InvalidURL, and what an impossible host name raises on its way to the wire
    (Exception, "client_error"),  # a flaw of the client's that some server found: it must not stop millions of other links
)


def failure(error: Exception) -> tuple[str, str]:
    """The status of what a request raised, and the reason in words."""
    cause = getattr(error, "os_error", None)
    if isinstance(cause, ConnectError):
        return cause.status, str(cause)
    status = next(status for kind, status in _FAILURES if isinstance(error, kind))
    if isinstance(cause, ssl.SSLCertVerificationError):
        return status, cause.verify_message
    if isinstance(cause, ssl.SSLError):
        return status, (cause.reason or "TLS failed").lower().replace("_", " ")
    if (number := getattr(cause or error, "errno", None)) is not None:
        return status, os.strerror(number)
    if cause is not None:
        return status, in_one_line(str(cause)) or _HUNG_UP
    if isinstance(error, aiohttp.ServerDisconnectedError):
        # Its message is the half of a head that came, as an object.
        return status, _HUNG_UP if isinstance(error.message, str) else "the server hung up within the head of its answer"
    text = str(getattr(error, "message", "") or error).removeprefix("400, message:").strip().partition("\n")[0]
    return status, in_one_line(_QUOTED.split(text)[0].rstrip(": ")) or type(error).__name__


_HUNG_UP = "the server hung up before it answered"
_QUOTED = re.compile(r"\bb['\"]")  # what follows is a stretch of the answer as Python writes it


def in_one_line(text: str) -> str:
    """What a server wrote, fit to be shown: one line, no control characters, not long."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()
