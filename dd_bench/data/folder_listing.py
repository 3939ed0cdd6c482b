"""What is in a folder of images, one folder a class, before an image is read; see ``image_folder`` for its form."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dd_bench.data.streaming import SPLITS
from dd_bench.errors import DataError
from dd_bench.progress import Progress

MOST_CLASSES = 1000
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_TEST_NAMES = ("test", "val", "validation")
_TEST_SHARE = 10  # a tenth


@dataclass(frozen=True)
class Listing:
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


def list_folder(root: Path) -> Listing:
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
    if odd := [name for name in classes if not is_class_name(name)]:
        raise DataError(f"class {odd[0]!r:.120} has no printable name of at most 100 characters; rename its folder")
    splits = {
        split: [(path, label) for label, name in enumerate(classes) for path in found[name]]
        for split, found in by_split.items()
    }
    return Listing(root, tuple(classes), splits)


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


def is_class_name(name: str) -> bool:
    """Says whether a name can be shown: printable, of 1 to 100 characters."""
    return name.isprintable() and 0 < len(name) <= 100
