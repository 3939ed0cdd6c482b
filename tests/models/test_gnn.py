"""Graph networks: PyTorch Geometric's own layers on ordinary graphs, and the same states from any plan."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.graphs import GraphBatch, Hop, MessagePlan, plan_graphs
from dd_bench.models import build
from dd_bench.models.gnn import GraphNetwork
from dd_bench.seeding import generator, seeded

# not before `gnn`, which quiets the import of the package
from torch_geometric.nn.conv import GCNConv  # isort: skip

KINDS = ("gcn", "gat", "gin", "sage")
PLAIN = GraphSpec("plain", 3, (5,), (), ("a", "b", "c"))
LABELLED = GraphSpec("labelled", 2, (5, 2), (3, 2), ("a", "b"))


def graph(size: int, spec: GraphSpec, seed: int = 0, density: float = 0.35) -> GraphBatch:
    """Returns one random graph; its last node stays alone."""
    draws = generator(seed)
    links = (torch.rand(size, size, generator=draws) < density).triu(1)
    links[:, -1] = False
    one, other = links.nonzero().T
    labels = [torch.randint(0, most, (len(one),), generator=draws) for most in spec.edge_columns]
    bonds = torch.stack(labels, 1) if labels else torch.zeros(len(one), 0, dtype=torch.int64)
    arcs, bonds = torch.stack([torch.cat([one, other]), torch.cat([other, one])]), bonds.repeat(2, 1)
    order = (arcs[1] * size + arcs[0]).argsort()
    nodes = torch.stack([torch.randint(0, most, (size,), generator=draws) for most in spec.node_columns], 1)
    return GraphBatch(nodes, arcs[:, order], bonds[order], torch.tensor([0, size]))


def union(*graphs: GraphBatch) -> GraphBatch:
    starts = torch.tensor([0, *(len(one.nodes) for one in graphs)]).cumsum(0)
    arcs = torch.cat([one.arcs + start for one, start in zip(graphs, starts, strict=False)], 1)
    return GraphBatch(
        torch.cat([one.nodes for one in graphs]), arcs, torch.cat([one.edges for one in graphs]), starts
    )  # fmt: skip


def network(kind: str, spec: GraphSpec, layers: int = 2, factor: float = 0.125) -> GraphNetwork:
    with seeded(7):
        model = build(f"{kind}{layers}-x{factor}", spec).double()
        for parameter in model.parameters():  # biases begin as zeros, which would hide that they are forgotten
            nn.init.normal_(parameter, std=0.5)
    return model


def exactly(plan: MessagePlan) -> MessagePlan:
    """Returns the plan in float64, with coefficients as exact."""
    hops = []
    for hop in plan.hops:
        own = hop.own_norm.double().reciprocal().round().reciprocal()
        norm = hop.norm.double().pow(-2).round().rsqrt()
        hops.append(replace(hop, norm=norm, own_norm=own))
    return replace(plan, hops=tuple(hops), weights=plan.weights.double())


def neighbourhood(plan: MessagePlan, root: int) -> MessagePlan:
    """Returns the plan that computes the state of one root and, at each hop, nothing that it does not need."""
    wanted, hops = torch.tensor([root]), []
    for hop in reversed(plan.hops):
        arcs = torch.isin(hop.target, wanted)
        needed = torch.cat([hop.own[wanted], hop.source[arcs]]).unique().flip(0)  # in another order than theirs
        before, after = (renumber(index, len(plan.nodes)) for index in (needed, wanted))
        hops.append(
            Hop(before[hop.own[wanted]], before[hop.source[arcs]], after[hop.target[arcs]], hop.edges[arcs],
                hop.norm[arcs], hop.own_norm[wanted])
        )  # fmt: skip
        wanted = needed
    one = torch.zeros(1, dtype=torch.int64)
    return MessagePlan(plan.nodes[wanted], tuple(reversed(hops)), one, one, torch.ones(1).double(), 1)


def renumber(index: Tensor, count: int) -> Tensor:
    table = torch.full((count,), -1)
    table[index] = torch.arange(len(index))
    return table


# --- the layers are the published ones --------------------------------------------------------------------------------


def reference_gcn(layer: Any, width: int) -> Callable[..., Tensor]:
    theirs = GCNConv(width, width).double()
    theirs.load_state_dict({"lin.weight": layer.linear.weight, "bias": layer.bias})
    return lambda states, batch: theirs(states, batch.arcs)


def reference_gat(layer: Any, width: int) -> Callable[..., Tensor]:
    theirs = type(layer.attention)(width, width // 4, heads=4).double()  # which adds self-loops itself
    theirs.load_state_dict(layer.attention.state_dict())
    return lambda states, batch: theirs(states, batch.arcs)


def reference_gin(layer: Any, width: int) -> Callable[..., Tensor]:
    def theirs(states: Tensor, batch: GraphBatch) -> Tensor:
        if batch.edges.shape[1] == 0:
            return layer.isomorphism(states, batch.arcs)
        edges = sum(encoder(batch.edges[:, column]) for column, encoder in enumerate(layer.encoders))
        return layer.isomorphism(states, batch.arcs, edges)

    return theirs


def reference_sage(layer: Any, width: int) -> Callable[..., Tensor]:
    return lambda states, batch: layer.mean(states, batch.arcs)


REFERENCES = {"gcn": reference_gcn, "gat": reference_gat, "gin": reference_gin, "sage": reference_sage}


@pytest.mark.parametrize("spec", [PLAIN, LABELLED], ids=["plain", "labelled"])
@pytest.mark.parametrize("kind", KINDS)
def test_matches_reference_of_pytorch_geometric(kind: str, spec: GraphSpec) -> None:
    batch, model = union(graph(9, spec), graph(6, spec, 1)), network(kind, spec, 3)
    states = sum(encoder(batch.nodes[:, column]) for column, encoder in enumerate(model.encoders))
    for number, layer in enumerate(model.convolutions):
        reference = REFERENCES[kind](layer, states.shape[1])
        states = reference(states.relu() if number else states, batch)
    pooled = torch.stack([states[:9].mean(0), states[9:].mean(0)])
    plan = exactly(plan_graphs(batch, 3))
    torch.testing.assert_close(model.states(plan), states)
    torch.testing.assert_close(model(plan), model.head(pooled))


def test_gcn_equals_gcnconv_in_single_precision() -> None:
    batch, model = graph(12, PLAIN), network("gcn", PLAIN, 1).float()
    theirs = GCNConv(16, 16)
    theirs.load_state_dict({"lin.weight": model.convolutions[0].linear.weight, "bias": model.convolutions[0].bias})
    expected = theirs(model.encoders[0](batch.nodes[:, 0]), batch.arcs)
    torch.testing.assert_close(model.states(plan_graphs(batch, 1)), expected, rtol=1e-6, atol=1e-6)


def test_gcn_matches_reference_of_dense_matrices() -> None:
    """D^-1/2 (A + I) D^-1/2 X W + b, with the degrees of A + I."""
    batch, model = graph(8, PLAIN), network("gcn", PLAIN, 2)
    adjacency = torch.eye(8).double()
    adjacency[batch.arcs[1], batch.arcs[0]] = 1
    scale = adjacency.sum(1).rsqrt().diag()
    first, second = model.convolutions
    hidden = scale @ adjacency @ scale @ model.encoders[0].weight[batch.nodes[:, 0]] @ first.linear.weight.T
    hidden = (hidden + first.bias).relu()
    expected = scale @ adjacency @ scale @ hidden @ second.linear.weight.T + second.bias
    torch.testing.assert_close(model.states(exactly(plan_graphs(batch, 2))), expected)


def test_only_gin_reads_edge_labels() -> None:
    batch = graph(9, LABELLED)
    other = replace(batch, edges=(batch.edges + 1) % torch.tensor(LABELLED.edge_columns))
    for kind in KINDS:
        model = network(kind, LABELLED)
        same = torch.allclose(model(exactly(plan_graphs(batch, 2))), model(exactly(plan_graphs(other, 2))))
        assert same == (kind != "gin")


# --- any plan gives the same states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_root_needs_its_neighbourhood_only(kind: str) -> None:
    plan, model = exactly(plan_graphs(graph(9, LABELLED), 3)), network(kind, LABELLED, 3)
    everyone = model.states(plan)
    for root in (0, 4, 8):
        part = neighbourhood(plan, root)
        torch.testing.assert_close(model.states(part), everyone[[root]])
    assert len(part.nodes) == 1, "the last node has no neighbours"


@pytest.mark.parametrize("kind", KINDS)
def test_an_arc_that_stands_twice_counts_twice(kind: str) -> None:
    """A star of two equal leaves, and of one leaf with a double arc."""
    index, model = torch.tensor, network(kind, LABELLED, 1)
    bonds, norm, own = index([[1, 0], [1, 0]]), torch.rand(1).double().expand(2), torch.rand(1).double()
    twins = Hop(index([0]), index([1, 2]), index([0, 0]), bonds, norm, own)
    double = replace(twins, source=index([1, 1]))
    single = replace(twins, source=index([1]), target=index([0]), edges=bonds[:1], norm=norm[:1])
    labels = index([[3, 1], [2, 0], [2, 0]])
    ends = (index([0]), index([0]), torch.ones(1).double(), 1)
    first, second, third = (model(MessagePlan(labels, (hop,), *ends)) for hop in (twins, double, single))
    torch.testing.assert_close(first, second)
    assert torch.allclose(first, third) == (kind == "sage"), "a mean alone does not see it"


@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_nodes_does_not_matter(kind: str, pool: Any) -> None:
    batch, model = graph(9, LABELLED), network(kind, LABELLED)
    model.pool = pool
    order = torch.randperm(9, generator=generator(0))
    arcs = order.argsort()[batch.arcs]
    place = (arcs[1] * 9 + arcs[0]).argsort()
    other = replace(batch, nodes=batch.nodes[order], arcs=arcs[:, place], edges=batch.edges[place])
    torch.testing.assert_close(model(exactly(plan_graphs(other, 2))), model(exactly(plan_graphs(batch, 2))))


@pytest.mark.parametrize("pool", ["sum", "mean"])
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_of_a_batch_do_not_see_one_another(kind: str, pool: Any) -> None:
    parts, model = [graph(size, LABELLED, size) for size in (5, 1, 8)], network(kind, LABELLED)
    model.pool = pool
    apart = torch.cat([model(exactly(plan_graphs(part, 2))) for part in parts])
    torch.testing.assert_close(model(exactly(plan_graphs(union(*parts), 2))), apart)


# --- read-outs, gradients, weights ------------------------------------------------------------------------------------


def test_pools_match_reference() -> None:
    plan, model = exactly(plan_graphs(graph(9, PLAIN), 2)), network("gin", PLAIN)
    plan = replace(
        plan, roots=torch.tensor([3, 3, 0, 5]), owners=torch.tensor([0, 0, 0, 2]), count=3,
        weights=torch.tensor([1.0, 2.0, 0.5, 4.0]).double(),
    )  # fmt: skip
    states = model.states(plan)
    total, nothing = 3 * states[3] + states[0] / 2, torch.zeros_like(states[0])
    model.pool = "sum"
    torch.testing.assert_close(model.embed(plan), torch.stack([total, nothing, 4 * states[5]]))
    model.pool = "mean"
    torch.testing.assert_close(model.embed(plan), torch.stack([total / 3.5, nothing, states[5]]))
    torch.testing.assert_close(model(plan), model.head(model.embed(plan)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_matches_finite_differences(kind: str) -> None:
    plan, model = exactly(plan_graphs(graph(6, LABELLED, density=0.6), 2)), network(kind, LABELLED, factor=0.03)
    names, values = zip(*model.named_parameters(), strict=True)

    def logits(*weights: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, weights, strict=True)), (plan,))

    assert torch.autograd.gradcheck(logits, values)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind: str) -> None:
    model = network(kind, LABELLED, 2)
    model(exactly(plan_graphs(graph(9, LABELLED), 2)))[0, 0].backward()
    assert all(one.grad is not None and bool(one.grad.any()) for one in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_networks_without_draws_in_between(kind: str) -> None:
    with seeded(3):
        first = build(f"{kind}3-x0.5", LABELLED)
    with seeded(3):
        second = build(f"{kind}3-x0.5", LABELLED)
    state = torch.random.get_rng_state()
    plan = plan_graphs(graph(9, LABELLED), 3)
    assert torch.equal(first(plan), second(plan))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first.head.in_features == 64
    assert not list(first.buffers()), "a statistic over nodes would differ between trees and graphs"


def test_rejects_a_plan_of_other_depth() -> None:
    with pytest.raises(ValueError, match="plan has 3 hops; expected 2, one for each layer"):
        network("gin", PLAIN)(plan_graphs(graph(4, PLAIN), 3))


def test_images_do_not_wait_for_pytorch_geometric() -> None:
    program = "import sys, eval.students, dd_bench.models; print('torch_geometric' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == "False\n"
