"""Sets as single files: equal sets give equal files, and only what an export writes is taken in."""

import errno
import hashlib
import json
import stat
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest

from dd_bench import archives
from dd_bench.archives import export_set, import_set
from dd_bench.errors import DDBenchError, InvalidSetError
from dd_bench.manifest import CARD, MANIFEST, TENSORS
from dd_bench.sets import digest_json
from dd_bench.store import Store
from tests.test_store import contents, make

Members = list[tuple[str, bytes]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
    return Store(tmp_path / "sets")


@pytest.fixture
def packed(store: Store, tmp_path: Path) -> Path:
    export_set(store.write(make()), tmp_path / "set.zip")
    return tmp_path / "set.zip"


def members_of(path: Path) -> Members:
    with ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def pack(path: Path, members: Members, compression: int = ZIP_STORED) -> Path:
    with ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(ZipInfo(name), content, compression)
    return path


def files_under(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("payload", ["uint8", "int8", "graphs", "trees"])
def test_round_trip(payload: str, store: Store, tmp_path: Path) -> None:
    targets = "hard" if payload in ("graphs", "trees") else "soft"
    stored = store.write(make(payload, targets, None if payload in ("graphs", "trees") else 0.05))
    assert export_set(stored, tmp_path / "set.zip")
    other = Store(tmp_path / "others")
    taken = import_set(tmp_path / "set.zip", other)
    assert taken.id == stored.id
    assert taken.path.relative_to(other.root) == stored.path.relative_to(store.root)
    assert contents(taken.load()) == contents(stored.load())
    assert files_under(other.root) == files_under(store.root)
    for path in (taken.path, *taken.path.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644)


def test_equal_sets_give_equal_files(packed: Path, store: Store, tmp_path: Path) -> None:
    before = packed.read_bytes()
    assert not export_set(store.list()[0], packed), "the same again is no work"  # type: ignore[arg-type]
    assert packed.read_bytes() == before
    other = Store(tmp_path / "others")
    export_set(import_set(packed, other), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_any_tool_can_open_it(packed: Path, store: Store) -> None:
    (stored,) = store.list()
    assert members_of(packed) == [(name, (stored.path / name).read_bytes()) for name in (MANIFEST, TENSORS, CARD)]


def test_nothing_else_is_overwritten(store: Store, tmp_path: Path) -> None:
    stored = store.write(make())
    for content in (b"mine", b""):
        (tmp_path / "set.zip").write_bytes(content)
        with pytest.raises(DDBenchError, match=r"set.zip is there already and is not this set; name another"):
            export_set(stored, tmp_path / "set.zip")
        assert (tmp_path / "set.zip").read_bytes() == content
    export_set(store.write(make(seed=8)), tmp_path / "other.zip")
    with pytest.raises(DDBenchError, match="is there already and is not this set"):
        export_set(stored, tmp_path / "other.zip")


def test_a_damaged_set_is_not_handed_on(store: Store, tmp_path: Path) -> None:
    stored = store.write(make())
    content = bytearray((stored.path / TENSORS).read_bytes())
    content[-1] ^= 1
    (stored.path / TENSORS).write_bytes(content)
    with pytest.raises(InvalidSetError, match="has sha256"):
        export_set(stored, tmp_path / "set.zip")
    assert not (tmp_path / "set.zip").exists()


def test_what_is_there_stays(packed: Path, store: Store) -> None:
    (stored,) = store.list()
    before = files_under(store.root)
    assert import_set(packed, store) == stored
    assert files_under(store.root) == before


def test_another_set_of_the_same_id_is_refused(packed: Path, store: Store, tmp_path: Path) -> None:
    other = Store(tmp_path / "others")
    other.write(make("float"))
    before = files_under(other.root)
    with pytest.raises(DDBenchError, match="is there with other tensors"):
        import_set(packed, other)
    assert files_under(other.root) == before


def _reseal(members: Members, change: Callable[[dict[str, object]], object]) -> Members:
    """Changes the manifest and makes its digest right again."""
    found = dict(members)
    value = json.loads(found[MANIFEST])
    del value["digest"]
    change(value)
    found[MANIFEST] = json.dumps({**value, "digest": digest_json(value)}).encode()
    return list(found.items())


def _swap(members: Members, content: bytes) -> Members:
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    members = [(name, content if name == TENSORS else part) for name, part in members]
    return _reseal(members, lambda value: value["files"].update({TENSORS: entry}))  # type: ignore[attr-defined]


def _renamed(members: Members, name: str) -> Members:
    return [(name if member == CARD else member, content) for member, content in members]


def _escape(value: dict[str, object]) -> None:
    value["provenance"]["method"] = "../../outside"  # type: ignore[index]


def _link(members: Members, path: Path) -> Path:
    with ZipFile(path, "w") as archive:
        for name, content in members:
            info = ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if name == CARD else 0o644 << 16
            archive.writestr(info, b"/etc/passwd" if name == CARD else content)
    return path


def _edit(path: Path, old: bytes, new: bytes, *, last: bool = False) -> Path:
    content = path.read_bytes()
    place = content.rfind(old) if last else content.find(old)
    path.write_bytes(content[:place] + new + content[place + len(old) :])
    return path


def _lie(members: Members, path: Path) -> Path:
    """Says in the list at the end that the tensors have a gigabyte."""
    pack(path, members)
    content = bytearray(path.read_bytes())
    entry = content.rfind(b"PK\x01\x02", 0, content.rfind(TENSORS.encode()))
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    return path


def _nest(members: Members) -> bytes:
    file = BytesIO()
    with ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(f"set/{name}", content)
    return file.getvalue()


HOSTILE: dict[str, tuple[Callable[[Members, Path], object], str]] = {
    "no archive": (lambda m, p: p.write_bytes(b"PK no"), "is no archive of a set"),
    "empty": (lambda m, p: p.write_bytes(b""), "is no archive of a set"),
    "truncated": (lambda m, p: pack(p, m) and p.write_bytes(p.read_bytes()[:-30]), "is no archive of a set"),
    "head cut off": (lambda m, p: pack(p, m) and p.write_bytes(p.read_bytes()[400:]), "promises more bytes than there"),
    "compressed": (lambda m, p: pack(p, m, ZIP_DEFLATED), "is compressed or encrypted; expected it plain"),
    "bomb": (
        lambda m, p: pack(p, [*m[:1], (TENSORS, bytes(50_000_000)), *m[2:]], ZIP_DEFLATED), "is compressed or encrypted"
    ),
    "upwards": (lambda m, p: pack(p, _renamed(m, "../card.png")), r"holds 3 files.*\.\./card\.png.*; expected"),
    "absolute": (lambda m, p: pack(p, _renamed(m, "/etc/cron.d/x")), r"holds 3 files.*/etc/cron.*; expected"),
    "in a folder": (lambda m, p: p.write_bytes(_nest(m)), "holds 3 files"),
    "one more": (lambda m, p: pack(p, [*m, ("x.py", b"")]), "holds 4 files"),
    "many": (lambda m, p: pack(p, [(f"{n}", b"") for n in range(20_000)]), "holds 20000 files"),
    "link": (lambda m, p: _link(m, p), "card.png has 11 bytes, expected"),
    "a gigabyte promised": (lambda m, p: _lie(m, p), "its list promises more bytes than there are"),
    "bit rot": (lambda m, p: _edit(pack(p, m), b"\x89PNG", b"\x88PNG"), "Bad CRC-32"),
    "card of another": (
        lambda m, p: pack(p, [*m[:2], (CARD, m[2][1][:-1] + b"?")]), r"card.png has sha256 \w+…, expected"
    ),
    "tensors of another": (
        lambda m, p: pack(p, [(n, c[:-1] + bytes([c[-1] ^ 1]) if n == TENSORS else c) for n, c in m]),
        r"tensors.safetensors has sha256",
    ),
    "pickle": (lambda m, p: pack(p, _swap(m, b"\x80\x04cos\nsystem\n(S'touch x'\ntR.")), "no safetensors file"),
    "no manifest": (lambda m, p: pack(p, [(MANIFEST, b"[]"), *m[1:]]), "is a list; expected an object"),
    "tampered": (lambda m, p: pack(p, [(MANIFEST, m[0][1].replace(b'"seed"', b'"seeds"')), *m[1:]]), "wrong at"),
    "out of the store": (lambda m, p: pack(p, _reseal(m, _escape)), r"'../../outside' is no plain name"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_rejects(kind: str, packed: Path, tmp_path: Path) -> None:
    apply, told = HOSTILE[kind]
    other, hostile = Store(tmp_path / "others"), tmp_path / "hostile.zip"
    neighbour = other.write(make(seed=8))
    apply(members_of(packed), hostile)
    before = files_under(tmp_path)
    with pytest.raises(InvalidSetError, match=told) as refusal:
        import_set(hostile, other)
    message = str(refusal.value)
    assert message.startswith(f"{hostile}")
    assert message.isprintable()
    assert len(message) < 700
    assert files_under(tmp_path) == before
    assert other.list() == (neighbour,)


def test_rejects_a_name_that_stands_twice(packed: Path, tmp_path: Path) -> None:
    members = members_of(packed)
    with pytest.warns(UserWarning, match="Duplicate name"):
        pack(tmp_path / "twice.zip", [*members, members[0]])
    with pytest.raises(InvalidSetError, match="holds 4 files"):
        import_set(tmp_path / "twice.zip", Store(tmp_path / "others"))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DDBenchError, match=r"there is no file .*set.zip; expected one that ddbench export has written"):
        import_set(tmp_path / "set.zip", Store(tmp_path / "others"))


def test_a_disk_without_room(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 10

    with monkeypatch.context() as patch:
        patch.setattr(archives.shutil, "disk_usage", lambda _: Usage())
        with pytest.raises(DDBenchError, match=r"the set takes .* has 10 B left; make room there, or set DDBENCH_HOME"):
            import_set(packed, Store(tmp_path / "others"))

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.os, "fsync", full)
    with pytest.raises(DDBenchError, match=r"cannot write set .* \(No space left on device\)"):
        import_set(packed, Store(tmp_path / "others"))
    assert files_under(tmp_path / "others") == {}
