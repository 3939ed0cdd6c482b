"""Sizes of graph sets: how many bytes so many graphs a class take, and the other way round."""

import numpy as np
import torch
from numpy.typing import NDArray

from dd_bench.codec import payload_bytes
from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.errors import ConfigError
from dd_bench.graph_sets import Graphs


def members_of(labels: torch.Tensor, num_classes: int) -> list[NDArray[np.int64]]:
    """Returns the indices of the instances of each class, ascending."""
    return [np.flatnonzero(labels.numpy() == label) for label in range(num_classes)]


def bytes_per_ipc(data: GraphData) -> float:
    """Returns the bytes on disk, without container, of one average training graph of each class."""
    parts = [data.graphs.pick(torch.from_numpy(own)) for own in members_of(data.labels, data.spec.num_classes)]
    return sum(payload_bytes(Graphs.of(part)) / len(part) for part in parts)


def nearest_ipc(data: ImageData | GraphData, budget: int) -> int:
    """Returns how many average graphs of each class take ``budget`` bytes, at least 1: where boards show such a set.

    Raises:
        ConfigError: for images.
    """
    if isinstance(data, ImageData):
        raise ConfigError(f"{data.spec.name} holds images, whose methods have no byte budget; give the size with --ipc")
    return max(1, round(budget / bytes_per_ipc(data)))
