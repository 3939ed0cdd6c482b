"""The test graphs: a score for each student, once."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dd_bench.data.graphs import load
from dd_bench.data.holdout import GraphTestSplit
from dd_bench.data.prepare import find
from dd_bench.errors import HoldoutError, NonFiniteError
from dd_bench.graphs import GraphBatch
from tests.data.graph_files import mutag, write_tu


def counting(batch: GraphBatch) -> Tensor:
    """Logits (B, 2) from the numbers of nodes and arcs; many of them tie."""
    return torch.stack([batch.sizes.float() / 4, batch.arc_counts.float() / 3], 1)


@pytest.fixture
def split(tmp_path: Path) -> GraphTestSplit:
    write_tu(tmp_path, "MUTAG", mutag(200))
    return GraphTestSplit.open("mutag", tmp_path)


def test_facts(split: GraphTestSplit, tmp_path: Path) -> None:
    assert len(split) == 20
    assert (split.spec, split.fingerprint) == (load("mutag", tmp_path).spec, load("mutag", tmp_path).fingerprint)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 512])
def test_score_matches_reference(batch_size: int, split: GraphTestSplit, tmp_path: Path) -> None:
    score = split.score("s", counting, device="cpu", batch_size=batch_size)
    tensors = load_file(find("mutag", tmp_path))
    held = tensors["split"] == 2
    labels = tensors["labels"][held].tolist()
    logits = torch.stack([tensors["sizes"] / 4, tensors["arc_counts"] / 3], 1)[held]
    chances = logits.softmax(1)[:, 1].tolist()
    pairs = [
        (p > q) + 0.5 * (p == q) for (p, y), (q, z) in product(zip(chances, labels, strict=True), repeat=2) if y > z
    ]
    assert 0.5 in pairs, "some tie"
    assert score.keys() == {"top1", "nll", "auc"}
    assert score["auc"] == pytest.approx(sum(pairs) / len(pairs))
    assert score["top1"] == sum(int(logits[i].argmax() == labels[i]) for i in range(20)) / 20
    loss = [float(logits[i].logsumexp(0) - logits[i, labels[i]]) for i in range(20)]
    assert score["nll"] == pytest.approx(sum(loss) / 20, rel=1e-5)


def test_certain_students_do_not_tie(split: GraphTestSplit) -> None:
    """The softmax of margins over 37 is 1 in float64; their order still counts."""
    modest = split.score("modest", counting, device="cpu")
    certain = split.score("certain", lambda batch: counting(batch) * 4096 + 2.0**20, device="cpu")
    assert certain["auc"] == modest["auc"]


def test_many_classes_have_no_auc(tmp_path: Path) -> None:
    test = GraphTestSplit.open("digits-graph", tmp_path)
    score = test.score("s", lambda batch: torch.zeros(len(batch), 10, dtype=torch.bfloat16), device="cpu")
    assert score == {"top1": pytest.approx(0.1), "nll": pytest.approx(2.302585, abs=1e-5)}


def test_student_sees_whole_graphs_without_gradients(split: GraphTestSplit) -> None:
    weight, seen = torch.ones((), requires_grad=True), []

    def predict(batch: GraphBatch) -> Tensor:
        logits = counting(batch) * weight
        assert not logits.requires_grad
        assert int(batch.starts[0]) == 0
        assert int(batch.starts[-1]) == len(batch.nodes)
        seen.append(len(batch))
        return logits

    split.score("s", predict, device=torch.device("cpu"), batch_size=8)
    assert seen == [8, 8, 4]


def fails(_batch: GraphBatch) -> Tensor:
    raise ZeroDivisionError


@pytest.mark.parametrize("predict", [counting, fails])
def test_rejects_a_second_look(predict: Callable[[GraphBatch], Tensor], split: GraphTestSplit) -> None:
    try:
        split.score("a1", predict, device="cpu")
    except ZeroDivisionError:
        assert predict is fails
    with pytest.raises(HoldoutError, match="test split was already read by student a1; accuracy is the last epoch's"):
        split.score("a1", counting, device="cpu")
    split.score("a2", counting, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rejects_logits_that_are_not_finite(value: float, split: GraphTestSplit) -> None:
    def predict(batch: GraphBatch) -> Tensor:
        logits = counting(batch)
        logits[-1, 1] = value
        return logits

    with pytest.raises(NonFiniteError, match="student a1 gave 3 logits that are NaN or infinite on the test graphs"):
        split.score("a1", predict, device="cpu", batch_size=8)


def test_shows_neither_graphs_nor_labels(split: GraphTestSplit) -> None:
    assert [name for name in dir(split) if not name.startswith("_")] == ["fingerprint", "open", "score", "spec"]
    assert "tensor" not in repr(split)


@pytest.mark.gpu
def test_score_on_the_gpu_is_that_on_the_cpu(split: GraphTestSplit) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    assert split.score("gpu", counting, device="cuda") == pytest.approx(split.score("cpu", counting, device="cpu"))
