"""What a response's headers say: robots directives, and when to come again."""

import pytest

from filtering.images.headers import opts_out, retry_after


@pytest.mark.parametrize(
    ("tag", "forbidden"),
    [
        ("noai", True),
        ("NoImageAI", True),
        ("nofollow, noimageindex", True),
        ("none", True),
        ("all", False),
        ("nofollow, nosnippet", False),
        ("noindexing", False),
        ("mybot: noai", True),
        ("MyBot: nofollow, noai", True),
        ("otherbot: noai, noindex", False),
        ("otherbot: noai, mybot: noindex", True),
        ("*: noindex", True),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST", False),
        ("unavailable_after: 25 Jun 2030 15:00:00 PST, noai", True),
        ("max-image-preview: none", False),
        ("", False),
    ],
)
def test_robots_directives(tag: str, forbidden: bool) -> None:
    assert opts_out(tag, "Mozilla/5.0 (compatible; mybot/1.0)") is forbidden


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        *((nonsense, None) for nonsense in ("", "soon", "-1", "1.5 h", ",", "Wed, 99 Xyz 99999 99:99:99")),
    ],
)
def test_retry_after_values(value: str | None, seconds: float | None) -> None:
    assert retry_after(value) == seconds
