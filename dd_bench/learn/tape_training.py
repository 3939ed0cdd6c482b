"""Training by tape: a student sees every batch exactly as it was recorded, in the groups in which it was labelled."""

from dataclasses import dataclass
from math import cos, inf, pi

import torch
from torch import Tensor, nn

from dd_bench.checkpoint import State
from dd_bench.environment import convolution_layout
from dd_bench.errors import ConfigError
from dd_bench.learn.tape import Epoch, Lessons
from dd_bench.learn.training import Objective
from dd_bench.run import Run
from dd_bench.tapes import Tape


@dataclass(frozen=True)
class TapeTraining:
    """How a student is trained on a tape; AdamW throughout.

    Attributes:
        epochs: of the tape; 0 if ``steps`` counts.
        steps: batches of the tape; 0 if ``epochs`` counts.
        lr: learning rate at the start.
        stretch: eta: the rate follows lr/2 · (1 + cos(pi · t / eta)) over t in [0, 1), so with 1 it ends at 0, with 2
            at half. With ``epochs`` it moves once an epoch.
        weight_decay: decoupled, of weights with two axes and more; biases and normalisations have none.

    Raises:
        ConfigError: for a number out of range, or both or none of ``epochs`` and ``steps``.
    """

    epochs: int = 0
    steps: int = 0
    lr: float = 1e-3
    stretch: float = 1.0
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.steps > 0) or min(self.epochs, self.steps) < 0:
            raise ConfigError(
                f"epochs {self.epochs} and steps {self.steps}; expected one of them positive, the other 0"
            )
        for name, sound, expected in (
            ("lr", 0 < self.lr < inf, "more than 0"),
            ("stretch", 1 <= self.stretch < inf, "at least 1"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0"),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    def total_steps(self, batches: int) -> int:
        """Returns the number of gradient steps on a tape of ``batches`` batches an epoch."""
        return self.steps or self.epochs * batches

    def lr_at(self, step: int, batches: int) -> float:
        """Returns the learning rate of ``step`` (from 0)."""
        share = step // batches / self.epochs if self.epochs else step / self.steps
        return self.lr * 0.5 * (1 + cos(pi * share / self.stretch))


def fit_tape(
    model: nn.Module, images: Tensor, tape: Tape, lessons: Lessons, *, training: TapeTraining, objective: Objective,
    run: Run, label: str,
) -> None:  # fmt: skip
    """Trains ``model`` in place, on its own device, as ``tape`` says. Nothing is drawn.

    A batch goes through the model group by group, gradients are summed, and one step follows; the loss is the mean over
    the batch whatever its groups.

    Args:
        model: takes pixels, returns logits.
        images: (N, C, H, W) uint8, or float32 in pixel space.
        tape: over N images.
        lessons: what ``objective`` compares logits with, epoch by epoch.
        training: optimizer and length.
        objective: the mean loss of a group.
        run: where the state is kept; with ``label`` it names the stage.
        label: the stage's name.

    Raises:
        NonFiniteError: when the loss is NaN or infinite, with the step.
    """
    device = next(model.parameters()).device
    layout = convolution_layout(device)
    model = model.to(memory_format=layout).train()
    images = images.to(device)
    optimizer = torch.optim.AdamW(_decay_groups(model, training.weight_decay), lr=training.lr)
    ranges = tape.ranges()
    groups = [tape.groups_of(start, end) for start, end in ranges]
    total = training.total_steps(len(ranges))
    now, epoch, values = -1, None, None

    for step in run.steps(label, total, State(model=model, optimizer=optimizer)):
        number, batch = divmod(step, len(ranges))
        if number != now or epoch is None or values is None:
            now, epoch = number, Epoch.of(tape, number, device)
            values = lessons(number % tape.epochs, epoch)
        pixels = epoch.pixels(images, batch).contiguous(memory_format=layout)
        start, end = ranges[batch]
        for group in optimizer.param_groups:
            group["lr"] = training.lr_at(step, len(ranges))
        optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=device)
        for first, last in groups[batch]:
            part = objective(model(pixels[first:last]), values[start + first : start + last])
            part = part * ((last - first) / (end - start))
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.detach()
        optimizer.step()
        run.observe(loss=loss)


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    parameters = list(model.parameters())
    return [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": weight_decay},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
