"""Prints the bytes of a label book, the memory that writing, storing and replaying it take, and the seconds.

    python benchmarks/label_book.py [--dataset cifar100] [--ipc 50] [--epochs 300] [--teacher convnet1-batch-x0.0625]

Random real images get labels of a tape by an untrained network, go to a store, are read again, and an epoch of them is
replayed: the whole way of a label book but for training. Memory is the most that lies above the level before a stage
and belongs to no file (RssAnon of /proc/self/status, sampled; Linux): pages of mapped files can be dropped at any time.
"""

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from dd_bench.data.images import load
from dd_bench.environment import choose_device, describe_device
from dd_bench.learn.tape import Epoch, TapeRecipe, draw_tape
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import seeded
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.targets import HardLabels, TapedLabels
from synth.parts.labeler import label_tape
from synth.parts.sampling import sample_per_class

_MB = 1e6


@click.command()
@click.option("--dataset", default="cifar100", show_default=True)
@click.option("--ipc", default=50, show_default=True)
@click.option("--epochs", default=300, show_default=True)
@click.option("--teacher", default="convnet1-batch-x0.0625", show_default=True, help="Its weights are random.")
@click.option("--device", default="auto", show_default=True)
def main(dataset: str, ipc: int, epochs: int, teacher: str, device: str) -> None:
    """Writes, stores, reads and replays one label book."""
    console, place = Console(highlight=False), choose_device(device)
    data = load(dataset)
    spec = data.spec
    picked = sample_per_class(data.labels, ipc, spec.num_classes, seed=0).flatten()
    images, classes = data.images[picked], data.labels[picked]
    with seeded(0):
        network = build(teacher, spec).to(place).eval()
    table = Table("stage", "MB of memory", "s", title=f"{dataset}, ipc {ipc}, {epochs} epochs")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DDBENCH_HOME"] = folder
        origin = Provenance("random", "benchmark", {}, dataset, data.fingerprint, ipc, 0, "label-book")
        Store().write(SyntheticSet(Images(images[:2]), HardLabels(classes[:2]), origin, "hard"))  # imports matplotlib
        origin = replace(origin, seed=1)
        with _measured(table, "draw the tape"):
            tape = draw_tape(len(images), spec, TapeRecipe(epochs=epochs), seed=0)
        with _measured(table, "label"):
            logits = label_tape(
                images, tape, [network], [1.0], num_classes=spec.num_classes, statistics="batch", device=place,
                run=Run(Path(folder) / "run"),
            )  # fmt: skip
        with _measured(table, "store"):
            stored = Store().write(
                SyntheticSet(Images(images), TapedLabels(logits, tape, classes, 20.0), origin, "fkd-cutmix")
            )
        with _measured(table, "read and verify"):
            found = stored.load()
        with _measured(table, "replay an epoch"):
            labels = found.targets
            assert isinstance(labels, TapedLabels)
            epoch = Epoch.of(labels.tape, epochs - 1, place)
            whole = images.to(place)
            for batch in range(len(epoch.ranges)):
                epoch.pixels(whole, batch)
            labels.epoch(epochs - 1, spec.num_classes).to(place)
    console.print(f"{describe_device(place)}, torch {torch.__version__}")
    console.print(table)
    page = len(images) * spec.num_classes * 2
    console.print(f"one epoch of logits: {page / _MB:.1f} MB, all: {epochs * page / _MB:.1f} MB; bytes of the set:")
    console.print(", ".join(f"{part} {count:,}" for part, count in stored.ledger.items()))


@contextmanager
def _measured(table: Table, stage: str) -> Iterator[None]:
    """Adds a row: the peak of anonymous memory above the level at the start of the block, and its seconds."""
    level, peak, over = _anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], _anonymous() - level)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    begin = time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    over.set()
    thread.join()
    table.add_row(stage, f"{max(peak[0], _anonymous() - level) / _MB:.1f}", f"{seconds:.1f}")


def _anonymous() -> float:
    """Returns the bytes of memory that this process holds and that are in no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
