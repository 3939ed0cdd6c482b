"""Prints seconds per student on digits and cifar10@200, and where they go. Not a test: it asserts nothing.

    python benchmarks/evaluator.py [--device cpu] [--protocol quick] [DATASET ...]

One student is trained as the evaluator trains it, with a stopwatch at the model's door, at the loss and around the
optimizer; the device is synchronised at each of them, so on a GPU the total is a little longer than without.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import load
from dd_bench.environment import choose_device, describe_device
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.training import TrainingRecipe, fit
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import seeded
from eval.protocol_kinds import EvalProtocol
from eval.protocols import find_protocol
from synth.parts.sampling import sample_per_class

_IPC = 10


@click.command()
@click.argument("datasets", nargs=-1)
@click.option("--device", default="auto", show_default=True)
@click.option("--protocol", default="quick", show_default=True)
def main(datasets: tuple[str, ...], device: str, protocol: str) -> None:
    """Times a student on random real images, ipc 10, hard labels."""
    chosen, place = find_protocol(protocol), choose_device(device)
    if not isinstance(chosen, EvalProtocol):
        raise click.UsageError(f"protocol {protocol} is for graphs; expected one for images, such as quick")
    console = Console(highlight=False)
    console.print(f"{describe_device(place)}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in datasets or ("digits", "cifar10@200"):
        console.print(_measure(name, chosen, place))


class _Stopwatch:
    """Seconds by piece: each lap goes to the piece that has just ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = self._now()

    def lap(self, piece: str) -> None:
        now = self._now()
        self.seconds[piece] = self.seconds.get(piece, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _measure(name: str, protocol: EvalProtocol, device: torch.device) -> Table:
    data, test = load(name), TestSplit.open(name)
    picked = sample_per_class(data.labels, _IPC, data.spec.num_classes, seed=0).flatten()
    images, values = data.images[picked], F.one_hot(data.labels[picked], data.spec.num_classes).float()
    recipe = protocol.recipe

    def train(length: TrainingRecipe) -> tuple[torch.nn.Module, _Stopwatch]:
        with seeded(0):
            model = build(protocol.students_for(data.spec)[0], data.spec).to(device)
        watch = _Stopwatch(device)

        def objective(logits: Tensor, targets: Tensor) -> Tensor:
            loss = cross_entropy(logits, targets)
            watch.lap("forward and loss")
            return loss

        def before(*_: Any) -> None:
            watch.lap("backward")

        def after(*_: Any) -> None:
            watch.lap("optimizer")

        hooks = [
            model.register_forward_pre_hook(lambda *_: watch.lap("batch, augmentation, mixing, reports, checkpoints")),
            register_optimizer_step_pre_hook(before),
            register_optimizer_step_post_hook(after),
        ]
        with tempfile.TemporaryDirectory() as scratch:
            fit(
                model, images, values, recipe=length, objective=objective, spec=data.spec, seed=0,
                run=Run(Path(scratch)), label="student",
            )  # fmt: skip
        for hook in hooks:
            hook.remove()
        return model.eval(), watch

    train(replace(recipe, epochs=0, steps=3))  # the first steps of a process load half of torch
    model, watch = train(recipe)
    watch.lap("batch, augmentation, mixing, reports, checkpoints")
    steps, total = recipe.total_steps(len(images)), sum(watch.seconds.values())
    test.score("benchmark", model, device=device)
    watch.lap("test")
    table = Table("piece", "ms a step", "share of training", title=f"{name}, {protocol.name}, {len(images)} images")
    testing = watch.seconds.pop("test")
    for piece, seconds in watch.seconds.items():
        table.add_row(piece, f"{1000 * seconds / steps:.2f}", f"{100 * seconds / total:.0f} %")
    table.caption = f"one student: {total:.2f} s for {steps} steps, then {testing:.2f} s for {len(test):,} test images"
    return table


if __name__ == "__main__":
    main()
