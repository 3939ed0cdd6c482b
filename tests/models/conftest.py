"""Specs the model tests share; mean and std differ by channel, so that a mix-up shows."""

from collections.abc import Callable, Iterator

import pytest

from dd_bench.data.specs import DatasetSpec
from dd_bench.models import FAMILIES, Family
from dd_bench.seeding import seeded

IMAGE_FAMILIES = sorted(name for name, family in FAMILIES.items() if isinstance(family, Family))
CIFAR_FAMILIES = [name for name in IMAGE_FAMILIES if name != "convnet6"]  # which needs 64 pixels


def spec_of(name: str, image_shape: tuple[int, int, int], num_classes: int) -> DatasetSpec:
    channels = image_shape[0]
    return DatasetSpec(
        name=name,
        image_shape=image_shape,
        num_classes=num_classes,
        mean=(0.49, 0.48, 0.44)[:channels],
        std=(0.25, 0.24, 0.26)[:channels],
        mirror=channels == 3,
        class_names=tuple(str(label) for label in range(num_classes)),
    )


@pytest.fixture(autouse=True)
def same_draws_every_time() -> Iterator[None]:
    with seeded(0):
        yield


@pytest.fixture
def make_spec() -> Callable[[str, tuple[int, int, int], int], DatasetSpec]:
    return spec_of


@pytest.fixture
def digits() -> DatasetSpec:
    return spec_of("digits", (1, 8, 8), 10)


@pytest.fixture
def mnist() -> DatasetSpec:
    return spec_of("mnist", (1, 28, 28), 10)


@pytest.fixture
def cifar10() -> DatasetSpec:
    return spec_of("cifar10", (3, 32, 32), 10)


@pytest.fixture
def cifar100() -> DatasetSpec:
    return spec_of("cifar100", (3, 32, 32), 100)


@pytest.fixture
def imagenet() -> DatasetSpec:
    return spec_of("imagenet", (3, 96, 96), 1000)
