"""Synthetic sets on disk, the only place where synthesizers and the evaluator meet.

A set is the folder ``<root>/<dataset>/<method>/ipc<k>/<id>`` (``dd_bench.stored``). It appears whole or not at all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dd_bench import codec
from dd_bench.budget import ledger
from dd_bench.card import render_card
from dd_bench.errors import DDBenchError, InvalidSetError, UnknownNameError
from dd_bench.files import home, safe_name, sha256_file, slug, write_atomic
from dd_bench.manifest import CARD, MANIFEST, TENSORS, Manifest, read_manifest, write_manifest
from dd_bench.publication import Publication
from dd_bench.sets import Provenance, SyntheticSet
from dd_bench.stored import DamagedSet, StoredSet, open_set


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
