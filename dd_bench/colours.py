"""Computation trees without trees: colour refinement gives each node an id that equals another's iff their trees do.

The computation tree of depth k at a node has the node's label at its root and, for each neighbour, that neighbour's
tree of depth k - 1 (the way back is not excluded: messages do go back). So two nodes have isomorphic trees of depth k
iff their labels agree and so do their multisets of (edge label, tree of depth k - 1) over neighbours: Weisfeiler and
Leman's refinement with the root's own label kept. Ids are ranks, not hashes: there are no collisions. The work is a
few sorts of the M arcs a level; nothing grows with the size of a tree, which is about degree to the power of depth.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dd_bench.graphs import GraphBatch

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Colours:
    """The tree ids of every node at every depth.

    Attributes:
        levels: (N,) a level, ids from 0, level 0 first: the ids of labels alone.
        firsts: (C_k,) a level, the first node that has each id; it stands for all.
        edges: (M,) ids of edge labels, in the order of the batch's arcs.
        edge_rows: (B,) the first arc that has each edge label id.
    """

    levels: tuple[Ints, ...]
    firsts: tuple[Ints, ...]
    edges: Ints
    edge_rows: Ints

    @property
    def depth(self) -> int:
        """Of the deepest trees."""
        return len(self.levels) - 1


def refine(batch: GraphBatch, depth: int, *, degrees: bool = False) -> Colours:
    """Returns the ids of the computation trees of depth 0 to ``depth`` at every node of ``batch``.

    Args:
        batch: the graphs; ids mean the same in all of them.
        depth: of the deepest trees, at least 0. Deeper than a graph is wide is allowed: trees go back and forth.
        degrees: whether a node's number of neighbours belongs to its label. Inside a tree it shows anyway; it tells
            apart leaves, whose neighbours lie outside the tree. GCN needs it (its messages are divided by degrees).
    """
    source, target = batch.arcs.numpy()
    labels = batch.nodes.numpy()
    degree = batch.degrees.numpy()
    if degrees:
        labels = np.column_stack([labels, degree])
    label, edge = rank_rows(labels), rank_rows(batch.edges.numpy())
    edge_rows = first_places(edge)
    # A position holds the first, second … neighbour of all nodes that have so many, in the order of their keys.
    starts = np.concatenate([[0], degree.cumsum()[:-1]])
    by_degree = np.argsort(-degree, kind="stable")
    most = int(degree.max(initial=0))
    counts = [int(count) for count in np.searchsorted(-degree[by_degree], -np.arange(most))]  # of degree > position
    levels, firsts = [label], [first_places(label)]
    for _ in range(depth):
        before = levels[-1]
        width = len(firsts[-1]) * max(len(edge_rows), 1)
        keys = np.sort(target * width + edge * len(firsts[-1]) + before[source]) - target * width
        now = rank(label * (most + 1) + degree)
        for position in range(most):
            still = by_degree[: counts[position]]
            now[still] = rank(now[still] * width + keys[starts[still] + position])
        # Nodes of different degree took part in different rounds: their ranks mean different things.
        now = rank(now * (most + 1) + degree)
        levels.append(now)
        firsts.append(first_places(now))
    return Colours(tuple(levels), tuple(firsts), edge, edge_rows)


def rank(values: Ints) -> Ints:
    """Returns for each entry the rank of its value, at least 0, among the distinct ones, from 0."""
    span = int(values.max(initial=-1)) + 1
    if span <= 4 * len(values):  # a table of all values is smaller than what a sort would move
        there = np.zeros(span, np.int64)
        there[values] = 1
        return np.asarray(there.cumsum() - 1)[values]
    # return_index asks for a stable sort, which on such partly sorted values takes half the time of the default one.
    inverse: Ints = np.unique(values, return_index=True, return_inverse=True)[2]
    return inverse


def rank_rows(rows: Ints) -> Ints:
    """Returns ``rank`` of the rows of a table (n, columns); without columns all rows are one."""
    ids = np.zeros(len(rows), np.int64)
    for column in rows.T:
        values = rank(column)  # ranked, so that the product below stays far from overflow
        ids = rank(ids * (int(values.max(initial=0)) + 1) + values)
    return ids


def first_places(ids: Ints) -> Ints:
    """Returns where each id first stands; ids are ranks."""
    places = np.empty(int(ids.max(initial=-1)) + 1, np.int64)
    places[ids[::-1]] = np.arange(len(ids))[::-1]  # of several, the last one written stays
    return places


def distinct_trees(colours: Colours, owners: Ints) -> tuple[Ints, Ints, Ints]:
    """Returns which graph holds which deepest tree how often: graphs, trees and counts, (P,) each, sorted by both."""
    total = len(colours.firsts[-1])
    pairs, counts = np.unique(owners * total + colours.levels[-1], return_counts=True)
    return pairs // total, pairs % total, counts
