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

SMALL = ((128, 5, 2, True), (192, 5, 2, True), (256, 3, 1, False), (192, 3, 1, False), (192, 3, 1, True))
"""Of each convolution on small images: width, kernel, padding, and whether a max-pooling follows."""
LARGE = ((64, 11, 2, True), (192, 5, 2, True), (384, 3, 1, False), (256, 3, 1, False), (256, 3, 1, True))
"""The same on large ones."""
NORMS = ("none", "batch", "instance")


def alexnet_features(spec: DatasetSpec, *, norm: str, factor: float) -> Features:
    """Returns AlexNet without its head, for images (N, C, H, W).

    Args:
        spec: gives C, H and W; the longer side chooses the form.
        norm: one of ``NORMS``.
        factor: multiplies every width; at least one channel remains.
    """
    channels, *sides = spec.image_shape
    small = fits_small_stem(spec)
    convolutions, first_stride, pool = (SMALL, 1, 2) if small else (LARGE, 4, 3)
    layers: list[nn.Module] = []
    for number, (full, kernel, usual_padding, pooled) in enumerate(convolutions):
        filters = max(1, int(full * factor + 0.5))
        stride = first_stride if number == 0 else 1
        padding = usual_padding + (2 if number == 0 and sides == [28, 28] else 0)
        layers += [nn.Conv2d(channels, filters, kernel, stride, padding), *norm_layers(norm, filters), nn.ReLU()]
        channels, sides = filters, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        if pooled and min(sides) >= pool:
            layers.append(nn.MaxPool2d(pool, stride=2))
            sides = [(side - pool) // 2 + 1 for side in sides]
    height, width = sides
    if small:
        return nn.Sequential(*layers, nn.Flatten()), channels * height * width
    hidden, hidden_width = hidden_layers(channels, (height, width), side=6, factor=factor)
    return nn.Sequential(*layers, *hidden), hidden_width
