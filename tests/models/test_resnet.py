from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.models import build, count_parameters
from dd_bench.models.resnet import Bottleneck
from tests.models.twins import assert_twins

LARGE = {"resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160}
"""Parameters with 1,000 classes, as torchvision's pages state them."""


def torchvision_twin(name: str, shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's ResNet for ten classes, up to 64 pixels with the stem of the distillation literature."""
    twin = torchvision.models.get_model(name, num_classes=10)
    if max(shape) <= 64:
        twin.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        twin.maxpool = nn.Identity()
    return twin


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 32, 32)),
        ("resnet18", (1, 8, 8)),
        ("resnet18", (3, 65, 30)),
        ("resnet34", (3, 13, 9)),
        ("resnet50", (3, 16, 16)),
        ("resnet50", (3, 65, 30)),
    ],
)
def test_matches_reference(name: str, shape: tuple[int, int, int], make_spec: Callable[..., DatasetSpec]) -> None:
    assert_twins(build(name, make_spec("some", shape, 10)), torchvision_twin(name, shape), torch.rand(2, *shape))


@pytest.mark.parametrize("name", sorted(LARGE))
def test_parameter_count_matches_reference(name: str, imagenet: DatasetSpec) -> None:
    with torch.device("meta"):
        assert count_parameters(build(name, imagenet)) == LARGE[name]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_initial_weights_match_reference(name: str, cifar10: DatasetSpec) -> None:
    model, twin = build(name, cifar10), torchvision.models.get_model(name, num_classes=10)
    ours = [module.weight for module in model.features.modules() if isinstance(module, nn.Conv2d)]
    theirs = [module.weight for module in twin.modules() if isinstance(module, nn.Conv2d)]
    for ours_weight, their_weight in zip(ours[1:], theirs[1:], strict=True):  # the stems differ
        assert abs(ours_weight.std() / their_weight.std() - 1) < 0.05
        assert abs(ours_weight.mean()) < 0.1 * their_weight.std()


def test_factor_sets_the_base_width(digits: DatasetSpec) -> None:
    widths = [
        {m.num_features for m in build(f"resnet18-x{factor}", digits).modules() if isinstance(m, nn.BatchNorm2d)}
        for factor in (0.01, 0.25, 1)
    ]
    assert widths == [{4, 8, 16, 32}, {16, 32, 64, 128}, {64, 128, 256, 512}]


def test_bottlenecks_are_a_quarter_as_wide(digits: DatasetSpec) -> None:
    model = build("resnet50-x0.25", digits)
    blocks = [layer for layer in model.features if isinstance(layer, Bottleneck)]
    assert [block.filter[0].out_channels for block in blocks] == [16] * 3 + [32] * 4 + [64] * 6 + [128] * 3
    assert [block.expand[0].out_channels for block in blocks] == [64] * 3 + [128] * 4 + [256] * 6 + [512] * 3
    assert model.head.in_features == 512
