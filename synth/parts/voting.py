"""Committees: who votes on which images, with what weight, and what each voter alone is worth."""

import json
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import exp
from typing import Literal

import torch

from dd_bench.errors import ConfigError
from dd_bench.files import home, locked, write_atomic
from dd_bench.learn.losses import distillation
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.learn.tape_training import TapeTraining, fit_tape
from dd_bench.models import build
from dd_bench.run import Run, drop_run, open_run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import digest_json
from dd_bench.settings import as_settings
from synth.base import Task
from synth.parts.initial_pixels import Initialization, initial_pixels
from synth.parts.inversion import InversionRecipe
from synth.parts.labeler import label_tape
from synth.parts.recovery import recover
from synth.parts.teachers import Teacher, TeacherPlan, accuracy, obtain_teachers, split_held_out

Committees = list[tuple[int, ...]]  # the voters of each slot, by index, ascending
Schedule = Literal["single", "best", "pairs", "random"]
Weighting = Literal["prior", "equal", "random"]

_VERSION = 1  # grows when the same plan measures other priors


@dataclass(frozen=True)
class PriorPlan:
    """How the worth of a voter is measured: what a student reaches on images that the voter alone has shaped.

    The images are recovered from the part of the training split that teachers learn from, labelled by the first
    teacher on a tape, and the student, of the first teacher's architecture, is scored on the part that they hold out.
    (CV-DD's authors score on the test split.)

    Attributes:
        inversion: the recovery.
        tape: of the labels.
        training: of the student.
        ipc: images a class.
        initialization: of the pixels.
    """

    inversion: InversionRecipe
    tape: TapeRecipe
    training: TapeTraining
    ipc: int = 50
    initialization: Initialization = "mosaic"

    def __post_init__(self) -> None:
        if self.ipc < 1:
            raise ConfigError(f"prior ipc is {self.ipc}; expected at least 1")


def vote_weights(priors: list[float], temperature: float) -> list[float]:
    """Returns w_v = exp(a_v / T) / Σ_s exp(a_s / T) of priors a (top-1 in %) at a temperature T."""
    highest = max(priors)
    votes = [exp((prior - highest) / temperature) for prior in priors]
    return [vote / sum(votes) for vote in votes]


def draw_committees(
    schedule: Schedule, *, slots: int, voters: int, size: int, priors: list[float], seed: int
) -> Committees:
    """Returns the voters of each slot.

    ``single``: the first alone. ``best``: the ``size`` of highest prior, in every slot. ``pairs``: all combinations of
    ``size`` in lexicographic order, again and again. ``random``: ``size`` different ones, drawn for every slot.

    Args:
        schedule: the rule.
        slots: how many.
        voters: V, how many there are.
        size: N of them judge a slot.
        priors: of each voter, for ``best``; ties go to the first.
        seed: for ``random``.

    Raises:
        ConfigError: if there are fewer voters than a slot needs.
    """
    if schedule == "single":
        return [(0,)] * slots
    if not 1 <= size <= voters:
        raise ConfigError(f"{size} voters a slot of a committee of {voters}; expected 1 to {voters}")
    if schedule == "best":
        order = sorted(range(voters), key=lambda voter: -priors[voter])
        return [tuple(sorted(order[:size]))] * slots
    if schedule == "pairs":
        groups = list(combinations(range(voters), size))
        return [groups[slot % len(groups)] for slot in range(slots)]
    draws = generator(derive_seed("committees", seed))
    return [tuple(sorted(torch.randperm(voters, generator=draws)[:size].tolist())) for _ in range(slots)]


def slot_weights(
    committees: Committees, weighting: Weighting, *, priors: list[float], temperature: float, seed: int
) -> list[list[float]]:
    """Returns the weights of each slot's voters, which sum to 1: by prior, all equal, or uniform draws made to sum."""
    if weighting == "prior":
        return [vote_weights([priors[voter] for voter in committee], temperature) for committee in committees]
    if weighting == "equal":
        return [[1 / len(committee)] * len(committee) for committee in committees]
    draws = generator(derive_seed("vote weights", seed))
    drawn = [torch.rand(len(committee), generator=draws) for committee in committees]
    return [(part / part.sum()).tolist() for part in drawn]


def measure_priors(plan: PriorPlan, teachers: TeacherPlan, task: Task) -> tuple[list[float], float]:
    """Returns the prior top-1 in % of each teacher, in the plan's order, and the seconds that all of them took.

    They are measured once, under a lock, in a run that survives kills. Their seed is the teachers', so that sets of
    several seeds share them.
    """
    networks = obtain_teachers(teachers, task)
    key = {
        "version": _VERSION,
        "plan": as_settings(plan),
        "teachers": [[teacher.facts.id, teacher.facts.weights_sha256] for teacher in networks],
        "fingerprint": task.data.fingerprint,
        "seed": teachers.seed,
    }
    name = digest_json(key)[:16]
    path = home() / "priors" / f"{name}.json"
    with locked(f"priors {name}"):
        if path.exists():
            drop_run(f"priors-{name}")
        else:
            with open_run(f"priors-{name}") as run:
                found = [_measure(index, plan, networks, teachers, task, run) for index in range(len(networks))]
                told = {"plan": key, "top1_percent": found, "seconds": run.seconds}
                write_atomic(path, (json.dumps(told, indent=1) + "\n").encode())
    told = json.loads(path.read_text())
    return [float(prior) for prior in told["top1_percent"]], float(told["seconds"])


def _measure(
    index: int, plan: PriorPlan, networks: list[Teacher], teachers: TeacherPlan, task: Task, run: Run
) -> float:
    """Returns the top-1 in % on the held-out images of a student of what voter ``index`` alone has shaped."""
    spec, seed = task.images.spec, derive_seed("prior", teachers.seed)
    kept, held_out = split_held_out(len(task.images), teachers.held_out, derive_seed("held out", teachers.seed))
    voter, first = networks[index], networks[0]
    name = f"prior of {voter.facts.architecture}"
    begin = initial_pixels(
        plan.initialization, task.images, plan.ipc, teacher=first, seed=seed, device=task.device, rows=kept
    )
    images = recover(
        begin, [voter], [(0,)] * plan.ipc, [[1.0]] * plan.ipc, recipe=plan.inversion, spec=spec, seed=seed, run=run,
        label=name,
    ).flatten(0, 1)  # fmt: skip
    tape = draw_tape(len(images), spec, plan.tape, seed)
    logits = label_tape(
        images, tape, [first.model], [1.0], num_classes=spec.num_classes, statistics="batch", device=task.device,
        run=run, label=f"{name}, labels",
    )  # fmt: skip
    with seeded(derive_seed("prior student", teachers.seed)):
        student = build(first.facts.architecture, spec)
    fit_tape(
        student.to(task.device), images, tape,
        lambda epoch, _: logits[epoch].to(task.device, non_blocking=True).float(), training=plan.training,
        objective=partial(distillation, temperature=20.0), run=run, label=f"{name}, student",
    )  # fmt: skip
    return 100 * accuracy(student, task.images, held_out, task.device)
