"""``imagefolder:PATH``: a folder of the user's own images, one folder a class, prepared once and known by its name.

PATH holds one folder for each class, or ``train`` and one of ``test``, ``val`` and ``validation``, which do. Without a
test split of its own a tenth of every class, at least one image, becomes one: those whose paths have the smallest
sha256, so that files that come or go move hardly any others. Images are cut to a square about their centre and resized,
once. The name of the data set is the folder's, not its path: sets, records and boards go elsewhere.
"""

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from dd_bench.data.decoding import is_grey, opened, read_image
from dd_bench.data.folder_listing import MOST_CLASSES, Listing, is_class_name, list_folder
from dd_bench.data.names import LARGEST, SMALLEST, USUAL
from dd_bench.data.specs import DatasetSpec
from dd_bench.data.streaming import SPLITS, Pixels, write_stream
from dd_bench.errors import DataError
from dd_bench.progress import Progress

_AT_ONCE = 256  # images in memory


class _Facts(BaseModel):
    """What a prepared file says of itself."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    size: int = Field(ge=SMALLEST, le=LARGEST)
    channels: int = Field(ge=1, le=3)
    classes: tuple[str, ...] = Field(min_length=2, max_length=MOST_CLASSES)
    source: str = Field(pattern=r"^[0-9a-f]{64}$")
    mean: tuple[float, ...] = Field(min_length=1, max_length=3)
    std: tuple[float, ...] = Field(min_length=1, max_length=3)

    def as_spec(self, base: str) -> DatasetSpec:
        """Returns them as those of a data set. Photographs may be mirrored."""
        for what, values, low in (("mean", self.mean, 0.0), ("std", self.std, 1e-4)):
            if len(values) != self.channels or not all(low <= value <= 1 for value in values):
                raise ValueError(f"{what} is {list(values)}; expected {self.channels} numbers in [{low:g}, 1]")
        if not all(map(is_class_name, self.classes)):
            raise ValueError("classes have names that cannot be printed")
        return DatasetSpec(
            base, (self.channels, self.size, self.size), len(self.classes), self.mean, self.std, True, self.classes
        )


def read_spec(base: str, path: Path) -> DatasetSpec:
    """Returns the facts of the image folder ``base`` as its prepared file ``path`` tells them.

    Raises:
        DataError: if it does not.
    """
    facts = _read_facts(path)
    try:
        return facts.as_spec(base)
    except ValueError as error:
        raise DataError(f"{path} holds images whose {error}; delete {path.parent} to have it made again") from error


def prepare_folder(base: str, source: Path, size: int | None, path: Path) -> None:
    """Leaves the prepared images of the folder ``source`` in ``path``, and says what was done to them.

    Args:
        base: name of the data set.
        source: the folder.
        size: pixels of a side; None: that of the images if all are squares of one size that is allowed, else 64.
        path: where.

    Raises:
        DataError: for a folder of another form, an image that cannot be read, or a disk without room.
    """
    listing = list_folder(source)
    shapes, grey = _survey(listing, base)
    size = size or _size_of(shapes)
    spec = DatasetSpec(
        base, (1 if grey else 3, size, size), len(listing.classes), (0.0,), (1.0,), True, listing.classes
    )
    facts = {
        "size": json.dumps(size), "channels": json.dumps(spec.image_shape[0]), "classes": json.dumps(listing.classes),
        "source": json.dumps(listing.digest()),
    }  # fmt: skip
    labels = {split: np.array([label for _, label in listing.splits[split]], np.int64) for split in SPLITS}
    images = {split: _decode(listing, split, size, grey) for split in SPLITS}
    write_stream(path, spec, labels, images, facts=facts)
    small, large = (f"{width}×{height}" for width, height in (min(shapes), max(shapes)))
    found = small if len(shapes) == 1 else f"{small} to {large}"
    sys.stderr.write(
        f"{base}: {len(listing.classes)} classes, {len(labels['train']):,} images for training and "
        f"{len(labels['test']):,} for testing, {found} pixels, "
        f"{'kept as they are' if shapes == {(size, size)} else f'cut and resized to {size}×{size}'}"
        f"{', grey' if grey else ''}; kept in {path}\n"
    )


def require_same(source: Path, path: Path) -> None:
    """Raises DataError unless ``path`` was prepared from what the folder ``source`` holds now."""
    if list_folder(source).digest() != _read_facts(path).source:
        raise DataError(
            f"the files in {source} are not those that {path} was prepared from; delete {path.parent} to have it made "
            "again, or give one of the two folders another name"
        )


def _survey(listing: Listing, base: str) -> tuple[set[tuple[int, int]], bool]:
    """Returns the (width, height) there are, and whether all images are grey; only their heads are read."""
    paths = [listing.root / name for split in SPLITS for name, _ in listing.splits[split]]
    shapes, grey = set(), True
    with Progress(f"looking at {base}", len(paths)) as progress:
        for done, path in enumerate(paths, 1):
            with opened(path) as image:
                shapes.add(image.size)
                grey = grey and is_grey(image)
            progress.update(done)
    return shapes, grey


def _size_of(shapes: set[tuple[int, int]]) -> int:
    width, height = next(iter(shapes))
    return width if len(shapes) == 1 and width == height and SMALLEST <= width <= LARGEST else USUAL


def _decode(listing: Listing, split: str, size: int, grey: bool) -> Iterator[Pixels]:
    """Yields the images of a split in batches, decoded by as many threads as there are cores."""
    paths = (listing.root / name for name, _ in listing.splits[split])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while some := list(islice(paths, _AT_ONCE)):
            yield np.stack(list(pool.map(lambda path: read_image(path, size, grey), some)))


def _read_facts(path: Path) -> _Facts:
    try:
        with safe_open(path, framework="numpy") as file:
            found = file.metadata() or {}
        return _Facts.model_validate({name: json.loads(text) for name, text in found.items()})
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        else:
            reason = " ".join(str(error).split())
        raise DataError(
            f"{path} does not say what images it holds ({reason:.200}); delete {path.parent} to have it made again"
        ) from error
