"""The first layer of every model: from pixels to the values its convolutions expect.

Published code bases normalise in the data loader, and so store synthetic images in a space that only their own mean and
std can read. Here images stay in pixel space and the model carries the normaliser, also into its checkpoints.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dd_bench.errors import ConfigError


class Normalizer(nn.Module):
    """Maps pixels (N, C, H, W), nominally in [0, 1], to ``(pixels - mean) / std`` for each channel.

    Values outside [0, 1] pass through the same line: nothing is clamped, so gradients reach every pixel. Mean and std
    are buffers of shape (1, C, 1, 1): they move with the model and are saved with it, but no optimizer sees them.

    Raises:
        ConfigError: if mean and std differ in length, or a std is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise ConfigError(
                f"cannot normalise with mean {tuple(mean)} and std {tuple(std)}; expected one mean and one positive "
                "std for each channel: correct the data set's spec (a constant channel takes std 1)"
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the normalised images, same shape (N, C, H, W).

        Raises:
            ValueError: for uint8 pixels (255 times too large) or another number of channels (a single one would
                broadcast to all): both would otherwise run and train on nonsense.
        """
        if not pixels.is_floating_point() or pixels.ndim != 4 or pixels.shape[1] != self.mean.shape[1]:
            raise ValueError(
                f"a model got {pixels.dtype} pixels of shape {tuple(pixels.shape)}; it takes floating-point pixels "
                f"(N, {self.mean.shape[1]}, H, W) with white = 1: convert uint8 images with `.float() / 255`"
            )
        return (pixels - self.mean) / self.std

    def restore(self, normalized: Tensor) -> Tensor:
        """Returns the pixels of normalised images, same shape (N, C, H, W)."""
        return normalized * self.std + self.mean
