"""How well KRR-ST's sets teach a target network, on real images that neither network nor set has seen.

Fresh networks are trained on a set; then the target's features of unseen images are predicted by ridge regression on
their bodies (``krr``) and by their own heads (``head``). The error of predicting the mean is 1. Rows are what KRR-ST
begins with, what it learns, one change at a time, more real images, and two sets that must fail.

    python benchmarks/krr_errors.py [--dataset cifar10@200 --unseen cifar10@300] [--preset small] [--ipc 5] [--seeds 2]
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dd_bench.data.images import ImageData, load
from dd_bench.data.specs import DatasetSpec
from dd_bench.environment import choose_device, describe_device
from dd_bench.learn.losses import mean_squared_error
from dd_bench.learn.training import TrainingRecipe, fit
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import Images
from dd_bench.store import Store
from dd_bench.targets import Features
from synth import find
from synth.base import Task, choose_preset, override
from synth.krr import KRRST, outer_loss
from synth.parts.target_model import TargetModel, obtain_target
from synth.pipeline import Order, distil

_UNSEEN = 1000  # images at most
_NETWORKS = 3
_STEPS = 150  # of full batches, the rate a cosine to zero
_ROWS: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("begins with", "random", {}),
    ("learned", "krr-st", {}),
    ("lr a tenth", "krr-st", {"lr": "0.001"}),
    ("ridge a fiftieth", "krr-st", {"ridge": "2e-8"}),
    ("max_age 30", "krr-st", {"pool.max_age": "30"}),
    ("max_age 30, age never set back", "krr-st", {"pool.max_age": "30", "pool.reset": "false"}),
    ("bare pixels to begin with", "krr-st", {"start": "pixels"}),
    ("images alone learned", "krr-st", {"learned": "images"}),
    ("targets alone learned", "krr-st", {"learned": "targets"}),
    ("k-means", "k-means", {}),
    ("twice as many real images", "random", {"times": "2"}),
    ("four times as many", "random", {"times": "4"}),
    ("targets shuffled", "krr-shuffled", {}),
    ("images of noise", "", {}),
)


@click.command()
@click.option("--dataset", default="cifar10@200", show_default=True, help="What sets are made of.")
@click.option("--unseen", default="cifar10@300", show_default=True, help="Training images: those not in DATASET.")
@click.option("--preset", help="By default the data set's own.")
@click.option("--ipc", default=5, show_default=True)
@click.option("--seeds", default=2, show_default=True)
@click.option("--rows", default="", help="Only rows whose name holds this.")
@click.option("--device", default="auto", show_default=True)
def main(dataset: str, unseen: str, preset: str | None, ipc: int, seeds: int, rows: str, device: str) -> None:
    """Distils (or takes from the store) and measures."""
    console, place, data = Console(highlight=False), choose_device(device), load(dataset)
    chosen, method = choose_preset(KRRST, preset, dataset)
    count = ipc * data.spec.num_classes
    table = Table("set", "seed", "krr", "head", title=f"{dataset}, {chosen}, {count} images, {method.student}")
    with TemporaryDirectory() as folder:
        for seed in range(seeds):
            task = Task(data, ipc, seed, place)
            target = obtain_target(method.target, task, Run(Path(folder) / "target"))
            pixels = _unseen_pixels(data, load(unseen)).to(place)
            for name, kind, settings in _ROWS:
                if rows not in name:
                    continue
                images, values = _set(kind, settings, chosen, method, task, target)
                found = [
                    _errors(images, values, pixels, target, method.student, data.spec, derive_seed(seed, number))
                    for number in range(_NETWORKS)
                ]
                cells = [f"{fmean(part):.3f} ± {stdev(part):.3f}" for part in zip(*found, strict=True)]
                table.add_row(name, str(seed), *cells)
                console.print(name, seed, *cells)
    console.print(f"{describe_device(place)}, torch {torch.__version__}; spread: deviation over {_NETWORKS} networks")
    console.print(table)


def _set(
    kind: str, settings: Mapping[str, str], preset: str, method: KRRST, task: Task, target: TargetModel
) -> tuple[Tensor, Tensor]:
    """Returns the images (m, C, H, W) in pixel space and the targets (m, D) of a row."""
    spec, count = task.data.spec, task.ipc * task.data.spec.num_classes
    if not kind:
        noise = torch.rand(count, *task.images.spec.image_shape, generator=generator(derive_seed("noise", task.seed)))
        return noise, target.plain[torch.randperm(len(target.plain), generator=generator(task.seed))[:count]]
    found = find(kind)
    if kind in ("random", "k-means"):
        synthesizer = replace(found(), target=method.target, protocol=method.protocol)
    else:
        _, synthesizer = choose_preset(found, preset, spec.name)
    stored, _ = distil(Order(kind, "benchmark", override(synthesizer, settings)), task, Store())
    synthetic = stored.load()
    assert isinstance(synthetic.targets, Features)
    assert isinstance(synthetic.payload, Images)
    return synthetic.payload.decode(), synthetic.targets.values


def _errors(
    images: Tensor, values: Tensor, pixels: Tensor, target: TargetModel, student: str, spec: DatasetSpec, seed: int
) -> tuple[float, float]:
    """Returns the errors of one fresh network: of ridge regression on its body, and of its head."""
    with seeded(seed):
        network = build(student, replace(spec, num_classes=values.shape[1])).to(pixels.device)
    recipe = TrainingRecipe(steps=_STEPS, batch=max(2, len(images)), lr=0.1, weight_decay=1e-3, augment="none")
    with TemporaryDirectory() as folder:
        fit(
            network, images, values, recipe=recipe, objective=mean_squared_error, spec=spec, seed=seed,
            run=Run(Path(folder)), label="student",
        )  # fmt: skip
    network.eval()
    truth = target.targets_of(pixels)
    with torch.no_grad():
        ridge, _ = outer_loss(network, images.to(pixels.device), values.to(pixels.device), pixels, truth, 1e-6)
        head = mean_squared_error(network(pixels), truth)
    return float(ridge), float(head)


def _unseen_pixels(data: ImageData, larger: ImageData) -> Tensor:
    known = {image.numpy().tobytes() for image in data.images}
    fresh = [at for at, image in enumerate(larger.images) if image.numpy().tobytes() not in known]
    if not fresh:
        raise click.UsageError(f"all images of {larger.spec.name} are in {data.spec.name}; name a larger data set")
    return larger.images[fresh[:_UNSEEN]].float() / 255


if __name__ == "__main__":
    main()
