"""INFER: distillation by inter-class feature compensators.

Zhang, Du, Liu, Zhou, "Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature Compensator",
ICLR 2025, arXiv 2408.06927.

A base set of K real images a class is kept. For each of the K base batches (one image of every class) and each of M
teachers one offset image u, shared by all classes, is optimised against that teacher alone. Students train on the base
images and on all sums, (M + 1) K images a class, with the teachers' mean logits as labels that are interpolated with
the images and never computed again. K C base images and K M offsets fill the budget of ipc C image slots.

Where we differ from the authors' released code, and why:
  * offsets are stored as int8 with a scale each and sums are rebuilt from the store, so that an offset fills one slot
    and students see what the bytes say (the release stores every sum as a JPEG);
  * the K offsets of a teacher are optimised side by side, each as if alone;
  * teachers hold out a tenth of the training split, on which their accuracy is measured;
  * labels are stored as float16 by default (the release keeps float32), and CIFAR-10 is normalised with the deviation
    over all pixels, 0.247, where the release divides by 0.202; lr counts in normalised units, so its steps are larger
    here by that ratio;
  * EfficientNet-B0 has no dropout before its head (``dd_bench/models/efficientnet.py`` says what else differs);
  * the CPU presets (``small``, ``digits``) are ours: three narrow teachers, one of which has the architecture of the
    student of ``quick``, so that their boards say nothing about transfer between architectures.

Published top-1 (%, Table 1, their protocol): CIFAR-10 ipc 10/50 34.0/57.0 (ConvNet128), 32.0/60.4 (ResNet-18);
CIFAR-100 ipc 10/50 41.0/53.8 and 45.2/62.8.

    ddbench synth --method infer --ipc 10 --dataset cifar10
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dd_bench.errors import ConfigError
from dd_bench.models import Architecture
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from dd_bench.sets import Compensated, Images
from dd_bench.settings import as_settings, later
from dd_bench.targets import LabelKind, SoftLabels
from synth.base import DRAWS, ControlPlan, Distilled, Synthesizer, Task, random_control
from synth.parts.inversion import InversionRecipe, SharedOffsets, Voter, invert
from synth.parts.labeler import label_images
from synth.parts.remembered import remember
from synth.parts.sampling import sample_per_class
from synth.parts.scales import scale_of
from synth.parts.tape_labels import TAPE_PLANS, TapePlan, label_by_tape
from synth.parts.teachers import PLANS, Teacher, TeacherPlan, obtain_teachers

_IMAGES_AT_ONCE = 1000  # groups of K images share forward passes up to this many, which bounds the memory


@dataclass(frozen=True)
class Infer:
    """INFER: real base images plus offsets that all classes share, with static labels.

    Students of the protocol ``infer-dyn`` ask the same teachers on the fly instead.

    Attributes:
        teachers: the M networks that offsets are optimised against and that label the set.
        inversion: the optimisation of one offset (the published steps, lr, alpha, first-layer weight and jitter).
        offset_dtype: ``int8`` with a scale for each offset, or ``float16``, which takes two image slots an offset.
        label_dtype: ``float16`` or ``float32`` (published); at temperature 30 the difference is below a rounding error.
        temperature: at which students match the labels.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
        tape: how teachers label every view of a tape, instead of the plain images once; for students of ``fkd-…``.
    """

    teachers: TeacherPlan = PLANS["published"]
    inversion: InversionRecipe = field(default_factory=InversionRecipe)
    offset_dtype: Literal["int8", "float16"] = "int8"
    label_dtype: Literal["float16", "float32"] = "float16"
    temperature: float = 30.0
    protocol: str = "infer-static"
    tape: TapePlan | None = later(None)

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    def __post_init__(self) -> None:
        if not 0 < self.temperature < inf:
            raise ConfigError(f"temperature is {self.temperature}; expected a positive number")
        for name in self.teachers.architectures:
            if Architecture.parse(name).norm not in ("", "batch"):  # other families have BatchNorm, ConvNets a choice
                raise ConfigError(f"teacher {name} has no BatchNorm, whose statistics INFER matches; write -batch")

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns ``published`` for whole CIFAR-10/100, ``small`` for a subset, ``digits`` for digits."""
        return scale_of(dataset)

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns base images, offsets of every teacher, and the teachers' mean logits on what students will see.

        Raises:
            ConfigError: if the budget leaves no base batch (ipc 1 for every published setting).
        """
        base_count = self.base_images_per_class(task)
        if self.tape is not None:
            self.tape.check(task.images.spec)
        picked = sample_per_class(task.images.labels, base_count, task.images.spec.num_classes, task.seed)  # (K, C)
        teachers = obtain_teachers(self.teachers, task)  # they take minutes: only once the task is known to be possible
        base = task.images.images[picked]  # (K, C, channels, H, W) uint8
        payload = self._payload(base, teachers, task, run)
        classes = torch.arange(task.images.spec.num_classes).repeat(len(payload) // task.images.spec.num_classes)
        if self.tape is not None:
            return label_by_tape(payload, classes, self.teachers, self.tape, task=task, run=run, shapers=teachers)
        labels = label_images(payload.decode(), [t.model for t in teachers], device=task.device, run=run)
        return Distilled(
            payload=payload,
            targets=SoftLabels(labels.to(getattr(torch, self.label_dtype)), classes, self.temperature),
            parents=tuple(teacher.facts.id for teacher in teachers),
            teacher_seconds=sum(teacher.facts.seconds for teacher in teachers),
        )

    def base_images_per_class(self, task: Task) -> int:
        """Returns K for the task's ipc and class count, or says why there is none."""
        slots = 2 if self.offset_dtype == "float16" else 1
        networks = len(self.teachers.architectures)
        count = base_images_per_class(task.ipc, task.images.spec.num_classes, slots * networks)
        if count == 0:
            raise ConfigError(
                f"ipc {task.ipc} leaves INFER no image: a base batch needs ipc >= 1 + M/C, here "
                f"1 + {slots * networks}/{task.images.spec.num_classes} (an offset of each of {networks} teachers "
                "beside one image of each class); use a larger --ipc, or --method random"
            )
        return count

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random real images with these labels, the same with hard labels, base images alone, scrambled offsets."""
        labels: LabelKind = "soft" if self.tape is None else "taped"
        config = as_settings(self)
        return (
            *self._random_controls(),
            ControlPlan("infer-base", labels, config, seeds=DRAWS),
            ControlPlan("infer-scrambled", labels, config, seeds=(task.seed,)),
        )

    def _random_controls(self) -> tuple[ControlPlan, ...]:
        if self.tape is not None:
            same = random_control(self.protocol, teachers=self.teachers, tape=self.tape)
        else:
            same = random_control(
                self.protocol, teachers=self.teachers, label_dtype=self.label_dtype, temperature=self.temperature
            )
        return same, random_control(self.protocol)

    def _payload(self, base: Tensor, teachers: list[Teacher], task: Task, run: Run) -> Images | Compensated:
        return compensate(base, self._offsets(base, teachers, task, run), self.offset_dtype)

    def _offsets(self, base: Tensor, teachers: list[Teacher], task: Task, run: Run) -> Tensor:
        """Returns the learned offsets, from the cache if INFER or its control has learned the same ones before."""
        key = {
            "version": self.version,
            "inversion": as_settings(self.inversion),
            "teachers": [[teacher.facts.id, teacher.facts.weights_sha256] for teacher in teachers],
            "base": hashlib.sha256(base.numpy().tobytes()).hexdigest(),
            "seed": task.seed,
        }
        return remember("offsets", key, run, lambda: self._learn_offsets(base, teachers, task, run))

    def _learn_offsets(self, base: Tensor, teachers: list[Teacher], task: Task, run: Run) -> Tensor:
        """Returns the offsets (M, K, channels, H, W) in pixel units on the CPU, one for each teacher and base batch."""
        classes = torch.arange(base.shape[1], device=task.device)
        std = torch.tensor(task.images.spec.std, device=task.device)
        groups = max(1, _IMAGES_AT_ONCE // base.shape[1])
        learned = []
        for teacher in teachers:
            for start in range(0, len(base), groups):
                part = base[start : start + groups].to(task.device).float() / 255
                canvas = SharedOffsets(part, std)
                seeds = [
                    derive_seed("infer", task.seed, teacher.facts.architecture, start + k) for k in range(len(part))
                ]
                end = start + len(part)
                voter = Voter.of_all(teacher.model, len(part), task.device)
                invert(
                    canvas, classes, [voter], recipe=self.inversion, seeds=seeds, run=run,
                    label=f"offsets {teacher.facts.architecture} {start + 1}-{end} of {len(base)}",
                )  # fmt: skip
                learned.append(canvas.pixel_offsets().cpu())
        return torch.cat(learned).view(len(teachers), *base[:, 0].shape)


class BaseOnly(Infer):
    """Control: the base images of INFER by themselves, with the same labels; what do the offsets add?"""

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random real images of the full budget."""
        return self._random_controls()

    def _payload(self, base: Tensor, teachers: list[Teacher], task: Task, run: Run) -> Images | Compensated:
        return Images(base.flatten(0, 1))


class ScrambledOffsets(Infer):
    """Control: INFER with each offset's values shuffled and their signs drawn anew.

    Magnitudes are exactly INFER's, the pattern is noise; does it matter what the offsets show?
    """

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random real images of the full budget."""
        return self._random_controls()

    def _payload(self, base: Tensor, teachers: list[Teacher], task: Task, run: Run) -> Images | Compensated:
        offsets = self._offsets(base, teachers, task, run)
        return compensate(base, scramble(offsets, derive_seed("scramble", task.seed)), self.offset_dtype)


def base_images_per_class(ipc: int, num_classes: int, offset_slots: int) -> int:
    """Returns K = floor(ipc / (M / C + 1)), in exact arithmetic: K C images and K M offsets fit in ipc C slots."""
    return ipc * num_classes // (num_classes + offset_slots)


def compensate(base: Tensor, offsets: Tensor, dtype: Literal["int8", "float16"]) -> Compensated:
    """Returns base images (K, C, channels, H, W) uint8 and offsets (M, K, channels, H, W) in pixel units as a payload.

    Images come in blocks of K C: first the base images themselves, then for each teacher the sums, each block in the
    order of the base batches and, within one, of the classes.
    """
    networks, batches, classes = len(offsets), base.shape[0], base.shape[1]
    stored, scales = quantise(offsets.flatten(0, 1), dtype)
    image = torch.arange(batches * classes).repeat(networks + 1)
    batch = torch.arange(batches).repeat_interleave(classes)
    offset = torch.cat([torch.full_like(batch, -1), *(batch + m * batches for m in range(networks))])
    return Compensated(base.flatten(0, 1), stored, scales, torch.stack([image, offset], dim=1).int())


def quantise(offsets: Tensor, dtype: Literal["int8", "float16"]) -> tuple[Tensor, Tensor]:
    """Returns offsets (M, C, H, W) as stored, and the scale (M,) of each; the error is at most half a scale.

    An int8 offset spans its own largest magnitude in 127 steps. An offset of zeros has scale 0.
    """
    if dtype == "float16":
        return offsets.half(), torch.ones(len(offsets))
    scales = offsets.abs().amax(dim=(1, 2, 3)) / 127
    steps = offsets / scales.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None, None]
    return steps.round().clamp_(-127, 127).to(torch.int8), scales


def scramble(offsets: Tensor, seed: int) -> Tensor:
    """Returns offsets (M, K, channels, H, W) with values permuted within each (H, W) plane and signs redrawn."""
    draws = generator(seed)
    flat = offsets.flatten(3)
    order = torch.rand(flat.shape, generator=draws).argsort(-1)
    signs = torch.randint(0, 2, flat.shape, generator=draws) * 2 - 1
    return (flat.gather(-1, order) * signs).view_as(offsets)


_PUBLISHED = Infer()
_SCALES = {
    "published": _PUBLISHED,
    "small": replace(
        _PUBLISHED, teachers=PLANS["small"], inversion=InversionRecipe(steps=300), protocol="quick"
    ),
    "digits": replace(
        _PUBLISHED, teachers=PLANS["digits"], inversion=InversionRecipe(steps=200, jitter=1), protocol="quick"
    ),
}  # fmt: skip
# The same images with labels of a tape, by the same teachers
Infer.PRESETS = _SCALES | {
    f"{scale}-taped": replace(preset, tape=TAPE_PLANS[scale],
                              protocol="fkd-cutmix" if scale == "published" else "fkd-quick")
    for scale, preset in _SCALES.items()
}  # fmt: skip
