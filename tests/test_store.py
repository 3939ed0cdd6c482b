"""Sets on disk: what is read is what was written, or a refusal in one line, and no set harms another."""

import errno
import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dd_bench import codec, publication
from dd_bench import store as store_module
from dd_bench.data.specs import SPECS
from dd_bench.errors import DDBenchError, InvalidSetError, UnknownNameError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.manifest import CARD, MANIFEST, SIZE_LIMIT, TENSORS, ControlEntry, ProvenanceEntry
from dd_bench.seeding import generator
from dd_bench.sets import Compensated, Control, Images, Payload, Provenance, SyntheticSet, digest_json
from dd_bench.store import Store
from dd_bench.stored import DamagedSet, StoredSet, open_set
from dd_bench.tapes import Tape
from dd_bench.targets import Features, HardLabels, SoftLabels, TapedLabels, Targets, ThinLabels
from tests.conftest import draw_motifs

CLASSES = torch.tensor([0, 1, 2, 0, 1, 2])
DRAW = generator(0)
PIXELS = torch.randn(6, 3, 4, 5, generator=DRAW)
LOGITS = torch.randn(6, 3, generator=DRAW)
PAIRS = torch.tensor([[0, -1], [0, 0], [1, 1], [2, 0], [2, 1], [1, -1]], dtype=torch.int32)
OFFSETS = torch.arange(-60, 60).reshape(2, 3, 4, 5)
PAYLOADS: dict[str, Payload] = {
    "float": Images(PIXELS),
    "uint8": Images((PIXELS.sigmoid() * 255).byte()),
    "int8": Compensated(
        (PIXELS[:3].sigmoid() * 255).byte(), OFFSETS.to(torch.int8), torch.tensor([0.001, 0.002]), PAIRS
    ),
    "graphs": Graphs.of(draw_motifs(2, 0)[0]),
    "trees": Trees(
        features=torch.tensor([[0, 1], [300, 0]]),
        degrees=torch.tensor([1, 4]),
        levels=torch.tensor([2, 2]),
        trunks=torch.tensor([0, 1]),
        fans=torch.tensor([1, 2]),
        children=torch.tensor([1, 0, 1]),
        bonds=torch.tensor([0, 0, 1]),
        repeats=torch.tensor([1, 3, 1]),
        bond_labels=torch.tensor([[2], [0]]),
        tree_counts=torch.tensor([1, 2, 1, 1, 1, 1]),
        roots=torch.tensor([0, 0, 1, 1, 0, 1, 0]),
        copies=torch.tensor([1, 2, 0.5, 1, 3, 1, 7]).half(),
        weights=torch.tensor([1, 4, 0.25, 1, 1, 1]).half(),
    ),
    "half": Compensated((PIXELS[:3].sigmoid() * 255).byte(), OFFSETS.half() / 500, torch.ones(2), PAIRS),
}
TAPE = draw_tape(
    len(CLASSES), replace(SPECS["cifar10"], image_shape=(3, *PIXELS.shape[2:])), TapeRecipe(3, 3, 2), seed=0
)
BOOK = TapedLabels(torch.stack([LOGITS, 2 * LOGITS, -LOGITS]).half(), TAPE, CLASSES, 20.0)
TARGETS: dict[str, Targets] = {
    "hard": HardLabels(CLASSES),
    "soft": SoftLabels(LOGITS, CLASSES, 4.0),
    "soft half": SoftLabels(LOGITS.half(), CLASSES, 0.1),
    "taped": BOOK,
    "taped-top": ThinLabels.of(BOOK, 2),
    "features": Features(LOGITS, torch.tensor([0.5, -3.0, 1e-9]), 1 / 3),
    "features half": Features(LOGITS.half(), torch.zeros(3), 2.0),
}


def provenance(**changes: Any) -> Provenance:
    facts: dict[str, Any] = {
        "method": "infer", "preset": "paper", "config": {"lr": 0.1, "at": [1, 2], "nested": {"π": None, "on": True}},
        "dataset": "cifar10@20/20", "fingerprint": "f0", "ipc": 2, "seed": 3, "recipe": "0123456789ab",
        "controls": (Control("random", "plain", "hard", {"a": 1}, "ba9876543210", (0, 1)),), "parents": ("t1", "t2"),
        "ddbench": "0.1.0", "libraries": {"torch": "2.15"}, "device": "cpu", "threads": 2, "wall_seconds": 12.5,
        "teacher_seconds": 0.1, "peak_memory_bytes": 10**9,
    }  # fmt: skip
    return Provenance(**{**facts, **changes})


def make(payload: str = "int8", targets: str = "soft", rate: float | None = 0.05, **changes: Any) -> SyntheticSet:
    return SyntheticSet(PAYLOADS[payload], TARGETS[targets], provenance(**changes), "infer-static", rate)


def contents(made: SyntheticSet) -> list[Any]:
    """Returns all of a set as comparable values, exact to the bit."""

    def plain(value: Any) -> Any:
        if isinstance(value, Payload | Targets | Tape):
            return type(value), [plain(getattr(value, part.name)) for part in fields(value)]
        return (value.dtype, value.tolist()) if isinstance(value, Tensor) else value

    return [plain(made.payload), plain(made.targets), made.provenance, made.native_protocol, made.suggested_lr]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(store_module, "render_card", lambda *_: b"\x89PNG, in name only: a real one takes a while")
    return Store(tmp_path / "sets")


def hidden(store: Store) -> list[str]:
    return [path.name for path in store.root.rglob(".*")]


# --- what is written is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("rate", [None, 0.05])
def test_round_trip(store: Store, payload: str, targets: str, rate: float | None) -> None:
    if "taped" in targets and payload in ("graphs", "trees"):
        with pytest.raises(InvalidSetError, match="a tape is of images, but the set holds graphs"):
            make(payload, targets, rate)
        return
    if "features" in targets and payload in ("graphs", "trees"):
        with pytest.raises(InvalidSetError, match="features are of images, but the set holds graphs"):
            make(payload, targets, rate)
        return
    made = make(payload, targets, rate)
    stored = store.write(made)
    assert contents(stored.load()) == contents(made)
    assert contents(store.read(stored.path)) == contents(made)
    assert stored == open_set(stored.path)
    assert stored.manifest.targets.kind.removesuffix("-top") == made.targets.kind
    assert sum(stored.ledger.values()) == stored.size_bytes == (stored.path / TENSORS).stat().st_size
    assert stored.sha256 == hashlib.sha256((stored.path / TENSORS).read_bytes()).hexdigest()


def test_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path))
    made = make()
    stored = Store().write(made)
    assert stored.path == tmp_path / "sets" / "cifar10@20+20" / "infer" / "ipc2" / made.provenance.set_id
    assert sorted(entry.name for entry in stored.path.iterdir()) == [CARD, MANIFEST, TENSORS]
    assert (stored.path / CARD).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert stored.path.stat().st_mode & 0o777 == 0o755
    assert contents(stored.load()) == contents(made)


@pytest.mark.parametrize(("kinds", "parts"), [(codec.PAYLOADS, PAYLOADS), (codec.TARGETS, TARGETS)])
def test_every_kind_is_tested_and_has_only_fields_that_are_stored(kinds: Any, parts: Any) -> None:
    assert {kind.type for kind in kinds.values()} == {type(part) for part in parts.values()}
    for name, kind in kinds.items():
        plain = [tensor for tensor in kind.tensors if "." not in tensor]
        assert sorted([*plain, *kind.scalars, *kind.parts]) == sorted(part.name for part in fields(kind.type))
        assert set(kind.indices) <= set(plain)
        assert getattr(kind.type, "kind", name) in (name, name.removesuffix("-top"))


def test_manifest_has_every_field_of_provenance() -> None:
    assert set(ProvenanceEntry.model_fields) == {part.name for part in fields(Provenance)}
    assert set(ControlEntry.model_fields) == {part.name for part in fields(Control)}


@pytest.mark.parametrize("payload", PAYLOADS)
def test_equal_sets_have_equal_bytes(store: Store, tmp_path: Path, payload: str) -> None:
    first, again = store.write(make(payload)), Store(tmp_path / "elsewhere").write(make(payload))
    for name in (TENSORS, CARD, MANIFEST):
        assert (first.path / name).read_bytes() == (again.path / name).read_bytes()


def test_tensors_do_not_know_their_origin(store: Store) -> None:
    first = store.write(make())
    other = provenance(
        method="renamed", dataset="digits", ipc=7, seed=4, recipe="ffffffffffff", config={}, controls=(), parents=()
    )
    renamed = store.write(SyntheticSet(PAYLOADS["int8"], TARGETS["soft"], other, "hard", None))
    assert renamed.sha256 == first.sha256
    assert renamed.id != first.id
    raw = (renamed.path / TENSORS).read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert sorted(header) == [
        "payload.base", "payload.offsets", "payload.pairs", "payload.scales", "targets.classes", "targets.logits",
    ]  # fmt: skip


def test_awkward_tensors_are_stored(store: Store) -> None:
    pixels = PIXELS.clone().requires_grad_()
    big = torch.cat([LOGITS, LOGITS], 1)
    odd = SyntheticSet(Images(pixels.transpose(2, 3)), SoftLabels(big[:, ::2], CLASSES, 1.0), provenance(), "hard")
    stored = store.write(odd).load()
    assert isinstance(stored.payload, Images)
    assert torch.equal(stored.payload.pixels, PIXELS.transpose(2, 3))
    shared = torch.rand(6, 1, 1, 6)
    twice = SyntheticSet(Images(shared), SoftLabels(shared[:, 0, 0], CLASSES, 1.0), provenance(seed=9), "hard")
    assert len(store.write(twice).load()) == 6


def test_refuses_what_no_set_may_hold(store: Store) -> None:
    pixels = PIXELS.clone()
    made = SyntheticSet(Images(pixels), TARGETS["hard"], provenance(), "hard")
    pixels[0, 0, 0, 0] = float("nan")  # in place, behind the constructor's back
    with pytest.raises(InvalidSetError, match="pixels holds 1 values"):
        store.write(made)
    assert store.list() == ()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"config": {"lr": float("inf")}}, "cannot be kept as JSON"),
        ({"config": {"path": Path("x")}}, "cannot be kept as JSON"),
        ({"config": {"text": "\ud800"}}, "cannot be kept as JSON"),
        ({"config": {"text": "x" * SIZE_LIMIT}}, "has over 1048576 bytes"),
        ({"ipc": -1}, "provenance.ipc"),
        ({"threads": 0.5}, "provenance.threads"),
        ({"method": "../infer"}, "is no plain name"),
        ({"method": ""}, "is no plain name"),
    ],
)
def test_refuses_provenance(store: Store, changes: dict[str, Any], found: str) -> None:
    with pytest.raises(InvalidSetError, match=found):
        store.write(make(**changes))
    assert not store.root.exists() or store.list() == ()


# --- writing twice, writing and failing ------------------------------------------------------------------------------


def test_the_same_set_again_changes_nothing(store: Store) -> None:
    first = store.write(make())
    before = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in first.path.iterdir()}
    for replacing in (False, True):
        again = store.write(make(wall_seconds=99.0, device="cuda"), replace=replacing)
        assert again == first
    assert {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in first.path.iterdir()} == before


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (make("half"), "other tensors, though"),
        (make("float"), "other tensors, payload"),
        (make(rate=None), "other suggested_lr"),
        (replace(make(), targets=SoftLabels(LOGITS, CLASSES, 1.0)), "other targets"),
        (replace(make(), native_protocol="hard"), "other native_protocol"),
    ],
)
def test_another_set_of_the_same_id_must_be_asked_for(store: Store, other: SyntheticSet, found: str) -> None:
    first = store.write(make())
    with pytest.raises(DDBenchError, match=found):
        store.write(other)
    assert contents(first.load()) == contents(make())
    replaced = store.write(other, replace=True)
    assert replaced.path == first.path
    assert contents(store.read(first.path)) == contents(other)
    assert hidden(store) == []


@pytest.mark.parametrize("what", ["truncated", "a file", "a link"])
def test_a_damaged_set_gives_way_only_when_asked(store: Store, tmp_path: Path, what: str) -> None:
    folder = store.write(make()).path
    if what == "truncated":
        (folder / MANIFEST).write_bytes(b"{")
    else:
        folder.rename(tmp_path / "moved")
        folder.write_bytes(b"") if what == "a file" else folder.symlink_to(tmp_path / "moved")
    with pytest.raises(InvalidSetError):
        store.write(make())
    store.write(make(), replace=True)
    assert contents(store.read(folder)) == contents(make())
    assert hidden(store) == []
    assert what != "a link" or len(list((tmp_path / "moved").iterdir())) == 3


@pytest.mark.parametrize("call", ["replace", "rename"])  # of the second file into its name, of the folder into its own
@pytest.mark.parametrize("already", [False, True])
def test_kill_between_writes_leaves_nothing_visible(
    store: Store, monkeypatch: pytest.MonkeyPatch, call: str, already: bool
) -> None:
    neighbour = store.write(make(seed=8))
    if already:
        store.write(make())
    original, calls = getattr(Path, call), 0

    def killed(path: Path, target: Path) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 or (call == "rename" and not already):
            raise KeyboardInterrupt
        return original(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, call, killed)
        patch.setattr(publication, "_sweep", lambda _: None)  # the dead clean nothing up
        with pytest.raises(KeyboardInterrupt):
            store.write(make("half"), replace=True)
    assert hidden(store) != []
    seen = {entry.id for entry in store.list() if isinstance(entry, StoredSet)}
    assert len(seen) == len(store.list())
    assert neighbour.id in seen
    if already:  # the former set is where it was, or comes back with the next write
        with pytest.raises(DDBenchError, match="other tensors, though"):
            store.write(make("half"))
        assert contents(store.read(store.folder(provenance()))) == contents(make())
    else:
        assert seen == {neighbour.id}
        store.write(make("half"))
        assert contents(store.read(store.folder(provenance()))) == contents(make("half"))
    assert hidden(store) == []


def test_a_full_disk_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DDBenchError, match=r"cannot write set .* \(No space left on device\); make room"):
            store.write(make())
    assert store.list() == ()
    assert hidden(store) == []
    assert not store.has(provenance())
    store.write(make())
    assert store.has(provenance())
    assert not store.has(provenance(seed=4))


# --- finding ---------------------------------------------------------------------------------------------------------


def test_find(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, other = store.write(make()), store.write(make(seed=4))
    assert store.find(stored.id) == stored
    assert store.find(stored.id[:4]) == stored
    assert store.find(str(other.path)) == other
    monkeypatch.chdir(stored.path)
    assert store.find(".") == stored
    assert store.find(f"../{other.id}").load().provenance.seed == 4
    shutil.copytree(stored.path, tmp_path / "imported" / stored.id)
    assert Store(tmp_path / "empty").find(str(tmp_path / "imported" / stored.id)).sha256 == stored.sha256


@pytest.mark.parametrize("reference", ["", "zzzz", "no/such/folder", "x" * 5000, "\0", "*", "["])
def test_rejects_unknown_references(store: Store, reference: str) -> None:
    stored = store.write(make())
    with pytest.raises(UnknownNameError, match=rf"unknown set .* Known: {stored.id}"):
        store.find(reference)
    with pytest.raises(UnknownNameError, match="unknown set"):
        store.find(stored.id[:3])  # too short to be meant
    with pytest.raises(UnknownNameError, match="none yet"):
        Store(store.root / "none").find("abcd")


def test_rejects_ambiguous_references(store: Store) -> None:
    first, second = store.write(make()), store.write(make(method="other"))
    assert first.id == second.id
    with pytest.raises(DDBenchError, match=f"could be .*infer/ipc2/{first.id}, .*other/ipc2/{first.id}; give more"):
        store.find(first.id)


def test_list_is_ordered_and_complete(store: Store) -> None:
    assert store.list() == ()
    for changes in ({"ipc": 10}, {"ipc": 2}, {"method": "cv-dd"}, {"dataset": "digits"}, {"ipc": 1}):
        store.write(make(**changes))
    broken = store.write(make(ipc=5)).path
    (broken / TENSORS).unlink()
    (store.root / "cifar10@20+20" / "infer" / "notes.txt").write_text("mine")
    (store.root / ".cache" / "a" / "ipc1" / "x").mkdir(parents=True)
    listed = store.list()
    assert [str(entry.path.parent.relative_to(store.root)) for entry in listed] == [
        "cifar10@20+20/cv-dd/ipc2", "cifar10@20+20/infer/ipc1", "cifar10@20+20/infer/ipc2",
        "cifar10@20+20/infer/ipc5", "cifar10@20+20/infer/ipc10", "digits/infer/ipc2",
    ]  # fmt: skip
    assert [entry.path for entry in listed if isinstance(entry, DamagedSet)] == [broken]


# --- damage ----------------------------------------------------------------------------------------------------------

Value = dict[str, Any]


def reseal(folder: Path, change: Callable[[Value], object]) -> None:
    """Changes the manifest and makes its digest right again, as a careful forger would."""
    value = json.loads((folder / MANIFEST).read_text())
    del value["digest"]
    change(value)
    (folder / MANIFEST).write_text(json.dumps({**value, "digest": digest_json(value)}))


def swap(folder: Path, content: bytes) -> None:
    """Puts other tensors in the place of a set's, with the right size and hash in the manifest."""
    (folder / TENSORS).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    reseal(folder, lambda value: value["files"].update({TENSORS: entry}))


def tensors(**changes: Tensor | None) -> bytes:
    stored = codec.stored_tensors(make()) | {
        name.replace("_", ".", 1): tensor for name, tensor in changes.items() if tensor is not None
    }
    for name in (name for name, tensor in changes.items() if tensor is None):
        del stored[name.replace("_", ".", 1)]
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in stored.items()})


def set_manifest(text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / MANIFEST).write_bytes(text if isinstance(text, bytes) else text.encode())


def change(**values: Any) -> Callable[[Path], object]:
    return lambda folder: reseal(folder, lambda value: value.update(values))


def change_in(name: str, **values: Any) -> Callable[[Path], object]:
    return lambda folder: reseal(folder, lambda value: value[name].update(values))


def flip(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-3] ^= 1
        (folder / name).write_bytes(content)

    return damage


def cut(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def link(name: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder.parent.parent / name)
        (folder / name).symlink_to(folder.parent.parent / name)

    return damage


def put_folder(folder: Path) -> None:
    (folder / CARD).unlink()
    (folder / CARD).mkdir()


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def rename_file(name: str) -> Callable[[Path], object]:
    return lambda folder: reseal(folder, lambda value: value["files"].update({name: value["files"].pop(CARD)}))


class Bomb:
    """Deletes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (66,)


def header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated tensors": (cut(TENSORS), r"tensors.safetensors has \d+ bytes, expected"),
    "truncated card": (cut(CARD), r"card.png has \d+ bytes, expected"),
    "truncated manifest": (lambda folder: set_manifest((folder / MANIFEST).read_bytes()[:-3])(folder), "no valid JSON"),
    "empty manifest": (set_manifest(""), "no valid JSON"),
    "tampered tensors": (flip(TENSORS), "tensors.safetensors has sha256"),
    "tampered card": (flip(CARD), "card.png has sha256"),
    "newer version": (change(schema_version=2), "made by a newer ddbench .schema 2.*upgrade"),
    "newer fields": (change(schema_version=3, trees=[]), "made by a newer ddbench"),
    "older version": (change(schema_version=0), "wrong at 'schema_version'"),
    "true version": (change(schema_version=True), "wrong at 'schema_version'"),
    "text version": (change(schema_version="1"), "wrong at 'schema_version'"),
    "path upwards": (rename_file("../card.png"), r"wrong at 'files' .*'\.\./card\.png'"),
    "absolute path": (rename_file("/etc/passwd"), "wrong at 'files' .*'/etc/passwd'"),
    "one file too many named": (
        lambda folder: reseal(folder, lambda value: value["files"].update(x=value["files"][CARD])),
        "wrong at 'files'",
    ),
    "linked tensors": (link(TENSORS), "tensors.safetensors is no regular file"),
    "linked manifest": (link(MANIFEST), "manifest.json is no regular file"),
    "extra file": (lambda folder: (folder / "x.py").write_text(""), "x.py.* none of a set's files"),
    "extra hidden file": (lambda folder: (folder / ".x").write_text(""), r"\.x.* none of a set's files"),
    "folder for a file": (put_folder, "card.png is no regular"),
    "no tensors": (lambda folder: (folder / TENSORS).unlink(), "tensors.safetensors is missing"),
    "no card": (lambda folder: (folder / CARD).unlink(), "card.png is missing"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
    "nothing": (empty, "card.png, manifest.json, tensors.safetensors is missing"),
    "a name in two lines": (change(**{"a\nb\x1b[31m": 1}), "wrong at"),
    "a list": (set_manifest("[]"), "is a list; expected an object"),
    "no JSON": (set_manifest("schema_version: 1"), "no valid JSON"),
    "NaN": (set_manifest('{"schema_version": NaN}'), "no valid JSON"),
    "infinity": (set_manifest('{"schema_version": 1e999}'), "no valid JSON"),
    "a name twice": (set_manifest('{"schema_version": 1, "schema_version": 1}'), "a name stands twice"),
    "deep manifest": (set_manifest("[" * 200_000), "no valid JSON"),
    "deep config": (set_manifest('{"a":' * 900 + "1" + "}" * 900), "manifest.json is"),
    "huge number": (set_manifest('{"schema_version": ' + "1" * 5000 + "}"), "no valid JSON"),
    "huge manifest": (set_manifest(b" " * SIZE_LIMIT + b"{}"), "over 1048576 bytes"),
    "UTF-16": (lambda folder: set_manifest((folder / MANIFEST).read_text().encode("utf-16"))(folder), "no valid JSON"),
    "half a character": (change(native_protocol="\ud800"), "manifest.json is wrong"),
    "edited by hand": (
        lambda folder: set_manifest((folder / MANIFEST).read_text().replace('"seed": 3', '"seed": 4'))(folder),
        "changed after it was written",
    ),
    "no digest": (set_manifest('{"schema_version": 1}'), "manifest.json is wrong"),
    "unknown field": (change(note="hello"), "wrong at 'note'"),
    "unknown provenance": (change_in("provenance", note="hello"), "wrong at 'provenance.note'"),
    "text for a number": (change(images="6"), "wrong at 'images'"),
    "negative rate": (change(suggested_lr=-0.1), "wrong at 'suggested_lr'"),
    "method that leaves the store": (change_in("provenance", method="../../etc"), "no plain name"),
    "teacher that leaves the store": (change_in("provenance", parents=["/etc/passwd"]), "no plain name"),
    "preset that writes on the terminal": (change_in("provenance", preset="a\x1b[31m"), "wrong at 'provenance.preset'"),
    "other folder": (change_in("provenance", seed=99), "in a folder of another name; rename the folder to"),
    "unknown payload": (change_in("payload", kind="bushes"), "kind 'bushes' is unknown"),
    "payload for targets": (change_in("targets", kind="images"), "kind 'images' is unknown"),
    "other payload": (change_in("payload", kind="images"), "expected exactly .*payload.pixels"),
    "other targets": (change(targets={"kind": "hard", "scalars": {}}), "targets.logits.*; expected exactly"),
    "no temperature": (change_in("targets", scalars={}), r"soft has the numbers \[\], expected \['temperature'\]"),
    "another number": (change_in("targets", scalars={"temperature": 1.0, "x": 1.0}), "soft has the numbers"),
    "cold": (change_in("targets", scalars={"temperature": 0.0}), "temperature is 0.0"),
    "other count": (change(images=7), "counts other images or bytes"),
    "other ledger": (change_in("ledger", images=1), "counts other images or bytes"),
    "pickle": (lambda folder: swap(folder, pickle.dumps(Bomb())), "no safetensors file"),
    "pickled manifest": (set_manifest(pickle.dumps(Bomb())), "no valid JSON"),
    "empty tensors": (lambda folder: swap(folder, b"\0"), "no safetensors file .a header of 0 bytes in 1"),
    "huge header": (
        lambda folder: swap(folder, (2**63).to_bytes(8, "little") + b"{}"),
        "header of 9223372036854775808",
    ),
    "long header": (lambda folder: swap(folder, header(b"{}" + b" " * 70_000)), "header of 70002 bytes"),
    "deep header": (lambda folder: swap(folder, header(b"[" * 60_000)), "no readable header"),
    "no header": (lambda folder: swap(folder, header(b"\xff\xfe")), "no readable header"),
    "list header": (lambda folder: swap(folder, header(b"[]")), "expected exactly"),
    "metadata": (
        lambda folder: swap(folder, safetensors.torch.save(codec.stored_tensors(make()), {"method": "infer"})),
        "__metadata__.*; expected exactly",
    ),
    "false header": (
        lambda folder: swap(folder, (folder / TENSORS).read_bytes().replace(b"[3,3,4,5]", b"[9,9,9,9]")),
        "no valid safetensors file",
    ),
    "unknown dtype": (
        lambda folder: swap(folder, (folder / TENSORS).read_bytes().replace(b'"F32"', b'"X32"')),
        "no valid safetensors file",
    ),
    "NaN-holding": (
        lambda folder: swap(folder, tensors(targets_logits=torch.full((6, 3), float("nan")))),
        "logits holds 18 values that are NaN",
    ),
    "infinite scales": (
        lambda folder: swap(folder, tensors(payload_scales=torch.tensor([1, float("inf")]))),
        "scales holds 1 values",
    ),
    "double": (lambda folder: swap(folder, tensors(targets_logits=LOGITS.double())), "logits is float64"),
    "scalar": (lambda folder: swap(folder, tensors(payload_scales=torch.tensor(1.0))), "scales is float32"),
    "one tensor less": (lambda folder: swap(folder, tensors(payload_pairs=None)), "expected exactly"),
    "one tensor more": (lambda folder: swap(folder, tensors(payload_x=LOGITS + 1)), "payload.x.*; expected exactly"),
    "wide classes": (lambda folder: swap(folder, tensors(targets_classes=CLASSES)), "stored as torch.int64, expected"),
    "float classes": (lambda folder: swap(folder, tensors(targets_classes=CLASSES.float())), "stored as torch.float32"),
    "no classes": (
        lambda folder: swap(folder, tensors(targets_classes=CLASSES[:0].byte())),
        r"classes is int64 of shape \(0,\); .* not empty",
    ),
    "few classes": (lambda folder: swap(folder, tensors(targets_classes=CLASSES[:5].byte())), "beside 5 classes"),
    "few pairs": (
        lambda folder: swap(folder, tensors(payload_pairs=PAIRS[:5].to(torch.int8))),
        "6 targets for 5 images",
    ),
    "stray pair": (
        lambda folder: swap(folder, tensors(payload_pairs=torch.full((6, 2), 3, dtype=torch.uint8))),
        "pairs reach from",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_rejects_damage(store: Store, damage: str) -> None:
    neighbour, victim = store.write(make(seed=8)), store.write(make())
    apply, found = DAMAGES[damage]
    apply(victim.path)
    with pytest.raises(InvalidSetError, match=found) as refusal:
        store.read(victim.path)
    message = str(refusal.value)
    assert message.startswith(f"set {victim.path}: ")
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert {entry.path for entry in store.list()} == {neighbour.path, victim.path}
    assert contents(store.find(neighbour.id).load()) == contents(make(seed=8))
    assert neighbour in store.list()
    store.write(make(), replace=True)
    assert contents(store.read(victim.path)) == contents(make())


def test_rejects_linked_and_absent_folders(store: Store, tmp_path: Path) -> None:
    stored = store.write(make())
    (tmp_path / stored.id).symlink_to(stored.path)
    for path in (tmp_path / stored.id, tmp_path / "none", stored.path / CARD):
        with pytest.raises(InvalidSetError, match="no folder; expected one with card"):
            open_set(path)


def test_rejects_files_that_cannot_be_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store.write(make())

    def failing(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("dd_bench.stored.sha256_file", failing)
    with pytest.raises(InvalidSetError, match=r"cannot be read \(Input/output error\)"):
        stored.load()


@pytest.mark.parametrize("shape", ["[0,18446744073709551615]", "[9223372036854775808,0,9,9]", "[-1]", "[1e3]"])
def test_rejects_impossible_shapes(shape: str, tmp_path: Path) -> None:
    raw = f'{{"payload.pixels":{{"dtype":"U8","shape":{shape},"data_offsets":[0,0]}},'
    raw += '"targets.classes":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    parts = (codec.describe(PAYLOADS["uint8"]), codec.describe(TARGETS["hard"]))
    (file := tmp_path / "tensors").write_bytes(header(raw.encode()) + b"\0")
    with pytest.raises(InvalidSetError, match=r"tensors\.safetensors|pixels is") as refusal:
        codec.read(file, payload=parts[0], targets=parts[1])
    assert len(str(refusal.value).splitlines()) == 1
