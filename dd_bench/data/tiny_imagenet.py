"""Tiny-ImageNet from its archive: 200 classes of 500 training images, 64 × 64 pixels (Le and Yang, Stanford, 2015).

Its own test split has no labels; as everywhere in the literature the validation split, 50 images a class, takes its
place. Images are decoded straight out of the archive, which is never unpacked.
"""

import http.client
import re
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from dd_bench.data.decoding import read_image
from dd_bench.data.downloads import bounded_silence
from dd_bench.data.specs import SPECS
from dd_bench.data.streaming import Pixels, write_stream
from dd_bench.errors import DataError

ARCHIVE = "tiny-imagenet-200.zip"
_URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_TRAIN = re.compile(r"tiny-imagenet-200/train/(n\d{8})/images/\1_\d+\.JPEG")
_ANNOTATIONS = "tiny-imagenet-200/val/val_annotations.txt"
_LARGEST_MEMBER = 4_000_000  # bytes; an image takes some 2,000, the annotations 400,000
_AT_ONCE = 256

_Item = tuple[str, int]  # member of the archive, class


def write_tiny_imagenet(path: Path) -> None:
    """Leaves the prepared file in ``path``, from the archive beside it, which is downloaded if it is not there.

    Raises:
        DataError: if it is not there and cannot be downloaded, or is not the one that Stanford publishes.
    """
    folder = path.parent
    from torchvision.datasets.utils import download_url  # here, because nothing else needs torchvision to read data

    try:
        with bounded_silence():
            download_url(_URL, str(folder), ARCHIVE, _MD5)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(
            f"tinyimagenet is not prepared yet, and the download of {_URL} into {folder} failed ({error}); put "
            f"{ARCHIVE} into that folder and try again"
        ) from error
    try:
        with ZipFile(folder / ARCHIVE) as archive:
            items = {"train": _train(archive), "test": _test(archive)}
            labels = {split: np.array([label for _, label in found], np.int64) for split, found in items.items()}
            images = {split: _decode(archive, found) for split, found in items.items()}
            write_stream(path, SPECS["tinyimagenet"], labels, images)
    except (BadZipFile, LookupError, UnicodeDecodeError, ValueError) as error:
        raise DataError(
            f"{folder / ARCHIVE} is not Tiny-ImageNet as Stanford publishes it ({error}); delete it to have it "
            "downloaded"
        ) from error


def _train(archive: ZipFile) -> list[_Item]:
    """Returns the training images class by class, classes in the order of their ids."""
    found = sorted(name for name in archive.namelist() if _TRAIN.fullmatch(name))
    ids = sorted({_id_of(name) for name in found})
    if len(ids) != SPECS["tinyimagenet"].num_classes:
        raise ValueError(f"{len(ids)} classes, expected {SPECS['tinyimagenet'].num_classes}")
    return [(name, ids.index(_id_of(name))) for name in found]


def _test(archive: ZipFile) -> list[_Item]:
    """Returns the validation images class by class."""
    ids = sorted({_id_of(name) for name in archive.namelist() if _TRAIN.fullmatch(name)})
    lines = [line.split("\t") for line in _read(archive, _ANNOTATIONS).decode().splitlines()]
    return sorted(((f"tiny-imagenet-200/val/images/{line[0]}", ids.index(line[1])) for line in lines), key=_by_class)


def _by_class(item: _Item) -> tuple[int, str]:
    return item[1], item[0]


def _id_of(name: str) -> str:
    return name.split("/")[2]


def _decode(archive: ZipFile, items: Sequence[_Item]) -> Iterator[Pixels]:
    names = (name for name, _ in items)
    side = SPECS["tinyimagenet"].image_shape[1]
    while some := list(islice(names, _AT_ONCE)):
        yield np.stack([read_image(Path(name), side, False, BytesIO(_read(archive, name))) for name in some])


def _read(archive: ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.file_size > _LARGEST_MEMBER:
        raise ValueError(f"{name} is {info.file_size:,} bytes long, expected at most {_LARGEST_MEMBER:,}")
    return archive.read(info)
