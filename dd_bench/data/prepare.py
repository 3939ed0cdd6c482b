"""Where prepared data lies, and how it comes to lie there: one ``<folder>/<name>/data.safetensors`` a data set.

A prepared file of images holds ``train_images`` and ``test_images`` (N, C, H, W) uint8, ``train_labels`` and
``test_labels`` (N,) int64; one of graphs what ``graph_layout`` says. It is looked for in an explicitly named folder, in
``DDBENCH_DATA`` and in ``~/.cache/ddbench``, and made where none has it: in the explicit folder, else in the cache.
``DDBENCH_DATA`` is only read.
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from safetensors.torch import save
from torch import Tensor

from dd_bench.data.digits import read_digits
from dd_bench.data.downloads import download
from dd_bench.data.external import load_external
from dd_bench.data.graph_sources import make_graphs
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.image_folder import prepare_folder, require_same
from dd_bench.data.names import PREFIX, DatasetName
from dd_bench.data.tiny_imagenet import write_tiny_imagenet
from dd_bench.errors import DataError
from dd_bench.files import slug, write_atomic


def find(base: str, data_dir: Path | None = None) -> Path:
    """Returns the prepared file of ``base``, making it (with a download, if it needs one) where there is none.

    Raises:
        DataError: if it is nowhere and cannot be made; the message says what to put where.
    """
    folders = _folders(data_dir)
    return locate(base, data_dir) or prepare(base, folders[-1] if data_dir is None else folders[0])


def find_folder(name: DatasetName, data_dir: Path | None = None) -> Path:
    """Returns the prepared file of an image folder, preparing it where that was not done before.

    Where the name holds a path, the folder must still be what was prepared; a bare name is of the prepared one, or else
    of a folder here.

    Raises:
        DataError: if neither is there, the folder changed, or it cannot be prepared.
    """
    found = locate(name.base, data_dir)
    try:
        source = Path(name.source).expanduser()
        is_there = source.is_dir()
    except (OSError, RuntimeError, ValueError):  # a path that cannot be
        source, is_there = Path(name.source), False
    if found is not None:
        if is_there and source.name != name.source:
            require_same(source, found)
        return found
    folders = _folders(data_dir)
    if not is_there:
        raise DataError(
            f"{source} is no folder, and {_file(Path(), name.base)} is in none of {', '.join(map(str, folders))}; "
            "expected one folder of images for each class"
        )
    folder = folders[-1] if data_dir is None else folders[0]
    return _once(name.base, folder, lambda path: prepare_folder(name.base, source, name.size, path))


def prepared_folders(data_dir: Path | None = None) -> dict[str, Path]:
    """Returns the prepared file of every image folder by name, sorted; one that cannot be read is not among them."""
    found: dict[str, Path] = {}
    for folder in _folders(data_dir):
        for path in sorted(folder.glob(f"{slug(PREFIX + 'x')[:-1]}*/data.safetensors")):
            base = path.parent.name.replace("+", ":")
            if base not in found and locate(base, data_dir) == path:
                found[base] = path
    return dict(sorted(found.items()))


def locate(base: str, data_dir: Path | None = None) -> Path | None:
    """Returns the prepared file of ``base`` that ``find`` would use, or None if there is none yet."""
    paths = (_file(folder, base) for folder in _folders(data_dir))
    return next((path for path in paths if _exists(path)), None)


def prepare(base: str, folder: Path) -> Path:
    """Leaves the prepared file of ``base`` in ``folder``, whole, and returns its path; makes it at most once.

    Processes that ask at the same time wait for the first. The archive of a download and what was unpacked from it
    stay beside the prepared file, for their owner to delete; nothing reads them again.

    Raises:
        DataError: if the folder cannot be written or the download fails.
    """

    def write(path: Path) -> None:
        if base == "tinyimagenet":
            write_tiny_imagenet(path)
        else:
            made = (_MAKERS.get(base) or load_external(base).make)(path.parent)
            write_atomic(path, save({key: tensor.clone() for key, tensor in made.items()}))  # theirs may be views

    return _once(base, folder, write)


def _once(base: str, folder: Path, write: Callable[[Path], None]) -> Path:
    """Has ``write`` leave the prepared file, unless it is there or another process comes first; returns its path."""
    path = _file(folder, base)
    if _exists(path):  # before the lock: a finished file may lie in a folder that only its owner can write
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f"{path.name}.lock")):
            if not path.is_file():
                write(path)
    except OSError as error:
        raise DataError(
            f"{base} is not prepared yet, and {path} cannot be written ({error}); "
            "name a writable folder with --data-dir, or one that holds the file in DDBENCH_DATA"
        ) from error
    return path


def _folders(data_dir: Path | None) -> list[Path]:
    """Returns the folders to search, first to last; the last is the cache."""
    named = [data_dir, os.environ.get("DDBENCH_DATA")]
    try:
        return [Path(folder).expanduser() for folder in named if folder] + [Path.home() / ".cache" / "ddbench"]
    except RuntimeError as error:
        raise DataError(f"no home folder to keep data in ({error}); set HOME, or name folders without '~'") from error


def _file(folder: Path, base: str) -> Path:
    return folder / slug(base) / "data.safetensors"


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder that may not be looked into
        return False


def _make_digits(first: int, last: int, _folder: Path) -> dict[str, Tensor]:
    """Returns the digits ``first`` to ``last`` from scikit-learn's copy, grey levels 0 to 16 spread over 0 to 255.

    An image is for testing in each of these data sets or in none. Labels count from 0.
    """
    levels, labels, test = read_digits()
    images = torch.from_numpy(np.rint(levels * (255 / 16)).astype(np.uint8))[:, None]  # (N, 1, 8, 8)
    asked = (labels >= first) & (labels <= last)
    return {
        "train_images": images[asked & ~test],
        "train_labels": labels[asked & ~test] - first,
        "test_images": images[asked & test],
        "test_labels": labels[asked & test] - first,
    }


def _make_graphs(folder: Path) -> dict[str, Tensor]:
    """Returns the graph set that ``folder`` is named after, from raw files in any of the data folders."""
    return make_graphs(folder.name, _folders(folder.parent))


_MAKERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "digits": partial(_make_digits, 0, 9),
    "digits-low": partial(_make_digits, 0, 4),
    "digits-high": partial(_make_digits, 5, 9),
    "cifar10": partial(download, "CIFAR10"),
    "cifar100": partial(download, "CIFAR100"),
    "mnist": partial(download, "MNIST"),
    "fashionmnist": partial(download, "FashionMNIST"),
    "svhn": partial(download, "SVHN"),
    **dict.fromkeys(GRAPH_SPECS, _make_graphs),
}
