"""An image that takes too long, too much, or the decoder with it, costs itself alone."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

import filtering.images.guard as guard
from filtering.images.guard import GuardedResize
from filtering.images.image_config import ImageConfig
from filtering.images.reasons import failure_of
from filtering.images.resize import Resize
from helpers.download_web import picture
from helpers.hostile_images import CASES
from helpers.pictures import saved


def process_id() -> int:
    process = guard._DECODERS.idle[-1]._process
    assert process is not None
    return process.pid


def test_results_are_those_of_resize() -> None:
    config = ImageConfig(image_size=48)
    images = [
        picture(),
        picture(1, (300, 200), "PNG"),
        b"",
        b"<html>",
        picture()[:-9],
        CASES["a WebP canvas of 9000 x 9000"][0](),
    ]
    resize = GuardedResize(config)
    assert [resize(data) for data in images] == [Resize(config)(data) for data in images]


def test_an_image_that_takes_too_long() -> None:
    slow = saved(Image.effect_noise((2_000, 2_000), 99).convert("RGB"), "PNG", compress_level=1)
    done = GuardedResize(ImageConfig(max_seconds=0.01))(slow)
    assert (done.status, done.message) == ("too_costly", "more than 0.01 s of processor time")
    assert failure_of(done.status) == "policy"
    assert GuardedResize(ImageConfig())(picture()).status == "success"


def test_a_decoder_that_is_killed_between_images_is_started_again() -> None:
    resize = GuardedResize(ImageConfig())
    resize(picture())
    before = process_id()
    os.kill(before, signal.SIGKILL)
    assert resize(picture()).status == "success"
    assert process_id() != before


@pytest.mark.parametrize("killed_by", [signal.SIGKILL, signal.SIGSEGV])
def test_a_decoder_that_ends_in_an_image(killed_by: signal.Signals) -> None:
    """What the kernel kills for memory is tried once more; a crash is no verdict on the image."""
    resize = GuardedResize(ImageConfig())
    resize(picture())
    slow = saved(Image.effect_noise((3_000, 3_000), 99).convert("RGB"), "PNG", compress_level=1)
    decoder = process_id()
    os.kill(decoder, signal.SIGSTOP)  # so that it cannot be done before it is killed

    def kill() -> None:
        os.kill(decoder, killed_by)
        if killed_by != signal.SIGKILL:
            os.kill(decoder, signal.SIGCONT)

    killer = threading.Timer(0.1, kill)
    killer.start()
    done = resize(slow)
    killer.join()
    if killed_by == signal.SIGKILL:
        assert done.status == "success"
    else:
        assert (done.status, done.message) == ("client_error", "the decoder ended with SIGSEGV")
        assert failure_of(done.status) == "policy"


def test_memory_is_limited() -> None:
    code = "from filtering.images.guard import _limit_memory; _limit_memory(2**26); bytes(2**25); bytes(2**28)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "MemoryError"


def test_as_many_decoders_as_threads() -> None:
    images = [picture(seed) for seed in range(16)]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(GuardedResize(ImageConfig()), images))
    assert found == list(map(Resize(ImageConfig()), images))
    assert len(guard._DECODERS.idle) <= 2


def test_the_decoder_ends_with_the_process_that_it_serves() -> None:
    code = """
import sys
import filtering.images.guard as guard
from filtering.images.image_config import ImageConfig
guard.GuardedResize(ImageConfig())(b"")
print(guard._DECODERS.idle[-1]._process.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        decoder = int(parent.stdout.readline())
        parent.kill()
        for _ in range(1_000):
            if not is_running(decoder):
                break
            time.sleep(0.01)
    assert not is_running(decoder)


def is_running(process: int) -> bool:
    """Whether there is such a process, other than one that has ended and that nobody has asked about."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
