"""Kernel ridge regression on the features of a network, in closed form and double precision.

The kernel is linear in features f(x) = [h(x), 1], whose last entry is the bias and is regularised like the others. For
m support points with features F_s (m, d) and targets Y_s (m, k), the prediction at F_t (b, d) is

    F_t F_sᵀ (F_s F_sᵀ + λ I_m)⁻¹ Y_s  =  F_t (F_sᵀ F_s + λ I_d)⁻¹ F_sᵀ Y_s,

the left, dual form being used where m <= d and the right, primal form elsewhere. Both are solved by Cholesky's
factorisation; nothing is inverted. Lee, Lee, Lee and Hwang, "Self-Supervised Dataset Distillation for Transfer
Learning", ICLR 2024, arXiv 2310.06511; Zhou, Nezhadarya and Ba (FRePo), NeurIPS 2022, arXiv 2206.00719.
"""

import torch
from torch import Tensor

from dd_bench.errors import NonFiniteError

_ESCALATIONS = 5
_SURE = 1e-10  # of the trace: from here on, no rounding in double precision makes the matrix indefinite
_LEAST = 1e-13  # of the trace: what λ = 0 is raised to at first


def with_bias(features: Tensor) -> Tensor:
    """Returns features (n, d) in float64 with a last column of ones, (n, d + 1)."""
    wide = features.double()
    return torch.cat([wide, wide.new_ones(len(wide), 1)], dim=1)


def predict(support: Tensor, targets: Tensor, queries: Tensor, relative: float) -> tuple[Tensor, int]:
    """Returns the predictions (b, k) at ``queries``, and how many times λ had to be raised tenfold.

    λ is ``relative`` times the trace of F_s F_sᵀ. The trace is not divided by m, as published: so a set twice over
    predicts what it does once. It is a constant to differentiation, also as published; all else is differentiable.

    Only where λ is within rounding of nothing (``relative`` below 1e-10) is the outcome of a factorisation read back
    from the device, and λ raised until it succeeds.

    Args:
        support: F_s, float64 (m, d).
        targets: Y_s, float64 (m, k).
        queries: F_t, float64 (b, d).
        relative: at least 0.

    Raises:
        NonFiniteError: if the system has no solution even when λ has been raised five times.
    """
    count, width = support.shape
    dual = count <= width
    lower, raised = _factor(support @ support.T if dual else support.T @ support, relative)
    if dual:
        return queries @ (support.T @ torch.cholesky_solve(targets, lower)), raised
    return queries @ torch.cholesky_solve(support.T @ targets, lower), raised


def _factor(gram: Tensor, relative: float) -> tuple[Tensor, int]:
    """Returns Cholesky's factor of ``gram + λ I`` (n, n), and how many times λ was raised."""
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    trace = gram.detach().diagonal().sum()  # of either form: the sum of all squared features
    lower, info = torch.linalg.cholesky_ex(gram + relative * trace * identity)
    raised, doubtful = 0, relative < _SURE
    while doubtful and int(info) > 0:
        if raised == _ESCALATIONS:
            raise NonFiniteError(
                f"the kernel matrix of {len(gram)} rows has no Cholesky factor, even with λ = {relative:.0e} of its "
                "trace; expected finite features of which not all are zero: lower the learning rate, or raise the ridge"
            )
        raised += 1
        relative = max(10 * relative, _LEAST)
        lower, info = torch.linalg.cholesky_ex(gram + relative * trace * identity)
    return lower, raised
