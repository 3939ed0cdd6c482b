"""Graph students: what they learn from, what is chosen for them and on what, and what they are held against."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from dd_bench.data.graph_reading import GraphRows
from dd_bench.data.graphs import GraphData
from dd_bench.data.holdout import GraphTestSplit, TestSplit
from dd_bench.errors import ConfigError, DataError, InvalidSetError, NonFiniteError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.graphs import plan_graphs
from dd_bench.run import Run
from dd_bench.seeding import generator
from dd_bench.sets import Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.targets import HardLabels
from eval.candidates import FullBatch, Lesson, Minibatches, fresh
from eval.cells import Record, read_records
from eval.graphs import GraphSubject, baselines
from eval.judging import baseline_facts, is_judged, judge, student_seed
from eval.protocol_kinds import EvalProtocol, GraphProtocol
from eval.protocols import PROTOCOLS
from eval.students import subject_of
from eval.validation import Validation, roc_auc
from tests.eval.conftest import RINGS, draw_rings

CPU = torch.device("cpu")
NET = "gin2-x0.1"
FACTS = baseline_facts("random", "some", dataset="rings", fingerprint="ab" * 32, count=12, parts={"graphs": 9})
FACTS = FACTS.model_copy(update={"id": "0123456789ab", "sha256": "5e" * 32, "ipc": 6, "recipe": "ba9876543210"})
TREES = Trees(
    features=torch.tensor([[0, 1], [3, 0]]), degrees=torch.tensor([1, 4]), levels=torch.tensor([2, 2]),
    trunks=torch.tensor([0, 1]), fans=torch.tensor([1, 2]), children=torch.tensor([1, 0, 1]),
    bonds=torch.tensor([0, 0, 1]), repeats=torch.tensor([1, 3, 1]), bond_labels=torch.tensor([[2], [0]]),
    tree_counts=torch.tensor([1, 2, 1]), roots=torch.tensor([0, 0, 1, 1]),
    copies=torch.tensor([1.0, 2.0, 0.5, 1.0]).half(), weights=torch.tensor([1.0, 4.0, 0.25]).half(),
)  # fmt: skip


@pytest.fixture
def some(rings: GraphData) -> GraphSubject:
    """Twelve of the training graphs, which are two batches."""
    return GraphSubject(FACTS, rings.graphs.pick(torch.arange(12)), rings.labels[:12], rings)


@pytest.fixture
def few(rings: GraphData) -> GraphSubject:
    """Four of the training graphs, which are one batch."""
    facts = FACTS.model_copy(update={"id": "f00f00f00f00", "images": 4})
    return GraphSubject(facts, rings.graphs.pick(torch.arange(4)), rings.labels[:4], rings)


@pytest.fixture
def trees(rings: GraphData) -> GraphSubject:
    facts = FACTS.model_copy(update={"id": "77ee77ee77ee", "method": "mirage", "images": 3})
    return GraphSubject.of(facts, TREES, HardLabels(torch.tensor([0, 1, 1])), rings)


@pytest.fixture
def judged(results: Path, rings_test: GraphTestSplit) -> Any:
    def call(subject: Any, protocol: Any, net: str = NET, *, runs: int = 1, folder: Path = results) -> Record:
        judge(subject, protocol, net, runs=runs, test=rings_test, device=CPU, results=folder)
        known = [record for _, record in read_records(folder) if record.set.id == subject.facts.id]
        (record,) = (record for record in known if record.architecture == net)
        return record

    return call


def lasting(record: Record) -> list[dict[str, Any]]:
    """Returns the students of a record without the times, which no two runs share."""
    dropped = ("train_seconds", "date")
    return [{k: v for k, v in one.items() if k not in dropped} for one in record.model_dump(mode="json")["students"]]


def script(monkeypatch: pytest.MonkeyPatch, *scores: float) -> list[Tensor]:
    """Makes validation scores those given, in the order of asking; returns the weights that were asked about."""
    seen: list[Tensor] = []

    def score(_: Validation, model: Any) -> Tensor:
        seen.append(parameters_to_vector(model.parameters()).detach().clone())
        return torch.tensor(scores[len(seen) - 1])

    monkeypatch.setattr(Validation, "score", score)
    return seen


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "checkpoint", "place"),
    [
        ((0.1, 0.2, 0.3, 0.2, 0.1, 0.2, 0.2, 0.9), 1, 3),
        ((0.1, 0.9, 0.3, 0.2, 0.1, 0.2, 0.2, 0.8), 0, 1),
        ((0.5,) * 8, 0, 0),
        ((0.1, 0.7, 0.7, 0.1, 0.7, 0.7, 0.1, 0.1), 0, 1),
        ((-np.inf, -np.inf, -np.inf, -np.inf, -np.inf, 0.0, -np.inf, -np.inf), 1, 1),
    ],
    ids=["last", "earlier", "all equal", "fewest steps, then the first", "what did not diverge"],
)
def test_the_best_on_validation_is_scored(
    few: GraphSubject, tiny_graphs: GraphProtocol, judged: Any, monkeypatch: pytest.MonkeyPatch,
    scores: tuple[float, ...], checkpoint: int, place: int,
) -> None:  # fmt: skip
    scored: list[Tensor] = []
    original = GraphTestSplit.score

    def watched(self: GraphTestSplit, student: str, predict: Any, **named: Any) -> dict[str, float]:
        (model,) = (cell.cell_contents for cell in predict.__closure__ if hasattr(cell.cell_contents, "pool"))
        scored.append(parameters_to_vector(model.parameters()).detach().clone())
        assert not model.training
        assert model.pool == tiny_graphs.candidates[place][0]
        return original(self, student, predict, **named)

    monkeypatch.setattr(GraphTestSplit, "score", watched)
    asked = script(monkeypatch, *scores)
    (student,) = judged(few, tiny_graphs).students
    assert len(asked) == 8, "four candidates, two checkpoints"
    assert torch.equal(scored[0], asked[4 * checkpoint + place])
    assert len(scored) == 1
    pool, lr = tiny_graphs.candidates[place]
    expected = pytest.approx(scores[4 * checkpoint + place])
    steps = (2, 6)[checkpoint]
    assert student.choice == {"pool": pool, "lr": lr, "steps": steps, "validation auc": expected}
    assert student.steps == steps


def test_divergence_of_all_is_told(
    few: GraphSubject, tiny_graphs: GraphProtocol, judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, *[-np.inf] * 8)
    with pytest.raises(NonFiniteError, match="student 1 random: every candidate's validation logits"):
        judged(few, tiny_graphs)


def test_one_divergent_candidate_harms_no_other(
    few: GraphSubject, tiny_graphs: GraphProtocol, judged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol = replace(tiny_graphs, pools=("mean",), lrs=(1e38, 1e-2))
    whole = judged(few, protocol).students[0]
    monkeypatch.setattr("eval.judging.student_seed", lambda *_: whole.seed)
    alone = judged(few, replace(protocol, lrs=(1e-2,)), folder=tmp_path / "alone").students[0]
    assert (whole.metrics, whole.choice) == (alone.metrics, alone.choice)
    with pytest.raises(NonFiniteError, match="loss became NaN or infinite at step"):
        judged(few, replace(protocol, lrs=(1e38,)), folder=tmp_path / "gone")


def test_the_test_split_is_read_once_and_at_the_end(
    some: GraphSubject, tiny_graphs: GraphProtocol, judged: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    for owner, name in ((Validation, "validation"), (GraphTestSplit, "test")):

        def watched(*given: Any, _name: str = name, _original: Any = owner.score, **named: Any) -> Any:
            events.append(_name)
            return _original(*given, **named)

        monkeypatch.setattr(owner, "score", watched)
    judged(some, tiny_graphs, runs=2)
    assert events == (["validation"] * 8 + ["test"]) * 2


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["sum", "mean"])
def test_training_matches_reference(
    trees: GraphSubject, tiny_graphs: GraphProtocol, judged: Any, monkeypatch: pytest.MonkeyPatch, pool: Any
) -> None:
    """Six steps of Adam on sum(w CE) / sum(w), one candidate at a time, in a few lines."""
    asked = script(monkeypatch, *[0.5] * 8)
    student = judged(trees, tiny_graphs).students[0]
    weights, classes = torch.tensor([1.0, 4.0, 0.25]), [0, 1, 1]
    for lr in (1e-2, 1e-3):
        model = fresh(NET, RINGS, pool, student.seed)
        assert student.seed == student_seed(trees, tiny_graphs, NET, 0)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=5e-4, fused=False)
        for _ in range(6):
            likelihood = model(TREES.plan(2)).softmax(1)[range(3), classes]
            optimizer.zero_grad()
            (-(weights * likelihood.log()).sum() / 5.25).backward()
            optimizer.step()
        theirs = asked[4 + tiny_graphs.candidates.index((pool, lr))]
        torch.testing.assert_close(theirs, parameters_to_vector(model.parameters()), rtol=1e-4, atol=1e-6)


def test_loss_matches_reference(rings: GraphData) -> None:
    model = fresh(NET, RINGS, "mean", 0)
    lesson = Lesson(TREES.plan(2), torch.tensor([0, 1, 1]), torch.tensor([1.0, 4.0, 0.25]))
    first, second, third = -model(lesson.plan).log_softmax(1)[range(3), [0, 1, 1]]
    torch.testing.assert_close(lesson.loss(model), (first + 4 * second + third / 4) / 5.25)
    again = replace(lesson, weights=8 * lesson.weights)
    torch.testing.assert_close(again.loss(model), lesson.loss(model))


def test_batches_are_of_different_graphs_drawn_from_the_generator(rings: GraphData) -> None:
    course = Minibatches(rings.graphs, rings.labels, 8, 2, "cpu")
    draws, same = generator(1), generator(1)
    lessons = [course.draw(draws) for _ in range(20)]
    for lesson in lessons:
        index = torch.randperm(40, generator=same)[:8]
        plan = plan_graphs(rings.graphs.pick(index), 2)
        assert torch.equal(lesson.classes, rings.labels[index])
        assert torch.equal(lesson.weights, torch.ones(8))
        assert torch.equal(lesson.plan.nodes, plan.nodes)
        assert torch.equal(lesson.plan.hops[1].source, plan.hops[1].source)
        assert lesson.plan.count == 8


def test_small_sets_are_one_batch(few: GraphSubject, some: GraphSubject, trees: GraphSubject) -> None:
    kinds = [type(subject._course(2, 8, CPU)) for subject in (few, some, trees)]
    assert kinds == [FullBatch, Minibatches, FullBatch]


def test_every_subject_trains_equally_long(
    few: GraphSubject, some: GraphSubject, trees: GraphSubject, rings: GraphData, tiny_graphs: GraphProtocol,
    judged: Any, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    done: list[tuple[str, int]] = []
    original = Run.steps

    def watched(self: Run, label: str, total: int, *rest: Any) -> Iterator[int]:
        for step in original(self, label, total, *rest):
            done.append((label, step))
            yield step

    monkeypatch.setattr(Run, "steps", watched)
    for subject in (few, some, trees, baselines(rings)[0]):
        assert judged(subject, tiny_graphs).students[0].steps in tiny_graphs.checkpoints
    labels = ("student 1 random", "student 1 random", "student 1 mirage", "student 1 full")
    assert done == [(label, step) for label in labels for step in range(6)]


@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_resume_is_invisible(
    some: GraphSubject, tiny_graphs: GraphProtocol, judged: Any, interrupted: Any, tmp_path: Path,
    results: Path, stop: int,
) -> None:  # fmt: skip
    undisturbed = judged(some, tiny_graphs, runs=2, folder=tmp_path / "undisturbed")
    other = GraphTestSplit(GraphRows(RINGS, *draw_rings(50, 2), "ab" * 32))  # a new process', which has seen nobody
    with interrupted(lambda stage, step: stage == "student 2 random" and step == stop):
        judge(some, tiny_graphs, NET, runs=2, test=other, device=CPU, results=results)
    assert judge(some, tiny_graphs, NET, runs=2, test=other, device=CPU, results=results) == 1
    ((_, record),) = read_records(results)
    assert lasting(record) == lasting(undisturbed)


def test_the_record_says_what_was_done(some: GraphSubject, tiny_graphs: GraphProtocol, judged: Any) -> None:
    record = judged(some, tiny_graphs, runs=2)
    assert record.set == FACTS
    assert (record.protocol_name, record.protocol_id, record.architecture) == ("tiny-graphs", tiny_graphs.id, NET)
    assert record.protocol == tiny_graphs.as_json()
    assert record.teacher_bytes == 0
    for index, student in enumerate(record.students):
        assert (student.index, student.seed) == (index, student_seed(some, tiny_graphs, NET, index))
        assert set(student.metrics) == {"top1", "nll", "auc"}
        assert set(student.choice) == {"pool", "lr", "steps", "validation auc"}
    assert record.students[0].metrics != record.students[1].metrics


# --- baselines --------------------------------------------------------------------------------------------------------


def test_full_is_all_training_graphs(rings: GraphData, tiny_graphs: GraphProtocol, judged: Any) -> None:
    full = baselines(rings)[0]
    assert isinstance(full, GraphSubject)
    assert full.material is rings.graphs
    assert full.classes is rings.labels
    assert (full.facts.method, full.facts.ipc, full.facts.images) == ("full", 0, 40)
    assert full.facts.sha256 == rings.fingerprint
    stored = Graphs.of(rings.graphs)
    numbers = sum(tensor.numel() for tensor in vars(stored).values())
    assert full.facts.bytes == {"graphs": numbers, "classes": 40}, "all of them are below 256"
    assert len(judged(full, tiny_graphs, runs=3).students) == 3


def test_untrained_is_the_fresh_network_with_the_better_pool(
    rings: GraphData, tiny_graphs: GraphProtocol, judged: Any, rings_test: GraphTestSplit
) -> None:
    (student, second) = judged(baselines(rings)[1], tiny_graphs, runs=2).students
    assert student.steps == 0
    nets = {pool: fresh(NET, RINGS, pool, student.seed) for pool in ("sum", "mean")}
    scores = {}
    for pool, net in nets.items():
        answer = net(plan_graphs(rings.validation, 2)).diff().flatten().detach()
        scores[pool] = roc_auc_score(rings.validation_labels, answer)
    best = max(scores, key=lambda pool: scores[pool])
    assert student.choice == {"pool": best, "validation auc": pytest.approx(scores[best], abs=1e-6)}
    answer = rings_test.score("oracle", lambda batch: nets[best](plan_graphs(batch, 2)), device=CPU)
    assert student.metrics == pytest.approx(answer)
    assert second.metrics != student.metrics


@pytest.mark.parametrize(("place", "columns"), [(2, 1), (3, 2)], ids=["node-count", "node-edge-count"])
def test_counts_match_reference(
    rings: GraphData, tiny_graphs: GraphProtocol, judged: Any, results: Path, place: int, columns: int
) -> None:
    subject = baselines(rings)[place]
    test, classes = draw_rings(50, 2)
    rows = []
    for batch in (rings.graphs, test):
        sizes = np.log(np.diff(batch.starts.numpy()))
        edges = np.log(
            [1 + np.sum(batch.owners.numpy()[batch.arcs[0].numpy()] == one) / 2 for one in range(len(batch))]
        )
        rows.append(np.stack([sizes, edges], 1)[:, :columns])
    mean, std = rows[0].mean(0), rows[0].std(0)
    model = LogisticRegression().fit((rows[0] - mean) / std, rings.labels)
    chance = model.predict_proba((rows[1] - mean) / std)
    for net in (NET, "gcn1-x0.1"):
        (student,) = judged(subject, tiny_graphs, net, runs=5).students
        assert student.metrics["top1"] == pytest.approx((chance.argmax(1) == classes.numpy()).mean())
        assert student.metrics["auc"] == pytest.approx(roc_auc_score(classes, chance[:, 1]))
        nll = -np.log(chance[range(50), classes]).mean()
        assert student.metrics["nll"] == pytest.approx(nll, rel=1e-4)
        assert (student.steps, student.choice) == (0, {})
        assert is_judged(subject, tiny_graphs, net, runs=5, results=results)
    assert subject.facts.method == ("node-count", "node-edge-count")[columns - 1]


def test_counts_of_a_class_that_training_never_showed(
    rings: GraphData, tiny_graphs: GraphProtocol, results: Path
) -> None:
    three = replace(RINGS, num_classes=3, class_names=("tree", "ring", "none"))
    test = GraphTestSplit(GraphRows(three, *draw_rings(50, 2), rings.fingerprint))
    subject = baselines(replace(rings, spec=three))[3]
    judge(subject, tiny_graphs, NET, runs=1, test=test, device=CPU, results=results)
    metrics = read_records(results)[0][1].students[0].metrics
    assert set(metrics) == {"top1", "nll"}
    assert metrics["top1"] > 0.7


# --- validation -------------------------------------------------------------------------------------------------------


def test_roc_auc_matches_reference() -> None:
    values = torch.randint(0, 9, (200,), generator=generator(0)).float()  # with many ties
    labels = torch.randint(0, 2, (200,), generator=generator(1))
    expected = roc_auc_score(labels, values)
    assert float(roc_auc(values[labels == 1], values[labels == 0])) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_validation_scores_all_graphs(classes: int, rings: GraphData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.validation._BATCH", 7)
    spec = replace(RINGS, num_classes=classes)
    model = fresh(NET, spec, "mean", 0)
    logits = model(plan_graphs(rings.validation, 2)).detach()
    validation = Validation(rings.validation, rings.validation_labels, num_classes=classes, layers=2, device="cpu")
    expected = (logits.argmax(1) == rings.validation_labels).float().mean()
    if classes == 2:
        expected = roc_auc_score(rings.validation_labels, logits.softmax(1)[:, 1])
    assert validation.metric == {2: "auc", 3: "top1"}[classes]
    assert float(validation.score(model)) == pytest.approx(float(expected), abs=1e-6)
    model.head.bias.data[0] = torch.nan
    assert float(validation.score(model)) == -np.inf


def test_rejects_a_validation_split_of_one_class(rings: GraphData) -> None:
    with pytest.raises(DataError, match="has 30 graphs of one class; expected both"):
        Validation(rings.validation, torch.ones(30).long(), num_classes=2, layers=2, device="cpu")


# --- where subjects come from, and what they are refused --------------------------------------------------------------


@pytest.mark.parametrize("kind", ["graphs", "trees"])
def test_subject_of_a_stored_set(kind: str, rings: GraphData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
    provenance = Provenance(
        method="random", preset="some", config={}, dataset="rings", fingerprint=rings.fingerprint, ipc=2, seed=3,
        recipe="0123456789ab", device="cpu", wall_seconds=1.5,
    )  # fmt: skip
    batch = rings.graphs.pick(torch.arange(3))
    payload = Graphs.of(batch) if kind == "graphs" else TREES
    labels = HardLabels(torch.tensor([0, 1, 1]))
    stored = Store().write(SyntheticSet(payload, labels, provenance, "graphs"))
    made = subject_of(stored, rings)
    assert isinstance(made, GraphSubject)
    assert (made.facts.id, made.facts.images, made.facts.labels) == (stored.id, 3, "hard")
    assert made.facts.bytes == stored.ledger
    assert torch.equal(made.classes, labels.classes)
    if kind == "graphs":
        for name in ("nodes", "arcs", "edges", "starts"):
            assert torch.equal(getattr(made.material, name), getattr(batch, name))
    else:
        assert torch.equal(made._course(2, 8, CPU).draw(generator(0)).weights, TREES.weights.float())
    with pytest.raises(TypeError, match=r"data is NoneType; expected the GraphData that .* was made from"):
        subject_of(stored)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(RINGS, node_columns=(3, 2)), r"has node labels in 2 columns up to \[3, 1\]; expected below \[3, 2\]"),
        (replace(RINGS, node_columns=(4,)), r"node labels in 2 columns .*; expected below \[4\] as in rings"),
        (replace(RINGS, edge_columns=(2,)), r"has edge labels in 1 columns up to \[2\]; expected below \[2\]"),
        (replace(RINGS, num_classes=1), r"has classes in 1 columns up to \[1\]; expected below \[1\]"),
    ],
)
def test_rejects_labels_of_other_data(rings: GraphData, spec: Any, message: str) -> None:
    for payload in (TREES, Graphs.of(rings.graphs.pick(torch.arange(8)))):
        classes = HardLabels(torch.arange(len(payload)) % 2)
        with pytest.raises(InvalidSetError, match=message):
            GraphSubject.of(FACTS, payload, classes, replace(rings, spec=spec))


def test_rejects_protocols_and_networks_for_images(
    some: GraphSubject, rings: GraphData, tiny: EvalProtocol, tiny_graphs: GraphProtocol, judged: Any, results: Path
) -> None:
    for subject in (some, *baselines(rings)):
        with pytest.raises(ConfigError, match=r"protocol tiny is for images, but \S+ \S+ of rings holds graphs; use "):
            judged(subject, tiny)
        with pytest.raises(ConfigError, match="model convnet1-batch takes images, but rings holds graphs; choose one"):
            judged(subject, tiny_graphs, "convnet1-batch")
    assert read_records(results) == []


def test_rejects_protocols_and_networks_for_graphs(
    subject: Any, tiny: EvalProtocol, tiny_graphs: GraphProtocol, holdout: TestSplit, net: str, results: Path
) -> None:
    given: dict[str, Any] = {"runs": 1, "test": holdout, "device": CPU, "results": results}
    with pytest.raises(ConfigError, match="protocol tiny-graphs is for graphs, but infer 0123456789ab of blobs holds"):
        judge(subject(), tiny_graphs, net, **given)
    with pytest.raises(ConfigError, match="model gin2 takes graphs, but blobs holds images; choose one for images"):
        judge(subject(), tiny, "gin2", **given)
    assert read_records(results) == []


def test_rejects_a_set_of_other_data(some: GraphSubject, tiny_graphs: GraphProtocol, judged: Any) -> None:
    foreign = replace(some, facts=FACTS.model_copy(update={"fingerprint": "0bad" * 16}))
    with pytest.raises(InvalidSetError, match="with fingerprint 0bad0bad0bad, but the data here have abababababab"):
        judged(foreign, tiny_graphs)


# --- does any of this measure anything? -------------------------------------------------------------------------------


def test_students_of_real_graphs_beat_those_of_permuted_labels(judged: Any) -> None:
    data = GraphData(RINGS, *draw_rings(200, 3), *draw_rings(100, 4), fingerprint="ab" * 32)
    protocol = PROTOCOLS["graphs"]
    assert isinstance(protocol, GraphProtocol)
    protocol = replace(protocol, steps=80, checkpoints=(40, 80), lrs=(1e-2,), batch=32)
    real = GraphSubject(FACTS, data.graphs, data.labels, data)
    facts = FACTS.model_copy(update={"id": "permuted", "method": "permuted"})
    permuted = replace(real, facts=facts, classes=data.labels[torch.randperm(200, generator=generator(0))])
    first, second = (judged(subject, protocol, "gin2-x0.25", runs=2) for subject in (real, permuted))
    assert min(student.metrics["auc"] for student in first.students) > 0.97
    assert max(student.metrics["auc"] for student in second.students) < 0.85
