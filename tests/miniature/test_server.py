"""The image server: every fault over real HTTP, and a life that ends with its parent's."""

import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from miniature import InputError
from miniature.server import HTML, serve

FAULTS = {
    "/gone.jpg": {"fault": "404"},
    "/long_gone.jpg": {"fault": "410"},
    "/ill.jpg": {"fault": "heal", "after": 2},
    "/slow.jpg": {"fault": "drip"},
    "/page.jpg": {"fault": "html"},
    "/half.jpg": {"fault": "truncated"},
    "/private.jpg": {"fault": "noai"},
    "/old.jpg": {"fault": "redirect", "to": "/new.jpg"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "root"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for name in ("fine", "ill", "slow", "half", "private", "new"):
        Image.fromarray(noise).save(folder / f"{name}.jpg")
    (folder / "faults.json").write_text(json.dumps(FAULTS))
    (folder / "notes.txt").write_text("not an image")
    Image.fromarray(noise).save(folder.parent / "secret.jpg")
    (folder / "sneaky.jpg").symlink_to(folder.parent / "secret.jpg")
    return folder


@pytest.fixture
def address(root: Path) -> Iterator[str]:
    with serve(root) as address:
        yield address


def get(address: str, path: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(address, timeout=20)
    try:
        connection.putrequest("GET", path, skip_host=True)
        connection.putheader("Host", "photos-1.miniature.test")
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_a_fine_image_arrives_whole_whatever_the_host(root: Path, address: str) -> None:
    status, headers, body = get(address, "/fine.jpg?size=large")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert body == (root / "fine.jpg").read_bytes()


def test_an_absolute_url_is_answered_by_its_path(root: Path, address: str) -> None:
    assert get(address, "http://photos-2.miniature.test/fine.jpg")[2] == (root / "fine.jpg").read_bytes()


@pytest.mark.parametrize(("path", "expected"), [("/gone.jpg", 404), ("/long_gone.jpg", 410), ("/none.jpg", 404), ("/", 404)])
def test_missing_images(address: str, path: str, expected: int) -> None:
    assert get(address, path)[0] == expected


def test_an_error_heals_after_its_number_of_requests_and_in_every_new_server(root: Path) -> None:
    for _ in range(2):
        with serve(root) as address:
            assert [get(address, "/ill.jpg")[0] for _ in range(4)] == [500, 500, 200, 200]


def test_a_slow_drip_sends_something_but_not_the_end(root: Path, address: str) -> None:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"GET /slow.jpg HTTP/1.1\r\nHost: a\r\n\r\n")
        data = b""
        while len(data.partition(b"\r\n\r\n")[2]) < 3:
            data += connection.recv(1)
    head, _, body = data.partition(b"\r\n\r\n")
    length = (root / "slow.jpg").stat().st_size
    assert f"Content-Length: {length}".encode() in head
    assert (root / "slow.jpg").read_bytes().startswith(body)
    assert get(address, "/fine.jpg")[0] == 200  # and others are served meanwhile


def test_a_web_page_under_an_images_name(address: str) -> None:
    status, headers, body = get(address, "/page.jpg")
    assert (status, headers.get_content_type(), body) == (200, "text/html", HTML)


def test_a_truncated_image_looks_complete_to_http_and_broken_to_a_decoder(root: Path, address: str) -> None:
    status, headers, body = get(address, "/half.jpg")
    assert (status, headers["Content-Type"], int(headers["Content-Length"])) == (200, "image/jpeg", len(body))
    assert len(body) == (root / "half.jpg").stat().st_size // 2
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(body)).load()


def test_an_opt_out_comes_with_the_image(root: Path, address: str) -> None:
    _, headers, body = get(address, "/private.jpg")
    assert headers["X-Robots-Tag"] == "noai"
    assert body == (root / "private.jpg").read_bytes()
    assert get(address, "/fine.jpg")[1]["X-Robots-Tag"] is None


def test_a_redirect_leads_to_the_image(address: str) -> None:
    status, headers, _ = get(address, "/old.jpg")
    assert (status, headers["Location"]) == (302, "/new.jpg")
    assert get(address, headers["Location"])[0] == 200


def test_one_connection_carries_many_requests(address: str) -> None:
    connection = http.client.HTTPConnection(address, timeout=20)
    statuses = []
    for path in ("/fine.jpg", "/gone.jpg", "/old.jpg", "/page.jpg", "/fine.jpg"):
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        statuses.append(response.status)
        assert not response.will_close
    connection.close()
    assert statuses == [200, 404, 302, 200, 200]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.jpg",
        "/%2e%2e/secret.jpg",
        "/..%2fsecret.jpg",
        "//../secret.jpg",
        "/x/../../secret.jpg",
        "/sneaky.jpg",
        "/fine.jpg%00.png",
        "/notes.txt",
        "/faults.json",
        f"/{'x' * 5000}.jpg",
    ],
)
def test_nothing_but_the_folders_own_images_is_served(address: str, path: str) -> None:
    assert get(address, path)[0] == 404


def test_what_is_no_url_is_a_bad_request(address: str) -> None:
    assert get(address, "http://[/fine.jpg")[0] == 400


def test_an_absolute_path_stays_inside_the_folder(root: Path, address: str) -> None:
    assert get(address, "/" + str(root.parent / "secret.jpg"))[0] == 404


def test_requests_are_counted_and_the_log_outlives_the_server(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "requests.log"
    for _ in range(2):
        with serve(root, log=log) as address:
            for path in ("/fine.jpg", "/gone.jpg", "/fine.jpg"):
                get(address, path)
            assert json.loads(get(address, "/_requests")[2]) == {"/fine.jpg": 2, "/gone.jpg": 1}
    assert log.read_text().split() == ["/fine.jpg", "/gone.jpg", "/fine.jpg"] * 2


def test_the_server_dies_with_a_killed_parent(root: Path) -> None:
    code = "import sys,time; from pathlib import Path; from miniature.server import serve\n"
    code += "with serve(Path(sys.argv[1])) as a: print(a, flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert get(address, "/fine.jpg")[0] == 200
        os.kill(parent.pid, signal.SIGKILL)
    for _ in range(600):
        try:
            get(address, "/fine.jpg")
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the server still answers")


@pytest.mark.parametrize("faults", ["[]", '{"/a.jpg": {"fault": "flood"}}', "{", '{"/a.jpg": {}}'])
def test_bad_faults_are_refused(tmp_path: Path, faults: str) -> None:
    (tmp_path / "faults.json").write_text(faults)
    with pytest.raises(InputError, match=r"faults\.json"), serve(tmp_path):
        pass


def test_a_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miniature.server", str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "nowhere: no such folder" in result.stderr


def test_a_taken_port_is_told_in_one_line(root: Path, address: str) -> None:
    command = [sys.executable, "-m", "miniature.server", str(root), "--port", address.split(":")[1]]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"--port {address.split(':')[1]}: Address already in use" in result.stderr
