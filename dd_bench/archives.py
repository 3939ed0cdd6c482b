"""Stored sets as single files that can be handed on: zip archives of the three files of a set, and nothing else.

Equal sets give equal archives: the files stand in one order, uncompressed (tensors hardly shrink, and what is not
compressed cannot swell), with one date. Any tool can open them; ``import_set`` takes only what ``export_set`` writes.
"""

import filecmp
import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from dd_bench.errors import DDBenchError, InvalidSetError
from dd_bench.files import human_bytes, open_atomic
from dd_bench.manifest import CARD, MANIFEST, SIZE_LIMIT, TENSORS, Manifest, read_manifest
from dd_bench.progress import Progress
from dd_bench.store import Store
from dd_bench.stored import StoredSet

_MEMBERS = (MANIFEST, TENSORS, CARD)  # what says what there is comes first
_CHUNK = 1 << 20
_CURE = "have it exported again (ddbench export)"


def export_set(stored: StoredSet, path: Path) -> bool:
    """Leaves a set, verified to the last byte, in the archive ``path``, and says whether it was not there yet.

    Raises:
        InvalidSetError: if the set is damaged.
        DDBenchError: if something else is in the place of the archive.
    """
    stored.load()
    if path.is_symlink() or path.exists():
        if not _holds(path, stored):
            raise DDBenchError(
                f"{path} is there already and is not this set; name another file with --to, or remove it"
            )
        return False
    with open_atomic(path) as file:
        _pack(stored, file)
    return True


def _pack(stored: StoredSet, file: IO[bytes]) -> None:
    sizes = {name: (stored.path / name).stat().st_size for name in _MEMBERS}
    with ZipFile(file, "w", ZIP_STORED) as archive, Progress(f"export {stored.id}", sum(sizes.values())) as progress:
        done = 0
        for name in _MEMBERS:
            info = ZipInfo(name)  # dated 1980
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3  # else it would tell of the machine
            info.file_size = sizes[name]
            with (stored.path / name).open("rb") as source, archive.open(info, "w") as target:
                while part := source.read(_CHUNK):
                    target.write(part)
                    done += len(part)
                    progress.update(done)


def _holds(path: Path, stored: StoredSet) -> bool:
    """Says whether an archive is the one that a set would be exported to."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".ddbench-export-") as file:
        _pack(stored, file)
        file.flush()
        return path.is_file() and filecmp.cmp(path, file.name, shallow=False)


def import_set(path: Path, store: Store) -> StoredSet:
    """Leaves the set in the archive ``path`` in the store, verified to the last byte, and returns it.

    A set that is there already stays as it is. Nothing is written before the archive's list and its manifest are sound,
    and nothing is to be seen before all of it is.

    Raises:
        InvalidSetError: if the file is no archive of a set, damaged, or dangerous.
        DDBenchError: if another set is in its place, or the disk has no room.
    """
    try:
        with path.open("rb") as file, ZipFile(file) as archive:
            infos = _listed(archive, path)
            manifest = read_manifest(archive.read(MANIFEST))
            for name, entry in manifest.files.items():
                if infos[name].file_size != entry.bytes:
                    raise InvalidSetError(f"{name} has {infos[name].file_size} bytes, expected {entry.bytes}")
            _require_room(store.root, sum(info.file_size for info in infos.values()))
            return store.adopt(manifest, _unpack(archive, infos, manifest))
    except InvalidSetError as error:
        raise InvalidSetError(f"{path}: {error}; {_CURE}") from error
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise
        raise DDBenchError(f"there is no file {path}; expected one that ddbench export has written") from error
    except (BadZipFile, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise InvalidSetError(
            f"{path} is no archive of a set ({' '.join(str(error).split())!s:.200}); {_CURE}"
        ) from error


def _listed(archive: ZipFile, path: Path) -> dict[str, ZipInfo]:
    """Returns the members by name; a name is never used as a path, so that "../x" has nowhere to go."""
    infos = archive.infolist()
    if sorted(info.filename for info in infos) != sorted(_MEMBERS):
        names = sorted({info.filename for info in infos})
        raise InvalidSetError(f"holds {len(infos)} files, {names!r:.200}; expected {', '.join(_MEMBERS)}, each once")
    for info in infos:
        if info.compress_type != ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise InvalidSetError(f"{info.filename} is compressed or encrypted; expected it plain")
    found, there = {info.filename: info for info in infos}, path.stat().st_size
    if sum(info.file_size for info in infos) > there or found[MANIFEST].file_size > SIZE_LIMIT:
        raise InvalidSetError("its list promises more bytes than there are")
    if not all(0 <= info.header_offset < there for info in infos):
        raise InvalidSetError("its list says that files begin outside of it")
    return found


def _require_room(root: Path, size: int) -> None:
    nearest = next(place for place in (root.absolute(), *root.absolute().parents) if place.is_dir())
    if (free := shutil.disk_usage(nearest).free) < size:
        raise DDBenchError(
            f"the set takes {human_bytes(size)}, but {nearest} has {human_bytes(free)} left; make room there, or set "
            "DDBENCH_HOME to another folder"
        )


def _unpack(archive: ZipFile, infos: dict[str, ZipInfo], manifest: Manifest) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        total = sum(info.file_size for info in infos.values())
        with Progress(f"import {manifest.provenance.method}", total) as progress:
            done = 0
            for name in _MEMBERS:
                with archive.open(infos[name]) as source, (folder / name).open("xb") as target:
                    while part := source.read(_CHUNK):
                        target.write(part)
                        done += len(part)
                        progress.update(done)
                    target.flush()
                    os.fsync(target.fileno())

    return fill
