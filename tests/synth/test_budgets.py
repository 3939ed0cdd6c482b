"""Sizes of graph sets: what an average graph costs, and where on a board a set of so many bytes stands."""

from dataclasses import replace

import pytest
import torch

from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.errors import ConfigError
from synth.parts.budgets import bytes_per_ipc, members_of, nearest_ipc
from tests.data.graph_files import Toy
from tests.references.trees import batch_of


def test_members() -> None:
    found = members_of(torch.tensor([2, 0, 2, 1, 0]), 4)
    assert [own.tolist() for own in found] == [[1, 4], [3], [0, 2], []]


def test_bytes_by_hand(motifs: GraphData) -> None:
    """A node takes a byte a label column, an edge two and its labels, a graph two counts."""
    toys = [
        Toy([(0, 1)], {}, 0),
        Toy([(0, 1)] * 3, {(0, 1): (0,), (1, 2): (1,)}, 0),
        Toy([(2, 1)] * 2, {(0, 1): (1,)}, 1),
        Toy([(0, 0)] * 4, {}, 2),
    ]
    labels = torch.tensor([toy.label for toy in toys])
    data = replace(motifs, graphs=batch_of(toys), labels=labels)
    nodes_of = {0: (1 + 3) * 2, 1: 2 * 2, 2: 4 * 2}
    links_of = {0: 2 * 3, 1: 3, 2: 0}
    expected = (nodes_of[0] + links_of[0] + 2 * 2) / 2 + (nodes_of[1] + links_of[1] + 2) + (nodes_of[2] + 2)
    assert bytes_per_ipc(data) == expected == 28


@pytest.mark.parametrize("ipc", [1, 2, 7, 50])
def test_nearest_ipc(motifs: GraphData, ipc: int) -> None:
    one = bytes_per_ipc(motifs)
    assert nearest_ipc(motifs, round(ipc * one)) == ipc
    assert nearest_ipc(motifs, round((ipc + 0.4) * one)) == ipc
    assert nearest_ipc(motifs, round((ipc - 0.4) * one)) == ipc
    assert nearest_ipc(motifs, 1) == 1


def test_images_have_no_byte_budget(blobs: ImageData) -> None:
    with pytest.raises(ConfigError, match=r"blobs holds images, whose methods have no byte budget; give .* --ipc"):
        nearest_ipc(blobs, 100)
