"""Image data sets that other packages add, through the entry-point group ``ddbench.datasets``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from torch import Tensor

from dd_bench.data.specs import SPECS, DatasetSpec
from dd_bench.errors import ConfigError

ENTRY_POINTS = "ddbench.datasets"


@dataclass(frozen=True)
class Dataset:
    """A data set of another package.

    Attributes:
        spec: its facts, under the name of its entry point.
        make: from the folder that it will be kept in, where archives may lie, to ``train_images`` and ``test_images``
            (N, C, H, W) uint8, ``train_labels`` and ``test_labels`` (N,) int64. Called once, when it is first used.
    """

    spec: DatasetSpec
    make: Callable[[Path], dict[str, Tensor]]


@cache
def _points() -> dict[str, EntryPoint]:
    """Returns the entry points by name; those of our own names cannot be taken."""
    return {point.name: point for point in entry_points(group=ENTRY_POINTS) if point.name not in SPECS}


def external_names() -> tuple[str, ...]:
    """Returns the names that other packages add; nothing of theirs is imported for it."""
    return tuple(_points())


def load_external(name: str) -> Dataset:
    """Returns the data set that another package adds as ``name``.

    Raises:
        ConfigError: if it cannot be imported, is none, or bears another name.
    """
    point = _points()[name]
    try:
        found = point.load()
        problem = "" if isinstance(found, Dataset) else f"it is {type(found).__name__}"
        if not problem and found.spec.name != name:
            problem = f"its spec is named {found.spec.name!r}"
    except Exception as error:  # whatever foreign code raises while it is imported
        problem = str(error) or type(error).__name__
    if problem:
        raise ConfigError(
            f"data set {name!r} should be {point.value}, a dd_bench.data.external.Dataset of that name, but {problem}; "
            "mend or remove that package"
        )
    return found  # type: ignore[no-any-return]
