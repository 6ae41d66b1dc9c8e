"""What passes for the address of an image."""

import pytest

from filtering.url import is_url


@pytest.mark.parametrize(
    "url",
    [
        "http://a.example/1.jpg",
        "HTTPS://A.EXAMPLE",
        "https://bücher.example/ä?q=1#x",
        "http://[::1]:8080/x",
        "http://10.0.0.1:80",
    ],
)
def test_urls(url: str) -> None:
    assert is_url(url)


@pytest.mark.parametrize(
    "url", ["", "a dog", "ftp://a.example/1", "http://", "http:///x", "http://?x", "data:image/png;base64,xx", "//a.example/x",
            "http://a.example/with space", "http://user:pw@a.example/", "http://a.example/" + "x" * 3000]
)  # fmt: skip
def test_not_urls(url: str) -> None:
    assert not is_url(url)
