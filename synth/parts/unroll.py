"""Gradients through training: how synthetic images must change for a student trained on them to end like an expert.

Papers: Cazenavette et al. 2022 (MTT, arXiv 2203.11932): the objective; Cui et al. 2023 (TESLA, arXiv 2211.10586): an
approximation; Shen, Yang and Lam 2023 (AST, arXiv 2310.10541): momentum, and matching on the way.

From θ_0, with step size α, momentum μ and the batch (x_n, y_n) of step n after augmentation, the student moves by

    (1)  g_n = ∇_θ ℓ(f(x_n; θ_n), y_n),   v_n = μ v_{n-1} + g_n,   θ_{n+1} = θ_n - α v_n,   n = 0 … N-1,  v_{-1} = 0,
    (2)  L = Σ_i w_i ‖θ_{n_i} - θ*_i‖² / D_i,   D_i = ‖θ_0 - θ*_i‖²,   over waypoints i, the last of them at n_i = N.

``trajectory_gradient`` differentiates L in the images, the step size and the labels, in one of three ways:

* ``unrolled`` keeps the graph of all N steps. It goes through ``higher``, which is imported nowhere else.
* ``adjoint``, the default, is the same gradient in the memory of ten steps' graphs and N parameter vectors: the last
  ten are kept from the way there, the others are drawn again, one at a time. Backwards, with λ_n = dL/dθ_n and u_n the
  gradient with respect to g_n, divided by -α,

    (3)  u_n = μ u_{n+1} + λ_{n+1},   λ_n = λ_{n+1} - α ∂(g_n·u_n)/∂θ_n + Σ_{i: n_i = n} 2 w_i (θ_n - θ*_i)/D_i,
    (4)  dL/dx_n = -α ∂(g_n·u_n)/∂x_n, labels alike,   dL/dα = -Σ_n g_n·u_n,

  from u_N = 0 and λ_N = the sum in (3). The usual dL/dα = -Σ_n λ_{n+1}·v_n is the same number, but wants the v_n kept.
* ``tesla`` leaves the middle term of λ_n out: how a step moves the gradients of later steps. For μ = 0 and one waypoint

    (5)  dL/dx_n ≈ -(2α/D) ∂(g_n·r)/∂x_n,   dL/dα ≈ -(2/D) r·Σ_n g_n,   r = θ_N - θ*,

  with the 2 that TESLA's code loses (justincui03/tesla, issue 5), and without its claim to be exact (issue 4). It is
  for N = 1, for the batch of the last step, and where the Hessians H_n = ∂g_n/∂θ_n vanish. Else, for μ = 0, it takes
  λ_N for λ_{n+1} = Π_{j>n} (1 - αH_j) λ_N: wrong by at most exp(α Σ_{j>n} ‖H_j‖) - 1 of ‖λ_N‖, growing with αN. Seen
  on a small ConvNet (N, α: relative error and cosine of dL/dX): 5, 0.01: 0.02, 0.9998; 20, 0.01: 0.07, 0.997; 20, 0.05:
  0.33, 0.95; 50, 0.05: 0.61, 0.80; dL/dα was off by up to 2.8 times.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from dd_bench.errors import ConfigError, UnknownNameError
from synth.parts.inner import InnerTraining, Waypoint

Method = Literal["adjoint", "unrolled", "tesla"]

_KEPT = 10  # graphs: to draw one again costs up to a third of a step, to keep it memory


@dataclass(frozen=True)
class TrajectoryGradient:
    """L and its gradients; all of it detached and on the device, which nobody has waited for.

    Attributes:
        loss: L, a scalar; Σ w_i for a student that stays where it starts.
        terms: ‖θ_{n_i} - θ*_i‖² / D_i, without weights, (M,).
        finite_steps: how many steps ended in finite parameters: less than N if the student diverged. For
            ``run.observe``, like ``loss``, at whose NaN a run stops.
        sound: whether L and all gradients are finite, a boolean scalar: for ``torch.where`` and ``run.observe``.
        images: dL/dX (S, C, H, W); 0 for an image in no batch.
        rate: dL/drate, a scalar.
        labels: dL/dY (S, K), or None if Y requires no gradient.
    """

    loss: Tensor
    terms: Tensor
    finite_steps: Tensor
    sound: Tensor
    images: Tensor
    rate: Tensor
    labels: Tensor | None = None


def trajectory_gradient(
    inner: InnerTraining, start: Tensor, waypoints: Sequence[Waypoint], *, images: Tensor, labels: Tensor, rate: Tensor,
    method: Method = "adjoint",
) -> TrajectoryGradient:  # fmt: skip
    """Returns L of equation (2) and its gradients. Nothing is changed: no ``.grad``, no argument, no parameter.

    Args:
        inner: the student's training.
        start: θ_0 (P,), also of the denominators. A target equal to it makes L NaN.
        waypoints: one of them at step N.
        images: X (S, C, H, W), pixels. Where they are computed, hand the gradient to ``images.backward``.
        labels: Y (S, K); differentiated if they require a gradient.
        rate: α, or what softplus makes α of; a scalar tensor.
        method: ``adjoint``, ``unrolled`` or ``tesla``, see above.

    Raises:
        ConfigError: for shapes or waypoints that do not fit.
    """
    _check(inner, start, waypoints, images, labels, rate, method)
    start, images, rate = start.detach(), images.detach().requires_grad_(), rate.detach().requires_grad_()
    labels = labels.detach().requires_grad_(labels.requires_grad)
    with torch.enable_grad():
        if method == "unrolled":
            states, gradients = _unrolled(inner, start, waypoints, images, labels, rate)
        else:
            states, gradients = _by_hand(inner, start, waypoints, images, labels, rate, exact=method == "adjoint")
    loss, terms = _compare(states, waypoints)
    finite = torch.stack([state.isfinite().all() for state in states[1:]])  # what is lost once is lost for good
    sound = torch.stack([value.isfinite().all() for value in (loss, *gradients)]).all()
    return TrajectoryGradient(loss, terms, finite.sum(), sound, *gradients)


def _check(
    inner: InnerTraining, start: Tensor, waypoints: Sequence[Waypoint], images: Tensor, labels: Tensor, rate: Tensor,
    method: str,
) -> None:  # fmt: skip
    if method not in get_args(Method):
        raise UnknownNameError("trajectory gradient", method, get_args(Method))
    places, steps, size = sorted(point.step for point in waypoints), len(inner.batches), inner.network.size
    if not places or places[0] < 1 or places[-1] != steps:
        raise ConfigError(f"waypoints at steps {places} of {steps}; expected one at the last, none before step 1")
    for name, found, expected in (
        ("start", start.shape, (size,)),
        *((f"target at step {point.step}", point.target.shape, (size,)) for point in waypoints),
        ("labels", labels.shape[:1], images.shape[:1]),
        ("rate", rate.shape, ()),
    ):
        if found != expected:
            raise ConfigError(f"{name}: found shape {tuple(found)}; expected {tuple(expected)}")


def _compare(states: Sequence[Tensor], waypoints: Sequence[Waypoint]) -> tuple[Tensor, Tensor]:
    """Returns L of equation (2), a scalar, and its terms without weights (M,), for the states θ_0 … θ_N."""
    terms = [_squared(states[point.step] - point.target) / _squared(states[0] - point.target) for point in waypoints]
    loss = torch.stack([point.weight * term for point, term in zip(waypoints, terms, strict=True)]).sum()
    return loss, torch.stack(terms)


def _squared(vector: Tensor) -> Tensor:
    return vector.square().sum()


def _take(batch: Tensor | None, *wholes: Tensor) -> list[Tensor]:
    """Returns the rows of a batch, from each tensor."""
    return [whole if batch is None else whole[batch] for whole in wholes]


def _unrolled(
    inner: InnerTraining, start: Tensor, waypoints: Sequence[Waypoint], images: Tensor, labels: Tensor, rate: Tensor
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    """Returns the states θ_0 … θ_N and the gradients of images, rate and, if they learn, labels; through one graph.

    Of ``higher`` it takes the differentiable optimizer alone: a function of one vector needs no patched modules.
    """
    settings = torch.optim.SGD([nn.Parameter(torch.empty(0))], lr=1.0, momentum=inner.momentum)
    override = {"lr": [inner.step_size(rate)]}
    optimizer = load_higher().get_diff_optim(settings, settings.param_groups[0]["params"], override=override)
    states = [start.requires_grad_()]  # from one that requires none, higher takes no step and says nothing
    for step, batch in enumerate(inner.batches):
        loss = inner.loss(step, states[-1], *_take(batch, images, labels))
        states += optimizer.step(loss, params=states[-1:])
    loss, _ = _compare([start.detach(), *states[1:]], waypoints)
    learnt = [tensor for tensor in (images, rate, labels) if tensor.requires_grad]
    return [state.detach() for state in states], torch.autograd.grad(loss, learnt, materialize_grads=True)


@cache
def load_higher() -> Any:
    """Returns the package ``higher``. Its source is old, and Python warns of it whenever it compiles it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import higher

        return higher


def _by_hand(
    inner: InnerTraining, start: Tensor, waypoints: Sequence[Waypoint], images: Tensor, labels: Tensor, rate: Tensor, *,
    exact: bool,
) -> tuple[list[Tensor], tuple[Tensor, ...]]:  # fmt: skip
    """Returns the states θ_0 … θ_N and the gradients of images, rate and, if they learn, labels; by (3) and (4)."""
    step_size = inner.step_size(rate)
    alpha, learn = step_size.detach(), labels.requires_grad
    images, labels = images.detach(), labels.detach()
    states, graphs = _train(inner, start, images, labels, alpha, learn=learn)
    to_state, to_gradient, slopes = torch.zeros_like(start), torch.zeros_like(start), torch.zeros_like(alpha)
    sums = [torch.zeros_like(images), *([torch.zeros_like(labels)] if learn else [])]
    for step, batch in reversed(list(enumerate(inner.batches))):
        for point in waypoints:
            if point.step == step + 1:
                away = states[point.step] - point.target
                to_state = to_state + 2 * point.weight / _squared(start - point.target) * away
        to_gradient = inner.momentum * to_gradient + to_state
        own = _take(batch, images, labels)
        graph = graphs.pop() if graphs else _draw(inner, step, states[step], own, learn=learn)
        slope, changes = _differentiate(graph, to_gradient, exact=exact)
        del graph  # it lives no longer than it must
        if exact:
            to_state = to_state - alpha * changes.pop()
        slopes = slopes + slope
        for total, change in zip(sums, changes, strict=True):
            total.add_(change) if batch is None else total.index_add_(0, batch, change)
    (to_rate,) = torch.autograd.grad(step_size, rate, -slopes)
    to_images, *to_labels = [-alpha * total for total in sums]
    return states, (to_images, to_rate, *to_labels)


@dataclass(frozen=True)
class _Graph:
    """One step's gradient (P,), and what it can be differentiated in: θ_n, its images, and its labels if they learn."""

    gradient: Tensor
    theta: Tensor
    data: list[Tensor]


def _train(
    inner: InnerTraining, start: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, *, learn: bool
) -> tuple[list[Tensor], list[_Graph]]:
    """Returns the states θ_0 … θ_N of equation (1), and the graphs of the last steps."""
    states, graphs, velocity = [start], list[_Graph](), torch.zeros_like(start)
    for step, batch in enumerate(inner.batches):
        own = _take(batch, images, labels)
        if step >= len(inner.batches) - _KEPT:
            graphs.append(_draw(inner, step, states[-1], own, learn=learn))
            gradient = graphs[-1].gradient.detach()
        else:
            theta = states[-1].detach().requires_grad_()
            (gradient,) = torch.autograd.grad(inner.loss(step, theta, *own), theta)
        velocity = inner.momentum * velocity + gradient
        states.append(states[-1] - alpha * velocity)
    return states, graphs


def _draw(inner: InnerTraining, step: int, theta: Tensor, data: list[Tensor], *, learn: bool) -> _Graph:
    """Returns the graph of a step that begins at ``theta``, of its own images and labels ``data``."""
    theta, pixels = theta.detach().requires_grad_(), data[0].detach().requires_grad_()
    targets = data[1].detach().requires_grad_(learn)
    (gradient,) = torch.autograd.grad(inner.loss(step, theta, pixels, targets), theta, create_graph=True)
    return _Graph(gradient, theta, [pixels, *([targets] if learn else [])])


def _differentiate(graph: _Graph, direction: Tensor, *, exact: bool) -> tuple[Tensor, list[Tensor]]:
    """Returns g·u of a step, and its derivatives in the step's images, labels if they learn, and θ if it is exact."""
    slope = graph.gradient.dot(direction)
    inputs = [*graph.data, *([graph.theta] if exact else [])]
    return slope.detach(), list(torch.autograd.grad(slope, inputs, materialize_grads=True))
