"""Prints seconds and peak memory of an outer iteration of trajectory matching, by inner steps N and gradient.

    python benchmarks/unroll.py [--device cpu] [--arch convnet3-x0.25] [--images 10] [--momentum 0.9] [STEPS ...]

Not a test: it asserts nothing. Every row is a process of its own, since a process's peak never falls. Seconds are those
of the fastest iteration after one to warm up: of the processor on a CPU, on one thread, so that other work on the
machine matters less; of the clock on a GPU. Operations are what one iteration hands to the device, without views: where
the device is faster than its host, as a GPU is with small networks, they are the seconds. Memory is what the peak lies
above the level before the first iteration: resident memory on a CPU, allocated memory on a GPU. N parameter vectors are
in it, whatever the gradient.

Freed memory stays in the process, as under ``ddbench``: otherwise glibc hands that of every small graph back to the
system, and the adjoint pays for it in page faults with a quarter of its time.
"""

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, get_args

import click
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from dd_bench.data.specs import SPECS
from dd_bench.environment import choose_device, describe_device, keep_freed_memory
from dd_bench.learn.dsa import DSA
from dd_bench.models import build
from dd_bench.seeding import generator, seeded
from synth.parts.inner import FlatNetwork, InnerTraining, ReplayedDSA, space_waypoints
from synth.parts.unroll import Method, trajectory_gradient

_SPEC = SPECS["cifar10"]
_MIB = 2**20


@click.command()
@click.argument("steps", nargs=-1, type=int)
@click.option("--device", default="auto", show_default=True)
@click.option("--arch", default="convnet3-x0.25", show_default=True)
@click.option("--images", default=10, show_default=True, help="All of them in every inner step.")
@click.option("--momentum", default=0.9, show_default=True)
@click.option("--repeat", default=10, show_default=True, help="Iterations of which the fastest counts.")
def main(steps: tuple[int, ...], device: str, arch: str, images: int, momentum: float, repeat: int) -> None:
    """Times the three gradients at N in STEPS, by default 10 20 40 80."""
    console, place = Console(highlight=False), choose_device(device)
    size = FlatNetwork(build(arch, _SPEC)).size
    console.print(
        f"{describe_device(place)}, torch {torch.__version__}; one parameter vector: {4 * size / _MIB:.2f} MiB"
    )
    table = Table(
        "N",
        "gradient",
        "s",
        "× unrolled",
        "operations",
        "× unrolled",
        "MiB",
        title=f"{arch}, {images} images, DSA, M = 2",
    )
    for count in steps or (10, 20, 40, 80):
        cells = {
            method: _alone(method, count, str(place), arch, images, momentum, repeat) for method in get_args(Method)
        }
        whole = cells["unrolled"]
        for method, (seconds, memory, operations) in cells.items():
            timed = (f"{seconds:.3f}", f"{seconds / whole[0]:.2f}")
            counted = (f"{operations:,}", f"{operations / whole[2]:.2f}")
            table.add_row(f"{count}", method, *timed, *counted, f"{memory / _MIB:.0f}")
    console.print(table)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations, without those that return a view or what they were given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, operation: Any, _: object, args: Any = (), kwargs: Any = None) -> Any:
        self.count += all(one.alias_info is None for one in operation._schema.returns)
        return operation(*args, **(kwargs or {}))


def _alone(*arguments: str | int | float) -> tuple[float, float, int]:
    """Returns what ``_measure`` does in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, *arguments).result()  # type: ignore[arg-type]


def _measure(
    method: Method, steps: int, device: str, arch: str, images: int, momentum: float, repeat: int
) -> tuple[float, float, int]:
    """Returns the seconds of the fastest iteration, the memory that it took in bytes, and the number of operations."""
    torch.set_num_threads(1)
    keep_freed_memory()
    place, draws = torch.device(device), generator(0)
    with seeded(0):
        network = FlatNetwork(build(arch, _SPEC).to(place))
    start = network.flatten()
    targets = [start + 0.01 * torch.randn(start.shape, generator=draws).to(place) for _ in range(2)]
    pixels = torch.rand(images, *_SPEC.image_shape, generator=draws).to(place)
    labels = torch.eye(_SPEC.num_classes, device=place)[torch.arange(images, device=place) % _SPEC.num_classes]
    rate = torch.tensor(0.01, device=place)
    inner = InnerTraining(network, (None,) * steps, momentum=momentum, augment=ReplayedDSA(DSA(_SPEC), 0))
    waypoints, level, seconds = space_waypoints(targets, steps), _peak(place), []
    iterate = partial(
        trajectory_gradient, inner, start, waypoints, images=pixels, labels=labels, rate=rate, method=method
    )
    for _ in range(repeat + 1):
        begin = _now(place)
        iterate()
        seconds.append(_now(place) - begin)
    memory = _peak(place) - level
    with _Operations() as operations:
        iterate()
    return min(seconds[1:] or seconds), memory, operations.count


def _now(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak(device: torch.device) -> float:
    """Returns the most memory used so far, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
