"""The contract every method keeps: killed and resumed without a trace, stored and read, and judged by strangers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import synth
from dd_bench.data.catalogue import load_training
from dd_bench.data.graphs import GraphData
from dd_bench.data.holdout import open_test
from dd_bench.graph_sets import Trees
from dd_bench.graphs import GraphBatch
from dd_bench.learn.tape import TapeRecipe
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from dd_bench.sets import Provenance
from dd_bench.store import Store
from dd_bench.targets import Features
from eval.cells import read_records
from eval.protocol_kinds import AnyProtocol, EvalProtocol, GraphProtocol, TapeProtocol, TransferProtocol
from eval.students import judge, subject_of
from eval.transfer import Destination
from synth.base import Task, configure
from synth.pipeline import Order, describe, distil
from tests.cli.conftest import PIXEL
from tests.conftest import Interrupt

_TEACHERS = {
    "architectures": ["convnet1-batch-x0.0625", "convnet2-batch-x0.0625"],
    "recipe": {"epochs": 1, "batch": 54, "lr": 0.05},
}
_INVERSION = {"steps": 2, "jitter": 1}
_INFER = {"teachers": _TEACHERS, "inversion": _INVERSION}

_SEEN = _INVERSION | {"smallest_crop": 0.5, "mirror": True}
_RECIPE = {"epochs": 2, "batch": 5, "micro": 3, "smallest_crop": 0.5}
_PRIOR = {"inversion": _SEEN, "tape": _RECIPE, "training": {"epochs": 1}, "ipc": 1}
_TAPE = {"recipe": _RECIPE, "prior": _PRIOR}
_FIRST = _TAPE | {"labeller": "first"}
_COMMITTEE = {"teachers": _TEACHERS, "inversion": _SEEN, "tape": _TAPE}

_MATCHING = {
    "experts": {
        "architecture": "convnet1-x0.0625", "recipe": {"epochs": 2, "keep": 2, "batch": 27, "momentum": 0.5}, "count": 2
    },
    "iterations": 3, "inner_steps": 2, "max_start": 1, "rate": 0.01,
}  # fmt: skip

_TARGET = {"architecture": "convnet1-batch-x0.0625", "recipe": {"steps": 3, "batch": 54, "projector": [8]}}
_KRR = {
    "target": _TARGET, "student": "pyramid2-x0.015625", "pool": {"size": 2, "max_age": 2}, "steps": 4, "batch": 32,
    "lr": 0.01,
}  # fmt: skip

# A method joins the contract with the smallest configuration that still takes all its ways.
CONFIGS: dict[str, dict[str, Any]] = {
    "ast": _MATCHING | {"initialization": "representative", "balance": True, "waypoints": "equal", "perturbation": 1.0},
    "cv-dd": _COMMITTEE,
    "infer": _INFER,
    "infer-base": _INFER,
    "infer-scrambled": _INFER,
    "herding": {"features": _TEACHERS, "labels": {"teachers": _TEACHERS}},
    "k-center": {"features": _TEACHERS},
    "k-means": {"target": _TARGET},
    "krr-shuffled": _KRR | {"augment": "flip", "start": "pixels"},
    "krr-st": _KRR,
    "mtt": _MATCHING,
    "random": {"teachers": _TEACHERS},
    "sre2l": _COMMITTEE | {
        "schedule": "single", "initialization": "noise", "inversion": _INVERSION,
        "tape": _FIRST | {"statistics": "running"},
    },
    "sre2l++": _COMMITTEE | {"schedule": "single", "initialization": "real", "tape": _FIRST | {"top": 2}},
}  # fmt: skip
# Other methods' images with labels of a tape
TAPED_CONFIGS: dict[str, dict[str, Any]] = {
    "infer": _INFER | {"tape": _TAPE},
    "k-means": {"target": None, "features": _TEACHERS, "labels": {"teachers": _TEACHERS, "tape": _TAPE}},
    "random": {"teachers": _TEACHERS, "tape": _TAPE | {"weighting": "equal"}},
}
# Images with features for targets
FEATURE_CONFIGS: dict[str, dict[str, Any]] = {
    "krr-st": _KRR | {"learned": "targets", "augment": "none"},
    "random": {"target": _TARGET, "times": 2},
}
GRAPH_CONFIGS: dict[str, dict[str, Any]] = {
    "herding": {"hops": 1},
    "mirage": {"hops": 1},
    "mirage-random": {"hops": 1},
    "random": {"protocol": "graphs"},
}
CASES = [
    pytest.param(dataset, method, config, id=f"{dataset}-{method}{kind}")
    for dataset, kind, configs in (("blobs", "", CONFIGS), ("blobs", "-taped", TAPED_CONFIGS),
                                   ("blobs", "-features", FEATURE_CONFIGS), ("motifs", "", GRAPH_CONFIGS))
    for method, config in configs.items()
]  # fmt: skip
AT_ONCE = {("motifs", method) for method in GRAPH_CONFIGS}  # in no stages: nothing to go on with, and nothing to lose
GRAPH_PROTOCOL = GraphProtocol(
    name="tiny-graphs", summary="Four steps.", architectures=("gin1-x0.1",), steps=4, batch=8, checkpoints=(2, 4)
)
PROTOCOL = EvalProtocol(
    name="tiny",
    summary="Two steps of a network of eight channels.",
    architectures=("convnet1-batch-x0.0625",),
    recipe=TrainingRecipe(steps=2, batch=8, optimizer="adamw", lr=1e-3, mix="mixup"),
)
TAPE_PROTOCOL = TapeProtocol(
    name="tiny-tape",
    summary="Two batches of a tape.",
    architectures=("convnet1-batch-x0.0625",),
    training=TapeTraining(steps=2),
    tape=TapeRecipe(batch=8),
)
TRANSFER_PROTOCOL = TransferProtocol(
    name="tiny-transfer",
    summary="Two steps on the set, two on the blobs themselves.",
    architectures=("pyramid2-x0.015625",),
    source="blobs",
    target="blobs",
    features=TrainingRecipe(steps=2, batch=8),
    classes=TrainingRecipe(steps=2, batch=8),
    tuning=TrainingRecipe(steps=2, batch=8),
    probes=(0.1,),
    probe_draws=1,
)


def test_every_method_is_held_to_the_contract() -> None:
    assert set(CONFIGS) | set(GRAPH_CONFIGS) == set(synth.METHODS)


@pytest.mark.parametrize(("dataset", "method", "config"), CASES)
def test_contract(
    dataset: str,
    method: str,
    config: dict[str, Any],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: Interrupt,
) -> None:
    folder = request.getfixturevalue(f"{dataset}_dir")
    data = load_training(dataset, folder)
    task = Task(data, ipc=4, seed=1, device=torch.device("cpu"))
    order = Order(method, "tiny", configure(synth.find(method), config))

    straight, made = distil(order, task, Store())
    assert made
    assert distil(order, task, Store()) == (straight, False)

    # Every process is stopped in its first step, until nothing is left to do.
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: PIXEL)  # one of each is enough
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "interrupted"))
    resumed, lives = None, 0
    while resumed is None:
        lives += 1
        with interrupted(lambda *_: True, must=False):
            resumed, made = distil(order, task, Store())
    assert made
    assert lives == 1 if (dataset, method) in AT_ONCE else lives > 2
    assert (resumed.id, resumed.sha256) == (straight.id, straight.sha256)
    assert (resumed.path / "tensors.safetensors").read_bytes() == (straight.path / "tensors.safetensors").read_bytes()

    # What is stored is a sound set that says where it comes from.
    found = Store().read(resumed.path)
    assert len(found) == resumed.manifest.images
    if isinstance(found.payload, Trees):
        assert found.payload.plan(1).count == len(found)
    elif isinstance(seen := found.payload.decode(), GraphBatch):
        assert len(seen) == len(found)
    else:
        assert not isinstance(data, GraphData)
        assert seen.shape == (len(found), *data.spec.image_shape)
    if isinstance(found.targets, Features):
        assert found.targets.values.shape == (len(found), len(found.targets.center))
    else:
        assert set(found.targets.classes.tolist()) == {0, 1, 2}
    assert known(found.provenance) == describe(order, task)
    assert known(resumed.provenance) == known(straight.provenance)
    assert sum(resumed.ledger.values()) == resumed.size_bytes
    assert Store().find(resumed.id[:6]) == resumed

    # An evaluator that knows no method trains on it.
    test, results = open_test(dataset, folder), tmp_path / "results"
    protocols: dict[str, AnyProtocol] = {"taped": TAPE_PROTOCOL, "features": TRANSFER_PROTOCOL}
    protocol = GRAPH_PROTOCOL if isinstance(data, GraphData) else protocols.get(found.targets.kind, PROTOCOL)
    (architecture,) = protocol.architectures
    destination = Destination.open(protocol, folder) if isinstance(protocol, TransferProtocol) else None
    subject = subject_of(resumed, data, destination)
    for expected in (1, 0):
        assert expected == judge(
            subject, protocol, architecture, runs=1, test=test, device=task.device, results=results
        )
    ((_, record),) = read_records(results)
    (student,) = record.students
    assert 0 <= student.metrics["top1"] <= 1
    assert student.metrics["nll"] > 0
    assert (record.set.method, record.set.recipe, record.set.bytes) == (method, found.provenance.recipe, resumed.ledger)
    assert [link.recipe for link in record.set.controls] == [control.recipe for control in found.provenance.controls]


def known(provenance: Provenance) -> Provenance:
    """Returns the provenance without what is only known after the work."""
    return replace(
        provenance, parents=(), ddbench="", libraries={}, device="", threads=0, wall_seconds=0.0, teacher_seconds=0.0,
        peak_memory_bytes=0,
    )  # fmt: skip
