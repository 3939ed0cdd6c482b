"""Linear probes: how well a few labels do on top of features that stay as they are."""

import warnings

import torch
from torch import Tensor, nn

_PATIENCE = 2000  # iterations; regularised problems of some thousand features take a few dozen


def draw_labelled(labels: Tensor, num_classes: int, share: float, draws: torch.Generator) -> Tensor:
    """Returns the indices of ``share`` of the images of each class, rounded, and of at least one, ascending.

    Args:
        labels: (N,) int64 in [0, K); every class has an image.
        num_classes: K.
        share: in (0, 1].
        draws: a generator on the CPU.
    """
    picked = []
    for label in range(num_classes):
        members = torch.nonzero(labels == label).flatten()
        count = max(1, round(share * len(members)))
        picked.append(members[torch.randperm(len(members), generator=draws)[:count]])
    return torch.cat(picked).sort().values


def fit_probe(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> nn.Linear:
    """Returns the layer from features (n, D) to logits (n, K) that minimises a convex loss, which has one minimum.

    That is the mean cross-entropy plus ``l2`` / 2 times the squared weights, on features less their mean and divided
    by one deviation of all of them, so that ``l2`` means the same whatever units a network has. Biases are free.

    Args:
        features: float (n, D).
        labels: (n,) int64; of all K classes.
        num_classes: K.
        l2: > 0.
    """
    from sklearn.linear_model import LogisticRegression  # here, because the import takes a second

    center = features.double().mean(0)
    centred = features.double() - center
    scale = centred.square().mean().sqrt().clamp_min(1e-12)
    # Of two classes, scikit-learn has one row: the second's minus the first's, whose halves have half its square
    strength = l2 / 2 if num_classes == 2 else l2
    found = LogisticRegression(C=1 / (strength * len(labels)), max_iter=_PATIENCE, tol=1e-5)
    with warnings.catch_warnings():  # with few labels of many classes, it takes them for numbers
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        found.fit((centred / scale).numpy(), labels.numpy())
    weight, bias = torch.from_numpy(found.coef_), torch.from_numpy(found.intercept_)
    if num_classes == 2:
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    layer = nn.Linear(features.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.copy_(weight / scale)
        layer.bias.copy_(bias - weight @ center / scale)
    return layer.eval()
