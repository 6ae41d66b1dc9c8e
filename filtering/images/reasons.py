"""Why a link gave no image, and whose fault that is: what decides if it is worth asking again."""

from typing import Literal, get_args

Failure = Literal["permanent", "transient", "policy"]
"""permanent: gone, or never was an image; transient: may work on another day; policy: our own rules and limits refuse it."""
FAILURES: tuple[Failure, ...] = get_args(Failure)

_TRANSIENT = frozenset(
    {
        *("dns", "connect", "tls", "timeout", "incomplete", "host_down", "bad_http", "unknown_coding"),
        *("http_202", "http_206", "http_408", "http_421", "http_423", "http_425", "http_429"),
    }
)
_POLICY = frozenset(
    {
        *("bad_scheme", "forbidden_address", "opt_out", "too_large", "too_many_redirects", "client_error"),
        *("too_small", "too_elongated", "too_many_pixels", "too_costly", "unsupported_format"),
    }
)


def failure_of(status: str) -> Failure | None:
    """The class of a status; None for "success"."""
    if status == "success":
        return None
    if status in _TRANSIENT or status.startswith("http_5"):
        return "transient"
    return "policy" if status in _POLICY else "permanent"
