"""What the machine refuses or runs out of (disks, memory, limits, the network, Ray itself), in one line with the cure.

None of it is the user's input, and none a fault of this program: a full disk, a memory limit, a node that died. Only errors
that say so are taken for it. A missing file is not: whose mistake that is, its path decides.
"""

import errno
import os
import re
import shutil
import socket
import sys
import tempfile
import urllib.error
from collections.abc import Iterator, Sequence
from pathlib import Path

RESUME = "then run the same command again: it resumes"
SPACE = f"free some space, {RESUME}"
WRITABLE = "choose another folder, or change its permissions"
DRIVE = f"look at the disk or network drive, {RESUME}"
MEMORY = f"give it fewer processes (session.num_cpus, session.data_workers, train.workers) or more memory, {RESUME}"

CURES = {
    errno.ENOSPC: SPACE,
    errno.EDQUOT: SPACE,
    errno.EFBIG: f"raise the limit on the size of files (`ulimit -f`) or take another file system, {RESUME}",
    errno.EROFS: WRITABLE,
    errno.EACCES: WRITABLE,
    errno.EPERM: WRITABLE,
    errno.EMFILE: f"raise the limit with `ulimit -n 65536`, {RESUME}",
    errno.ENFILE: f"end other programs, {RESUME}",
    errno.ENOMEM: MEMORY,
    errno.EAGAIN: f"raise the limit on processes and threads (`ulimit -u`), {RESUME}",
    errno.ENAMETOOLONG: "give another, shorter path",
    errno.ELOOP: "give another path",
    errno.EIO: DRIVE,
    errno.ESTALE: DRIVE,
    errno.ENODEV: DRIVE,
    errno.ENXIO: DRIVE,
    errno.ENOTCONN: DRIVE,
    errno.EADDRINUSE: f"end what uses the port, {RESUME}",
    errno.ENETDOWN: f"look at the network, {RESUME}",
    errno.ENETUNREACH: f"look at the network, {RESUME}",
    errno.EHOSTUNREACH: f"look at the network, {RESUME}",
}
"""By errno. These are the machine's, whatever was asked of it."""

TEXTS = (
    (r"No space left on device|database or disk is full", errno.ENOSPC),
    (r"Disk quota exceeded", errno.EDQUOT),
    (r"Read-only file system|attempt to write a readonly database", errno.EROFS),
    (r"Too many open files", errno.EMFILE),
    (r"can't start new thread", errno.EAGAIN),
    (r"disk I/O error", errno.EIO),
    (r"Cannot allocate memory|can't allocate memory|not enough memory|std::bad_alloc", errno.ENOMEM),
)
"""How libraries word it that keep no errno: torch, safetensors, SQLite, Ray's tracebacks."""

RAY = {
    "OutOfMemoryError": f"Ray ended a worker, as its machine ran out of memory; {MEMORY}",
    "ObjectStoreFullError": f"Ray's object store is full; raise session.object_store_mb, {RESUME}",
    "OutOfDiskError": f"the disk of Ray's session folder is full; free some space or set RAY_TMPDIR to another disk, {RESUME}",
    "NodeDiedError": f"a machine of the Ray cluster died; look at `ray status`, {RESUME}",
    "LocalRayletDiedError": f"Ray died on this machine, often for want of memory; {MEMORY}",
    "WorkerCrashedError": f"a worker process was killed, often for want of memory; {MEMORY}",
    "ActorDiedError": f"a worker process was killed, often for want of memory; {MEMORY}",
    "ActorUnavailableError": f"a worker cannot be reached, its machine or network failed; look at `ray status`, {RESUME}",
    "OwnerDiedError": f"a process of the Ray cluster died; look at `ray status`, {RESUME}",
    "ObjectLostError": f"the Ray cluster lost data as a node died; look at `ray status`, {RESUME}",
    "RpcError": f"the Ray cluster does not answer any more; look at `ray status`, {RESUME}",
    "RuntimeEnvSetupError": "Ray could not set up its workers; look at runtime_env_setup-*.log in its session folder",
    "AuthenticationError": "the Ray cluster asks for another token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
    "WorkerGroupStartupTimeoutError": f"the Ray cluster had no room for the workers; look at `ray status`, {RESUME}",
    "WorkerGroupStartupFailedError": f"a worker ended while it started; look at `ray status`, {RESUME}",
    "InsufficientClusterResourcesError": "the Ray cluster never has room for the workers; lower train.workers",
    "WorkerHealthCheckTimeoutError": f"a worker does not answer any more; look at its machine, {RESUME}",
    "PreemptionError": f"the cloud took a machine back; look at `ray status`, {RESUME}",
    "TaskUnschedulableError": "no node of the Ray cluster can do the work; look at `ray status`",
    "ActorUnschedulableError": "no node of the Ray cluster can do the work; look at `ray status`",
}
"""By the name of Ray's exception."""

DEATHS = (
    ("its node has died", RAY["NodeDiedError"]),
    ("NODE_OUT_OF_MEMORY|running low on memory", RAY["OutOfMemoryError"]),  # it names "OOM" at every death, as a possibility
)
"""What Ray says of a worker's death in words alone."""

FULL_BYTES = 32 * 2**20
LONGEST = 400


class HangingCollectiveError(RuntimeError):
    """Some ranks waited for others for longer than they may; names those that did not come."""


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what caused it, the innermost inside of Ray's wrappers and groups first."""
    seen: set[int] = set()

    def walk(one: object) -> Iterator[BaseException]:
        if not isinstance(one, BaseException) or id(one) in seen:
            return
        seen.add(id(one))
        for name in ("cause", "controller_failure", "health_check_failure"):  # Ray's
            yield from walk(getattr(one, name, None))
        workers = getattr(one, "worker_failures", None)  # Ray Train's: one exception per rank
        for inner in (*(workers.values() if isinstance(workers, dict) else ()), *getattr(one, "exceptions", ())):
            yield from walk(inner)
        yield one
        yield from walk(one.__cause__)

    yield from walk(error)


def machine_problem(error: BaseException, folders: Sequence[Path] = ()) -> str | None:
    """What of the machine made `error`, or an error that it came from; None where nothing says so.

    `folders` are looked at where an error of a full disk does not say which.
    """
    chain = list(chain_of(error))
    for one in chain:
        # What a handler or the closing of a file raises hides the error before it.
        if found := _of(one, folders) or (_of(one.__context__, folders) if isinstance(one.__context__, OSError) else None):
            return " ".join(found.split())[:LONGEST]
    return None


def _of(error: BaseException, folders: Sequence[Path]) -> str | None:
    if isinstance(error, MemoryError):
        return f"not enough memory ({error}); {MEMORY}" if str(error) else f"not enough memory; {MEMORY}"
    if isinstance(error, OSError) and error.errno in CURES:
        return _told(error.errno, _name(error), folders)
    if isinstance(error, (ConnectionError, socket.gaierror, urllib.error.URLError)) and not isinstance(error, BrokenPipeError):
        return f"the network or a server failed ({error}); {RESUME.removeprefix('then ')}"
    if isinstance(error, UnicodeEncodeError) and error.encoding == sys.getfilesystemencoding() != "utf-8":
        name = ascii(error.object)[:120]
        return f"{name}: this shell's encoding ({error.encoding}) has no such letters; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    if isinstance(error, HangingCollectiveError):
        return f"{error}; look at that machine, {RESUME}"
    if type(error).__module__ == "torch" and type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full; lower optim.batch_size or the size of crops, or take more GPUs"
    return _of_ray(error) or _of_text(error, folders)


def _of_ray(error: BaseException) -> str | None:
    kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__.startswith("ray.")]
    if "RayTaskError" in kinds or getattr(error, "actor_init_failed", False):
        return None  # what the work itself raised
    if "RayActorError" in kinds and (told := next((told for words, told in DEATHS if re.search(words, str(error))), None)):
        return told
    return next((RAY[kind] for kind in kinds if kind in RAY), None)


def _of_text(error: BaseException, folders: Sequence[Path]) -> str | None:
    """For errors that keep no errno, of libraries and of Ray's workers."""
    if isinstance(error, (AssertionError, TypeError, AttributeError, KeyError, IndexError, ImportError)):
        return None
    text = str(error)
    if re.search(r"inline_container\.cc:\d+\] \. (unexpected pos|PytorchStreamWriter failed writing)", text):
        return f"a file of weights could not be written, most likely as its disk is full; {SPACE}"
    if "DataLoader worker" in text and "killed by signal" in text:
        return f"a process that reads images was killed, for want of memory or of space in /dev/shm; {MEMORY}"
    for number in re.findall(r"\[[Ee]rrno (\d+)\]|\(os error (\d+)\)|Os \{ code: (\d+)", text):
        if (code := int("".join(number))) in CURES:
            return _told(code, _quoted(text, code), folders)
    for pattern, code in TEXTS:
        if re.search(pattern, text):
            return _told(code, "", folders)
    return None


def _told(code: int, where: str, folders: Sequence[Path]) -> str:
    if not where and code in (errno.ENOSPC, errno.EDQUOT):
        where = next((str(folder) for folder in (*folders, Path(tempfile.gettempdir())) if _is_full(folder)), "")
    return f"{where}{': ' if where else ''}{os.strerror(code)}; {CURES[code]}"


def _name(error: OSError) -> str:
    """The file that an error names, printable; "" where none."""
    name = error.filename2 or error.filename
    if isinstance(name, (str, bytes)):
        text = os.fsdecode(name)
        return text if len(text) <= 160 else f"{text[:80]}..."
    return _quoted(str(error), error.errno or 0)


def _quoted(text: str, code: int) -> str:
    """The file of "[Errno 28] No space left on device: 'file'" in a text; "" where none."""
    found = re.search(rf"\[[Ee]rrno {code}\][^\n']*: '([^'\n]+)'", text)
    return found[1] if found else ""


def _is_full(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False
