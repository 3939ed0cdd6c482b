"""Image students: fresh models trained on a synthetic set under a protocol, and scored once on the test split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.files import home
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.learn.losses import cross_entropy, distillation
from dd_bench.learn.training import Labeler, Objective, TrainingRecipe, fit
from dd_bench.models import Whitening, build, encode, encoded_spec, fit_whitening, images_at_once
from dd_bench.networks import has_network, load_network
from dd_bench.seeding import seeded
from dd_bench.stored import StoredSet
from dd_bench.targets import Features, HardLabels, Labels, SoftLabels, TapedLabels, Targets, ThinLabels
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
from eval.protocol_kinds import AnyProtocol, EvalProtocol, GraphProtocol, TapeProtocol, TransferProtocol
from eval.replay import train_by_tape
from eval.transfer import Destination, TransferSubject, full_transfer, scratch_subject

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

_whitenings: dict[str, Whitening] = {}  # the last one, by the fingerprint of its data


@dataclass(frozen=True)
class Subject:
    """What is judged: training images and targets, and what boards say about them.

    Attributes:
        facts: identity, bytes, origin.
        images: (N, C, H, W) uint8, or float32 pixels.
        targets: one for each image.
        suggested_lr: the learning rate that was distilled with the images, or None.
        data: the training split that the images stand for, or None where no protocol needs it.
    """

    facts: SetFacts
    images: Tensor
    targets: Targets
    suggested_lr: float | None = None
    data: ImageData | None = None

    @property
    def judged_on(self) -> tuple[str, str]:
        """Name and fingerprint of the data set whose test split judges: its own."""
        return self.facts.dataset, self.facts.fingerprint

    def check(self, protocol: AnyProtocol) -> None:
        """Raises ConfigError if the protocol is for graphs, or asks for teachers or data that are not there."""
        facts = self.facts
        if not isinstance(protocol, EvalProtocol | TapeProtocol):
            meant = "graphs" if isinstance(protocol, GraphProtocol) else "another data set, which was not given"
            raise ConfigError(
                f"protocol {protocol.name} is for {meant}, but {facts.method} {facts.id} of {facts.dataset} holds "
                "images; use a protocol for images, for example quick"
            )
        if isinstance(self.targets, Features):
            raise ConfigError(
                f"the targets of {facts.method} {facts.id} are features, but protocol {protocol.name} teaches classes; "
                "use one that transfers, for example transfer-small (ddbench list protocols)"
            )
        if isinstance(protocol, TapeProtocol):
            return
        if protocol.labels == "stored" and isinstance(self.targets, TapedLabels | ThinLabels):
            raise ConfigError(
                f"the labels of {facts.method} {facts.id} belong to a tape, but protocol {protocol.name} augments by "
                "itself; use one that replays tapes, for example fkd-quick, or one with class labels, for example hard"
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
        if protocol.whiten and (self.data is None or self.data.fingerprint != facts.fingerprint):
            raise ConfigError(
                f"protocol {protocol.name} whitens by the training split of {facts.dataset}, but {facts.method} "
                f"{facts.id} came without it or with another copy; pass the data that it was made from"
            )

    @property
    def is_all_data(self) -> bool:
        """Whether this is no set, but all real data."""
        return self.facts.ipc == 0

    def students(self, runs: int) -> int:
        """Returns ``runs``: no two students are equal."""
        return runs

    def teachers(self, protocol: AnyProtocol) -> tuple[str, ...]:
        """Returns the ids of the teachers that a student needs while it trains."""
        return self.facts.parents if protocol.labels == "teachers" else ()

    def train(self, protocol: AnyProtocol, architecture: str, bench: Bench) -> Outcome:
        """Trains one student to the last step and has it scored."""
        assert isinstance(protocol, EvalProtocol | TapeProtocol)  # see ``check``
        assert not isinstance(self.targets, Features)  # alike
        spec, images, first = bench.test.spec, self.images, None
        if isinstance(protocol, EvalProtocol) and protocol.whiten:
            assert self.data is not None  # see ``check``
            first = _whitening_of(self.data).to(bench.device)
            spec, images = encoded_spec(spec), encode(images, first, bench.device)
        with seeded(bench.seed):
            model = build(architecture, spec)
        model.to(bench.device)
        if isinstance(protocol, TapeProtocol):
            steps = train_by_tape(model, images, self.targets, protocol, bench, all_data=self.is_all_data)
            return Outcome(_score(model, bench), steps)
        recipe = self._recipe(protocol)
        objective, values = lesson(self.targets, protocol, spec.num_classes)
        fit(
            model, images, values, recipe=recipe, objective=objective, spec=spec, seed=bench.seed, run=bench.run,
            label=bench.label, labeler=self._labeler(protocol, spec, bench.device),
        )  # fmt: skip
        choice = {"lr": recipe.lr} if protocol.learned_lr else {}
        whole = nn.Sequential(first, model) if first else model
        return Outcome(_score(whole, bench), recipe.total_steps(len(images)), choice)

    def _recipe(self, protocol: EvalProtocol) -> TrainingRecipe:
        """Returns how this subject's students are trained: for its own epochs if it is ``full``, at its own rate."""
        recipe = protocol.recipe
        if self.is_all_data:
            recipe = replace(recipe, steps=0, epochs=protocol.full_epochs)
        if protocol.learned_lr and self.suggested_lr is not None:
            recipe = replace(recipe, lr=self.suggested_lr)
        return recipe

    def _labeler(self, protocol: EvalProtocol, spec: DatasetSpec, device: torch.device) -> Labeler | None:
        if protocol.labels != "teachers":
            return None
        teachers = [load_network(parent, spec)[0].to(device) for parent in self.facts.parents]
        return lambda pixels: torch.stack([teacher(pixels) for teacher in teachers]).mean(0)


def subject_of(
    stored: StoredSet, data: "ImageData | GraphData | None" = None, destination: Destination | None = None
) -> "Subject | TransferSubject | GraphSubject":
    """Returns a stored set as a subject; the set is read and verified.

    Args:
        stored: the set.
        data: the data set it was made from; needed for graphs, whose students choose on its validation split, and for
            images under protocols that whiten by its training split, or transfer.
        destination: the data set that students are judged on, if it is another.
    """
    synthetic = stored.load()
    facts, payload, targets = facts_of(stored, synthetic), synthetic.payload, synthetic.targets
    if isinstance(payload, Graphs | Trees):
        from eval.graphs import GraphSubject

        assert not isinstance(targets, Features)  # see ``SyntheticSet``
        return GraphSubject.of(facts, payload, targets, data)
    known = data if isinstance(data, ImageData) else None
    if destination is not None and known is not None:
        return TransferSubject(facts, known.spec, payload.decode(), targets, destination)
    return Subject(facts, payload.decode(), targets, synthetic.suggested_lr, known)


def full_subject(data: ImageData) -> Subject:
    """Returns all real training data with their own labels as a subject: the orientation line of every board."""
    facts = baseline_facts(
        "full", "all real data", dataset=data.spec.name, fingerprint=data.fingerprint, count=len(data.labels),
        parts={"images": data.images.numel(), "labels": len(data.labels)},
    )  # fmt: skip
    return Subject(facts, data.images, HardLabels(data.labels), data=data)


def baselines_of(
    data: "ImageData | GraphData", protocol: AnyProtocol, destination: Destination | None = None
) -> "tuple[Judged, ...]":
    """Returns what stands on every board of ``data`` under ``protocol`` and is no set: all real data, above all."""
    if isinstance(protocol, TransferProtocol):
        if destination is None or not isinstance(data, ImageData):
            return ()
        full = (full_transfer(data, destination),) if protocol.full_epochs else ()
        return (scratch_subject(data, destination), *full)
    if isinstance(protocol, GraphProtocol):
        from dd_bench.data.graphs import GraphData
        from eval.graphs import baselines

        return baselines(data) if isinstance(data, GraphData) else ()
    return (full_subject(data),) if isinstance(data, ImageData) and protocol.full_epochs else ()


def lesson(targets: Labels, protocol: EvalProtocol, num_classes: int) -> tuple[Objective, Tensor]:
    """Returns the loss of a batch and what it compares logits with, (N, K) float32.

    Soft labels are interpolated by mixing as logits, as published for INFER; hard ones as probabilities.
    """
    if protocol.labels != "class" and isinstance(targets, SoftLabels):
        return partial(distillation, temperature=protocol.temperature or targets.temperature), targets.logits.float()
    if protocol.labels == "teachers":  # the values are replaced batch by batch
        temperature = protocol.temperature or 1.0
        return partial(distillation, temperature=temperature), torch.zeros(len(targets.classes), num_classes)
    return cross_entropy, F.one_hot(targets.classes, num_classes).float()


def _score(model: nn.Module, bench: Bench) -> Mapping[str, float]:
    """Returns the test metrics of a trained student; it is left in evaluation mode."""
    at_once = images_at_once(1024, bench.test.spec.image_shape)
    metrics: Mapping[str, float] = bench.test.score(
        bench.student, model.eval(), device=bench.device, batch_size=at_once
    )
    return metrics


def _whitening_of(data: ImageData) -> Whitening:
    """Returns the whitening of a training split, fitted once for all students of a data set; CIFAR's takes a minute."""
    if data.fingerprint not in _whitenings:
        _whitenings.clear()  # data sets come one after the other, and each whitening takes 75 MB and more
        _whitenings[data.fingerprint] = fit_whitening(data.images)
    return _whitenings[data.fingerprint]
