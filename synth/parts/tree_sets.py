"""Sets of computation trees: which graphs hold which trees, and chosen sets as a payload that shares their subtrees."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from dd_bench.codec import payload_bytes
from dd_bench.colours import Colours, Ints, distinct_trees, refine
from dd_bench.graph_sets import Trees
from dd_bench.graphs import GraphBatch


@dataclass(frozen=True)
class TreeSet:
    """Trees that are to be seen together, as one training example.

    Attributes:
        label: its class.
        trees: ids of deepest trees in a forest, ascending.
        copies: how often each counts in the read-out, one for each tree.
        weight: of the set in the loss.
    """

    label: int
    trees: tuple[int, ...]
    copies: tuple[float, ...]
    weight: float


@dataclass(frozen=True, eq=False)
class Forest:
    """The computation trees of many graphs, by id.

    Attributes:
        batch: the graphs.
        colours: ids of the trees at every node.
        graphs: (P,) for each distinct pair of a graph and a deepest tree in it, sorted: the graph.
        trees: (P,) the tree.
        counts: (P,) how many nodes of the graph have it.
        degrees: whether ids tell leaves of different degree apart.
    """

    batch: GraphBatch
    colours: Colours
    graphs: Ints
    trees: Ints
    counts: Ints
    degrees: bool

    @classmethod
    def grow(cls, batch: GraphBatch, hops: int, *, degrees: bool) -> "Forest":
        """Returns the trees of depth ``hops`` of all nodes of ``batch``."""
        colours = refine(batch, hops, degrees=degrees)
        return cls(batch, colours, *distinct_trees(colours, batch.owners.numpy()), degrees)

    @cached_property
    def _arc_starts(self) -> Ints:
        """Where the arcs into each node begin, and where they end; (N + 1,)."""
        return np.concatenate([[0], self.batch.degrees.numpy().cumsum()])

    def lonely(self) -> Ints:
        """Returns the ids of trees of a single node: those of nodes without neighbours."""
        firsts = self.colours.firsts[-1]
        return np.flatnonzero(self.batch.degrees.numpy()[firsts] == 0) if self.colours.depth else np.arange(len(firsts))

    def transactions(self, members: Ints, *, supported: int = 1, without: Ints | None = None) -> list[list[int]]:
        """Returns the distinct trees of each graph in ``members``, ascending.

        Args:
            members: graphs, ascending.
            supported: trees that fewer of these graphs hold are left out; so only what can be frequent remains.
            without: trees to leave out.
        """
        inside = np.isin(self.graphs, members)
        graphs, trees = self.graphs[inside], self.trees[inside]
        keep = np.bincount(trees, minlength=1)[trees] >= supported
        if without is not None:
            keep &= ~np.isin(trees, without)
        bounds = np.searchsorted(graphs[keep], np.append(members, np.iinfo(np.int64).max))
        kept = trees[keep].tolist()
        return [kept[start:end] for start, end in pairwise(bounds.tolist())]

    def mean_counts(self, trees: Sequence[int], members: Ints) -> tuple[float, ...]:
        """Returns how often each of ``trees`` stands in a graph of ``members`` that holds all of them, on average."""
        inside = np.isin(self.graphs, members) & np.isin(self.trees, trees)
        graphs, found, counts = self.graphs[inside], self.trees[inside], self.counts[inside]
        everything = np.bincount(graphs, minlength=1)[graphs] == len(trees)
        return tuple(float(counts[everything & (found == tree)].mean()) for tree in trees)

    def payload(self, sets: Sequence[TreeSet]) -> Trees:
        """Returns ``sets`` with all that their trees are made of, each distinct subtree once."""
        firsts, levels = self.colours.firsts, self.colours.levels
        starts, source = self._arc_starts, self.batch.arcs[0].numpy()
        kept = np.unique([tree for one in sets for tree in one.trees])
        roots = np.searchsorted(kept, [tree for one in sets for tree in one.trees])
        layers: list[_Layer] = []
        for level in range(self.colours.depth, 0, -1):
            nodes = firsts[level][kept]
            arcs = np.concatenate([np.arange(starts[node], starts[node + 1]) for node in nodes])
            owners = np.repeat(np.arange(len(nodes)), starts[nodes + 1] - starts[nodes])
            trunks, below = levels[level - 1][nodes], levels[level - 1][source[arcs]]
            kept = np.unique(np.concatenate([trunks, below]))
            layers.insert(0, _Layer.of(owners, np.searchsorted(kept, trunks), np.searchsorted(kept, below),
                                       self.colours.edges[arcs]))  # fmt: skip
        used = np.unique(np.concatenate([_NOTHING, *(layer.edges for layer in layers)]))
        labels = firsts[0][kept]
        degrees = self.batch.degrees[torch.from_numpy(labels)] if self.degrees else torch.zeros(len(kept)).long()
        return Trees(
            features=self.batch.nodes[torch.from_numpy(labels)],
            degrees=degrees,
            levels=torch.tensor([len(kept), *(len(layer.trunks) for layer in layers)]),
            trunks=_joined([layer.trunks for layer in layers]),
            fans=_joined([layer.fans for layer in layers]),
            children=_joined([layer.children for layer in layers]),
            bonds=_joined([np.searchsorted(used, layer.edges) for layer in layers]),
            repeats=_joined([layer.repeats for layer in layers]),
            bond_labels=self.batch.edges[torch.from_numpy(self.colours.edge_rows[used])],
            tree_counts=torch.tensor([len(one.trees) for one in sets]),
            roots=torch.from_numpy(roots),
            copies=torch.tensor([count for one in sets for count in one.copies], dtype=torch.float16),
            weights=torch.tensor([one.weight for one in sets], dtype=torch.float16),
        )


def fit_budget(
    candidates: Sequence[Sequence[TreeSet]], payload: Callable[[Sequence[TreeSet]], Trees], budget: int
) -> list[list[TreeSet]]:
    """Returns the longest beginnings of each class's candidates that fit ``budget`` bytes together.

    Every class gets an equal share of the bytes; since classes share subtrees, shares grow together until the whole
    is as large as it may be. Each class keeps its first set, whatever it takes.
    """
    known: dict[tuple[int, int], int] = {}

    def size(label: int, count: int) -> int:
        if (label, count) not in known:
            known[label, count] = payload_bytes(payload(candidates[label][:count]))
        return known[label, count]

    def together(share: float) -> list[list[TreeSet]]:
        fitting = [
            bisect_right(range(1, len(sets) + 1), share, key=partial(size, label))
            for label, sets in enumerate(candidates)
        ]
        return [list(sets[: max(1, count)]) for sets, count in zip(candidates, fitting, strict=True)]

    low, high = 0.0, float(budget)
    best = together(low)
    for _ in range(12):  # to a few bytes in four thousand
        share = (low + high) / 2
        sets = together(share)
        if payload_bytes(payload([one for part in sets for one in part])) <= budget:
            low, best = share, sets
        else:
            high = share
    return best


def merge_labels(batch: GraphBatch, kept: tuple[int, ...]) -> GraphBatch:
    """Returns the batch with all labels of the first column but ``kept`` replaced by the first that is not kept."""
    if not kept:
        return batch
    nodes, known = batch.nodes.clone(), torch.tensor(kept)
    other = next(label for label in range(len(kept) + 1) if label not in kept)
    nodes[~torch.isin(nodes[:, 0], known), 0] = other
    return replace(batch, nodes=nodes)


_NOTHING = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class _Layer:
    """The states of one level and the distinct arcs into them; see ``Trees``."""

    trunks: Ints
    fans: Ints
    children: Ints
    edges: Ints
    repeats: Ints

    @classmethod
    def of(cls, owners: Ints, trunks: Ints, below: Ints, edges: Ints) -> "_Layer":
        rows, repeats = np.unique(np.stack([owners, below, edges]), axis=1, return_counts=True)
        fans = np.bincount(rows[0], minlength=len(trunks))
        return cls(trunks, fans, rows[1], rows[2], repeats)


def _joined(parts: Sequence[NDArray[np.int64]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([_NOTHING, *parts]))
