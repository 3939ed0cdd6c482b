"""Trajectory matching: synthetic images on which a student's parameters move as an expert's do on real ones.

Cazenavette, Wang, Torralba, Efros and Zhu, "Dataset Distillation by Matching Training Trajectories", CVPR 2022,
arXiv 2203.11932 (``mtt``); Shen, Yang and Lam, "Efficient Dataset Distillation via Aligning with Smooth and
High-Quality Expert Trajectories", 2023, arXiv 2310.10541 (``ast``).

Experts are networks trained on real data, with a checkpoint after every epoch. Each iteration takes an expert after
s epochs, lets a student start from there and train N steps on the synthetic images, and asks how far it is then from
the expert after s + M epochs (``synth.parts.unroll`` has the equations). Images and the student's step size follow the
gradient of that distance. To this AST adds, each of them a setting here:

  * smooth experts: momentum and weight decay, and a ramp on the loss and a gradient penalty that slow them down;
  * ``initialization``: real images that represent the clusters of their class;
  * ``balance``: the student's loss is scaled by the start epoch, since early losses are large and late ones small;
  * ``inner_momentum``: the student, too, has momentum;
  * ``waypoints``: the student is compared on its way with the epochs between;
  * ``perturbation``: its first weights are jittered.

Where we differ from the authors' code, and why:
  * gradients are exact in the memory of one inner step (``gradient``; published: the graph of all N steps);
  * a guard goes back to the last good images when the loss explodes (``guard``), where published runs end in NaN;
  * images are optimised normalised or whitened, as published, but stored as pixels, float32 and not clipped;
  * CIFAR's normalisation is the data set's own (the authors' deviations are 0.2023 … for both CIFARs);
  * representative initialization is repaired (``synth.parts.representatives``);
  * the result is the last iteration's, never the best on test images.

AST's formulas and settings are those of its authors' code (see ``synth.parts.experts``); the body of its paper, its
accuracies among it, was not at hand. Published top-1 of MTT (%, ConvNet, maximum over evaluations): CIFAR-10 ipc
1/10/50 46.2/65.4/71.6, CIFAR-100 24.3/39.7/47.7, Tiny-ImageNet 8.8/23.2/28.0 (as printed by DATM, arXiv 2310.05773).

    ddbench synth --method ast --ipc 10 --dataset cifar10
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import expm1, inf, log
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.errors import ConfigError
from dd_bench.learn.dsa import DSA
from dd_bench.learn.losses import cross_entropy
from dd_bench.models import images_at_once
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from dd_bench.sets import Images
from dd_bench.targets import HardLabels
from synth.base import ControlPlan, Distilled, Synthesizer, Task, random_control
from synth.parts.encoded import EncodedImages, encode_images
from synth.parts.experts import ExpertPlan, Experts, obtain_experts
from synth.parts.guarded import GuardedDescent
from synth.parts.inner import FlatNetwork, InnerTraining, ReplayedDSA, Waypoint, space_waypoints
from synth.parts.representatives import choose_representatives
from synth.parts.sampling import sample_per_class
from synth.parts.scales import preset_for
from synth.parts.trajectory_settings import AST_SETTINGS, EXPERTS, MTT_SETTINGS, PUBLISHED
from synth.parts.unroll import Method, trajectory_gradient

_CHECK_EVERY = 20  # iterations between looks at the guard, each of which waits for the device


@dataclass(frozen=True)
class TrajectoryMatching:
    """What MTT and AST have in common; they differ in their presets. The defaults are MTT's for CIFAR-10, ipc 10.

    Attributes:
        experts: whom the student follows, on which network, and whether in whitened space.
        iterations: losses measured; each but the last leads to an update of the images.
        inner_steps: N, the student's steps.
        expert_epochs: M, the expert's epochs that they are to match.
        max_start: T⁺; the student starts after s < T⁺ epochs of the expert.
        min_start: the smallest s (DATM's late segments; 0: published).
        inner_batch: synthetic images a step; 0: all.
        lr_images: of SGD with momentum 0.5 on the images, in normalised or whitened units.
        lr_rate: of the same on the learned step size.
        rate: the step size at the start.
        rate_form: what is learned: the step size itself, ``raw``, as published, or ``softplus``, which stays positive.
        inner_momentum: of the student, in [0, 1).
        initialization: ``random`` real images, those of the random control of the same seed, or ``representative``.
        balance: whether the student's loss is scaled by its start epoch.
        waypoints: whether epochs between are matched: ``none``, ``equal`` (each with weight 1), or ``rising`` weights.
        perturbation: size a of the jitter w + a·d⊙w of convolutions, d normal of Frobenius norm 1; 0: none.
        guard: updates are refused where the loss is above ``guard`` times that of a student that does not move.
        gradient: ``adjoint`` (exact), ``unrolled`` (exact, memory grows with N), or ``tesla`` (approximate).
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
    """

    experts: ExpertPlan = EXPERTS
    iterations: int = 5000
    inner_steps: int = 30
    expert_epochs: int = 2
    max_start: int = 20
    min_start: int = 0
    inner_batch: int = 0
    lr_images: float = 100.0
    lr_rate: float = 1e-5
    rate: float = 1e-3
    rate_form: Literal["raw", "softplus"] = "raw"
    inner_momentum: float = 0.0
    initialization: Literal["random", "representative"] = "random"
    balance: bool = False
    waypoints: Literal["none", "equal", "rising"] = "none"
    perturbation: float = 0.0
    guard: float = 5.0
    gradient: Method = "adjoint"
    protocol: str = "mtt-zca"

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    def __post_init__(self) -> None:
        last, keep = self.max_start - 1 + self.expert_epochs, self.experts.recipe.keep
        for name, sound, expected in (
            ("iterations", self.iterations >= 1, "at least 1"),
            ("expert_epochs", 1 <= self.expert_epochs <= self.inner_steps, f"1 to the {self.inner_steps} inner_steps"),
            ("min_start", 0 <= self.min_start < self.max_start, f"0 to {self.max_start - 1}, below max_start"),
            ("max_start", last <= keep, f"at most {keep - self.expert_epochs + 1}, as experts keep {keep} epochs"),
            ("inner_batch", self.inner_batch >= 0, "at least 0"),
            ("lr_images", 0 < self.lr_images < inf, "more than 0"),
            ("lr_rate", 0 <= self.lr_rate < inf, "at least 0"),
            ("rate", 0 < self.rate < inf, "more than 0"),
            ("inner_momentum", 0 <= self.inner_momentum < 1, "at least 0 and less than 1"),
            ("perturbation", 0 <= self.perturbation < inf, "at least 0"),
            ("guard", self.guard > 1, "more than 1"),
        ):  # fmt: skip
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns the published preset for a whole data set, ``small`` for a subset, ``digits`` for digits."""
        return preset_for(dataset, PUBLISHED)

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns the last images whose loss was measured and accepted, their classes, and the step size of then.

        Raises:
            DivergedError: if the loss keeps exploding, see ``GuardedDescent``.
        """
        encoded = encode_images(task.images, whiten=self.experts.whiten, device=task.device)
        experts = obtain_experts(self.experts, task, encoded)
        picked = self._initialize(encoded, experts, task)
        classes = encoded.labels[picked]
        start = self.rate if self.rate_form == "raw" else log(expm1(self.rate))
        descent = GuardedDescent(
            encoded.images[picked], torch.tensor(start, device=task.device), lr_images=self.lr_images,
            lr_rate=self.lr_rate,
        )  # fmt: skip
        one_hot = F.one_hot(classes, encoded.spec.num_classes).float()
        for step in run.steps("match trajectories", self.iterations, descent.state):
            self._iterate(descent, one_hot, experts, encoded, task, step)
            run.observe(loss=descent.loss.nan_to_num(self.guard), step_size=self._step_size(descent.good_rate))
            if (step + 1) % _CHECK_EVERY == 0 or step + 1 == self.iterations:
                descent.check(f"iteration {step + 1}")
        return Distilled(
            payload=Images(encoded.layer.restore(descent.good_images).cpu()),
            targets=HardLabels(classes.cpu()),
            teacher_seconds=experts.seconds,
            suggested_lr=float(self._step_size(descent.good_rate)),
        )

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random real images with hard labels."""
        return (random_control(self.protocol),)

    def _initialize(self, encoded: EncodedImages, experts: Experts, task: Task) -> Tensor:
        """Returns the indices of the real images to begin with, (ipc·K,) on the device."""
        num_classes = encoded.spec.num_classes
        if self.initialization == "random":
            labels = task.images.labels
            return sample_per_class(labels, task.ipc, num_classes, task.seed).flatten().to(task.device)
        draws = generator(derive_seed("representative expert", task.seed))
        theta = experts.last(int(torch.randint(experts.count, (), generator=draws))).to(task.device)
        with torch.no_grad():
            parts = torch.split(encoded.images, images_at_once(500, encoded.spec.image_shape))
            logits = torch.cat([experts.network(theta, part) for part in parts])
        chosen = []
        for label in range(num_classes):
            members = torch.nonzero(encoded.labels == label).flatten()
            seed = derive_seed("representatives", task.seed, label)
            chosen.append(members[choose_representatives(logits[members], task.ipc, seed=seed).to(task.device)])
        return torch.stack(chosen, dim=1).flatten()

    def _iterate(
        self, descent: GuardedDescent, labels: Tensor, experts: Experts, encoded: EncodedImages, task: Task, step: int
    ) -> None:
        """Matches one segment of one expert; all draws follow from the task's seed and ``step``."""
        expert, epoch = self._draw_segment(experts.count, task.seed, step)
        path = experts.segment(expert, epoch, self.expert_epochs).to(task.device, non_blocking=True)
        start, draws = path[0], generator(derive_seed("outer draws", task.seed, step))
        if self.perturbation:
            start = perturb(experts.network, start, self.perturbation, draws)
        inner = InnerTraining(
            experts.network,
            draw_batches(len(labels), self.inner_batch, self.inner_steps, draws, task.device),
            momentum=self.inner_momentum,
            positive=self.rate_form == "softplus",
            augment=ReplayedDSA(DSA(encoded.spec), derive_seed("inner dsa", task.seed, step)),
            objective=partial(_scaled_loss, scale=balance_factor(epoch, self.max_start) if self.balance else 1.0),
        )
        waypoints = self._place_waypoints(path)
        found = trajectory_gradient(
            inner, start, waypoints, images=descent.images, labels=labels, rate=descent.rate, method=self.gradient
        )
        still = sum(point.weight for point in waypoints)  # the loss of a student that does not move
        descent.update(found, inner.step_size(descent.rate), self.guard * still)

    def _draw_segment(self, count: int, seed: int, step: int) -> tuple[int, int]:
        """Returns an expert, each once a round in an order drawn anew, and s, uniform over what is allowed."""
        order = torch.randperm(count, generator=generator(derive_seed("experts", seed, step // count)))
        draws = generator(derive_seed("start", seed, step))
        start = torch.randint(self.min_start, self.max_start, (), generator=draws)
        return int(order[step % count]), int(start)

    def _place_waypoints(self, path: Tensor) -> tuple[Waypoint, ...]:
        targets = [path[-1]] if self.waypoints == "none" else list(path[1:])
        return space_waypoints(targets, self.inner_steps, rising=self.waypoints == "rising")

    def _step_size(self, rate: Tensor) -> Tensor:
        return F.softplus(rate) if self.rate_form == "softplus" else rate


class MTT(TrajectoryMatching):
    """Matching training trajectories."""


class AST(TrajectoryMatching):
    """Alignment with smooth experts."""


def balance_factor(start: int, max_start: int) -> float:
    """Returns AST's factor on the student's loss: log₅(s - h + 8) for s >= h = ⌊T⁺/2⌋, else 1 / log₅(h - s + 8)."""
    half = max_start // 2
    return log(start - half + 8, 5) if start >= half else 1 / log(half - start + 8, 5)


def perturb(network: FlatNetwork, theta: Tensor, size: float, draws: torch.Generator) -> Tensor:
    """Returns parameters (P,) with each convolution's weights w as w + size·d⊙w, d normal of Frobenius norm 1.

    That moves them by about size / √(number of weights) of their norm; biases, norms and linear layers stay.
    """
    pieces = []
    for piece in network.unflatten(theta).values():
        if piece.ndim == 4:
            noise = torch.randn(piece.shape, generator=draws).to(piece, non_blocking=True)
            piece = piece + size * noise / noise.norm() * piece
        pieces.append(piece.flatten())
    return torch.cat(pieces)


def draw_batches(
    count: int, size: int, steps: int, draws: torch.Generator, device: torch.device
) -> list[Tensor | None]:
    """Returns the indices of each step's images: the parts, ``size`` long, of one permutation after the other.

    The last part of a permutation is shorter where ``size`` does not divide ``count``, as published. With size 0, or
    ``count`` and more, every step takes all, which None stands for.
    """
    if not 0 < size < count:
        return [None] * steps
    rounds = -(-steps // -(-count // size))
    order = torch.stack([torch.randperm(count, generator=draws) for _ in range(rounds)]).to(device)
    parts: list[Tensor | None] = [part for one in order for part in torch.split(one, size)]
    return parts[:steps]


def _scaled_loss(logits: Tensor, labels: Tensor, *, scale: float) -> Tensor:
    return scale * cross_entropy(logits, labels)


MTT.PRESETS = {name: MTT(**settings) for name, settings in MTT_SETTINGS.items()}
AST.PRESETS = {name: AST(**settings) for name, settings in AST_SETTINGS.items()}
