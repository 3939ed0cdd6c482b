"""Labels of a tape: whose they are, with which weights and statistics, and how much of them is kept."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.errors import ConfigError
from dd_bench.learn.tape import Epoch, TapeRecipe, draw_tape
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from dd_bench.sets import Images
from dd_bench.targets import TapedLabels, ThinLabels
from synth.base import Distilled, Task
from synth.infer import compensate
from synth.parts import tape_labels as module
from synth.parts.inversion import InversionRecipe
from synth.parts.tape_labels import TAPE_PLANS, TapePlan, label_by_tape
from synth.parts.teachers import TeacherPlan, obtain_teachers
from synth.parts.voting import PriorPlan
from tests.conftest import BLOBS

COUNT = 11  # batches of 4, 4 and 3, in groups of 2, of which the last has 3
CLASSES = torch.arange(COUNT) % 3
RECIPE = TapeRecipe(epochs=2, batch=4, micro=2, smallest_crop=0.3)


@pytest.fixture
def tape_plan() -> TapePlan:
    prior = PriorPlan(InversionRecipe(steps=1), TapeRecipe(epochs=1), TapeTraining(epochs=1), ipc=1)
    return TapePlan(RECIPE, weighting="equal", prior=prior)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[PriorPlan, TeacherPlan, Task]]:
    """Collects who asked for priors; they are 60 and 52 and took 30 seconds."""
    calls: list[tuple[PriorPlan, TeacherPlan, Task]] = []

    def measure(prior: PriorPlan, teachers: TeacherPlan, task: Task) -> tuple[list[float], float]:
        calls.append((prior, teachers, task))
        return [60.0, 52.0][: len(teachers.architectures)], 30.0

    monkeypatch.setattr(module, "measure_priors", measure)
    return calls


@pytest.fixture
def label(task: Task, plan: TeacherPlan, tmp_path: Path) -> Callable[..., Distilled]:
    """Labels the first images of the training split; each call is a run of its own."""

    def make(tape_plan: TapePlan, where: Task = task, **named: Any) -> Distilled:
        run = Run(tmp_path / "runs" / str(len(list(tmp_path.glob("runs/*")))))
        payload = named.pop("payload", Images(task.images.images[:COUNT]))
        classes = named.pop("classes", CLASSES)
        return label_by_tape(payload, classes, plan, tape_plan, task=where, run=run, **named)

    return make


@torch.no_grad()
def by_hand(task: Task, models: list[nn.Module], weights: list[float], *, batch: bool) -> Tensor:
    """Returns logits (E, N, K) as a student's own forward passes find them: 4 images in twos, the last 3 together."""
    tape = draw_tape(COUNT, BLOBS, RECIPE, derive_seed("tape", task.seed))
    models = [deepcopy(model).train(batch) for model in models]
    epochs = []
    for number in range(2):
        epoch, rows = Epoch.of(tape, number, torch.device("cpu")), []
        for which, sizes in enumerate(([2, 2], [2, 2], [3])):
            groups = epoch.pixels(task.images.images[:COUNT], which).split(sizes)
            rows += [sum(w * model(group) for model, w in zip(models, weights, strict=True)) for group in groups]
        epochs.append(torch.cat(rows))
    return torch.stack(epochs)


def models_of(plan: TeacherPlan, task: Task) -> list[nn.Module]:
    return [teacher.model for teacher in obtain_teachers(plan, task)]


# --- whose they are --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize(
    ("labeller", "weighting", "weights"),
    [
        ("committee", "equal", [0.5, 0.5]),
        ("committee", "prior", [0.832018, 0.167982]),  # e^(8/5) : 1
        ("first", "equal", [1.0, 0.0]),
        ("first", "prior", [1.0, 0.0]),
    ],
)
def test_labels_match_forward_passes(
    tape_plan: TapePlan, task: Task, plan: TeacherPlan, label: Callable[..., Distilled], measured: list[Any],
    labeller: Any, weighting: Any, weights: list[float], statistics: Any,
) -> None:  # fmt: skip
    """Each view's logits are those of the networks that label, in training mode where statistics are of the batch."""
    settings = {"labeller": labeller, "weighting": weighting, "statistics": statistics, "vote_temperature": 5.0}
    made = label(replace(tape_plan, **settings))
    assert isinstance(made.targets, TapedLabels)
    expected = by_hand(task, models_of(plan, task), weights, batch=statistics == "batch")
    assert made.targets.logits.dtype == torch.float16
    torch.testing.assert_close(made.targets.logits.float(), expected, rtol=2e-3, atol=2e-3)
    assert (labeller, weighting) == ("committee", "prior") or not measured, "nobody asks for priors that do not matter"


def test_priors_are_those_of_the_plan(
    tape_plan: TapePlan, task: Task, plan: TeacherPlan, label: Callable[..., Distilled], measured: list[Any]
) -> None:
    label(replace(tape_plan, weighting="prior"))
    assert measured == [(tape_plan.prior, plan, task)]


def test_a_committee_of_one_needs_no_priors(
    tape_plan: TapePlan, task: Task, plan: TeacherPlan, run: Run, measured: list[Any]
) -> None:
    payload = Images(task.images.images[:COUNT])
    alone, voted = plan.only_first(), replace(tape_plan, weighting="prior")
    made = label_by_tape(payload, CLASSES, alone, voted, task=task, run=run)
    assert isinstance(made.targets, TapedLabels)
    expected = by_hand(task, models_of(alone, task), [1.0], batch=True)
    torch.testing.assert_close(made.targets.logits.float(), expected, rtol=2e-3, atol=2e-3)
    assert not measured


def test_the_first_alone_needs_no_other_network(
    tape_plan: TapePlan, plan: TeacherPlan, label: Callable[..., Distilled], own_home: Path
) -> None:
    made = label(replace(tape_plan, labeller="first", weighting="prior"))
    assert len(list((own_home / "teachers").iterdir())) == 1
    assert [parent.rpartition("-")[0] for parent in made.parents] == [plan.architectures[0]]


def test_the_tape_is_drawn_by_the_seed_of_the_task(
    tape_plan: TapePlan, task: Task, label: Callable[..., Distilled]
) -> None:
    tapes = []
    for seed in (0, 0, 1):
        made = label(tape_plan, replace(task, seed=seed)).targets
        assert isinstance(made, TapedLabels)
        expected = draw_tape(COUNT, BLOBS, RECIPE, derive_seed("tape", seed))
        for name in ("order", "crops", "flips", "partners", "boxes", "bounds", "groups"):
            assert getattr(made.tape, name).equal(getattr(expected, name)), name
        tapes.append(made)
    assert tapes[0].logits.equal(tapes[1].logits)
    assert not tapes[0].tape.order.equal(tapes[2].tape.order)


def test_a_compensated_set_is_labelled_as_students_see_it(
    tape_plan: TapePlan, task: Task, plan: TeacherPlan, label: Callable[..., Distilled]
) -> None:
    base = task.images.images[:6].view(2, 3, 1, 8, 8)
    payload = compensate(base, 0.3 * torch.randn(1, 2, 1, 8, 8, generator=generator(0)), "int8")
    classes = torch.arange(3).repeat(4)
    made = label(replace(tape_plan, statistics="running"), payload=payload, classes=classes)
    assert isinstance(made.targets, TapedLabels)
    assert made.payload is payload
    tape, models = made.targets.tape, models_of(plan, task)
    assert made.targets.logits.shape == (2, 12, 3)
    with torch.no_grad():
        seen = Epoch.of(tape, 1, torch.device("cpu")).pixels(payload.decode(), 2)
        expected = sum((0.5 * model(seen) for model in models), start=torch.zeros(4, 3))
    torch.testing.assert_close(made.targets.logits[1, 8:].float(), expected, rtol=2e-3, atol=2e-3)


def test_a_set_says_what_it_is_made_of(
    tape_plan: TapePlan, task: Task, plan: TeacherPlan, label: Callable[..., Distilled], measured: list[Any]
) -> None:
    first, second = obtain_teachers(plan, task)
    both = (first.facts.id, second.facts.id)
    seconds = first.facts.seconds + second.facts.seconds
    assert seconds > 0
    plain = label(replace(tape_plan, temperature=4.0))
    assert isinstance(plain.targets, TapedLabels)
    assert plain.targets.classes.equal(CLASSES)
    assert plain.targets.temperature == 4.0
    assert (plain.parents, plain.teacher_seconds) == (both, seconds)
    assert plain.suggested_lr is None
    voted = label(replace(tape_plan, weighting="prior"))
    assert voted.teacher_seconds == pytest.approx(seconds + 30), "what its priors took"
    known = label(replace(tape_plan, weighting="prior"), prior_seconds=30.0, shapers=[first, second])
    assert known.teacher_seconds == pytest.approx(seconds + 30), "once, whoever asked first"
    shaped = label(replace(tape_plan, labeller="first"), shapers=[second], prior_seconds=7.0)
    assert shaped.parents == both[::-1], "who shaped it, then who labelled it"
    assert shaped.teacher_seconds == pytest.approx(seconds + 7)
    assert label(replace(tape_plan, labeller="first"), shapers=[first, second]).parents == both


# --- how much is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 2])
def test_thin_labels_keep_the_largest_logits(tape_plan: TapePlan, label: Callable[..., Distilled], top: int) -> None:
    whole, thin = label(tape_plan).targets, label(replace(tape_plan, top=top)).targets
    assert isinstance(whole, TapedLabels)
    assert isinstance(thin, ThinLabels)
    assert thin.tops.shape == (2, COUNT, top)
    assert thin.classes.equal(CLASSES)
    for number in range(2):
        told = thin.epoch(number, 3)
        for logits, row in zip(whole.logits[number].float().tolist(), told.tolist(), strict=True):
            order = sorted(range(3), key=lambda k: -logits[k])
            rest = sum(logits[k] for k in order[top:]) / (3 - top)
            expected = [logits[k] if k in order[:top] else rest for k in range(3)]
            assert row == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("top", [3, 4])
def test_rejects_thinning_that_keeps_all(
    tape_plan: TapePlan, label: Callable[..., Distilled], own_home: Path, top: int
) -> None:
    with pytest.raises(ConfigError, match=rf"^top is {top} of 3 classes; expected fewer, or 0 to keep all$"):
        label(replace(tape_plan, top=top))
    assert not (own_home / "teachers").exists(), "before any work"


def test_fewer_epochs_are_the_beginning_of_more(tape_plan: TapePlan, label: Callable[..., Distilled]) -> None:
    more, fewer = (
        label(replace(tape_plan, recipe=replace(RECIPE, epochs=epochs))).targets for epochs in (3, 1)
    )  # fmt: skip
    assert isinstance(more, TapedLabels)
    assert isinstance(fewer, TapedLabels)
    assert (more.logits.shape, fewer.logits.shape) == ((3, COUNT, 3), (1, COUNT, 3))
    assert more.logits[:1].equal(fewer.logits)
    assert more.tape.crops[:1].equal(fewer.tape.crops)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_labels_of_the_first_have_one_plan(tape_plan: TapePlan, plan: TeacherPlan) -> None:
    """So that sets with equal labels name one control, whichever committee they come from."""
    committee = replace(tape_plan, weighting="prior", top=1)
    assert committee.by(plan) == (plan, committee)
    one, first = replace(committee, labeller="first").by(plan)
    assert one == plan.only_first()
    assert first == replace(committee, labeller="committee", weighting="equal")
    assert first.by(one) == (one, first)


def test_one_voter_labels_alone_whatever_its_name(
    tape_plan: TapePlan, task: Task, plan: TeacherPlan, tmp_path: Path
) -> None:
    """What ``by`` returns makes the labels that it was asked about."""
    asked, answered = (plan, replace(tape_plan, labeller="first")), replace(tape_plan, labeller="first").by(plan)
    found = []
    for number, (teachers, recipe) in enumerate((asked, answered)):
        payload = Images(task.images.images[:COUNT])
        made = label_by_tape(payload, CLASSES, teachers, recipe, task=task, run=Run(tmp_path / str(number)))
        assert isinstance(made.targets, TapedLabels)
        found.append(made)
    assert found[0].targets.logits.equal(found[1].targets.logits)  # type: ignore[union-attr]
    assert found[0].parents == found[1].parents


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("vote_temperature", 0.0, "more than 0"), ("vote_temperature", -1.0, "more than 0"),
        ("vote_temperature", float("inf"), "more than 0"), ("vote_temperature", float("nan"), "more than 0"),
        ("temperature", 0.0, "more than 0"), ("temperature", float("inf"), "more than 0"),
        ("temperature", float("nan"), "more than 0"), ("top", -1, "at least 0"),
    ],
)  # fmt: skip
def test_rejects_plans(field: str, value: float, expected: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} is {value}; expected {expected}$"):
        TapePlan(**{field: value})


def test_the_published_plan_is_that_of_cv_dd() -> None:
    """300 epochs of batches of 16 in groups of 8, T = 20, all teachers with batch statistics and votes at T = 10."""
    published = TAPE_PLANS["published"]
    assert published == TapePlan()
    assert published.recipe == TapeRecipe(epochs=300, batch=16, micro=8, smallest_crop=0.08)
    assert (published.labeller, published.statistics, published.weighting) == ("committee", "batch", "prior")
    assert (published.vote_temperature, published.temperature, published.top) == (10.0, 20.0, 0)
    prior = published.prior
    assert prior.inversion == InversionRecipe(
        steps=4000, lr=0.25, alpha=0.01, first_bn_weight=10.0, jitter=4, smallest_crop=0.08, mirror=True,
        crop_each=False, relative_bn=False,
    )  # fmt: skip
    assert prior.training == TapeTraining(epochs=300, lr=1e-3, stretch=1.0, weight_decay=0.01)
    assert (prior.tape, prior.ipc, prior.initialization) == (published.recipe, 50, "mosaic")


@pytest.mark.parametrize(("scale", "steps"), [("small", 400), ("digits", 200)])
def test_plans_for_a_cpu_are_the_same_but_shorter(scale: str, steps: int) -> None:
    plan, published = TAPE_PLANS[scale], TAPE_PLANS["published"]
    assert plan.prior.inversion.steps == steps
    assert (plan.prior.ipc, plan.prior.tape.epochs, plan.prior.training) == (5, 100, TapeTraining(epochs=100))
    assert plan.recipe == replace(plan.prior.tape, epochs=300)
    assert replace(plan, recipe=published.recipe, prior=published.prior) == published


def test_digits_are_not_mirrored() -> None:
    assert not TAPE_PLANS["digits"].prior.inversion.mirror
