"""Hostile sets: manifests, tensors, whole folders and archives."""

import hashlib
import json
import pickle
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd_bench import codec
from dd_bench.archives import export_set, import_set
from dd_bench.manifest import CARD, MANIFEST, TENSORS
from dd_bench.sets import SyntheticSet, digest_json
from dd_bench.store import Store
from dd_bench.stored import StoredSet, open_set
from tests.fuzz.mutations import altered, as_json, fuzzed, mangled
from tests.fuzz.watching import attempt
from tests.test_store import PAYLOADS, TARGETS, contents, make

SORTS = [
    *((payload, target) for payload in ("float", "uint8", "int8", "half") for target in ("soft half", "taped")),
    ("uint8", "hard"), ("uint8", "features"), ("int8", "taped-top"), ("graphs", "hard"), ("trees", "hard"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[SyntheticSet, dict[str, bytes]]]:
    """One set of every sort, with the contents of its files."""
    store, found = Store(tmp_path_factory.mktemp("sets")), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
        for payload, targets in SORTS:
            count = {"graphs": 6, "trees": 6}.get(payload)
            assert count is None or targets == "hard"
            made = make(payload, targets, None if targets == "hard" else 0.05)
            stored = store.write(made, replace=True)
            found.append((made, {path.name: path.read_bytes() for path in stored.path.iterdir()}))
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sets")


def sealed(value: Any, tensors: bytes | None = None) -> bytes:
    """Returns a manifest whose digest is right, as a careful forger's; and the tensors' size and hash, if given."""
    if tensors is not None:
        entry = {"sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)}
        value = {**value, "files": {**value["files"], TENSORS: entry}}
    if isinstance(value, dict):
        value.pop("digest", None)
        try:
            value["digest"] = digest_json(value)
        except (ValueError, RecursionError, TypeError):  # what has no digest cannot be sealed
            value["digest"] = "0" * 64
    return as_json(value)


def used(store: Store, folder: Path) -> SyntheticSet | None:
    """Does with a set in the store what commands do."""
    store.list()
    synthetic = store.read(folder)
    for entry in store.list():
        if isinstance(entry, StoredSet) and entry.path == folder:
            assert store.find(entry.id).ledger
            assert entry.provenance.recipe
    return synthetic


def put(store: Store, made: SyntheticSet, files: dict[str, bytes]) -> Path:
    folder = store.folder(made.provenance)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@fuzzed(150)
@given(data=st.data())
def test_manifests(data: st.DataObject, store: Store, originals: Any, tmp_path: Path) -> None:
    made, files = originals[8]
    raw = data.draw(mangled([files[MANIFEST]]) | altered(json.loads(files[MANIFEST])).map(as_json))
    folder = put(store, made, files | {MANIFEST: raw})
    found = attempt(lambda: used(store, folder), within=tmp_path)
    if found is not None:
        assert contents(found) == contents(made)


@fuzzed(250)
@given(data=st.data())
def test_manifests_of_forgers(data: st.DataObject, store: Store, originals: Any, tmp_path: Path) -> None:
    """The digest is right, so that every field counts by itself."""
    made, files = data.draw(st.sampled_from(originals))
    raw = data.draw(altered(json.loads(files[MANIFEST])).map(sealed))
    folder = put(store, made, files | {MANIFEST: raw})
    found = attempt(lambda: used(store, folder), within=tmp_path)
    if found is not None:
        assert len(found) > 0
        attempt(lambda: export_set(store.find(str(folder)), tmp_path / "out.zip"), within=tmp_path)
        (tmp_path / "out.zip").unlink(missing_ok=True)


@fuzzed(400)
@given(data=st.data())
def test_tensors(data: st.DataObject, store: Store, originals: Any, tmp_path: Path) -> None:
    """With the right size and hash in the manifest."""
    made, files = data.draw(st.sampled_from(originals))
    size = 8 + int.from_bytes(files[TENSORS][:8], "little")
    raw = data.draw(mangled([files[TENSORS]], head=size) | mangled([files[TENSORS]]))
    if data.draw(st.booleans()) and len(raw) > 8:  # the header's length is right again, too
        at = raw.find(b"}}", 8)
        raw = (at + 2 - 8 if at > 0 else len(raw) - 8).to_bytes(8, "little") + raw[8:]
    folder = put(store, made, files | {TENSORS: raw, MANIFEST: sealed(json.loads(files[MANIFEST]), raw)})
    found = attempt(lambda: used(store, folder), within=tmp_path)
    if found is not None:
        for name, tensor in codec.stored_tensors(found).items():
            assert not tensor.is_floating_point() or tensor.float().isfinite().all(), name


def _torch_file() -> bytes:
    file = BytesIO()
    torch.save({"payload.pixels": torch.zeros(3)}, file)
    return file.getvalue()


def _numpy_file() -> bytes:
    file = BytesIO()
    np.savez(file, pixels=np.zeros(3))
    return file.getvalue()


FOREIGN = [pickle.dumps({"a": 1}), pickle.dumps(Store, protocol=0), _torch_file(), _numpy_file(),
           b"\x93NUMPY\x01\x00", b"", b"\0" * 4096, b"\xff" * 64, b"#!/bin/sh\n",
           b"PK\x05\x06" + b"\0" * 18, "{}".encode("utf-16")]  # fmt: skip


@fuzzed(100)
@given(content=st.sampled_from(FOREIGN) | mangled(FOREIGN), name=st.sampled_from([MANIFEST, TENSORS, CARD]))
def test_foreign_files(content: bytes, name: str, store: Store, originals: Any, tmp_path: Path) -> None:
    """Pickles, zip files and scripts in the place of each file, vouched for where that is possible."""
    made, files = originals[8]
    manifest = json.loads(files[MANIFEST])
    if name != MANIFEST:
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        folder = put(store, made, files | {name: content, MANIFEST: sealed(manifest)})
    else:
        folder = put(store, made, files | {name: content})
    found = attempt(lambda: used(store, folder), within=tmp_path)
    assert found is None or name == CARD, "only a picture may be anything"


@pytest.fixture(scope="module")
def archive(originals: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("archive")
    export_set(open_set(put(Store(folder / "sets"), *originals[8])), folder / "set.zip")
    return (folder / "set.zip").read_bytes()


@fuzzed(200)
@given(data=st.data())
def test_archives(data: st.DataObject, archive: bytes, originals: Any, tmp_path: Path) -> None:
    made, _ = originals[8]
    tail = mangled([archive[-400:]]).map(lambda end: archive[:-400] + end)  # where the list of members is
    raw = data.draw(mangled([archive]) | tail | mangled(FOREIGN))
    (tmp_path / "set.zip").write_bytes(raw)
    target = Store(tmp_path / "second")
    found = attempt(lambda: import_set(tmp_path / "set.zip", target), within=tmp_path)
    left = [path for path in (tmp_path / "second").rglob("*") if path.is_file()]
    if found is None:
        assert not left
    else:
        assert contents(found.load()) == contents(made)
        for path in left:
            path.unlink()
        found.path.rmdir()


def test_all_sorts_are_tried() -> None:
    assert {payload for payload, _ in SORTS} == set(PAYLOADS)
    assert {TARGETS[targets].__class__ for _, targets in SORTS} == {type(targets) for targets in TARGETS.values()}
