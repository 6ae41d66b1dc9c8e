"""Decoding within bounds: in a process of its own, which an image that takes too long or too much costs, and nothing else.

A decoder cannot be interrupted from within: most of its time is spent in C. The kernel ends the process when an image has had
its processor time, however busy the machine is with other things. There are as many processes as threads of this one have had
images in work at the same time; one that is lost is started again.
"""

import os
import pickle
import resource
import signal
import subprocess
import sys
from functools import lru_cache
from importlib.util import find_spec
from multiprocessing.connection import Connection, Pipe

from filtering import InputError
from filtering.images.image_config import ImageConfig, Resized

_STARTED = b"started"
_START_SECONDS = 120.0
_HANG_SECONDS = 600.0
"""Beyond all processor time: what a decoder that waits for nothing, and uses none, may take."""
_BYTES_PER_PIXEL = 24
"""What decoding takes at most: an animated, transparent WebP has five copies in memory."""
_SPARE_BYTES = 2**28
_KEPT_BYTES = str(2**26)
"""Memory of one image that is kept for the next: to get it from the kernel anew takes 3 % of the time."""
_COMMAND = "import sys; from filtering.images.guard import serve; serve(int(sys.argv[1]))"


class GuardedResize:
    """As `Resize`, but an image that takes more than `max_seconds` of processor time, or memory beyond what `max_area` pixels
    need, becomes "too_costly", and one that crashes the decoder "client_error". May be called from any thread.
    """

    def __init__(self, config: ImageConfig) -> None:
        if config.pixels == "img2dataset" and find_spec("img2dataset") is None:
            raise InputError("pixels: img2dataset is not installed; install the extra of that name, or set pixels=fast")
        self._config = config
        self._message = pickle.dumps(config)

    def __call__(self, data: bytes) -> Resized:
        ended = _DECODERS.ask(self._message, data, self._config.max_seconds + _HANG_SECONDS)
        if ended == -signal.SIGKILL:  # the kernel's choice when the machine's memory is full: not for sure this image's fault
            ended = _DECODERS.ask(self._message, data, self._config.max_seconds + _HANG_SECONDS)
        if isinstance(ended, Resized):
            return ended
        if ended == -signal.SIGPROF:
            return Resized(status="too_costly", message=f"more than {self._config.max_seconds:g} s of processor time")
        how = signal.Signals(-ended).name if ended < 0 else f"exit code {ended}"
        return Resized(status="client_error", message=f"the decoder ended with {how}")


class _Decoder:
    """A process, from its first image on until this one ends. It takes one image after the other."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def ask(self, config: bytes, data: bytes, seconds: float) -> Resized | int:
        """What became of an image, or the exit status of the process that it cost."""
        if self._process is not None and self._process.poll() is not None:
            self._reap()  # it ended between two images
        if self._process is None:
            self._process = self._start()
        process = self._process
        try:
            self._connection.send_bytes(config)
            self._connection.send_bytes(data)
            if self._connection.poll(seconds):
                answer: Resized = self._connection.recv()
                return answer
            process.terminate()
        except (EOFError, OSError):
            pass  # it is gone
        except BaseException:
            process.kill()  # interrupted: the next image must not get the answer to this one
            self._reap()
            raise
        return self._reap()

    def _start(self) -> subprocess.Popen[bytes]:
        self._connection, theirs = Pipe()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
                    "MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
                    "MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
                },
                start_new_session=True,  # Ctrl-C is for this process to answer
            )
        try:
            if self._connection.poll(_START_SECONDS) and self._connection.recv_bytes() == _STARTED:
                return process
        except (EOFError, OSError):
            pass
        process.kill()
        raise RuntimeError(f"the process that decodes images did not start: exit status {process.wait()}")

    def _reap(self) -> int:
        assert self._process is not None
        self._connection.close()
        status = self._process.wait()
        self._process = None
        return status


class _Decoders:
    """The processes that decode. Which of them takes an image does not matter."""

    def __init__(self) -> None:
        self.idle: list[_Decoder] = []

    def ask(self, config: bytes, data: bytes, seconds: float) -> Resized | int:
        try:
            decoder = self.idle.pop()
        except IndexError:
            decoder = _Decoder()
        try:
            return decoder.ask(config, data, seconds)
        finally:
            self.idle.append(decoder)


_DECODERS = _Decoders()


def serve(descriptor: int) -> None:
    """The decoder's side: configurations and images in, results out, until the other end hangs up."""
    from filtering.images.resize import Resize  # the processes that only ask do without what decodes

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    # What is pickled comes through a pipe from the process that started this one.
    resize_for = lru_cache(4)(lambda message: Resize(pickle.loads(message)))  # noqa: S301
    with Connection(descriptor) as connection:
        connection.send_bytes(_STARTED)
        while True:
            try:
                message = connection.recv_bytes()
                data = connection.recv_bytes()
            except EOFError:
                return
            config: ImageConfig = pickle.loads(message)  # noqa: S301
            resize = resize_for(message)
            _limit_memory(_BYTES_PER_PIXEL * config.max_area + 4 * len(data) + _SPARE_BYTES)
            signal.setitimer(signal.ITIMER_PROF, config.max_seconds)
            resized = resize(data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.send(resized)


def _limit_memory(more: int) -> None:
    """Let the process have so many bytes more than it has now, of memory that nobody shares."""
    with open("/proc/self/statm", "rb") as file:
        pages = int(file.read().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))
