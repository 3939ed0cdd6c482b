"""One synthetic set on disk: opened, verified, loaded.

A set is a folder of exactly three files, named by its id: ``manifest.json``, ``tensors.safetensors`` and ``card.png``.
Nothing of it is used before it is verified: sizes and the manifest when a set is opened, hashes and tensors when it is
loaded. Nothing is unpickled.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dd_bench import codec
from dd_bench.budget import ledger
from dd_bench.errors import InvalidSetError
from dd_bench.files import sha256_file
from dd_bench.manifest import CARD, CURE, MANIFEST, SIZE_LIMIT, TENSORS, Manifest, read_manifest
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


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Puts the set's path in front of what is wrong with it."""
    try:
        yield
    except InvalidSetError as error:
        raise InvalidSetError(f"set {path}: {error}") from error
    except OSError as error:
        raise InvalidSetError(f"set {path}: cannot be read ({error.strerror or error}); {CURE}") from error
