"""The inner training of trajectory matching: a student as a function of one vector, its steps, and where it should be.

``synth.parts.unroll`` differentiates through it, which asks that all of it can be replayed to the bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.errors import ConfigError
from dd_bench.learn.dsa import DSA
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.training import Objective
from dd_bench.seeding import derive_seed, generator

Augment = Callable[[Tensor, int], Tensor]  # (images (n, C, H, W), step) -> images alike


class FlatNetwork:
    """A module as a pure function of one vector (P,) of all its parameters, in the order of ``named_parameters``.

    The module's own parameters are read by ``flatten`` alone; its buffers are constants.

    Raises:
        ConfigError: if the module draws at random or moves its buffers, as dropout and BatchNorm do in training mode.
    """

    def __init__(self, module: nn.Module) -> None:
        for name, part in module.named_modules():
            impure = isinstance(part, nn.modules.dropout._DropoutNd) or getattr(part, "running_mean", None) is not None
            if part.training and impure:
                raise ConfigError(
                    f"{name or 'the network'} is a {type(part).__name__} in training mode, which no call leaves as it "
                    "was; expected a pure function: take instance normalisation, or call .eval() first"
                )
        self.module = module
        self.shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        """Returns the logits (n, K) of images (n, C, H, W) under parameters ``theta`` (P,)."""
        logits: Tensor = torch.func.functional_call(self.module, self.unflatten(theta), (images,))
        return logits

    def flatten(self) -> Tensor:
        """Returns a copy (P,) of the module's present parameters."""
        return torch.cat([parameter.detach().flatten() for parameter in self.module.parameters()])

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Returns the pieces of ``theta`` (P,) by name and in shape; they are views."""
        pieces = torch.split(theta, [shape.numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for piece, (name, shape) in zip(pieces, self.shapes.items(), strict=True)}


@dataclass(frozen=True)
class ReplayedDSA:
    """DSA for the steps of a training: a step's operation, and each image's strengths, follow from seed and step."""

    dsa: DSA
    seed: int

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Returns ``images`` (n, C, H, W) as ``step`` sees them, the same at every call."""
        draws = generator(derive_seed("inner strengths", self.seed, step), images.device)
        choice = derive_seed("inner operation", self.seed, step)
        return self.dsa.apply(images, self.dsa.draw(len(images), draws, choice))


@dataclass(frozen=True)
class InnerTraining:
    """How the student is trained: heavy ball, θ_{n+1} = θ_n - α v_n with v_n = μ v_{n-1} + ∇ℓ_n(θ_n), v_{-1} = 0.

    Attributes:
        network: f.
        batches: for each of the N steps the indices (n,) of its images, int64 on their device; None takes all of them.
        momentum: μ in [0, 1).
        positive: whether α = softplus(rate); else α = rate, which an outer optimizer may carry below 0.
        augment: applied to a step's images, once on the way there and once back, so it must be a function of its
            arguments alone.
        objective: ℓ of logits and labels (n, K), twice differentiable. Its minimum, scale and softmax are its own
            matter: soft labels may be probabilities or logits.
    """

    network: FlatNetwork
    batches: Sequence[Tensor | None]
    momentum: float = 0.0
    positive: bool = False
    augment: Augment | None = None
    objective: Objective = cross_entropy

    def __post_init__(self) -> None:
        if not (self.batches and 0 <= self.momentum < 1):
            raise ConfigError(
                f"{len(self.batches)} steps, momentum {self.momentum}; expected a step, and one in [0, 1)"
            )

    def step_size(self, rate: Tensor) -> Tensor:
        """Returns α, a scalar."""
        return F.softplus(rate) if self.positive else rate

    def loss(self, step: int, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Returns ℓ of a step's own images (n, C, H, W), not yet augmented, and labels (n, K)."""
        pixels = images if self.augment is None else self.augment(images, step)
        return self.objective(self.network(theta, pixels), labels)


@dataclass(frozen=True)
class Waypoint:
    """After ``step`` steps, 1 … N, the student is compared with ``target`` (P,), and this counts ``weight``."""

    step: int
    target: Tensor
    weight: float = 1.0


def space_waypoints(targets: Sequence[Tensor], steps: int, *, rising: bool = False) -> tuple[Waypoint, ...]:
    """Returns AST's waypoints: target i of M at step ⌊N/M⌋·i, the last at N. A single target is MTT.

    Args:
        targets: the M checkpoints (P,) that follow the start.
        steps: N >= M.
        rising: whether weights on the way are i/M, AST's "adaptive" ones, instead of 1. The last weight is 1.
    """
    count = len(targets)
    if not 1 <= count <= steps:
        raise ConfigError(f"{count} targets for {steps} inner steps; expected at least one, and no more than steps")
    last = Waypoint(steps, targets[-1])
    numbered = enumerate(targets[:-1], 1)
    return *(Waypoint(steps // count * i, target, i / count if rising else 1.0) for i, target in numbered), last
