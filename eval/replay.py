"""Students that replay a tape: the set's own with the labels that belong to it, or one drawn for the student."""

from dataclasses import dataclass, replace
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.learn.losses import cross_entropy, distillation
from dd_bench.learn.tape import Epoch, Lessons, constant_lessons, draw_tape
from dd_bench.learn.tape_training import TapeTraining, fit_tape
from dd_bench.learn.training import Objective, batch_bounds
from dd_bench.seeding import derive_seed
from dd_bench.tapes import Tape
from dd_bench.targets import HardLabels, Labels, TapedLabels, ThinLabels
from eval.judging import Bench
from eval.protocol_kinds import TapeProtocol


@dataclass(frozen=True)
class Replay:
    """What a student is trained on: a tape, what it is told in each epoch, and by which loss."""

    tape: Tape
    lessons: Lessons
    objective: Objective


def train_by_tape(
    model: nn.Module, images: Tensor, targets: Labels, protocol: TapeProtocol, bench: Bench, *, all_data: bool
) -> int:
    """Trains a fresh network under ``protocol``, in place, and returns its steps.

    Args:
        model: the student, on the bench's device.
        images: of the set, (N, C, H, W).
        targets: one for each.
        protocol: how.
        bench: the student's seed, its run and label.
        all_data: whether the set is all real data, which is trained on for ``protocol.full_epochs``.
    """
    training = protocol.training
    if all_data:
        training = replace(training, steps=0, epochs=protocol.full_epochs)
    replay = replay_of(targets, protocol, training, len(images), bench.test.spec, seed=bench.seed)
    fit_tape(
        model, images, replay.tape, replay.lessons, training=training, objective=replay.objective, run=bench.run,
        label=bench.label,
    )  # fmt: skip
    return training.total_steps(len(replay.tape.ranges()))


def replay_of(
    targets: Labels, protocol: TapeProtocol, training: TapeTraining, count: int, spec: DatasetSpec, *, seed: int
) -> Replay:
    """Returns the tape of a set of ``count`` images, or one drawn from ``seed``, with lessons and loss.

    Labels of a tape are told as they are; soft and hard ones are mixed as the images are, soft ones as logits.
    """
    if isinstance(targets, TapedLabels | ThinLabels):
        return recorded(targets, spec.num_classes, protocol.temperature or targets.temperature)
    batches = len(batch_bounds(count, protocol.tape.batch))
    recipe = replace(protocol.tape, epochs=training.epochs or -(-training.steps // batches))
    tape = draw_tape(count, spec, recipe, derive_seed("student tape", seed))
    if isinstance(targets, HardLabels):
        return Replay(tape, constant_lessons(F.one_hot(targets.classes, spec.num_classes).float(), spec), cross_entropy)
    objective = partial(distillation, temperature=protocol.temperature or targets.temperature)
    return Replay(tape, constant_lessons(targets.logits.float(), spec), objective)


def recorded(labels: TapedLabels | ThinLabels, num_classes: int, temperature: float) -> Replay:
    """Returns the tape that the labels belong to, with them."""
    return Replay(labels.tape, _read(labels, num_classes), partial(distillation, temperature=temperature))


def _read(labels: TapedLabels | ThinLabels, num_classes: int) -> Lessons:
    def lesson(number: int, epoch: Epoch) -> Tensor:
        return labels.epoch(number, num_classes).to(epoch.order.device, non_blocking=True)

    return lesson
