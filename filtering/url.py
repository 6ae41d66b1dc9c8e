"""What a link must look like before anything is asked of the network, and whose host it names."""

import re

import pyarrow as pa
import pyarrow.compute as pc

MAX_LENGTH = 2048
"""Characters; servers and caches refuse longer ones."""

_HOST = r"(?:[^\s/?#@:\[\]]*[^\W_]|\[[0-9a-f:.]+\])\.?"
_URL = re.compile(rf"https?://{_HOST}(?::\d{{1,5}})?(?:[/?#]\S*)?", re.IGNORECASE)

NO_HOST = ""
_NAMED = r"(?i)^\s*[a-z][a-z0-9+.-]*://(?:[^/?#\\]*@)?(?P<host>\[[0-9a-f:.]+\]|[^\s/?#:@\[\]\\]+)"


def is_url(text: str) -> bool:
    """Whether `text` is an http(s) URL with a host and without white space, credentials or excessive length."""
    return len(text) <= MAX_LENGTH and _URL.fullmatch(text.strip()) is not None


def hosts_of(urls: pa.Array) -> pa.Array:
    """The hosts of URLs in lower case, without port, credentials and final dot; `NO_HOST` where there is none."""
    hosts = pc.struct_field(pc.extract_regex(urls, _NAMED), "host")
    return pc.fill_null(pc.utf8_rtrim(pc.utf8_lower(hosts), "."), NO_HOST)
