"""The course of ``ddbench eval``: which sets, their controls and baselines, and what is passed over."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch

    from dd_bench.data.graphs import GraphData
    from dd_bench.data.images import ImageData
    from dd_bench.errors import DDBenchError
    from dd_bench.mirror import Mirror
    from dd_bench.sets import Control
    from dd_bench.stored import StoredSet
    from eval.judging import AnyTest, Judged
    from eval.protocol_kinds import AnyProtocol
    from eval.transfer import Destination


@dataclass
class Judge:
    """What one call of ``ddbench eval`` was told, and what has come of it.

    Attributes:
        protocol: for all sets, or None for each set's own.
        architectures: of the students, or none for the protocol's own.
        runs: students of each set.
        control_runs: students of each control.
        device: where to train.
        data_dir: where to look for data first.
        results: folder of the records.
        patient: whether a set that cannot be judged is passed over; sets that were named must be judged.
        mirror: of the training curves, if asked for.
        trained: students so far.
        faults: what was told of sets that were passed over.
        left: cells with students that other processes were training.
        destinations: the data sets that transferred students are judged on, by protocol id, or why there is none.
    """

    protocol: "AnyProtocol | None"
    architectures: Sequence[str]
    runs: int
    control_runs: int
    device: "torch.device"
    data_dir: Path | None
    results: Path
    patient: bool
    mirror: "Mirror | None" = None
    trained: int = 0
    faults: set[str] = field(default_factory=set)
    left: "list[partial[int]]" = field(default_factory=list)
    destinations: "dict[str, Destination | DDBenchError]" = field(default_factory=dict)

    @contextmanager
    def passing_over(self) -> Iterator[None]:
        """Tells of a fault within the block and ends the block; if sets were named, the fault goes on."""
        from dd_bench.errors import DDBenchError, InterruptedRunError

        try:
            yield
        except InterruptedRunError:
            raise
        except DDBenchError as error:
            if not self.patient:
                raise
            if (line := " ".join(str(error).split())) not in self.faults:  # a damaged teacher spoils many sets
                click.echo(f"passed over: {line}", err=True)
            self.faults.add(line)

    def choose(self, references: Sequence[str]) -> "list[StoredSet]":
        """Returns the sets that were asked for, or everything in the store that can be opened."""
        from dd_bench.errors import DDBenchError
        from dd_bench.store import Store
        from dd_bench.stored import DamagedSet

        store, found = Store(), []
        if references:
            return [store.find(reference) for reference in references]
        for one in store.list():
            with self.passing_over():
                if isinstance(one, DamagedSet):
                    raise one.error
                found.append(one)
        if not found:
            raise DDBenchError(
                f"no sets to judge in {store.root}; make one first, for example: ddbench synth --method infer --ipc 10"
            )
        return found

    def judge_all(self, chosen: "Sequence[StoredSet]", data: "ImageData | GraphData") -> None:
        """Judges sets of one data set, then their controls, then baselines such as all real data."""
        from dd_bench.data.holdout import open_test
        from dd_bench.data.images import ImageData
        from eval.protocols import find_protocol
        from eval.students import baselines_of, check_same_data

        test = open_test(data.spec.name, self.data_dir)
        plans, silent = [], []
        for stored in chosen:
            with self.passing_over():
                origin = stored.provenance
                check_same_data(stored.id, origin.dataset, origin.fingerprint, test)
                protocol = self.protocol or find_protocol(stored.manifest.native_protocol)
                self._destination(protocol, data)  # before controls are made for students that have nowhere to go
                if not self.patient or _answers(stored, protocol):
                    plans.append((stored, protocol))
                else:
                    silent.append(stored.id)
        if silent:
            click.echo(
                f"without teachers, which the protocol asks, and not judged under it: {', '.join(silent)}", err=True
            )
        # What stands in the store only as another set's control gets a control's runs, and comes after the entries.
        controls = {control.recipe for stored in chosen for control in stored.provenance.controls}
        plans.sort(key=lambda plan: plan[0].provenance.recipe in controls)
        for stored, protocol in plans:
            as_control = stored.provenance.recipe in controls
            self._judge_set(stored, protocol, self.control_runs if as_control else self.runs, test, data)
        for stored, protocol in plans:
            for control in stored.provenance.controls:
                for seed in control.seeds:
                    with self.passing_over():
                        made = self._made(control, stored.provenance.ipc, seed, data)
                        if _answers(made, protocol):
                            self._judge_set(made, protocol, self.control_runs, test, data)
        # Students of graphs take seconds; those of all real images take longer than all others together.
        enough = max(3, self.control_runs) if isinstance(data, ImageData) else self.runs
        for protocol in {protocol.id: protocol for _, protocol in plans}.values():
            with self.passing_over():
                destination = self._destination(protocol, data)
                for baseline in baselines_of(data, protocol, destination):
                    with self.passing_over():
                        self._judge(baseline, protocol, enough, destination.test if destination else test)
        self._finish()

    def _made(self, control: "Control", ipc: int, seed: int, data: "ImageData | GraphData") -> "StoredSet":
        """Returns a control from the store, after making it if it is not there."""
        from dd_bench.store import Store
        from synth.base import Task
        from synth.pipeline import distil, order_control

        stored, _ = distil(order_control(control), Task(data, ipc=ipc, seed=seed, device=self.device), Store())
        return stored

    def _judge_set(
        self, stored: "StoredSet", protocol: "AnyProtocol", runs: int, test: "AnyTest", data: "ImageData | GraphData"
    ) -> None:
        from eval.students import subject_of

        with self.passing_over():
            destination = self._destination(protocol, data)
            self._judge(
                subject_of(stored, data, destination), protocol, runs, destination.test if destination else test
            )

    def _destination(self, protocol: "AnyProtocol", data: "ImageData | GraphData") -> "Destination | None":
        """Returns the data set that a protocol transfers sets of ``data`` to, or None; it is looked for once."""
        from dd_bench.errors import DDBenchError
        from eval.protocol_kinds import TransferProtocol
        from eval.transfer import Destination, check_source

        if not isinstance(protocol, TransferProtocol):
            return None
        check_source(protocol, data.spec.name)
        if protocol.id not in self.destinations:
            try:
                self.destinations[protocol.id] = Destination.open(protocol, self.data_dir)
            except DDBenchError as error:
                self.destinations[protocol.id] = error
        found = self.destinations[protocol.id]
        if isinstance(found, DDBenchError):
            raise found
        return found

    def _judge(self, subject: "Judged", protocol: "AnyProtocol", runs: int, test: "AnyTest") -> None:
        """Trains what nobody else is training; what is left to others is waited for at the end."""
        from eval.students import is_judged, judge

        for architecture in self.architectures or protocol.students_for(test.spec):
            cell = partial(
                judge, subject, protocol, architecture, runs=runs, test=test, device=self.device, results=self.results,
                mirror=self.mirror,
            )  # fmt: skip
            self.trained += cell(wait=False)
            if not is_judged(subject, protocol, architecture, runs=runs, results=self.results):
                self.left.append(cell)

    def _finish(self) -> None:
        """Waits for the students that other processes were training, and trains those they did not finish."""
        for cell in self.left:
            with self.passing_over():
                self.trained += cell()
        self.left.clear()


def _answers(stored: "StoredSet", protocol: "AnyProtocol") -> bool:
    """Says whether the set has what the protocol asks for; hard labels have no teachers."""
    return protocol.labels != "teachers" or bool(stored.provenance.parents)
