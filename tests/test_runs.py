"""Runs from outside: how far they are and who is at them, also where a checkpoint is damaged or the run just ended."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from dd_bench import runs
from dd_bench.checkpoint import State, save_tree
from dd_bench.files import home
from dd_bench.run import drop_run, open_run
from dd_bench.runs import Stage, human_age, list_runs

HOLD = """
import sys
from dd_bench.run import open_run
with open_run(sys.argv[1]):
    print("held", flush=True)
    input()
"""


@contextmanager
def other_process_at(name: str) -> Iterator["subprocess.Popen[str]"]:
    """Another process is at a run of this ``home()`` for the length of the block, or until it is killed."""
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, name], env=os.environ | {"DDBENCH_HOME": str(home().resolve())},
        cwd=Path(runs.__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
        other.kill()


def save_stage(run: str, label: str, step: int, total: int, *, seconds: float = 1.5, saved: float = 1e9) -> Path:
    """Leaves a checkpoint as ``Run.steps`` does."""
    path = home() / "runs" / run / f"{label}.safetensors"
    state = {"weights": torch.zeros(100)}
    save_tree(path, {"label": label, "step": step, "total": total, "seconds": seconds, "state": state})
    os.utime(path, (saved, saved))
    return path


def test_no_home_at_all() -> None:
    assert list_runs() == ()
    assert not home().exists(), "looking changes nothing"


def test_stages_by_when_they_were_saved() -> None:
    sizes = [
        save_stage("infer-1", "b", 30, 30, seconds=60, saved=1000).stat().st_size,
        save_stage("infer-1", "a", 2, 300, seconds=2.5, saved=2000).stat().st_size,
    ]
    (home() / "runs" / "infer-1" / "a.f16").write_bytes(b"12345")
    os.utime(home() / "runs" / "infer-1" / "a.f16", (3000, 3000))
    save_stage("another", "only", 0, 7)
    (home() / "runs" / "empty").mkdir()
    (home() / "runs" / ".infer-2.abcd1234.partial").mkdir()
    (home() / "runs" / "no folder").touch()
    before = sorted(home().rglob("*"))
    another, empty, run = list_runs()
    assert [one.folder.name for one in (another, empty, run)] == ["another", "empty", "infer-1"]
    assert (empty.stages, empty.damaged, empty.size_bytes, empty.seconds, empty.held) == ((), (), 0, 0, False)
    assert run.stages == (Stage("b", 30, 30, 60.0, 1000.0), Stage("a", 2, 300, 2.5, 2000.0))
    assert (run.seconds, run.size_bytes, run.written, run.held) == (62.5, sum(sizes) + 5, 3000, False)
    assert sorted(home().rglob("*")) == before


def test_what_is_left_of_a_stage() -> None:
    assert Stage("fit", 25, 100, 50.0, 0.0).seconds_left == 150.0
    assert Stage("fit", 100, 100, 50.0, 0.0).seconds_left == 0.0
    assert Stage("fit", 0, 100, 0.0, 0.0).seconds_left is None
    assert Stage("fit", -3, 100, 1.0, 0.0).seconds_left is None, "of a file that somebody bent"


def test_what_a_run_saves_is_what_is_seen() -> None:
    with open_run("walk") as run:
        for step in run.steps("the stage", 5, State(x=torch.zeros(1))):
            run.observe(loss=torch.tensor(float(step)))
        (seen,) = list_runs()
    (stage,) = seen.stages
    assert (stage.label, stage.step, stage.total, seen.seconds) == (
        "the stage",
        5,
        5,
        pytest.approx(run.seconds, abs=1),
    )
    assert seen.held
    assert not list_runs(), "what it worked for is stored"
    assert [path.name for path in (home() / "reports").iterdir()] == ["walk.jsonl"]


def test_a_run_that_outlived_its_work_is_dropped() -> None:
    save_stage("done", "a", 3, 3)
    save_stage("other", "a", 1, 3)
    drop_run("done")
    drop_run("never was")
    assert [one.folder.name for one in list_runs()] == ["other"]
    with other_process_at("other"):  # whoever is at it has other plans
        drop_run("other")
        assert [one.folder.name for one in list_runs()] == ["other"]


def test_a_run_whose_process_is_about_to_be_killed_is_dropped() -> None:
    save_stage("stored", "a", 3, 3)
    with other_process_at("stored") as process:
        killing = threading.Timer(0.2, process.kill)
        killing.start()
        drop_run("stored")
        killing.join()
        assert not list_runs()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: save_tree(path, None),
        lambda path: save_tree(path, {"label": "b", "step": "2", "total": 3, "seconds": 1.0}),
        lambda path: save_tree(path, {"step": 2, "total": 3, "seconds": 1.0}),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["cut", "empty", "noise", "no dict", "text for a number", "no label", "a folder"],
)
def test_a_damaged_checkpoint_is_named(damage: Callable[[Path], object]) -> None:
    save_stage("run", "a", 1, 3)
    damage(save_stage("run", "b", 2, 3))
    save_stage("sound", "a", 1, 3)
    damaged, sound = list_runs()
    assert damaged.damaged == ("b.safetensors",)
    assert [stage.label for stage in damaged.stages] == ["a"]
    assert (sound.damaged, len(sound.stages)) == ((), 1)


def test_a_run_that_ends_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, sound = save_stage("a", "x", 1, 3), save_stage("b", "x", 1, 3)
    peek_tree = runs.peek_tree

    def peek(path: Path) -> object:
        if path == gone:
            path.unlink()
            path.parent.rmdir()
        return peek_tree(path)

    monkeypatch.setattr(runs, "peek_tree", peek)
    assert [one.folder for one in list_runs()] == [sound.parent]


def test_a_checkpoint_that_goes_meanwhile_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, _ = save_stage("a", "x", 1, 3), save_stage("a", "y", 1, 3)
    peek_tree = runs.peek_tree

    def peek(path: Path) -> object:
        gone.unlink(missing_ok=True)
        return peek_tree(path)

    monkeypatch.setattr(runs, "peek_tree", peek)
    (run,) = list_runs()
    assert ([stage.label for stage in run.stages], run.damaged) == (["y"], ())


def test_another_process_is_seen_until_it_dies() -> None:
    save_stage("run", "a", 1, 3)
    save_stage("idle", "a", 1, 3)
    with other_process_at("run") as process:
        assert [(one.folder.name, one.held) for one in list_runs()] == [("idle", False), ("run", True)]
        process.kill()
        process.wait()
        assert not any(one.held for one in list_runs())


def test_a_run_is_held_from_before_its_first_stage_to_its_end() -> None:
    with suppress(KeyboardInterrupt), open_run("run") as run:
        assert run.folder == home() / "runs" / "run"
        assert not run.folder.exists(), "created when something is first saved"
        save_stage("run", "a", 1, 3)
        assert list_runs()[0].held
        raise KeyboardInterrupt
    assert not list_runs()[0].held


def test_a_run_elsewhere_that_is_linked(tmp_path: Path) -> None:
    path = save_stage("run", "a", 1, 3)
    path.parent.rename(tmp_path / "outside")
    path.parent.symlink_to(tmp_path / "outside")
    (run,) = list_runs()
    assert (run.folder, run.size_bytes, run.written) == (path.parent, path.stat().st_size, 1e9)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "just now"), (59.9, "just now"), (60, "1 minute ago"), (3599, "59 minutes ago"), (3600, "1 hour ago"),
        (86_399, "23 hours ago"), (86_400, "1 day ago"), (30 * 86_400, "30 days ago"),
    ],
)  # fmt: skip
def test_ages(seconds: float, words: str) -> None:
    assert human_age(seconds) == words
