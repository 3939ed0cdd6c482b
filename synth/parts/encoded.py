"""Training images as networks see them behind their first layer: normalised channel by channel, or ZCA-whitened.

Trajectory matching trains experts and optimises synthetic images in that space, and augments there, as published; what
is stored are pixels again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.models import Normalizer, Whitening, encode, encoded_spec, fit_whitening


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """A training split on the device, in the space of its first layer.

    Attributes:
        spec: of images in this space: mean 0 and std 1. Networks built from it take encoded images, DSA acts on them.
        layer: from pixels to this space; ``layer.restore`` leads back.
        images: (N, C, H, W) float32.
        labels: (N,) int64.
    """

    spec: DatasetSpec
    layer: Normalizer | Whitening
    images: Tensor
    labels: Tensor


def encode_images(data: ImageData, *, whiten: bool, device: torch.device) -> EncodedImages:
    """Returns the training split of ``data`` normalised or, with ``whiten``, whitened by its own statistics."""
    layer: Normalizer | Whitening
    layer = fit_whitening(data.images) if whiten else Normalizer(data.spec.mean, data.spec.std)
    layer = layer.to(device)
    images = encode(data.images, layer, device)
    return EncodedImages(encoded_spec(data.spec), layer, images, data.labels.to(device))
