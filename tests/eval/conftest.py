"""Subjects to judge, and the protocols they are judged under: a few steps of a tiny network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dd_bench.data.graph_reading import GraphRows
from dd_bench.data.graph_specs import GraphSpec
from dd_bench.data.graphs import GraphData
from dd_bench.data.holdout import GraphTestSplit, TestSplit
from dd_bench.data.images import ImageData, load
from dd_bench.graphs import GraphBatch
from dd_bench.learn.training import TrainingRecipe
from dd_bench.models import build
from dd_bench.networks import NetworkFacts, save_network
from dd_bench.seeding import generator, seeded
from dd_bench.targets import HardLabels, SoftLabels, Targets
from eval.cells import SetFacts
from eval.protocol_kinds import EvalProtocol, GraphProtocol
from eval.students import Subject
from tests.eval.boards import Judge, judging

TINY_NET = "convnet1-batch-x0.05"
TINY = EvalProtocol(
    name="tiny",
    summary="Four steps.",
    architectures=(TINY_NET,),
    recipe=TrainingRecipe(steps=4, batch=8, optimizer="adamw", lr=1e-3, weight_decay=0.01, mix="mixup"),
    full_epochs=1,
)

RINGS = GraphSpec("rings", 2, (4, 2), (3,), ("tree", "ring"))
TINY_GRAPHS = GraphProtocol(
    name="tiny-graphs", summary="Six steps.", architectures=("gin2-x0.1",), steps=6, batch=8, checkpoints=(2, 6)
)

MakeSubject = Callable[..., Subject]
MakeTeacher = Callable[[int], str]


@pytest.fixture
def tiny() -> EvalProtocol:
    return TINY


@pytest.fixture
def net() -> str:
    return TINY_NET


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "leaderboards" / "results"


@pytest.fixture
def data(blobs_dir: Path) -> ImageData:
    return load("blobs", blobs_dir)


@pytest.fixture
def holdout(blobs_dir: Path) -> TestSplit:
    return TestSplit.open("blobs", blobs_dir)


@pytest.fixture
def subject(data: ImageData) -> MakeSubject:
    """Returns the first images of the training split as a subject, hard or soft; ``facts`` replace its facts."""

    def make(count: int = 12, *, labels: str = "hard", logits: Tensor | None = None, **facts: Any) -> Subject:
        classes = data.labels[:count]
        targets: Targets = HardLabels(classes)
        if labels == "soft" or logits is not None:
            drawn = torch.randn(count, data.spec.num_classes, generator=generator(3))
            targets = SoftLabels(drawn if logits is None else logits, classes, 4.0)
        known: dict[str, Any] = {
            "id": "0123456789ab", "sha256": "5e" * 32, "method": "infer", "preset": "digits", "dataset": "blobs",
            "fingerprint": data.fingerprint, "ipc": 4, "seed": 0, "recipe": "ba9876543210", "labels": targets.kind,
            "images": count, "bytes": {"images": 768, "classes": 24}, "wall_seconds": 1.0, "teacher_seconds": 0.0,
            "device": "cpu",
        }  # fmt: skip
        return Subject(SetFacts(**known | facts), data.images[:count].float() / 255, targets)

    return make


@pytest.fixture
def teacher(data: ImageData) -> MakeTeacher:
    """Stores an untrained teacher and returns its id."""

    def make(seed: int) -> str:
        network_id = f"{TINY_NET}-{seed}"
        with seeded(seed):
            model = build(TINY_NET, data.spec)
        facts = NetworkFacts(
            id=network_id, architecture=TINY_NET, dataset="blobs", fingerprint=data.fingerprint, recipe={}, seed=seed,
            held_out_top1=0.5, held_out_images=1, seconds=0.0, device="cpu", versions={},
        )  # fmt: skip
        save_network(model, facts)
        return network_id

    return make


def draw_rings(count: int, seed: int) -> tuple[GraphBatch, Tensor]:
    """Returns graphs and classes: trees, and in turn rings with chords, which have a few nodes more; random labels."""
    draws = generator(seed)
    starts, pairs = [0], []
    for number in range(count):
        ring, first = number % 2, starts[-1]
        size = int(torch.randint(4, 10, (), generator=draws)) + ring
        found = {(int(torch.randint(0, node, (), generator=draws)), node) for node in range(1, size)}
        if ring:
            found = {tuple(sorted((node, (node + 1) % size))) for node in range(size)} | {(0, 2)}
        pairs += [(first + one, first + other) for one, other in sorted(found)]
        starts.append(first + size)
    links = torch.tensor(pairs).T
    bonds = torch.randint(0, 3, (links.shape[1], 1), generator=draws)
    arcs = torch.cat([links, links.flip(0)], 1)
    order = (arcs[1] * starts[-1] + arcs[0]).argsort()
    columns = [torch.randint(0, size, (starts[-1],), generator=draws) for size in RINGS.node_columns]
    graphs = GraphBatch(torch.stack(columns, 1), arcs[:, order], bonds.repeat(2, 1)[order], torch.tensor(starts))
    return graphs, torch.arange(count) % 2


@pytest.fixture(scope="session")
def rings() -> GraphData:
    """A generated graph data set of two classes that a network of one hop can tell apart: 40 and 30 graphs."""
    return GraphData(RINGS, *draw_rings(40, 0), *draw_rings(30, 1), fingerprint="ab" * 32)


@pytest.fixture
def rings_test() -> GraphTestSplit:
    return GraphTestSplit(GraphRows(RINGS, *draw_rings(50, 2), "ab" * 32))


@pytest.fixture
def tiny_graphs() -> GraphProtocol:
    return TINY_GRAPHS


@pytest.fixture
def judge(results: Path) -> Judge:
    return judging(results)
