"""The commands on an accelerator: sets, controls, baselines, and protocols of all kinds but tapes and transfer."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from eval.cells import read_records
from eval.protocol_kinds import GraphProtocol
from eval.protocols import PROTOCOLS
from tests.accelerator import DEVICE, accelerator
from tests.cli.conftest import TINY_INFER, Command, tiny_protocols


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``--device auto`` finds an accelerator."""
    monkeypatch.setattr("dd_bench.environment.choose_device", lambda _: DEVICE)
    with accelerator():
        yield


def judged() -> set[tuple[str, str]]:
    """Returns protocol and method of every record."""
    records = read_records(Path("leaderboards/results"))
    return {(str(record.protocol["name"]), record.set.method) for _, record in records}


def test_images(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tiny_protocols()["quick"]
    white = replace(quick, name="white", labels="class", whiten=True, full_epochs=1, learned_lr=True)
    monkeypatch.setitem(PROTOCOLS, "white", white)
    assert ddbench(*TINY_INFER).code == 0
    for protocol in ("tiny-dyn", "white"):
        answer = ddbench("eval", "--protocol", protocol, "--runs", "1")
        assert answer.code == 0, answer
    assert judged() >= {("tiny-dyn", "infer"), ("white", "infer"), ("white", "random"), ("white", "full")}


@pytest.mark.usefixtures("motifs_dir")
def test_graphs(ddbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = GraphProtocol("graphs", "Two steps.", ("gin1-x0.1",), steps=2, batch=8, checkpoints=(2,))
    monkeypatch.setitem(PROTOCOLS, "graphs", graphs)
    monkeypatch.setenv("DDBENCH_DATA", str(tmp_path / "data"))
    made = ddbench("synth", "--method", "mirage", "--ipc", "1", "--dataset", "motifs", "--set", "hops=1")
    assert made.code == 0, made
    answer = ddbench("eval", "--runs", "1")
    assert answer.code == 0, answer
    methods = ("mirage", "mirage-random", "random", "herding", "full", "untrained", "node-count", "node-edge-count")
    assert judged() == {("graphs", method) for method in methods}
