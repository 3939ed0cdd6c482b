"""ZCA whitening: a linear first layer in the normaliser's place, fitted on the training split.

Trajectory matching (MTT, arXiv 2203.11932) and its successors publish most CIFAR scores on whitened images. The facts
are those of kornia's ``ZCAWhitening(eps=0.1, compute_inv=True)``, which they use. That one takes the whole split as
floats and decomposes by ``svd``; this one reads it in pieces and uses ``eigh``.

Published code whitens in the data loader, and images that it saved were later read with the wrong statistics, or with
none. Here sets hold pixels, and what whitens them is a layer that carries its statistics and its inverse.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import inf

import torch
from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError

_AT_ONCE = 1000  # images that are floats at a time: 25 MB of CIFAR


class Whitening(nn.Module):
    """Maps pixels (N, C, H, W), nominally in [0, 1], to ``(pixels - mean) W`` over all D = C·H·W values of an image.

    Nothing is clamped, so gradients reach every pixel, and ``restore`` leads back. All three are float32 buffers: they
    move with the layer and no optimizer sees them. The two matrices take 75 MB at D = 3072.

    Attributes:
        mean: of each value over the images it was fitted on; (D,).
        matrix: W, symmetric; (D, D).
        inverse: of W; (D, D).
    """

    mean: Tensor
    matrix: Tensor
    inverse: Tensor

    def __init__(self, mean: Tensor, matrix: Tensor, inverse: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("matrix", matrix.float())
        self.register_buffer("inverse", inverse.float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the whitened images, same shape (N, C, H, W).

        Raises:
            ValueError: for uint8 pixels (255 times too large), or images of another size.
        """
        size = len(self.mean)
        if not pixels.is_floating_point() or pixels.ndim != 4 or pixels.shape[1:].numel() != size:
            raise ValueError(
                f"a whitening got {pixels.dtype} pixels of shape {tuple(pixels.shape)}; it takes floating-point pixels "
                f"(N, C, H, W) of {size} values each with white = 1: convert uint8 images with `.float() / 255`"
            )
        return ((pixels.flatten(1) - self.mean) @ self.matrix).view(pixels.shape)

    def restore(self, whitened: Tensor) -> Tensor:
        """Returns the pixels of whitened images, same shape (N, C, H, W)."""
        return (whitened.flatten(1) @ self.inverse + self.mean).view(whitened.shape)


@torch.no_grad()
def fit_whitening(images: Tensor, *, epsilon: float = 0.1) -> Whitening:
    """Returns the whitening after which ``images`` have variance s / (s + epsilon) along each of their principal axes.

    With the covariance (X - mean)ᵀ(X - mean) / (N - 1) = U diag(s) Uᵀ, W is U diag(s + epsilon)^-½ Uᵀ. All is computed
    in float64, where the images are. At D = 3072 ``eigh`` takes 7 to 9 s on one core, and every 10,000 images some
    5 s more.

    Args:
        images: (N, C, H, W), the training split: uint8, or floating-point pixels with white = 1.
        epsilon: added to every variance, > 0; 0.1 as published. Directions of less variance than that stay small, so
            that noise is not blown up, and directions without any remain invertible.

    Raises:
        ConfigError: for fewer than two images, values that are NaN or infinite, or an epsilon out of range.
    """
    if images.ndim != 4 or len(images) < 2:
        raise ConfigError(
            f"images to whiten by have shape {tuple(images.shape)}; expected (N, C, H, W) with at least two images"
        )
    if not 0 < epsilon < inf:
        raise ConfigError(f"epsilon of a whitening is {epsilon}; expected more than 0, published is 0.1")
    size = images.shape[1:].numel()
    mean = images.new_zeros(size, dtype=torch.float64)
    for values in _pieces(images):
        mean += values.sum(0) / len(images)
    if not mean.isfinite().all():
        raise ConfigError("images to whiten by hold values that are NaN or infinite; expected pixels")
    covariance = mean.new_zeros(size, size)
    for values in _pieces(images):  # a second pass, because E[xx'] - mean mean' would cancel digits
        values -= mean
        covariance.addmm_(values.T, values)
    variances, axes = torch.linalg.eigh(covariance / (len(images) - 1))
    deviations = (variances.clamp(min=0) + epsilon).sqrt()  # rounding leaves a variance of 0 at about ±1e-16
    return Whitening(mean, (axes / deviations) @ axes.T, (axes * deviations) @ axes.T)


@torch.no_grad()
def encode(images: Tensor, layer: nn.Module, device: torch.device) -> Tensor:
    """Returns images (N, C, H, W), uint8 or pixels, as ``layer`` puts them out: float32, all of them on ``device``.

    They pass through it, on that device, a few at a time.
    """
    parts = (part.to(device) for part in torch.split(images, _AT_ONCE))
    return torch.cat([layer(part if part.is_floating_point() else part.float() / 255) for part in parts])


def encoded_spec(spec: DatasetSpec) -> DatasetSpec:
    """Returns ``spec`` for images that are already in the space behind a first layer: mean 0 and std 1 everywhere.

    Networks built from it take such images as they are, and DSA, which acts on normalised images, acts on them directly
    as published.
    """
    return replace(spec, mean=(0.0,) * len(spec.mean), std=(1.0,) * len(spec.std))


def _pieces(images: Tensor) -> Iterator[Tensor]:
    """Yields the images as fresh float64 values (n, D), a few at a time: a split as floats may not fit in memory."""
    white = 1.0 if images.is_floating_point() else 255.0
    for part in torch.split(images, _AT_ONCE):
        yield part.flatten(1).double() / white
