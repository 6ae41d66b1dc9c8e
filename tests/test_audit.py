"""The audit of the pinned versions, against a small advisory service on loopback."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers.paths import load_tool
from helpers.servers import free_port, greeter

audit = load_tool("audit")


def advisory(package: dict[str, str]) -> dict[str, Any]:
    """Says that all versions of a package below 1.3 are vulnerable."""
    ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.3"}]}]
    about = {"id": "TEST-2026-1", "modified": "2026-01-01T00:00:00Z", "summary": "all of it"}
    return about | {"affected": [{"package": package, "ranges": ranges}]}


@contextmanager
def service(status: int = 200) -> Iterator[str]:
    """Knows of one vulnerability: of leaky 1.2."""

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            known = asked["package"]["name"] == "leaky" and asked["version"] == "1.2"
            answer = json.dumps({"vulns": [advisory(asked["package"])]} if known else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()


@pytest.fixture
def constraints(tmp_path: Path) -> Path:
    file = tmp_path / "constraints.txt"
    file.write_text("tight==1.0\nleaky==1.2\n")
    return file


def test_a_vulnerable_version_fails(constraints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with service() as url:
        assert audit.main(["--constraints", str(constraints), "--osv-url", url]) == 1
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines[1:] == [["leaky", "1.2", "TEST-2026-1", "1.3"]]
        constraints.write_text("tight==1.0\nleaky==1.3\n")
        assert audit.main(["--constraints", str(constraints), "--osv-url", url]) == 0
        assert capsys.readouterr().out == "constraints.txt: no known vulnerability\n"


def test_without_a_service_one_line_says_so_and_nothing_fails(
    constraints: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(url: str) -> str:
        assert audit.main(["--constraints", str(constraints), "--osv-url", url]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    assert told(f"http://127.0.0.1:{free_port()}/") == "constraints.txt: not audited: no advisory service answers\n"
    with service(status=503) as url:
        assert told(url) == "constraints.txt: not audited: no advisory service answers\n"
    monkeypatch.setattr(audit, "SECONDS_A_REQUEST", 1)
    with greeter(b"") as port:  # never says a word
        assert told(f"http://127.0.0.1:{port}/") == "constraints.txt: not audited: no advisory service answers\n"


def test_a_file_that_is_no_list_of_versions_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "constraints.txt").write_text("leaky>=1.2\n")
    assert audit.main(["--constraints", str(tmp_path / "constraints.txt")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'constraints.txt'}: not audited: ")
