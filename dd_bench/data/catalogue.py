"""All data sets, of images and of graphs: what there is, and the training split of either."""

from pathlib import Path

from dd_bench.data import graphs, images
from dd_bench.data.external import external_names, load_external
from dd_bench.data.graph_specs import GRAPH_SPECS, GraphSpec
from dd_bench.data.graphs import GraphData
from dd_bench.data.image_folder import read_spec
from dd_bench.data.images import ImageData
from dd_bench.data.names import parse_name
from dd_bench.data.prepare import prepared_folders
from dd_bench.data.specs import SPECS, DatasetSpec
from dd_bench.errors import ConfigError, DataError, DDBenchError


def all_specs() -> dict[str, DatasetSpec | GraphSpec]:
    """Returns every data set of ours by base name, images first."""
    return {**SPECS, **GRAPH_SPECS}


def other_specs(data_dir: Path | None = None) -> dict[str, DatasetSpec | DDBenchError]:
    """Returns the data sets of other packages and the image folders that are prepared, or why one cannot be used."""
    found: dict[str, DatasetSpec | DDBenchError] = {}
    for name in external_names():
        try:
            found[name] = load_external(name).spec
        except ConfigError as error:
            found[name] = error
    for name, path in prepared_folders(data_dir).items():
        try:
            found[name] = read_spec(name, path)
        except DataError as error:
            found[name] = error
    return found


def load_training(name: str, data_dir: Path | None = None) -> ImageData | GraphData:
    """Returns what may be learnt from in ``name``, see ``images.load`` and ``graphs.load``.

    Raises:
        UnknownNameError, ConfigError: if ``name`` names no data set, or a subset that cannot be.
        DataError: if the data is absent and cannot be made, or is malformed.
    """
    if parse_name(name).base in GRAPH_SPECS:
        return graphs.load(name, data_dir)
    return images.load(name, data_dir)


def describe(spec: DatasetSpec | GraphSpec) -> str:
    """Returns the shape of one example in a few words: ``3×32×32``, or ``graphs, 7 node and 4 edge labels``."""
    if isinstance(spec, DatasetSpec):
        return "×".join(map(str, spec.image_shape))
    nodes, edges = spec.node_columns, spec.edge_columns
    if len(nodes) == 1 and len(edges) <= 1:
        return f"graphs, {nodes[0]} node" + (f" and {edges[0]} edge" if edges else "") + " labels"
    return f"graphs, {len(nodes)} node and {len(edges)} edge label columns"
