"""Tree ids: equal exactly where explicit computation trees are, on any graph, and as many as were counted elsewhere."""

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dd_bench.colours import Ints, distinct_trees, first_places, rank, rank_rows, refine
from dd_bench.data.graph_layout import SPLITS
from dd_bench.data.graph_reading import read_graphs
from dd_bench.data.graphs import GraphData
from dd_bench.graphs import GraphBatch
from tests.conftest import REAL_DATA
from tests.data.graph_files import Toy, toys
from tests.references.trees import batch_of, canonical, shuffled


def same_partition(ids: list[int], names: list[str]) -> bool:
    return len(set(zip(ids, names, strict=True))) == len(set(ids)) == len(set(names))


@pytest.mark.parametrize("degrees", [False, True])
@pytest.mark.parametrize(
    ("nodes", "edges", "seed"), [((1,), (), 0), ((2,), (), 1), ((2, 2), (2,), 2), ((1,), (3, 2), 3), ((4,), (2,), 4)]
)
def test_ids_match_reference_of_explicit_trees(
    nodes: tuple[int, ...], edges: tuple[int, ...], seed: int, degrees: bool
) -> None:
    batch = batch_of(toys(14, nodes, edges, (0, 1), seed))
    assert 0 in batch.degrees
    colours = refine(batch, 3, degrees=degrees)
    assert colours.depth == 3
    for depth, (level, firsts) in enumerate(zip(colours.levels, colours.firsts, strict=True)):
        names = canonical(batch, depth, degrees=degrees)
        assert same_partition(level.tolist(), names)
        assert sorted(set(level.tolist())) == list(range(len(firsts)))
        assert [level.tolist().index(number) for number in range(len(firsts))] == firsts.tolist()
    labels = batch.edges.tolist()
    assert same_partition(colours.edges.tolist(), [str(row) for row in labels])
    assert [labels[row] for row in colours.edge_rows] == [
        labels[colours.edges.tolist().index(number)] for number in range(len(colours.edge_rows))
    ]


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10**6), st.integers(0, 3), st.booleans())
def test_ids_match_reference_on_any_graphs(seed: int, depth: int, degrees: bool) -> None:
    batch = batch_of(toys(4, (2,), (2,), (0, 1), seed))
    level = refine(batch, depth, degrees=degrees).levels[-1]
    assert same_partition(level.tolist(), canonical(batch, depth, degrees=degrees))


def test_degrees_tell_leaves_apart() -> None:
    """Node 0 sees a neighbour that has another one, node 4 a neighbour that has none."""
    batch = batch_of([Toy([(0,)] * 3, {(0, 1): (), (1, 2): ()}, 0), Toy([(0,)] * 2, {(0, 1): ()}, 0)])
    plain, degrees = (refine(batch, 1, degrees=flag).levels for flag in (False, True))
    assert len(set(plain[0].tolist())) == 1
    assert plain[1][0] == plain[1][3]
    assert degrees[0].tolist() == [0, 1, 0, 0, 0]
    assert degrees[1][0] != degrees[1][3]


@pytest.mark.parametrize("degrees", [False, True])
def test_isomorphic_graphs_have_equal_trees(degrees: bool) -> None:
    draws = random.Random(0)
    plain = toys(12, (2,), (3,), (0, 1), 7)
    orders = [draws.sample(range(len(graph.nodes)), len(graph.nodes)) for graph in plain]
    first, second = batch_of(plain), batch_of([shuffled(*pair) for pair in zip(plain, orders, strict=True)])
    both = batch_of(plain + [shuffled(*pair) for pair in zip(plain, orders, strict=True)])
    place = torch.cat([start + torch.tensor(order) for start, order in zip(first.starts, orders, strict=False)]).numpy()
    ours, theirs, together = (refine(batch, 3, degrees=degrees).levels for batch in (first, second, both))
    for one, other, union in zip(ours, theirs, together, strict=True):
        assert one[place].tolist() == other.tolist(), "ids are ranks, so even their numbers agree"
        assert union[: len(place)][place].tolist() == union[len(place) :].tolist()
        assert np.bincount(one).tolist() == np.bincount(other).tolist()


def test_deeper_ids_refine_and_settle() -> None:
    """Equal at one depth means equal at every smaller one; beyond as many rounds as nodes nothing new is seen."""
    batch = batch_of(toys(20, (2,), (2,), (0, 1), 5))
    levels = refine(batch, 12).levels
    for before, after in pairwise(levels):
        pairs = set(zip(after.tolist(), before.tolist(), strict=True))
        assert len(pairs) == len(set(after.tolist()))
    counts = [len(set(level.tolist())) for level in levels]
    assert counts == sorted(counts)
    assert counts[8] == counts[12]
    path = batch_of([Toy([(0,)] * 2, {(0, 1): ()}, 0)])
    assert [level.tolist() for level in refine(path, 50).levels] == [[0, 0]] * 51, "trees go back and forth"


def test_no_edges() -> None:
    batch = batch_of([Toy([(3, 1), (0, 1), (3, 1)], {}, 0), Toy([(0, 1)], {}, 1)])
    colours = refine(batch, 2, degrees=True)
    assert [level.tolist() for level in colours.levels] == [[1, 0, 1, 0]] * 3
    assert colours.edges.shape == colours.edge_rows.shape == (0,)
    graphs, trees, counts = distinct_trees(colours, batch.owners.numpy())
    assert (graphs.tolist(), trees.tolist(), counts.tolist()) == ([0, 0, 1], [0, 1, 0], [1, 2, 1])


def test_large_labels_do_not_overflow() -> None:
    big = 2**40
    columns = tuple(big + row for row in range(4))
    graph = Toy([columns, columns[::-1], columns], {(0, 1): columns, (1, 2): columns[::-1]}, 0)
    batch = batch_of([graph, graph])
    for depth in range(4):
        assert same_partition(refine(batch, depth).levels[-1].tolist(), canonical(batch, depth))


def test_distinct_trees() -> None:
    batch = batch_of(toys(10, (2,), (2,), (0, 1), 9))
    colours = refine(batch, 2)
    rows = list(zip(*(part.tolist() for part in distinct_trees(colours, batch.owners.numpy())), strict=True))
    pairs = list(zip(batch.owners.tolist(), colours.levels[-1].tolist(), strict=True))
    assert rows == [(*pair, pairs.count(pair)) for pair in sorted(set(pairs))]


def test_ranks() -> None:
    assert rank(np.array([7, -3, 7, 100])).tolist() == [1, 0, 1, 2]
    ids = rank_rows(np.array([[2, 0], [0, 5], [2, 0], [0, 4]]))
    assert ids.tolist() == [2, 1, 2, 0]
    assert first_places(ids).tolist() == [3, 1, 0]
    assert rank_rows(np.empty((3, 0), np.int64)).tolist() == [0, 0, 0]
    assert rank_rows(np.empty((0, 2), np.int64)).tolist() == []
    assert first_places(np.empty(0, np.int64)).tolist() == []


# --- real data --------------------------------------------------------------------------------------------------------


def trees_of(batch: GraphBatch, depth: int, nodes: Ints) -> int:
    return len(set(refine(batch, depth).levels[-1][nodes].tolist()))


def test_molbace_has_the_published_numbers_of_trees(real_graphs: Callable[[str], GraphData]) -> None:
    """Those that the authors' C++ program finds in each class, once its sort is mended."""
    data = real_graphs("ogbg-molbace")
    label = data.labels[data.graphs.owners].numpy()
    assert [trees_of(data.graphs, 3, label == one) for one in (0, 1)] == [5892, 3592]


@pytest.mark.parametrize(("name", "count"), [("nci1", 3666), ("imdb-binary", 3008)])
def test_tu_sets_have_the_published_numbers_of_trees(
    real_graphs: Callable[[str], GraphData], name: str, count: int
) -> None:
    """Those that the authors' Python scripts find in the same training split, where nodes alone are no trees."""
    graphs = real_graphs(name).graphs
    assert trees_of(graphs, 2, graphs.degrees.numpy() > 0) == count


def test_training_splits_have_our_numbers_of_trees(real_graphs: Callable[[str], GraphData]) -> None:
    """Ours, of training splits alone; they stand here so that a change is seen."""
    counts = {
        name: [len(firsts) for firsts in refine(real_graphs(name).graphs, depth).firsts]
        for name, depth in (("nci1", 2), ("ogbg-molbace", 3), ("imdb-binary", 2))
    }
    assert counts == {
        "nci1": [35, 274, 3689],
        "ogbg-molbace": [69, 1138, 4258, 8015],
        "imdb-binary": [61, 2495, 3008],
    }


@pytest.mark.parametrize(
    ("name", "edges", "expected"),
    [
        ("mutag", False, [7, 33, 174, 572]),
        ("mutag", True, [7, 64, 277, 796]),
        ("nci1", False, [37, 292, 4058, 22948]),
        ("imdb-binary", False, [65, 2931, 3595]),
        pytest.param("dd", False, [82, 253149, 333017], marks=pytest.mark.slow),
    ],
)
def test_whole_data_sets_have_the_published_numbers_of_trees(
    real_graphs: Callable[[str], GraphData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, edges: bool,
    expected: list[int],
) -> None:  # fmt: skip
    real_graphs(name)  # skips, or fails where the data are promised
    monkeypatch.setenv("DDBENCH_DATA", REAL_DATA or "")
    parts = [rows.graphs for rows in read_graphs(name, SPLITS, tmp_path)]
    shifts = np.cumsum([0, *(len(part.nodes) for part in parts)]).tolist()
    labels = torch.cat([part.edges for part in parts])
    whole = GraphBatch(
        torch.cat([part.nodes for part in parts]),
        torch.cat([part.arcs + shift for part, shift in zip(parts, shifts, strict=False)], dim=1),
        labels if edges else labels[:, :0],
        torch.cat([torch.tensor([0]), *(part.starts[1:] + shift for part, shift in zip(parts, shifts, strict=False))]),
    )
    assert [len(firsts) for firsts in refine(whole, len(expected) - 1).firsts] == expected
