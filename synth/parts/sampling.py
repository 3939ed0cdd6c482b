"""Draws of real training images."""

import torch
from torch import Tensor

from dd_bench.errors import ConfigError
from dd_bench.seeding import derive_seed, generator


def require_enough(labels: Tensor, count: int, num_classes: int) -> None:
    """Raises ConfigError if a class has fewer than ``count`` examples."""
    for label, size in enumerate(torch.bincount(labels, minlength=num_classes).tolist()):
        if size < count:
            raise ConfigError(f"class {label} has {size} training examples, but {count} are asked for; lower --ipc")


def sample_per_class(labels: Tensor, count: int, num_classes: int, seed: int) -> Tensor:
    """Returns indices (count, K) of ``count`` different images of each class, drawn uniformly, row by row.

    The draw for fewer images is the beginning of the draw for more with the same seed, so that INFER's base images are
    among the random control's.

    Raises:
        ConfigError: if a class has fewer than ``count`` images.
    """
    require_enough(labels, count, num_classes)
    draws = generator(derive_seed("sample per class", seed))
    columns = []
    for label in range(num_classes):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=draws)
        columns.append(members[order[:count]])
    return torch.stack(columns, dim=1)


def sample_images(total: int, count: int, seed: int) -> Tensor:
    """Returns indices (count,) of different images out of ``total``, drawn uniformly without regard to class.

    The draw for fewer images is the beginning of the draw for more with the same seed, so that what KRR-ST begins with
    is the random control of that seed.

    Raises:
        ConfigError: if there are fewer than ``count`` images.
    """
    if count > total:
        raise ConfigError(f"{count} images are asked for of {total} training images; lower --ipc")
    return torch.randperm(total, generator=generator(derive_seed("sample images", seed)))[:count]
