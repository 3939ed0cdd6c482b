"""How prepared graphs lie in their file, and what must hold of them before they lie there and whenever they are read.

Letters in shapes: G graphs, N nodes, M arcs, F node label columns, E edge label columns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.errors import DataError
from dd_bench.graphs import GraphBatch

SPLITS = ("train", "validation", "test")  # numbered so in ``split``

_TYPES = {
    "nodes": torch.uint8,  # (N, F)
    "arcs": torch.int16,  # (2, M), counted from the first node of their graph
    "edges": torch.uint8,  # (M, E)
    "sizes": torch.int32,  # (G,), nodes
    "arc_counts": torch.int32,  # (G,)
    "labels": torch.int64,  # (G,)
    "split": torch.uint8,  # (G,)
}


def pack(graphs: GraphBatch, labels: Tensor, split: Tensor, place: object) -> dict[str, Tensor]:
    """Returns the tensors of a prepared file.

    Args:
        graphs: all graphs of all splits, checked.
        labels: (G,) int64.
        split: (G,), 0 for training, 1 for validation, 2 for test.
        place: where they come from, for messages.

    Raises:
        DataError: if a graph has more nodes than the file can number.
    """
    most = torch.iinfo(_TYPES["arcs"]).max + 1
    if int(graphs.sizes.max()) > most:
        raise DataError(
            f"{place}: graph {int(graphs.sizes.argmax())} (counted from 0) has {int(graphs.sizes.max()):,} nodes; "
            f"expected at most {most:,}: remove it"
        )
    local = graphs.arcs - graphs.starts[graphs.owners[graphs.arcs[1]]]
    tensors = {"nodes": graphs.nodes, "arcs": local, "edges": graphs.edges, "sizes": graphs.sizes,
               "arc_counts": graphs.arc_counts, "labels": labels, "split": split}  # fmt: skip
    return {key: tensor.to(_TYPES[key]).contiguous() for key, tensor in tensors.items()}


def unpack(tensors: Mapping[str, Tensor], spec: GraphSpec, place: object, remedy: str) -> GraphBatch:
    """Returns all graphs of a prepared file, after a check of types, shapes and counts.

    Raises:
        DataError: for a missing tensor, a wrong type or shape, counts that do not add up, or an arc out of its graph.
    """

    def shape(key: str, *expected: int | None) -> None:
        found = tensors[key]
        fits = len(expected) == found.dim() and all(
            e in (None, n) for e, n in zip(expected, found.shape, strict=True)
        )  # fmt: skip
        if found.dtype != _TYPES[key] or not fits:
            kind = str(_TYPES[key]).removeprefix("torch.")
            sizes = ", ".join("any" if e is None else str(e) for e in expected)
            raise DataError(
                f"{place}: {key} is {str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}; "
                f"expected {kind} of shape ({sizes}): {remedy}"
            )

    for key in _TYPES:
        if key not in tensors:
            raise DataError(f"{place} holds {', '.join(sorted(tensors)) or 'nothing'}; expected {key} too: {remedy}")
    shape("sizes", None)
    count = len(tensors["sizes"])
    for key in ("arc_counts", "labels", "split"):
        shape(key, count)
    sizes, arc_counts = tensors["sizes"].long(), tensors["arc_counts"].long()
    if count == 0 or int(sizes.min()) < 1 or int(arc_counts.min()) < 0:
        raise DataError(f"{place} has no graphs, or one without nodes; expected at least one node a graph: {remedy}")
    shape("nodes", int(sizes.sum()), len(spec.node_columns))
    shape("arcs", 2, int(arc_counts.sum()))
    shape("edges", int(arc_counts.sum()), len(spec.edge_columns))
    local, graph = tensors["arcs"].long(), torch.arange(count).repeat_interleave(arc_counts)
    outside = ((local < 0) | (local >= sizes[graph])).nonzero()
    if len(outside):
        end, arc = outside[0].tolist()
        raise DataError(
            f"{place}: an arc of graph {int(graph[arc])} (counted from 0) has node {int(local[end, arc])} at an end; "
            f"expected 0 to {int(sizes[graph[arc]]) - 1}: {remedy}"
        )
    starts = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    return GraphBatch(tensors["nodes"].long(), local + starts[graph], tensors["edges"].long(), starts)


def check(graphs: GraphBatch, labels: Tensor, split: Tensor, spec: GraphSpec, place: object, remedy: str) -> None:
    """Verifies all that a ``GraphBatch`` and a split promise, and that labels are the ones of ``spec``.

    Graphs and nodes in messages are counted from 0, nodes within their graph.

    Raises:
        DataError: for what is wrong first.
    """
    owners = {"a node": graphs.owners, "an arc": graphs.owners[graphs.arcs[1]]}
    for what, values, columns in (
        ("a node", graphs.nodes, spec.node_columns),
        ("an arc", graphs.edges, spec.edge_columns),
    ):
        outside = ((values < 0) | (values >= torch.tensor(columns, dtype=torch.int64))).nonzero()
        if len(outside):
            row, column = outside[0].tolist()
            raise DataError(
                f"{place}: {what} of graph {int(owners[what][row])} (counted from 0) has category "
                f"{int(values[row, column])} in label column {column}; expected 0 to {columns[column] - 1}: {remedy}"
            )
    _check_arcs(graphs, place, remedy)
    for what, values, end in (("label", labels, spec.num_classes), ("split", split, len(SPLITS))):
        wrong = ((values < 0) | (values >= end)).nonzero()
        if len(wrong):
            graph = int(wrong[0])
            raise DataError(
                f"{place}: graph {graph} (counted from 0) has {what} {int(values[graph])}; expected 0 to {end - 1}: "
                f"{remedy}"
            )
    for number, name in enumerate(SPLITS):
        counts = torch.bincount(labels[split == number], minlength=spec.num_classes)
        if int(counts.min()) == 0:
            absent = int(counts.argmin())
            raise DataError(
                f"{place}: class {absent} ({spec.class_names[absent]}) has no graphs in the {name} split; expected at "
                f"least one: {remedy}"
            )


def _check_arcs(graphs: GraphBatch, place: object, remedy: str) -> None:
    """Verifies that arcs are sorted, once each, no loops, and that each has its reverse with the same labels."""
    (source, target), count = graphs.arcs, graphs.nodes.shape[0]
    key, reverse = target * count + source, source * count + target
    if bool((key.diff() <= 0).any()) or bool((source == target).any()):
        raise DataError(
            f"{place}: arcs are unsorted, or one is a loop or stands twice; expected each once, ascending by target "
            f"and then source: {remedy}"
        )
    if len(key) == 0:
        return
    partner = torch.searchsorted(key, reverse).clamp_(max=len(key) - 1)
    alone = key[partner] != reverse
    unlike = (graphs.edges[partner] != graphs.edges).any(1)
    for wrong, complaint in ((alone, "no reverse"), (unlike, "other labels than its reverse")):
        if bool(wrong.any()):
            arc = int(wrong.nonzero()[0])
            graph = int(graphs.owners[target[arc]])
            start = int(graphs.starts[graph])
            raise DataError(
                f"{place}: the arc from node {int(source[arc]) - start} to node {int(target[arc]) - start} of graph "
                f"{graph} (counted from 0) has {complaint}; expected undirected edges, each as two arcs: {remedy}"
            )
