from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet

from dd_bench.data.specs import DatasetSpec
from dd_bench.models import build, count_parameters
from dd_bench.models.densenet import DenseLayer, Transition
from tests.models.twins import assert_twins


def torchvision_twin(growth: int, shape: tuple[int, int, int]) -> nn.Module:
    """torchvision's DenseNet-121 for ten classes, up to 64 pixels with a bare convolution as its stem."""
    twin = DenseNet(growth, (6, 12, 24, 16), num_init_features=2 * growth, num_classes=10)
    if max(shape) <= 64:
        twin.features.conv0 = nn.Conv2d(shape[0], 2 * growth, 3, padding=1, bias=False)
        twin.features.norm0 = twin.features.relu0 = twin.features.pool0 = nn.Identity()
    return twin


@pytest.mark.parametrize(
    ("factor", "growth", "shape"),
    [
        (1, 32, (3, 32, 32)),
        (0.375, 12, (3, 65, 30)),
        (0.125, 4, (1, 8, 8)),
        (0.125, 4, (1, 28, 28)),
        (0.125, 4, (3, 13, 9)),
    ],
)
def test_matches_reference(
    factor: float, growth: int, shape: tuple[int, int, int], make_spec: Callable[..., DatasetSpec]
) -> None:
    model = build(f"densenet121-x{factor}", make_spec("some", shape, 10))
    assert_twins(model, torchvision_twin(growth, shape), torch.rand(2, *shape))


def test_parameter_count_matches_reference(cifar10: DatasetSpec, imagenet: DatasetSpec) -> None:
    with torch.device("meta"):
        assert count_parameters(build("densenet121", imagenet)) == 7_978_856  # torchvision's page
        assert count_parameters(build("densenet121-x0.375", cifar10)) == 1_000_618  # pytorch-cifar, densenet_cifar


def test_layers_append_channels() -> None:
    layer, x = DenseLayer(6, 4), torch.randn(2, 6, 5, 5)
    assert layer(x).shape == (2, 10, 5, 5)
    assert torch.equal(layer(x)[:, :6], x)


def test_one_pixel_is_not_halved() -> None:
    transition, line, pixel = Transition(6, 3), torch.randn(2, 6, 1, 5), torch.randn(2, 6, 1, 1)
    pairs = transition.mix(line)[..., :4].reshape(2, 3, 1, 2, 2)
    torch.testing.assert_close(transition(line), pairs.mean(dim=4))
    assert torch.equal(transition(pixel), transition.mix(pixel))


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 1, 7), (3, 1, 70)])
def test_images_of_any_size(shape: tuple[int, int, int], make_spec: Callable[..., DatasetSpec]) -> None:
    model = build("densenet121-x0.125", make_spec("tiny", shape, 10))
    assert model(torch.rand(2, *shape)).isfinite().all()


def test_factor_sets_the_growth_rate(digits: DatasetSpec) -> None:
    found = []
    for factor in (0.01, 0.25, 1):
        model = build(f"densenet121-x{factor}", digits)
        layers = [layer for layer in model.features if isinstance(layer, DenseLayer)]
        assert len(layers) == 58
        found.append((model.features[0].out_channels, {layer.grow[-1].out_channels for layer in layers}))
    assert found == [(2, {1}), (16, {8}), (64, {32})]
