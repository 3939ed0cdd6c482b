"""The losses students and teachers minimise, as pure functions: means over the batch, of classes in nats.

One table of letters: N images, K classes, z logits of the student (N, K), p target probabilities, T a temperature.
"""

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Returns the mean cross-entropy -1/N Σ_n Σ_k p_nk·log softmax(z_n)_k, in nats.

    With one-hot rows this is the usual classification loss; the minimum over the logits is the mean entropy of the
    targets, not 0.

    Args:
        logits: z, float (N, K), finite.
        probabilities: p, float (N, K), rows in the simplex.

    Returns:
        A scalar >= 0.
    """
    return -(probabilities * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def distillation(logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
    """Returns the mean divergence 1/N Σ_n KL(softmax(t_n/T) ‖ softmax(z_n/T)) from the student to its teacher, in nats.

    There is no factor T²: INFER (arXiv 2408.06927) trains its students without it, and its learning rates assume so.
    Hence values and gradients shrink with T: for T → ∞ the loss tends to the variance over k of t_nk - z_nk divided by
    2·T², and the gradient falls as 1/T². Hinton et al. 2015 (arXiv 1503.02531) multiply by T² to undo that.

    Args:
        logits: z of the student, float (N, K), finite.
        target_logits: t of the teacher, float (N, K), finite; any constant added to a row changes nothing.
        temperature: T > 0.

    Returns:
        A scalar >= 0, 0 where both softmaxes agree.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(target_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def mean_squared_error(outputs: Tensor, values: Tensor) -> Tensor:
    """Returns the mean over images and outputs of (output - value)².

    Args:
        outputs: float (N, D), finite.
        values: float (N, D), finite.

    Returns:
        A scalar >= 0.
    """
    return F.mse_loss(outputs, values)
