"""Linear probes: the one minimum of a stated loss, whatever finds it, on labels drawn fairly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from dd_bench.seeding import generator
from eval.probe import draw_labelled, fit_probe


def problem(num_classes: int, count: int = 60, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns features in odd units, and labels that they half explain."""
    draws = generator(seed)
    features = 7.0 * torch.randn(count, width, generator=draws) + 3.0
    means = torch.randn(num_classes, width, generator=draws)
    labels = (features @ means.T / 10 + torch.randn(count, num_classes, generator=draws)).argmax(1)
    assert len(labels.unique()) == num_classes
    return features, labels


def units(features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the mean of each feature, and one deviation of them all from it."""
    center = features.double().mean(0)
    return center, (features.double() - center).square().mean().sqrt()


def stated_loss(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, l2: float) -> Tensor:
    """Returns the mean cross-entropy and half the squared weights, on features of mean 0 and mean square 1."""
    center, scale = units(features)
    logits = (features.double() - center) / scale @ weight.T + bias
    return F.cross_entropy(logits, labels) + l2 / 2 * weight.square().sum()


def in_units(layer: nn.Linear, features: Tensor) -> tuple[Tensor, Tensor]:
    """Returns a layer's weights and biases for such features."""
    center, scale = units(features)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    return weight * scale, bias + weight @ center


def minimum(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> tuple[Tensor, Tensor, float]:
    """Returns weights and biases, for features in these units, and the least loss, by BFGS on autograd's gradient."""
    width = features.shape[1]

    def value(flat: np.ndarray) -> tuple[float, np.ndarray]:
        theta = torch.from_numpy(flat.copy()).requires_grad_()
        parts = theta.split([num_classes * width, num_classes])
        loss = stated_loss(parts[0].view(num_classes, width), parts[1], features, labels, l2)
        (slope,) = torch.autograd.grad(loss, theta)
        return loss.item(), slope.numpy()

    found = minimize(
        value, np.zeros(num_classes * (width + 1)), jac=True, method="BFGS", options={"gtol": 1e-10, "maxiter": 5000}
    )
    weight, bias = torch.from_numpy(found.x).split([num_classes * width, num_classes])
    return weight.view(num_classes, width), bias, float(found.fun)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("l2", [0.01, 1.0])
def test_matches_reference(num_classes: int, l2: float) -> None:
    features, labels = problem(num_classes)
    weight, bias, least = minimum(features, labels, num_classes, l2)
    layer = fit_probe(features, labels, num_classes, l2)
    assert (layer.weight.shape, layer.weight.dtype) == ((num_classes, 5), torch.float32)
    assert not layer.training
    ours, biases = in_units(layer, features)
    torch.testing.assert_close(ours, weight, rtol=1e-3, atol=1e-3)
    # Biases are free: what is common to all of them means nothing
    torch.testing.assert_close(biases - biases.mean(), bias - bias.mean(), rtol=1e-3, atol=1e-3)
    reached = stated_loss(ours, biases, features, labels, l2)
    assert least - 1e-9 <= float(reached) <= least + 1e-6
    center, scale = units(features)
    z = (features.double() - center) / scale @ weight.T + bias
    torch.testing.assert_close(layer(features).detach().double().softmax(1), z.softmax(1), rtol=0, atol=1e-3)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_units_mean_nothing(num_classes: int) -> None:
    """Neither their size nor where their zero lies."""
    features, labels = problem(num_classes)
    expected = fit_probe(features, labels, num_classes, 0.01)(features)
    for factor, shift in ((1e-4, 0.0), (0.5, 3.0), (1e4, -1e4)):
        other = factor * features + shift
        torch.testing.assert_close(fit_probe(other, labels, num_classes, 0.01)(other), expected, rtol=2e-4, atol=2e-4)


def test_more_features_than_images_have_a_minimum() -> None:
    features, labels = problem(3, count=12, width=200)
    weight, bias, least = minimum(features, labels, 3, 0.1)
    layer = fit_probe(features, labels, 3, 0.1)
    assert abs(float(stated_loss(*in_units(layer, features), features, labels, 0.1)) - least) < 1e-6
    center, scale = units(features)
    expected = ((features.double() - center) / scale @ weight.T + bias).argmax(1)
    assert layer(features).argmax(1).equal(expected)


def test_features_that_say_nothing_leave_the_shares_of_the_classes() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    layer = fit_probe(torch.full((6, 4), 3.0), labels, 3, 0.01)
    expected = torch.tensor([[0.5, 1 / 3, 1 / 6]])
    torch.testing.assert_close(layer(torch.full((1, 4), 3.0)).softmax(1), expected, rtol=0, atol=1e-3)


def test_a_label_a_class_is_enough() -> None:
    """Also of many classes, which scikit-learn takes for numbers."""
    features, labels = torch.randn(6, 4, generator=generator(0)), torch.randperm(6, generator=generator(1))
    layer = fit_probe(features, labels, 6, 0.01)
    assert layer(features).argmax(1).equal(labels)


def test_nothing_is_drawn() -> None:
    features, labels = problem(3)
    first, again = (fit_probe(features, labels, 3, 0.01) for _ in range(2))
    assert first.weight.equal(again.weight)
    assert first.bias.equal(again.bias)


# --- which labels are known ------------------------------------------------------------------------------------------

LABELS = torch.arange(3).repeat_interleave(torch.tensor([40, 30, 10]))[torch.randperm(80, generator=generator(2))]


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.1, [4, 3, 1]), (0.05, [2, 2, 1]), (0.01, [1, 1, 1]), (0.5, [20, 15, 5]), (1.0, [40, 30, 10])],
)
def test_every_class_has_its_share(share: float, expected: list[int]) -> None:
    """Rounded (half to even), and at least one."""
    picked = draw_labelled(LABELS, 3, share, generator(0))
    assert LABELS[picked].bincount().tolist() == expected
    assert picked.equal(picked.unique()), "ascending, and none twice"


def test_all_labels_are_all_images() -> None:
    assert draw_labelled(LABELS, 3, 1.0, generator(0)).equal(torch.arange(80))


def test_the_generator_decides() -> None:
    first, again, other = (draw_labelled(LABELS, 3, 0.2, generator(seed)) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_every_image_is_as_likely() -> None:
    draws, counts = generator(4), torch.zeros(80)
    for _ in range(600):
        counts[draw_labelled(LABELS, 3, 0.3, draws)] += 1
    assert (counts / 600 - 0.3).abs().max() < 0.08
