"""From real CIFAR images to a board, through the command line, on subsets of 200 and 500 images."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dd_bench import interruption
from dd_bench.cli import main
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from eval.cells import read_records
from eval.protocol_kinds import TransferProtocol
from eval.protocols import PROTOCOLS

_DATA = os.environ.get("DDBENCH_DATA")
_NET = "convnet3-batch-x0.1"

Command = Callable[..., str]


@pytest.fixture
def cifar10(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data that holds CIFAR-10. Without one the test is skipped; where CI promises one, it fails."""
    return _folder_with("cifar10", monkeypatch)


@pytest.fixture
def cifar100(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of data that holds CIFAR-100, alike."""
    return _folder_with("cifar100", monkeypatch)


def _folder_with(name: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    if _DATA and (Path(_DATA) / name / "data.safetensors").is_file():
        monkeypatch.setenv("DDBENCH_DATA", _DATA)
        return Path(_DATA)
    if _DATA and os.environ.get("CI"):
        pytest.fail(f"DDBENCH_DATA={_DATA} holds no {name}/data.safetensors")
    pytest.skip(f"DDBENCH_DATA names no folder with {name}/data.safetensors")


@pytest.fixture
def ddbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command in an empty folder, in this process, and returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DDBENCH_LEADERBOARDS", raising=False)
    monkeypatch.setattr(interruption, "install", lambda: None)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert not end.value.code, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_cifar10(cifar10: Path, ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(PROTOCOLS["quick"], architectures=(_NET,), recipe=TrainingRecipe(steps=20, batch=16), full_epochs=1)
    monkeypatch.setitem(PROTOCOLS, "quick", quick)
    made = ddbench(
        "synth", "--method", "infer", "--ipc", "2", "--dataset", "cifar10@20/20", "--set",
        f"teachers.architectures={_NET}", "--set", "teachers.recipe.epochs=2", "--set", "inversion.steps=5",
    )  # fmt: skip
    found = re.match(r"made set (\w{12}), ([\d,]+) bytes, in \S*ddbench/sets/cifar10@20\+20/infer/ipc2/\1\n", made)
    assert found, made
    images_and_offset = 10 * 3072 + 1 * 3072
    assert images_and_offset < int(found[2].replace(",", "")) < images_and_offset + 2000

    judged = ddbench("eval", "--runs", "2")
    assert "  cifar10@20/20: leaderboards/cifar10@20+20.md\n" in judged
    records = [record for _, record in read_records(Path("leaderboards/results"))]
    assert {(one.set.method, one.set.labels) for one in records} == {
        ("infer", "soft"), ("random", "soft"), ("random", "hard"), ("infer-base", "soft"), ("infer-scrambled", "soft"),
        ("full", "hard"),
    }  # fmt: skip
    assert {one.set.images for one in records if one.set.method == "full"} == {200}
    assert all(0 <= student.metrics["top1"] * 200 <= 200 for one in records for student in one.students)
    page = Path("leaderboards/cifar10@20+20.md").read_text()
    assert "| **infer** · small; " in page
    assert "nothing to do" in ddbench("eval", "--runs", "2")
    assert "boards are what their records say" in ddbench("leaderboard", "--check")
    assert (Path(found[0].split(" in ")[1].strip()) / "card.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cifar10_by_tape(cifar10: Path, ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = replace(PROTOCOLS["fkd-quick"], architectures=(_NET,), training=TapeTraining(steps=20), full_epochs=1)
    monkeypatch.setitem(PROTOCOLS, "fkd-quick", quick)
    settings = {
        "teachers.architectures": f"{_NET},convnet2-batch-x0.1", "teachers.recipe.epochs": 2, "inversion.steps": 5,
        "tape.recipe.epochs": 3, "tape.prior.ipc": 1, "tape.prior.inversion.steps": 2, "tape.prior.tape.epochs": 2,
        "tape.prior.training.epochs": 2,
    }  # fmt: skip
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    made = ddbench("synth", "--method", "cv-dd", "--ipc", "2", "--dataset", "cifar10@20/20", *changes)
    assert re.match(r"made set \w{12}, [\d,]+ bytes, in \S*/cv-dd/ipc2/", made), made

    ddbench("eval", "--runs", "1")
    records = [record for _, record in read_records(Path("leaderboards/results"))]
    found = {(one.set.method, one.set.labels) for one in records}
    assert found == {("cv-dd", "taped"), ("random", "taped"), ("random", "hard"), ("full", "hard")}
    for one in records:
        if one.set.labels == "taped":
            assert (one.set.bytes["images"], one.set.bytes["labels"]) == (20 * 3072, 3 * 20 * 10 * 2)
            assert {student.steps for student in one.students} == {20}
    assert "nothing to do" in ddbench("eval", "--runs", "1")
    assert "boards are what their records say" in ddbench("leaderboard", "--check")


@pytest.mark.slow
def test_cifar_transfer(cifar10: Path, cifar100: Path, ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distilled from CIFAR-100 without a label, judged on CIFAR-10."""
    student = "pyramid3-x0.02"
    known = PROTOCOLS["transfer-small"]
    assert isinstance(known, TransferProtocol)
    steps = TrainingRecipe(steps=3, batch=16, lr=0.01)
    small = replace(
        known, architectures=(student,), target="cifar10@20/20", features=steps, classes=replace(steps, augment="dsa"),
        tuning=steps, probes=(0.05, 1.0), probe_draws=1, full_epochs=1,
    )  # fmt: skip
    monkeypatch.setitem(PROTOCOLS, "transfer-small", small)
    settings = {
        "target.architecture": _NET, "target.recipe.steps": 3, "target.recipe.projector": 32,
        "target.recipe.batch": 100, "student": student, "pool.size": 2, "pool.max_age": 3, "steps": 4, "batch": 64,
    }  # fmt: skip
    changes = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    made = ddbench("synth", "--method", "krr-st", "--ipc", "1", "--dataset", "cifar100@5/5", *changes)
    found = re.match(r"made set (\w{12}), ([\d,]+) bytes, in (\S*/krr-st/ipc1/\1)\n", made)
    assert found, made
    assert (Path(found[3]) / "card.png").read_bytes().startswith(b"\x89PNG")
    features = 13 * 4 * 4  # of the target network, 12.8 channels wide
    images_and_targets = 100 * 3072 * 4 + (100 + 1) * features * 4
    assert images_and_targets < int(found[2].replace(",", "")) < images_and_targets + 2000

    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")  # 25 take long
    judged = ddbench("eval", "--runs", "1")
    assert "  cifar100@5/5: leaderboards/cifar100@5+5.md\n" in judged
    records = [record for _, record in read_records(Path("leaderboards/results"))]
    assert {(one.set.method, one.set.labels, one.set.images) for one in records} == {
        ("krr-st", "features", 100), ("krr-shuffled", "features", 100), ("k-means", "features", 100),
        ("random", "features", 100), ("random", "features", 200), ("random", "hard", 100), ("scratch", "hard", 500),
        ("full", "hard", 500),
    }  # fmt: skip
    assert {one.target_fingerprint for one in records} == {records[0].target_fingerprint}
    assert records[0].target_fingerprint != records[0].set.fingerprint
    for one in records:
        for scored in one.students:
            assert set(scored.metrics) == {"top1", "nll", "probe5", "probe100"}
            assert all(0 <= scored.metrics[name] <= 1 for name in ("top1", "probe5", "probe100"))
    assert "| **krr-st** · small; " in Path("leaderboards/cifar100@5+5.md").read_text()
    assert "nothing to do" in ddbench("eval", "--runs", "1")
    assert "boards are what their records say" in ddbench("leaderboard", "--check")
