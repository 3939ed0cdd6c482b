import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.models import Architecture, Classifier, build, count_parameters


def convnet_reference(model: Classifier, pixels: Tensor, *, norm: str, first_padding: int) -> Tensor:
    """ConvNet written out with functions; weights in the order of ``model.parameters()``."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in ((0.49, 0.48, 0.44), (0.25, 0.24, 0.26)))
    channels = pixels.shape[1]
    x, weights = (pixels - mean[:, :channels]) / std[:, :channels], list(model.parameters())
    *blocks, head_weight, head_bias = weights
    step, padding = (2 if norm == "none" else 4), first_padding
    for block in range(0, len(blocks), step):
        x, padding = F.conv2d(x, blocks[block], blocks[block + 1], padding=padding), 1
        if norm != "none":
            axes = (2, 3) if norm == "instance" else (0, 2, 3)
            variance, average = torch.var_mean(x, dim=axes, keepdim=True, correction=0)
            gain, bias = (w.view(1, -1, 1, 1) for w in blocks[block + 2 : block + 4])
            x = (x - average) / torch.sqrt(variance + 1e-5) * gain + bias
        n, c, h, w = x.shape
        x = x.clamp(min=0)[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).mean(dim=(3, 5))
    return x.reshape(len(x), -1) @ head_weight.T + head_bias


@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
@pytest.mark.parametrize("depth", [1, 3])
def test_matches_reference(norm: str, depth: int, cifar10: DatasetSpec) -> None:
    model, pixels = build(f"convnet{depth}-{norm}-x0.25", cifar10), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # so that gains are not one and biases not zero
    expected = convnet_reference(model, pixels, norm=norm, first_padding=1)
    torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "padding"), [((1, 28, 28), 3), ((1, 8, 8), 1), ((3, 13, 9), 1), ((3, 28, 30), 1)])
def test_matches_reference_for_other_sizes(
    shape: tuple[int, int, int], padding: int, make_spec: Callable[..., DatasetSpec]
) -> None:
    model, pixels = build("convnet3-x0.125", make_spec("other", shape, 10)), torch.rand(2, *shape)
    expected = convnet_reference(model, pixels, norm="instance", first_padding=padding)
    torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


def test_parameter_count_matches_reference(mnist: DatasetSpec, cifar10: DatasetSpec) -> None:
    norms, middle = 2 * 128, 128 * 128 * 9 + 128
    blocks = (3 * 128 * 9 + 128) + 2 * middle + 3 * norms
    assert count_parameters(build("convnet3", cifar10)) == blocks + (128 * 4 * 4 + 1) * 10 == 320_010
    assert count_parameters(build("convnet3-batch", cifar10)) == 320_010
    assert count_parameters(build("convnet3-none", cifar10)) == 320_010 - 3 * norms
    # 28x28 is padded to 32x32, so only the first convolution differs from CIFAR-10's.
    assert count_parameters(build("convnet3", mnist)) == 320_010 - 2 * 128 * 9


def test_instance_norm_is_the_same_in_training_and_evaluation(digits: DatasetSpec) -> None:
    model, pixels = build("convnet3-x0.125", digits), torch.rand(3, 1, 8, 8)
    assert torch.equal(model(pixels), model.eval()(pixels))
    torch.testing.assert_close(model(pixels)[:1], model(pixels[:1]))


@pytest.mark.parametrize("name", ["convnet4", "convnet5-batch-x0.25", "convnet6"])
def test_rejects_images_too_small_for_the_depth(name: str, digits: DatasetSpec) -> None:
    with pytest.raises(
        ConfigError, match=r"needs at least (16x16|32x32|64x64) pixels; digits has 8x8: choose convnet3"
    ):
        build(name, digits)


@pytest.mark.parametrize(
    ("name", "side", "map_side"),
    [("convnet5", 96, 3), ("convnet5", 128, 4), ("convnet5", 224, 7), ("convnet6", 128, 2), ("convnet6", 224, 3)],
)
def test_parameter_count_matches_reference_for_large_images(
    name: str, side: int, map_side: int, make_spec: Callable[..., DatasetSpec]
) -> None:
    depth = int(name[-1])
    with torch.device("meta"):
        model = build(name, make_spec("large", (3, side, side), 1000))
        assert model(torch.empty(2, 3, side, side)).shape == (2, 1000)
    blocks = (3 * 128 * 9 + 128) + (depth - 1) * (128 * 128 * 9 + 128) + depth * 2 * 128
    assert count_parameters(model) == blocks + (128 * map_side**2 + 1) * 1000


@pytest.mark.parametrize(("name", "side", "shallower"), [("convnet6", 63, 5), ("convnet5", 31, 4), ("pyramid5", 28, 4)])
def test_refuses_what_is_too_deep_and_says_what_is_not(
    name: str, side: int, shallower: int, make_spec: Callable[..., DatasetSpec]
) -> None:
    spec = make_spec("some", (3, side, side + 1), 10)
    family, depth = name[:-1], int(name[-1])
    with pytest.raises(ConfigError, match=f"{name} halves the image {depth} times .* choose {family}{shallower} or"):
        build(name, spec)
    build(f"{family}{shallower}-x0.01", spec)


def test_rejects_a_single_pixel(make_spec: Callable[..., DatasetSpec]) -> None:
    with pytest.raises(ConfigError, match="has 1x40: choose another family"):
        build("convnet1", make_spec("line", (1, 1, 40), 2))


# --- pyramids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "norm"), [
    ("pyramid3-x0.03125", "batch"), ("pyramid2-instance-x0.0625", "instance"), ("pyramid4-none-x0.0625", "none"),
])  # fmt: skip
def test_pyramid_matches_reference(name: str, norm: str, cifar10: DatasetSpec) -> None:
    model, pixels = build(name, cifar10), torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    expected = convnet_reference(model, pixels, norm=norm, first_padding=1)
    torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


def test_pyramid_pads_28_pixels_to_32(mnist: DatasetSpec) -> None:
    model, pixels = build("pyramid3-x0.03125", mnist), torch.rand(2, 1, 28, 28)
    expected = convnet_reference(model, pixels, norm="batch", first_padding=3)
    torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "side", "outputs", "widths", "published"),
    [
        (3, 32, 512, [128, 256, 512], 5_675_520),  # 5.676 million in the authors' code for CIFAR-100
        (4, 64, 512, [64, 128, 256, 512], 5_747_712),  # 5.748 million for Tiny-ImageNet and ImageNet at 64 pixels
        (5, 224, 2048, [32, 64, 128, 256, 512], 52_952_832),  # 53.0 million for ImageNette
        (2, 8, 10, [256, 512], 1_209_354),
    ],
)
def test_pyramid_parameter_count_matches_reference(
    depth: int, side: int, outputs: int, widths: list[int], published: int, make_spec: Callable[..., DatasetSpec]
) -> None:
    channels = [3, *widths]
    blocks = sum(a * b * 9 + b + 2 * b for a, b in itertools.pairwise(channels))  # with gains and biases of the norms
    with torch.device("meta"):
        model = build(f"pyramid{depth}", make_spec("any", (3, side, side), outputs))
    assert [parameter.shape[0] for parameter in model.parameters() if parameter.ndim == 4] == widths
    assert model.head.in_features == 512 * (side >> depth) ** 2
    assert count_parameters(model) == blocks + (model.head.in_features + 1) * outputs == published


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("pyramid3", "pyramid3"), ("pyramid3-batch", "pyramid3"), ("pyramid3-batch-x1.0", "pyramid3"),
        ("pyramid3-instance", "pyramid3-instance"), ("pyramid2-batch-x0.1250", "pyramid2-x0.125"),
        ("pyramid5-none-x2", "pyramid5-none-x2"),
    ],
)  # fmt: skip
def test_pyramids_have_batch_norm_unless_told_otherwise(name: str, canonical: str) -> None:
    assert str(Architecture.parse(name)) == canonical


def test_a_factor_scales_every_block(cifar10: DatasetSpec) -> None:
    model = build("pyramid3-x0.125", cifar10)
    assert [parameter.shape[0] for parameter in model.parameters() if parameter.ndim == 4] == [16, 32, 64]
    least = build("pyramid3-x0.001", cifar10)
    assert [parameter.shape[0] for parameter in least.parameters() if parameter.ndim == 4] == [1, 1, 1]


def test_rejects_images_too_small_for_a_pyramid(digits: DatasetSpec, make_spec: Callable[..., DatasetSpec]) -> None:
    with pytest.raises(ConfigError, match=r"^pyramid4 halves .* at least 16x16 pixels; digits has 8x8: .* pyramid3 or"):
        build("pyramid4", digits)
    with pytest.raises(ConfigError, match="has 2x2: choose another family"):
        build("pyramid2", make_spec("dot", (1, 2, 2), 2))


@pytest.mark.parametrize("name", ["pyramid", "pyramid1", "pyramid6"])
def test_rejects_other_depths(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"unknown model '{name}'; did you mean 'pyramid"):
        Architecture.parse(name)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_pooled_is_the_pyramid_with_its_last_map_averaged(norm: str, cifar10: DatasetSpec) -> None:
    whole, pooled = (build(f"{family}3-{norm}-x0.0625", cifar10) for family in ("pyramid", "pooled"))
    pixels = torch.rand(4, 3, 32, 32)
    pooled.features.load_state_dict(whole.features.state_dict())
    expected = whole.embed(pixels).reshape(4, 32, 4 * 4).mean(2)
    torch.testing.assert_close(pooled.embed(pixels), expected, rtol=1e-5, atol=1e-6)
    assert pooled(pixels).shape == (4, 10)
    assert pooled.head.in_features == 32
    assert str(Architecture.parse("pooled3-batch-x1")) == "pooled3"


def test_rejects_images_too_small_to_be_pooled(digits: DatasetSpec) -> None:
    with pytest.raises(ConfigError, match=r"pooled4 halves .* digits has 8x8: choose pooled3 or a shallower one"):
        build("pooled4", digits)
