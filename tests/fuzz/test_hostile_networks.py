"""Hostile networks, checkpoints, reports of runs, and label books."""

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd_bench.checkpoint import load_tree, peek_tree, save_tree
from dd_bench.files import home
from dd_bench.housekeeping import survey
from dd_bench.models import build
from dd_bench.networks import load_network, network_folder, save_network
from dd_bench.runs import list_runs
from dd_bench.seeding import seeded
from tests.fuzz.mutations import altered, as_json, fuzzed, hostile, mangled
from tests.fuzz.watching import attempt
from tests.test_networks import ARCHITECTURE, SPEC, facts

TREE = {
    "label": "students", "step": 3, "total": 9, "seconds": 1.5, "state": {
        "w": torch.arange(6.0).view(2, 3), "steps": [torch.tensor(3), None, True, "x"], 7: {"empty": torch.ones(0)}
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDBENCH_HOME", str(tmp_path_factory.mktemp("home")))
        with seeded(3):
            save_network(build(ARCHITECTURE, SPEC), facts())
        return {path.name: path.read_bytes() for path in network_folder("net-1").iterdir()}


@fuzzed(150)
@given(data=st.data())
def test_networks(data: st.DataObject, network: dict[str, bytes], tmp_path: Path) -> None:
    manifest, weights = json.loads(network["manifest.json"]), network["weights.safetensors"]
    size = 8 + int.from_bytes(weights[:8], "little")
    if data.draw(st.booleans()):
        weights = data.draw(mangled([weights], head=size))
        manifest["weights_sha256"] = hashlib.sha256(weights).hexdigest()
    else:
        manifest = data.draw(altered(manifest))
    folder = network_folder("net-1")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_bytes(as_json(manifest))
    (folder / "weights.safetensors").write_bytes(weights)
    found = attempt(lambda: load_network("net-1", SPEC), within=tmp_path)
    if found is not None:
        assert found[0](torch.zeros(1, *SPEC.image_shape)).shape == (1, 4)


def _with_right_checksum(raw: bytes) -> bytes:
    """Returns a checkpoint whose checksum is that of what it says, where it says anything."""
    try:
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        tree = header["__metadata__"]["tree"]
        crc = zlib.crc32(tree.encode())
        for name in sorted(set(header) - {"__metadata__"}):
            begin, end = header[name]["data_offsets"]
            crc = zlib.crc32(raw[8 + size + begin : 8 + size + end], crc)
        header["__metadata__"]["crc32"] = f"{crc:08x}"
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + raw[8 + size :]
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        return raw


@st.composite
def checkpoints(draw: st.DrawFn, original: bytes) -> bytes:
    size = int.from_bytes(original[:8], "little")
    if draw(st.booleans()):
        return _with_right_checksum(draw(mangled([original], head=8 + size)))
    header = json.loads(original[8 : 8 + size])
    if draw(st.booleans()):
        tree = draw(altered(json.loads(header["__metadata__"]["tree"])))
        header["__metadata__"]["tree"] = json.dumps(tree)
    else:
        header = draw(altered(header))
    text = json.dumps(header).encode()
    return _with_right_checksum(struct.pack("<Q", len(text)) + text + original[8 + size :])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("checkpoint") / "tree"
    save_tree(path, TREE)
    return path.read_bytes()


@fuzzed(250)
@given(data=st.data())
def test_checkpoints(data: st.DataObject, checkpoint: bytes, tmp_path: Path) -> None:
    """They come back as trees of tensors and plain values, or are refused; ``list runs`` and ``clean`` go on."""
    folder = home() / "runs" / "some-run"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "students.safetensors"
    path.write_bytes(data.draw(checkpoints(checkpoint)))
    for read in (load_tree, peek_tree):
        attempt(lambda read=read: read(path), within=tmp_path)
    (status,) = attempt(list_runs, within=tmp_path) or ()
    assert len(status.stages) + len(status.damaged) == 1
    for stage in status.stages:
        assert stage.label.isprintable()
    attempt(lambda: survey(0, frozenset()), within=tmp_path)


@fuzzed(60)
@given(tree=st.recursive(hostile, lambda node: st.lists(node, max_size=3) | st.dictionaries(st.text(max_size=3), node)))
def test_any_tree_comes_back_or_is_refused(tree: Any, tmp_path: Path) -> None:
    try:
        save_tree(tmp_path / "tree", {"tree": tree})
    except (ValueError, TypeError):  # NaN, lone surrogates: a bug of ours that shows where it is made
        return
    found = attempt(lambda: load_tree(tmp_path / "tree"), within=tmp_path)
    assert found == {"tree": tree}
