"""What goes wrong, and when: faults at a chosen change of the disk, or in a chosen step.

Python announces most changes that it makes to files (``sys.addaudithook``), so a fault can be put before any of them,
and the same one each time. Between two of them nothing that outlives the process changes but the file under way.
"""

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dd_bench.run import Run

Kind = Literal["count", "kill", "terminate", "interrupt", "full", "read-only", "nan", "clock"]

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod", "os.symlink", "os.truncate"}
_GROWTH = {"open", "os.mkdir", "os.link"}  # what a full disk refuses; names can still change and go


@dataclass(frozen=True)
class Fault:
    """What happens, and before which change of the disk (or, of ``nan``, in which observed step), counted from 0.

    ``full`` and ``read-only`` begin there and stay; ``count`` does nothing but count. With ``clock`` the time of day is
    another at each look, up to a week off; the place seeds it.
    """

    kind: Kind
    at: int = 0


@dataclass
class Tally:
    """How many changes of the disk and how many observed steps there have been so far."""

    changes: int = 0
    observed: int = 0


def arm(fault: Fault, folder: Path) -> Tally:
    """Has the fault happen to files in ``folder``, in this process, which cannot be made whole again."""
    tally, inside = Tally(), f"{folder}{os.sep}"
    happen = _ACTIONS.get(fault.kind)

    def watch(event: str, details: tuple[Any, ...]) -> None:
        if not _changes(event, details, inside):
            return
        tally.changes += 1
        if happen is not None and tally.changes > fault.at:
            happen(event, tally.changes - 1 == fault.at)

    sys.addaudithook(watch)
    if fault.kind == "clock":
        now, off = time.time, random.Random(fault.at)
        time.time = lambda: now() + off.uniform(-7, 7) * 86_400
    observe = Run.observe

    def observed(self: Run, **quantities: Tensor) -> None:
        if fault.kind == "nan" and tally.observed == fault.at:
            name = next(iter(quantities))
            quantities[name] = torch.full_like(quantities[name].detach().float(), torch.nan)
        tally.observed += 1
        observe(self, **quantities)

    Run.observe = observed  # type: ignore[method-assign]
    return tally


def _changes(event: str, details: tuple[Any, ...], inside: str) -> bool:
    if event == "open":
        return details[0].__class__ in (str, bytes) and _is_inside(details[0], inside) and bool(details[2] & _WRITING)
    return event in _CHANGES and any(_is_inside(part, inside) for part in details)


def _is_inside(path: object, inside: str) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return isinstance(path, str | Path) and str(path).startswith(inside)


def _kill(_event: str, first: bool) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _signal(number: signal.Signals) -> Callable[[str, bool], None]:
    def send(_event: str, first: bool) -> None:
        if first:
            signal.raise_signal(number)

    return send


def _full(event: str, first: bool) -> None:
    if event in _GROWTH:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read_only(event: str, first: bool) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


_ACTIONS: dict[str, Callable[[str, bool], None]] = {
    "kill": _kill,
    "terminate": _signal(signal.SIGTERM),
    "interrupt": _signal(signal.SIGINT),
    "full": _full,
    "read-only": _read_only,
}
