"""Small graph sets as plain Python, and raw files of them as TU and OGB write them."""

import gzip
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dd_bench.graphs import GraphBatch


@dataclass
class Toy:
    """One graph: node labels by column, edges with labels (each edge once), and a raw class label."""

    nodes: list[tuple[int, ...]]
    edges: dict[tuple[int, int], tuple[int, ...]]
    label: int

    def arcs(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Both directions of every edge as (target, source, labels), ascending."""
        return sorted(arc for (u, v), label in self.edges.items() for arc in ((u, v, label), (v, u, label)))


def toys(count: int, nodes: Sequence[int], edges: Sequence[int], labels: Sequence[int], seed: int = 0) -> list[Toy]:
    """Random graphs of 1 to 8 nodes, some of them isolated; classes in turn."""
    draws = random.Random(seed)
    made = []
    for number in range(count):
        size = draws.randint(1, 8)
        pairs = [(u, v) for u in range(size) for v in range(u) if draws.random() < 0.3]
        made.append(
            Toy(
                [tuple(draws.randrange(n) for n in nodes) for _ in range(size)],
                {pair: tuple(draws.randrange(n) for n in edges) for pair in pairs},
                labels[number % len(labels)],
            )
        )
    return made


def mutag(count: int = 60) -> list[Toy]:
    """Toys with the label columns of ``mutag``; every category of nodes and edges occurs."""
    made = toys(count, (7,), (4,), (-1, 1, 1))
    made[0] = Toy([(n,) for n in range(7)], {(n, n + 1): (n,) for n in range(4)}, -1)
    return made


def write_tu(data: Path, name: str, graphs: list[Toy], *, seed: int = 1, twice: bool = False, least: int = 0) -> Path:
    """Writes ``<data>/<name>/raw``, arcs in random order (all of them twice, if so asked) and returns the folder."""
    raw = data / name / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    first, lines = 1, []
    for graph in graphs:
        lines += [(f"{u + first}, {v + first}", labels) for v, u, labels in graph.arcs()]
        first += len(graph.nodes)
    random.Random(seed).shuffle(lines)
    lines += lines if twice else []

    def write(part: str, rows: Iterable[object]) -> None:
        (raw / f"{name}_{part}.txt").write_text("".join(f"{row}\n" for row in rows))

    write("A", (arc for arc, _ in lines))
    write("graph_indicator", (g for g, graph in enumerate(graphs, 1) for _ in graph.nodes))
    write("graph_labels", (graph.label for graph in graphs))
    if graphs[0].nodes[0]:
        write("node_labels", (n[0] + least for graph in graphs for n in graph.nodes))
    if next(iter(graphs[0].edges.values())):
        write("edge_labels", (labels[0] + least for _, labels in lines))
    return raw


def write_ogb(data: Path, short: str, graphs: list[Toy], split: Sequence[Sequence[int]]) -> Path:
    """Writes ``<data>/ogbg_mol<short>``, each bond once, and returns the folder."""
    root = data / f"ogbg_mol{short}"

    def write(part: str, rows: Iterable[Sequence[int]]) -> None:
        path = root / f"{part}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows).encode()))

    write("raw/num-node-list", ([len(graph.nodes)] for graph in graphs))
    write("raw/num-edge-list", ([len(graph.edges)] for graph in graphs))
    write("raw/node-feat", (node for graph in graphs for node in graph.nodes))
    write("raw/edge", (pair for graph in graphs for pair in graph.edges))
    write("raw/edge-feat", (labels for graph in graphs for labels in graph.edges.values()))
    write("raw/graph-label", ([graph.label] for graph in graphs))
    for name, rows in zip(("train", "valid", "test"), split, strict=True):
        write(f"split/scaffold/{name}", ([row] for row in rows))
    return root


def assert_is(batch: GraphBatch, labels: Tensor, graphs: list[Toy], classes: Sequence[int]) -> None:
    """Compares a batch with toys, graph by graph."""
    assert len(batch) == len(labels) == len(graphs)
    starts = batch.starts.tolist()
    for number, graph in enumerate(graphs):
        start, end = starts[number], starts[number + 1]
        assert [tuple(row) for row in batch.nodes[start:end].tolist()] == graph.nodes
        inside = (batch.arcs[1] >= start) & (batch.arcs[1] < end)
        arcs = (batch.arcs[:, inside] - start).flip(0).T.tolist()
        assert [(*arc, tuple(e)) for arc, e in zip(arcs, batch.edges[inside].tolist(), strict=True)] == graph.arcs()
        assert classes[int(labels[number])] == graph.label
