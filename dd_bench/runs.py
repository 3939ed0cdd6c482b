"""Unfinished runs as others see them: how far they are and whether a process is at them.

Nothing here disturbs such a process, and of its checkpoints only the headers are read.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dd_bench.checkpoint import peek_tree
from dd_bench.errors import InvalidSetError
from dd_bench.files import home, is_held, lock_file, measure
from dd_bench.run import lock_of_run

_UNITS = ((86_400, "day"), (3_600, "hour"), (60, "minute"))


@dataclass(frozen=True)
class Stage:
    """What a checkpoint says of the stage that it was saved in.

    Attributes:
        label: its name.
        step: steps done when it was saved.
        total: steps that it has.
        seconds: wall seconds spent on it until then.
        saved: when, in seconds since 1970.
    """

    label: str
    step: int
    total: int
    seconds: float
    saved: float

    @property
    def seconds_left(self) -> float | None:
        """Wall seconds that the rest takes at the rate so far, or None before there is one."""
        return self.seconds / self.step * (self.total - self.step) if self.step > 0 else None


@dataclass(frozen=True)
class RunStatus:
    """A run's folder.

    Attributes:
        folder: where it is; its name is the run's.
        held: whether a process is at it.
        stages: those with a checkpoint, the latest saved last.
        damaged: names of checkpoints that cannot be read.
        size_bytes: of all its files.
        written: when the newest of them was written, in seconds since 1970.
    """

    folder: Path
    held: bool
    stages: tuple[Stage, ...]
    damaged: tuple[str, ...]
    size_bytes: int
    written: float

    @property
    def seconds(self) -> float:
        """Wall seconds spent on all its stages so far."""
        return sum(stage.seconds for stage in self.stages)


def list_runs() -> tuple[RunStatus, ...]:
    """Returns every run in ``home()/runs`` by name; one that is finished and gone meanwhile is not among them."""
    root, found = home() / "runs", []
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        with suppress(FileNotFoundError):
            if folder.is_dir() and not folder.name.startswith("."):
                found.append(_status(folder))
    return tuple(found)


def human_age(seconds: float) -> str:
    """Returns how long ago something was, for people.

    >>> human_age(20), human_age(60), human_age(7_199), human_age(7_200), human_age(200_000)
    ('just now', '1 minute ago', '1 hour ago', '2 hours ago', '2 days ago')
    """
    for length, unit in _UNITS:
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return "just now"


def _status(folder: Path) -> RunStatus:
    held = is_held(lock_file(lock_of_run(folder.name)))
    stages, damaged = [], []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            stages.append(_stage(path))
        except FileNotFoundError:
            continue
        except (InvalidSetError, OSError):
            damaged.append(path.name)
    stages.sort(key=lambda stage: stage.saved)
    return RunStatus(folder, held, tuple(stages), tuple(damaged), *measure(folder.resolve()))


def _stage(path: Path) -> Stage:
    """Returns what a checkpoint says.

    Raises:
        InvalidSetError: if it is none, or one of something else than a run's stage.
    """
    saved, tree = path.stat().st_mtime, peek_tree(path)
    entry: dict[Any, Any] = tree if isinstance(tree, dict) else {}
    label, step, total, seconds = (entry.get(name) for name in ("label", "step", "total", "seconds"))
    if not (
        isinstance(label, str) and isinstance(step, int) and isinstance(total, int) and isinstance(seconds, int | float)
    ):
        raise InvalidSetError(f"{path} is no checkpoint of a run; delete it to start that stage anew")
    return Stage(label, step, total, float(seconds), saved)
