"""What may go from ``home()``: found first, shown by whoever asked, and removed by a second call, item by item.

Sets, records, reports, experts and what lies outside of ``home()`` are never among it, and no link is followed.
"""

import os
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from dd_bench.errors import BusyError
from dd_bench.files import LONGEST_WRITE, home, is_held, lock_file, locked, measure, remove_lock
from dd_bench.run import lock_of_run
from dd_bench.runs import list_runs
from dd_bench.store import Store
from dd_bench.stored import DamagedSet

Kind: TypeAlias = Literal["lock", "run", "leftover", "network", "cache"]

_DAY = 86_400.0
_LEFTOVER = re.compile(r"\.(.+)\.[a-z0-9_]{8}\.(partial|former)", re.DOTALL)  # as tempfile and the store name them
_NETWORK_FILES = ("manifest.json", "weights.safetensors")


@dataclass(frozen=True)
class Waste:
    """A file or folder that may go.

    Attributes:
        kind: why.
        path: where.
        size_bytes: of its files.
        written: when the newest of them was written, in seconds since 1970.
    """

    kind: Kind
    path: Path
    size_bytes: int
    written: float


@dataclass(frozen=True)
class Survey:
    """What may go, in the order in which it is to be removed; and what stays though it looks like it, and why."""

    waste: tuple[Waste, ...]
    stays: tuple[str, ...]


def survey(older_than_days: float, caches: Iterable[Path] = ()) -> Survey:
    """Returns what may go by now; changes nothing.

    A run goes if no process is at it and nothing in it was written for ``older_than_days``. A network goes at the same
    age if no set names it, no set is damaged (it might), no run stays (its set will) and no process is at work.
    Caches go if none is at work, leftovers of writes also if they are older than an hour.

    Args:
        older_than_days: 0 or more.
        caches: files that can be made again.
    """
    now, stays = time.time(), Counter[str]()
    locks = list(_locks())
    held = {path for path in locks if is_held(path)}
    waste = list(_measured("lock", (path for path in locks if path not in held)))
    recent = f"written to within {older_than_days:g} days"

    def is_recent(written: float) -> bool:
        return now - written < older_than_days * _DAY

    runs, going = list_runs(), set[Path]()
    for run in runs:
        reason = (
            "a process is at it" if run.held
            else recent if is_recent(run.written)
            else "it lies elsewhere" if not _lies_in_home(run.folder)
            else ""
        )  # fmt: skip
        if reason:
            stays[f"unfinished run: {reason}"] += 1
        else:
            going.add(run.folder)
            waste.append(Waste("run", run.folder, run.size_bytes, run.written))

    settled = going | {run.folder for run in runs if run.held}  # what is left over in them goes with them, or stays
    for leftover in _measured("leftover", _leftovers(settled)):
        if held and now - leftover.written < LONGEST_WRITE:
            stays["leftover of a write: of the last hour, and processes are at work"] += 1
        else:
            waste.append(leftover)

    unnamed, damaged = _unnamed_networks()
    for network in _measured("network", unnamed):
        reason = (
            recent if is_recent(network.written)
            else "processes are at work" if held
            else "an unfinished run may want it" if len(going) < len(runs)
            else "a damaged set may name it" if damaged
            else ""
        )  # fmt: skip
        if reason:
            stays[f"network that no set names: {reason}"] += 1
        else:
            waste.append(network)

    for cache in _measured("cache", filter(_lies_in_home, caches)):
        if held:
            stays["cached file: processes are at work"] += 1
        else:
            waste.append(cache)
    return Survey(tuple(waste), tuple(f"{count} × {what}" for what, count in stays.items()))


def remove(waste: Waste) -> bool:
    """Removes what a survey found, and returns whether that was done; not if it vanished or came into use since.

    Raises:
        OSError: if the disk refuses.
    """
    path = waste.path
    if waste.kind == "lock":
        return _lies_in_home(path) and path.exists() and remove_lock(path)
    lock = lock_of_run(path.name) if waste.kind == "run" else _lock_of_set(path) if waste.kind == "leftover" else None
    if lock is None and _is_fresh(waste) and any(is_held(other) for other in _locks()):
        return False
    try:
        with locked(lock, wait_seconds=0) if lock else nullcontext():
            if not _lies_in_home(path) or measure(path)[1] != waste.written:
                return False
            _delete(path)
    except (BusyError, FileNotFoundError):
        return False
    finally:
        if lock and lock_file(lock).exists():
            remove_lock(lock_file(lock))
    return True


def _is_fresh(waste: Waste) -> bool:
    """Says whether a process at work could be using or writing it."""
    return waste.kind != "leftover" or time.time() - waste.written < LONGEST_WRITE


def _delete(path: Path) -> None:
    """Removes a file, or a folder in such a way that nobody sees half of it: what is cut off is a leftover."""
    if not path.is_dir():
        path.unlink()
        return
    aside = path
    if not _LEFTOVER.fullmatch(path.name):
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        path.rename(aside)
    with suppress(FileNotFoundError):  # another process clears up, too
        shutil.rmtree(aside)


def _measured(kind: Kind, paths: Iterable[Path]) -> Iterator[Waste]:
    for path in paths:
        with suppress(FileNotFoundError):
            yield Waste(kind, path, *measure(path))


def _lies_in_home(path: Path) -> bool:
    """Says whether a path below ``home()`` as it is written is there in truth: no part of it is a link."""
    root = home()
    return path.resolve() == root.resolve() / path.relative_to(root)


def _locks() -> Iterator[Path]:
    for path in sorted((home() / "locks").glob("*.lock")):
        if _lies_in_home(path) and path.is_file():
            yield path


def _leftovers(settled: set[Path]) -> Iterator[Path]:
    """Yields files and folders that a writer left half done, save those in the folders ``settled``."""
    root = home()
    for place, subfolders, names in os.walk(root):
        folder = Path(place)
        inside = folder.relative_to(root).parts
        for name in sorted([*subfolders, *names]):
            path, match = folder / name, _LEFTOVER.fullmatch(name)
            if match is None or path.is_symlink() or not (path.is_dir() or path.is_file()):
                continue
            if match[2] == "partial" or (_lock_of_set(path) and (folder / match[1]).exists()):  # or the set's only copy
                yield path
        subfolders[:] = [
            name for name in subfolders
            if not _LEFTOVER.fullmatch(name)
            and folder / name not in settled
            and (inside or name != "wandb")
            and not (inside[:1] == ("sets",) and len(inside) == 4)  # these are sets, and nobody writes into them
        ]  # fmt: skip


def _lock_of_set(path: Path) -> str | None:
    """Returns the lock under which the store makes what it left at ``path``; None if that is not the store's."""
    match, inside = _LEFTOVER.fullmatch(path.name), path.relative_to(home()).parts
    if match is None or inside[0] != "sets" or len(inside) != 5 or not path.is_dir():
        return None
    return f"set {(path.parent / match[1]).resolve()}"


def _unnamed_networks() -> tuple[list[Path], bool]:
    """Returns the networks that no set in the store names, and whether a set is damaged, whose networks are unknown."""
    named, damaged = set[str](), False
    for found in Store().list():
        if isinstance(found, DamagedSet):
            damaged = True
        else:
            named.update(found.manifest.provenance.parents)
    folders = sorted((home() / "teachers").glob("*"))
    unnamed = [
        folder for folder in folders
        if folder.name not in named and not folder.name.startswith(".") and _lies_in_home(folder)
        and any((folder / name).is_file() for name in _NETWORK_FILES)
    ]  # fmt: skip
    return unnamed, damaged
