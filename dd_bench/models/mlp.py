"""A multilayer perceptron: the pixels, two hidden layers of 128 with ReLU, and the head.

Layer facts from ``networks.py`` in VICO-UoE/DatasetCondensation (arXiv 2006.05929). On CIFAR-10 it has 411,146
parameters: 393,344 + 16,512 + 1,290.
"""

from math import prod

from torch import nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features

WIDTH = 128


def mlp_features(spec: DatasetSpec, *, factor: float) -> Features:
    """Returns the perceptron without its head, for images (N, C, H, W); ``factor`` multiplies the width of 128."""
    width = max(1, int(WIDTH * factor + 0.5))
    first = nn.Linear(prod(spec.image_shape), width)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(width, width), nn.ReLU()), width
