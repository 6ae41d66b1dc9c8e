"""A list of links by somebody hostile, from its TSV to the shards: every row is told, nothing is reached or written elsewhere.

The single defences have tests of their own (test_addresses, test_resolver, test_fetch_hostile, test_resize_hostile,
test_reader); here they stand together, against a real server in its own process.
"""

import json
import tarfile
from typing import Any

import pytest

from filtering.captions.corpus import FilterConfig, build_corpus
from filtering.captions.reader import SourceConfig
from filtering.images.download import DownloadConfig, download_corpus
from filtering.images.fetch_config import FetchConfig
from helpers.download_web import picture
from helpers.downloads import statuses
from helpers.hostile_images import CASES
from miniature.server import serve

SITE = "http://photos.test"
FILES = {f"/{number}.jpg": (name, CASES[name]) for number, name in enumerate(CASES)}
# PORT is the server's own: links must not reach it but by its name.
LINKS = {
    "file:///etc/hostname": "bad_scheme",
    "FILE:///etc/hostname": "bad_scheme",
    "ftp://127.0.0.1/x.jpg": "bad_scheme",
    "data:image/png;base64,iVBORw0KGgo=": "bad_scheme",
    "javascript:alert(1)": "bad_scheme",
    "gopher://127.0.0.1:PORT/_GET": "bad_scheme",
    "http://127.0.0.1:PORT/fine.jpg": "forbidden_address",
    "http://localhost:PORT/fine.jpg": "forbidden_address",
    "http://2130706433:PORT/fine.jpg": "forbidden_address",
    "http://0x7f000001:PORT/fine.jpg": "forbidden_address",
    "http://0177.0.0.1:PORT/fine.jpg": "forbidden_address",
    "http://127.1:PORT/fine.jpg": "forbidden_address",
    "http://0:PORT/fine.jpg": "forbidden_address",
    "http://[::1]:PORT/fine.jpg": "forbidden_address",
    "http://[::ffff:127.0.0.1]:PORT/fine.jpg": "forbidden_address",
    "http://[::ffff:7f00:1]:PORT/fine.jpg": "forbidden_address",
    "http://１２７.０.０.１:PORT/fine.jpg": "forbidden_address",
    "http://%31%32%37.0.0.1:PORT/fine.jpg": "forbidden_address",
    "http://169.254.169.254/latest/meta-data/": "forbidden_address",
    "http://[fd00:ec2::254]/latest/meta-data/": "forbidden_address",
    "http://10.0.0.1/": "forbidden_address",
    "http://192.168.1.1/admin": "forbidden_address",
    "http://224.0.0.1/": "forbidden_address",
    "http://user:password@photos.test/fine.jpg": "bad_url",
    "http://photos.test\\@127.0.0.1:PORT/": "http_404",
    "http://photos.test:99999/fine.jpg": "bad_url",
    "http:///fine.jpg": "bad_url",
    "//photos.test/fine.jpg": "bad_url",
    f"{SITE}/fi\x01ne.jpg": "bad_url",
    f"{SITE}/{'a' * 3000}.jpg": "bad_url",
    f"{SITE}/x%0d%0aX-Injected:%20yes%0d%0a.jpg": "http_404",
    f"{SITE}/../../../../etc/passwd": "http_404",
    f"{SITE}/%2e%2e/%2e%2e/etc/passwd": "http_404",
    f"{SITE}/to-itself.jpg": "too_many_redirects",
    f"{SITE}/to-a-file.jpg": "bad_scheme",
    f"{SITE}/to-the-metadata.jpg": "forbidden_address",
    f"{SITE}/to-loopback.jpg": "forbidden_address",
    f"{SITE}/to-decimal.jpg": "forbidden_address",
    f"{SITE}/drip.jpg": "timeout",
}
REDIRECTS = {
    "/to-itself.jpg": "/to-itself.jpg",
    "/to-a-file.jpg": "file:///etc/hostname",
    "/to-the-metadata.jpg": "http://169.254.169.254/latest/",
    "/to-loopback.jpg": "http://127.0.0.1:1/",
    "/to-decimal.jpg": "http://2130706433:1/",
}
TRAPS = [
    'fine.jpg?quote\t"a cat behind a quote that never closes',
    "fine.jpg?tab\ta cat\tbetween\ttabs",
    "fine.jpg?nul\ta cat with nul\0s",
    "fine.jpg?nan\tcat nan",
    "fine.jpg?path\ta cat in ../../../../tmp/evil",
    "fine.jpg?entity\ta cat &amp; &quot;quotes&quot;",
    "fine.jpg?line\ta cat \u2028 and a \x85 line",
    "fine.jpg?formula\t=cmd|' /C calc'!A0 a cat",
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each caption's link, and what there is to look at."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "web").mkdir()
    (folder / "web" / "fine.jpg").write_bytes(picture())
    (folder / "web" / "drip.jpg").write_bytes(picture())
    for path, (_, (make, *_)) in FILES.items():
        (folder / "web" / path.removeprefix("/")).write_bytes(make())
    faults = {path: {"fault": "redirect", "to": target} for path, target in REDIRECTS.items()} | {
        "/drip.jpg": {"fault": "drip"}
    }
    (folder / "web" / "faults.json").write_text(json.dumps(faults))
    with serve(folder / "web", log=folder / "requests.log") as address:
        port = address.rpartition(":")[2]
        rows = [f"{SITE}{path}\ta cat, file {path}" for path in FILES]
        rows += [f"{link.replace('PORT', port)}\ta cat, link {number}" for number, link in enumerate(LINKS)]
        rows += [f"{SITE}/{trap}" for trap in TRAPS] + ["no link, but a cat", "\t", ""]
        (folder / "links.tsv").write_text("url\tcaption\n" + "\n".join(rows), newline="")
        before = sorted(folder.parent.iterdir())
        source = SourceConfig(path=str(folder / "links.tsv"))
        corpus = build_corpus(FilterConfig(source=source, rules=(), min_count=1, shards=1), folder / "corpus")
        fetch = FetchConfig(
            connect_to={"photos.test": address}, timeout=3.0, backoff=0.01, per_host=64, per_host_rate=0.0, host_pause=0.0
        )
        report = download_corpus(DownloadConfig(fetch=fetch, shard_size=20), folder / "corpus", folder / "shards")
    return {
        "folder": folder,
        # Spellings of one link are one image: each of its captions has the image's row.
        "rows": {caption: row for row in statuses(folder / "shards") for caption in (row["captions"] or [row["caption"]])},
        "corpus": corpus,
        "report": report,
        "requests": (folder / "requests.log").read_text().splitlines(),
        "strangers": sorted(set(folder.parent.iterdir()) - set(before)),
    }


@pytest.mark.parametrize("path", FILES, ids=[name for name, _ in FILES.values()])
def test_files(world: dict[str, Any], path: str) -> None:
    name, (_, status, _) = FILES[path]
    assert world["rows"][f"a cat, file {path}"]["status"] == status, name


@pytest.mark.parametrize("link", LINKS, ids=[repr(link)[1:50] for link in LINKS])
def test_links(world: dict[str, Any], link: str) -> None:
    row = world["rows"][f"a cat, link {list(LINKS).index(link)}"]
    assert (row["status"], row["sha256"]) == (LINKS[link], None), row["error_message"]
    assert row["error_message"] or row["status"].startswith("http_")


@pytest.mark.parametrize("trap", TRAPS, ids=[trap.partition("\t")[0] for trap in TRAPS])
def test_rows_of_the_table_stay_apart(world: dict[str, Any], trap: str) -> None:
    url = f"{SITE}/{trap.partition(chr(9))[0]}"
    (row,) = (row for row in world["rows"].values() if row["url"] == url)
    assert row["status"] == "success"
    assert "cat" in row["caption"]


def test_every_row_is_told(world: dict[str, Any]) -> None:
    corpus, report = world["corpus"], world["report"]
    assert corpus["links"] == len(FILES) + len(LINKS) + len(TRAPS) + 2  # the empty line is none
    assert corpus["kept"] + sum(corpus["dropped"].values()) == corpus["links"]
    assert report["captions"] == corpus["kept"] == len(world["rows"])
    assert sum(report["by_status"].values()) == report["links"]


def test_nothing_was_asked_but_what_the_links_of_the_site_name(world: dict[str, Any]) -> None:
    """The server answers whoever asks: a link that reached it by its address would show."""
    asked = set(world["requests"])
    assert "/latest/meta-data/" not in asked
    assert world["requests"].count("/fine.jpg") == len(TRAPS)
    assert world["requests"].count("/to-itself.jpg") == 11


def test_nothing_was_written_elsewhere(world: dict[str, Any]) -> None:
    folder = world["folder"]
    assert sorted(path.name for path in folder.iterdir()) == ["corpus", "links.tsv", "requests.log", "shards", "web"]
    assert world["strangers"] == []
    for tar in folder.glob("shards/*.tar"):
        with tarfile.open(tar) as file:
            assert all(member.isfile() and "/" not in member.name for member in file)
