"""What judging images and graphs have in common: cells, locks, records, resumption. Training is the subjects' own."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import JsonValue

from dd_bench.data.holdout import GraphTestSplit, TestSplit
from dd_bench.environment import describe_device, library_versions
from dd_bench.errors import BusyError, InvalidSetError
from dd_bench.files import locked
from dd_bench.mirror import Mirror
from dd_bench.models import check_fit
from dd_bench.networks import network_bytes
from dd_bench.run import Run, drop_run, open_run
from dd_bench.seeding import derive_seed
from dd_bench.sets import SyntheticSet
from dd_bench.stored import StoredSet
from eval.cells import ControlLink, Record, SetFacts, Student, add_student, missing_students
from eval.protocol_kinds import AnyProtocol

AnyTest = TestSplit | GraphTestSplit


@dataclass(frozen=True)
class Bench:
    """One student's place of work.

    Attributes:
        student: its id, by which the test split knows it.
        label: its name, for people and for its stage of the run.
        seed: of everything that is drawn.
        run: where its training is kept.
        test: the test split that judges the subject, to be read once; of the subject's own kind.
        device: where to train.
    """

    student: str
    label: str
    seed: int
    run: Run
    test: Any
    device: torch.device


@dataclass(frozen=True)
class Outcome:
    """What came of a student: its test metrics, its steps, and what its set or a validation split chose for it."""

    metrics: Mapping[str, float]
    steps: int
    choice: Mapping[str, JsonValue] = field(default_factory=dict)


class Judged(Protocol):
    """What ``judge`` asks of a subject, be it of images or of graphs."""

    @property
    def facts(self) -> SetFacts:
        """Identity, bytes, origin."""

    @property
    def judged_on(self) -> tuple[str, str]:
        """Name and fingerprint of the data set whose test split judges it."""

    def check(self, protocol: AnyProtocol) -> None:
        """Raises ConfigError unless the subject can be judged under the protocol."""

    def students(self, runs: int) -> int:
        """Returns how many students to train where ``runs`` are asked for; fewer where all would be equal."""

    def teachers(self, protocol: AnyProtocol) -> tuple[str, ...]:
        """Returns the ids of the teachers that a student needs while it trains."""

    def train(self, protocol: AnyProtocol, architecture: str, bench: Bench) -> Outcome:
        """Trains one student and has it scored."""


def judge(
    subject: Judged, protocol: AnyProtocol, architecture: str, *, runs: int, test: AnyTest, device: torch.device,
    results: Path, mirror: Mirror | None = None, wait: bool = True,
) -> int:  # fmt: skip
    """Trains the students of a cell that are missing, records each as soon as it is scored, and returns how many.

    Args:
        subject: what students train on.
        protocol: how.
        architecture: of the student.
        runs: students the record should hold.
        test: the test split of the data set that the subject is judged on.
        device: where to train.
        results: folder of the records.
        mirror: optional mirror of the training curves, the scores and the record's path.
        wait: whether to stay until students that another process is training are on record, or leave them to it.

    Raises:
        InvalidSetError: if the set was made from other data than ``test`` belongs to.
        ConfigError: if the protocol or the architecture is not for such sets, or the protocol asks for teachers that
            the set does not have.
    """
    facts = subject.facts
    check_same_data(facts.id, *subject.judged_on, test)
    check_fit(architecture, test.spec)
    subject.check(protocol)
    blank, runs = _blank_record(subject, protocol, architecture), subject.students(runs)
    trained = 0
    # Several evaluators share a cell student by student: first what nobody is at, then, patiently, what is left.
    for wait_seconds in (0, -1) if wait else (0,):
        missing = missing_students(results, blank, runs)
        for index in range(runs):
            cell = f"{facts.id}-{facts.sha256[:8]}-{protocol.id}-{architecture}-{index}"
            if index not in missing:
                drop_run(f"student-{cell}")
                continue
            with suppress(BusyError), locked(f"student {cell}", wait_seconds=wait_seconds):
                if index not in missing_students(results, blank, runs):
                    drop_run(f"student-{cell}")  # of another process, which was killed before it could
                    continue
                part = mirror.part(f"{facts.id} {protocol.name} {architecture}") if mirror else None
                with open_run(f"student-{cell}", mirror=part) as run:
                    seed = student_seed(subject, protocol, architecture, index)
                    bench = Bench(cell, f"student {index + 1} {facts.method}", seed, run, test, device)
                    outcome = subject.train(protocol, architecture, bench)
                    student = _student(index, bench, outcome)
                    path = add_student(results, blank, student)
                    if part:
                        scores = {f"student {index + 1} {name}": score for name, score in student.metrics.items()}
                        part.summarise({"record": str(path)} | scores)
                trained += 1
    return trained


def is_judged(subject: Judged, protocol: AnyProtocol, architecture: str, *, runs: int, results: Path) -> bool:
    """Returns whether the record of a cell holds ``runs`` students, or as many as the subject can have."""
    return not missing_students(results, _blank_record(subject, protocol, architecture), subject.students(runs))


def student_seed(subject: Judged, protocol: AnyProtocol, architecture: str, index: int) -> int:
    """Returns the seed of a student, from the set's bytes (not its name), the protocol's id, and the index."""
    return derive_seed("student", subject.facts.sha256, protocol.id, architecture, index)


def check_same_data(set_id: str, dataset: str, fingerprint: str, test: AnyTest) -> None:
    """Raises InvalidSetError unless a set was made from the copy of the data that ``test`` belongs to."""
    if fingerprint != test.fingerprint:
        raise InvalidSetError(
            f"set {set_id} was made from {dataset} with fingerprint {fingerprint[:12]}, but the data here have "
            f"{test.fingerprint[:12]}; point --data-dir at the copy it was made from, or synthesise it again"
        )


def facts_of(stored: StoredSet, synthetic: SyntheticSet) -> SetFacts:
    """Returns what boards say about a stored set; ``synthetic`` is what it holds."""
    origin = stored.provenance
    return SetFacts(
        id=stored.id,
        sha256=stored.sha256,
        method=origin.method,
        preset=origin.preset,
        dataset=origin.dataset,
        fingerprint=origin.fingerprint,
        ipc=origin.ipc,
        seed=origin.seed,
        recipe=origin.recipe,
        labels=synthetic.targets.kind,
        images=len(synthetic),
        bytes=dict(stored.ledger),
        controls=tuple(
            ControlLink(method=control.method, labels=control.labels, recipe=control.recipe)
            for control in origin.controls
        ),
        parents=origin.parents,
        wall_seconds=origin.wall_seconds,
        teacher_seconds=origin.teacher_seconds,
        device=origin.device,
    )


def baseline_facts(
    method: str, preset: str, *, dataset: str, fingerprint: str, count: int, parts: Mapping[str, int]
) -> SetFacts:
    """Returns what boards say about a baseline, which is made of all ``count`` real items; ``parts`` are bytes."""
    return SetFacts(
        id=f"{method}-{fingerprint[:12]}",
        sha256=fingerprint,
        method=method,
        preset=preset,
        dataset=dataset,
        fingerprint=fingerprint,
        ipc=0,
        seed=0,
        recipe=f"{method}-{fingerprint[:12]}",
        labels="hard",
        images=count,
        bytes=dict(parts),
        wall_seconds=0.0,
        teacher_seconds=0.0,
        device="none",
    )


def _blank_record(subject: Judged, protocol: AnyProtocol, architecture: str) -> Record:
    return Record(
        protocol_name=protocol.name,
        protocol_id=protocol.id,
        protocol=protocol.as_json(),
        architecture=architecture,
        teacher_bytes=sum(network_bytes(parent) for parent in subject.teachers(protocol)),
        target_fingerprint=target if (target := subject.judged_on[1]) != subject.facts.fingerprint else "",
        set=subject.facts,
    )


def _student(index: int, bench: Bench, outcome: Outcome) -> Student:
    return Student(
        index=index,
        seed=bench.seed,
        metrics=dict(outcome.metrics),
        steps=outcome.steps,
        train_seconds=round(bench.run.seconds, 3),
        device=describe_device(bench.device),
        threads=torch.get_num_threads(),
        versions=library_versions(),
        date=datetime.now(UTC).date().isoformat(),
        choice=dict(outcome.choice),
    )
