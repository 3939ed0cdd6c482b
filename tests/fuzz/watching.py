"""What a reader does while it reads hostile input: it may refuse in one line, and do nothing else of consequence."""

import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from dd_bench.errors import DDBenchError

T = TypeVar("T")

_SECONDS = 20.0  # a reader that takes longer hangs
_MEMORY = 1 << 30  # bytes that it may map beyond what is mapped already
# Of each event, where among its arguments a path is, and where the folder that a relative path begins at
_PATHS = {
    "os.rename": ((0, 2), (1, 3)), "os.link": ((0, 2), (1, 3)), "os.symlink": ((1, 2),), "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),), "os.mkdir": ((0, 2),), "os.truncate": ((0, 0),), "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),), "os.utime": ((0, 3),),
}  # fmt: skip
_NEVER = {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system",
          "os.exec", "os.posix_spawn", "os.fork"}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_allowed: list[str] | None = None  # folders that may be written to while something is watched
_offences: list[str] = []
inputs = 0  # tried by this process so far


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _allowed is None:
        return
    if event in _NEVER:
        _offences.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        if not (set(mode or "") & set("wax+") or (flags or 0) & _WRITING):
            return
        _require(event, path)
    elif event in _PATHS:
        for path, folder in _PATHS[event]:
            start = arguments[folder]
            _require(event, arguments[path], start if isinstance(start, int) and start >= 0 else None)


def _require(event: str, path: Any, folder: int | None = None) -> None:
    if isinstance(path, int):  # a file that was opened before
        return
    start = "" if folder is None else str(Path(f"/proc/self/fd/{folder}").readlink())
    place = os.path.realpath(os.path.join(start, os.fsdecode(path)))  # noqa: PTH118 - many a call, in a hook
    if not any(place == one or place.startswith(one + os.sep) for one in _allowed or ()):
        _offences.append(f"{event} {place}")


sys.addaudithook(_hook)
sys.dont_write_bytecode = True  # what is imported meanwhile would be written somewhere


def attempt(action: Callable[[], T], *, within: Path) -> T | None:
    """Returns what ``action`` returns, or None if it was refused.

    A refusal is a ``DDBenchError`` of one printable line. Any other exception fails the test, and so does what takes
    too long or too much memory, what unpickles, connects, starts a process, or writes anywhere but ``within``.
    """
    global inputs
    inputs += 1
    with _watched(within):
        try:
            return action()
        except DDBenchError as error:
            refusal = str(error)
    assert refusal
    assert refusal.isprintable(), refusal
    assert len(refusal) < 4000, refusal
    return None


@contextmanager
def _watched(within: Path) -> Iterator[None]:
    global _allowed

    def hang(*_: object) -> None:
        raise AssertionError(f"nothing came of it in {_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else None
    if pages is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MEMORY, limits[1]))
    _offences.clear()
    _allowed = [os.path.realpath(within), "/dev/null"]
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _allowed = None
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)
    assert not _offences, "; ".join(_offences)
