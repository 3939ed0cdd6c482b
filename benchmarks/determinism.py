"""Prints what deterministic algorithms cost, and whether two runs gave the same bytes with and without them.

    python benchmarks/determinism.py [--device cpu] [--steps 200] [NETWORK ...]

Not a test: it asserts nothing. Every cell is two processes: the seconds are those of the faster one, after a warm-up,
by the clock. "same" tells whether both ended with the same bytes.
"""

import hashlib
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
from dd_bench.environment import choose_device, compute_deterministically, describe_device, keep_freed_memory
from dd_bench.learn.dsa import DSA
from dd_bench.models import build
from dd_bench.seeding import generator, seeded
from synth.parts.inner import FlatNetwork, InnerTraining, ReplayedDSA, space_waypoints
from synth.parts.unroll import trajectory_gradient

_SPEC = SPECS["cifar10"]
_NETWORKS = ("convnet3", "convnet3-batch", "resnet18", "mobilenetv2", "densenet121", "vit")
_TRAJECTORY = "trajectory gradient"


@click.command()
@click.argument("networks", nargs=-1)
@click.option("--device", default="auto", show_default=True)
@click.option("--steps", default=200, show_default=True, help="Of training; a tenth as many trajectory gradients.")
def main(networks: tuple[str, ...], device: str, steps: int) -> None:
    """Times training on 256 images of CIFAR-10's size at a time, and trajectory gradients through DSA."""
    console, place = Console(highlight=False), choose_device(device)
    console.print(f"{describe_device(place)}, torch {torch.__version__}")
    table = Table("work", "s", "same", "s, deterministic", "same", "×", title=f"{steps} steps")
    for work in (*(networks or _NETWORKS), _TRAJECTORY):
        cells = [_twice(work, str(place), steps, deterministic) for deterministic in (False, True)]
        row = (work, *(text for seconds, same in cells for text in (f"{seconds:.2f}", "yes" if same else "NO")),
               f"{cells[1][0] / cells[0][0]:.2f}")  # fmt: skip
        console.print(" ".join(row))  # a run that is cut off has shown what it knows
        table.add_row(*row)
    console.print(table)


def _twice(work: str, device: str, steps: int, deterministic: bool) -> tuple[float, bool]:
    found = []
    for _ in range(2):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            found.append(pool.submit(_run, work, device, steps, deterministic).result())
    return min(seconds for seconds, _ in found), found[0][1] == found[1][1]


def _run(work: str, device: str, steps: int, deterministic: bool) -> tuple[float, str]:
    """Returns the seconds and the sha256 of what came out."""
    keep_freed_memory()
    if deterministic:
        compute_deterministically()
    place = torch.device(device)
    run = _follow if work == _TRAJECTORY else _train
    run(work, place, 2)
    _wait(place)
    began = time.perf_counter()
    result = run(work, place, steps)
    _wait(place)
    return time.perf_counter() - began, hashlib.sha256(result.cpu().numpy().tobytes()).hexdigest()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _train(name: str, device: torch.device, steps: int) -> Tensor:
    with seeded(0):
        network = build(name, _SPEC).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    draws = generator(1)
    images = torch.rand(256, *_SPEC.image_shape, generator=draws).to(device)
    labels = torch.randint(0, 10, (256,), generator=draws).to(device)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in network.parameters()])


def _follow(_name: str, device: torch.device, steps: int) -> Tensor:
    """Returns the last of a tenth as many gradients in ten images, of ten inner steps each."""
    draws = generator(0)
    with seeded(0):
        network = FlatNetwork(build("convnet3-x0.25", _SPEC).to(device))
    start = network.flatten()
    target = start + 0.01 * torch.randn(start.shape, generator=draws).to(device)
    pixels = torch.rand(10, *_SPEC.image_shape, generator=draws).to(device)
    labels = torch.eye(10, device=device)
    inner = InnerTraining(network, (None,) * 10, momentum=0.9, augment=ReplayedDSA(DSA(_SPEC), 0))
    rate, points = torch.tensor(0.01, device=device), space_waypoints([target], 10)
    for _ in range(max(1, steps // 10)):
        found = trajectory_gradient(
            inner, start, points, images=pixels, labels=labels, rate=rate, method="adjoint"
        )  # fmt: skip
        pixels = pixels - found.images
    return pixels


if __name__ == "__main__":
    main()
