"""ZCA whitening: what it makes of a covariance, kornia's as the oracle, and a way back to pixels."""

import os
from pathlib import Path

import pytest
import torch
from kornia.enhance import ZCAWhitening
from torch import Tensor

from dd_bench.data.images import load
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.dsa import DSA
from dd_bench.models import Normalizer, Whitening, build, encode, encoded_spec, fit_whitening, whitening
from dd_bench.seeding import generator


def draw(count: int, shape: tuple[int, int, int] = (3, 4, 4), seed: int = 0) -> Tensor:
    """Returns uint8 images whose neighbours resemble one another, and one value that never changes."""
    noise = torch.rand(count, *shape, generator=generator(seed))
    images = ((noise + noise.roll(1, 2) + noise.roll(1, 3)) * 85).byte()
    images[:, 0, 0, 0] = 7
    return images


def floats(images: Tensor) -> Tensor:
    return images.float() / 255


def covariance(values: Tensor) -> Tensor:
    return torch.cov(values.flatten(1).double().T)


def test_shapes() -> None:
    layer = fit_whitening(draw(50))
    assert {name: tuple(value.shape) for name, value in layer.named_buffers()} == {
        "mean": (48,), "matrix": (48, 48), "inverse": (48, 48)
    }  # fmt: skip
    assert all(value.dtype == torch.float32 for value in layer.buffers())
    assert not list(layer.parameters())
    assert layer(floats(draw(5))).shape == (5, 3, 4, 4)
    assert layer(floats(draw(0))).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("count", [2, 30, 500], ids=["two images", "fewer images than values", "more"])
def test_there_and_back(count: int) -> None:
    layer, pixels = fit_whitening(draw(count)), floats(draw(20, seed=1)) * 2 - 0.5  # other images, also outside [0, 1]
    assert not torch.allclose(layer(pixels), pixels, atol=0.1)
    torch.testing.assert_close(layer.restore(layer(pixels)), pixels, rtol=0, atol=1e-5)
    torch.testing.assert_close(layer(layer.restore(pixels)), pixels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_spectrum_of_what_was_whitened(epsilon: float) -> None:
    """Along the same axes, a variance s becomes s / (s + epsilon)."""
    images = draw(300)
    before, axes = torch.linalg.eigh(covariance(floats(images)))
    after = axes.T @ covariance(fit_whitening(images, epsilon=epsilon)(floats(images))) @ axes
    torch.testing.assert_close(after.diagonal(), before / (before + epsilon), rtol=1e-4, atol=1e-7)
    assert (after - after.diagonal().diag()).abs().max() < 1e-6
    assert before[0].abs() < 1e-12, "no value was constant"


def test_variances_that_rounding_made_negative_count_as_none() -> None:
    images = draw(30)
    assert torch.linalg.eigvalsh(covariance(images / 255)).min() < -1e-18, "nothing to clamp"
    layer = fit_whitening(images, epsilon=1e-18)
    assert all(value.isfinite().all() for value in layer.buffers())


@pytest.mark.parametrize("count", [30, 500])
def test_matches_kornia(count: int) -> None:
    images, others = draw(count), floats(draw(20, seed=1))
    oracle = ZCAWhitening(eps=0.1, compute_inv=True).fit(floats(images))
    layer = fit_whitening(images)
    torch.testing.assert_close(layer(others), oracle(others), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.restore(others), oracle.inverse_transform(others), rtol=1e-4, atol=1e-5)


def test_other_images_are_whitened_by_the_statistics_of_the_first() -> None:
    layer, others = fit_whitening(draw(300)), floats(draw(300, seed=1)) + 0.25
    assert layer(others).mean() > layer(floats(draw(300))).mean() + 0.1, "others were centred on themselves"
    torch.testing.assert_close(layer(others)[:1], layer(others[:1]))


def test_pieces_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_whitening(draw(100))
    monkeypatch.setattr(whitening, "_AT_ONCE", 7)
    assert [len(part) for part in whitening._pieces(draw(20))] == [7, 7, 6]
    for one, other in zip(whole.buffers(), fit_whitening(draw(100)).buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_floats_are_pixels_with_white_at_one() -> None:
    images = floats(draw(100))
    before = images.clone()
    for one, other in zip(fit_whitening(draw(100)).buffers(), fit_whitening(images).buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    in_doubles = images.double()
    fit_whitening(in_doubles)
    assert torch.equal(in_doubles, before.double()), "the images were centred in place"


def test_gradient_reaches_images() -> None:
    layer = fit_whitening(draw(100)).double()
    pixels = torch.rand(2, 3, 4, 4, dtype=torch.float64, generator=generator(2), requires_grad=True)
    assert torch.autograd.gradcheck(layer, pixels)
    assert torch.autograd.gradcheck(layer.restore, pixels)


def test_the_layer_is_saved_whole() -> None:
    layer, pixels = fit_whitening(draw(100)), floats(draw(3))
    again = Whitening(torch.zeros(48), torch.eye(48), torch.eye(48))
    torch.testing.assert_close(again(pixels), pixels)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(pixels), layer(pixels))


def test_both_first_layers_lead_back(cifar10: DatasetSpec) -> None:
    pixels = torch.rand(4, 3, 32, 32) * 2 - 0.5
    layer = Normalizer(cifar10.mean, cifar10.std)
    torch.testing.assert_close(layer.restore(layer(pixels)), pixels)
    torch.testing.assert_close(layer.restore(torch.zeros(1, 3, 1, 1)), layer.mean)


def test_encoded_images_pass_a_network_of_their_own_spec(cifar10: DatasetSpec) -> None:
    encoded, pixels = encoded_spec(cifar10), torch.rand(4, 3, 32, 32)
    assert (encoded.mean, encoded.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (encoded.name, encoded.image_shape, encoded.mirror) == (cifar10.name, cifar10.image_shape, cifar10.mirror)
    model, same = build("convnet3-x0.125", cifar10), build("convnet3-x0.125", encoded)
    same.features, same.head = model.features, model.head
    torch.testing.assert_close(same(model.normalizer(pixels)), model(pixels))


def test_dsa_acts_on_encoded_images_as_published(cifar10: DatasetSpec) -> None:
    """What moves in from outside is 0 in their own space, and not the mean colour of pixels."""
    shift = DSA(encoded_spec(cifar10), "crop")
    parameters = shift.draw(4, generator(0), 0)
    moved = shift.apply(torch.ones(4, 3, 32, 32), parameters)
    assert set(moved.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("images", "match"),
    [
        (draw(1), r"shape \(1, 3, 4, 4\); expected \(N, C, H, W\) with at least two images"),
        (draw(2).flatten(1), "with at least two images"),
        (torch.full((3, 1, 2, 2), float("nan")), "NaN or infinite; expected pixels"),
        (torch.tensor([0.0, 1.0, float("inf")]).view(3, 1, 1, 1), "NaN or infinite; expected pixels"),
    ],
    ids=["one image", "no images", "NaN", "infinite"],
)
def test_rejects_images_without_a_covariance(images: Tensor, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        fit_whitening(images)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, float("nan"), float("inf")])
def test_rejects_epsilon_out_of_range(epsilon: float) -> None:
    with pytest.raises(ConfigError, match="expected more than 0, published is"):
        fit_whitening(draw(10), epsilon=epsilon)


@pytest.mark.parametrize(
    "pixels",
    [draw(2), torch.zeros(2, 1, 4, 4), torch.zeros(2, 3, 8, 8), torch.zeros(2, 48)],
    ids=["uint8", "grey", "larger", "flat"],
)
def test_rejects_pixels_of_another_kind(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"it takes floating-point pixels \(N, C, H, W\) of 48 values each"):
        fit_whitening(draw(10))(pixels)


@pytest.mark.slow
def test_real_images() -> None:
    """200 photographs of 768 values: most directions have no variance, and all come back."""
    folder = os.environ.get("DDBENCH_DATA")
    if not folder or not (Path(folder) / "cifar10" / "data.safetensors").is_file():
        pytest.skip("DDBENCH_DATA holds no prepared cifar10")
    images = load("cifar10@20", Path(folder)).images[..., 8:24, 8:24]
    layer = fit_whitening(images)
    pixels = floats(images)
    whitened = layer(pixels)
    assert whitened.mean(0).abs().max() < 1e-4
    assert whitened.var(0).sum() < len(images) - 1, "no direction may have more than unit variance"
    torch.testing.assert_close(layer.restore(whitened), pixels, rtol=0, atol=1e-5)


def test_images_are_encoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seen = draw(50), []
    layer = fit_whitening(images)
    layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    monkeypatch.setattr(whitening, "_AT_ONCE", 20)
    for given in (images, floats(images)):
        found = encode(given, layer, torch.device("cpu"))
        torch.testing.assert_close(found, layer(floats(images)), rtol=0, atol=1e-6)
        assert not found.requires_grad
    assert seen == [20, 20, 10, 50] * 2
