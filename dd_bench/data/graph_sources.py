"""Graph sets from their raw form: scikit-learn's digits, TU's text files, OGB's tables; and how each is split.

Graphs and nodes keep the order of the raw files, and isolated nodes are kept. Arcs that stand twice are merged, which
sums no labels, and self-loops are dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import Tensor

from dd_bench.data.digits import read_digits
from dd_bench.data.graph_layout import check, pack
from dd_bench.data.graph_raw import REMEDY, RawSource, Table, find_raw, read_table, require_ends, require_lines
from dd_bench.data.graph_specs import GRAPH_SPECS, GraphSpec
from dd_bench.errors import DataError
from dd_bench.graphs import GraphBatch

_TU_URL = "https://www.chrsmrrs.com/graphkerneldatasets/{}.zip"  # as in PyTorch Geometric
_OGB_URL = "http://snap.stanford.edu/ogb/data/graphproppred/csv_mol_download/{}.zip"  # as in OGB's master table
_DARK = 9  # of 16 grey levels


@dataclass(frozen=True, eq=False)
class RawGraphs:
    """All graphs of a data set as they were found, for ``_finished``.

    Attributes:
        place: where they were found, for messages.
        nodes: (N, F), categories.
        arcs: (2, M), source and target among all nodes; in any order, perhaps repeated, loops allowed.
        edges: (M, E), categories.
        sizes: (G,), nodes of each graph.
        labels: (G,), classes.
        split: (G,), 0 for training, 1 for validation, 2 for test.
    """

    place: object
    nodes: Table
    arcs: Table
    edges: Table
    sizes: Table
    labels: Table
    split: Table


def make_graphs(name: str, folders: Sequence[Path]) -> dict[str, Tensor]:
    """Returns the tensors of the prepared file of ``name``, see ``graph_layout``.

    Args:
        name: key in ``GRAPH_SPECS``.
        folders: data folders that may hold raw files, first to last; a download goes to the first.

    Raises:
        DataError: if the raw files are nowhere and cannot be downloaded, or are malformed.
        OSError: if the first folder cannot be written.
    """
    return _finished(_SOURCES[name](GRAPH_SPECS[name], folders), GRAPH_SPECS[name])


def _finished(raw: RawGraphs, spec: GraphSpec) -> dict[str, Tensor]:
    """Returns the prepared file's tensors, with the arcs made what ``GraphBatch`` promises and everything checked."""
    with catch_warnings():
        simplefilter("ignore", FutureWarning)  # torch's, about how PyTorch Geometric compiles
        from torch_geometric.utils import coalesce, remove_self_loops  # here, because the import takes seconds

    parts = (raw.nodes, raw.arcs, raw.edges, raw.sizes, raw.labels, raw.split)
    nodes, arcs, edges, sizes, labels, split = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
    count = len(nodes)
    arcs, edges = remove_self_loops(arcs, edges)
    merged, least = coalesce(arcs, edges, count, reduce="min", sort_by_row=False)
    _, greatest = coalesce(arcs, edges, count, reduce="max", sort_by_row=False)
    unlike = (least != greatest).any(1).nonzero()
    if len(unlike):
        source, target = merged[:, int(unlike[0])].tolist()
        raise DataError(
            f"{raw.place}: the arc from node {source} to node {target} (counted from 0 through all graphs) stands "
            f"there twice with different labels; expected one label: {REMEDY}"
        )
    if nodes.shape[1] == 0:  # a set without node labels gets degrees, of merged arcs
        nodes = torch.bincount(merged[1], minlength=count)[:, None]
    graphs = GraphBatch(nodes, merged, least, torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]))
    check(graphs, labels, split, spec, raw.place, REMEDY)
    return pack(graphs, labels, split, raw.place)


def _digits(_spec: GraphSpec, _folders: Sequence[Path]) -> RawGraphs:
    """Returns digits as graphs: nodes are pixels with ink, faint or dark, edges join neighbours across and down.

    Blank pixels are left out and no node knows its place, so that what is left is the shape of a stroke. Logistic
    regression on Weisfeiler-Lehman counts after 2 rounds gets 83 % of the test images right (74 % without edge labels),
    on the number of nodes 21 %. The test images are those of ``digits``; of the others every tenth of each class, in
    order, is for validation.
    """
    grey, labels, test = (np.asarray(part) for part in read_digits())
    ink = grey > 0  # (G, 8, 8)
    number = np.full(ink.shape, -1)
    number[ink] = np.arange(ink.sum())
    arcs, edges = [], []
    across, down = (number[:, :, :-1], number[:, :, 1:]), (number[:, :-1], number[:, 1:])
    for direction, (one, other) in enumerate((across, down)):
        joined = (one >= 0) & (other >= 0)
        pair = np.stack([one[joined], other[joined]])
        arcs += [pair, pair[::-1]]
        edges += [np.full((pair.shape[1], 1), direction)] * 2
    split = np.where(test, 2, 0)
    for k in range(10):
        split[np.flatnonzero((labels == k) & ~test)[9::10]] = 1
    nodes = (grey[ink] >= _DARK).astype(np.int64)[:, None]
    return RawGraphs("digits", nodes, np.concatenate(arcs, 1), np.concatenate(edges), ink.sum((1, 2)), labels, split)


def _tu(folder: str, split: Callable[[int], Table], spec: GraphSpec, folders: Sequence[Path]) -> RawGraphs:
    """Returns a set of the TU collection.

    PyTorch Geometric's reader gives the same numbers (a test compares), but drops a last line without a line feed,
    sums the labels of repeated arcs, and cannot say in which line of which file a fault is.
    """
    place = find_raw(RawSource(spec.name, folder, _TU_URL.format(folder)), folders)
    if (place / "raw").is_dir():  # so unpacked by PyTorch Geometric; the archive has no such folder
        place = place / "raw"

    def read(part: str, columns: int) -> Table:
        return read_table(place / f"{folder}_{part}.txt", columns)

    owners = read("graph_indicator", 1)[:, 0] - 1
    steps = np.diff(owners, prepend=-1)
    wrong = np.flatnonzero((steps < 0) | (steps > 1) | (owners < 0))
    if len(owners) == 0 or len(wrong):
        raise DataError(
            f"{place / f'{folder}_graph_indicator.txt'}: line {int(wrong[0]) + 1 if len(wrong) else 1} does not go on "
            f"from the graph before it; expected 1, 2, 3 … ascending, each in at least one line: {REMEDY}"
        )
    classes, labels = np.unique(read("graph_labels", 1)[:, 0], return_inverse=True)
    require_lines(place / f"{folder}_graph_labels.txt", len(labels), int(owners[-1]) + 1, "graph")
    if len(classes) != spec.num_classes:
        raise DataError(
            f"{place / f'{folder}_graph_labels.txt'} has {len(classes)} different labels "
            f"({', '.join(map(str, classes[:9]))}); expected {spec.num_classes}: {REMEDY}"
        )
    arcs = read("A", 2) - 1
    require_ends(place / f"{folder}_A.txt", arcs, 1, len(owners))
    between = np.flatnonzero(owners[arcs[:, 0]] != owners[arcs[:, 1]])
    if len(between):
        one, other = arcs[between[0]]
        raise DataError(
            f"{place / f'{folder}_A.txt'}: line {int(between[0]) + 1} joins node {one + 1} of graph {owners[one] + 1} "
            f"and node {other + 1} of graph {owners[other] + 1}; expected both in one graph: {REMEDY}"
        )
    nodes, edges = np.empty((len(owners), 0), np.int64), np.empty((len(arcs), 0), np.int64)
    if spec.name not in _DEGREES_AS_LABELS:
        nodes = read("node_labels", len(spec.node_columns))
        require_lines(place / f"{folder}_node_labels.txt", len(nodes), len(owners), "node")
        nodes = nodes - nodes.min(0)
    if spec.edge_columns:
        edges = read("edge_labels", len(spec.edge_columns))
        require_lines(place / f"{folder}_edge_labels.txt", len(edges), len(arcs), f"line of {folder}_A.txt")
        edges = edges - (edges.min(0) if len(edges) else 0)
    sizes = np.bincount(owners)
    return RawGraphs(place, nodes, arcs.T, edges, sizes, labels, split(len(sizes)))


def _ogb(short: str, spec: GraphSpec, folders: Sequence[Path]) -> RawGraphs:
    """Returns a molecule set of OGB with its scaffold split; each bond stands there once and becomes two arcs."""
    place = find_raw(RawSource(spec.name, f"ogbg_mol{short}", _OGB_URL.format(short)), folders)

    def read(part: str, columns: int) -> Table:
        return read_table(place / f"{part}.csv.gz", columns)

    sizes, bond_counts = read("raw/num-node-list", 1)[:, 0], read("raw/num-edge-list", 1)[:, 0]
    require_lines(place / "raw/num-edge-list.csv.gz", len(bond_counts), len(sizes), "graph")
    for counts, least, name in ((sizes, 1, "node"), (bond_counts, 0, "edge")):
        few = np.flatnonzero(counts < least)
        if len(few) or len(counts) == 0:
            found = f"line {int(few[0]) + 1} is {counts[few[0]]}" if len(few) else "no line"
            raise DataError(f"{place / f'raw/num-{name}-list.csv.gz'}: {found}; expected {least} or more: {REMEDY}")
    labels = read("raw/graph-label", 1)[:, 0]
    nodes, edges = read("raw/node-feat", len(spec.node_columns)), read("raw/edge-feat", len(spec.edge_columns))
    bonds = read("raw/edge", 2)
    require_lines(place / "raw/graph-label.csv.gz", len(labels), len(sizes), "graph")
    require_lines(place / "raw/node-feat.csv.gz", len(nodes), int(sizes.sum()), "node")
    for name, rows in (("edge", bonds), ("edge-feat", edges)):
        require_lines(place / f"raw/{name}.csv.gz", len(rows), int(bond_counts.sum()), "edge")
    graph = np.arange(len(sizes)).repeat(bond_counts)
    require_ends(place / "raw/edge.csv.gz", bonds, 0, sizes[graph])
    bonds = bonds + (sizes.cumsum() - sizes)[graph][:, None]
    parts = [read(f"split/scaffold/{name}", 1)[:, 0] for name in ("train", "valid", "test")]
    if not np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(sizes))):
        raise DataError(
            f"{place / 'split/scaffold'}: train, valid and test are {', '.join(str(len(part)) for part in parts)} "
            f"numbers; expected each from 0 to {len(sizes) - 1} once in all: {REMEDY}"
        )
    split = np.empty(len(sizes), np.int64)
    for number, part in enumerate(parts):
        split[part] = number
    arcs = np.concatenate([bonds, bonds[:, ::-1]]).T
    return RawGraphs(place, nodes, arcs, np.concatenate([edges, edges]), sizes, labels, split)


def _shuffled_tenths(count: int) -> Table:
    """Returns Mirage's split of TU sets: a shuffle as PyTorch Geometric's from seed 0, a tenth each held out."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).numpy()
    split = np.zeros(count, np.int64)
    tenth = ceil(count / 10)
    split[order[:tenth]], split[order[tenth : 2 * tenth]] = 2, 1
    return split


def _numpy_tenths(count: int) -> Table:
    """Returns Mirage's split of DD: numpy's permutation from seed 0, eight tenths for training, one for validation."""
    order = np.random.RandomState(0).permutation(count)
    split = np.full(count, 2)
    training, validation = int(0.8 * count), int(0.1 * count)
    split[order[:training]], split[order[training : training + validation]] = 0, 1
    return split


_DEGREES_AS_LABELS = {"imdb-binary"}

_SOURCES: dict[str, Callable[[GraphSpec, Sequence[Path]], RawGraphs]] = {
    "digits-graph": _digits,
    "mutag": partial(_tu, "MUTAG", _shuffled_tenths),
    "nci1": partial(_tu, "NCI1", _shuffled_tenths),
    "proteins": partial(_tu, "PROTEINS", _shuffled_tenths),
    "imdb-binary": partial(_tu, "IMDB-BINARY", _shuffled_tenths),
    "dd": partial(_tu, "DD", _numpy_tenths),
    "aids": partial(_tu, "AIDS", _shuffled_tenths),
    "ogbg-molbace": partial(_ogb, "bace"),
    "ogbg-molbbbp": partial(_ogb, "bbbp"),
    "ogbg-molhiv": partial(_ogb, "hiv"),
}
