from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchvision.models._utils import _make_divisible

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.layers import (
    FittedMap,
    GlobalAverage,
    channel_shuffle,
    conv_bn,
    fits_small_stem,
    scaled_channels,
)  # fmt: skip


@given(st.integers(1, 2000), st.floats(0.01, 4), st.sampled_from([1, 4, 8]))
def test_scaled_channels_matches_reference(channels: int, factor: float, multiple: int) -> None:
    assert scaled_channels(channels, factor, multiple=multiple) == _make_divisible(channels * factor, multiple)


def test_scaled_channels_never_falls_below_ninety_percent() -> None:
    assert [scaled_channels(channels, 0.25) for channels in (16, 40, 43, 80)] == [8, 16, 16, 24]


def test_conv_bn_shapes() -> None:
    layer = conv_bn(4, 6, kernel=5, stride=2, groups=2)
    assert layer(torch.randn(2, 4, 9, 8)).shape == (2, 6, 5, 4)
    assert [name for name, _ in layer.named_parameters()] == ["0.weight", "1.weight", "1.bias"]


def test_global_average_matches_reference() -> None:
    x = torch.randn(2, 3, 5, 4)
    torch.testing.assert_close(GlobalAverage()(x), nn.AdaptiveAvgPool2d(1)(x).flatten(1))


@pytest.mark.parametrize(("height", "width", "side"), [(4, 4, 7), (13, 9, 6), (2, 20, 7), (1, 1, 6), (7, 7, 7)])
def test_fitted_map_matches_reference(height: int, width: int, side: int) -> None:
    x = torch.randn(2, 3, height, width)
    torch.testing.assert_close(FittedMap(side)(x), nn.AdaptiveAvgPool2d(side)(x))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channel_shuffle_matches_reference(groups: int) -> None:
    x = torch.randn(2, 12, 3, 4)
    order = [group * (12 // groups) + member for member in range(12 // groups) for group in range(groups)]
    assert torch.equal(channel_shuffle(x, groups), x[:, order])
    assert torch.equal(channel_shuffle(x, groups), F.channel_shuffle(x, groups))


def test_channel_shuffle_keeps_channels_last() -> None:
    x = torch.randn(2, 6, 3, 4)
    assert torch.equal(channel_shuffle(x.contiguous(memory_format=torch.channels_last), 2), channel_shuffle(x, 2))


@pytest.mark.parametrize(("sides", "small"), [((8, 8), True), ((64, 64), True), ((10, 65), False), ((65, 10), False)])
def test_the_longer_side_chooses_the_stem(
    sides: tuple[int, int], small: bool, make_spec: Callable[..., DatasetSpec]
) -> None:
    assert fits_small_stem(make_spec("some", (3, *sides), 10)) is small
