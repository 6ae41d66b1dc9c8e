"""What a link is, for the filter and the fetcher alike: what a browser would open. Nothing here asks the network."""

import ipaddress
import re
import socket
from typing import NamedTuple
from urllib.parse import unquote, urljoin

import pyarrow as pa
import pyarrow.compute as pc
from yarl import URL

MAX_LENGTH = 2048
"""Characters; servers and caches refuse longer ones."""

PLAIN_URL = (
    r"(?:https?|HTTPS?)://(?:[0-9A-Za-z-]{1,60}\.){1,3}[A-Za-z][0-9A-Za-z-]{0,59}(?::[1-9][0-9]{0,3})?"
    r"(?:[/?#][!-$&-\[\]-~]*(?:%[0-9A-Fa-f]{2}[!-$&-\[\]-~]*)*)?"
)
"""What most links look like, for RE2 and Python alike: each of them that is not too long is a link."""


class LinkError(ValueError):
    """A link that is not asked for: `status` is "bad_url" or "bad_scheme"."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class Link(NamedTuple):
    """A URL as it goes on the wire."""

    url: URL
    host: str
    """Lower case, IDNs as "xn--...", without a trailing dot; IPv6 addresses without brackets."""
    is_address: bool


_ABSOLUTE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*):(?P<slashes>//)?(?P<authority>[^/?#]*)", re.IGNORECASE)
_ENDS = re.compile(r"^[\x00-\x20\s]+|[\x00-\x20\s]+$")
_LINE_MARKS = re.compile(r"[\t\n\r]")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_RAW_BYTE = re.compile(r"[\udc80-\udcff]")  # how aiohttp hands over header bytes that are not UTF-8
_HOST_NAME = re.compile(r"(?=.{1,253}$)(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
_ENDS_IN_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")


def is_url(text: str) -> bool:
    """Whether `text` is a link: whether `link_of` makes one of it."""
    if len(text) <= MAX_LENGTH and _PLAIN.fullmatch(text):
        return True  # most links; what follows would come to the same
    try:
        link_of(text)
    except LinkError:
        return False
    return True


_PLAIN = re.compile(PLAIN_URL)


def link_of(url: str) -> Link:
    """The link that a browser would open for `url`; LinkError if there is none, or it is none for us.

    White space at the ends, tabs and line ends are taken out, spaces become %20, backslashes before the query slashes, and what
    is not ASCII is encoded. A link without http:// or https:// is none. Addresses are read as the WHATWG URL standard
    reads them: 2130706433, 0x7f.1, 0177.0.0.1, "127.0.0.1." and full-width digits all become 127.0.0.1. Credentials are
    refused: pictures that need a password are not ours to take.
    """
    url = _LINE_MARKS.sub("", _ENDS.sub("", url))
    if len(url) > MAX_LENGTH:
        raise LinkError("bad_url", f"longer than {MAX_LENGTH} characters")
    if _UNPRINTABLE.search(url):
        raise LinkError("bad_url", "control characters in the URL")
    path = re.split(r"[?#]", url, maxsplit=1)[0]
    url = (path.replace("\\", "/") + url[len(path) :]).replace(" ", "%20")
    if (parts := _ABSOLUTE.match(url)) is None:
        raise LinkError("bad_url", "not an absolute URL")
    if (scheme := parts["scheme"].lower()) not in ("http", "https"):
        raise LinkError("bad_scheme", f"{scheme}: is not http or https")
    authority = parts["authority"]
    if "%" in authority and "[" not in authority:
        authority = unquote(authority)  # what is no UTF-8 becomes a mark that no host name holds
        url = f"{scheme}://{authority}{url[parts.end() :]}"
    if not parts["slashes"] or not authority or re.search(r"[\s@\\/?#\x00-\x1f]", authority):
        raise LinkError("bad_url", "no host, or credentials or other marks in its place")
    try:
        parsed = URL(url)
    except ValueError as error:  # UnicodeError is one
        raise LinkError("bad_url", str(error)) from None
    if not (host := parsed.raw_host) or parsed.port == 0:
        raise LinkError("bad_url", "no host or no port")
    name = host.lower().removesuffix(".")
    if "[" in authority and is_address(name):
        return Link(parsed, name, True)
    if "[" in authority or not _HOST_NAME.fullmatch(name):
        raise LinkError("bad_url", f"{name[:80]!r} is not a host name")
    if not _ENDS_IN_NUMBER.fullmatch(name):
        return Link(parsed, name, False)
    try:
        address = socket.inet_ntoa(socket.inet_aton(name))
    except OSError:
        raise LinkError("bad_url", f"{name[:80]!r} is not an address") from None
    return Link(parsed if host == address else parsed.with_host(address), address, True)


def follow(link: Link, location: str) -> Link:
    """Where a redirect leads; LinkError as `link_of`."""
    location = _RAW_BYTE.sub(lambda byte: f"%{ord(byte[0]) - 0xDC00:02X}", location.strip())
    if _UNPRINTABLE.search(location):  # urljoin would take some of them out
        raise LinkError("bad_url", "control characters in the redirect")
    try:
        return link_of(urljoin(str(link.url), location))
    except LinkError as refusal:
        raise LinkError(refusal.status, f"redirected: {refusal}") from None
    except ValueError as error:
        raise LinkError("bad_url", f"redirected: {error}") from None


def is_address(host: str) -> bool:
    """Whether `host` is an address in the usual spelling."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# ---- one link, however it is written

_USUAL = re.compile(r"https?://[a-z0-9-]+(?:\.[a-z0-9-]*[a-z][a-z0-9-]*)+/(?!\.)(?:[A-Za-z0-9_~&=?,.-]|/(?!\.))*")


def id_of(url: str | None, key: str) -> str:
    """What a link's result is remembered by: its URL as it goes on the wire, whatever its captions are.

    What is no link is remembered as it is written, and a row without a URL by its key.
    """
    text = (url or "").strip()
    if not text or _USUAL.fullmatch(text):  # most URLs are written as they are asked for
        return text or key
    try:
        link = link_of(text).url
        return f"{link.origin()}{link.raw_path_qs}"
    except LinkError:
        return text


def ids_of(table: pa.Table) -> list[str]:
    """`id_of` of every row, by its columns url and key."""
    return [id_of(url, key) for url, key in zip(table["url"].to_pylist(), table["key"].to_pylist(), strict=True)]


# ---- hosts of many URLs

NO_HOST = ""
_NAMED = r"(?i)^\s*[a-z][a-z0-9+.-]*:(?://|\\\\)(?:[^/?#\\]*@)?(?P<host>\[[0-9a-f:.]+\]|[^\s/?#:@\[\]\\]+)"


def hosts_of(urls: pa.Array) -> pa.Array:
    """The hosts of URLs in lower case, without port, credentials and final dot; `NO_HOST` where there is none."""
    hosts = pc.struct_field(pc.extract_regex(urls, _NAMED), "host")
    return pc.fill_null(pc.utf8_rtrim(pc.utf8_lower(hosts), "."), NO_HOST)
