"""Names of data sets, and the subsets they stand for: ``cifar10``, ``cifar10@200``, ``cifar10@200/100``.

A folder of images is ``imagefolder:PATH`` or ``imagefolder:PATH:SIZE``. Its canonical name keeps the last part of the
path alone, ``imagefolder:flowers:64``, by which it is found once it has been prepared, from wherever.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dd_bench.data.external import external_names
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.specs import SPECS, DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError

PREFIX = "imagefolder:"
SMALLEST, LARGEST, USUAL = 8, 224, 64  # pixels of an image folder's sides; the last where images differ in theirs
_LONGEST_FOLDER = 60  # characters, so that a name with size and counts still fits one component of a path
_COUNTS = re.compile(r"(\d{1,18})(?:/(\d{1,18}))?", re.ASCII)
_SIZE = re.compile(r"(.*):(\d{1,9})", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class DatasetName:
    """A data set of ``SPECS``, whole or cut down, or of ``GRAPH_SPECS``; ``str()`` gives the canonical spelling.

    Attributes:
        base: key in ``SPECS`` or ``GRAPH_SPECS``, or ``imagefolder:`` with a folder's name and perhaps a size.
        per_class: training images a class, or None for all.
        test_per_class: test images a class, or None for all.
        source: path of an image folder, as it was typed.
        size: pixels of its images' sides, if it was typed.
    """

    base: str
    per_class: int | None = None
    test_per_class: int | None = None
    source: str = field(default="", compare=False)
    size: int | None = field(default=None, compare=False)

    def __str__(self) -> str:
        counts = "" if self.per_class is None else f"@{self.per_class}"
        return self.base + counts + ("" if self.test_per_class is None else f"/{self.test_per_class}")

    @property
    def slug(self) -> str:
        """The name as one component of a path: ``cifar10@20+20`` for ``cifar10@20/20``."""
        return str(self).replace("/", "+")


def parse_name(text: str) -> DatasetName:
    """Returns what ``text`` names.

    ``NAME`` is the whole data set, ``NAME@n`` has n training images a class, ``NAME@n/m`` also m test images a class.
    Graph data sets are taken whole.

    Raises:
        UnknownNameError: if ``NAME`` is in neither ``SPECS`` nor ``GRAPH_SPECS``.
        ConfigError: if a graph data set is cut down, or what follows ``@`` is not one or two whole numbers from 1 up.
            Whether a class has that many images is seen when the data is read. Also if the name or the size of an
            image folder cannot be.
    """
    if text.startswith(PREFIX):
        return _parse_folder(text)
    base, at, counts = text.partition("@")
    if base not in SPECS and base not in GRAPH_SPECS and base not in (others := external_names()):
        raise UnknownNameError("data set", base, (*SPECS, *GRAPH_SPECS, *others, f"{PREFIX}PATH"))
    if not at:
        return DatasetName(base)
    if base in GRAPH_SPECS:
        raise ConfigError(f"data set {text!r} asks for a part of {base}; expected graphs to be taken whole: '{base}'")
    return DatasetName(base, *_parse_counts(text, base, counts))


def plain_name(dataset: str) -> str:
    """Returns what people call a data set, whatever is taken of it: a folder's name is its own.

    >>> plain_name("cifar10@200"), plain_name("imagefolder:imagenette:224@50")
    ('cifar10', 'imagenette')
    """
    whole = dataset.partition("@")[0]
    return whole.removeprefix(PREFIX).partition(":")[0]


def _parse_counts(text: str, base: str, counts: str) -> tuple[int, int | None]:
    match = _COUNTS.fullmatch(counts)
    train, test = match.groups() if match else (None, None)
    if train is None or int(train) == 0 or (test is not None and int(test) == 0):
        raise ConfigError(
            f"data set {text!r} has {counts!r} after the '@'; expected images a class, each at least 1: "
            f"'{base}@20', or '{base}@20/10' for 10 test images a class as well"
        )
    return int(train), None if test is None else int(test)


def _parse_folder(text: str) -> DatasetName:
    """Returns what ``imagefolder:PATH[:SIZE][@n[/m]]`` names; an ``@`` before the last separator is the path's own."""
    rest, at, counts = text.removeprefix(PREFIX).rpartition("@")
    if not at or (not _COUNTS.fullmatch(counts) and "/" in counts):
        rest, at, counts = text.removeprefix(PREFIX), "", ""
    size = None
    if match := _SIZE.fullmatch(rest):
        rest, size = match[1], int(match[2])
        if not SMALLEST <= size <= LARGEST:
            raise ConfigError(f"data set {text!r}: size is {size}; expected {SMALLEST} to {LARGEST} pixels")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(rest).absolute().name).strip("-.")
    if not name or not rest or len(name) > _LONGEST_FOLDER:
        raise ConfigError(
            f"data set {text!r:.200} names no folder by letters and digits (at most {_LONGEST_FOLDER}); expected "
            f"'{PREFIX}flowers', '{PREFIX}/data/flowers' or '{PREFIX}flowers:{USUAL}' for images of {USUAL} pixels"
        )
    base = f"{PREFIX}{name}" + ("" if size is None else f":{size}")
    train, test = _parse_counts(text, base, counts) if at else (None, None)
    return DatasetName(base, train, test, rest, size)


def choose(labels: Tensor, per_class: int, *, spec: DatasetSpec, split: str) -> Tensor:
    """Returns the indices of ``per_class`` images of each class, ascending; (K * per_class,) int64.

    Within a class, images are ranked by the sha256 of "name/split/index" and the first ones taken. So the choice
    depends on no library's random numbers, and a smaller subset lies within every larger one.

    Args:
        labels: (N,) int64 in [0, K), the labels of the whole split.
        per_class: at least 1.
        spec: of the whole data set of images, whose name this is.
        split: ``train`` or ``test``.

    Raises:
        ConfigError: if a class has fewer than ``per_class`` images.
    """
    counts = torch.bincount(labels, minlength=spec.num_classes)
    fewest = int(counts.argmin())
    if per_class > int(counts[fewest]):
        raise ConfigError(
            f"{per_class} {split} images a class were asked of {spec.name}, but class {fewest} "
            f"({spec.class_names[fewest]}) has {int(counts[fewest])}; ask for at most that many"
        )
    ranked = torch.tensor(
        sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{spec.name}/{split}/{i}".encode()).digest())
    )
    by_class = ranked[labels[ranked].argsort(stable=True)]  # class by class, each in the order of its ranks
    starts = counts.cumsum(0) - counts
    return by_class[starts[:, None] + torch.arange(per_class)].flatten().sort().values
