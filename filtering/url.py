"""What a link must look like before anything is asked of the network."""

import re

MAX_LENGTH = 2048
"""Characters; servers and caches refuse longer ones."""

_HOST = r"(?:[^\s/?#@:\[\]]*[^\W_]|\[[0-9a-f:.]+\])\.?"
_URL = re.compile(rf"https?://{_HOST}(?::\d{{1,5}})?(?:[/?#]\S*)?", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether `text` is an http(s) URL with a host and without white space, credentials or excessive length."""
    return len(text) <= MAX_LENGTH and _URL.fullmatch(text.strip()) is not None
