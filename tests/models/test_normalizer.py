import pytest
import torch

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.models import Normalizer, build
from tests.models.conftest import CIFAR_FAMILIES


@pytest.mark.parametrize("family", CIFAR_FAMILIES)
def test_normalizer_is_the_first_child(family: str, cifar10: DatasetSpec) -> None:
    model = build(f"{family}-x0.125", cifar10)
    name, first = next(iter(model.named_children()))
    assert (name, first) == ("normalizer", model.normalizer)
    assert model.normalizer.mean.shape == model.normalizer.std.shape == (1, 3, 1, 1)
    assert {"normalizer.mean", "normalizer.std"} <= set(model.state_dict())
    assert not any("normalizer" in key for key, _ in model.named_parameters())


def test_matches_reference() -> None:
    pixels = torch.rand(2, 2, 3, 3) * 3 - 1  # also outside [0, 1]
    normalized = Normalizer((0.5, 0.1), (0.25, 2.0))(pixels)
    torch.testing.assert_close(normalized[:, 0], (pixels[:, 0] - 0.5) / 0.25)
    torch.testing.assert_close(normalized[:, 1], (pixels[:, 1] - 0.1) / 2.0)


def test_normaliser_undoes_another_encoding(cifar10: DatasetSpec) -> None:
    """The same picture in another pixel encoding, read by a model with that encoding's mean and std: equal logits."""
    model, pixels = build("convnet3-x0.125", cifar10), torch.rand(2, 3, 32, 32)
    shifted = build("convnet3-x0.125", cifar10)
    shifted.load_state_dict(model.state_dict())
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(1, 3, 1, 1)
    shifted.normalizer.mean.copy_(mean)
    shifted.normalizer.std.copy_(std)
    recoded = (pixels - model.normalizer.mean) / model.normalizer.std * std + mean
    torch.testing.assert_close(shifted(recoded), model(pixels), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shifted(pixels), model(pixels), atol=1e-3)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.0,)), ((0.5,), (-1.0,)), ((0.5,), (float("nan"),)), ((0.5, 0.5), (0.2,))]
)
def test_rejects_impossible_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="expected one mean and one positive std"):
        Normalizer(mean, std)


@pytest.mark.parametrize(
    "pixels",
    [torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8)],
    ids=["uint8", "grey", "no batch axis"],
)
def test_rejects_pixels_that_would_broadcast_or_overflow(pixels: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="it takes floating-point pixels"):
        Normalizer((0.5,) * 3, (0.2,) * 3)(pixels)
