"""Computation trees as they are defined: every node of every tree, and canonical strings to compare them by."""

from dataclasses import dataclass
from itertools import pairwise

import torch

from dd_bench.graphs import GraphBatch
from tests.data.graph_files import Toy


def batch_of(graphs: list[Toy]) -> GraphBatch:
    """Returns the disjoint union, arc by arc."""
    columns = next((len(labels) for graph in graphs for labels in graph.edges.values()), 0)
    starts, nodes, arcs, edges = [0], [], [], []
    for graph in graphs:
        for target, source, labels in graph.arcs():
            arcs.append((source + starts[-1], target + starts[-1]))
            edges.append(labels)
        nodes += graph.nodes
        starts.append(len(nodes))
    return GraphBatch(
        torch.tensor(nodes), torch.tensor(arcs).long().reshape(-1, 2).T,
        torch.tensor(edges).long().reshape(len(edges), columns), torch.tensor(starts),
    )  # fmt: skip


def toys_of(batch: GraphBatch, labels: torch.Tensor) -> list[Toy]:
    """Returns the graphs of a batch with their classes; the inverse of ``batch_of``."""
    made = []
    for number, (first, end) in enumerate(pairwise(batch.starts.tolist())):
        inside = ((batch.arcs[1] >= first) & (batch.arcs[1] < end)).nonzero()[:, 0].tolist()
        edges = {tuple((batch.arcs[:, arc] - first).tolist()): tuple(batch.edges[arc].tolist()) for arc in inside}
        nodes = [tuple(row) for row in batch.nodes[first:end].tolist()]
        made.append(Toy(nodes, {(u, v): row for (u, v), row in edges.items() if u < v}, int(labels[number])))
    return made


@dataclass
class Tree:
    """A rooted tree node by node, parents first: graph node, label, parent (-1: root), label of the edge to it."""

    nodes: list[int]
    labels: list[tuple[int, ...]]
    parents: list[int]
    bonds: list[tuple[int, ...]]

    def canonical(self) -> str:
        """Aho, Hopcroft and Ullman: equal strings iff isomorphic, labels of nodes and edges included."""
        below = [[] for _ in self.nodes]
        strings = [""] * len(self.nodes)
        for at in reversed(range(len(self.nodes))):
            strings[at] = f"({self.labels[at]}{''.join(sorted(below[at]))})"
            if self.parents[at] >= 0:
                below[self.parents[at]].append(f"-{self.bonds[at]}-{strings[at]}")
        return strings[0]


def unroll(batch: GraphBatch, root: int, depth: int, *, degrees: bool = False) -> Tree:
    """Returns the computation tree at a node: children are all neighbours, the way back among them."""
    around: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
    for (source, target), labels in zip(batch.arcs.T.tolist(), batch.edges.tolist(), strict=True):
        around.setdefault(target, []).append((source, tuple(labels)))

    def label(node: int) -> tuple[int, ...]:
        own = tuple(batch.nodes[node].tolist())
        return (*own, len(around.get(node, []))) if degrees else own

    tree = Tree([root], [label(root)], [-1], [()])
    level = [0]
    for _ in range(depth):
        deeper = []
        for at in level:
            for neighbour, bond in around.get(tree.nodes[at], []):
                deeper.append(len(tree.nodes))
                tree.nodes.append(neighbour)
                tree.labels.append(label(neighbour))
                tree.parents.append(at)
                tree.bonds.append(bond)
        level = deeper
    return tree


def canonical(batch: GraphBatch, depth: int, *, degrees: bool = False) -> list[str]:
    """Returns the string of the tree at every node."""
    return [unroll(batch, node, depth, degrees=degrees).canonical() for node in range(len(batch.nodes))]


def shuffled(graph: Toy, order: list[int]) -> Toy:
    """Returns the graph with node ``order[n]`` in place n, and edges the other way round in another order."""
    place = {old: new for new, old in enumerate(order)}
    edges = {(place[v], place[u]): labels for (u, v), labels in reversed(graph.edges.items())}
    return Toy([graph.nodes[old] for old in order], edges, graph.label)
