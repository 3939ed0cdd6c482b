"""Graphs and trees as payloads: nothing is lost on the way, and trees teach what their graphs would have taught."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench import codec
from dd_bench import store as store_module
from dd_bench.budget import ledger
from dd_bench.codec import payload_bytes
from dd_bench.data.graph_specs import GraphSpec
from dd_bench.errors import InvalidSetError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.graphs import GraphBatch, Hop, MessagePlan, plan_graphs
from dd_bench.models import build
from dd_bench.models.gnn import GraphNetwork
from dd_bench.seeding import seeded
from dd_bench.sets import Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.targets import HardLabels
from synth.parts.tree_sets import Forest, TreeSet
from tests.conftest import tensors_file
from tests.data.graph_files import Toy, toys
from tests.references.trees import Tree, batch_of, unroll

ORIGIN = Provenance(
    method="mirage", preset="p", config={}, dataset="d", fingerprint="f", ipc=1, seed=0, recipe="0123456789ab"
)
SPEC = GraphSpec("toys", 3, (3, 2), (2, 3), ("a", "b", "c"))
LAYERED = ("gin", "gat", "sage", "gcn")


def some(count: int = 8, seed: int = 3, edges: tuple[int, ...] = (2, 3)) -> GraphBatch:
    """Returns random graphs, the last one a single node; some nodes of others are alone too."""
    return batch_of([*toys(count - 1, (3, 2), edges, (0, 1), seed), Toy([(2, 1)], {}, 0)])


def trees_of(batch: GraphBatch, hops: int, *, degrees: bool) -> Trees:
    """Returns one set for each graph: all its trees, each as often as it stands in the graph."""
    forest = Forest.grow(batch, hops, degrees=degrees)
    sets = []
    for graph in range(len(batch)):
        own = forest.graphs == graph
        copies = tuple(map(float, forest.counts[own]))
        sets.append(TreeSet(0, tuple(forest.trees[own].tolist()), copies, 1.0))
    return forest.payload(sets)


def network(kind: str, layers: int, spec: GraphSpec = SPEC) -> GraphNetwork:
    with seeded(5):
        model = build(f"{kind}{layers}-x0.125", spec).double()
        for parameter in model.parameters():  # biases and epsilons begin as zeros, which would hide them
            nn.init.normal_(parameter, std=0.5)
    return model


def exactly(plan: MessagePlan) -> MessagePlan:
    """Returns the plan in float64, its coefficients without their rounding to float32."""
    hops = tuple(
        replace(hop, norm=hop.norm.double().pow(-2).round().rsqrt(), own_norm=1 / (1 / hop.own_norm.double()).round())
        for hop in plan.hops
    )
    return replace(plan, hops=hops, weights=plan.weights.double())


def forest_plan(trees: list[tuple[Tensor, Tensor, Tensor, Tensor]], trees_in: Trees, layers: int) -> MessagePlan:
    """Returns ordinary message passing over explicit trees as one graph whose arcs lead from child to parent only.

    A tree is labels, parents, rows of the bonds to them, and degrees. Every node stays as it is from layer to layer.
    """
    labels, source, target, bonds, degrees, roots = [], [], [], [], [], []
    total = 0
    for nodes, parents, rows, degree in trees:
        children = torch.arange(1, len(nodes))
        labels.append(nodes)
        source.append(children + total)
        target.append(parents[1:] + total)
        bonds.append(rows[1:])
        degrees.append(degree)
        roots.append(total)
        total += len(nodes)
    one, other, known = torch.cat(source), torch.cat(target), torch.cat(degrees).double() + 1
    norm = (known[one] * known[other]).rsqrt()
    hop = Hop(torch.arange(total), one, other, trees_in.bond_labels[torch.cat(bonds)], norm, 1 / known)
    owners = torch.arange(len(trees_in)).repeat_interleave(trees_in.tree_counts)
    return MessagePlan(
        torch.cat(labels), (hop,) * layers, torch.tensor(roots), owners, trees_in.copies.double(), len(trees_in)
    )


def canonical(trees: Trees, root: int) -> str:
    labels, parents, bonds = trees.explicit(root)
    rows = [() if row < 0 else tuple(trees.bond_labels[row].tolist()) for row in bonds.tolist()]
    return Tree(list(range(len(labels))), [tuple(row) for row in labels.tolist()], parents.tolist(), rows).canonical()


def equal(one: Any, other: Any) -> bool:
    return all(getattr(one, part.name).equal(getattr(other, part.name)) for part in fields(one))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(store_module, "render_card", lambda *_: b"\x89PNG, in name only")
    return Store(tmp_path / "sets")


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edges", [(), (2,), (2, 3)], ids=str)
def test_graphs_survive(edges: tuple[int, ...]) -> None:
    batch = some(edges=edges)
    graphs = Graphs.of(batch)
    assert len(graphs) == len(batch) == 8
    assert bool((graphs.links[:, 0] < graphs.links[:, 1]).all())
    assert int(graphs.link_counts.sum()) * 2 == batch.arcs.shape[1]
    assert equal(graphs.decode(), batch)
    assert equal(Graphs.of(graphs.decode()), graphs)


def test_graphs_without_edges_survive() -> None:
    batch = batch_of([Toy([(0,), (1,)], {}, 0), Toy([(2,)], {}, 0)])
    assert equal(Graphs.of(batch).decode(), batch)


def test_picked_graphs_survive() -> None:
    batch = some().pick(torch.tensor([7, 2, 2, 0]))
    assert equal(Graphs.of(batch).decode(), batch)


def rows(*values: Any) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"nodes": torch.zeros(5, 1)}, r"nodes is float32 of shape \(5, 1\); expected int64 with 2 axes and nothing"),
        ({"nodes": torch.zeros(5).long()}, r"nodes is int64 of shape \(5,\)"),
        ({"nodes": torch.full((5, 1), -1)}, "nodes is int64"),
        ({"nodes": torch.zeros(5, 0).long()}, "2 graphs with 5 nodes and 3 edges do not fit their counts; synth"),
        ({"nodes": torch.zeros(6, 1).long()}, "2 graphs with 6 nodes"),
        ({"links": rows([0, 1], [1, 2]), "link_labels": torch.zeros(2, 1).long()}, "5 nodes and 2 edges do not fit"),
        ({"links": rows([0, 1, 2], [1, 2, 2], [0, 1, 1])}, "do not fit their counts"),
        ({"links": torch.zeros(3, 2).int()}, "links is int32"),
        ({"link_labels": torch.zeros(2, 1).long()}, "do not fit their counts"),
        ({"node_counts": rows(5, 0)}, "do not fit their counts"),
        ({"node_counts": rows(3, 2, 0)}, "do not fit their counts"),
        ({"node_counts": rows(3, 3)}, "do not fit their counts"),
        ({"node_counts": rows(6, -1)}, "node_counts is int64"),
        ({"link_counts": rows(2, 2)}, "do not fit their counts"),
        ({"link_counts": rows(2, 1, 0)}, "do not fit their counts"),
        ({"links": rows([0, 1], [1, 3], [0, 1])}, "links leave their graph, or name an edge's larger end first"),
        ({"links": rows([0, 1], [1, 2], [0, 2])}, "links leave their graph"),
        ({"links": rows([1, 0], [1, 2], [0, 1])}, "links leave their graph"),
        ({"links": rows([0, 1], [2, 2], [0, 1])}, "links leave their graph"),
        ({"links": rows([0, 1], [0, 1], [0, 1])}, "links hold an edge twice"),
    ],
)
def test_rejects_graphs(changes: dict[str, Tensor], found: str) -> None:
    sound = Graphs(torch.zeros(5, 1).long(), rows([0, 1], [1, 2], [0, 1]), rows([0], [1], [0]), rows(3, 2), rows(2, 1))
    with pytest.raises(InvalidSetError, match=found) as refusal:
        replace(sound, **changes)
    assert len(str(refusal.value).splitlines()) == 1


def test_rejects_no_graphs() -> None:
    none = torch.zeros(0).long()
    with pytest.raises(InvalidSetError, match="0 graphs"):
        Graphs(none.reshape(0, 1), none.reshape(0, 2), none.reshape(0, 0), none, none)


# --- trees -----------------------------------------------------------------------------------------------------------


def sound_trees() -> Trees:
    """Two labels; two trees of depth 1: a chain 0-1, and 1 with three 0 over bond 0 and one 1 over bond 1."""
    return Trees(
        features=rows([0, 1], [3, 0]), degrees=rows(1, 4), levels=rows(2, 2), trunks=rows(0, 1), fans=rows(1, 2),
        children=rows(1, 0, 1), bonds=rows(0, 0, 1), repeats=rows(1, 3, 1), bond_labels=rows([2], [0]),
        tree_counts=rows(1, 2, 1), roots=rows(0, 0, 1, 1), copies=rows(1.0, 2.0, 0.5, 1.0).half(),
        weights=rows(1.0, 4.0, 0.25).half(),
    )  # fmt: skip


def test_facts_of_trees() -> None:
    trees = sound_trees()
    assert (len(trees), trees.hops) == (3, 1)
    assert [level.tolist() for level in trees.sizes] == [[1, 1], [2, 5]]
    assert trees.formula_bytes() == sum(2 * (2 * nodes + 3 * (nodes - 1)) for nodes in (2, 2, 5, 5))
    labels, parents, bonds = trees.explicit(1)
    assert labels.tolist() == [[3, 0], [0, 1], [0, 1], [0, 1], [3, 0]]
    assert (parents.tolist(), bonds.tolist()) == ([-1, 0, 0, 0, 0], [-1, 0, 0, 0, 1])


UNFIT = "the counts of levels, arcs, trees or tree sets do not fit; synthesise the set again"
ASTRAY = "a trunk, child, bond or root names a state that is not there; synthesise the set again"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"features": torch.zeros(2, 2)}, r"features is float32 of shape \(2, 2\); expected int64 with 2 axes"),
        ({"features": rows([0, 1], [-3, 0])}, "features is int64"),
        ({"degrees": rows([1, 4])}, r"degrees is int64 of shape \(1, 2\); expected int64 with 1 axes"),
        ({"levels": rows(2, 2).int()}, "levels is int32"),
        ({"roots": rows(0, 0, -1, 1)}, "roots is int64"),
        ({"copies": torch.ones(4)}, "copies are no positive float16 numbers; synthesise the set again"),
        ({"copies": rows(1.0, 2.0, 0.0, 1.0).half()}, "copies are no positive"),
        ({"copies": rows(1.0, 2.0, float("nan"), 1.0).half()}, "copies are no positive"),
        ({"weights": rows(1.0, -1.0, 1.0).half()}, "weights are no positive"),
        ({"weights": rows(1.0, 1e9, 1.0).half()}, "weights are no positive"),
        ({"weights": rows(1, 1, 1)}, "weights are no positive"),
        ({"levels": torch.zeros(0).long()}, UNFIT),
        ({"levels": rows(3, 2)}, UNFIT),
        ({"levels": rows(2, 2, 0)}, UNFIT),
        ({"levels": rows(2, 3)}, UNFIT),
        ({"features": torch.zeros(2, 0).long()}, UNFIT),
        ({"features": torch.zeros(0, 2).long(), "degrees": torch.zeros(0).long()}, UNFIT),
        ({"degrees": rows(1, 4, 1)}, UNFIT),
        ({"trunks": rows(0)}, UNFIT),
        ({"fans": rows(1)}, UNFIT),
        ({"fans": rows(1, 1)}, UNFIT),
        ({"children": rows(1, 0)}, UNFIT),
        ({"bonds": rows(1, 0)}, UNFIT),
        ({"repeats": rows(1, 3)}, UNFIT),
        ({"repeats": rows(1, 0, 1)}, UNFIT),
        ({"tree_counts": rows(1, 3)}, UNFIT),
        ({"tree_counts": rows(1, 2, 2)}, UNFIT),
        ({"tree_counts": rows(2, 0, 2)}, UNFIT),
        ({"tree_counts": torch.zeros(0).long(), "weights": torch.zeros(0).half()}, UNFIT),
        ({"weights": torch.ones(2).half()}, UNFIT),
        ({"roots": rows(0, 0, 1)}, UNFIT),
        ({"copies": torch.ones(3).half()}, UNFIT),
        ({"trunks": rows(0, 2)}, ASTRAY),
        ({"children": rows(1, 2, 1)}, ASTRAY),
        ({"bonds": rows(0, 2, 1)}, ASTRAY),
        ({"bond_labels": torch.zeros(0, 1).long()}, ASTRAY),
        ({"roots": rows(0, 0, 2, 1)}, ASTRAY),
        ({"repeats": rows(1, 2**40, 1)}, UNFIT),  # its messages would not fit into any memory
    ],
)
def test_rejects_trees(changes: dict[str, Tensor], found: str) -> None:
    with pytest.raises(InvalidSetError, match=found) as refusal:
        replace(sound_trees(), **changes)
    assert len(str(refusal.value).splitlines()) == 1


def test_rejects_trees_beyond_all_numbers() -> None:
    """Each level doubles the tree; nothing in the file is large."""
    hops = 41
    chain = {"trunks": torch.zeros(hops), "fans": torch.ones(hops), "children": torch.zeros(hops),
             "bonds": torch.zeros(hops), "repeats": torch.full((hops,), 2), "levels": torch.ones(hops + 1)}  # fmt: skip
    ends = {"features": torch.zeros(1, 1), "degrees": torch.ones(1), "bond_labels": torch.zeros(1, 1),
            "tree_counts": torch.ones(1), "roots": torch.zeros(1)}  # fmt: skip
    integers = {name: values.long() for name, values in (chain | ends).items()}
    with pytest.raises(
        InvalidSetError, match=f"a tree has more than {1 << 40} nodes; expected what a message can pass"
    ):
        Trees(**integers, copies=torch.ones(1).half(), weights=torch.ones(1).half())


@pytest.mark.parametrize("degrees", [False, True])
@pytest.mark.parametrize("edges", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_explicit_trees_match_reference(hops: int, edges: tuple[int, ...], degrees: bool) -> None:
    """Every tree of every node, its size, and the paper's count of bytes."""
    batch = some(edges=edges)
    forest = Forest.grow(batch, hops, degrees=degrees)
    ids = forest.colours.levels[-1]
    everything = tuple(range(len(forest.colours.firsts[-1])))
    trees = forest.payload([TreeSet(0, everything, (1.0,) * len(everything), 1.0)])
    nodes = 0
    for tree, root, node in zip(everything, trees.roots.tolist(), forest.colours.firsts[-1].tolist(), strict=True):
        expected = unroll(batch, node, hops)
        assert ids[node] == tree
        assert canonical(trees, root) == expected.canonical()
        assert float(trees.sizes[-1][root]) == len(expected.nodes)
        nodes += len(expected.nodes)
    assert trees.formula_bytes() == 2 * (2 * nodes + (2 + len(edges)) * (nodes - len(everything)))
    known = batch.degrees[torch.from_numpy(forest.colours.firsts[0])] if degrees else torch.zeros(1).long()
    assert set(trees.degrees.tolist()) <= set(known.tolist())


def test_each_distinct_subtree_stands_once() -> None:
    trees = trees_of(some(), 3, degrees=False)
    states = [{(level, state) for state in range(count)} for level, count in enumerate(trees.levels.tolist())]
    for level, found in enumerate(states):
        if level == trees.hops:
            names = {canonical(trees, state) for _, state in found}
            assert len(names) == len(found)
    _, bounds = zip(*trees._bounds, strict=True)
    arcs = list(zip(*(getattr(trees, name).tolist() for name in ("children", "bonds")), strict=True))
    owners = torch.arange(len(trees.fans)).repeat_interleave(trees.fans).tolist()
    assert len(set(zip(owners, arcs, strict=True))) == len(arcs) == bounds[-1], "equal arcs are one that repeats"
    assert len({tuple(row) for row in trees.bond_labels.tolist()}) == len(trees.bond_labels)
    used = [set(trees.roots.tolist())]
    for level in range(trees.hops, 0, -1):
        trunks, children = trees._level(level)[:2]
        used.append({*trunks.tolist(), *children.tolist()})
    assert [len(one) for one in reversed(used)] == trees.levels.tolist(), "nothing stands there for nothing"


def test_trees_of_nodes_alone() -> None:
    """Sets without any arc, over edges with labels."""
    batch = batch_of([Toy([(1, 0), (0, 0)], {(0, 1): (1,)}, 0), Toy([(2, 1)], {}, 0)])
    forest = Forest.grow(batch, 2, degrees=True)
    lonely = tuple(forest.lonely().tolist())
    assert len(lonely) == 1
    trees = forest.payload([TreeSet(0, lonely, (1.0,), 1.0)])
    assert trees.features.tolist() == [[2, 1]]
    assert (trees.degrees.tolist(), trees.children.tolist(), trees.bond_labels.shape) == ([0], [], (0, 1))
    assert trees.formula_bytes() == 4
    spec = replace(SPEC, edge_columns=(2,))
    for kind in LAYERED:
        for layers in (1, 2, 3):
            model = network(kind, layers, spec)
            expected = model(exactly(plan_graphs(batch.pick(torch.tensor([1])), layers)))
            torch.testing.assert_close(model(exactly(trees.plan(layers))), expected)


# --- on disk ---------------------------------------------------------------------------------------------------------


def as_set(payload: Graphs | Trees) -> SyntheticSet:
    return SyntheticSet(payload, HardLabels(torch.arange(len(payload)) % 2), ORIGIN, "graphs")


PAYLOADS: dict[str, Callable[[], Graphs | Trees]] = {
    "graphs": lambda: Graphs.of(some()),
    "plain graphs": lambda: Graphs.of(some(edges=())),
    "no links": lambda: Graphs.of(batch_of([Toy([(0,), (1,)], {}, 0)])),
    "trees": lambda: trees_of(some(), 2, degrees=True),
    "plain trees": lambda: trees_of(some(edges=()), 3, degrees=False),
    "by hand": sound_trees,
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_survives_the_disk(store: Store, tmp_path: Path, name: str) -> None:
    payload = PAYLOADS[name]()
    stored = store.write(as_set(payload))
    loaded = stored.load()
    assert type(loaded.payload) is type(payload)
    assert equal(loaded.payload, payload)
    again = Store(tmp_path / "again").write(as_set(loaded.payload))
    file = "tensors.safetensors"
    assert (again.path / file).read_bytes() == (stored.path / file).read_bytes()
    assert stored.manifest.images == len(payload)
    assert stored.manifest.payload.kind == ("graphs" if isinstance(payload, Graphs) else "trees")


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_byte_has_an_owner(name: str) -> None:
    payload = PAYLOADS[name]()
    content = tensors_file(as_set(payload))
    parts = ledger(as_set(payload), len(content))
    assert sum(parts.values()) == len(content)
    assert set(parts) == {"classes", "container"} | (
        {"graphs"} if isinstance(payload, Graphs) else {"trees", "tree sets", "weights"}
    )
    assert payload_bytes(payload) == len(content) - parts["container"] - parts["classes"]
    one_by_one = {name: tensor for name, tensor in codec.stored_tensors(as_set(payload)).items() if "payload" in name}
    assert payload_bytes(payload) == sum(tensor.nbytes for tensor in one_by_one.values())
    for tensor in one_by_one.values():
        if not tensor.is_floating_point():
            most = int(tensor.max()) if tensor.numel() else 0
            assert tensor.dtype == (torch.uint8 if most < 256 else torch.int16)


def test_bytes_by_hand() -> None:
    trees = sound_trees()
    parts = ledger(as_set(trees), 4000)
    # features 4, degrees 2, levels 2, trunks 2, fans 2, children, bonds and repeats 3 each, bond labels 2
    assert parts["trees"] == 4 + 2 + 2 + 2 + 2 + 3 * 3 + 2
    assert parts["tree sets"] == 3 + 4 + 4 * 2
    assert parts["weights"] == 3 * 2
    assert payload_bytes(trees) == 23 + 15 + 6
    assert payload_bytes(replace(trees, features=rows([0, 256], [3, 0]))) == 44 + 4
    assert payload_bytes(replace(trees, features=rows([0, 255], [3, 0]))) == 44
    assert payload_bytes(replace(trees, features=rows([0, 2**15], [3, 0]))) == 44 + 12
    graphs = Graphs(torch.zeros(5, 1).long(), rows([0, 1], [1, 2], [0, 1]), rows([0], [1], [0]), rows(3, 2), rows(2, 1))
    assert payload_bytes(graphs) == 5 + 6 + 3 + 2 + 2


# --- training on trees is training on graphs -------------------------------------------------------------------------


def gap(model: GraphNetwork, trees: Trees, batch: GraphBatch, hops: int, layers: int, *, degrees: bool) -> float:
    """Returns the largest difference between trees and graphs: of root states, and of logits by either pooling."""
    forest = Forest.grow(batch, hops, degrees=degrees)
    ours, theirs = exactly(trees.plan(layers)), exactly(plan_graphs(batch, layers))
    first = torch.from_numpy(forest.colours.firsts[-1])[torch.from_numpy(forest.trees)]
    worst = [(model.states(ours)[ours.roots] - model.states(theirs)[first]).abs().max()]
    for pool in ("sum", "mean"):
        model.pool = pool
        worst.append((model(ours) - model(theirs)).abs().max())
    return float(torch.stack(worst).detach().max())


@pytest.mark.parametrize("degrees", [False, True])
@pytest.mark.parametrize(("hops", "layers"), [(1, 1), (2, 2), (3, 3), (2, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["gin", "gat", "sage"])
def test_trees_equal_their_graphs(kind: str, hops: int, layers: int, degrees: bool) -> None:
    """The lemma, in float64; layers may be fewer than hops."""
    batch = some()
    model = network(kind, layers)
    assert gap(model, trees_of(batch, hops, degrees=degrees), batch, hops, layers, degrees=degrees) < 1e-10


@pytest.mark.parametrize(("hops", "layers"), [(1, 1), (2, 2), (3, 3), (3, 1), (3, 2)])
def test_gcn_needs_degrees(hops: int, layers: int) -> None:
    batch = some()
    with_degrees, without = (
        gap(network("gcn", layers), trees_of(batch, hops, degrees=degrees), batch, hops, layers, degrees=degrees)
        for degrees in (True, False)
    )
    assert with_degrees < 1e-10
    assert without > 1e-3


@pytest.mark.parametrize("kind", LAYERED)
def test_edges_without_labels(kind: str) -> None:
    batch = some(edges=())
    model = network(kind, 2, replace(SPEC, edge_columns=()))
    assert gap(model, trees_of(batch, 2, degrees=True), batch, 2, 2, degrees=True) < 1e-10


@pytest.mark.parametrize("kind", LAYERED)
def test_gradients_are_those_of_graphs(kind: str) -> None:
    batch = some()
    model = network(kind, 2)
    found = []
    for plan in (trees_of(batch, 2, degrees=True).plan(2), plan_graphs(batch, 2)):
        model.zero_grad()
        nn.functional.cross_entropy(model(exactly(plan)), torch.arange(len(batch)) % 3).backward()
        found.append([parameter.grad for parameter in model.parameters()])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (kind, layers)
        for kind in LAYERED
        for layers in (1, 2, 3, 5)
        if (kind, layers) != ("gcn", 2)  # without degrees a root does not know, at first, those of its neighbours
    ],
)
def test_shared_subtrees_equal_explicit_ones(kind: str, layers: int) -> None:
    """As deep as layers look, and deeper: then leaves have nothing to hear, shared or not."""
    batch, hops = some(6), 2
    trees = trees_of(batch, hops, degrees=False)
    forest = []
    for root in trees.roots.tolist():
        labels, parents, bonds = trees.explicit(root)
        heard = torch.bincount(parents[1:], minlength=len(labels))
        # A leaf's neighbours are not known: its parent is one. Truncated to fewer layers, leaves are nearer.
        depth = torch.zeros(len(labels)).long()
        for node in range(1, len(labels)):
            depth[node] = depth[parents[node]] + 1
        heard[depth >= min(hops, layers)] = 1 if len(labels) > 1 else 0
        forest.append((labels, parents, bonds, heard))
    model = network(kind, layers)
    ours, theirs = model(exactly(trees.plan(layers))), model(forest_plan(forest, trees, layers))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    if layers > hops and kind != "gat":
        graphs = model(exactly(plan_graphs(batch, layers)))
        assert (graphs - ours).abs().max() > 1e-3, "hops beyond the depth of trees are lost"


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_shared_subtrees_equal_explicit_ones_with_degrees(layers: int) -> None:
    """GCN again, with the degrees of the graph at every node of the explicit trees, leaves too."""
    batch, hops = some(6), 2
    trees = trees_of(batch, hops, degrees=True)
    forest = Forest.grow(batch, hops, degrees=True)
    known = {tuple(row): number for number, row in enumerate(trees.bond_labels.tolist())}
    explicit = []
    for tree in forest.trees.tolist():
        found = unroll(batch, int(forest.colours.firsts[-1][tree]), hops)
        bonds = [-1, *(known[bond] for bond in found.bonds[1:])]
        labels, parents = torch.tensor(found.labels), torch.tensor(found.parents)
        explicit.append((labels, parents, torch.tensor(bonds), batch.degrees[found.nodes]))
    model = network("gcn", layers)
    ours, theirs = model(exactly(trees.plan(layers))), model(forest_plan(explicit, trees, layers))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_plans_of_trees_hold_together() -> None:
    trees = trees_of(some(), 2, degrees=True)
    assert len(trees.plan(1).hops) == 1
    assert len(trees.plan(5).hops) == 5
    for layers in (1, 2, 5):
        plan = trees.plan(layers)
        assert plan.count == len(trees)
        assert plan.owners.bincount().equal(trees.tree_counts)
        assert plan.weights.equal(trees.copies.float())
        before = len(plan.nodes)
        for hop in plan.hops:
            assert int(hop.own.max()) < before
            assert len(hop.source) == len(hop.target) == len(hop.edges) == len(hop.norm)
            before = len(hop.own)
        assert int(plan.roots.max()) < before
