"""What no message, log, report or recorded config may show: passwords, keys and signatures are written as `***`."""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
_NAMES = (
    r"[\w.-]*(?:passw(?:or)?d|passphrase|secret|signature|credential|security-token|access_?token|refresh_?token|sas_?token"
    r"|id_?token|api_?key|access_?key(?:_?id)?|account_?key)|authorization|bearer|odbc_connect|connection_?string|pwd"
)
"""Names of what is secret wherever it stands: `X-Amz-Signature`, `aws_secret_access_key`, `GoogleAccessId`'s `Signature`."""
_PATTERNS = (
    # user:secret@ of a URL. The secret may hold "/" and "@" that nobody escaped; a port is none.
    re.compile(r'(\b[a-z][a-z0-9+.-]*://[^\s/?#@:"<>\[]*:)(?!\d+(?:[/?#\s,;\'")]|$))[^\s"<>]*(?=@)', re.IGNORECASE),
    # https://token@host
    re.compile(r'(\bhttps?://)(?!\*\*\*@)[^\s/?#@:"<>]+(?=@)', re.IGNORECASE),
    # ?sig=...&token=...
    re.compile(rf"([?&;](?:{_NAMES}|sig|sign|hmac|token|auth|jwt|key|pass|code|policy)=)[^&;\s\"'<>#]+", re.IGNORECASE),
    re.compile(rf"(\b(?:{_NAMES})=)[^\s\"'<>&,;)\]}}]+", re.IGNORECASE),
    re.compile(r"(\bauthorization[\"']?\s*[:=]\s*[\"']?)(?:(?:basic|bearer|digest)\s+)?[^\s\"',;)}]+", re.IGNORECASE),
)


def masked(text: str) -> str:
    """`text` with `***` in the place of secrets in its URLs, queries and headers. Masking twice changes nothing more."""
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def masked_tree(value: Any) -> Any:
    """The same for every text in nested mappings and lists."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {key: masked_tree(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked_tree(item) for item in value]
    return value


def holds_mask(text: str) -> bool:
    """Whether a secret of the text is masked already: it was copied from a record."""
    return MASK in text and MASK in masked(text.replace(MASK, "x" * len(MASK)))
