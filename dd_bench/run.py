"""Runs: long work that says how far it is, saves its state, and goes on from there after any kind of stop.

A run is a folder. Each stage in it is one checkpoint file that holds the state after some step, and beside it the one
before, should the disk have spoilt the last; a stage that is finished keeps its last state until the whole run is
discarded, so that nothing finished is done twice.
"""

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd_bench import interruption
from dd_bench.checkpoint import Stateful, Tree, load_tree, save_tree
from dd_bench.errors import BusyError, DDBenchError, InterruptedRunError, InvalidSetError, NonFiniteError
from dd_bench.files import home, locked, slug, write_atomic
from dd_bench.mirror import Mirror, MirrorPart
from dd_bench.progress import Progress


@contextmanager
def open_run(name: str, *, mirror: Mirror | MirrorPart | None = None) -> Iterator["Run"]:
    """Yields the run ``home()/runs/<name>``; for the length of the block others can see that a process is at it.

    The block ends by storing what it worked for; then the run goes, and its report stays, in ``home()/reports``. That
    two processes never want one run is for the locks of what it works for: this one only keeps ``ddbench clean`` away,
    also before, between and after the stages, and is waited for no longer than that takes to move a folder.
    """
    with locked(lock_of_run(name)):
        run = Run(home() / "runs" / name, mirror=mirror)
        yield run
        run.discard(reports=home() / "reports")


def drop_run(name: str) -> None:
    """Removes a run whose work is stored: its process was killed after storing it, and before the run could go.

    A process that is at it is about to remove it, or to be killed: it is given a second.
    """
    run = Run(home() / "runs" / name)
    if run.folder.exists():
        with suppress(BusyError), locked(lock_of_run(name), wait_seconds=1):
            run.discard(reports=home() / "reports")


def lock_of_run(name: str) -> str:
    """Returns the name of the lock that a process holds while it is at the run ``home()/runs/<name>``."""
    return f"run {name}"


class Run:
    """A folder in which stages keep their checkpoints and ``report.jsonl`` keeps their numbers.

    Attributes:
        folder: where it lives; created when something is first saved.
        seconds: wall seconds of all stages seen so far, those of killed processes included.
    """

    def __init__(
        self, folder: Path, *, save_every_seconds: float = 30.0, mirror: Mirror | MirrorPart | None = None
    ) -> None:
        self.folder = folder
        self.seconds = 0.0
        self._save_every_seconds = save_every_seconds
        self._mirror = mirror
        self._watch = _Watch()

    def steps(self, label: str, total: int, state: Stateful) -> Iterator[int]:
        """Yields the steps of a stage that are still to do, counted from 0, saving ``state`` along the way.

        The state is restored before the first step, saved every ``save_every_seconds`` and after the last step. A
        signal is answered at the end of the step under way: the state is saved, then ``InterruptedRunError`` is raised.

        Args:
            label: the stage's name, for people and for its file; unique within the run, also without characters other
                than letters, digits and ``@._+=,-``.
            total: number of steps.
            state: everything that the loop's body changes.

        Raises:
            NonFiniteError: when an observed quantity is NaN or infinite; such a state is never saved.
            DDBenchError: when the stage's checkpoint belongs to other work.
        """
        path = self.folder / f"{slug(label.replace(' ', '_'))}.safetensors"
        first, earlier_seconds = self._restore(path, label, total, state)
        self._watch = _Watch()
        report_every = max(1, total // 100)
        with interruption.deferred(), Progress(label, total, first=first, earlier_seconds=earlier_seconds) as progress:
            saved_at = time.monotonic()
            for step in range(first, total):
                self._watch.step = step
                yield step
                done = step + 1
                signal_number = interruption.requested()  # asked once: nothing may be saved that was not looked at
                stop = signal_number is not None
                save = stop or done == total or time.monotonic() - saved_at >= self._save_every_seconds
                report = done == total or done % report_every == 0
                values = self._watch.read(label) if save or report else None
                if report and values:
                    self._report(label, done, values)
                progress.update(done, values)
                if save:
                    _keep_before(path)
                    save_tree(path, {"label": label, "step": done, "total": total, "seconds": progress.seconds,
                                     "state": state.state_dict()})  # fmt: skip
                    saved_at = time.monotonic()
                if signal_number is not None and done < total:
                    raise InterruptedRunError(signal_number, f"in {label} after step {done} of {total}")
            self.seconds += progress.seconds
        if (signal_number := interruption.requested()) is not None:  # what comes next may take long, and ask nobody
            raise InterruptedRunError(signal_number, f"in {label} after step {total} of {total}")

    @contextmanager
    def unsaved(self, label: str, total: int) -> Iterator[Progress]:
        """Shows and times a stage of seconds, of which nothing is saved: after a kill it is done again.

        The block tells the progress it is given how many of ``total`` parts are done.
        """
        with Progress(label, total) as progress:
            yield progress
            self.seconds += progress.seconds

    def observe(self, **quantities: Tensor) -> None:
        """Notes scalar tensors of the step under way, without waiting for the device.

        They are shown and reported now and then; that one is not finite is noticed for every step, on the device.
        """
        self._watch.observe(quantities)

    def discard(self, *, reports: Path | None = None) -> None:
        """Removes the run's folder, once what it worked for is safely stored.

        Args:
            reports: a folder in which the report stays, as ``<name of the run>.jsonl``.
        """
        report = self.folder / "report.jsonl"
        if reports is not None and report.exists():
            reports.mkdir(parents=True, exist_ok=True)
            report.replace(reports / f"{self.folder.name}.jsonl")
        shutil.rmtree(self.folder, ignore_errors=True)

    def _restore(self, path: Path, label: str, total: int, state: Stateful) -> tuple[int, float]:
        if not path.exists():
            self._forget_reports_after(label, 0)
            return 0, 0.0
        saved: Any = _load_last(path)
        try:
            step, seconds, work = saved["step"], saved["seconds"], (saved["label"], saved["total"])
            if work != (label, total):
                raise ValueError(f"{work[0]!r} with {work[1]} steps")
            state.load_state_dict(saved["state"])
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            found = " ".join(f"{error}".split())[:300]  # torch tells it in several lines
            raise DDBenchError(
                f"{path} holds other work ({found}); expected {label!r} with {total} steps: "
                f"delete {self.folder} to start anew"
            ) from error
        self._forget_reports_after(label, step)
        return step, seconds

    def _report(self, label: str, step: int, values: Mapping[str, float]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "report.jsonl").open("a") as file:
            file.write(json.dumps({"stage": label, "step": step} | dict(values)) + "\n")
        if self._mirror is not None:
            self._mirror.log(label, step, values)

    def _forget_reports_after(self, label: str, step: int) -> None:
        """Drops the reports of steps that will be done again, so that the file tells one story."""
        path = self.folder / "report.jsonl"
        if not path.exists():
            return
        kept = []
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:  # the last line of a killed process
                continue
            if line["stage"] != label or line["step"] <= step:
                kept.append(text + "\n")
        write_atomic(path, "".join(kept).encode())


def _before(path: Path) -> Path:
    """Returns where the checkpoint before the last one lies."""
    return path.with_name(f"{path.name}.before")


def _keep_before(path: Path) -> None:
    """Keeps the checkpoint in ``path`` by a second name, so that the next one does not take its place.

    It is there under its own name at every instant. A file system without links keeps only the last one.
    """
    link = path.with_name(f".{path.name}.before")
    with suppress(OSError):
        link.unlink(missing_ok=True)
        link.hardlink_to(path)
        link.replace(_before(path))


def _load_last(path: Path) -> Tree:
    """Returns the last checkpoint that is sound, of two.

    Raises:
        InvalidSetError: if neither is.
    """
    try:
        return load_tree(path)
    except InvalidSetError as error:
        try:
            tree = load_tree(_before(path))
        except (InvalidSetError, FileNotFoundError):
            raise error from None
        warnings.warn(f"{path} is damaged; going on from the checkpoint before it", stacklevel=2)
        return tree


class _Watch:
    """The latest observed quantities and, for each, the first step at which it was not finite; all on the device."""

    def __init__(self) -> None:
        self.step = 0
        self._latest: dict[str, Tensor] = {}
        self._bad_step: dict[str, Tensor] = {}

    def observe(self, quantities: Mapping[str, Tensor]) -> None:
        for name, value in quantities.items():
            value = value.detach().reshape(())
            bad = torch.where(torch.isfinite(value), torch.inf, float(self.step))
            known = self._bad_step.get(name)
            self._bad_step[name] = bad if known is None else torch.minimum(known, bad)
            self._latest[name] = value

    def read(self, label: str) -> dict[str, float]:
        """Returns the latest values; one device synchronisation."""
        if not self._latest:
            return {}
        both = torch.stack([value.double() for value in [*self._latest.values(), *self._bad_step.values()]]).tolist()
        values = dict(zip(self._latest, both[: len(self._latest)], strict=True))
        bad, name = min(zip(both[len(self._latest) :], self._bad_step, strict=True))
        if bad != float("inf"):
            raise NonFiniteError(
                f"{label}: {name} became NaN or infinite at step {int(bad) + 1}; expected a finite number: lower the "
                "learning rate, or check the data; the last good state is kept"
            )
        return values
