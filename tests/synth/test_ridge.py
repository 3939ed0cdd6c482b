"""Ridge regression in closed form: dual and primal agree, gradients are exact, and singular systems are survived."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from dd_bench.errors import NonFiniteError
from dd_bench.seeding import generator
from synth.parts.ridge import predict, with_bias

RIDGE = 1e-3
SHAPES = [(1, 5), (4, 9), (9, 9), (10, 9), (30, 9)]  # (m, d) with the bias: one, dual, square, just primal, primal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def problem(m: int, d: int, b: int = 7, k: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Features of support and queries, the bias among their columns, and targets."""
    return with_bias(draw(m, d - 1)), draw(m, k, seed=1), with_bias(draw(b, d - 1, seed=2))


def penalty(support: Tensor, relative: float) -> float:
    return relative * sum(float(value) ** 2 for value in support.flatten())


def stacked(support: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """The primal weights (d, k) by least squares on [F; √λ I] and [Y; 0]; nothing is squared."""
    width = support.shape[1]
    rows = np.concatenate([support.numpy(), np.sqrt(ridge) * np.eye(width)])
    values = np.concatenate([targets.numpy(), np.zeros((width, targets.shape[1]))])
    return torch.from_numpy(np.linalg.lstsq(rows, values, rcond=None)[0])


def by_lu(support: Tensor, targets: Tensor, queries: Tensor, ridge: float) -> Tensor:
    """The dual formula as published, whatever the shape."""
    kernel = support @ support.T + ridge * torch.eye(len(support), dtype=torch.float64)
    return queries @ support.T @ torch.linalg.solve(kernel, targets)


def by_mean_trace(support: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    return predict(support, targets, queries, RIDGE / len(support))[0]


def worst(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# --- the solution ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_shapes(m: int, d: int) -> None:
    predicted, raised = predict(*problem(m, d), RIDGE)
    assert (predicted.shape, predicted.dtype) == ((7, 3), torch.float64)
    assert predicted.isfinite().all()
    assert raised == 0


def test_the_bias_is_the_last_column() -> None:
    features = torch.tensor([[1.5, 2.0], [3.0, -4.0]])
    assert with_bias(features).equal(torch.tensor([[1.5, 2.0, 1.0], [3.0, -4.0, 1.0]], dtype=torch.float64))
    assert gradcheck(with_bias, draw(3, 2).requires_grad_())


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_matches_reference(m: int, d: int) -> None:
    """Least squares in primal form, LU in dual form; both forms are reached in both ways."""
    support, targets, queries = problem(m, d)
    ridge = penalty(support, RIDGE)
    predicted, _ = predict(support, targets, queries, RIDGE)
    assert worst(predicted, queries @ stacked(support, targets, ridge)) < 1e-12
    assert worst(predicted, by_lu(support, targets, queries, ridge)) < 1e-12


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_the_solution_is_stationary(m: int, d: int) -> None:
    """At queries I, what is predicted are the weights W themselves: F'(F W - Y) + λ W = 0."""
    support, targets, _ = problem(m, d)
    weights, _ = predict(support, targets, torch.eye(d, dtype=torch.float64), RIDGE)
    slope = support.T @ (support @ weights - targets) + penalty(support, RIDGE) * weights
    assert float(slope.norm()) < 1e-10


@pytest.mark.parametrize("relative", [1e-2, 1e-6, 1e-9])
def test_both_forms_agree_where_either_could_be_taken(relative: float) -> None:
    """Columns of zeros change no kernel, but they turn the primal form into the dual."""
    support, targets, queries = problem(20, 9)
    wide = [torch.cat([part, part.new_zeros(len(part), 15)], dim=1) for part in (support, queries)]
    primal, _ = predict(support, targets, queries, relative)
    dual, _ = predict(wide[0], targets, wide[1], relative)
    assert worst(primal, dual) < 1e-7 / (1e6 * relative + 1)


@pytest.mark.parametrize("case", ["duplicates", "zero image", "equal images"])
@pytest.mark.parametrize("m", [6, 20])
def test_awkward_features_are_solved(case: str, m: int) -> None:
    features, queries = draw(m, 8), with_bias(draw(7, 8, seed=2))
    if case == "duplicates":
        features[m // 2 :] = features[: m - m // 2]
    elif case == "zero image":
        features[0] = 0
    else:
        features[:] = features[0]
    support, targets = with_bias(features), draw(m, 3, seed=1)
    predicted, raised = predict(support, targets, queries, 1e-6)
    assert raised == 0
    assert worst(predicted, queries @ stacked(support, targets, penalty(support, 1e-6))) < 1e-8


# --- what it must and must not depend on -----------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_linear_in_the_targets(m: int, d: int) -> None:
    support, targets, queries = problem(m, d)
    other = draw(m, 3, seed=5)
    one, two, both = (predict(support, part, queries, RIDGE)[0] for part in (targets, other, 3 * targets - other))
    assert worst(both, 3 * one - two) < 1e-12
    assert float(predict(support, torch.zeros_like(targets), queries, RIDGE)[0].abs().max()) == 0


@pytest.mark.parametrize(("m", "d"), SHAPES[1:])
def test_the_order_of_pairs_is_nothing_and_the_pairing_is_all(m: int, d: int) -> None:
    support, targets, queries = problem(m, d)
    order = torch.randperm(m, generator=generator(3))
    assert not order.equal(torch.arange(m))
    predicted, _ = predict(support, targets, queries, RIDGE)
    assert worst(predict(support[order], targets[order], queries, RIDGE)[0], predicted) < 1e-12
    assert worst(predict(support, targets[order], queries, RIDGE)[0], predicted) > 0.1


def test_queries_do_not_see_one_another() -> None:
    support, targets, queries = problem(10, 9)
    one_by_one = torch.cat([predict(support, targets, query[None], RIDGE)[0] for query in queries])
    assert worst(one_by_one, predict(support, targets, queries, RIDGE)[0]) < 1e-13


def test_few_points_are_interpolated_as_far_as_the_ridge_lets() -> None:
    """The error at the support itself falls with λ, tenfold for tenfold."""
    support, targets, _ = problem(6, 20)
    errors = [float((predict(support, targets, support, relative)[0] - targets).norm()) for relative in
              (1e-4, 1e-6, 1e-8, 1e-10)]  # fmt: skip
    assert 0 < errors[0] < 0.05
    assert [errors[0] / error for error in errors] == pytest.approx([1, 1e2, 1e4, 1e6], rel=0.02)
    kernel = support @ support.T
    predicted = penalty(support, 1e-10) * torch.linalg.solve(kernel, targets)  # to first order in λ
    assert errors[-1] == pytest.approx(float(predicted.norm()), rel=1e-5)


def test_a_ridge_without_end_predicts_nothing() -> None:
    support, targets, queries = problem(6, 20)
    sizes = [float(predict(support, targets, queries, relative)[0].abs().max()) for relative in (1e2, 1e4, 1e8)]
    assert sizes[2] < 1e-7 < sizes[1] < sizes[0] < 0.1


@pytest.mark.parametrize(("m", "d"), [(4, 20), (6, 9), (30, 9)])
def test_a_set_twice_over_says_what_it_says_once(m: int, d: int) -> None:
    """For λ is a share of the trace, which doubles, and not of its mean, which does not."""
    support, targets, queries = problem(m, d)
    doubled = torch.cat([support, support]), torch.cat([targets, targets]), queries
    predicted, _ = predict(support, targets, queries, RIDGE)
    assert worst(predict(*doubled, RIDGE)[0], predicted) < 1e-12
    assert worst(by_mean_trace(*doubled), by_mean_trace(support, targets, queries)) > 1e-4
    assert worst(predict(*doubled, RIDGE)[0], by_lu(*doubled, 2 * penalty(support, RIDGE))) < 1e-12


@pytest.mark.parametrize("factor", [0.01, 30.0])
def test_the_scale_of_features_is_nothing_without_the_bias(factor: float) -> None:
    """With it, it is something: ones do not grow with the features."""
    features, targets, queries = draw(6, 8), draw(6, 3, seed=1), draw(7, 8, seed=2)
    predicted, _ = predict(features, targets, queries, RIDGE)
    assert worst(predict(factor * features, targets, factor * queries, RIDGE)[0], predicted) < 1e-12
    biased, _ = predict(with_bias(features), targets, with_bias(queries), RIDGE)
    scaled, _ = predict(with_bias(factor * features), targets, with_bias(factor * queries), RIDGE)
    assert worst(scaled, biased) > 0.05


def test_single_precision_is_not_far() -> None:
    """What features in float32 cost is their own rounding: the system is solved in float64 either way."""
    features, targets, queries = draw(20, 40), draw(20, 3, seed=1), draw(7, 40, seed=2)
    exact, _ = predict(with_bias(features), targets, with_bias(queries), 1e-6)
    rounded, _ = predict(with_bias(features.float()), targets, with_bias(queries.float()), 1e-6)
    assert rounded.dtype == torch.float64
    assert float((rounded - exact).norm() / exact.norm()) < 1e-5


# --- gradients -------------------------------------------------------------------------------------------------------


def loss_of(support: Tensor, targets: Tensor, queries: Tensor, real: Tensor) -> Tensor:
    return (predict(support, targets, queries, RIDGE)[0] - real).square().mean()


def adjoint(support: Tensor, targets: Tensor, queries: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of the mean squared error in features and targets, by hand, λ being a constant."""
    inverse = torch.linalg.inv(
        support @ support.T + penalty(support, RIDGE) * torch.eye(len(support), dtype=torch.float64)
    )
    weights = inverse @ targets
    cross = queries @ support.T
    residual = 2 * (cross @ weights - real) / real.numel()
    slope = inverse @ cross.T @ residual
    of_features = weights @ residual.T @ queries - (slope @ weights.T + weights @ slope.T) @ support
    return of_features, slope


@pytest.mark.parametrize(("m", "d"), SHAPES)
def test_gradients_match_reference(m: int, d: int) -> None:
    """The closed-form adjoint holds of the dual form and of the primal, for λ is not differentiated in either."""
    support, targets, queries = problem(m, d)
    leaves = support.requires_grad_(), targets.requires_grad_()
    real = draw(7, 3, seed=4)
    found = torch.autograd.grad(loss_of(*leaves, queries, real), leaves)
    for gradient, expected in zip(found, adjoint(support.detach(), targets.detach(), queries, real), strict=True):
        assert worst(gradient, expected) < 1e-12
        assert float(expected.abs().max()) > 1e-4


@pytest.mark.parametrize(("m", "d"), [(4, 9), (12, 9)])
def test_gradients_are_those_of_a_ridge_held_still(m: int, d: int) -> None:
    """Against finite differences, in which λ would move if it could: it is put back by the relative ridge."""
    support, targets, queries = problem(m, d)
    frozen = penalty(support, RIDGE)

    def held(features: Tensor, values: Tensor, places: Tensor) -> Tensor:
        trace = features.detach().square().sum()
        return predict(features, values, places, float(frozen / trace))[0]

    leaves = [part.requires_grad_() for part in (support, targets, queries)]
    assert gradcheck(held, leaves)
    (moving,) = torch.autograd.grad(predict(*leaves, RIDGE)[0].sum(), support)
    (still,) = torch.autograd.grad(held(*leaves).sum(), support)
    assert worst(moving, still) < 1e-12
    attached = by_attached_trace(*leaves)
    assert worst(torch.autograd.grad(attached.sum(), support)[0], still) > 1e-5  # the check could fail


def by_attached_trace(support: Tensor, targets: Tensor, queries: Tensor) -> Tensor:
    kernel = support @ support.T
    kernel = kernel + RIDGE * kernel.diagonal().sum() * torch.eye(len(kernel), dtype=torch.float64)
    return queries @ support.T @ torch.linalg.solve(kernel, targets)


# --- singular systems ------------------------------------------------------------------------------------------------


def twins() -> tuple[Tensor, Tensor, Tensor]:
    """Two equal rows with different targets: without λ there is no solution."""
    support, targets, queries = problem(6, 9)
    support[3] = support[2]
    return support, targets, queries


def test_the_oracle_finds_duplicates_singular() -> None:
    """What the raised λ is there for: the plain kernel has no Cholesky factor, or one of rounding errors alone."""
    support, _, _ = twins()
    lower, info = torch.linalg.cholesky_ex(support @ support.T)
    assert int(info) > 0 or float(lower.diagonal().min()) < 1e-6


@pytest.mark.parametrize("relative", [0.0, 1e-18])
def test_too_small_a_ridge_is_raised(relative: float) -> None:
    support = torch.ones(3, 4, dtype=torch.float64)
    predicted, raised = predict(support, draw(3, 2), support, relative)
    assert 1 <= raised <= 5
    assert predicted.isfinite().all()
    assert worst(predicted, predicted[:1].expand(3, 2)) < 1e-12
    assert float(predicted.abs().max()) < float(draw(3, 2).abs().max())  # of the size of targets, not of 1 / rounding


def test_raised_tenfold_until_it_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    factor, tried = torch.linalg.cholesky_ex, list[float]()

    def reluctant(matrix: Tensor) -> tuple[Tensor, Tensor]:
        ridge = float((matrix - gram).diagonal().mean() / gram.diagonal().sum())
        tried.append(ridge)
        lower, _ = factor(matrix + 1e-3 * torch.eye(len(matrix), dtype=torch.float64))
        return lower, torch.tensor(int(len(tried) < 4))

    support, targets, queries = problem(6, 9)
    gram = support @ support.T
    monkeypatch.setattr(torch.linalg, "cholesky_ex", reluctant)
    assert predict(support, targets, queries, 0.0)[1] == 3
    assert tried == pytest.approx([0, 1e-13, 1e-12, 1e-11], rel=0.5, abs=1e-16)
    tried.clear()
    assert predict(support, targets, queries, 1e-12)[1] == 3
    assert tried == pytest.approx([1e-12, 1e-11, 1e-10, 1e-9], rel=0.01)


def test_a_sound_ridge_is_never_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor raised: whatever the factorisation says, no line waits for the device."""
    factor = torch.linalg.cholesky_ex

    def failing(matrix: Tensor) -> tuple[Tensor, object]:
        return factor(matrix)[0], object()  # int() of it is a TypeError

    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    assert predict(*problem(6, 9), 1e-10)[1] == 0
    with pytest.raises(TypeError):
        predict(*problem(6, 9), 0.9e-10)


@pytest.mark.parametrize(
    "spoil",
    [lambda support: support.zero_(), lambda support: support.fill_(torch.nan)],
    ids=["all zero", "NaN"],
)
@pytest.mark.parametrize(("m", "rows"), [(4, 4), (20, 9)])
def test_rejects_systems_without_a_solution(spoil: Callable[[Tensor], Tensor], m: int, rows: int) -> None:
    support, targets, queries = problem(m, 9)
    with pytest.raises(
        NonFiniteError, match=rf"^the kernel matrix of {rows} rows has no Cholesky factor, even with λ = 1e-09 of its"
    ):
        predict(spoil(support), targets, queries, 0.0)


def test_not_a_number_is_not_hidden() -> None:
    """With a sound ridge nothing is asked of the device; what comes of NaN is NaN, for the run to notice."""
    support, targets, queries = problem(6, 9)
    support[2, 1] = torch.nan
    assert predict(support, targets, queries, RIDGE)[0].isnan().any()
