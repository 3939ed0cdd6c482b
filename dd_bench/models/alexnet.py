"""AlexNet, on which distilled sets are judged across architectures; for small images, and as published above 64 pixels.

Paper: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (NeurIPS
2012), for small images in the form of DC and KRR-ST (``networks.py`` in VICO-UoE/DatasetCondensation): five
convolutions of stride 1 and widths 128, 192, 256, 192, 192, max-pooling behind the first, second and last, and one
linear layer in place of three. DC has no normalisation, KRR-ST BatchNorm. DC pads grey images by 4 in the first
convolution, to bring 28 pixels to 32; so do we, for exactly 28x28. A pooling that would leave nothing of a small image
is left out.

Parameters on CIFAR-10 without normalisation: 1,872,202 = 9,728 + 614,592 + 442,624 + 442,560 + 331,968 + 30,730.

Images with a side over 64 pixels get the form of one tower (Krizhevsky, arXiv 1404.5997), which torchvision has too,
with its three linear layers, less their dropout: 61,100,840 parameters with 1,000 classes, the count torchvision
states.
"""

from torch import nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import fits_small_stem, hidden_layers, norm_layers

LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
"""Of each convolution on small images: width, kernel, and whether a max-pooling follows."""
LARGE = ((64, 11, True), (192, 5, True), (384, 3, False), (256, 3, False), (256, 3, True))
"""The same on large ones; the first has stride 4."""
NORMS = ("none", "batch", "instance")


def alexnet_features(spec: DatasetSpec, *, norm: str, factor: float) -> Features:
    """Returns AlexNet without its head, for images (N, C, H, W).

    Args:
        spec: gives C, H and W.
        norm: one of ``NORMS``.
        factor: multiplies every width; at least one channel remains.
    """
    if not fits_small_stem(spec):
        return _published_features(spec, norm, factor)
    channels, height, width = spec.image_shape
    layers: list[nn.Module] = []
    extra = 2 if (height, width) == (28, 28) else 0
    height, width = height + 2 * extra, width + 2 * extra
    for number, (full, kernel, pooled) in enumerate(LAYERS):
        filters = max(1, int(full * factor + 0.5))
        padding = kernel // 2 + (extra if number == 0 else 0)
        layers += [nn.Conv2d(channels, filters, kernel, padding=padding), *norm_layers(norm, filters), nn.ReLU()]
        channels = filters
        if pooled and min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten()), channels * height * width


def _published_features(spec: DatasetSpec, norm: str, factor: float) -> Features:
    channels, *sides = spec.image_shape
    layers: list[nn.Module] = []
    for number, (full, kernel, pooled) in enumerate(LARGE):
        filters = max(1, int(full * factor + 0.5))
        stride, padding = (4, 2) if number == 0 else (1, kernel // 2)
        layers += [nn.Conv2d(channels, filters, kernel, stride, padding), *norm_layers(norm, filters), nn.ReLU()]
        sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        channels = filters
        if pooled:
            layers.append(nn.MaxPool2d(3, stride=2))
            sides = [(side - 3) // 2 + 1 for side in sides]
    hidden, width = hidden_layers(channels, (sides[0], sides[1]), side=6, factor=factor)
    return nn.Sequential(*layers, *hidden), width
