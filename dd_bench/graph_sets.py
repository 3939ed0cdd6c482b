"""The payloads of graph classification: ordinary graphs, and computation trees that share their subtrees.

Letters in shapes: G graphs, N nodes, U edges (each once), F node label columns, E edge label columns, R tree sets,
T trees in them, L hops, A arcs of the tree DAG. Labels are categories, counted from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.graphs import GraphBatch, Hop, MessagePlan

_MOST_MESSAGES = 1 << 26  # of all repeats together; every one of them is a row in memory when a network runs
_LARGEST_TREE = 1 << 40  # nodes; beyond it, sizes of explicit trees are no use to anybody


@dataclass(frozen=True)
class Graphs:
    """Ordinary undirected graphs, each edge once.

    Attributes:
        nodes: (N, F) int64, label columns of all nodes, graph by graph.
        links: (U, 2) int64, the two ends of each edge, counted within their graph; the smaller first.
        link_labels: (U, E) int64, label columns of the edges; E may be 0.
        node_counts: (G,) int64, at least 1 each.
        link_counts: (G,) int64.
    """

    nodes: Tensor
    links: Tensor
    link_labels: Tensor
    node_counts: Tensor
    link_counts: Tensor

    def __post_init__(self) -> None:
        _require_integers(self, rows={"nodes": 2, "links": 2, "link_labels": 2, "node_counts": 1, "link_counts": 1})
        count, nodes, links = self.node_counts.shape[0], self.nodes.shape[0], self.links.shape[0]
        sound = (
            count > 0
            and self.nodes.shape[1] > 0
            and self.links.shape[1] == 2
            and self.link_labels.shape[0] == links
            and self.link_counts.shape[0] == count
            and int(self.node_counts.min()) > 0
            and int(self.node_counts.sum()) == nodes
            and int(self.link_counts.sum()) == links
        )
        if not sound:
            raise InvalidSetError(
                f"{count} graphs with {nodes} nodes and {links} edges do not fit their counts; synthesise the set again"
            )
        limits = self.node_counts.repeat_interleave(self.link_counts)
        ordered = self.links[:, 0] < self.links[:, 1]
        if not bool((ordered & (self.links[:, 1] < limits)).all()):
            raise InvalidSetError("links leave their graph, or name an edge's larger end first; synthesise it again")
        owners = torch.arange(count).repeat_interleave(self.link_counts)
        if torch.unique(torch.column_stack([owners, self.links]), dim=0).shape[0] != links:
            raise InvalidSetError("links hold an edge twice; synthesise the set again")

    def __len__(self) -> int:
        return self.node_counts.shape[0]

    @classmethod
    def of(cls, batch: GraphBatch) -> "Graphs":
        """Returns the graphs of ``batch`` as a payload."""
        source, target = batch.arcs
        once = source < target
        owners = batch.owners[source[once]]
        links = batch.arcs[:, once].T - batch.starts[owners][:, None]
        counts = torch.bincount(owners, minlength=len(batch))
        return cls(batch.nodes, links, batch.edges[once], batch.sizes, counts)

    def decode(self) -> GraphBatch:
        """Returns what a student sees: the graphs, with both arcs of each edge."""
        starts = torch.cat([self.node_counts.new_zeros(1), self.node_counts.cumsum(0)])
        ends = (self.links + starts[:-1].repeat_interleave(self.link_counts)[:, None]).T
        arcs = torch.cat([ends, ends.flip(0)], dim=1)
        order = (arcs[1] * max(1, self.nodes.shape[0]) + arcs[0]).argsort()
        return GraphBatch(self.nodes, arcs[:, order], self.link_labels.repeat(2, 1)[order], starts)


@dataclass(frozen=True)
class Trees:
    """Sets of computation trees of L hops, as one DAG in which each distinct subtree stands once.

    A state of level k stands for a tree of depth k: its label is that of the level k - 1 state it continues
    (``trunks``), and its subtrees are level k - 1 states. States of level 0 are labels. Levels follow one another.

    Attributes:
        features: (S_0, F) int64, label columns of the level 0 states.
        degrees: (S_0,) int64, how many neighbours a node of this label has in its graph, or 0 where that is not known.
        levels: (L + 1,) int64, the number of states of each level.
        trunks: (S_1 + … + S_L,) int64, of each state above level 0: the state of the level below.
        fans: (S_1 + … + S_L,) int64, how many arcs lead into each such state.
        children: (A,) int64, the states of the level below that they come from, state by state.
        bonds: (A,) int64, rows of ``bond_labels``.
        repeats: (A,) int64, how many equal subtrees over equal edges an arc stands for; at least 1.
        bond_labels: (B, E) int64, the distinct label rows of edges; E may be 0.
        tree_counts: (R,) int64, the number of trees of each set; at least 1.
        roots: (T,) int64, the level L states that are those trees, set by set.
        copies: (T,) float16, how often each counts in its set's read-out, more than 0.
        weights: (R,) float16, of each set in the loss, more than 0.
    """

    features: Tensor
    degrees: Tensor
    levels: Tensor
    trunks: Tensor
    fans: Tensor
    children: Tensor
    bonds: Tensor
    repeats: Tensor
    bond_labels: Tensor
    tree_counts: Tensor
    roots: Tensor
    copies: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        vectors = ("degrees", "levels", "trunks", "fans", "children", "bonds", "repeats", "tree_counts", "roots")
        _require_integers(self, rows={"features": 2, "bond_labels": 2} | dict.fromkeys(vectors, 1))
        for name in ("copies", "weights"):
            values = getattr(self, name)
            if values.dtype != torch.float16 or not bool(((values > 0) & values.isfinite()).all()):
                raise InvalidSetError(f"{name} are no positive float16 numbers; synthesise the set again")
        _check_trees(self)

    def __len__(self) -> int:
        return self.tree_counts.shape[0]

    @property
    def hops(self) -> int:
        """L, the depth of the trees."""
        return self.levels.shape[0] - 1

    @cached_property
    def _bounds(self) -> tuple[tuple[int, int], ...]:
        """Where the states above level 0, and the arcs into them, of each level begin; one more entry for their end."""
        starts = [0, *self.levels[1:].cumsum(0).tolist()]
        arcs = [0, *self.fans.cumsum(0).tolist()]
        return tuple((start, arcs[start]) for start in starts)

    @cached_property
    def sizes(self) -> tuple[Tensor, ...]:
        """The number of nodes of the explicit tree of each state, level by level; float64, since they grow so."""
        found = [torch.ones(int(self.levels[0]), dtype=torch.float64)]
        for level in range(1, self.hops + 1):
            _, source, target, _, repeats = self._level(level)
            below = found[-1][source] * repeats
            found.append(1 + torch.zeros(int(self.levels[level]), dtype=torch.float64).index_add(0, target, below))
        return tuple(found)

    def formula_bytes(self) -> int:
        """Returns the size by the Mirage paper's count.

        That is two bytes for each label column of each node and edge of each explicit tree, and for both ends of each
        edge. Trees of several sets count each time; weights do not.

        On NCI1 and DD this gives the published 318 and 448 bytes.
        """
        nodes = self.sizes[-1][self.roots]
        columns, bonds = self.features.shape[1], self.bond_labels.shape[1]
        return int((2 * (columns * nodes + (2 + bonds) * (nodes - 1))).sum())

    def plan(self, layers: int) -> MessagePlan:
        """Returns the message plan of a network with ``layers`` layers over the trees, each distinct subtree once.

        With ``layers`` up to the number of hops, root states equal those of the nodes that the trees were taken from.
        With more, leaves have no children to hear from, as in the explicit trees: something is lost. Where degrees are
        not known, states before the first hop count as having one neighbour, which only GCN notices.
        """
        owners = torch.arange(len(self)).repeat_interleave(self.tree_counts)
        if layers > self.hops:
            states, hop, roots = self._merged()
            return MessagePlan(states, (hop,) * layers, roots, owners, self.copies.float(), len(self))
        roots = self.roots
        for level in range(self.hops, layers, -1):
            roots = self._level(level)[0][roots]
        hops = []
        received = self.degrees.clamp(min=1)
        for level in range(1, layers + 1):
            own, source, target, bonds, repeats = self._level(level)
            degrees = torch.zeros(len(own), dtype=torch.int64).index_add(0, target, repeats)
            hops.append(_hop(own, source, target, self.bond_labels[bonds], repeats, received, degrees))
            received = degrees
        return MessagePlan(self.features, tuple(hops), roots, owners, self.copies.float(), len(self))

    def explicit(self, root: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tree at the level L state ``root`` node by node, parents first.

        These are (n, F) labels, (n,) parents and (n,) rows of ``bond_labels`` to them; both are -1 for the root.
        """
        nodes, parents, bonds = [(self.hops, root)], [-1], [-1]
        at = 0
        while at < len(nodes):
            level, state = nodes[at]
            for child, bond in self._children(level, state):
                nodes.append((level - 1, child))
                parents.append(at)
                bonds.append(bond)
            at += 1
        labels = torch.stack([self.features[self._label_state(level, state)] for level, state in nodes])
        return labels, torch.tensor(parents), torch.tensor(bonds)

    def _level(self, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns trunks, and the arcs into the states of ``level``: sources, targets, rows of bonds, repeats."""
        (start, first), (end, last) = self._bounds[level - 1], self._bounds[level]
        target = torch.arange(end - start).repeat_interleave(self.fans[start:end])
        return (
            self.trunks[start:end], self.children[first:last], target, self.bonds[first:last], self.repeats[first:last],
        )  # fmt: skip

    def _merged(self) -> tuple[Tensor, Hop, Tensor]:
        """Returns the labels of all states of all levels, the one hop that every layer takes, and the roots."""
        offsets = [0, *self.levels.cumsum(0).tolist()]
        names, sources, targets, bonds, repeats = [torch.arange(int(self.levels[0]))], [], [], [], []
        for level in range(1, self.hops + 1):
            trunks, source, target, rows, counts = self._level(level)
            names.append(names[-1][trunks])
            sources.append(source + offsets[level - 1])
            targets.append(target + offsets[level])
            bonds.append(rows)
            repeats.append(counts)
        states, target, counts = torch.cat(names), torch.cat(targets), torch.cat(repeats)
        degrees = torch.zeros(len(states), dtype=torch.int64).index_add(0, target, counts)
        degrees[: offsets[1]] = self.degrees.clamp(min=1)
        everyone = torch.arange(len(states))
        rows = self.bond_labels[torch.cat(bonds)]
        hop = _hop(everyone, torch.cat(sources), target, rows, counts, degrees, degrees)
        return self.features[states], hop, self.roots + offsets[self.hops]

    def _children(self, level: int, state: int) -> Iterator[tuple[int, int]]:
        if level:
            at = self._bounds[level - 1][0] + state
            first = int(self.fans[:at].sum())
            for arc in range(first, first + int(self.fans[at])):
                yield from [(int(self.children[arc]), int(self.bonds[arc]))] * int(self.repeats[arc])

    def _label_state(self, level: int, state: int) -> int:
        while level:
            state = int(self.trunks[self._bounds[level - 1][0] + state])
            level -= 1
        return state


def _hop(
    own: Tensor, source: Tensor, target: Tensor, edges: Tensor, repeats: Tensor, sent: Tensor, received: Tensor
) -> Hop:
    """Returns a hop in which an arc stands as often as it repeats; ``sent`` and ``received`` are degrees."""
    arcs = torch.arange(len(source)).repeat_interleave(repeats)
    source, target = source[arcs], target[arcs]
    before, after = sent.float() + 1, received.float() + 1
    return Hop(own, source, target, edges[arcs], (before[source] * after[target]).rsqrt(), 1 / after)


def _require_integers(payload: object, *, rows: dict[str, int]) -> None:
    for name, axes in rows.items():
        tensor: Tensor = getattr(payload, name)
        if tensor.dtype != torch.int64 or tensor.ndim != axes or (tensor.numel() and int(tensor.min()) < 0):
            found = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            raise InvalidSetError(f"{name} is {found}; expected int64 with {axes} axes and nothing below 0")


def _check_trees(trees: Trees) -> None:
    """Raises InvalidSetError unless all counts fit and every index points at something."""
    upper, states = int(trees.levels[1:].sum()), trees.features.shape[0]
    counts = (
        trees.levels.shape[0] >= 1
        and states > 0
        and trees.features.shape[1] > 0
        and int(trees.levels.min()) > 0
        and int(trees.levels[0]) == states == trees.degrees.shape[0]
        and trees.trunks.shape[0] == trees.fans.shape[0] == upper
        and trees.children.shape[0] == trees.bonds.shape[0] == trees.repeats.shape[0] == int(trees.fans.sum())
        and trees.tree_counts.shape[0] == trees.weights.shape[0] > 0
        and trees.roots.shape[0] == trees.copies.shape[0] == int(trees.tree_counts.sum())
        and int(trees.tree_counts.min()) > 0
        and (trees.repeats.shape[0] == 0 or int(trees.repeats.min()) > 0)
        and float(trees.repeats.double().sum()) <= _MOST_MESSAGES
    )
    if not counts:
        raise InvalidSetError("the counts of levels, arcs, trees or tree sets do not fit; synthesise the set again")
    below = trees.levels[:-1].repeat_interleave(trees.levels[1:])  # how many states a trunk or child may name
    names = (
        (trees.trunks, below),
        (trees.children, below.repeat_interleave(trees.fans)),
        (trees.bonds, torch.tensor(trees.bond_labels.shape[0])),
        (trees.roots, trees.levels[-1]),
    )
    if not all(bool((index < limit).all()) for index, limit in names):
        raise InvalidSetError("a trunk, child, bond or root names a state that is not there; synthesise the set again")
    if trees.hops and float(trees.sizes[-1].max()) > _LARGEST_TREE:
        raise InvalidSetError(f"a tree has more than {_LARGEST_TREE} nodes; expected what a message can pass")
