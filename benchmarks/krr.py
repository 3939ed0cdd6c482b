"""Milliseconds of an outer step of KRR-ST, and where they go.

    python benchmarks/krr.py [--preset small] [--dataset cifar10@200] [--size 20 --size 50 --size 200] [--device auto]

Parts are timed by themselves on one network of the pool: embedding the real batch and the set, the regression with its
gradient by pixels and targets, and the pool's own step. Random targets stand in for a target network, which costs
nothing in a step when they are read off once.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dd_bench.data.images import load
from dd_bench.environment import choose_device, describe_device, keep_freed_memory
from dd_bench.models import Normalizer, build, encoded_spec
from dd_bench.seeding import generator
from synth.krr import KRRST, outer_loss
from synth.parts.model_pool import ModelPool
from synth.parts.ridge import predict, with_bias

_TRIALS = 10


@click.command()
@click.option("--preset", default="small", show_default=True)
@click.option("--dataset", default="cifar10@200", show_default=True)
@click.option("--size", "sizes", multiple=True, type=int, default=(20, 50, 200), show_default=True, help="Repeatable.")
@click.option("--features", default=64, show_default=True, help="Of a target.")
@click.option("--device", default="auto", show_default=True)
def main(preset: str, dataset: str, sizes: tuple[int, ...], features: int, device: str) -> None:
    """Times the parts of a step."""
    keep_freed_memory()
    console, place, data = Console(highlight=False), choose_device(device), load(dataset)
    method = KRRST.PRESETS[preset]
    assert isinstance(method, KRRST)
    spec = replace(encoded_spec(data.spec), num_classes=features)
    draws = generator(0)
    normalise = Normalizer(data.spec.mean, data.spec.std).to(place)
    real = normalise(data.images[: method.batch].to(place).float() / 255)
    truth = torch.randn(len(real), features, generator=draws).to(place)
    table = Table("images", "step, ms", "embed real", "embed set", "kernel and solve", "gradients", "pool step",
                  title=f"{dataset}, {method.student}, batch {len(real)}, {features} features")  # fmt: skip
    for size in sizes:
        images = normalise(data.images[-size:].to(place).float() / 255)
        targets = torch.randn(size, features, generator=draws).to(place)
        pool = ModelPool(replace(method.pool, size=1), lambda: build(method.student, spec), 0, place)
        table.add_row(str(size), *(f"{one:.1f}" for one in _parts(pool, images, targets, real, truth, method.ridge)))
    console.print(f"{describe_device(place)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print(table)


def _parts(
    pool: ModelPool, images: Tensor, targets: Tensor, real: Tensor, truth: Tensor, ridge: float
) -> tuple[float, ...]:
    """Returns the milliseconds of a step, and of its parts in the order of the table."""
    pool.visit(0, images, targets)
    network, place = pool.networks[0], images.device
    learned = images.clone().requires_grad_(), targets.clone().requires_grad_()

    def forward() -> Tensor:
        return outer_loss(network, *learned, real, truth, ridge)[0]

    both = _milliseconds(lambda: torch.autograd.grad(forward(), learned), place)
    alone = _milliseconds(forward, place)
    with torch.no_grad():
        support, queries = with_bias(network.embed(images)), with_bias(network.embed(real))
        real_ms = _milliseconds(lambda: network.embed(real), place)
        set_ms = _milliseconds(lambda: network.embed(images), place)
        solve = _milliseconds(lambda: predict(support, targets.double(), queries, ridge), place)
    visit = _milliseconds(lambda: pool.visit(0, images, targets), place)
    return both + visit, real_ms, set_ms, solve, both - alone, visit


def _milliseconds(work: Callable[[], object], place: torch.device) -> float:
    """Returns the median over trials, after one that does not count."""
    times = []
    for _ in range(_TRIALS + 1):
        if place.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if place.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - begin))
    return sorted(times[1:])[_TRIALS // 2]


if __name__ == "__main__":
    main()
