"""What servers ask for in the headers of an answer: not to use an image, or to be left alone for a while."""

import email.utils
import re
import time

_OPT_OUT = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # "none" is short for "noindex, nofollow"
_DIRECTIVES_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def opts_out(tag: str, user_agent: str) -> bool:
    """Whether one X-Robots-Tag header value forbids use: `[agent:] directive, directive, ...`.

    As img2dataset 1.47.0 decides it (a directive without an agent, or with ours), but `unavailable_after: <date>` and its like
    are not taken for an agent, and an agent may also open a later part: `a: nofollow, b: noai`.
    """
    applies = True
    for part in tag.lower().split(","):
        name, colon, rest = part.partition(":")
        directive = name.strip()
        if colon and directive not in _DIRECTIVES_WITH_VALUE:
            applies, directive = directive == "*" or directive in user_agent.lower(), rest.strip()
        if applies and directive in _OPT_OUT:
            return True
    return False


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date. None if there is none or it cannot be read."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        date: float = email.utils.parsedate_to_datetime(value).timestamp()
        return max(0.0, date - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):  # what the parser raises, depending on the nonsense
        return None


def whole_of(content_range: str | None) -> int | None:
    """The size of a file of which a part was sent that is all of it, by the Content-Range header; None if it is not all."""
    if match := re.fullmatch(r"\s*bytes\s+0+-(\d{1,18})/(\d{1,18})\s*", content_range or "", re.ASCII | re.IGNORECASE):
        last, size = int(match[1]), int(match[2])
        if last + 1 == size:
            return size
    return None
