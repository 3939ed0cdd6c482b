"""The training loop of teachers, experts and students: everything on the device, a batch is an index, one pass of code.

There are no loader workers and no synchronisation inside the loop; the data are one tensor, as uint8 if they came so.
What a GPU cannot hold is an exception, see ``dd_bench.learn.stock``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, inf
from typing import Literal

import torch
from torch import Tensor, nn

from dd_bench.checkpoint import State
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.learn.augment import crop_flip, crop_pad, cutmix, mixup
from dd_bench.learn.dsa import DSA
from dd_bench.learn.stock import Stock
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from dd_bench.settings import later

Objective = Callable[[Tensor, Tensor], Tensor]  # (logits (n, K), values (n, K)) -> scalar
Labeler = Callable[[Tensor], Tensor]  # pixels (n, C, H, W) -> values (n, K)

_CHOICES = {
    "optimizer": ("sgd", "adam", "adamw"),
    "schedule": ("cosine", "half", "constant"),
    "augment": ("none", "crop-flip", "dsa"),
    "mix": ("none", "mixup", "cutmix"),
}


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network is trained; every field can move a score.

    Attributes:
        epochs: passes over the data; 0 if ``steps`` counts. The last batch of an epoch is shorter.
        steps: gradient steps, each on a full batch, so that sets of any size are seen equally often; 0 if ``epochs``
            counts.
        batch: images a step.
        optimizer: ``sgd``, ``adam`` or ``adamw`` (decay on all parameters).
        lr: learning rate at the start.
        schedule: ``cosine`` to zero, ``half``: a tenth from the middle on, or ``constant``. With ``epochs`` it moves
            once an epoch.
        stretch: of ``cosine``: over t in [0, 1) the rate follows lr/2 · (1 + cos(pi · t / stretch)), so with 1 it ends
            at 0, with 2 at half, and with 1/3 it falls, rises and falls.
        momentum: of SGD.
        nesterov: whether SGD's momentum looks ahead.
        weight_decay: L2 for SGD and Adam, decoupled for AdamW.
        augment: ``none``, ``crop-flip`` (zero padding of an eighth of the height; no flip where data forbid it), or
            ``dsa``.
        mix: ``none``, ``mixup`` or ``cutmix``, always of images and labels with one lambda a batch.
        mix_alpha: lambda ~ Beta(alpha, alpha).
        bf16: whether the forward pass runs in bfloat16.
        channels_last: whether memory is laid out channels last, faster with bf16 on a GPU.

    Raises:
        ConfigError: for a number out of range, or fields that contradict one another.
        UnknownNameError: for a choice that is not in its list.
    """

    epochs: int = 0
    steps: int = 0
    batch: int = 128
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.1
    schedule: Literal["cosine", "half", "constant"] = "cosine"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    augment: Literal["none", "crop-flip", "dsa"] = "crop-flip"
    mix: Literal["none", "mixup", "cutmix"] = "none"
    mix_alpha: float = 0.8
    bf16: bool = False
    channels_last: bool = False
    stretch: float = later(1.0)

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0) or min(self.epochs, self.steps) < 0:
            raise ConfigError(
                f"epochs {self.epochs} and steps {self.steps}; expected one of them positive, the other 0"
            )
        for name, known in _CHOICES.items():
            if (choice := getattr(self, name)) not in known:
                raise UnknownNameError(name, str(choice), known)
        for name, sound, expected in (
            ("batch", self.batch >= 2, "at least 2"),
            ("lr", 0 < self.lr < inf, "more than 0"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0"),
            ("mix_alpha", 0 < self.mix_alpha < inf, "more than 0"),
            ("stretch", 0 < self.stretch < inf, "more than 0"),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ConfigError("nesterov is set and momentum is 0; expected a momentum to look ahead with")
        if self.schedule != "cosine" and self.stretch != 1:
            raise ConfigError(f"stretch is {self.stretch} and schedule {self.schedule}; expected a cosine to stretch")

    def total_steps(self, images: int) -> int:
        """Returns the number of gradient steps on ``images`` images."""
        return self.steps or self.epochs * len(batch_bounds(images, self.batch))

    def lr_factor(self, step: int, images: int) -> float:
        """Returns what ``lr`` is multiplied with in ``step`` (from 0)."""
        if self.schedule == "constant":
            return 1.0
        if self.epochs:
            done, total = step // len(batch_bounds(images, self.batch)), self.epochs
        else:
            done, total = step, self.steps
        if self.schedule == "half":
            # As in Zhao et al.'s evaluator the drop lies just behind the middle: E // 2 + 1 epochs run at full rate
            return 0.1 if done > total // 2 else 1.0
        return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * done / total / self.stretch, dtype=torch.float64)).item())


def batch_bounds(images: int, batch: int) -> list[tuple[int, int]]:
    """Returns the (start, end) of an epoch's batches; a last batch of one image joins the one before.

    A batch of one has no batch statistics, and BatchNorm refuses it on a 1 × 1 feature map.
    """
    starts = list(range(0, images, batch))
    if len(starts) > 1 and images - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], images], strict=True))


def fit(
    model: nn.Module, images: Tensor, values: Tensor, *, recipe: TrainingRecipe, objective: Objective,
    spec: DatasetSpec, seed: int, run: Run, label: str, rows: Tensor | None = None, labeler: Labeler | None = None,
) -> None:  # fmt: skip
    """Trains ``model`` in place, on its own device, to the last step of ``recipe``.

    Args:
        model: takes pixels, returns logits.
        images: (N, C, H, W) uint8, or float32 in pixel space.
        values: (N, K) float32, what ``objective`` compares logits with (probabilities, or teacher logits); with
            ``rows`` (n, K), theirs.
        recipe: optimizer, length, augmentation.
        objective: the loss of one batch.
        spec: of the data set; whether images may be mirrored, and DSA's units.
        seed: of order, augmentation and mixing.
        run: where the state is kept; with ``label`` it names the stage.
        label: the stage's name.
        rows: (n,) int64, of the images to train on; by default all. They are not copied where they need not be.
        labeler: if given, the values of a batch are ``labeler(augmented and mixed pixels)`` instead.

    Raises:
        NonFiniteError: when the loss is NaN or infinite, with the step.
    """
    device = next(model.parameters()).device
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).train()
    stock, values = Stock(images, rows, device), values.to(device)
    optimizer = _make_optimizer(model, recipe)
    draws = generator(derive_seed("fit", seed), device)
    # With `steps`, a round is as many passes as fill whole batches, so that every step sees `batch` images.
    passes = recipe.batch // gcd(recipe.batch, len(stock)) if recipe.steps else 1
    order = torch.arange(len(stock), device=device).repeat(passes)
    augment = _Augmentation(recipe, spec, seed)
    bounds = batch_bounds(len(order), recipe.batch)
    total = recipe.total_steps(len(stock))

    for step in run.steps(label, total, State(model=model, optimizer=optimizer, draws=draws, order=order)):
        if step % len(bounds) == 0:
            order.copy_(torch.cat([torch.randperm(len(stock), generator=draws, device=device) for _ in range(passes)]))
            stock.reorder()
        start, end = bounds[step % len(bounds)]
        pixels = _as_float(stock.take(order, start, end))
        pixels, targets = augment(pixels, values[order[start:end]], draws, step)
        pixels = pixels.contiguous(memory_format=layout)
        if labeler is not None:
            with torch.no_grad():
                targets = labeler(pixels)
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * recipe.lr_factor(step, len(stock))
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bf16):
            logits = model(pixels)
        loss = objective(logits.float(), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.observe(loss=loss)


class _Augmentation:
    """The recipe's augmentation and mixing, batch by batch."""

    def __init__(self, recipe: TrainingRecipe, spec: DatasetSpec, seed: int) -> None:
        self.recipe, self.spec, self.seed = recipe, spec, seed
        self.dsa = DSA(spec)

    def __call__(self, pixels: Tensor, values: Tensor, draws: torch.Generator, step: int) -> tuple[Tensor, Tensor]:
        """Returns pixels (n, C, H, W) and values (n, K) as ``step`` trains on them."""
        if self.recipe.augment == "crop-flip":
            pixels = crop_flip(pixels, draws, pad=crop_pad(self.spec), mirror=self.spec.mirror)
        elif self.recipe.augment == "dsa":
            pixels = self.dsa.apply(pixels, self.dsa.draw(len(pixels), draws, derive_seed("dsa", self.seed, step)))
        if self.recipe.mix == "mixup":
            return mixup(pixels, values, draws, self.recipe.mix_alpha)
        if self.recipe.mix == "cutmix":
            return cutmix(pixels, values, draws, self.recipe.mix_alpha)
        return pixels, values


def _make_optimizer(model: nn.Module, recipe: TrainingRecipe) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer over all parameters of ``model``."""
    if recipe.optimizer != "sgd":
        adaptive = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
        return adaptive(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
    )  # fmt: skip


def _as_float(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
