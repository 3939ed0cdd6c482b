"""Raw files of graph sets: where they lie, how they come there, and the tables of whole numbers in them.

Only text is read, unpacked or in the authors' zip archive; nothing is unpickled, so what PyTorch Geometric or OGB may
have left in a ``processed`` folder is never touched.
"""

import gzip
import http.client
import io
import re
import urllib.request
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dd_bench.errors import DataError
from dd_bench.files import write_atomic

REMEDY = "replace the raw files"

_PATIENCE_SECONDS = 30.0  # with a server that says nothing
_LARGEST_TABLE = 1 << 28  # bytes; DD's arcs take 20 million
_LARGEST_ARCHIVE = 1 << 30

Place = Path | zipfile.Path
Table = NDArray[np.int64]


@dataclass(frozen=True)
class RawSource:
    """Where the raw files of a data set are found.

    Attributes:
        name: of the data set; its archive lies in ``<data folder>/<name>``.
        folder: unpacked files lie in ``<data folder>/<folder>``, at least partly in its ``raw``.
        url: of the zip archive, which holds one folder named like itself.
    """

    name: str
    folder: str
    url: str

    @property
    def archive(self) -> str:
        """The file name of the archive."""
        return self.url.rpartition("/")[2]


def find_raw(source: RawSource, folders: Sequence[Path]) -> Place:
    """Returns the folder, on disk or in an archive, that holds the raw files; downloads where there is none.

    Args:
        source: what to look for.
        folders: data folders, first to last; only the first is written to.

    Raises:
        DataError: if it is nowhere and the download fails; the message says what to put where.
        OSError: if the first folder cannot be written.
    """
    for folder in folders:
        unpacked, archive = folder / source.folder, folder / source.name / source.archive
        try:
            if (unpacked / "raw").is_dir():
                return unpacked
            if archive.is_file():
                return _inside(archive)
        except OSError:  # a folder that may not be looked into
            continue
    archive = folders[0] / source.name / source.archive
    try:
        with urllib.request.urlopen(source.url, timeout=_PATIENCE_SECONDS) as answer:
            content: bytes = answer.read(_LARGEST_ARCHIVE + 1)
        if len(content) > _LARGEST_ARCHIVE or not zipfile.is_zipfile(io.BytesIO(content)):
            raise OSError("what came is no zip archive")
    except (OSError, http.client.HTTPException) as error:
        raise DataError(
            f"{source.name} is not prepared yet: neither {source.name}/data.safetensors nor {source.folder}/raw lies "
            f"under --data-dir, DDBENCH_DATA or ~/.cache/ddbench, and the download of {source.url} failed ({error}); "
            f"put {source.archive} into {archive.parent} and try again, or point DDBENCH_DATA at a folder that holds "
            f"{source.folder}/raw"
        ) from error
    write_atomic(archive, content)
    return _inside(archive)


def _inside(archive: Path) -> zipfile.Path:
    """Returns the folder in an archive that is named like the archive."""
    try:
        return zipfile.Path(archive, f"{archive.stem}/")
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(
            f"{archive} cannot be read ({error}); expected a zip archive: replace it, or delete it to have it "
            "downloaded again"
        ) from error


def read_table(place: Place, columns: int) -> Table:
    """Returns the whole numbers of a text file, gzipped or not, with one row a line; (rows, columns) int64.

    Raises:
        DataError: if there is no such file, or something in it is not a row of ``columns`` whole numbers.
    """
    expected = f"expected {columns} whole number{'s with commas between' if columns > 1 else ''} in every line"
    try:
        if not place.is_file():
            raise DataError(f"{place} is missing; expected it beside the other raw files: put it there")
        text = _read(place).decode()
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{place} cannot be read ({error}); {expected}: replace it") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file: how many rows there must be is told later
            rows: Table = np.loadtxt(io.StringIO(text), np.int64, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        row = re.compile(rf"\s*[+-]?\d{{1,18}}\s*(,\s*[+-]?\d{{1,18}}\s*){{{columns - 1}}}", re.ASCII)
        lines = enumerate(text.split("\n"), 1)
        found = next(
            (f"line {n} is {line[:60]!r}" for n, line in lines if line.strip() and not row.fullmatch(line)), error
        )
        raise DataError(f"{place}: {found}; {expected}: replace it") from error
    if rows.size == 0:
        return np.empty((0, columns), np.int64)
    if rows.shape[1] != columns:
        raise DataError(f"{place} has {rows.shape[1]} columns; {expected}: replace it")
    return rows


def _read(place: Place) -> bytes:
    """Returns a file's content, unpacked, unless it is larger than any table of any set: archives can lie."""
    with place.open("rb") as packed, gzip.open(packed) if place.name.endswith(".gz") else packed as file:
        content: bytes = file.read(_LARGEST_TABLE + 1)
    if len(content) > _LARGEST_TABLE:
        raise ValueError(f"over {_LARGEST_TABLE:,} bytes")
    return content


def require_lines(place: Place, found: int, expected: int, what: str) -> None:
    """Raises DataError unless a file has one line for each of ``expected`` things."""
    if found != expected:
        raise DataError(f"{place} has {found:,} lines; expected {expected:,}, one for each {what}: {REMEDY}")


def require_ends(place: Place, arcs: Table, first: int, counts: int | Table) -> None:
    """Raises DataError unless the ends of all arcs are nodes.

    Args:
        place: their file, for the message.
        arcs: (M, 2), counted from 0.
        first: how the file numbers the first node.
        counts: how many nodes there are; (M,) or one number.
    """
    outside = np.flatnonzero(((arcs < 0) | (arcs >= np.reshape(counts, (-1, 1)))).any(1))
    if len(outside):
        row = int(outside[0])
        ends = ", ".join(str(end + first) for end in arcs[row])
        last = int(np.broadcast_to(counts, len(arcs))[row]) - 1 + first
        raise DataError(f"{place}: line {row + 1} is {ends}; expected nodes from {first} to {last}: {REMEDY}")
