"""Graph networks on message plans: GCN, GAT, GIN and GraphSAGE from PyTorch Geometric's layers.

Every layer is called in bipartite form, from the S states before a hop to the T states after it. So one network runs
alike on ordinary graphs (``graphs.plan_graphs``), on forests of computation trees, and on trees of which each distinct
subtree is computed once; the three agree up to rounding (Mirage, arXiv 2310.09486, section 3).

There is no normalisation over batches: statistics over the nodes of trees are not those over the nodes of graphs, and
a network would mean something else in training than in the test. Only GIN reads edge labels, as in GINE; the published
GCN, GAT and GraphSAGE know none.

This module imports PyTorch Geometric, which takes seconds; import it where a graph network is built.
"""

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.graphs import Hop, MessagePlan

with warnings.catch_warnings():  # it compiles with torch.jit on import, which newer versions of torch advise against
    warnings.simplefilter("ignore")
    from torch_geometric.nn.conv import GATConv, GINConv, GINEConv, SAGEConv, SimpleConv

Pool = Literal["sum", "mean"]
Kind = Literal["gcn", "gat", "gin", "sage"]

WIDTH = 128
HEADS = 4  # of GAT, side by side, so that all four kinds of one name are equally wide


class GraphNetwork(nn.Module):
    """Maps a message plan to logits (count, K), one row for each read-out.

    Attributes:
        layers: the number of message-passing layers, which is the number of hops of its plans.
        pool: how root states become one vector: their weighted ``sum``, or that divided by the weights (``mean``). No
            parameter depends on it, so it may be changed at any time.
        encoders: one embedding for each node label column; their sum is the first state.
        convolutions: the layers, with ReLU in between.
        head: the linear layer from the pooled vector to logits.
    """

    def __init__(self, spec: GraphSpec, kind: Kind, layers: int, factor: float = 1.0, pool: Pool = "mean") -> None:
        super().__init__()
        width = HEADS * max(1, round(WIDTH * factor / HEADS))
        self.layers, self.pool = layers, pool
        self.encoders = _encoders(spec.node_columns, width)
        self.convolutions = nn.ModuleList(_LAYERS[kind](width, spec.edge_columns) for _ in range(layers))
        self.head = nn.Linear(width, spec.num_classes)

    def forward(self, plan: MessagePlan) -> Tensor:
        """Returns logits (count, K)."""
        logits: Tensor = self.head(self.embed(plan))
        return logits

    def embed(self, plan: MessagePlan) -> Tensor:
        """Returns what the head sees: the pooled root states, (count, D)."""
        states, weights = self.states(plan)[plan.roots], plan.weights[:, None]
        pooled = states.new_zeros(plan.count, states.shape[1]).index_add_(0, plan.owners, states * weights)
        if self.pool == "mean":
            total = states.new_zeros(plan.count, 1).index_add_(0, plan.owners, weights)
            pooled = pooled / total.clamp(min=torch.finfo(total.dtype).tiny)
        return pooled

    def states(self, plan: MessagePlan) -> Tensor:
        """Returns the states after the last hop, (T, D).

        Raises:
            ValueError: if the plan was made for another number of layers.
        """
        if len(plan.hops) != self.layers:
            raise ValueError(f"plan has {len(plan.hops)} hops; expected {self.layers}, one for each layer")
        states = _embed_columns(self.encoders, plan.nodes)
        for number, (convolution, hop) in enumerate(zip(self.convolutions, plan.hops, strict=True)):
            states = convolution(states.relu() if number else states, hop)
        return states


class _GCN(nn.Module):
    """Kipf and Welling, arXiv 1609.02907: degree-normalised sum over the neighbours and the node itself.

    PyTorch Geometric's GCNConv refuses bipartite input, and the degrees must be those in the graph, which a tree does
    not show; so the plan's own coefficients weight a plain sum. The same as GCNConv on ordinary graphs.
    """

    def __init__(self, width: int, _: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        nn.init.xavier_uniform_(self.linear.weight)  # as GCNConv begins
        self.bias = nn.Parameter(torch.zeros(width))
        self.sum = SimpleConv(aggr="sum")

    def forward(self, states: Tensor, hop: Hop) -> Tensor:
        states = self.linear(states)
        messages: Tensor = self.sum((states, None), _arcs(hop), hop.norm, size=_size(states, hop))
        return messages + hop.own_norm[:, None] * states[hop.own] + self.bias


class _GAT(nn.Module):
    """Velickovic et al., arXiv 1710.10903; each node attends to its neighbours and to itself.

    The self-loop is an arc from the state that a new one continues, since the layer's own would join states by their
    numbers. An arc that stands twice is attended twice.
    """

    def __init__(self, width: int, _: tuple[int, ...]) -> None:
        super().__init__()
        self.attention = GATConv(width, width // HEADS, heads=HEADS, add_self_loops=False)

    def forward(self, states: Tensor, hop: Hop) -> Tensor:
        own = torch.stack([hop.own, torch.arange(len(hop.own), device=hop.own.device)])
        arcs = torch.cat([_arcs(hop), own], 1)
        messages: Tensor = self.attention((states, states[hop.own]), arcs, size=_size(states, hop))
        return messages


class _GIN(nn.Module):
    """Xu et al., arXiv 1810.00826, with edge labels Hu et al.'s GINE, arXiv 1905.12265; a learnt epsilon.

    The perceptron has one hidden layer of twice the width.
    """

    def __init__(self, width: int, edge_columns: tuple[int, ...]) -> None:
        super().__init__()
        self.encoders = _encoders(edge_columns, width)
        perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.isomorphism = (GINEConv if edge_columns else GINConv)(perceptron, train_eps=True)

    def forward(self, states: Tensor, hop: Hop) -> Tensor:
        pair, size = (states, states[hop.own]), _size(states, hop)
        labels = {"edge_attr": _embed_columns(self.encoders, hop.edges)} if len(self.encoders) else {}
        messages: Tensor = self.isomorphism(pair, _arcs(hop), size=size, **labels)
        return messages


class _SAGE(nn.Module):
    """Hamilton et al., arXiv 1706.02216, with the mean over the neighbours."""

    def __init__(self, width: int, _: tuple[int, ...]) -> None:
        super().__init__()
        self.mean = SAGEConv(width, width, aggr="mean")

    def forward(self, states: Tensor, hop: Hop) -> Tensor:
        messages: Tensor = self.mean((states, states[hop.own]), _arcs(hop), size=_size(states, hop))
        return messages


_LAYERS = {"gcn": _GCN, "gat": _GAT, "gin": _GIN, "sage": _SAGE}


def _encoders(columns: tuple[int, ...], width: int) -> nn.ModuleList:
    """Returns one embedding for each label column, of the size that OGB's encoders begin with.

    The default, normal with variance 1, makes logits of a fresh network on a large graph as large as those of a
    trained one.
    """
    encoders = nn.ModuleList(nn.Embedding(size, width) for size in columns)
    for parameter in encoders.parameters():
        nn.init.xavier_uniform_(parameter)
    return encoders


def _embed_columns(encoders: nn.ModuleList, labels: Tensor) -> Tensor:
    """Returns the sum of the columns' embeddings; (N, columns) -> (N, D)."""
    embedded = [encoder(column) for encoder, column in zip(encoders, labels.unbind(1), strict=True)]
    return torch.stack(embedded).sum(0) if len(embedded) > 1 else embedded[0]


def _arcs(hop: Hop) -> Tensor:
    return torch.stack([hop.source, hop.target])


def _size(states: Tensor, hop: Hop) -> tuple[int, int]:
    return len(states), len(hop.own)
