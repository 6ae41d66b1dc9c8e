"""What a link is: the filter's rule and the fetcher's are one, and it is the browsers'."""

import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filtering.captions.rules import BadUrl
from filtering.url import PLAIN_URL, LinkError, hosts_of, id_of, is_url, link_of


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://a.example/1.jpg", "http://a.example/1.jpg"),
        ("HTTPS://A.EXAMPLE/", "https://a.example/"),
        ("HTTP://a.example/X.JPG", "http://a.example/X.JPG"),
        ("http://photos.test/my photo.jpg", "http://photos.test/my%20photo.jpg"),
        ("http://photos.test/a?q=two words&b=1", "http://photos.test/a?q=two%20words&b=1"),
        (" \t\x0bhttp://photos.test/1.jpg\r\n\x00", "http://photos.test/1.jpg"),
        ("\u00a0http://photos.test/1.jpg\u2028", "http://photos.test/1.jpg"),
        ("http://photos.test/one\n  /two\t.jpg", "http://photos.test/one%20%20/two.jpg"),
        ("http:\\\\photos.test\\a\\b.jpg?c=\\d", "http://photos.test/a/b.jpg?c=\\d"),
        ("http://photos.test\\@evil.test/1.jpg", "http://photos.test/@evil.test/1.jpg"),
        ("http://bücher.example/ä?q=ö", "http://xn--bcher-kva.example/%C3%A4?q=%C3%B6"),
        ("http://例え.テスト/写真.jpg", "http://xn--r8jz45g.xn--zckzah/%E5%86%99%E7%9C%9F.jpg"),
        ("http://photos.test/100%.jpg", "http://photos.test/100%25.jpg"),
        ("http://photos.test/a%20b|c^d.jpg", "http://photos.test/a%20b%7Cc%5Ed.jpg"),
        ("http://[::1]:8080/x", "http://[::1]:8080/x"),
        ("http://10.0.0.1:80/", "http://10.0.0.1/"),
        ("http://a.example./1.jpg", "http://a.example./1.jpg"),
    ],
)
def test_a_link_is_what_a_browser_would_open(url: str, asked: str) -> None:
    assert str(link_of(url).url).replace("%5C", "\\") == asked
    assert is_url(url)
    assert judged(url)


NOT_LINKS = [
    *("", " ", "a dog", "ftp://a.example/1", "http://", "http:///x", "http://?x", "data:image/png;base64,xx", "//a.example/x"),
    *("a.example/1.jpg", "http://with space/1.jpg", "http://user:pw@a.example/", "http://a.example/" + "x" * 3000),
    *("http://a..example/", "http://a.example:0/", "http://a.example:99999/", "http://1.2.3.4.5/", "http://a.example/\x00a"),
]


@pytest.mark.parametrize("url", NOT_LINKS)
def test_not_links(url: str) -> None:
    with pytest.raises(LinkError):
        link_of(url)
    assert not is_url(url)
    assert not judged(url)


def judged(url: str) -> bool:
    """Whether the filter's rule keeps a link."""
    mask: list[bool] = BadUrl()(pa.table({"url": pa.array([url], pa.string())})).to_pylist()
    return mask[0]


HOST = st.from_regex(r"[a-z0-9.%_:\\@\[\]-]{0,12}(\.[a-z0-9]{1,4})?", fullmatch=True)
TAIL = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    st.builds(
        "{}://{}{}{}".format, st.sampled_from(["http", "HTTPS", "hTTp", "ftp"]), HOST, st.sampled_from(["", "/", "?"]), TAIL
    )
)
def test_filter_and_fetcher_agree_on_any_text(url: str) -> None:
    try:
        link_of(url)
        fetched = True
    except LinkError:
        fetched = False
    assert is_url(url) == judged(url) == fetched


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.from_regex(PLAIN_URL, fullmatch=True))
def test_what_looks_plain_is_a_link(url: str) -> None:
    if len(url) <= 2048:
        link_of(url)


def test_plain_links_need_no_second_look() -> None:
    for url in (
        "http://a.example/1.jpg",
        "https://upload.wikimedia.org/a/b_c-d~e.jpg?width=3&x=%20y#z",
        "http://b.example:8080",
    ):
        assert re.fullmatch(PLAIN_URL, url)


def test_hosts() -> None:
    urls = ["http://A.example/1", "http:\\\\b.example\\1", "http://c.example.:80/", "no link", None]
    assert hosts_of(pa.array(urls)).to_pylist() == ["a.example", "b.example", "c.example", "", ""]


@pytest.mark.parametrize(
    ("link", "spellings"),
    [
        ("http://photos.test/my%20photo.jpg", ["http://photos.test/my photo.jpg", "HTTP://Photos.TEST/my photo.jpg#there"]),
        ("http://photos.test/", ["http://photos.test", "http://photos.test:80/", "http://photos.test#top"]),
        ("http://photos.test/b?c=d", ["http://photos.test/a/../b?c=d", "http://photos.test\\b?c=d "]),
        ("http://127.0.0.1/a?b=c", ["http://2130706433/a?b=c", " http://0x7f.1/a?b=c"]),
    ],
)
def test_spellings_of_one_link_are_one_link(link: str, spellings: list[str]) -> None:
    assert {id_of(url, "key") for url in [link, *spellings]} == {link}


def test_different_links_stay_different_and_what_is_no_link_stays_what_it_is() -> None:
    urls = [
        "http://a.test/x",
        "https://a.test/x",
        "http://a.test/X",
        "http://a.test/x?",
        "http://a.test/x/",
        "ftp://a.test/x",
        "x",
    ]
    assert len({id_of(url, "key") for url in urls}) == len(urls)
    usual = ["https://images.example.com/a-b_c/d.jpg?w=1&h=2", "http://a.b/~c,d=e"]
    assert [id_of(url, "key") for url in usual] == usual
    assert (id_of("", "key"), id_of(None, "key"), id_of("no link", "key")) == ("key", "key", "no link")
