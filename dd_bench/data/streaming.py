"""Prepared images written batch by batch, so that memory stays bounded whatever their number."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import DataError
from dd_bench.files import human_bytes, open_atomic
from dd_bench.progress import Progress

Pixels = NDArray[np.uint8]
SPLITS = ("test", "train")
_SPARE_BYTES = 100_000_000  # that a disk keeps for others


class Moments:
    """Sums over the training pixels seen so far, by channel, from which their mean and deviation follow."""

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._sums = np.zeros((2, channels))

    def add(self, images: Pixels) -> None:
        """Takes images (n, C, H, W) in."""
        pixels = images.astype(np.float64) / 255
        self._count += len(images) * images.shape[2] * images.shape[3]
        self._sums += np.stack([pixels.sum((0, 2, 3)), np.square(pixels).sum((0, 2, 3))])

    def result(self) -> tuple[list[float], list[float]]:
        """Returns mean and standard deviation of each channel in [0, 1], rounded to four digits as ``SPECS`` has them.

        A channel that never changes gets a deviation of 0.0001, by which one can divide.
        """
        mean, square = self._sums / self._count
        deviation = np.sqrt(np.maximum(square - mean**2, 0))
        return [round(float(part), 4) for part in mean], [max(round(float(part), 4), 1e-4) for part in deviation]


def write_stream(
    path: Path, spec: DatasetSpec, labels: Mapping[str, NDArray[np.int64]], images: Mapping[str, Iterable[Pixels]], *,
    facts: Mapping[str, str] | None = None,
) -> None:  # fmt: skip
    """Leaves a prepared file in ``path``, whole or not at all; see ``dd_bench.data.prepare`` for what is in it.

    Args:
        path: where.
        spec: the images' shape.
        labels: of ``train`` and ``test``, (N,) in [0, K).
        images: of both, in batches (n, C, H, W) that together are N.
        facts: what else the file says of itself. ``mean`` and ``std`` are added to it, as JSON, of the training pixels.

    Raises:
        DataError: if the disk has no room for it.
        ValueError: if there are not as many images as labels.
    """
    row = int(np.prod(spec.image_shape))
    total = sum(len(part) for part in labels.values())
    layout: dict[str, object] = {}
    begin = 0
    for split in SPLITS:  # labels first: they want to lie at multiples of eight bytes
        end = begin + 8 * len(labels[split])
        layout[f"{split}_labels"] = {"dtype": "I64", "shape": [len(labels[split])], "data_offsets": [begin, end]}
        begin = end
    for split in SPLITS:
        end, shape = begin + row * len(labels[split]), [len(labels[split]), *spec.image_shape]
        layout[f"{split}_images"] = {"dtype": "U8", "shape": shape, "data_offsets": [begin, end]}
        begin = end
    _require_room(path, begin)

    moments = Moments(spec.image_shape[0])
    with open_atomic(path) as file, Progress(f"preparing {spec.name}", total) as progress:
        length = _write_header(file, layout, facts, _placeholder(spec), 0)
        for split in SPLITS:
            file.write(np.ascontiguousarray(labels[split], "<i8").tobytes())
        done = 0
        for split in SPLITS:
            for batch in images[split]:
                file.write(batch.tobytes())
                done += len(batch)
                progress.update(done)
                if split == "train":
                    moments.add(batch)
            if file.tell() != length + layout[f"{split}_images"]["data_offsets"][1]:  # type: ignore[index]
                raise ValueError(f"{split} has {len(labels[split])} labels, but another number of images")
        file.seek(0)
        _write_header(file, layout, facts, moments.result(), length)


def _placeholder(spec: DatasetSpec) -> tuple[list[float], list[float]]:
    return [0.0] * spec.image_shape[0], [0.0] * spec.image_shape[0]


def _write_header(
    file: IO[bytes], layout: Mapping[str, object], facts: Mapping[str, str] | None,
    moments: tuple[list[float], list[float]], length: int,
) -> int:  # fmt: skip
    """Writes the header of a safetensors file and returns its length; one that is known is kept by trailing spaces."""
    known = dict(facts or {})
    for name, values in zip(("mean", "std"), moments, strict=True):
        known[name] = "[" + ", ".join(f"{value:.4f}" for value in values) + "]"  # as long for every value
    text = json.dumps({"__metadata__": known, **layout}).encode()
    size = length - 8 if length else len(text) + -len(text) % 8
    file.write(size.to_bytes(8, "little") + text.ljust(size))
    return 8 + size


def _require_room(path: Path, size: int) -> None:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size + min(size, _SPARE_BYTES):
        raise DataError(
            f"{path} would take {human_bytes(size)}, but {folder} has {human_bytes(free)} left; make room there, or "
            "name another folder with --data-dir"
        )
