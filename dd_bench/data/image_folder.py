"""``imagefolder:PATH``: a folder of the user's own images, one folder a class, prepared once and known by its name.

PATH holds one folder for each class, or ``train`` and one of ``test``, ``val`` and ``validation``, which do. Without a
test split of its own a tenth of every class, at least one image, becomes one: those whose paths have the smallest
sha256, so that files that come or go move hardly any others. Images are cut to a square about their centre and resized,
once. The name of the data set is the folder's, not its path: sets, records and boards go elsewhere.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open

from dd_bench.data.decoding import is_grey, opened, read_image
from dd_bench.data.names import LARGEST, SMALLEST, USUAL
from dd_bench.data.specs import DatasetSpec
from dd_bench.data.streaming import SPLITS, Pixels, write_stream
from dd_bench.errors import DataError
from dd_bench.progress import Progress

MOST_CLASSES = 1000

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_TEST_NAMES = ("test", "val", "validation")
_TEST_SHARE = 10  # a tenth
_AT_ONCE = 256  # images in memory


@dataclass(frozen=True)
class _Listing:
    """What is in a folder before an image is read: classes, and for each split (path within it, class) of images."""

    root: Path
    classes: tuple[str, ...]
    splits: Mapping[str, list[tuple[str, int]]]

    def digest(self) -> str:
        """Returns the sha256 of names, sizes and times of all files: another one, and the folder is not what it was."""
        digest, done = hashlib.sha256(), 0
        with Progress(f"comparing {self.root.name}", sum(map(len, self.splits.values()))) as progress:
            for split in SPLITS:
                for name, label in self.splits[split]:
                    status = (self.root / name).stat()
                    line = f"{split}\0{label}\0{name}\0{status.st_size}\0{status.st_mtime_ns}\n"
                    digest.update(line.encode("utf-8", "surrogateescape"))
                    progress.update(done := done + 1)
        return digest.hexdigest()


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
        if not all(map(_is_class_name, self.classes)):
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


def list_folder(root: Path) -> _Listing:
    """Returns the images of a folder by split and class, sorted; hidden files and folders are passed over.

    Raises:
        DataError: for a folder of another form: too few or too many classes, a class without images, splits of
            different classes.
    """
    try:
        folders = _subfolders(root)
        test = next((name for name in _TEST_NAMES if name in folders and "train" in folders), None)
        if test is not None:
            by_split = {"train": _classes(root, "train/"), "test": _classes(root, f"{test}/")}
            if set(by_split["train"]) != set(by_split["test"]):
                odd = sorted(set(by_split["train"]) ^ set(by_split["test"]))
                raise DataError(
                    f"{root}/train and {root}/{test} differ in classes ({', '.join(odd)!r:.100}); expected the same "
                    "in both"
                )
        else:
            by_split = _split(_classes(root))
    except OSError as error:
        raise DataError(
            f"{error.filename or root} cannot be read ({error.strerror}); expected a folder with one folder of "
            "images for each class"
        ) from error
    classes = sorted(by_split["train"])
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise DataError(
            f"{root} has {len(classes)} folders; expected one for each of 2 to {MOST_CLASSES} classes, or train and "
            "test folders that hold them"
        )
    if odd := [name for name in classes if not _is_class_name(name)]:
        raise DataError(f"class {odd[0]!r:.120} has no printable name of at most 100 characters; rename its folder")
    splits = {
        split: [(path, label) for label, name in enumerate(classes) for path in found[name]]
        for split, found in by_split.items()
    }
    return _Listing(root, tuple(classes), splits)


def _classes(root: Path, inside: str = "") -> dict[str, list[str]]:
    """Returns the paths of the images in each folder of ``root/inside``, from ``root`` on."""
    names, found = _subfolders(root / inside), {}
    with Progress(f"listing {root.name}", len(names)) as progress:
        for done, name in enumerate(names, 1):
            found[name] = _images(root, f"{inside}{name}")
            progress.update(done)
    return found


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, folder: str) -> list[str]:
    with os.scandir(root / folder) as entries:  # which knows of most what it is, without a look at each
        found = sorted(
            f"{folder}/{entry.name}"
            for entry in entries
            if Path(entry.name).suffix.lower() in _SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
    if not found:
        raise DataError(f"{root / folder} holds no images; expected some of {', '.join(sorted(_SUFFIXES))}")
    return found


def _split(classes: Mapping[str, list[str]]) -> dict[str, dict[str, list[str]]]:
    """Returns the images of each class, cut into a training and a test split."""
    by_split: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        if len(paths) < 2:
            raise DataError(
                f"class {name!r} has a single image; expected one for training and one for testing at least"
            )
        ranked = sorted(paths, key=lambda path: hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest())
        held_out = set(ranked[: -(-len(paths) // _TEST_SHARE)])
        by_split["test"][name] = [path for path in paths if path in held_out]
        by_split["train"][name] = [path for path in paths if path not in held_out]
    return by_split


def _is_class_name(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= 100


def _survey(listing: _Listing, base: str) -> tuple[set[tuple[int, int]], bool]:
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


def _decode(listing: _Listing, split: str, size: int, grey: bool) -> Iterator[Pixels]:
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
