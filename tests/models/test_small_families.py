"""VGG11, AlexNet, the perceptron, the Vision Transformer and ResNet-10."""

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.models import build, count_parameters
from tests.models.twins import assert_twins

Make = Callable[..., DatasetSpec]


def test_vgg_matches_reference(cifar10: DatasetSpec) -> None:
    twin = torchvision.models.vgg11_bn(num_classes=10)
    twin.avgpool, twin.classifier = nn.Identity(), nn.Linear(512, 10)
    assert_twins(build("vgg11", cifar10), twin, torch.rand(3, 3, 32, 32))


@pytest.mark.parametrize(("side", "width"), [(8, 512), (16, 512), (32, 512), (64, 2048)])
def test_vgg_pools_while_there_is_something_to_pool(side: int, width: int, make_spec: Make) -> None:
    with torch.device("meta"):
        model = build("vgg11", make_spec("some", (3, side, side), 10))
    assert model.head.in_features == width
    pools = [layer for layer in model.features if isinstance(layer, nn.MaxPool2d)]
    assert len(pools) == min(5, side.bit_length() - 1)


def test_alexnet_matches_reference(cifar10: DatasetSpec) -> None:
    model, pixels = build("alexnet-x0.125", cifar10).double(), torch.rand(3, 3, 32, 32).double()
    *convolutions, head, head_bias = model.parameters()
    x = model.normalizer(pixels)
    for number, (weight, bias) in enumerate(zip(convolutions[::2], convolutions[1::2], strict=True)):
        x = F.relu(F.conv2d(x, weight, bias, padding=(2, 2, 1, 1, 1)[number]))
        if number in (0, 1, 4):
            n, c, h, w = x.shape
            x = x.reshape(n, c, h // 2, 2, w // 2, 2).amax(dim=(3, 5))
    assert [weight.shape[0] for weight in convolutions[::2]] == [16, 24, 32, 24, 24]
    torch.testing.assert_close(model(pixels), x.flatten(1) @ head.T + head_bias)


def test_alexnet_brings_28_pixels_to_32(mnist: DatasetSpec, make_spec: Make) -> None:
    assert build("alexnet-x0.125", mnist).head.in_features == 24 * 4 * 4
    assert build("alexnet-x0.125", make_spec("other", (1, 27, 28), 10)).head.in_features == 24 * 3 * 3


@pytest.mark.parametrize("family", ["vgg11", "alexnet"])
def test_norms(family: str, cifar10: DatasetSpec) -> None:
    kinds = {
        norm: {type(layer) for layer in build(f"{family}-{norm}-x0.1", cifar10).features} - {nn.Conv2d, nn.ReLU}
        for norm in ("batch", "instance", "none")
    }
    others = {nn.MaxPool2d, nn.Flatten}
    assert kinds == {"batch": others | {nn.BatchNorm2d}, "instance": others | {nn.GroupNorm}, "none": others}


def test_mlp_matches_reference(cifar10: DatasetSpec) -> None:
    model, pixels = build("mlp", cifar10).double(), torch.rand(3, 3, 32, 32).double()
    x = model.normalizer(pixels).flatten(1)
    first, a, second, b, head, c = model.parameters()
    assert first.shape == (128, 3072)
    expected = F.relu(F.relu(x @ first.T + a) @ second.T + b) @ head.T + c
    torch.testing.assert_close(model(pixels), expected)


def test_vit_matches_reference(cifar10: DatasetSpec) -> None:
    twin = torchvision.models.VisionTransformer(32, 4, 2, 3, 48, 192, num_classes=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dd_bench.models.vit.LAYERS", 2)  # for speed
        model = build("vit-x0.25", cifar10)
    assert_twins(model, twin, torch.rand(3, 3, 32, 32))


def test_vit_has_the_size_of_deit_tiny(make_spec: Make) -> None:
    with torch.device("meta"):
        model = build("vit", make_spec("imagenet", (3, 224, 224), 1000))
    assert count_parameters(model) == 5_717_416
    assert model.head.in_features == 192


@pytest.mark.parametrize(
    ("shape", "tokens", "patch"),
    [((1, 8, 8), 64, 1), ((3, 32, 32), 64, 4), ((3, 64, 64), 64, 8), ((3, 37, 45), 81, 4), ((3, 112, 120), 49, 16)],
)
def test_vit_cuts_patches(shape: tuple[int, int, int], tokens: int, patch: int, make_spec: Make) -> None:
    model = build("vit-x0.0625", make_spec("some", shape, 10)).eval()
    centre, network = model.features[0], model.features[1].network
    assert network.conv_proj.kernel_size == (patch, patch)
    assert network.encoder.pos_embedding.shape[1] == tokens + 1
    pixels = torch.rand(2, *shape)
    side = patch * round(tokens**0.5)
    top, left = (shape[1] - side) // 2, (shape[2] - side) // 2
    assert centre(pixels).equal(pixels[:, :, top : top + side, left : left + side])
    assert model(pixels).shape == (2, 10)


def test_rejects_images_too_small_for_a_vit(make_spec: Make) -> None:
    with pytest.raises(ConfigError, match=r"^vit cuts images into 8 x 8 patches or more; dot has 7x9: choose another"):
        build("vit", make_spec("dot", (1, 7, 9), 2))


def test_resnet10_has_a_block_a_stage(cifar10: DatasetSpec) -> None:
    model = build("resnet10", cifar10)
    convolutions = [m for m in model.features.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 10  # and the head
    assert count_parameters(model) == 4_903_242
