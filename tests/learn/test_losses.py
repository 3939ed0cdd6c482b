import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax
from scipy.stats import entropy
from torch.autograd import gradcheck, gradgradcheck

from dd_bench.learn.losses import cross_entropy, distillation, mean_squared_error


def draw(*shape, seed=0, scale=3.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shapes():
    logits, target = draw(5, 4), draw(5, 4, seed=1)
    assert cross_entropy(logits, target.softmax(1)).shape == ()
    assert distillation(logits, target, 4.0).shape == ()
    assert cross_entropy(logits.float(), target.softmax(1).float()).dtype == torch.float32
    assert mean_squared_error(logits, target).shape == ()
    assert mean_squared_error(logits.float(), target.float()).dtype == torch.float32


def test_cross_entropy_matches_reference():
    logits, probabilities = draw(7, 5), draw(7, 5, seed=1).softmax(1)
    by_hand = 0.0
    for z, p in zip(logits.tolist(), probabilities.tolist(), strict=True):
        norm = math.log(sum(math.exp(v) for v in z))
        by_hand += sum(pk * (norm - zk) for pk, zk in zip(p, z, strict=True)) / 7
    assert cross_entropy(logits, probabilities).item() == pytest.approx(by_hand, abs=1e-12)


def test_cross_entropy_of_one_hot_rows_is_torchs():
    logits, labels = draw(9, 6), torch.arange(9) % 6
    one_hot = F.one_hot(labels, 6).double()
    torch.testing.assert_close(cross_entropy(logits, one_hot), F.cross_entropy(logits, labels), rtol=0, atol=1e-12)


def test_cross_entropy_is_least_at_the_entropy_of_the_targets():
    target = draw(6, 4)
    lowest = entropy(softmax(target.numpy(), axis=1), axis=1).mean()
    assert cross_entropy(target, target.softmax(1)).item() == pytest.approx(lowest, abs=1e-12)
    assert cross_entropy(target + draw(6, 4, seed=1), target.softmax(1)).item() > lowest


def test_cross_entropy_survives_extreme_logits():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert cross_entropy(logits, torch.tensor([[0.0, 1.0, 0.0]])).item() == pytest.approx(2e4)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 30.0])
def test_distillation_matches_reference(temperature):
    student, teacher = draw(8, 5), draw(8, 5, seed=1)
    p, q = (softmax(z.numpy() / temperature, axis=1) for z in (teacher, student))
    expected = np.mean([entropy(pn, qn) for pn, qn in zip(p, q, strict=True)])  # KL(teacher ‖ student), in nats
    assert distillation(student, teacher, temperature).item() == pytest.approx(expected, abs=1e-12)
    by_hand = (p * (log_softmax(teacher / temperature, axis=1) - log_softmax(student / temperature, axis=1))).sum() / 8
    assert expected == pytest.approx(by_hand, abs=1e-12)


def test_distillation_of_equal_softmaxes_is_zero():
    logits = draw(5, 4)
    shifted = logits + torch.arange(5.0)[:, None]
    assert distillation(logits, shifted, 3.0).item() == pytest.approx(0, abs=1e-15)
    assert distillation(logits, draw(5, 4, seed=1), 3.0) > 0


def test_distillation_at_high_temperature_is_the_variance_of_the_difference():
    student, teacher = draw(6, 10), draw(6, 10, seed=1)
    limit = (teacher - student).var(dim=1, unbiased=False).mean() / 2
    scaled = distillation(student, teacher, 1e3) * 1e3**2
    torch.testing.assert_close(scaled, limit, rtol=0.01, atol=0)


def test_distillation_and_cross_entropy_have_one_gradient_at_temperature_one():
    student, teacher = draw(6, 4).requires_grad_(), draw(6, 4, seed=1)
    (by_kl,) = torch.autograd.grad(distillation(student, teacher, 1.0), student)
    (by_ce,) = torch.autograd.grad(cross_entropy(student, teacher.softmax(1)), student)
    torch.testing.assert_close(by_kl, by_ce, rtol=0, atol=1e-12)
    torch.testing.assert_close(by_ce, (student.softmax(1) - teacher.softmax(1)) / 6, rtol=0, atol=1e-12)


def test_mean_squared_error_matches_reference():
    outputs, values = draw(7, 5), draw(7, 5, seed=1)
    pairs = zip(outputs.flatten().tolist(), values.flatten().tolist(), strict=True)
    assert mean_squared_error(outputs, values).item() == pytest.approx(sum((a - b) ** 2 for a, b in pairs) / 35)
    assert mean_squared_error(values, values) == 0
    assert mean_squared_error(torch.cat([outputs] * 3), torch.cat([values] * 3)).item() == pytest.approx(
        mean_squared_error(outputs, values).item()
    )
    assert mean_squared_error(outputs, torch.zeros_like(outputs)).item() == pytest.approx(np.mean(outputs.numpy() ** 2))


def test_gradient_of_mean_squared_error_is_right():
    outputs, values = draw(3, 4, scale=1.0).requires_grad_(), draw(3, 4, seed=1, scale=1.0)
    (gradient,) = torch.autograd.grad(mean_squared_error(outputs, values), outputs)
    torch.testing.assert_close(gradient, 2 * (outputs.detach() - values) / 12, rtol=0, atol=1e-12)
    for check in (gradcheck, gradgradcheck):
        assert check(mean_squared_error, (outputs, values.requires_grad_()))


def test_gradient_is_right_twice():
    student, teacher = draw(3, 4, scale=1.0).requires_grad_(), draw(3, 4, seed=1, scale=1.0).requires_grad_()
    for check in (gradcheck, gradgradcheck):
        assert check(lambda z, t: distillation(z, t, 2.0), (student, teacher))
        assert check(lambda z, t: cross_entropy(z, t.softmax(1)), (student, teacher))
