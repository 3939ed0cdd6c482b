"""Graphs to learn from. The test split is in ``holdout``, which this module and all that it imports know nothing of."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dd_bench.data.graph_reading import read_graphs as _read_graphs
from dd_bench.data.graph_specs import GraphSpec
from dd_bench.graphs import GraphBatch


@dataclass(frozen=True, eq=False)
class GraphData:
    """The training and validation splits of a graph data set, and nothing that leads to the rest of it.

    Attributes:
        spec: facts of the data set.
        graphs: the training graphs, in the order of the full data set.
        labels: (G,) int64 in [0, K).
        validation: the validation graphs, likewise.
        validation_labels: (V,) int64 in [0, K).
        fingerprint: sha256 of the data set's content, all splits, hexadecimal.
    """

    spec: GraphSpec
    graphs: GraphBatch
    labels: Tensor
    validation: GraphBatch
    validation_labels: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return self.labels.shape[0]


def load(name: str, data_dir: Path | None = None) -> GraphData:
    """Returns the training and validation splits of ``name``; graph sets have no subsets.

    Args:
        name: key in ``GRAPH_SPECS``.
        data_dir: folder to look in before ``DDBENCH_DATA`` and ``~/.cache/ddbench``.

    Raises:
        UnknownNameError, ConfigError: if ``name`` names no data set of graphs.
        DataError: if the data is absent and cannot be made, or is malformed.
    """
    training, validation = _read_graphs(name, ("train", "validation"), data_dir)
    return GraphData(
        spec=training.spec,
        graphs=training.graphs,
        labels=training.labels,
        validation=validation.graphs,
        validation_labels=validation.labels,
        fingerprint=training.fingerprint,
    )
