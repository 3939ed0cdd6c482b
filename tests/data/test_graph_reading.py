"""Prepared graph sets: what is read is what was made, and nothing unsound is read."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dd_bench.data import images
from dd_bench.data.catalogue import all_specs, describe, load_training
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import load
from dd_bench.data.holdout import GraphTestSplit, TestSplit, open_test
from dd_bench.data.images import ImageData
from dd_bench.data.prepare import find
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, DataError, UnknownNameError
from tests.data.graph_files import mutag, write_tu


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared file of 60 toys as ``mutag`` under ``tmp_path``."""
    write_tu(tmp_path, "MUTAG", mutag())
    return find("mutag", tmp_path)


def test_shapes(prepared: Path, tmp_path: Path) -> None:
    data = load("mutag", tmp_path)
    assert data.spec == GRAPH_SPECS["mutag"]
    assert (len(data), len(data.graphs), len(data.validation), len(data.validation_labels)) == (48, 48, 6, 6)
    for batch in (data.graphs, data.validation):
        count, arcs = batch.nodes.shape[0], batch.arcs.shape[1]
        assert batch.nodes.shape == (count, 1)
        assert batch.edges.shape == (arcs, 1)
        assert int(batch.starts[-1]) == count
        assert {part.dtype for part in (batch.nodes, batch.arcs, batch.edges, batch.starts)} == {torch.int64}
    assert data.labels.dtype == data.validation_labels.dtype == torch.int64


def test_holds_the_training_and_validation_splits_alone(prepared: Path, tmp_path: Path) -> None:
    data, sizes = load("mutag", tmp_path), load_file(prepared)["sizes"]
    split = load_file(prepared)["split"]
    assert data.graphs.sizes.tolist() == sizes[split == 0].tolist()
    assert data.validation.sizes.tolist() == sizes[split == 1].tolist()
    held = sum(part.untyped_storage().nbytes() for b in (data.graphs, data.validation) for part in (b.nodes, b.starts))
    assert held == 8 * (int(sizes[split < 2].sum()) + 48 + 6 + 2)


def test_fingerprint_is_that_of_the_content(prepared: Path, tmp_path: Path) -> None:
    tensors = load_file(prepared)
    digest = hashlib.sha256(b"".join(tensors[key].numpy().tobytes() for key in sorted(tensors))).hexdigest()
    assert load("mutag", tmp_path).fingerprint == GraphTestSplit.open("mutag", tmp_path).fingerprint == digest
    where = int((tensors["split"] == 2).nonzero()[0])
    node = int(tensors["sizes"][:where].sum())
    tensors["nodes"][node] = (tensors["nodes"][node] + 1) % 7  # one node of one test graph
    save_file(tensors, prepared)
    assert load("mutag", tmp_path).fingerprint != digest


def test_small_files(prepared: Path) -> None:
    tensors = load_file(prepared)
    arcs, nodes = tensors["arcs"].shape[1], len(tensors["nodes"])
    assert prepared.stat().st_size < 5 * arcs + nodes + 60 * 17 + 1000


Change = Callable[[dict[str, Tensor]], object]


def put(key: str, where: tuple[int, ...], value: int) -> Change:
    return lambda tensors: tensors[key].__setitem__(where, value)


def swap_arcs(tensors: dict[str, Tensor]) -> None:
    for key in ("arcs", "edges"):
        part = tensors[key].T if key == "edges" else tensors[key]
        part[:, [0, 1]] = part[:, [1, 0]].clone()


def one_way(tensors: dict[str, Tensor]) -> None:
    tensors["arcs"], tensors["edges"] = tensors["arcs"][:, 1:].contiguous(), tensors["edges"][1:]
    tensors["arc_counts"][0] -= 1


def double_first_arc(tensors: dict[str, Tensor]) -> None:
    tensors["arcs"] = torch.cat([tensors["arcs"][:, :1], tensors["arcs"]], 1)
    tensors["edges"] = torch.cat([tensors["edges"][:1], tensors["edges"]])
    tensors["arc_counts"][0] += 1


BAD: dict[str, tuple[Change, str]] = {
    "missing": (lambda t: t.pop("split"), "holds arc_counts, arcs, edges, labels, nodes, sizes; expected split too"),
    "type": (lambda t: t.update(nodes=t["nodes"].int()), r"nodes is int32 of shape .*; expected uint8 of shape"),
    "columns": (lambda t: t.update(nodes=t["nodes"].repeat(1, 2)), r"nodes is uint8 of shape \(\d+, 2\); expected"),
    "dimensions": (lambda t: t.update(sizes=t["sizes"][:, None]), r"sizes is .* expected int32 of shape \(any\)"),
    "labels": (lambda t: t.update(labels=t["labels"][1:]), r"labels is int64 of shape \(59,\); expected .* \(60\)"),
    "sum": (put("sizes", (3,), 99), r"nodes is uint8 of shape .*; expected uint8 of shape \(\d+, 1\)"),
    "arc sum": (put("arc_counts", (0,), 9), r"arcs is int16 of shape .*; expected int16 of shape \(2, \d+\)"),
    "empty graph": (put("sizes", (3,), 0), "no graphs, or one without nodes; expected at least one node a graph"),
    "no graph": (
        lambda t: t.update({key: t[key][:0] for key in ("sizes", "arc_counts", "labels", "split")}),
        "has no graphs",
    ),
    "node range": (put("nodes", (0, 0), 7), r"a node of graph 0 .* category 7 in label column 0; expected 0 to 6"),
    "edge range": (put("edges", (2, 0), 4), r"an arc of graph 0 .* category 4 in label column 0; expected 0 to 3"),
    "arc range": (put("arcs", (0, 0), 7), r"an arc of graph 0 .* has node 7 at an end; expected 0 to 6"),
    "arc sign": (put("arcs", (1, 0), -1), r"an arc of graph 0 .* has node -1 at an end; expected 0 to 6"),
    "loop": (put("arcs", (0, 0), 0), "arcs are unsorted, or one is a loop or stands twice; expected each once"),
    "unsorted": (swap_arcs, "arcs are unsorted"),
    "twice": (double_first_arc, "arcs are unsorted, or one is a loop or stands twice"),
    "directed": (one_way, r"the arc from node 0 to node 1 of graph 0 .* has no reverse; expected undirected edges"),
    "unlike": (put("edges", (0, 0), 3), r"arc from node 1 to node 0 of graph 0 .* has other labels than its rev"),
    "label": (put("labels", (5,), 2), r"graph 5 \(counted from 0\) has label 2; expected 0 to 1"),
    "split": (put("split", (5,), 3), r"graph 5 \(counted from 0\) has split 3; expected 0 to 2"),
    "no test": (lambda t: t["split"].clamp_(max=1), r"class 0 \(not mutagenic\) has no graphs in the test split"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BAD)
def test_rejects_unsound_files(fault: str, prepared: Path, tmp_path: Path) -> None:
    change, message = BAD[fault]
    tensors = {key: tensor.clone() for key, tensor in load_file(prepared).items()}
    change(tensors)
    save_file(tensors, prepared)
    for read in (load, GraphTestSplit.open):
        with pytest.raises(DataError, match=message) as caught:
            read("mutag", tmp_path)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("replace the file, or delete it to have it made again")


def test_rejects_torn_files(prepared: Path, tmp_path: Path) -> None:
    prepared.write_bytes(prepared.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"cannot be read .* expected a whole safetensors file: replace the file"):
        load("mutag", tmp_path)


def test_one_door_for_images_and_graphs(prepared: Path, tmp_path: Path) -> None:
    assert load_training("mutag", tmp_path).fingerprint == load("mutag", tmp_path).fingerprint
    digits = load_training("digits@20", tmp_path)
    assert isinstance(digits, ImageData)
    assert digits.spec.name == "digits@20"
    assert isinstance(open_test("mutag", tmp_path), GraphTestSplit)
    assert isinstance(open_test("digits@20/5", tmp_path), TestSplit)
    assert len(all_specs()) == len(SPECS) + len(GRAPH_SPECS)


def test_rejects_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mutag holds graphs; expected a data set of images: choose one of digits,"):
        images.load("mutag", tmp_path)
    with pytest.raises(ConfigError, match=r"digits@5 holds images; expected a data set of graphs: .* mutag"):
        load("digits@5", tmp_path)
    for text in ("mutag@5", "mutag@", "digits-graph@20/5"):
        with pytest.raises(
            ConfigError, match=r"^data set '.*' asks for a part of .*; expected graphs to be taken whole"
        ):
            load_training(text, tmp_path)
    with pytest.raises(UnknownNameError, match=r"did you mean 'mutag'\?.* cifar10, .* nci1"):
        load_training("mutagg", tmp_path)


def test_shapes_in_words() -> None:
    words = {name: describe(spec) for name, spec in all_specs().items()}
    assert words["cifar10"] == "3×32×32"
    assert words["nci1"] == "graphs, 37 node labels"
    assert words["mutag"] == "graphs, 7 node and 4 edge labels"
    assert words["ogbg-molhiv"] == "graphs, 9 node and 3 edge label columns"


def test_the_door_knows_nothing_of_the_test_split() -> None:
    code = "import sys, dd_bench.data.catalogue; print(*(name for name in sys.modules))"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ}, cwd=os.curdir
    )
    loaded = found.stdout.split()
    assert "dd_bench.data.graphs" in loaded
    assert not {"dd_bench.data.holdout", "torch_geometric", "sklearn", "torchvision"} & set(loaded)
