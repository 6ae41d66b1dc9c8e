"""Links behind a URL with a password and a signature: read as ever, and nowhere in what is written."""

import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from filtering.captions.corpus import FilterConfig, build_corpus, corpus_fingerprint
from filtering.captions.reader import SourceConfig


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    lines = [f"http://pics.test/{number}.jpg\ta dog and a cat on a chair number {number}\n" for number in range(20)]
    (tmp_path / "web" / "links.tsv").write_text("".join(lines))
    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}/links.tsv"
        server.shutdown()


def test_secrets_of_a_source_are_written_nowhere_and_may_change(served: str, tmp_path: Path) -> None:
    def config(secret: str) -> FilterConfig:
        return FilterConfig(source=SourceConfig(path=f"http://user:{secret}@{served}?token={secret}"), shards=2)

    out = tmp_path / "corpus"
    built = build_corpus(config("hunter2"), out)
    assert built["links"] == 20
    written = [path for path in out.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert [path.name for path in written if b"hunter2" in path.read_bytes()] == []
    assert corpus_fingerprint(config("hunter3"), {}) == corpus_fingerprint(config("hunter2"), {})
    times = {path: path.stat().st_mtime_ns for path in (out / "_build" / "read").glob("*.parquet")}
    assert times
    assert build_corpus(config("hunter3"), out) == built
    assert {path: path.stat().st_mtime_ns for path in times} == times  # nothing was read again
