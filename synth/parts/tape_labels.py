"""Labels of a recorded tape for any set of images: who labels, with which statistics, and how much of it is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from torch import Tensor

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from dd_bench.sets import Compensated, Images
from dd_bench.targets import TapedLabels, ThinLabels
from synth.base import Distilled, Task
from synth.parts.inversion import InversionRecipe
from synth.parts.labeler import Statistics, label_tape
from synth.parts.teachers import Teacher, TeacherPlan, obtain_teachers
from synth.parts.voting import PriorPlan, measure_priors, vote_weights

_RECOVERY = InversionRecipe(steps=4000, alpha=0.01, smallest_crop=0.08, mirror=True)
_PRIOR = PriorPlan(_RECOVERY, TapeRecipe(), TapeTraining(epochs=300))


@dataclass(frozen=True)
class TapePlan:
    """How views of images are labelled. The defaults are CV-DD's for CIFAR.

    Attributes:
        recipe: of the tape; fewer epochs than students train mean a smaller book, which they read again.
        labeller: the whole ``committee`` of teachers, or the ``first`` alone.
        statistics: BatchNorm's while labelling, of the ``batch`` at hand (BSSL) or the teachers' ``running`` ones.
        weighting: of a committee's logits: by ``prior``, or ``equal``.
        vote_temperature: T of the weights by prior.
        prior: how the worth of each teacher is measured.
        temperature: at which students match the labels.
        top: logits that are kept of each label, the largest; 0: all.
    """

    recipe: TapeRecipe = field(default_factory=TapeRecipe)
    labeller: Literal["committee", "first"] = "committee"
    statistics: Statistics = "batch"
    weighting: Literal["prior", "equal"] = "prior"
    vote_temperature: float = 10.0
    prior: PriorPlan = _PRIOR
    temperature: float = 20.0
    top: int = 0

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("vote_temperature", 0 < self.vote_temperature < inf, "more than 0"),
            ("temperature", 0 < self.temperature < inf, "more than 0"),
            ("top", self.top >= 0, "at least 0"),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def words(self) -> str:
        """What boards call random images with such labels."""
        who = "committee" if self.labeller == "committee" else "first teacher"
        kept = f", top {self.top}" if self.top else ""
        return f"{who}, {self.statistics} statistics, {self.recipe.epochs} epochs{kept}"

    def check(self, spec: DatasetSpec) -> None:
        """Raises ConfigError if as many logits or more are to be kept than ``spec`` has classes."""
        if self.top >= spec.num_classes:
            raise ConfigError(f"top is {self.top} of {spec.num_classes} classes; expected fewer, or 0 to keep all")

    def by(self, teachers: TeacherPlan) -> tuple[TeacherPlan, "TapePlan"]:
        """Returns who labels, and the plan as it is for them; equal labels have one plan, whoever asks for them."""
        if self.labeller == "committee":
            return teachers, self
        return teachers.only_first(), replace(self, labeller="committee", weighting="equal")


def label_by_tape(
    payload: Images | Compensated, classes: Tensor, teachers: TeacherPlan, plan: TapePlan, *, task: Task, run: Run,
    shapers: Sequence[Teacher] = (), prior_seconds: float = 0.0,
) -> Distilled:  # fmt: skip
    """Returns a set of N images with labels of a tape, which ``task.seed`` draws.

    Args:
        payload: the images.
        classes: (N,) what each was made for.
        teachers: of whom all or the first label.
        plan: how.
        task: the data set, seed and device.
        run: labelling is a stage of it.
        shapers: teachers that shaped the images, for the set's provenance.
        prior_seconds: what measuring their priors took.

    Raises:
        ConfigError: if as many logits or more are to be kept than there are classes.
    """
    spec = task.images.spec
    plan.check(spec)
    labellers, plan = plan.by(teachers)
    networks = obtain_teachers(labellers, task)
    weights = [1 / len(networks)] * len(networks)
    if plan.weighting == "prior" and len(networks) > 1:
        priors, prior_seconds = measure_priors(plan.prior, labellers, task)
        weights = vote_weights(priors, plan.vote_temperature)
    tape = draw_tape(len(payload), spec, plan.recipe, derive_seed("tape", task.seed))
    logits = label_tape(
        payload.decode(), tape, [teacher.model for teacher in networks], weights, num_classes=spec.num_classes,
        statistics=plan.statistics, device=task.device, run=run,
    )  # fmt: skip
    labels = TapedLabels(logits, tape, classes, plan.temperature)
    involved = {teacher.facts.id: teacher.facts for teacher in (*shapers, *networks)}
    return Distilled(
        payload=payload,
        targets=ThinLabels.of(labels, plan.top) if plan.top else labels,
        parents=tuple(involved),
        teacher_seconds=prior_seconds + sum(facts.seconds for facts in involved.values()),
    )


def _on_a_cpu(inversion: InversionRecipe, smallest_crop: float) -> TapePlan:
    """Returns our plan for a CPU; a prior is measured on half as many images, by a student of a third of the length."""
    tape = TapeRecipe(smallest_crop=smallest_crop)
    prior = PriorPlan(inversion, replace(tape, epochs=100), TapeTraining(epochs=100), ipc=5)
    return TapePlan(tape, prior=prior)


# By the scale of ``teachers.PLANS``
TAPE_PLANS = {
    "published": TapePlan(),
    "small": _on_a_cpu(replace(_RECOVERY, steps=400), smallest_crop=0.08),
    "digits": _on_a_cpu(replace(_RECOVERY, steps=200, jitter=1, mirror=False, smallest_crop=0.5), smallest_crop=0.5),
}
