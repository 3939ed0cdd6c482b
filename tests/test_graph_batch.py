"""Many graphs as one: what is counted, what is picked, and how messages flow."""

import pytest
import torch

from dd_bench.graphs import GraphBatch, plan_graphs
from tests.data.graph_files import Toy, assert_is, toys
from tests.references.trees import batch_of


@pytest.fixture
def graphs() -> list[Toy]:
    return [*toys(12, (3, 2), (2, 4), (0, 1)), Toy([(1, 1)], {}, 0)]


@pytest.fixture
def batch(graphs: list[Toy]) -> GraphBatch:
    return batch_of(graphs)


def test_counts(batch: GraphBatch, graphs: list[Toy]) -> None:
    assert len(batch) == 13
    assert batch.sizes.tolist() == [len(graph.nodes) for graph in graphs]
    assert batch.arc_counts.tolist() == [2 * len(graph.edges) for graph in graphs]
    assert batch.owners.tolist() == [number for number, graph in enumerate(graphs) for _ in graph.nodes]
    degrees = [sum(node in edge for edge in graph.edges) for graph in graphs for node in range(len(graph.nodes))]
    assert batch.degrees.tolist() == degrees
    assert 0 in degrees[:-1], "some nodes are alone among others"


@pytest.mark.parametrize("index", [list(range(13)), [3], [12], [5, 5, 5], [12, 0, 7, 12, 1], [2, 1, 0], []], ids=str)
def test_pick(batch: GraphBatch, graphs: list[Toy], index: list[int]) -> None:
    picked = batch.pick(torch.tensor(index, dtype=torch.int64))
    chosen = [graphs[number] for number in index]
    assert_is(picked, torch.tensor([graph.label for graph in chosen]), chosen, (0, 1))
    assert picked.starts.tolist() == [sum(len(graph.nodes) for graph in chosen[:end]) for end in range(len(chosen) + 1)]
    if chosen:
        again = batch_of(chosen)
        assert picked.nodes.equal(again.nodes)
        assert picked.arcs.equal(again.arcs)


def test_pick_of_graphs_without_edges() -> None:
    lonely = batch_of([Toy([(0,), (1,)], {}, 0), Toy([(2,)], {}, 0)])
    picked = lonely.pick(torch.tensor([1, 0, 1]))
    assert picked.nodes.flatten().tolist() == [2, 0, 1, 2]
    assert picked.starts.tolist() == [0, 1, 3, 4]
    assert picked.arcs.shape == (2, 0)
    assert picked.edges.shape == (0, 0)
    assert picked.degrees.tolist() == [0, 0, 0, 0]


def test_moves(batch: GraphBatch) -> None:
    moved = batch.to("cpu")
    assert all(getattr(moved, name).equal(getattr(batch, name)) for name in ("nodes", "arcs", "edges", "starts"))


@pytest.mark.parametrize("layers", [1, 3])
def test_plan(batch: GraphBatch, graphs: list[Toy], layers: int) -> None:
    plan = plan_graphs(batch, layers).to("cpu")
    assert len(plan.hops) == layers
    assert plan.count == 13
    assert plan.nodes.equal(batch.nodes)
    assert plan.roots.tolist() == list(range(len(batch.nodes)))
    assert plan.owners.equal(batch.owners)
    assert plan.weights.tolist() == [1.0] * len(batch.nodes)
    hop = plan.hops[-1]
    assert hop.own.equal(plan.roots)
    expected = []
    first = 0
    for graph in graphs:
        degree = [sum(node in edge for edge in graph.edges) for node in range(len(graph.nodes))]
        for target, source, labels in graph.arcs():
            norm = ((degree[source] + 1) * (degree[target] + 1)) ** -0.5
            expected.append((source + first, target + first, labels, pytest.approx(norm, rel=1e-6)))
        first += len(graph.nodes)
    columns = (hop.source.tolist(), hop.target.tolist(), map(tuple, hop.edges.tolist()), hop.norm.tolist())
    assert list(zip(*columns, strict=True)) == expected
    torch.testing.assert_close(hop.own_norm, 1 / (batch.degrees + 1.0))
