"""Folders that appear whole or not at all, whatever happens to whom is writing them."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dd_bench.files import locked


@dataclass(frozen=True)
class Publication:
    """A folder on its way.

    Attributes:
        folder: where it shall be.
        partial: where its content is written: beside it, hidden, and gone afterwards unless it was published.
    """

    folder: Path
    partial: Path

    @classmethod
    @contextmanager
    def of(cls, folder: Path) -> Iterator["Publication"]:
        """Holds the lock of ``folder`` for a block, which fills ``partial`` and may publish it.

        What stopped writers of the same folder left goes, after the folder that one of them had moved aside was put
        back.

        Raises:
            OSError: if the disk refuses.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(f"set {folder.resolve()}"):
            _sweep(folder)
            try:
                yield cls(
                    folder, Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".partial"))
                )
            finally:
                _sweep(folder)

    @property
    def taken(self) -> bool:
        """Whether something has the folder's name already."""
        return _taken(self.folder)

    def publish(self) -> None:
        """Gives the folder its name in one step; what had it before moves out of the way first."""
        for path in (self.partial, *self.partial.iterdir()):  # others of a shared folder can read it: mkdtemp made 0700
            path.chmod(0o755 if path.is_dir() else 0o644)
        if self.taken:
            self.folder.rename(self.partial.with_suffix(".former"))
        self.partial.rename(self.folder)


def _sweep(folder: Path) -> None:
    for leftover in sorted(folder.parent.glob(f".{folder.name}.*")):  # .former before .partial
        if leftover.suffix == ".former" and not _taken(folder):
            leftover.rename(folder)
        elif leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink()


def _taken(folder: Path) -> bool:
    return folder.is_symlink() or folder.exists()
