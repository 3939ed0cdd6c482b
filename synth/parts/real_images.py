"""Real images as a set: with their classes, with what teachers say of them, or with features of a target network."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from dd_bench.errors import ConfigError
from dd_bench.run import Run
from dd_bench.sets import Images
from dd_bench.targets import HardLabels, SoftLabels
from synth.base import ControlPlan, Distilled, Task, random_control
from synth.parts.labeler import label_images
from synth.parts.tape_labels import TapePlan, label_by_tape
from synth.parts.target_model import TargetModel
from synth.parts.teachers import Teacher, TeacherPlan, obtain_teachers


@dataclass(frozen=True)
class Labelling:
    """Who labels real images.

    Attributes:
        teachers: who labels the images; none for hard labels.
        label_dtype: of soft labels, ``float16`` or ``float32``.
        temperature: at which students match soft labels.
        tape: how teachers label every view of a tape, instead of the plain images once.
    """

    teachers: TeacherPlan | None = None
    label_dtype: Literal["float16", "float32"] = "float16"
    temperature: float = 30.0
    tape: TapePlan | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < inf:
            raise ConfigError(f"temperature is {self.temperature}; expected a positive number")
        if self.tape is not None and self.teachers is None:
            raise ConfigError("a tape is set, but no teachers to label it; expected both, or neither")

    def label(self, picked: Tensor, task: Task, run: Run, *, shapers: Sequence[Teacher] = ()) -> Distilled:
        """Returns the training images at ``picked`` (m,) with labels; ``shapers`` are teachers that helped to pick."""
        payload, classes = Images(task.images.images[picked]), task.images.labels[picked]
        if self.tape is not None and self.teachers is not None:
            return label_by_tape(payload, classes, self.teachers, self.tape, task=task, run=run, shapers=shapers)
        teachers = [] if self.teachers is None else obtain_teachers(self.teachers, task)
        involved = {teacher.facts.id: teacher.facts for teacher in (*shapers, *teachers)}
        targets: HardLabels | SoftLabels = HardLabels(classes)
        if teachers:
            logits = label_images(payload.decode(), [one.model for one in teachers], device=task.device, run=run)
            targets = SoftLabels(logits.to(getattr(torch, self.label_dtype)), classes, self.temperature)
        return Distilled(payload, targets, tuple(involved), sum(facts.seconds for facts in involved.values()))

    def controls(self, protocol: str) -> tuple[ControlPlan, ...]:
        """Returns random real images with such labels, and with hard ones if these are not."""
        hard = random_control(protocol)
        if self.teachers is None:
            return (hard,)
        if self.tape is not None:
            return random_control(protocol, teachers=self.teachers, tape=self.tape), hard
        soft = random_control(
            protocol, teachers=self.teachers, label_dtype=self.label_dtype, temperature=self.temperature
        )
        return soft, hard


def with_targets(picked: Tensor, target: TargetModel, task: Task) -> Distilled:
    """Returns the training images at ``picked`` (m,) with their targets."""
    return Distilled(
        payload=Images(task.images.images[picked]),
        targets=target.as_features(target.plain[picked]),
        parents=(target.facts.id,),
        teacher_seconds=target.facts.seconds,
    )
