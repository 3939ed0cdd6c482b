"""Networks for images over 64 pixels are the published ones, of torchvision where it has them."""

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.efficientnet import EfficientNet, MBConvConfig

from dd_bench.models import build, count_parameters
from dd_bench.models.layers import FittedMap
from tests.models.conftest import IMAGE_FAMILIES, spec_of
from tests.models.twins import assert_twins

# By torchvision's own weights, which say how many parameters they have
PUBLISHED = {
    "resnet18": "ResNet18_Weights.IMAGENET1K_V1",
    "resnet34": "ResNet34_Weights.IMAGENET1K_V1",
    "resnet50": "ResNet50_Weights.IMAGENET1K_V2",
    "resnet101": "ResNet101_Weights.IMAGENET1K_V2",
    "mobilenetv2": "MobileNet_V2_Weights.IMAGENET1K_V2",
    "efficientnetb0": "EfficientNet_B0_Weights.IMAGENET1K_V1",
    "shufflenetv2": "ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1",
    "shufflenetv2-x0.5": "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1",
    "densenet121": "DenseNet121_Weights.IMAGENET1K_V1",
    "vgg11": "VGG11_BN_Weights.IMAGENET1K_V1",
    "vgg11-none": "VGG11_Weights.IMAGENET1K_V1",
    "alexnet": "AlexNet_Weights.IMAGENET1K_V1",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build(name, spec_of("imagenet", (3, 224, 224), 1000))
    assert count_parameters(model) == torchvision.models.get_weight(PUBLISHED[name]).meta["num_params"]


@pytest.mark.parametrize(
    ("shape", "classes"),
    [((1, 65, 65), 2), ((3, 96, 96), 1000), ((3, 64, 96), 10), ((1, 128, 128), 10), ((3, 224, 224), 1000)],
    ids=str,
)
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_shapes(family: str, shape: tuple[int, int, int], classes: int) -> None:
    """Grey and colour, square and oblong, 2 to 1,000 classes, at full width."""
    with torch.device("meta"):
        model = build(family, spec_of("large", shape, classes))
        pixels = torch.empty(2, *shape)
        assert model(pixels).shape == (2, classes)
        assert model.embed(pixels).shape == (2, model.head.in_features)


@pytest.mark.parametrize("family", [name for name in IMAGE_FAMILIES if not name.startswith(("conv", "p", "mlp"))])
def test_maps_of_224_pixels_are_small_enough_to_train_on(family: str) -> None:
    """The smallest has 28 x 28 pixels at most: it was not made for CIFAR."""
    seen: list[int] = []
    with torch.device("meta"):
        model = build(f"{family}-x0.125", spec_of("large", (3, 224, 224), 10))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _m, _i, out: seen.append(out.shape[-1]))
        model(torch.empty(1, 3, 224, 224))
    assert min(seen) <= 28


def test_mobilenet_matches_reference() -> None:
    twin = torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25, dropout=0.0)
    assert_twins(build("mobilenetv2-x0.25", spec_of("large", (3, 66, 66), 10)), twin, torch.rand(3, 3, 66, 66))


def test_efficientnet_matches_reference() -> None:
    table = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 2), (6, 5, 2, 24, 40, 2), (6, 3, 2, 40, 80, 3),
             (6, 5, 1, 80, 112, 3), (6, 5, 2, 112, 192, 4), (6, 3, 1, 192, 320, 1))  # fmt: skip
    rows = [MBConvConfig(*row, 0.25, 1.0) for row in table]
    twin = EfficientNet(rows, dropout=0.0, stochastic_depth_prob=0.0, num_classes=10)
    assert_twins(build("efficientnetb0-x0.25", spec_of("large", (3, 66, 66), 10)), twin, torch.rand(3, 3, 66, 66))


@pytest.mark.parametrize(("name", "builder"), [("vgg11", "vgg11_bn"), ("vgg11-none", "vgg11"), ("alexnet", "alexnet")])
def test_vgg_and_alexnet_match_reference(name: str, builder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidden layers of 8 instead of 4096, for speed."""

    class Narrow(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(8 if inputs == 4096 else inputs, 8 if outputs == 4096 else outputs)

    monkeypatch.setattr(nn, "Linear", Narrow)
    twin = getattr(torchvision.models, builder)(num_classes=10, dropout=0.0)
    model = build(name, spec_of("large", (3, 80, 80), 10))
    for ours, theirs in zip(model.features.parameters(), twin.parameters(), strict=False):  # all but the head
        if ours.ndim > 1:
            torch.testing.assert_close(ours.std(), theirs.std(), rtol=0.3, atol=0)
    assert_twins(model, twin, torch.rand(3, 3, 80, 80))


@pytest.mark.parametrize("family", ["mobilenetv2", "efficientnetb0", "vgg11", "alexnet", "shufflenetv1", "resnet18"])
def test_forward_draws_nothing(family: str) -> None:
    """Neither dropout nor stochastic depth, also while training."""
    model = build(f"{family}-x0.125", spec_of("large", (3, 72, 72), 10)).train()
    before = torch.get_rng_state()
    model(torch.rand(2, 3, 72, 72, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_pooling_that_does_nothing_is_left_out() -> None:
    with torch.device("meta"):
        for name in ("vgg11", "alexnet"):
            for side, pooled in ((224, False), (128, True)):
                model = build(f"{name}-x0.125", spec_of("large", (3, side, side), 10))
                assert any(isinstance(layer, FittedMap) for layer in model.features) is pooled


@pytest.mark.parametrize("name", ["mobilenetv2", "efficientnetb0"])
def test_grey_stems_start_as_those_of_colour(name: str) -> None:
    """Kaiming's normal, fan out: the deviation is that of the outputs' number alone."""
    stems = [build(name, spec_of("large", (channels, 66, 66), 10)).features[0][0] for channels in (1, 3)]
    assert [stem.weight.shape for stem in stems] == [(32, 1, 3, 3), (32, 3, 3, 3)]
    for stem in stems:
        assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((3, 3), (2, 2), (1, 1), None)
        torch.testing.assert_close(stem.weight.std().item(), (2 / (32 * 9)) ** 0.5, rtol=0.25, atol=0)


@pytest.mark.parametrize(("side", "pools"), [(65, 3), (32, 2), (16, 1), (8, 0)])
def test_alexnet_pools_while_there_is_something_to_pool(side: int, pools: int) -> None:
    with torch.device("meta"):
        model = build("alexnet-x0.125", spec_of("oblong", (3, side, 100), 10))
        assert sum(isinstance(layer, nn.MaxPool2d) for layer in model.features) == pools
        assert model(torch.empty(2, 3, side, 100)).shape == (2, 10)
