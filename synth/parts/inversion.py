"""Network inversion: pixels are moved until networks classify them and recognise their statistics.

What is moved is a canvas: free pixels, or base images with one offset a group. Who judges it are voters, networks that
each look at some of the groups and whose verdicts are weighted. SRe2L, CV-DD and INFER are settings of this loop.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.checkpoint import State
from dd_bench.errors import ConfigError
from dd_bench.learn.crops import draw_crops, resize_crops
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from dd_bench.settings import later
from synth.parts.bn_stats import BNProbe


@dataclass(frozen=True)
class InversionRecipe:
    """How a canvas is optimised: Adam with a half-cosine to zero on CE + alpha × BN distance.

    Attributes:
        steps: optimisation steps.
        lr: Adam's learning rate at the start, in normalised pixel units.
        alpha: weight of the BN distance.
        first_bn_weight: weight of the first BN layer within the distance.
        jitter: images are rolled by (a, b), each uniform on 0 … jitter pixels, anew in every step.
        smallest_crop: networks see random resized crops of at least this share of the area; 1: whole images.
        mirror: whether they see images mirrored half of the time.
        crop_each: whether every image has a crop and flip of its own, or a group shares them, as published.
        relative_bn: whether a network's BN distance is divided by the size of the statistics it remembers.
    """

    steps: int = 1000
    lr: float = 0.25
    alpha: float = 1.0
    first_bn_weight: float = 10.0
    jitter: int = 4
    smallest_crop: float = later(1.0)
    mirror: bool = later(False)
    crop_each: bool = later(False)
    relative_bn: bool = later(False)

    def __post_init__(self) -> None:
        sound = 0 < self.lr < inf and 0 <= self.alpha < inf and 0 <= self.first_bn_weight < inf  # false for NaN, too
        if not sound or self.steps < 1 or self.jitter < 0 or not 0 < self.smallest_crop <= 1:
            raise ConfigError(
                f"{self}; expected steps >= 1, lr > 0, alpha, first_bn_weight and jitter >= 0, all of them finite, and "
                "smallest_crop in (0, 1]"
            )


class Canvas(Protocol):
    """G groups of n images that depend on one tensor, ``moved``, in normalised units (pixels / std).

    One learning rate then means the same on every data set. Optimisers are element by element, so groups that share
    steps stay independent.
    """

    moved: Tensor

    def images(self) -> Tensor:
        """Returns the images (G, n, C, H, W) in pixel space, differentiable in ``moved``."""

    def project(self) -> None:
        """Brings ``moved`` back into its range, in place."""


class SharedOffsets:
    """A canvas of base images that stay, plus one offset a group that moves.

    ``moved`` are the offsets (G, 1, C, H, W); images are unclipped, as the published method (INFER) optimises them.
    """

    def __init__(self, base: Tensor, std: Tensor) -> None:
        self.base = base  # (G, n, C, H, W) float32 pixels
        self.std = std.view(1, 1, -1, 1, 1)
        self.moved = torch.zeros_like(base[:, :1]).requires_grad_()

    def images(self) -> Tensor:
        """Returns the sums (G, n, C, H, W) in pixel space."""
        return self.base + self.moved * self.std

    def project(self) -> None:
        """Does nothing: offsets are free."""

    def pixel_offsets(self) -> Tensor:
        """Returns the offsets (G, C, H, W) in pixel units, without gradient."""
        return (self.moved * self.std).detach().squeeze(1)


class FreePixels:
    """A canvas of images whose every pixel moves, within [0, 1].

    ``moved`` are normalised pixels (G, n, C, H, W); after every step they are clamped to what pixels can be.
    """

    def __init__(self, pixels: Tensor, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = (part.view(1, 1, -1, 1, 1) for part in (mean, std))
        self.moved = ((pixels - self.mean) / self.std).requires_grad_()

    def images(self) -> Tensor:
        """Returns the images (G, n, C, H, W) in pixel space."""
        return self.moved * self.std + self.mean

    @torch.no_grad()
    def project(self) -> None:
        """Clamps pixels to [0, 1]."""
        self.moved.clamp_(-self.mean / self.std, (1 - self.mean) / self.std)


@dataclass(frozen=True, eq=False)
class Voter:
    """A network and the groups that it judges.

    Attributes:
        model: frozen, in evaluation mode, takes pixels.
        groups: (g,) indices of its groups, ascending.
        weights: (g,) of its loss in each of them.
    """

    model: nn.Module
    groups: Tensor
    weights: Tensor

    @classmethod
    def of_all(cls, model: nn.Module, groups: int, device: torch.device) -> "Voter":
        """Returns a voter that alone judges all of ``groups`` groups."""
        return cls(model, torch.arange(groups, device=device), torch.ones(groups, device=device))


def invert(
    canvas: Canvas, classes: Tensor, voters: Sequence[Voter], *, recipe: InversionRecipe, seeds: list[int], run: Run,
    label: str,
) -> None:  # fmt: skip
    """Optimises the canvas in place, all groups at once and each as if alone.

    L(group) = Σ_v w_v [1/n Σ_i CE(f_v(A(x_i)), c_i) + alpha · BN distance_v]: voters are in evaluation mode, statistics
    are per group, and Adam works element by element, so the sum of the losses has every group's own gradient. A is
    one draw for all voters.

    Args:
        canvas: G groups of n images.
        classes: (n,) the class of each image of a group.
        voters: who judges; together they judge every group.
        recipe: the optimisation.
        seeds: one for each group; they draw what is seen of it, so that its result does not depend on its company.
        run: where the state is kept.
        label: the stage's name.
    """
    optimizer = torch.optim.Adam([canvas.moved], lr=recipe.lr, betas=(0.5, 0.9))
    views = Views(recipe, canvas.images().shape, seeds, canvas.moved.device)
    with ExitStack() as stack:
        probes = [
            stack.enter_context(
                BNProbe(voter.model, groups=len(voter.groups), first_weight=recipe.first_bn_weight,
                        relative=recipe.relative_bn)
            )
            for voter in voters
        ]  # fmt: skip
        for step in run.steps(label, recipe.steps, State(canvas=canvas.moved, optimizer=optimizer)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / recipe.steps)).item())
            seen = views.show(canvas.images(), step)
            judged = seen.detach().requires_grad_()  # voters go backwards one by one, so one graph is held at a time
            verdicts = []
            for voter, probe in zip(voters, probes, strict=True):
                errors, distances = _judge(voter, probe, judged, classes)
                loss = ((errors + recipe.alpha * distances) * voter.weights).sum()
                loss.backward()  # type: ignore[no-untyped-call]
                verdicts.append(torch.stack([errors.detach().mean(), distances.detach().mean()]))
            optimizer.zero_grad(set_to_none=True)
            seen.backward(judged.grad)  # type: ignore[no-untyped-call]
            optimizer.step()
            canvas.project()
            error, distance = torch.stack(verdicts).mean(0)
            run.observe(ce=error, bn=distance)


def _judge(voter: Voter, probe: BNProbe, images: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the cross-entropy and the BN distance of each of the voter's groups, (g,) both."""
    own = images[voter.groups] if len(voter.groups) < len(images) else images
    groups, count = own.shape[:2]
    errors = F.cross_entropy(voter.model(own.flatten(0, 1)), classes.repeat(groups), reduction="none")
    return errors.view(groups, count).mean(1), probe.distance()


class Views:
    """What networks see of each group in each step: crop, flip, roll, all drawn before the first step."""

    def __init__(self, recipe: InversionRecipe, shape: torch.Size, seeds: list[int], device: torch.device) -> None:
        groups, count, _, height, width = shape
        self._shifts = draw_shifts(recipe, seeds)
        self._each = count if recipe.crop_each else 1
        size = recipe.steps * self._each
        self._crops = self._flips = None
        if recipe.smallest_crop < 1:
            crops = [
                draw_crops(size, height, width, generator(derive_seed("crops", seed)), smallest=recipe.smallest_crop)
                for seed in seeds
            ]
            self._crops = torch.stack(crops).view(groups, recipe.steps, self._each, 4).short().to(device)
        if recipe.mirror:
            flips = [torch.rand(size, generator=generator(derive_seed("flips", seed))) < 0.5 for seed in seeds]
            self._flips = torch.stack(flips).view(groups, recipe.steps, self._each).to(device)

    def show(self, images: Tensor, step: int) -> Tensor:
        """Returns images (G, n, C, H, W) as ``step`` sees them."""
        if self._crops is not None:
            crops = self._crops[:, step].expand(-1, images.shape[1], -1).flatten(0, 1).long()
            flips = None if self._flips is None else self._flip(step, images)
            images = resize_crops(images.flatten(0, 1), crops, flips).view_as(images)
        elif self._flips is not None:
            flips = self._flip(step, images).view(*images.shape[:2], 1, 1, 1)
            images = torch.where(flips, images.flip(-1), images)
        return roll_groups(images, self._shifts[step])

    def _flip(self, step: int, images: Tensor) -> Tensor:
        assert self._flips is not None
        return self._flips[:, step].expand(-1, images.shape[1]).flatten()


def draw_shifts(recipe: InversionRecipe, seeds: list[int]) -> list[list[tuple[int, int]]]:
    """Returns for each step and group the (rows, columns) to roll by; host integers, so rolling waits for no device."""
    size = (recipe.steps, 2)
    draws = [
        torch.randint(0, recipe.jitter + 1, size, generator=generator(derive_seed("shifts", seed))) for seed in seeds
    ]
    return [[(int(a), int(b)) for a, b in step] for step in torch.stack(draws, dim=1).tolist()]


def roll_groups(images: Tensor, shifts: list[tuple[int, int]]) -> Tensor:
    """Returns images (G, n, C, H, W) with each group rolled by its own (rows, columns)."""
    return torch.stack([group.roll(shift, dims=(2, 3)) for group, shift in zip(images, shifts, strict=True)])
