"""Prints how long several experts take: one after the other, in processes of their own, or vectorised in one.

    python benchmarks/experts.py [--device cpu] [--arch convnet3-x0.25] [--experts 4] [--processes 2] [--steps 20]

Not a test: it asserts nothing. Every way does the same plain SGD steps on batches of random pixels, on one thread a
process; seconds are of the clock, of the slowest process, after one step to warm up. ``ddbench`` takes the second way:
processes on one store share a plan's experts. On a GPU processes share the device.
"""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dd_bench.data.specs import SPECS
from dd_bench.environment import choose_device, describe_device, keep_freed_memory
from dd_bench.models import build
from dd_bench.seeding import generator, seeded
from synth.parts.inner import FlatNetwork

_SPEC = SPECS["cifar10"]
_LR = 0.01


@click.command()
@click.option("--device", default="auto", show_default=True)
@click.option("--arch", default="convnet3-x0.25", show_default=True)
@click.option("--experts", default=4, show_default=True)
@click.option("--processes", default=2, show_default=True)
@click.option("--batch", default=64, show_default=True)
@click.option("--steps", default=20, show_default=True)
def main(device: str, arch: str, experts: int, processes: int, batch: int, steps: int) -> None:
    """Times three ways to train several experts."""
    console, place = Console(highlight=False), str(choose_device(device))
    table = Table("way", "s", "expert steps a second", title=f"{experts} experts, {arch}, batch {batch}, {steps} steps")
    share = -(-experts // processes)
    for way, jobs, vectorised in (
        ("one after the other", [experts], False),
        (f"{processes} processes", [share] * (experts // share) + [experts % share] * (experts % share > 0), False),
        ("vectorised (torch.func.vmap)", [experts], True),
    ):
        with ProcessPoolExecutor(len(jobs), mp_context=multiprocessing.get_context("spawn")) as pool:
            running = [pool.submit(_measure, count, vectorised, place, arch, batch, steps) for count in jobs]
            seconds = max(job.result() for job in running)
        table.add_row(way, f"{seconds:.2f}", f"{experts * steps / seconds:.1f}")
    console.print(f"{describe_device(torch.device(place))}, torch {torch.__version__}")
    console.print(table)


def _measure(count: int, vectorised: bool, device: str, arch: str, batch: int, steps: int) -> float:
    """Returns the seconds of ``steps`` steps of each of ``count`` experts."""
    torch.set_num_threads(1)
    keep_freed_memory()
    place, draws = torch.device(device), generator(0)
    with seeded(0):
        network = FlatNetwork(build(arch, _SPEC).to(place))
    thetas = network.flatten().repeat(count, 1)
    pixels = torch.rand(count, batch, *_SPEC.image_shape, generator=draws).to(place)
    classes = torch.randint(_SPEC.num_classes, (count, batch), generator=draws).to(place)

    def loss(theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(network(theta, images), labels)

    def step() -> None:
        if vectorised:
            thetas.sub_(torch.func.vmap(torch.func.grad(loss))(thetas, pixels, classes), alpha=_LR)
            return
        for index in range(count):
            theta = thetas[index].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(theta, pixels[index], classes[index]), theta)
            thetas[index].sub_(gradient, alpha=_LR)

    step()
    begin = _now(place)
    for _ in range(steps):
        step()
    return _now(place) - begin


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
