"""Synthetic sets on disk, the only place where synthesizers and the evaluator meet.

A set is the folder ``<root>/<dataset>/<method>/ipc<k>/<id>`` of exactly three files: ``manifest.json``,
``tensors.safetensors`` and ``card.png``. It appears whole or not at all, and nothing of it is used before it is
verified: sizes and the manifest when a set is opened, hashes and tensors when it is loaded. Nothing is unpickled.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dd_bench import codec
from dd_bench.budget import ledger
from dd_bench.card import render_card
from dd_bench.errors import DDBenchError, InvalidSetError, UnknownNameError
from dd_bench.files import home, safe_name, sha256_file, slug, write_atomic
from dd_bench.manifest import CARD, CURE, MANIFEST, SIZE_LIMIT, TENSORS, Manifest, read_manifest, write_manifest
from dd_bench.publication import Publication
from dd_bench.sets import Provenance, SyntheticSet


@dataclass(frozen=True)
class StoredSet:
    """A set on disk whose manifest is valid and whose files are all there, in full length."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The short id of the set, which is also the name of its folder."""
        return self.path.name

    @property
    def provenance(self) -> Provenance:
        """Where the set comes from."""
        return self.manifest.provenance.restore()

    @property
    def sha256(self) -> str:
        """The sha256 of the tensors file; it knows nothing of the set's origin."""
        return self.manifest.files[TENSORS].sha256

    @property
    def size_bytes(self) -> int:
        """The size of the tensors file."""
        return self.manifest.files[TENSORS].bytes

    @property
    def ledger(self) -> dict[str, int]:
        """The bytes of each part of the tensors file; they sum to its size."""
        return dict(self.manifest.ledger)

    def load(self) -> SyntheticSet:
        """Returns the set itself, verified to the last byte.

        Raises:
            InvalidSetError: if a file is not the one that was written, or its content is not what a set may hold.
        """
        manifest = self.manifest
        with _blaming(self.path):
            for name in (TENSORS, CARD):
                _verify(self.path, name, manifest)
            payload, targets = codec.read(self.path / TENSORS, payload=manifest.payload, targets=manifest.targets)
            synthetic = SyntheticSet(
                payload, targets, self.provenance, manifest.native_protocol, manifest.suggested_lr
            )  # fmt: skip
            if (len(synthetic), ledger(synthetic, self.size_bytes)) != (manifest.images, manifest.ledger):
                raise InvalidSetError(f"{MANIFEST} counts other images or bytes than {TENSORS} holds; {CURE}")
        return synthetic


@dataclass(frozen=True)
class DamagedSet:
    """A folder in the place of a set that cannot be opened, and why."""

    path: Path
    error: InvalidSetError


class Store:
    """The sets under one folder, ``home()/sets`` unless told otherwise."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = home() / "sets" if root is None else root

    def folder(self, provenance: Provenance) -> Path:
        """Returns where the set of ``provenance`` lies, or would lie."""
        place = self.root / slug(provenance.dataset) / safe_name(provenance.method) / f"ipc{provenance.ipc}"
        return place / provenance.set_id

    def has(self, provenance: Provenance) -> bool:
        """Says whether the set of ``provenance`` is here, sound or damaged; only its recipe, seed and place matter."""
        return (self.folder(provenance) / MANIFEST).is_file()

    def write(self, synthetic: SyntheticSet, *, replace: bool = False) -> StoredSet:
        """Leaves the set on disk in full and returns it; after a failure or a kill, nothing of it is to be seen.

        A set of the same id that would teach the same (equal tensors, kinds, learning rate, protocol) stays as it is,
        with the times and the device of its first making.

        Args:
            synthetic: the set.
            replace: whether a set of the same id with another content, or a damaged one, gives way.

        Raises:
            InvalidSetError: if the set cannot be stored as it is, or the one in its place is damaged.
            DDBenchError: if another content is in its place, or the disk refuses.
        """
        folder = self.folder(synthetic.provenance)
        with _refusing(folder), Publication.of(folder) as publication:
            _prepare(publication.partial, synthetic)
            if publication.taken and (kept := _kept(folder, publication.partial / MANIFEST, replace=replace)):
                return kept
            publication.publish()
        return open_set(folder)

    def adopt(self, manifest: Manifest, fill: Callable[[Path], None]) -> StoredSet:
        """Leaves a set from elsewhere on disk in full and returns it, as ``write`` does.

        Args:
            manifest: what the set is.
            fill: writes its three files into a folder, which nobody sees before they are verified to the last byte.

        Raises:
            InvalidSetError: if the files are not what the manifest says, or the set in its place is damaged.
            DDBenchError: if another content is in its place, or the disk refuses.
        """
        folder = self.folder(manifest.provenance.restore())
        with _refusing(folder), Publication.of(folder) as publication:
            fill(publication.partial)
            StoredSet(publication.partial, manifest).load()
            if publication.taken and (kept := _kept(folder, publication.partial / MANIFEST, replace=False)):
                return kept
            publication.publish()
        return open_set(folder)

    def read(self, path: Path) -> SyntheticSet:
        """Returns the set in the folder ``path``, verified to the last byte.

        Raises:
            InvalidSetError: if it is no set, or damaged.
        """
        return open_set(path).load()

    def find(self, reference: str) -> StoredSet:
        """Returns the set that ``reference`` names: an id, the beginning of one (from 4 characters), or a path.

        Raises:
            UnknownNameError: if there is no such set.
            DDBenchError: if several sets fit.
            InvalidSetError: if the set is damaged.
        """
        folders = self._folders()
        exact = [folder for folder in folders if folder.name == reference]
        fitting = exact or [folder for folder in folders if len(reference) >= 4 and folder.name.startswith(reference)]
        if len(fitting) > 1:
            places = ", ".join(str(folder.relative_to(self.root)) for folder in fitting)
            raise DDBenchError(f"set {reference!r} could be {places}; give more of the id, or the path")
        if fitting:
            return open_set(fitting[0])
        with suppress(OSError):  # a reference too long for a path
            if reference and Path(reference).is_dir():
                return open_set(Path(reference))
        raise UnknownNameError("set", reference, {folder.name for folder in folders})

    def list(self) -> tuple[StoredSet | DamagedSet, ...]:
        """Returns every set by dataset, method, ipc and id; a damaged one is told as such and hides no other."""
        return tuple(_try_to_open(folder) for folder in self._folders())

    def _folders(self) -> tuple[Path, ...]:
        def rank(folder: Path) -> tuple[str, str, int, str, str]:
            dataset, method, ipc, name = folder.relative_to(self.root).parts
            return dataset, method, len(ipc), ipc, name  # the length first: ipc2 before ipc10

        def is_hidden(folder: Path) -> bool:
            return any(part.startswith(".") for part in folder.relative_to(self.root).parts)

        found = self.root.glob("*/*/ipc*/*")
        return tuple(sorted((folder for folder in found if folder.is_dir() and not is_hidden(folder)), key=rank))


def open_set(path: Path) -> StoredSet:
    """Returns the set in the folder ``path``, in the store or anywhere else.

    Raises:
        InvalidSetError: if it is no set: not exactly three regular files, not of the sizes in a valid manifest, of a
            newer schema, or under another id than its own.
    """
    with _blaming(path):
        sizes = _sizes(path)
        with (path / MANIFEST).open("rb") as file:
            manifest = read_manifest(file.read(SIZE_LIMIT + 1))
        for name, entry in manifest.files.items():
            if sizes[name] != entry.bytes:
                raise InvalidSetError(f"{name} has {sizes[name]} bytes, expected {entry.bytes}; {CURE}")
        set_id = manifest.provenance.restore().set_id
        if path.resolve().name != set_id:
            raise InvalidSetError(f"this is set {set_id} in a folder of another name; rename the folder to {set_id}")
    return StoredSet(path.resolve() if path.name != set_id else path, manifest)


def _sizes(path: Path) -> dict[str, int]:
    """Returns the sizes of the three files; links are not followed, and any other entry is one too many."""
    if path.is_symlink() or not path.is_dir():
        raise InvalidSetError(f"no folder; expected one with {CARD}, {MANIFEST} and {TENSORS}")
    found = {entry.name: entry.lstat() for entry in path.iterdir()}
    expected = {CARD, MANIFEST, TENSORS}
    if missing := sorted(expected - set(found)):
        raise InvalidSetError(f"{', '.join(missing)} is missing; {CURE}")
    if extra := sorted(set(found) - expected):
        raise InvalidSetError(f"{', '.join(extra)!r:.200} is none of a set's files; move it elsewhere")
    for name, status in found.items():
        if not stat.S_ISREG(status.st_mode):
            raise InvalidSetError(f"{name} is no regular file; put the file itself in its place")
    return {name: status.st_size for name, status in found.items()}


def _verify(path: Path, name: str, manifest: Manifest) -> None:
    """Raises InvalidSetError unless a file is the one that the manifest names."""
    found, expected = sha256_file(path / name), manifest.files[name].sha256
    if found != expected:
        raise InvalidSetError(f"{name} has sha256 {found[:12]}…, expected {expected[:12]}…; {CURE}")


def _prepare(partial: Path, synthetic: SyntheticSet) -> None:
    """Writes the three files of a set into a folder."""
    codec.write(partial / TENSORS, synthetic)
    parts = ledger(synthetic, (partial / TENSORS).stat().st_size)
    write_atomic(partial / CARD, render_card(synthetic, parts))
    facts = {
        "files": {
            name: {"sha256": sha256_file(partial / name), "bytes": (partial / name).stat().st_size}
            for name in (TENSORS, CARD)
        },
        "ledger": parts,
        "images": len(synthetic),
        "payload": codec.describe(synthetic.payload).model_dump(),
        "targets": codec.describe(synthetic.targets).model_dump(),
        "native_protocol": synthetic.native_protocol,
        "suggested_lr": synthetic.suggested_lr,
    }
    write_atomic(partial / MANIFEST, write_manifest(facts, synthetic.provenance))


def _kept(folder: Path, manifest: Path, *, replace: bool) -> StoredSet | None:
    """Returns the set in ``folder`` if it is sound and teaches what ``manifest`` describes; None if it shall give way.

    Raises:
        DDBenchError: if it is another set, or damaged, and shall not give way.
    """
    try:
        stored = open_set(folder)
        stored.load()
        _compare(stored, read_manifest(manifest.read_bytes()))
    except DDBenchError:
        if replace:
            return None
        raise
    return stored


def _compare(stored: StoredSet, new: Manifest) -> None:
    differing = [
        name for name in ("payload", "targets", "native_protocol", "suggested_lr")
        if getattr(stored.manifest, name) != getattr(new, name)
    ]  # fmt: skip
    if stored.sha256 != new.files[TENSORS].sha256:
        differing.insert(0, "tensors")
    if differing:
        raise DDBenchError(
            f"set {stored.path} is there with other {', '.join(differing)}, though recipe and seed are the same; "
            "keep it, or delete it and run the same command again"
        )


def _try_to_open(folder: Path) -> StoredSet | DamagedSet:
    try:
        return open_set(folder)
    except InvalidSetError as error:
        return DamagedSet(folder, error)


@contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Says which set could not be written."""
    try:
        yield
    except OSError as error:
        raise DDBenchError(
            f"cannot write set {folder} ({error.strerror or error}); make room or allow writing there, and run the "
            "same command again"
        ) from error


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Puts the set's path in front of what is wrong with it."""
    try:
        yield
    except InvalidSetError as error:
        raise InvalidSetError(f"set {path}: {error}") from error
    except OSError as error:
        raise InvalidSetError(f"set {path}: cannot be read ({error.strerror or error}); {CURE}") from error
