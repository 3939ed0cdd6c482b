"""Pictures of graph sets: the heaviest tree sets of each class, or its graphs, as nodes and lines.

Nodes are coloured by their first label column. A tree hangs from its root, which students read; a number beside it says
how often it counts. What is too large to be made out is told in words.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dd_bench.graph_sets import Graphs, Trees

ROWS, COLUMNS = 20, 8
_TREES = 3  # drawn of a set
_LARGEST = 150  # nodes that can be made out in a tile
_TILE, _LEFT, _TOP, _CAPTION, _DPI = 1.5, 0.55, 0.85, 0.4, 100  # inches; dots an inch

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class _Drawing:
    """Places of nodes in the unit square (n, 2), their categories (n,), and lines between them (m, 2)."""

    places: Points
    labels: list[int]
    lines: list[tuple[int, int]]
    words: str = ""


def draw_graph_set(payload: Graphs | Trees, classes: torch.Tensor, heading: Sequence[str]) -> bytes:
    """Returns the card as the bytes of a PNG file: one row a class, at most 20 rows of 8 instances."""
    # Imported here: it takes longer than the rest of the core. The object API leaves no state behind, unlike pyplot.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    present = sorted(set(classes.tolist()))[:ROWS]
    width, height = _LEFT + COLUMNS * _TILE + 0.1, _TOP + len(present) * (_TILE + _CAPTION) + 0.1
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    palette = [*colormaps["tab20"].colors]  # type: ignore[attr-defined]
    for line, (text, size) in enumerate(zip(heading, (11, 8, 8), strict=True)):
        figure.text(0.1 / width, 1 - (0.17 + 0.22 * line) / height, text, size=size, va="center", parse_math=False)
    for row, label in enumerate(present):
        top = _TOP + row * (_TILE + _CAPTION)
        figure.text((_LEFT - 0.1) / width, 1 - (top + _TILE / 2) / height, str(label), size=9, ha="right", va="center")
        index = _heaviest(payload, torch.nonzero(classes == label).flatten())
        for column, one in enumerate(index.tolist()):
            drawing, caption = _draw_trees(payload, one) if isinstance(payload, Trees) else _draw_graph(payload, one)
            left = _LEFT + column * _TILE
            axes = figure.add_axes(
                (left / width, 1 - (top + _TILE) / height, 0.92 * _TILE / width, 0.92 * _TILE / height)
            )
            axes.set_axis_off()
            axes.set_xlim(-0.05, 1.05)
            axes.set_ylim(-0.05, 1.05)
            for start, end in drawing.lines:
                axes.plot(
                    drawing.places[[start, end], 0],
                    drawing.places[[start, end], 1],
                    color="0.6",
                    linewidth=0.7,
                    zorder=1,
                )
            if len(drawing.places):
                dots = max(4.0, 40.0 - len(drawing.places) / 2)
                colours = [palette[one % len(palette)] for one in drawing.labels]
                axes.scatter(
                    drawing.places[:, 0],
                    drawing.places[:, 1],
                    s=dots,
                    c=colours,
                    edgecolors="0.2",
                    linewidths=0.4,
                    zorder=2,
                )
            axes.text(0.5, 0.5, drawing.words, size=7, ha="center", va="center")
            middle = (left + 0.46 * _TILE) / width
            figure.text(middle, 1 - (top + _TILE + 0.02) / height, caption, size=6, ha="center", va="top")
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return out.getvalue()


def _heaviest(payload: Graphs | Trees, index: torch.Tensor) -> torch.Tensor:
    """Returns at most ``COLUMNS`` of ``index``: tree sets by weight, graphs in their order."""
    if isinstance(payload, Trees):
        index = index[payload.weights[index].argsort(descending=True, stable=True)]
    return index[:COLUMNS]


def _draw_trees(payload: Trees, one: int) -> tuple[_Drawing, str]:
    """Returns the first trees of a set side by side, and what is said below them."""
    first = int(payload.tree_counts[:one].sum())
    count = int(payload.tree_counts[one])
    sizes = payload.sizes[-1][payload.roots]
    shown = [at for at in range(first, first + count) if float(sizes[at]) <= _LARGEST][:_TREES]
    caption = f"weight {float(payload.weights[one]):.2f}, {count} tree{'s' if count > 1 else ''}"
    if not shown:
        return _Drawing(np.empty((0, 2)), [], [], f"{int(sizes[first]):,} nodes\na tree"), caption
    places: list[Points] = []
    labels: list[int] = []
    lines: list[tuple[int, int]] = []
    for slot, at in enumerate(shown):
        features, parents, _ = payload.explicit(int(payload.roots[at]))
        lines += [(len(labels) + parent, len(labels) + node) for node, parent in enumerate(parents.tolist()) if node]
        places.append((_hang(parents.tolist()) + np.array([slot, 0])) / [len(shown), 1])
        labels += features[:, 0].tolist()
    copies = " ".join(f"×{float(payload.copies[at]):.3g}" for at in shown)
    return _Drawing(np.concatenate(places), labels, lines), f"{caption}\n{copies}"


def _hang(parents: list[int]) -> Points:
    """Returns places of a tree's nodes: the root on top, each level below its parents, leaves evenly spaced."""
    children: list[list[int]] = [[] for _ in parents]
    depth = [0] * len(parents)
    for node, parent in enumerate(parents):
        if parent >= 0:
            children[parent].append(node)
            depth[node] = depth[parent] + 1
    places = np.zeros((len(parents), 2))
    leaves = sum(not below for below in children)
    seen, stack = 0, [(0, False)]
    while stack:  # not recursive: a tree of many hops is deep
        node, done = stack.pop()
        if not children[node]:
            places[node, 0] = (seen + 0.5) / leaves
            seen += 1
        elif done:
            places[node, 0] = places[children[node], 0].mean()
        else:
            stack += [(node, True), *((child, False) for child in reversed(children[node]))]
    places[:, 1] = 0.95 - 0.9 * np.array(depth) / max(1, max(depth))
    return places


def _draw_graph(payload: Graphs, one: int) -> tuple[_Drawing, str]:
    """Returns a graph, and what is said below it."""
    node, link = int(payload.node_counts[:one].sum()), int(payload.link_counts[:one].sum())
    size, edges = int(payload.node_counts[one]), int(payload.link_counts[one])
    caption = f"{size:,} nodes, {edges:,} edges"
    if size > _LARGEST:
        return _Drawing(np.empty((0, 2)), [], [], "a graph too large\nto draw"), caption
    lines = [(int(a), int(b)) for a, b in payload.links[link : link + edges].tolist()]
    places = _spread(size, lines)
    return _Drawing(places, payload.nodes[node : node + size, 0].tolist(), lines), caption


def _spread(size: int, lines: list[tuple[int, int]]) -> Points:
    """Returns places of a graph's nodes, (size, 2), as far apart as there are edges between them.

    Multidimensional scaling of the path lengths: Torgerson's solution, improved by majorisation (De Leeuw's SMACOF).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import shortest_path

    ends = np.array(lines, dtype=np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size)).tocsr()
    lengths = shortest_path(graph, directed=False, unweighted=True)
    apart = ~np.isfinite(lengths)  # parts of a graph that hang together by nothing
    lengths[apart] = lengths[~apart].max() + 1
    centred = lengths**2 - (lengths**2).mean(0) - (lengths**2).mean(1)[:, None] + (lengths**2).mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    places = np.zeros((size, 2))
    best = vectors[:, ::-1][:, :2] * np.sqrt(values[::-1][:2].clip(0))
    places[:, : best.shape[1]] = best
    places += 0.05 * np.random.Generator(np.random.PCG64(0)).standard_normal(places.shape)  # so that equals part
    for _ in range(60):
        found = np.linalg.norm(places[:, None] - places[None], axis=-1)
        pull = np.divide(lengths, found, out=np.zeros_like(lengths), where=found > 1e-9)
        places = (places * pull.sum(1)[:, None] - pull @ places) / size
    low, high = places.min(0), places.max(0)
    reach = float((high - low).max())
    framed: Points = 0.5 + 0.9 * (places - (low + high) / 2) / (reach if reach > 0 else 1)
    return framed
