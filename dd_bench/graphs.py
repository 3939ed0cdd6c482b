"""Many graphs as one, and the plan by which messages flow over them; what data, sets and networks share.

Letters in shapes: G graphs, N nodes, M arcs, F node label columns, E edge label columns, S distinct states.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Undirected labelled graphs as one disjoint union.

    Attributes:
        nodes: (N, F) int64, categories of each node by column.
        arcs: (2, M) int64, source and target; each edge stands twice, once in each direction, sorted by target and then
            source. No loops, no arc twice, none between two graphs.
        edges: (M, E) int64, categories of each arc by column, equal in both directions; E may be 0.
        starts: (G + 1,) int64, where the nodes of each graph begin; ascending from 0 to N. No graph is empty.
    """

    nodes: Tensor
    arcs: Tensor
    edges: Tensor
    starts: Tensor

    def __len__(self) -> int:
        return self.starts.shape[0] - 1

    @cached_property
    def sizes(self) -> Tensor:
        """The number of nodes of each graph; (G,) int64."""
        return self.starts.diff()

    @cached_property
    def owners(self) -> Tensor:
        """The graph of each node; (N,) int64."""
        return torch.arange(len(self), device=self.starts.device).repeat_interleave(self.sizes)

    @cached_property
    def degrees(self) -> Tensor:
        """The number of neighbours of each node; (N,) int64."""
        return torch.bincount(self.arcs[1], minlength=self.nodes.shape[0])

    @cached_property
    def arc_counts(self) -> Tensor:
        """The number of arcs, twice the number of edges, of each graph; (G,) int64."""
        return torch.bincount(self.owners[self.arcs[1]], minlength=len(self))

    def pick(self, index: Tensor) -> "GraphBatch":
        """Returns the graphs at ``index`` (any order, repetitions allowed) as a batch of their own."""
        sizes = self.sizes[index]
        starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        nodes = _ranges(self.starts[index], sizes)
        arc_starts = torch.cat([sizes.new_zeros(1), self.arc_counts.cumsum(0)])
        counts = self.arc_counts[index]
        chosen = _ranges(arc_starts[index], counts)
        shift = (starts[:-1] - self.starts[index]).repeat_interleave(counts)
        return GraphBatch(self.nodes[nodes], self.arcs[:, chosen] + shift, self.edges[chosen], starts)

    def to(self, device: torch.device | str) -> "GraphBatch":
        """Returns the batch on ``device``."""
        return GraphBatch(*(part.to(device) for part in (self.nodes, self.arcs, self.edges, self.starts)))


@dataclass(frozen=True, eq=False)
class Hop:
    """One round of messages, from the states before it to the T states after it.

    Attributes:
        own: (T,) int64, which state each new one continues.
        source: (A,) int64, whose state is sent; a neighbour counts as often as it stands here.
        target: (A,) int64, which new state receives it.
        edges: (A, E) int64, categories of the edge by column.
        norm: (A,) float32, ``1 / sqrt((d_source + 1) (d_target + 1))`` with the degrees d in the graph, for GCN.
        own_norm: (T,) float32, ``1 / (d_target + 1)``.
    """

    own: Tensor
    source: Tensor
    target: Tensor
    edges: Tensor
    norm: Tensor
    own_norm: Tensor


@dataclass(frozen=True, eq=False)
class MessagePlan:
    """What a graph network computes: states before any message, hops between states, and pooled read-outs.

    For ordinary graphs the states are the nodes at every hop. For computation trees they are distinct subtrees, so
    that each is computed once however often it occurs.

    Attributes:
        nodes: (S, F) int64, categories of the states before any message.
        hops: one for each layer of the network.
        roots: (P,) int64, states after the last hop that are read.
        owners: (P,) int64, the read-out (a graph, a tree set) that each belongs to, ascending.
        weights: (P,) float32, how often each counts in its read-out.
        count: the number of read-outs.
    """

    nodes: Tensor
    hops: tuple[Hop, ...]
    roots: Tensor
    owners: Tensor
    weights: Tensor
    count: int

    def to(self, device: torch.device | str) -> "MessagePlan":
        """Returns the plan on ``device``."""
        hops = tuple(Hop(**{name: part.to(device) for name, part in vars(hop).items()}) for hop in self.hops)
        roots, owners, weights = (part.to(device) for part in (self.roots, self.owners, self.weights))
        return MessagePlan(self.nodes.to(device), hops, roots, owners, weights, self.count)


def plan_graphs(batch: GraphBatch, layers: int) -> MessagePlan:
    """Returns the plan of ordinary message passing: every node sends to its neighbours, and every node is read."""
    source, target = batch.arcs
    degrees = batch.degrees.float() + 1
    everyone = torch.arange(batch.nodes.shape[0], device=batch.nodes.device)
    norm = (degrees[source] * degrees[target]).rsqrt()
    hop = Hop(everyone, source, target, batch.edges, norm, 1 / degrees)
    weights = torch.ones(len(everyone), device=everyone.device)
    return MessagePlan(batch.nodes, (hop,) * layers, everyone, batch.owners, weights, len(batch))


def _ranges(starts: Tensor, counts: Tensor) -> Tensor:
    """Returns ``counts[0]`` numbers from ``starts[0]`` up, then the same for the next pair, all in one row."""
    before = counts.cumsum(0) - counts
    total = int(counts.sum())
    return torch.arange(total, device=starts.device) + (starts - before).repeat_interleave(counts)
