"""Prepared graphs, checked and read; what ``graphs`` and ``holdout`` have in common."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dd_bench.data.graph_layout import SPLITS, check, unpack
from dd_bench.data.graph_specs import GRAPH_SPECS, GraphSpec
from dd_bench.data.names import parse_name
from dd_bench.data.prepare import find
from dd_bench.errors import ConfigError, DataError
from dd_bench.graphs import GraphBatch

_REMEDY = "replace the file, or delete it to have it made again"


@dataclass(frozen=True, eq=False)
class GraphRows:
    """One split.

    Attributes:
        spec: facts of the data set.
        graphs: G graphs of the split, in the order of the full data set.
        labels: (G,) int64 in [0, K).
        fingerprint: content hash of the data set, all splits of it.
    """

    spec: GraphSpec
    graphs: GraphBatch
    labels: Tensor
    fingerprint: str


def read_graphs(text: str, splits: Sequence[str], data_dir: Path | None = None) -> list[GraphRows]:
    """Returns the named ``SPLITS`` of the data set that ``text`` names; nothing of another split is kept.

    Raises:
        UnknownNameError, ConfigError: if ``text`` names no data set of graphs.
        DataError: if the data is absent or malformed.
    """
    base = parse_name(text).base
    if base not in GRAPH_SPECS:
        raise ConfigError(f"{text} holds images; expected a data set of graphs: choose one of {', '.join(GRAPH_SPECS)}")
    spec = GRAPH_SPECS[base]
    path = find(base, data_dir)
    try:
        with safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a whole safetensors file: {_REMEDY}") from error
    graphs = unpack(tensors, spec, path, _REMEDY)
    labels, split = tensors["labels"], tensors["split"].long()
    check(graphs, labels, split, spec, path, _REMEDY)
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].flatten().numpy().data)
    rows = []
    for name in splits:
        index = (split == SPLITS.index(name)).nonzero()[:, 0]
        rows.append(GraphRows(spec, graphs.pick(index), labels[index], digest.hexdigest()))
    return rows
