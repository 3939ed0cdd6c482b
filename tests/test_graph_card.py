"""Cards of graph sets: a picture of the right size whatever is in the set, and what stands on it."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from dd_bench import graph_card
from dd_bench.card import render_card
from dd_bench.graph_card import COLUMNS, ROWS, draw_graph_set
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.graphs import GraphBatch
from dd_bench.sets import Provenance, SyntheticSet
from dd_bench.targets import HardLabels
from synth.parts.tree_sets import Forest, TreeSet
from tests.conftest import draw_motifs
from tests.data.graph_files import Toy
from tests.references.trees import batch_of

ORIGIN = Provenance(
    method="mirage", preset="p", config={}, dataset="nci1", fingerprint="f", ipc=1, seed=0, recipe="0123456789ab"
)
HEADING = ("first", "second", "third")


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is written on the card: heading, classes, captions."""
    seen: list[str] = []
    text = Figure.text

    def watched(self: Figure, x: float, y: float, s: str, **named: object) -> object:
        seen.append(s)
        return text(self, x, y, s, **named)

    monkeypatch.setattr(Figure, "text", watched)
    return seen


def size(png: bytes) -> tuple[int, int]:
    """Returns width and height, after reading all of the picture."""
    pixels = imread(io.BytesIO(png), format="png")
    assert np.ptp(pixels[..., :3]) > 0.5, "something is drawn"
    return pixels.shape[1], pixels.shape[0]


def expected(rows: int) -> tuple[int, int]:
    width = 0.55 + COLUMNS * 1.5 + 0.1
    return pytest.approx(width * 100, abs=1), pytest.approx((0.85 + rows * 1.9 + 0.1) * 100, abs=1)


def forest(batch: GraphBatch, hops: int = 2) -> Trees:
    """Returns one set for each graph, of all its trees."""
    grown = Forest.grow(batch, hops, degrees=False)
    sets = [
        TreeSet(0, tuple(grown.trees[own].tolist()), tuple(map(float, grown.counts[own])), 1 + graph / 4)
        for graph in range(len(batch))
        for own in (grown.graphs == graph,)
    ]
    return grown.payload(sets)


@pytest.mark.parametrize("make", [Graphs.of, forest])
@pytest.mark.parametrize(("classes", "rows"), [(1, 1), (3, 3), (30, ROWS)])
def test_one_row_a_class(
    words: list[str], make: Callable[[GraphBatch], Graphs | Trees], classes: int, rows: int
) -> None:
    batch = draw_motifs(20, 0)[0].pick(torch.arange(60))
    labels = torch.arange(60) % classes
    assert size(draw_graph_set(make(batch), labels, HEADING)) == expected(rows)
    assert words[:3] == list(HEADING)
    assert [word for word in words[3:] if word.isdigit()] == [str(row) for row in range(rows)]
    captions = [word for word in words[3:] if not word.isdigit()]
    assert len(captions) == rows * min(COLUMNS, 60 // classes)


def test_captions_of_graphs(words: list[str]) -> None:
    batch = batch_of([Toy([(0,)], {}, 0), Toy([(0,), (1,), (25,)], {(0, 2): (), (0, 1): ()}, 0)])
    draw_graph_set(Graphs.of(batch), torch.tensor([4, 4]), HEADING)
    assert words[3:] == ["4", "1 nodes, 0 edges", "3 nodes, 2 edges"]


def test_heaviest_tree_sets_come_first(words: list[str]) -> None:
    batch = batch_of([Toy([(n,)] * 2, {(0, 1): ()}, 0) for n in range(12)])
    draw_graph_set(forest(batch, 1), torch.zeros(12).long(), HEADING)
    captions = words[4:]
    assert len(captions) == COLUMNS
    assert captions[0] == "weight 3.75, 1 tree\n×2"
    assert captions[-1] == "weight 2.00, 1 tree\n×2"


def test_graphs_too_large_to_draw(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Toy([(0,)] * 2000, {(n, n + 1): () for n in range(1999)}, 0)
    monkeypatch.setattr(np.linalg, "eigh", None)  # nothing that large is laid out
    payload = Graphs.of(batch_of([ring]))
    assert size(draw_graph_set(payload, torch.tensor([0]), HEADING)) == expected(1)
    assert words[4:] == ["2,000 nodes, 1,999 edges"]
    assert graph_card._draw_graph(payload, 0)[0].words == "a graph too large\nto draw"


def test_trees_of_thousands_of_nodes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    star = Toy([(0,)] * 60, {(0, n): () for n in range(1, 60)}, 0)
    trees = forest(batch_of([star]), 4)
    assert float(trees.sizes[-1].max()) > 3000
    monkeypatch.setattr(Trees, "explicit", None)  # nothing that large is spelt out
    assert size(draw_graph_set(trees, torch.tensor([0]), HEADING)) == expected(1)
    assert words[4:] == ["weight 1.00, 2 trees"]
    assert graph_card._draw_trees(trees, 0)[0].words.endswith(" nodes\na tree")


def test_a_deep_tree_is_drawn() -> None:
    """As deep as a tree of no more than 150 nodes can be: a chain."""
    trees = forest(batch_of([Toy([(0,)] * 2, {(0, 1): ()}, 0)]), 140)
    assert size(draw_graph_set(trees, torch.tensor([0]), HEADING)) == expected(1)


def test_places_of_a_tree() -> None:
    places = graph_card._hang([-1, 0, 0, 1, 1])  # a root with two children, the first of which has two
    assert places[:, 1].tolist() == pytest.approx([0.95, 0.5, 0.5, 0.05, 0.05])
    assert places[:, 0].tolist() == pytest.approx([(2 / 6 + 5 / 6) / 2, 2 / 6, 5 / 6, 1 / 6, 3 / 6])
    assert graph_card._hang([-1]).tolist() == [[0.5, 0.95]]


@pytest.mark.parametrize(
    "toy",
    [
        Toy([(0,)], {}, 0),
        Toy([(0,), (1,)], {}, 0),
        Toy([(0,), (1,)], {(0, 1): ()}, 0),
        Toy([(0,)] * 5, {}, 0),
        Toy([(0,)] * 6, {(0, 1): (), (2, 3): (), (4, 5): ()}, 0),
        Toy([(0,)] * 6, {(a, b): () for b in range(6) for a in range(b)}, 0),
    ],
    ids=["a node", "two nodes", "an edge", "no edges", "three parts", "all with all"],
)
def test_layouts_are_inside_and_apart(toy: Toy) -> None:
    drawing, _ = graph_card._draw_graph(Graphs.of(batch_of([toy])), 0)
    places = drawing.places
    assert places.shape == (len(toy.nodes), 2)
    assert np.isfinite(places).all()
    assert places.min() >= 0
    assert places.max() <= 1
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1) + np.eye(len(places))
    assert apart.min() > 1e-3
    assert drawing.labels == [row[0] for row in toy.nodes]
    assert sorted(drawing.lines) == sorted(toy.edges)


def test_second_graph_is_the_second_graph() -> None:
    toys = [Toy([(0,)] * 4, {(0, 3): (), (1, 2): ()}, 0), Toy([(1,), (2,), (3,)], {(0, 2): ()}, 0)]
    drawing, caption = graph_card._draw_graph(Graphs.of(batch_of(toys)), 1)
    assert (drawing.labels, drawing.lines, caption) == ([1, 2, 3], [(0, 2)], "3 nodes, 1 edges")


def test_heading(words: list[str]) -> None:
    batch = draw_motifs(2, 0)[0]
    for payload, fact in (
        (
            forest(batch),
            f"6 sets of {len(forest(batch).roots)} trees, 2 hops deep · {forest(batch).formula_bytes():,} by",
        ),
        (Graphs.of(batch), "6 graphs · one colour a node label"),
    ):
        words.clear()
        made = SyntheticSet(payload, HardLabels(torch.arange(6) % 3), ORIGIN, "graphs")
        first, again = (render_card(made, {"trees": 1234, "container": 9}) for _ in range(2))
        assert first == again
        assert size(first) == expected(3)
        heading = " ".join(words[:3])
        for known in (fact, "mirage", "nci1", "ipc 1", ORIGIN.set_id, "1.23 kB"):
            assert known in heading, heading
