"""The shape all image models share: normaliser, features, linear head."""

from collections.abc import Sequence

from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.layers import LARGEST_SMALL_IMAGE
from dd_bench.models.normalizer import Normalizer

Features = tuple[nn.Sequential, int]
"""A network without its head, mapping (N, C, H, W) to (N, D), and its D."""


class Classifier(nn.Module):
    """Maps pixels (N, C, H, W) to logits (N, K).

    Attributes:
        normalizer: pixel space to normalised space, with the spec's mean and std.
        features: normalised images to one vector each, (N, D).
        head: the linear layer from D to K.
    """

    def __init__(self, spec: DatasetSpec, features: Features) -> None:
        super().__init__()
        self.normalizer = Normalizer(spec.mean, spec.std)
        self.features, width = features
        self.head = nn.Linear(width, spec.num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns logits (N, K)."""
        logits: Tensor = self.head(self.embed(pixels))
        return logits

    def embed(self, pixels: Tensor) -> Tensor:
        """Returns what the head sees, (N, D): for probes, herding and feature targets."""
        embedding: Tensor = self.features(self.normalizer(pixels))
        return embedding


def count_parameters(model: nn.Module) -> int:
    """Returns the number of trainable numbers in ``model``; buffers (mean, std, running statistics) are not counted."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def images_at_once(most: int, image_shape: Sequence[int]) -> int:
    """Returns how many images (C, H, W) a network should see at once when it does not train: at most ``most``.

    Above 64x64 pixels there are fewer in proportion, so that no batch has more pixels: a ConvNet has two maps of 128
    channels at a time, which for 1024 images of 224 pixels are 53 GB, and for the 83 that this returns 4.3 GB.

    >>> images_at_once(1024, (3, 64, 64)), images_at_once(1024, (3, 224, 224))
    (1024, 83)
    """
    _, height, width = image_shape
    return max(1, min(most, most * LARGEST_SMALL_IMAGE**2 // (height * width)))
