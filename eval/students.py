"""Image students: fresh models trained on a synthetic set under a protocol, and scored once on the test split."""

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.files import home
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.learn.losses import cross_entropy, distillation
from dd_bench.learn.training import Labeler, Objective, fit
from dd_bench.models import build
from dd_bench.networks import has_network, load_network
from dd_bench.seeding import seeded
from dd_bench.sets import HardLabels, SoftLabels, Targets
from dd_bench.store import StoredSet
from eval.cells import SetFacts
from eval.judging import (
    Bench,
    Judged,
    Outcome,
    baseline_facts,
    check_same_data,
    facts_of,
    is_judged,
    judge,
    student_seed,
)
from eval.protocols import AnyProtocol, EvalProtocol

if TYPE_CHECKING:
    from dd_bench.data.graphs import GraphData
    from eval.graphs import GraphSubject

__all__ = [
    "Subject",
    "check_same_data",
    "full_subject",
    "is_judged",
    "judge",
    "lesson",
    "student_seed",
    "subject_of",
]


@dataclass(frozen=True)
class Subject:
    """What is judged: training images and targets, and what boards say about them.

    Attributes:
        facts: identity, bytes, origin.
        images: (N, C, H, W) uint8, or float32 pixels.
        targets: one for each image.
    """

    facts: SetFacts
    images: Tensor
    targets: Targets

    def check(self, protocol: AnyProtocol) -> None:
        """Raises ConfigError if the protocol is for graphs, or asks for teachers that the set does not have."""
        facts = self.facts
        if not isinstance(protocol, EvalProtocol):
            raise ConfigError(
                f"protocol {protocol.name} is for graphs, but {facts.method} {facts.id} of {facts.dataset} holds "
                "images; use a protocol for images, for example quick"
            )
        parents = self.teachers(protocol)
        asked = f"protocol {protocol.name} asks the teachers of a set, but"
        if protocol.labels == "teachers" and not parents:
            raise ConfigError(f"{asked} {facts.method} {facts.id} has none; use a protocol with stored or class labels")
        if absent := [parent for parent in parents if not has_network(parent)]:
            raise ConfigError(
                f"{asked} {', '.join(absent)} of {facts.method} {facts.id} are not in {home() / 'teachers'}; copy them "
                "there, or synthesise the set again here"
            )

    def students(self, runs: int) -> int:
        """Returns ``runs``: no two students are equal."""
        return runs

    def teachers(self, protocol: AnyProtocol) -> tuple[str, ...]:
        """Returns the ids of the teachers that a student needs while it trains."""
        return self.facts.parents if protocol.labels == "teachers" else ()

    def train(self, protocol: AnyProtocol, architecture: str, bench: Bench) -> Outcome:
        """Trains one student to the last step and has it scored."""
        assert isinstance(protocol, EvalProtocol)  # see ``check``
        spec: DatasetSpec = bench.test.spec
        with seeded(bench.seed):
            model = build(architecture, spec)
        model.to(bench.device)
        recipe = protocol.recipe
        if self.facts.ipc == 0:
            recipe = replace(recipe, steps=0, epochs=protocol.full_epochs)
        objective, values = lesson(self.targets, protocol, spec.num_classes)
        fit(
            model, self.images, values, recipe=recipe, objective=objective, spec=spec, seed=bench.seed, run=bench.run,
            label=bench.label, labeler=self._labeler(protocol, spec, bench.device),
        )  # fmt: skip
        model.eval()
        metrics = bench.test.score(bench.student, model, device=bench.device)
        return Outcome(metrics, recipe.total_steps(len(self.images)))

    def _labeler(self, protocol: EvalProtocol, spec: DatasetSpec, device: torch.device) -> Labeler | None:
        if protocol.labels != "teachers":
            return None
        teachers = [load_network(parent, spec)[0].to(device) for parent in self.facts.parents]
        return lambda pixels: torch.stack([teacher(pixels) for teacher in teachers]).mean(0)


def subject_of(stored: StoredSet, data: "ImageData | GraphData | None" = None) -> "Subject | GraphSubject":
    """Returns a stored set as a subject; the set is read and verified.

    Args:
        stored: the set.
        data: the data set it was made from; needed for graphs, whose students choose on its validation split.
    """
    synthetic = stored.load()
    facts, payload = facts_of(stored, synthetic), synthetic.payload
    if isinstance(payload, Graphs | Trees):
        from eval.graphs import GraphSubject

        return GraphSubject.of(facts, payload, synthetic.targets, data)
    return Subject(facts, payload.decode(), synthetic.targets)


def full_subject(data: ImageData) -> Subject:
    """Returns all real training data with their own labels as a subject: the orientation line of every board."""
    facts = baseline_facts(
        "full", "all real data", dataset=data.spec.name, fingerprint=data.fingerprint, count=len(data.labels),
        parts={"images": data.images.numel(), "labels": len(data.labels)},
    )  # fmt: skip
    return Subject(facts, data.images, HardLabels(data.labels))


def baselines_of(data: "ImageData | GraphData", protocol: AnyProtocol) -> "tuple[Judged, ...]":
    """Returns what stands on every board of ``data`` under ``protocol`` and is no set: all real data, above all."""
    if not isinstance(protocol, EvalProtocol):
        from dd_bench.data.graphs import GraphData
        from eval.graphs import baselines

        return baselines(data) if isinstance(data, GraphData) else ()
    return (full_subject(data),) if isinstance(data, ImageData) and protocol.full_epochs else ()


def lesson(targets: Targets, protocol: EvalProtocol, num_classes: int) -> tuple[Objective, Tensor]:
    """Returns the loss of a batch and what it compares logits with, (N, K) float32.

    Soft labels are interpolated by mixing as logits, as published for INFER; hard ones as probabilities.
    """
    if protocol.labels != "class" and isinstance(targets, SoftLabels):
        return partial(distillation, temperature=protocol.temperature or targets.temperature), targets.logits.float()
    if protocol.labels == "teachers":  # the values are replaced batch by batch
        temperature = protocol.temperature or 1.0
        return partial(distillation, temperature=temperature), torch.zeros(len(targets.classes), num_classes)
    return cross_entropy, F.one_hot(targets.classes, num_classes).float()
