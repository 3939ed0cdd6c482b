"""ConvNet-d, the small network on which dataset condensation is measured.

Papers: Gidaris and Komodakis (arXiv 1804.09458) as used by Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient
Matching" (arXiv 2006.05929), and after it by DSA, DM, MTT, TESLA and many more. Layer facts from ``networks.py`` in
VICO-UoE/DatasetCondensation.

* d blocks of [3x3 convolution with bias, normalisation, ReLU, 2x2 average pooling], width 128, then one linear layer on
  the flattened map: the head, unlike that of the other families here, grows with the image.
* "Instance" normalisation is ``GroupNorm`` with one group a channel and affine parameters, as in the original. It has
  no running statistics, so training and evaluation compute the same function.
* The original pads images of side 28 to 32 in the first convolution (padding 3). So do we, for exactly 28x28; it pads
  every one-channel image, which breaks its own head for other sizes (8x8 among them).
* Weights start as PyTorch's defaults, as in the original.

Where the image side is just 2 ** d, the last instance norm sees 2x2 maps and the head one number of each: that works,
but learns slowly. For 8x8 images take ``convnet2``, or BatchNorm.

ConvNet-3 with instance normalisation has 320,010 parameters on CIFAR-10: 3,584 + 2 x 147,584 in the convolutions,
3 x 256 in the norms, 20,490 in the head.

The pyramid is the ConvNet of KRR-ST (arXiv 2310.06511; ``models/convnet.py`` in db-Lee/selfsup_dd at 4beb4b1): the same
blocks, whose widths double up to 512, with BatchNorm. For 32x32 images and 512 outputs it has 5.676 million parameters.
"""

from collections.abc import Sequence

from torch import nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, norm_layers

WIDTH = 128
TOP_WIDTH = 512
MAX_DEPTH = 6
PYRAMID_DEPTHS = range(2, 6)  # one block would be a ConvNet's, and six would begin with 16 channels
NORMS = ("instance", "batch", "none")
PYRAMID_NORMS = ("batch", "instance", "none")


def convnet_features(spec: DatasetSpec, *, depth: int, norm: str, factor: float) -> Features:
    """Returns ConvNet-``depth``, all blocks of width 128, without its head, for images (N, C, H, W).

    Args:
        spec: gives C, H, W; each side, once 28 is padded to 32, must be at least 2 ** depth. Odd rows and columns fall
            to the pooling's floor.
        depth: number of blocks.
        norm: one of ``NORMS``.
        factor: multiplies the width; at least one channel remains.

    Raises:
        ConfigError: if the image is too small to be halved ``depth`` times.
    """
    return _blocks("convnet", spec, [WIDTH] * depth, norm, factor)


def pyramid_features(spec: DatasetSpec, *, depth: int, norm: str, factor: float) -> Features:
    """Returns the pyramid of ``depth`` blocks, of widths 512 / 2^(depth - 1), …, 256, 512; else as the ConvNet."""
    return _blocks("pyramid", spec, [TOP_WIDTH >> (depth - 1 - block) for block in range(depth)], norm, factor)


def pooled_features(spec: DatasetSpec, *, depth: int, norm: str, factor: float) -> Features:
    """Returns the pyramid of ``depth`` blocks whose last map is averaged, so that D is its 512 channels (by factor)."""
    layers, _ = _blocks("pooled", spec, [TOP_WIDTH >> (depth - 1 - block) for block in range(depth)], norm, factor)
    *convolutions, _ = layers  # the flattening
    return nn.Sequential(*convolutions, GlobalAverage()), max(1, int(TOP_WIDTH * factor + 0.5))


def _blocks(family: str, spec: DatasetSpec, widths: Sequence[int], norm: str, factor: float) -> Features:
    depth = len(widths)
    channels, height, width = spec.image_shape
    pad_to_32 = (height, width) == (28, 28)
    if pad_to_32:
        height = width = 32
    if min(height, width) < 2**depth:
        deepest = min(height, width).bit_length() - 1
        least = 1 if family == "convnet" else PYRAMID_DEPTHS[0]
        advice = f"choose {family}{deepest} or a shallower one" if deepest >= least else "choose another family"
        raise ConfigError(
            f"{family}{depth} halves the image {depth} times and needs at least {2**depth}x{2**depth} pixels; "
            f"{spec.name} has {height}x{width}: {advice}"
        )
    layers: list[nn.Module] = []
    for block, full in enumerate(widths):
        filters = max(1, int(full * factor + 0.5))
        padding = 3 if pad_to_32 and block == 0 else 1
        layers += [nn.Conv2d(channels, filters, kernel_size=3, padding=padding)]
        layers += [*norm_layers(norm, filters), nn.ReLU(), nn.AvgPool2d(2)]
        channels = filters
    layers.append(nn.Flatten())  # (N, F, H / 2^d, W / 2^d) -> (N, D)
    return nn.Sequential(*layers), channels * (height >> depth) * (width >> depth)


def usual_depth(spec: DatasetSpec) -> int:
    """Returns the depth with which the literature takes images of this size: 3 up to 32 pixels, 4 for 64, 5 for 128.

    That is, the last map has a side of 4 to 7 (of 7 with 224 pixels, which take 5 too) or, where images are larger than
    the deepest ConvNet asks for, more. Images below 16 pixels take 2 blocks all the same, because one alone would leave
    nearly all to the head.
    """
    _, height, width = spec.image_shape
    side = 32 if (height, width) == (28, 28) else min(height, width)  # the first convolution pads 28 to 32
    return min(max(side.bit_length() - 3, 2), MAX_DEPTH)
