"""Prepared images, checked and read one split at a time; what ``images`` and ``holdout`` have in common."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from dd_bench.data.external import load_external
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.image_folder import read_spec
from dd_bench.data.names import DatasetName, choose, parse_name
from dd_bench.data.prepare import find, find_folder
from dd_bench.data.specs import SPECS, DatasetSpec
from dd_bench.errors import ConfigError, DataError

Split = Literal["train", "test"]

_HASHED_ROWS = 4096  # read at a time while hashing; bounds the memory of it


@dataclass(frozen=True, eq=False)
class Rows:
    """One split as it was asked for.

    Attributes:
        spec: facts of the data set; ``spec.name`` is its canonical name, subset included.
        images: (N, C, H, W) uint8; like the labels a private mapping of the file where the split is whole, else a copy.
        labels: (N,) int64 in [0, K).
        fingerprint: content hash of the data set, both splits of it.
    """

    spec: DatasetSpec
    images: Tensor
    labels: Tensor
    fingerprint: str


def read(text: str, split: Split, data_dir: Path | None = None) -> Rows:
    """Returns one split of the data set that ``text`` names; nothing of the other split is kept.

    Raises:
        UnknownNameError, ConfigError: if ``text`` names no data set of images, or a subset larger than the data.
        DataError: if the data is absent or malformed.
    """
    name = parse_name(text)
    if name.base in GRAPH_SPECS:
        raise ConfigError(f"{name} holds graphs; expected a data set of images: choose one of {', '.join(SPECS)}")
    if name.source:
        path = find_folder(name, data_dir)
        spec = read_spec(name.base, path)
    else:
        path = find(name.base, data_dir)
        spec = SPECS.get(name.base) or load_external(name.base).spec
    _check(path, spec)
    images, labels = _tensor(path, f"{split}_images"), _tensor(path, f"{split}_labels")
    rows = _chosen(path, name, spec, split)
    stat = path.stat()
    return Rows(
        spec=replace(spec, name=str(name)),
        images=images if rows is None else images[rows],
        labels=labels if rows is None else labels[rows],
        fingerprint=_fingerprint(path.resolve(), stat.st_mtime_ns, stat.st_size, name, spec),
    )


def _check(path: Path, spec: DatasetSpec) -> None:
    """Verifies all of a prepared file but its pixels; they are left on disk.

    Raises:
        DataError: for a damaged file, a missing tensor, a wrong type or shape, or a label outside [0, K).
    """
    remedy = "replace the file, or delete it to have it made again"
    try:
        with safe_open(path, framework="pt") as file:
            views = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (`file` itself is not iterable)
            found = {key: (view.get_dtype(), tuple(view.get_shape())) for key, view in views.items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected a whole safetensors file: {remedy}") from error
    for split in ("train", "test"):
        images, labels = f"{split}_images", f"{split}_labels"
        for key in (images, labels):
            if key not in found:
                raise DataError(f"{path} holds {', '.join(sorted(found)) or 'nothing'}; expected {key} too: {remedy}")
        dtype, shape = found[images]
        count = shape[0] if shape else 0
        if dtype != "U8" or shape[1:] != spec.image_shape or count == 0:
            expected = f"U8 of shape (N, {', '.join(map(str, spec.image_shape))}) with N > 0"
            raise DataError(f"{path}: {images} is {dtype} of shape {shape}; expected {expected}: {remedy}")
        dtype, shape = found[labels]
        if dtype != "I64" or shape != (count,):
            expected = f"I64 of shape ({count},), one label an image"
            raise DataError(f"{path}: {labels} is {dtype} of shape {shape}; expected {expected}: {remedy}")
        low, high = (int(bound) for bound in _tensor(path, labels).aminmax())
        if low < 0 or high >= spec.num_classes:
            expected = f"0 to {spec.num_classes - 1}"
            raise DataError(f"{path}: {labels} run from {low} to {high}; expected {expected}: {remedy}")


def _tensor(path: Path, key: str) -> Tensor:
    """Returns one tensor of a prepared file, as a private mapping of its own bytes and of no others."""
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


def _chosen(path: Path, name: DatasetName, spec: DatasetSpec, split: Split) -> Tensor | None:
    """Returns the rows of ``split`` that belong to the data set, ascending, or None for all of them."""
    per_class = name.per_class if split == "train" else name.test_per_class
    if per_class is None:
        return None
    return choose(_tensor(path, f"{split}_labels"), per_class, spec=spec, split=split)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, _mtime_ns: int, _size: int, name: DatasetName, spec: DatasetSpec) -> str:
    """Returns the sha256 of the bytes of all four tensors, in the order of their keys, at the chosen rows.

    The time and size of the file are there for the cache alone: a file that changes is hashed again.
    """
    digest = hashlib.sha256()
    splits: tuple[Split, ...] = ("test", "train")
    for split in splits:  # in the order of the keys: test_images, test_labels, train_images, train_labels
        rows = _chosen(path, name, spec, split)
        for key in (f"{split}_images", f"{split}_labels"):
            tensor = _tensor(path, key)
            for start in range(0, len(tensor) if rows is None else len(rows), _HASHED_ROWS):
                part = slice(start, start + _HASHED_ROWS)
                digest.update((tensor[part] if rows is None else tensor[rows[part]]).flatten().numpy().data)
    return digest.hexdigest()
