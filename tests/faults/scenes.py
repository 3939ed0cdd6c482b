"""What is disturbed: every method's smallest configuration from an empty home to a board, in a process of its own."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

import dd_bench.store
from dd_bench.data.catalogue import load_training
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import GraphData
from dd_bench.data.holdout import open_test
from dd_bench.data.specs import SPECS
from dd_bench.environment import library_versions
from dd_bench.files import sha256_file
from dd_bench.run import Run
from dd_bench.store import Store
from eval.cells import read_records
from eval.leaderboard import write
from eval.protocol_kinds import AnyProtocol, TransferProtocol
from eval.protocols import PROTOCOLS
from eval.students import judge, subject_of
from eval.transfer import Destination
from synth import find
from synth.base import Synthesizer, Task, configure
from synth.pipeline import Order, distil
from tests.cli.conftest import PIXEL
from tests.conftest import BLOBS, MOTIFS, stopped
from tests.faults.injection import Fault, arm
from tests.test_contract import CASES, GRAPH_PROTOCOL, PROTOCOL, TAPE_PROTOCOL, TRANSFER_PROTOCOL

STUDENTS = 2
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scene:
    """One method in one configuration on one generated data set."""

    dataset: str
    method: str
    synthesizer: Synthesizer


def _scene(dataset: str, method: str, config: dict[str, Any]) -> Scene:
    return Scene(dataset, method, configure(find(method), config))


SCENES = {str(case.id): _scene(*case.values) for case in CASES}  # type: ignore[arg-type]
library_versions()  # as the configurations: read once, before processes fork from this one


def act(name: str, folder: Path, data: Path, fault: Fault | None) -> None:
    """Plays a scene in ``folder`` as the command line would: faults end as its messages and its exit codes.

    What the process says is appended to ``said_in(folder)``. Every step is saved, so that there is much to interrupt.
    """
    folder.mkdir(exist_ok=True)
    handle = os.open(said_in(folder), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ["DDBENCH_HOME"] = str(folder / "home")
    Run.__init__.__kwdefaults__["save_every_seconds"] = 0.0  # type: ignore[index]
    from dd_bench.cli.main import commands, main

    make_known()
    commands.add_command(click.Command("play", callback=lambda: play(SCENES[name], folder, data)))
    tally = arm(fault, folder) if fault else None
    try:
        main(["play"])
    finally:
        if tally is not None and fault == Fault("count"):
            (folder / "counted").write_text(f"{tally.changes} {tally.observed}")


def make_known() -> None:
    """Adds the generated data sets and the small protocols to what this process knows; its cards cost nothing."""
    SPECS[BLOBS.name], GRAPH_SPECS[MOTIFS.name] = BLOBS, MOTIFS
    for protocol in (PROTOCOL, TAPE_PROTOCOL, TRANSFER_PROTOCOL, GRAPH_PROTOCOL):
        PROTOCOLS[protocol.name] = protocol  # boards look for their summaries
    dd_bench.store.render_card = lambda *_: PIXEL


def said_in(folder: Path) -> Path:
    """Returns the file of what processes say, which is beside the folder: that may be full."""
    return folder.with_name(f"{folder.name}.said")


def play(scene: Scene, folder: Path, data_dir: Path, device: torch.device = _CPU) -> None:
    """Makes the set, judges it by two students, and writes the boards."""
    data = load_training(scene.dataset, data_dir)
    order = Order(scene.method, "tiny", scene.synthesizer)
    stored, _ = distil(order, Task(data, ipc=2, seed=1, device=device), Store())
    protocols: dict[str, AnyProtocol] = {"taped": TAPE_PROTOCOL, "features": TRANSFER_PROTOCOL}
    protocol = GRAPH_PROTOCOL if isinstance(data, GraphData) else protocols.get(stored.load().targets.kind, PROTOCOL)
    destination = Destination.open(protocol, data_dir) if isinstance(protocol, TransferProtocol) else None
    judge(
        subject_of(stored, data, destination), protocol, protocol.architectures[0], runs=STUDENTS,
        test=open_test(scene.dataset, data_dir), device=device, results=folder / "boards" / "results",
    )  # fmt: skip
    write(folder / "boards" / "results", folder / "boards")


def play_in_pieces(scene: Scene, folder: Path, data_dir: Path, device: torch.device) -> None:
    """Plays a scene as one process after the other, each stopped in a stage's first step, until nothing is left."""
    done = False
    while not done:
        with stopped(lambda _, step: step == 0, must=False):
            play(scene, folder, data_dir, device)
            done = True


def left_by(folder: Path) -> tuple[list[str], list[Any]]:
    """Returns the sha256 of the tensors of all sets that were made in ``folder``, and the metrics of all students."""
    tensors = sorted((folder / "home" / "sets").rglob("tensors.safetensors"))
    records = read_records(folder / "boards" / "results")
    return [sha256_file(path) for path in tensors], [one.metrics for _, record in records for one in record.students]
