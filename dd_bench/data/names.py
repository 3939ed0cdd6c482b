"""Names of data sets, and the subsets they stand for: ``cifar10``, ``cifar10@200``, ``cifar10@200/100``."""

import hashlib
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, UnknownNameError

_COUNTS = re.compile(r"(\d{1,18})(?:/(\d{1,18}))?", re.ASCII)


@dataclass(frozen=True)
class DatasetName:
    """A data set of ``SPECS``, whole or cut down, or of ``GRAPH_SPECS``; ``str()`` gives the canonical spelling.

    Attributes:
        base: key in ``SPECS`` or ``GRAPH_SPECS``.
        per_class: training images a class, or None for all.
        test_per_class: test images a class, or None for all.
    """

    base: str
    per_class: int | None = None
    test_per_class: int | None = None

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
            Whether a class has that many images is seen when the data is read.
    """
    base, at, counts = text.partition("@")
    if base not in SPECS and base not in GRAPH_SPECS:
        raise UnknownNameError("data set", base, (*SPECS, *GRAPH_SPECS))
    if not at:
        return DatasetName(base)
    if base in GRAPH_SPECS:
        raise ConfigError(f"data set {text!r} asks for a part of {base}; expected graphs to be taken whole: '{base}'")
    match = _COUNTS.fullmatch(counts)
    train, test = match.groups() if match else (None, None)
    if train is None or int(train) == 0 or (test is not None and int(test) == 0):
        raise ConfigError(
            f"data set {text!r} has {counts!r} after the '@'; expected images a class, each at least 1: "
            f"'{base}@20', or '{base}@20/10' for 10 test images a class as well"
        )
    return DatasetName(base, int(train), None if test is None else int(test))


def choose(labels: Tensor, per_class: int, *, base: str, split: str) -> Tensor:
    """Returns the indices of ``per_class`` images of each class, ascending; (K * per_class,) int64.

    Within a class, images are ranked by the sha256 of "base/split/index" and the first ones taken. So the choice
    depends on no library's random numbers, and a smaller subset lies within every larger one.

    Args:
        labels: (N,) int64 in [0, K), the labels of the whole split.
        per_class: at least 1.
        base: name of the whole data set of images.
        split: ``train`` or ``test``.

    Raises:
        ConfigError: if a class has fewer than ``per_class`` images.
    """
    counts = torch.bincount(labels, minlength=SPECS[base].num_classes)
    fewest = int(counts.argmin())
    if per_class > int(counts[fewest]):
        raise ConfigError(
            f"{per_class} {split} images a class were asked of {base}, but class {fewest} "
            f"({SPECS[base].class_names[fewest]}) has {int(counts[fewest])}; ask for at most that many"
        )
    ranked = torch.tensor(
        sorted(range(len(labels)), key=lambda i: hashlib.sha256(f"{base}/{split}/{i}".encode()).digest())
    )
    by_class = ranked[labels[ranked].argsort(stable=True)]  # class by class, each in the order of its ranks
    starts = counts.cumsum(0) - counts
    return by_class[starts[:, None] + torch.arange(per_class)].flatten().sort().values
