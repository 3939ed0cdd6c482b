"""The training of one expert: from a fresh network to its checkpoints, epoch by epoch.

Papers and code as in ``synth.parts.experts``.
"""

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.checkpoint import State
from dd_bench.errors import ConfigError
from dd_bench.learn.dsa import DSA
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.training import batch_bounds
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from synth.parts.encoded import EncodedImages
from synth.parts.inner import FlatNetwork


@dataclass(frozen=True)
class ExpertRecipe:
    """How an expert is trained: SGD on class labels with DSA. The defaults are MTT's.

    Attributes:
        epochs: passes over the training split.
        keep: checkpoints stay of the start, of epochs 1 to ``keep``, and of the last.
        batch: images a step.
        lr: learning rate.
        momentum: heavy ball, in [0, 1).
        weight_decay: L2, on all parameters.
        drop: factor on ``lr`` from epoch E // 2 + 2 on (counted from 0), where momentum also starts anew; 1: none.
        ramp: epochs in which the weight of the cross-entropy climbs from 0.5 to 1 ("clipping loss"); 0: none.
        penalty: λ of the gradient penalty; 0: none.
        penalty_norm: over which the penalty's gradient is measured: the ``channel`` values of each pixel (the authors'
            code), or all values of a ``sample`` (as in WGAN-GP).
    """

    epochs: int = 50
    keep: int = 50
    batch: int = 256
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    drop: float = 1.0
    ramp: int = 0
    penalty: float = 0.0
    penalty_norm: Literal["channel", "sample"] = "channel"

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("keep", 1 <= self.keep <= self.epochs, f"1 to {self.epochs}, the epochs there are"),
            ("batch", self.batch >= 2, "at least 2"),
            ("lr", 0 < self.lr < inf, "more than 0"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0"),
            ("drop", 0 < self.drop <= 1, "more than 0 and at most 1"),
            ("ramp", self.ramp >= 0, "at least 0"),
            ("penalty", 0 <= self.penalty < inf, "at least 0"),
        ):
            if not sound:
                raise ConfigError(f"expert {name} is {getattr(self, name)}; expected {expected}")

    @property
    def kept(self) -> tuple[int, ...]:
        """The epochs whose checkpoints stay, ascending; 0 is the start."""
        return tuple(sorted({*range(self.keep + 1), self.epochs}))

    def loss_weight(self, epoch: int) -> float:
        """Returns c of the cross-entropy in ``epoch`` (from 0): for a ramp of 10: 0.5, 0.55 … 0.95, and then 1."""
        return 1.0 if epoch >= self.ramp else 0.5 + 0.5 * epoch / self.ramp


def train_expert(
    network: FlatNetwork, recipe: ExpertRecipe, encoded: EncodedImages, *, seed: int, run: Run, label: str
) -> tuple[Tensor, Tensor]:
    """Trains from the network's present parameters, which stay as they are, and returns where that led.

    In epoch e a batch (x, y) costs c_e·CE(f(A(x); θ), y) + λ·P(x; θ), see ``ExpertRecipe.loss_weight`` and
    ``gradient_penalty``; the penalty sees the images before augmentation.

    Returns:
        Checkpoints (len(recipe.kept), P) and squared moves ‖θ_{e+1} - θ_e‖² of all epochs (E,), float32 on the CPU.

    Raises:
        NonFiniteError: when the loss is NaN or infinite.
    """
    images, labels = encoded.images, encoded.labels
    one_hot = F.one_hot(labels, encoded.spec.num_classes).float()
    dsa, draws = DSA(encoded.spec), generator(derive_seed("fit expert", seed), images.device)
    theta = network.flatten()
    velocity, before = torch.zeros_like(theta), theta.clone()
    order = torch.arange(len(images), device=images.device)
    checkpoints, moves = theta.cpu().repeat(len(recipe.kept), 1), torch.zeros(recipe.epochs)
    state = State(theta=theta, velocity=velocity, before=before, draws=draws, order=order, checkpoints=checkpoints,
                  moves=moves)  # fmt: skip
    bounds = batch_bounds(len(images), recipe.batch)
    for step in run.steps(label, recipe.epochs * len(bounds), state):
        epoch, number = divmod(step, len(bounds))
        late = epoch > recipe.epochs // 2 + 1
        if number == 0:
            order.copy_(torch.randperm(len(images), generator=draws, device=images.device))
            if recipe.drop < 1 and epoch == recipe.epochs // 2 + 2:
                velocity.zero_()
        batch = order[slice(*bounds[number])]
        pixels = images[batch]
        weights = theta.detach().requires_grad_()
        augmented = dsa.apply(pixels, dsa.draw(len(pixels), draws, derive_seed("expert dsa", seed, step)))
        loss = recipe.loss_weight(epoch) * cross_entropy(network(weights, augmented), one_hot[batch])
        run.observe(loss=loss)
        if recipe.penalty:
            penalty = gradient_penalty(network, weights, pixels, recipe.penalty_norm)
            loss = loss + recipe.penalty * penalty
            run.observe(penalty=penalty)
        (gradient,) = torch.autograd.grad(loss, weights)
        velocity.mul_(recipe.momentum).add_(gradient).add_(theta, alpha=recipe.weight_decay)
        theta.sub_(velocity, alpha=recipe.lr * (recipe.drop if late else 1.0))
        if number == len(bounds) - 1:
            moves[epoch] = (theta - before).square().sum()
            before.copy_(theta)
            if epoch + 1 in recipe.kept:
                checkpoints[recipe.kept.index(epoch + 1)] = theta  # a copy, not the tensor that goes on
    return checkpoints, moves


def gradient_penalty(network: FlatNetwork, theta: Tensor, images: Tensor, norm: Literal["channel", "sample"]) -> Tensor:
    """Returns AST's penalty: the mean of (‖G‖ - 1)², G being the gradient of the sum of all logits in the images.

    Args:
        network: f.
        theta: its parameters (P,), in which the penalty is differentiable.
        images: (n, C, H, W).
        norm: whether ‖·‖ runs over a pixel's C values, and the mean over pixels and images, or over all values of an
            image, and the mean over images.
    """
    pixels = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(network(theta, pixels).sum(), pixels, create_graph=True)
    axes = (1,) if norm == "channel" else (1, 2, 3)
    penalty: Tensor = (torch.linalg.vector_norm(gradient, dim=axes) - 1).square().mean()
    return penalty
