from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import ShuffleNetV2

from dd_bench.data.specs import DatasetSpec
from dd_bench.models import build, count_parameters
from dd_bench.models.shufflenetv2 import SplitUnit, choose_widths
from tests.models.twins import assert_twins

LARGE = {
    "shufflenetv2-x0.5": 1_366_792,
    "shufflenetv2": 2_278_604,
    "shufflenetv2-x1.5": 3_503_624,
    "shufflenetv2-x2": 7_393_996,
}
"""Parameters with 1,000 classes, as torchvision's pages state them."""


def torchvision_twin(widths: tuple[int, ...], shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's ShuffleNet v2 for ten classes, up to 64 pixels with the CIFAR stem."""
    twin = ShuffleNetV2([4, 8, 4], list(widths), num_classes=10)
    if max(shape) <= 64:
        twin.conv1[0] = nn.Conv2d(shape[0], widths[0], 3, padding=1, bias=False)
        twin.maxpool = nn.Identity()
    return twin


@pytest.mark.parametrize(
    ("factor", "widths", "shape"),
    [
        (1, (24, 116, 232, 464, 1024), (3, 32, 32)),
        (0.5, (24, 48, 96, 192, 1024), (3, 32, 32)),
        (0.5, (24, 48, 96, 192, 1024), (3, 65, 30)),
        (0.25, (12, 30, 58, 116, 512), (1, 8, 8)),
        (0.25, (12, 30, 58, 116, 512), (1, 28, 28)),
        (0.25, (12, 30, 58, 116, 512), (3, 13, 9)),
    ],
)
def test_matches_reference(
    factor: float, widths: tuple[int, ...], shape: tuple[int, int, int], make_spec: Callable[..., DatasetSpec]
) -> None:
    model = build(f"shufflenetv2-x{factor}", make_spec("some", shape, 10))
    assert_twins(model, torchvision_twin(widths, shape), torch.rand(2, *shape))


@pytest.mark.parametrize("name", sorted(LARGE))
def test_parameter_count_matches_reference(name: str, imagenet: DatasetSpec, cifar10: DatasetSpec) -> None:
    with torch.device("meta"):
        large, small = build(name, imagenet), build(name, cifar10)
    assert count_parameters(large) == LARGE[name]
    # Both stems have the same weights, so only the head differs.
    assert count_parameters(large) - count_parameters(small) == 990 * (large.head.in_features + 1)


def test_stage_widths_are_the_papers(cifar10: DatasetSpec) -> None:
    model, widths = build("shufflenetv2-x0.5", cifar10).eval(), []
    x = torch.rand(1, 3, 32, 32)
    for layer in model.features[:-1]:
        x = layer(x)
        widths.append(x.shape[1:])
    expected = [(24, 32, 32), (48, 16, 16), (96, 8, 8), (192, 4, 4), (1024, 4, 4)]
    assert list(dict.fromkeys(widths)) == expected


def test_half_of_the_channels_passes_unchanged() -> None:
    unit, x = SplitUnit(8, 8, stride=1), torch.randn(2, 8, 5, 5)
    assert torch.equal(unit(x)[:, ::2], x[:, :4])


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (0.001, (2, (2, 2, 2), 2)),
        (0.125, (6, (14, 30, 58), 256)),
        (0.25, (12, (30, 58, 116), 512)),
        (0.6, (24, (70, 140, 278), 1024)),
        (1.75, (24, (204, 406, 812), 1024)),
        (3, (24, (348, 696, 1392), 3072)),
    ],
)
def test_other_factors_give_even_widths(factor: float, expected: tuple[int, tuple[int, ...], int]) -> None:
    assert choose_widths(factor) == expected
