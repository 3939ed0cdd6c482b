"""``ddbench eval`` on sets of KRR-ST: every control, on the data that students go on to."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dd_bench.data import images
from dd_bench.data.prepare import prepare
from dd_bench.errors import DataError
from dd_bench.files import home
from dd_bench.learn.training import TrainingRecipe
from dd_bench.store import Store
from eval.cells import read_records
from eval.protocol_kinds import TransferProtocol
from eval.protocols import PROTOCOLS
from tests.cli.conftest import Command
from tests.cli.test_eval import RESULTS, records, trained

NET = "pyramid2-x0.015625"
SETTINGS = {
    "target.architecture": "convnet1-batch-x0.0625", "target.recipe.steps": 2, "target.recipe.projector": 8,
    "student": NET, "pool.size": 1, "pool.max_age": 2, "steps": 2, "batch": 16,
}  # fmt: skip
TINY_KRR = (
    "synth", "--method", "krr-st", "--ipc", "2", "--dataset", "digits-low@20/10",
    *(part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")),
)  # fmt: skip


@pytest.fixture(scope="session")
def halves_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves")
    for name in ("digits-low", "digits-high"):
        prepare(name, folder)
    return folder


@pytest.fixture(autouse=True)
def bridge(halves_dir: Path, monkeypatch: pytest.MonkeyPatch) -> TransferProtocol:
    """The protocol of digits in a few steps, and the data that it needs."""
    known = PROTOCOLS["transfer-digits"]
    assert isinstance(known, TransferProtocol)
    steps = TrainingRecipe(steps=2, batch=8)
    protocol = replace(
        known, architectures=(NET,), target="digits-high@10/10", features=steps, classes=steps, tuning=steps,
        probes=(0.2,), probe_draws=1, full_epochs=1,
    )  # fmt: skip
    monkeypatch.setitem(PROTOCOLS, "transfer-digits", protocol)
    monkeypatch.setenv("DDBENCH_DATA", str(halves_dir))
    return protocol


@pytest.fixture
def learned(ddbench: Command) -> str:
    """The id of a tiny set of KRR-ST in the store."""
    return ddbench(*TINY_KRR).set_id


def test_every_control_is_made_and_judged(ddbench: Command, learned: str, bridge: TransferProtocol) -> None:
    answer = ddbench("eval", "--runs", "2")
    assert (answer.code, answer.err) == (0, "")
    kinds: Counter[tuple[str, str, int]] = Counter()
    for one in records():
        kinds[one.set.method, one.set.labels, one.set.images] += len(one.students)
    assert kinds == {
        ("krr-st", "features", 10): 2 + 1 + 1, ("random", "features", 10): 5, ("random", "features", 20): 5,
        ("random", "hard", 10): 5, ("k-means", "features", 10): 3, ("krr-shuffled", "features", 10): 1,
        ("scratch", "hard", 100): 3, ("full", "hard", 100): 3,
    }  # fmt: skip
    assert trained(answer) == 29
    assert {(one.protocol_id, one.architecture, one.set.dataset) for one in records()} == {
        (bridge.id, NET, "digits-low@20/10")
    }
    (target,) = {one.target_fingerprint for one in records()}
    assert target == images.load("digits-high@10/10").fingerprint
    for one in records():
        for student in one.students:
            assert set(student.metrics) == {"top1", "nll", "probe20"}
            expected = {"scratch": 0, "full": 13}.get(one.set.method, 2)
            assert student.steps == expected + 2
    assert len(list(home().glob("teachers/*"))) == 1, "all share one target network"
    assert len(list(home().glob("krr/*"))) == 3, "shuffled targets are of the same distillation"
    (entry,) = records(id=learned)
    assert {link.recipe for link in entry.set.controls} <= {one.set.recipe for one in records()}
    page = Path("leaderboards/digits-low@20+10.md").read_text()
    assert "| **krr-st** · digits" in page
    assert "control missing" not in page

    before = {path: path.read_bytes() for path in RESULTS.rglob("*.json")}
    again = ddbench("eval", "--runs", "2")
    assert again.code == 0
    assert again.out.splitlines()[0] == "nothing to do: every student asked for is on record"
    assert {path: path.read_bytes() for path in RESULTS.rglob("*.json")} == before
    assert len(read_records(RESULTS)) == len(before)
    assert not list(home().glob("runs/*")), "finished runs are tidied away"
    assert ddbench("leaderboard", "--check").code == 0


def test_target_data_that_are_not_here_are_told_in_one_line(
    ddbench: Command, learned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stop no set of another protocol, are looked for once, and nothing is made for students that stay."""
    hard = ddbench("synth", "--method", "random", "--ipc", "1", "--dataset", "digits-low@20/10").set_id
    original, looked = images.load, list[str]()

    def load(name: str, *rest: Any) -> Any:
        if name == "digits-high@10/10":
            looked.append(name)
            raise DataError("digits-high is not prepared yet")
        return original(name, *rest)

    monkeypatch.setattr(images, "load", load)
    assert ddbench("eval", learned, "--runs", "1").fault == "digits-high is not prepared yet"
    assert records() == []
    monkeypatch.setitem(PROTOCOLS, Store().find(hard).manifest.native_protocol, PROTOCOLS["quick"])
    answer = ddbench("eval", "--runs", "1")
    assert (answer.code, answer.err) == (1, "passed over: digits-high is not prepared yet\n")
    assert [one.set.id for one in records()] == [hard]
    assert len(looked) == 2, "once a command"
    assert len(Store().list()) == 2, "no controls for nothing"


def test_features_cannot_teach_classes(ddbench: Command, learned: str) -> None:
    fault = ddbench("eval", learned, "--protocol", "quick").fault
    assert fault.startswith(f"the targets of krr-st {learned} are features, but protocol quick teaches classes; use")


def test_a_set_of_other_data_has_no_such_bridge(
    ddbench: Command, learned: str, bridge: TransferProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "theirs", replace(bridge, name="theirs", source="digits"))
    fault = ddbench("eval", learned, "--protocol", "theirs").fault
    assert fault.startswith("protocol theirs is for sets of digits, but these are of digits-low@20/10; use ")
