"""Prints what Mirage costs: seconds of distillation, memory by arcs, and a training step on shared subtrees.

    python benchmarks/mirage.py [--steps 1] [DATASET ...]

Seconds are of the processor, of one thread, so that a busy machine changes little. Data sets that are not here, and
cannot be downloaded, are passed over. Not a test: it asserts nothing.
"""

import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dd_bench.colours import refine
from dd_bench.data.graphs import GraphData, load
from dd_bench.environment import describe_device
from dd_bench.errors import DDBenchError
from dd_bench.graphs import MessagePlan, plan_graphs
from dd_bench.models import build
from dd_bench.seeding import seeded
from synth.base import choose_preset
from synth.mirage import Mirage
from synth.parts.budgets import members_of
from synth.parts.tree_sets import Forest, TreeSet, merge_labels

_NAMES = ("ogbg-molbace", "nci1", "imdb-binary", "dd", "ogbg-molhiv")
_LAYERS = 2


@click.command()
@click.argument("names", nargs=-1, metavar="[DATASET]...")
@click.option("--steps", default=1, show_default=True, help="Training steps to time.")
def main(names: tuple[str, ...], steps: int) -> None:
    """Times distillation with the published hops and thresholds, and full-batch steps on all training graphs."""
    torch.set_num_threads(1)
    console = Console(highlight=False)
    console.print(f"{describe_device(torch.device('cpu'))}, one thread, torch {torch.__version__}")
    distillation = Table(
        "data set", "graphs", "arcs", "hops", "trees", "refine, s", "mine, s", "MB at most", "bytes an arc",
        title="Distillation, preset paper",
    )  # fmt: skip
    training = Table("data set", "nodes", "states", "graph step, s", "tree step, s", "faster",
                     title=f"Full-batch step, gin{_LAYERS}, all training graphs")  # fmt: skip
    for name in names or _NAMES:
        try:
            data = load(name)
        except DDBenchError as error:
            console.print(f"passed over: {str(error)[:120]} …")
            continue
        for row in _distil(data):
            distillation.add_row(*row)
        training.add_row(*_train(data, steps))
    console.print(distillation)
    console.print(training)


def _distil(data: GraphData) -> list[tuple[str, ...]]:
    """Returns a row for a quarter, a half and all of the training graphs; only all of them are mined."""
    _, method = choose_preset(Mirage, "paper", data.spec.name)
    rows: list[tuple[str, ...]] = []
    for part in (0.25, 0.5, 1.0):
        batch = merge_labels(data.graphs, method.kept_labels).pick(torch.arange(int(part * len(data))))
        seconds = min(_seconds(lambda batch=batch: refine(batch, method.hops)) for _ in range(3))  # type: ignore[misc]
        tracemalloc.start()
        trees = len(refine(batch, method.hops).firsts[-1])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        mine = ""
        if part == 1.0 and method.theta:
            forest = Forest.grow(batch, method.hops, degrees=False)
            members = members_of(data.labels, data.spec.num_classes)
            mine = f"{_seconds(lambda forest=forest, members=members: method.mine(forest, members, method.theta)):.3f}"  # type: ignore[misc]
        arcs = batch.arcs.shape[1]
        rows.append((data.spec.name, f"{len(batch):,}", f"{arcs:,}", str(method.hops), f"{trees:,}", f"{seconds:.3f}",
                     mine, f"{peak / 1e6:.1f}", f"{peak / arcs:.0f}"))  # fmt: skip
    return rows


def _train(data: GraphData, steps: int) -> tuple[str, ...]:
    forest = Forest.grow(data.graphs, _LAYERS, degrees=False)
    bounds = np.searchsorted(forest.graphs, np.arange(len(data) + 1))
    sets = [
        TreeSet(0, tuple(forest.trees[start:end].tolist()), tuple(forest.counts[start:end].astype(float).tolist()), 1.0)
        for start, end in pairwise(bounds.tolist())
    ]
    shared, plain = forest.payload(sets).plan(_LAYERS), plan_graphs(data.graphs, _LAYERS)
    slow, fast = (_step_seconds(data, plan, steps) for plan in (plain, shared))
    states = sum(len(hop.own) for hop in shared.hops) // _LAYERS
    return (data.spec.name, f"{len(plain.nodes):,}", f"{states:,}", f"{slow:.3f}", f"{fast:.3f}", f"{slow / fast:.1f}×")


def _step_seconds(data: GraphData, plan: MessagePlan, steps: int) -> float:
    with seeded(0):
        model = build(f"gin{_LAYERS}", data.spec)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(plan), data.labels)
        loss.backward()  # type: ignore[no-untyped-call]

    step()  # the first one allocates
    return min(_seconds(step) for _ in range(steps))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
