"""Whatever happens to a process, and whenever: the same command again ends with the same bytes and scores.

Every method is killed, stopped, deprived of its disk and fed with NaN at random moments between an empty home and a
board; nothing that was finished is ever made again. ``DDBENCH_FAULTS=20 pytest tests/faults`` tries twenty times as
many moments as usual, and other ones.
"""

import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from eval.cells import read_records
from tests.conftest import make_blobs, write_blobs, write_motifs
from tests.faults.injection import Fault
from tests.faults.scenes import SCENES
from tests.faults.trials import Remains, Trial

TIMES = int(os.environ.get("DDBENCH_FAULTS", "1"))
ONE_LINE = re.compile(r"ddbench: [^\n]+\n")


@dataclass(frozen=True)
class Undisturbed:
    """A scene that nothing happened to."""

    remains: Remains
    changes: int
    observed: int
    seconds: float


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_blobs(make_blobs(), folder)
    write_motifs(folder)
    return folder


_undisturbed: dict[str, Undisturbed] = {}


@pytest.fixture(params=SCENES)
def scene(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> str:
    """The name of a scene that has been played undisturbed, once."""
    name = str(request.param)
    if name not in _undisturbed:
        trial = Trial(name, tmp_path / "undisturbed", data)
        ending = trial.play(Fault("count"))
        assert (ending.code, ending.said) == (0, "")
        _undisturbed[name] = Undisturbed(trial.remains(), *trial.count(), ending.seconds)
        assert not _undisturbed[name].remains.litter
    return name


@pytest.fixture
def moments(scene: str, request: pytest.FixtureRequest) -> random.Random:
    """Draws the moments of one test."""
    return random.Random(f"{request.node.name} {TIMES}")


def check_recovery(trial: Trial, finished: dict[str, object]) -> None:
    """Plays the scene again: it must end as if nothing had happened, and keep what was finished."""
    ending = trial.play()
    assert ending.code == 0, ending
    assert trial.remains() == _undisturbed[trial.scene].remains
    assert finished.items() <= trial.finished().items(), "what was finished was made again"


Place = Callable[[], Trial]


@pytest.fixture
def place(scene: str, data: Path, tmp_path: Path) -> Place:
    """Makes trials of the scene, each in an empty folder."""
    made = 0

    def make() -> Trial:
        nonlocal made
        made += 1
        return Trial(scene, tmp_path / f"trial{made}", data)

    return make


def test_a_clock_that_jumps(place: Place, moments: random.Random) -> None:
    """Forth and back by days: neither the work nor the seconds that it took notice."""
    for _ in range(TIMES):
        trial = place()
        ending = trial.play(Fault("clock", moments.randrange(1 << 30)))
        assert (ending.code, ending.said) == (0, "")
        assert trial.remains() == _undisturbed[trial.scene].remains
        for _, record in read_records(trial.folder / "boards" / "results"):
            assert 0 <= record.set.wall_seconds <= ending.seconds
            assert all(0 <= student.train_seconds <= ending.seconds for student in record.students)


def test_kill_before_a_change_of_the_disk(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(2 * TIMES):
        trial, at = place(), moments.randrange(_undisturbed[scene].changes)
        assert trial.play(Fault("kill", at)).code == -9
        check_recovery(trial, trial.finished())


def test_kill_at_any_instant(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(TIMES):
        trial = place()
        assert trial.kill_after(moments.uniform(0, _undisturbed[scene].seconds)).code in (-9, 0)
        check_recovery(trial, trial.finished())


def test_several_kills_in_a_row(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(TIMES):
        trial = place()
        for _ in range(3):
            before = trial.finished()
            trial.play(Fault("kill", moments.randrange(_undisturbed[scene].changes // 2)))
            assert before.items() <= trial.finished().items()
        check_recovery(trial, trial.finished())


@pytest.mark.parametrize(("kind", "code"), [("terminate", 143), ("interrupt", 130)])
def test_signals(scene: str, place: Place, moments: random.Random, kind: str, code: int) -> None:
    for _ in range(TIMES):
        trial, at = place(), moments.randrange(_undisturbed[scene].changes - 1)
        ending = trial.play(Fault(kind, at))  # type: ignore[arg-type]
        assert ending.code == code, (at, ending)
        assert ONE_LINE.fullmatch(ending.said), ending
        assert "stopped" in ending.said
        check_recovery(trial, trial.finished())


@pytest.mark.parametrize(("kind", "why"), [("full", "No space left on device"), ("read-only", "Read-only file system")])
def test_a_disk_that_refuses(scene: str, place: Place, moments: random.Random, kind: str, why: str) -> None:
    for _ in range(TIMES):
        trial, at = place(), moments.randrange(_undisturbed[scene].changes - 1)
        ending = trial.play(Fault(kind, at))  # type: ignore[arg-type]
        if (
            ending.code != 0 or trial.remains() != _undisturbed[scene].remains
        ):  # a full disk comes too late for the last
            assert ending.code == 2, (at, ending)
            assert ONE_LINE.fullmatch(ending.said), (at, ending)
            assert why in ending.said
        check_recovery(trial, trial.finished())


def test_nan(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(TIMES):
        trial, at = place(), moments.randrange(_undisturbed[scene].observed)
        ending = trial.play(Fault("nan", at))
        assert ending.code == 2, (at, ending)
        assert ONE_LINE.fullmatch(ending.said), ending
        assert re.search(r" became NaN or infinite at step \d+; expected a finite number: ", ending.said), ending
        check_recovery(trial, trial.finished())


def spoil(path: Path, moments: random.Random) -> None:
    """Damages a file in one of the ways of disks."""
    content = bytearray(path.read_bytes())
    way = moments.choice(("flip", "cut", "zeros", "empty"))
    if way == "flip":
        content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    elif way == "cut":
        del content[moments.randrange(len(content)) :]
    elif way == "zeros":
        start = moments.randrange(len(content))
        content[start:] = bytes(len(content) - start)
    path.write_bytes(b"" if way == "empty" else content)


def test_damaged_checkpoints(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(TIMES):
        trial = place()
        trial.play(Fault("kill", moments.randrange(_undisturbed[scene].changes)))
        alone = False
        for path in trial.checkpoints():
            before = path.with_name(f"{path.name}.before")
            alone |= not before.exists() or before.samefile(
                path
            )  # killed in the middle of a change from one to the next
            spoil(path, moments)
        finished = trial.finished()
        ending = trial.play()
        while ending.code == 2:  # the first checkpoint of a stage, with none before it
            assert alone, ending
            found = re.search(
                r"^ddbench: (\S+) is no checkpoint of ddbench .+; delete it .+$", ending.said, re.MULTILINE
            )
            assert found, ending
            Path(found[1]).unlink()
            ending = trial.play()
        check_recovery(trial, finished)


def test_two_processes_want_the_same(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(TIMES):
        trial = place()
        first, second = trial.start(), trial.start()
        assert [trial.finish(first).code, trial.finish(second).code] == [0, 0]
        assert trial.remains() == _undisturbed[scene].remains


def test_one_of_two_processes_is_killed(scene: str, place: Place, moments: random.Random) -> None:
    for _ in range(TIMES):
        trial = place()
        first = trial.start(Fault("kill", moments.randrange(_undisturbed[scene].changes)))
        second = trial.start()
        assert trial.finish(first).code in (-9, 0)
        assert trial.finish(second).code == 0
        found, expected = trial.remains(), _undisturbed[scene].remains
        assert replace(found, litter=()) == expected, "the survivor made a whole of it"
        others = [path for path in found.litter if not path.endswith(".partial")]
        assert not others, "only what the other was writing stays, and goes an hour later"
