"""A kill at any instant: the same command ends with the same bytes and scores, and does nothing finished again.

A second process runs the commands, saves after every step, and says when it has come to a chosen step, whose work is
not saved yet. There it is killed. The commands are then repeated here.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dd_bench import interruption
from dd_bench.cli import main
from dd_bench.files import sha256_file
from dd_bench.run import Run
from eval.cells import read_records
from synth import base, infer
from synth.parts import labeler
from tests.cli.conftest import TINY_NET, Command

ROOT = Path(__file__).parents[2]
SECOND_NET = "convnet2-batch-x0.05"
SYNTH = (
    "synth", "--method", "infer", "--ipc", "2", "--dataset", "digits@20/10",
    "--set", f"teachers.architectures={TINY_NET},{SECOND_NET}", "--set", "teachers.recipe.epochs=3",
    "--set", "inversion.steps=5",
)  # fmt: skip
EVAL = ("eval", "--runs", "2")
LABELS_AT_ONCE = 8  # so that labelling has several steps
ONE_DRAW = (0,)  # of every control, which leaves a quarter of the sets to make and to judge

VICTIM = f"""
import sys, time
from dd_bench import run, store
from eval import judging
from eval.protocols import PROTOCOLS
from synth import base, infer
from synth.parts import labeler
from tests.cli.conftest import PIXEL, tiny_protocols

stage, last_step = sys.argv[1], int(sys.argv[2])
labeler._BATCH = {LABELS_AT_ONCE}
store.render_card = lambda *_: PIXEL
PROTOCOLS.update(tiny_protocols())
base.DRAWS = infer.DRAWS = {ONE_DRAW}
run.Run.__init__.__kwdefaults__["save_every_seconds"] = 0.0

def wait_for_death():
    print("here", flush=True)
    time.sleep(600)

def save(path, tree, save_tree=run.save_tree):
    if tree["label"].startswith(stage) and tree["step"] == last_step:
        wait_for_death()
    save_tree(path, tree)

def add(results, blank, student, add_student=judging.add_student):
    if stage == "record" and student.index == last_step:
        wait_for_death()
    return add_student(results, blank, student)

run.save_tree, judging.add_student = save, add
from dd_bench.cli import main
for command in {(SYNTH, EVAL)!r}:
    try:
        main(command)
    except SystemExit as end:
        assert not end.code
"""


def environment(home: Path) -> dict[str, str]:
    """Returns the surroundings of a second process: its own home, and the threads that this one has."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    threads = str(torch.get_num_threads())
    return os.environ | {"DDBENCH_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": threads}


@dataclass(frozen=True)
class Outcome:
    """What is left of a set and its judgement: bytes of the tensors, scores by record, and the steps that were done."""

    tensors: str
    scores: dict[str, list[Any]]
    steps: list[tuple[str, int]]


def play(folder: Path, patch: pytest.MonkeyPatch) -> Outcome:
    """Runs the commands here, in ``folder``."""
    steps: list[tuple[str, int]] = []
    original = Run.steps

    def watched(self: Run, label: str, *rest: Any) -> Iterator[int]:
        for step in original(self, label, *rest):
            steps.append((label, step))
            yield step

    with patch.context() as during:
        during.chdir(folder)
        during.setenv("DDBENCH_HOME", str(folder / "home"))
        during.setattr(Run, "steps", watched)
        during.setattr(labeler, "_BATCH", LABELS_AT_ONCE)
        during.setattr(interruption, "install", lambda: None)
        for module in (base, infer):
            during.setattr(module, "DRAWS", ONE_DRAW)
        for command in (SYNTH, EVAL):
            with pytest.raises(SystemExit) as end:
                main(command)
            assert not end.value.code
    (path,) = folder.glob("home/sets/*/infer/*/*/tensors.safetensors")
    results = folder / "leaderboards" / "results"
    scores = {
        str(path.relative_to(results)): [(one.index, one.seed, one.metrics, one.steps) for one in record.students]
        for path, record in read_records(results)
    }
    return Outcome(sha256_file(path), scores, steps)


_undisturbed: list[Outcome] = []


@pytest.fixture
def undisturbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """What the commands give when nobody kills them; found once."""
    if not _undisturbed:
        (tmp_path / "undisturbed").mkdir()
        _undisturbed.append(play(tmp_path / "undisturbed", monkeypatch))
    return _undisturbed[0]


def finished(folder: Path) -> dict[Path, tuple[int, str]]:
    """Returns what is finished on disk: teachers, offsets and sets, with the time of writing and the content."""
    files = [*folder.glob("home/teachers/*/*"), *folder.glob("home/offsets/*"), *folder.glob("home/sets/*/*/*/*/*")]
    return {path: (path.stat().st_mtime_ns, sha256_file(path)) for path in files if not path.name.startswith(".")}


def recorded(folder: Path) -> dict[tuple[Path, int], Any]:
    """Returns the students on record, with their seconds."""
    records = read_records(folder / "leaderboards" / "results")
    return {(path, one.index): one for path, record in records for one in record.students}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "last_step", "next_step"),
    [
        (f"teacher {SECOND_NET}", 5, (f"teacher {SECOND_NET}", 4)),
        (f"offsets {SECOND_NET}", 3, (f"offsets {SECOND_NET} 1-1 of 1", 2)),
        ("labels", 2, ("labels", 1)),
        ("student 2 infer", 2, ("student 2 infer", 1)),
        ("record", 1, None),  # trained and scored, and not yet on record
    ],
    ids=["teacher", "inversion", "labels", "student", "record"],
)
def test_kill(
    stage: str, last_step: int, next_step: tuple[str, int] | None, undisturbed: Outcome, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "killed"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, stage, str(last_step)], cwd=folder, env=environment(folder / "home"), text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line == "here\n":
            break
    process.kill()
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL

    before, on_record = finished(folder), recorded(folder)
    assert len([path for path in before if path.parent.parent.name == "teachers"]) == (2 if "teacher" in stage else 4)
    assert bool(on_record) == (stage in ("student 2 infer", "record"))
    outcome = play(folder, monkeypatch)
    assert outcome.tensors == undisturbed.tensors
    assert outcome.scores == undisturbed.scores
    assert before.items() <= finished(folder).items(), "what was finished was made again"
    assert on_record.items() <= recorded(folder).items()
    at = undisturbed.steps.index(next_step or ("student 2 infer", 2)) + (next_step is None)
    assert outcome.steps == undisturbed.steps[at:]
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.glob("home/runs/*"))


def test_the_commands_are_repeatable(undisturbed: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this the tests above would show nothing."""
    again = play(tmp_path, monkeypatch)
    assert again == undisturbed
    assert len(again.scores) == 5
    assert play(tmp_path, monkeypatch) == Outcome(again.tensors, again.scores, [])


class SeenEnoughError(Exception):
    """A test has seen what it came for."""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal(
    ddbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    """A real ``ddbench synth``, which saves every half a minute, is asked to stop: it saves, says so, and stops."""
    home = tmp_path / "home"
    command = (*SYNTH, "--set", "teachers.recipe.epochs=3000")
    process = subprocess.Popen(
        [sys.executable, "-c", "from dd_bench.cli import main; main()", *command], env=environment(home), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(home.glob("runs/*/report.jsonl")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    found = re.fullmatch(
        rf"ddbench: stopped in teacher {TINY_NET} after step (\d+) of 9000; everything so far is saved, and the same "
        r"command goes on from there\n",
        err,
    )
    assert found, err

    def first_step(self: Run, label: str, *rest: Any) -> Iterator[int]:
        raise SeenEnoughError(f"{label} goes on at {next(iter(steps(self, label, *rest)))}")

    steps = Run.steps
    monkeypatch.setenv("DDBENCH_HOME", str(home))
    monkeypatch.setattr(Run, "steps", first_step)
    with pytest.raises(SeenEnoughError, match=f"teacher {TINY_NET} goes on at {found[1]}$"):
        ddbench(*command)
