"""Small parts that several networks share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec

LARGEST_SMALL_IMAGE = 64


def fits_small_stem(spec: DatasetSpec) -> bool:
    """Returns whether images are small enough for a stem with stride 1: up to 64 pixels on the longer side."""
    return max(spec.image_shape[1:]) <= LARGEST_SMALL_IMAGE


def conv_bn(in_channels: int, out_channels: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Returns a convolution without bias and its BatchNorm. ``kernel`` is odd, and stride 1 keeps height and width."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def norm_layers(norm: str, channels: int) -> list[nn.Module]:
    """Returns the layers of one normalisation: one for ``"instance"`` and ``"batch"``, none for ``"none"``.

    "Instance" is ``GroupNorm`` with one group a channel and affine parameters, as in the condensation literature.
    """
    if norm == "instance":
        return [nn.GroupNorm(channels, channels)]
    return [nn.BatchNorm2d(channels)] if norm == "batch" else []


def hidden_layers(channels: int, sides: tuple[int, int], *, side: int, factor: float) -> tuple[list[nn.Module], int]:
    """Returns the two hidden layers of AlexNet and VGG, for maps (N, C, H, W), and their width.

    Args:
        channels: C.
        sides: H and W.
        side: of the map that they want; others are averaged, or repeated, to it.
        factor: multiplies the width of 4096; at least one remains.
    """
    width = max(1, int(4096 * factor + 0.5))
    fitting = [] if sides == (side, side) else [FittedMap(side)]
    linear = [nn.Linear(channels * side**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return [*fitting, nn.Flatten(), *linear], width


class FittedMap(nn.Module):
    """Averages, or repeats, maps (N, C, H, W) to (N, C, side, side), as ``AdaptiveAvgPool2d`` does.

    By two matrices of shares, because that layer's backward pass on CUDA sums in no fixed order.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self._side = side

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maps with ``side`` rows and columns."""
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(length, dtype=x.dtype, device=x.device)[None], self._side)[0]
            for length in x.shape[2:]
        )  # (H, side) and (W, side); what a column holds sums to 1
        return rows.T @ x @ columns


def set_channels(stem: nn.Sequential, channels: int) -> None:
    """Has the stem of torchvision's MobileNetV2 or EfficientNet take ``channels``: its 3x3 convolution is made anew.

    Weights start from Kaiming's normal, fan out, as all of theirs do.
    """
    old = stem[0]
    assert isinstance(old, nn.Conv2d)
    if channels != old.in_channels:
        new = nn.Conv2d(channels, old.out_channels, kernel_size=3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(new.weight, mode="fan_out")
        stem[0] = new


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Returns ``x`` (N, C, H, W) with its groups of channels interleaved, so that the next grouped layer mixes them.

    Channel ``g * (C / groups) + i`` moves to ``i * groups + g``; one group changes nothing.
    """
    count, channels, height, width = x.shape
    grouped = x.reshape(count, groups, channels // groups, height, width)
    return grouped.transpose(1, 2).reshape(x.shape)  # (N, G, C/G, H, W) -> (N, C/G, G, H, W) -> (N, C, H, W)


class GlobalAverage(nn.Module):
    """Averages every channel over the image: (N, C, H, W) to (N, C).

    A plain mean and not ``AdaptiveAvgPool2d``, whose backward pass on CUDA sums in no fixed order.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the channel means (N, C)."""
        return x.mean(dim=(2, 3))


def scaled_channels(channels: int, factor: float, *, multiple: int = 8) -> int:
    """Returns ``channels * factor`` as a multiple of ``multiple``: the nearest, but at least one and never under 90 %.

    The rule of the MobileNet papers' published code; a factor of 1 changes none of their widths.

    >>> [scaled_channels(24, factor) for factor in (0.125, 0.5, 1, 2)]
    [8, 16, 24, 48]
    """
    exact = channels * factor
    rounded = max(multiple, int(exact / multiple + 0.5) * multiple)
    return rounded if rounded >= 0.9 * exact else rounded + multiple
