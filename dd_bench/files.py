"""Files that are whole or absent: atomic writes, hashes, locks between processes, and the folders ddbench uses."""

import glob
import hashlib
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from dd_bench.errors import BusyError, InvalidSetError

LONGEST_WRITE = 3_600.0  # seconds; a write that did nothing for longer is none any more
_SILENT_SECONDS = 2.0  # a longer wait for a lock is told
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9@._+=,-]{0,99}")


def home() -> Path:
    """Returns the folder of sets, teachers and runs: ``DDBENCH_HOME``, or ``artifacts`` in the current folder."""
    return Path(os.environ.get("DDBENCH_HOME") or "artifacts")


def safe_name(name: str) -> str:
    """Returns ``name`` if it can be one component of a path and nothing else.

    Raises:
        InvalidSetError: for an empty name, a separator, a leading dot, control characters, or over 100 characters.
    """
    if not _NAME.fullmatch(name):
        raise InvalidSetError(f"{name[:120]!r} is no plain name; expected letters, digits and '@._+=,-' (at most 100)")
    return name


def write_atomic(path: Path, content: bytes) -> None:
    """Leaves ``path`` with ``content`` or, whatever happens, as it was; see ``open_atomic``."""
    with open_atomic(path) as file:
        file.write(content)


@contextmanager
def open_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Opens what becomes ``path`` when the block ends well; else ``path`` stays as it was. Creates missing folders.

    The content reaches the disk before the name does, so a full disk or a power cut never shows half a file. What a
    process that was killed in the middle of writing ``path`` has left beside it goes, an hour later.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)  # mkstemp's 0600 would hide records from the other users of a shared folder
        Path(partial).replace(path)
    except BaseException as error:
        Path(partial).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename, error.filename2 = str(path), None  # a full disk is found by fsync, which knows no name
        raise


def _sweep(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????.partial"):
        with suppress(OSError):  # another process sweeps, too
            if time.time() - leftover.stat().st_mtime > LONGEST_WRITE:
                leftover.unlink()


def sha256_file(path: Path) -> str:
    """Returns the hexadecimal sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def locked(name: str, *, wait_seconds: float = -1) -> Iterator[None]:
    """Holds the lock ``name`` against all other processes that share ``home()``.

    Lock files live in ``home()/locks`` and hold nothing; they vanish as locks when their process dies.

    Raises:
        BusyError: if ``wait_seconds`` (negative: no limit) pass while another process holds it.
    """
    path = lock_file(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_SILENT_SECONDS if wait_seconds < 0 else wait_seconds)
    except Timeout as timeout:
        if wait_seconds >= 0:
            raise BusyError(f"another process works on {name}; wait for it, or stop it") from timeout
        sys.stderr.write(f"waiting for another process that works on {name}\n")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_file(name: str) -> Path:
    """Returns the file behind the lock ``name``; it need not exist, and a free one may be removed (``remove_lock``)."""
    return home() / "locks" / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.lock"


def is_held(path: Path) -> bool:
    """Says whether a process holds the lock of the file ``path``; true also where that cannot be found out.

    Who asks for the lock just then without wanting to wait may take it for held.
    """
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def remove_lock(path: Path) -> bool:
    """Removes the file of a lock, unless a process holds it, and returns whether it is gone.

    It is removed while it is locked: who had opened it before finds that it has no name any more, and opens another.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    try:
        path.unlink(missing_ok=True)
    finally:
        lock.release()
    return True


def measure(path: Path) -> tuple[int, float]:
    """Returns the bytes of a file, or of all files in a folder, and when the newest was written (seconds since 1970).

    A folder without files counts from its own making; links are not followed, and what vanishes meanwhile is not there.

    Raises:
        FileNotFoundError: if there is no ``path``.
    """
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return (status.st_size if stat.S_ISREG(status.st_mode) else 0), status.st_mtime
    parts = []
    for entry in path.iterdir():
        with suppress(FileNotFoundError):
            parts.append(measure(entry))
    return sum(size for size, _ in parts), max((written for _, written in parts), default=status.st_mtime)


def slug(name: str) -> str:
    """Returns ``name`` as one component of a path: each run of other characters is a ``+``, as in ``cifar10@20+20``.

    Raises:
        InvalidSetError: if nothing of it can stand in a path.
    """
    return safe_name(re.sub(r"[^A-Za-z0-9@._+=,-]+", "+", name).lstrip("@._+=,-")[:100])


def human_bytes(count: int) -> str:
    """Returns a size for people, in powers of 1000 and three digits.

    >>> human_bytes(999), human_bytes(301_056), human_bytes(2_875_392)
    ('999 B', '301 kB', '2.88 MB')
    """
    if count < 1000:
        return f"{count} B"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f} {unit}"
