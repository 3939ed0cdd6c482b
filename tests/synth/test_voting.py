"""Committees: the published weights and schedules, and priors that no kill, seed or held-out image gets into."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.errors import ConfigError
from dd_bench.learn.losses import distillation
from dd_bench.learn.tape import TapeRecipe
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.models import build
from dd_bench.seeding import derive_seed, seeded
from synth.base import Task
from synth.parts import voting as module
from synth.parts.inversion import InversionRecipe
from synth.parts.teachers import TeacherPlan, obtain_teachers, split_held_out
from synth.parts.voting import PriorPlan, draw_committees, measure_priors, slot_weights, vote_weights
from tests.conftest import Interrupt

# ResNet-18, ResNet-50, ShuffleNetV2, MobileNetV2, DenseNet-121: priors, and weights at T = 10 to three digits
PUBLISHED = {
    "cifar10": ([63.0, 65.3, 68.5, 67.6, 67.4], [0.140, 0.177, 0.243, 0.222, 0.218]),
    "cifar100": ([64.0, 60.6, 51.6, 59.4, 56.4], [0.323, 0.230, 0.093, 0.204, 0.151]),
    "tiny-imagenet": ([46.5, 28.3, 43.6, 44.8, 41.5], [0.298, 0.048, 0.223, 0.251, 0.180]),
    "imagenette": ([62.4, 52.0, 57.2, 54.0, 60.8], [0.309, 0.109, 0.184, 0.134, 0.264]),
    "imagenet1k": ([56.4, 42.3, 52.5, 44.2, 40.6], [0.413, 0.101, 0.279, 0.122, 0.085]),
}
PRIORS = PUBLISHED["tiny-imagenet"][0]
draw = partial(draw_committees, slots=10, voters=5, size=2, priors=PRIORS, seed=0)


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", PUBLISHED)
def test_weights_of_labels_match_the_table(dataset: str) -> None:
    priors, expected = PUBLISHED[dataset]
    assert vote_weights(priors, 10.0) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("dataset", "pair", "first"),
    [
        ("tiny-imagenet", (0, 1), 0.974), ("imagenet1k", (0, 4), 0.959), ("imagenet1k", (0, 1), 0.944),
        ("cifar100", (0, 2), 0.923), ("cifar10", (0, 2), 0.25),
    ],
)  # fmt: skip
def test_weights_of_recovery_match_the_table(dataset: str, pair: tuple[int, int], first: float) -> None:
    priors = [PUBLISHED[dataset][0][voter] for voter in pair]
    weights = vote_weights(priors, 5.0)
    assert weights[0] == pytest.approx(first, abs=6e-4)
    assert sum(weights) == pytest.approx(1)
    assert slot_weights([pair], "prior", priors=PUBLISHED[dataset][0], temperature=5.0, seed=0) == [weights]


def test_equal_priors_have_equal_weights() -> None:
    assert vote_weights([41.3, 41.3], 5.0) == [0.5, 0.5]
    assert vote_weights([0.0], 10.0) == [1.0]


def test_no_prior_is_too_large_for_a_float() -> None:
    assert vote_weights([100.0, 0.0], 0.01) == [1.0, 0.0]


def test_every_slot_weighs_its_own_voters() -> None:
    committees = [(0, 1), (2, 4), (1,), (0, 2, 3)]
    by_prior = slot_weights(committees, "prior", priors=PRIORS, temperature=5.0, seed=0)
    assert by_prior == [vote_weights([PRIORS[voter] for voter in slot], 5.0) for slot in committees]
    equal = slot_weights(committees, "equal", priors=PRIORS, temperature=5.0, seed=0)
    assert equal == [[1 / len(slot)] * len(slot) for slot in committees]
    random, again, other = (
        slot_weights(committees, "random", priors=PRIORS, temperature=5.0, seed=seed) for seed in (0, 0, 1)
    )
    assert random == again != other
    for weights in (by_prior, equal, random):
        assert [len(slot) for slot in weights] == [2, 2, 1, 3]
        assert [sum(slot) for slot in weights] == pytest.approx([1] * 4)
        assert min(min(slot) for slot in weights) > 0


def test_random_weights_are_of_each_slot() -> None:
    drawn = slot_weights([(0, 1)] * 200, "random", priors=PRIORS, temperature=5.0, seed=3)
    firsts = torch.tensor(drawn)[:, 0]
    assert len(firsts.unique()) == 200
    assert 0.45 < firsts.mean() < 0.55
    assert firsts.std() > 0.15


# --- schedules -------------------------------------------------------------------------------------------------------


def test_ten_slots_of_five_voters_are_all_pairs_in_order() -> None:
    pairs = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]
    assert draw("pairs") == pairs
    assert draw("pairs", slots=3) == pairs[:3]
    assert draw("pairs", slots=23) == pairs + pairs + pairs[:3]
    assert draw("pairs", size=3, slots=2) == [(0, 1, 2), (0, 1, 3)]
    assert draw("pairs", size=1, slots=6) == [(0,), (1,), (2,), (3,), (4,), (0,)]


def test_the_best_are_those_of_highest_prior() -> None:
    """As published for Tiny-ImageNet: ResNet-18 and MobileNetV2; and by voter, whoever is the better one."""
    assert draw("best", slots=2) == [(0, 3), (0, 3)]
    assert draw("best", slots=1, priors=PUBLISHED["cifar10"][0]) == [(2, 3)]
    assert draw("best", slots=1, size=3) == [(0, 2, 3)]
    assert draw("best", slots=1, priors=[1.0, 3.0, 3.0, 3.0, 2.0]) == [(1, 2)]  # ties go to the first


def test_single_is_the_first_alone() -> None:
    assert draw("single", slots=3, voters=1, size=2, priors=[0.0]) == [(0,)] * 3


def test_random_committees_are_different_voters_drawn_by_the_seed() -> None:
    drawn = draw("random", slots=500)
    assert drawn == draw("random", slots=500) != draw("random", slots=500, seed=1)
    assert drawn[:50] == draw("random", slots=50)
    assert all(len(set(slot)) == 2 and list(slot) == sorted(slot) for slot in drawn)
    counts = Counter(drawn)
    assert len(counts) == 10
    assert min(counts.values()) > 25  # of 50 expected
    assert draw("random", slots=2, size=5) == [(0, 1, 2, 3, 4)] * 2


@pytest.mark.parametrize("schedule", ["best", "pairs", "random"])
@pytest.mark.parametrize("size", [0, 6, -1])
def test_rejects_committees_that_cannot_be(schedule: Any, size: int) -> None:
    with pytest.raises(ConfigError, match=f"^{size} voters a slot of a committee of 5; expected 1 to 5$"):
        draw(schedule, size=size)


# --- priors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def prior() -> PriorPlan:
    return PriorPlan(
        InversionRecipe(steps=2, jitter=1, smallest_crop=0.5), TapeRecipe(epochs=2, batch=6, micro=3),
        TapeTraining(epochs=3, lr=0.02), ipc=4,
    )  # fmt: skip


class Watched:
    """What the parts of a measurement were given, and what they returned."""

    def __init__(self, patch: pytest.MonkeyPatch, *names: str) -> None:
        self.calls: dict[str, list[tuple[tuple[Any, ...], dict[str, Any], Any]]] = {name: [] for name in names}
        for name in names:
            patch.setattr(module, name, self._spy(name, getattr(module, name)))

    def _spy(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            result = original(*arguments, **named)
            self.calls[name].append((arguments, named, result))
            return result

        return watched


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch, "initial_pixels", "recover", "label_tape", "fit_tape", "accuracy")


def rows_of(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_each_voter_alone_shapes_images_that_the_first_one_labels(
    prior: PriorPlan, plan: TeacherPlan, task: Task, watched: Watched
) -> None:
    priors, seconds = measure_priors(prior, plan, task)
    first, second = obtain_teachers(plan, task)
    assert seconds > 0
    assert len(priors) == 2
    begins, shapes, labels, students, scores = watched.calls.values()
    assert priors == [100 * score for *_, score in scores]
    assert priors == [pytest.approx(100 * round(prior * 0.12) / 12) for prior in priors], "of twelve images"
    for number, teacher in enumerate((first, second)):
        (begin, voters, committees, weights), named, images = shapes[number]
        assert begin.equal(begins[number][2])
        assert [voter.facts.id for voter in voters] == [teacher.facts.id]
        assert (committees, weights) == ([(0,)] * 4, [[1.0]] * 4)
        assert named["recipe"] == prior.inversion
        (labelled, tape, labellers, votes), named, logits = labels[number]
        assert labelled.equal(images.flatten(0, 1))
        assert (len(tape), tape.epochs, tape.bounds.tolist()) == (12, 2, [0, 6, 12])
        assert (len(labellers), votes, named["statistics"]) == (1, [1.0], "batch")
        assert same_weights(labellers[0], first.model)
        (student, seen, shown, lessons), named, _ = students[number]
        assert seen.equal(labelled)
        assert shown is tape
        assert lessons(1, None).equal(logits[1].float())
        assert named["training"] == prior.training
        one, other = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(1))
        assert named["objective"](one, other).equal(distillation(one, other, 20.0))
        assert count_parameters(student) == count_parameters(first.model)
        assert scores[number][0][0] is student


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(mine.equal(theirs) for mine, theirs in pairs)


def test_students_begin_alike(prior: PriorPlan, plan: TeacherPlan, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """All voters are measured by one student, whose weights follow from the plan's seed."""
    begun: list[nn.Module] = []
    monkeypatch.setattr(module, "fit_tape", lambda student, *_, **__: begun.append(student))
    measure_priors(prior, plan, task)
    with seeded(derive_seed("prior student", plan.seed)):
        expected = build(plan.architectures[0], task.images.spec)
    assert [same_weights(student, expected) for student in begun] == [True, True]


@pytest.mark.parametrize("initialization", ["real", "mosaic"])
def test_held_out_images_are_for_scores_alone(
    prior: PriorPlan, plan: TeacherPlan, task: Task, watched: Watched, monkeypatch: pytest.MonkeyPatch,
    initialization: Any,
) -> None:  # fmt: skip
    """The slice that the teachers have never seen, all of it and nothing else."""
    data = task.images
    kept, held_out = split_held_out(120, plan.held_out, derive_seed("held out", plan.seed))
    assert len(held_out) == 12
    smallest = int(torch.bincount(data.labels[kept]).min())
    measure_priors(replace(prior, ipc=smallest, initialization=initialization), plan, task)
    for (_, given, count), named, begin in watched.calls["initial_pixels"]:
        assert given is data
        assert named["rows"].equal(kept)
        assert count == smallest
        assert named["teacher"].facts.architecture == plan.architectures[0]
        if initialization == "real":
            bytes_ = (begin * 255).round().byte()
            for label in range(3):
                found = rows_of(bytes_[:, label])
                assert len(found) == smallest
                assert found <= rows_of(data.images[kept][data.labels[kept] == label])
    for (_, given, rows, _), _, _ in watched.calls["accuracy"]:
        assert given is data
        assert rows.equal(held_out)


def test_priors_tell_a_useful_voter_from_a_useless_one(plan: TeacherPlan, task: Task) -> None:
    """A long measurement of the same network: a student learns from what it shaped, and of noise it cannot."""
    recipe = replace(plan.recipe, epochs=12)
    able = PriorPlan(
        InversionRecipe(steps=2, jitter=0, lr=0.01), TapeRecipe(epochs=10, batch=10, micro=10, smallest_crop=0.5),
        TapeTraining(epochs=30, lr=0.02), ipc=12, initialization="real",
    )  # fmt: skip
    (high,), _ = measure_priors(able, TeacherPlan(plan.architectures[1:], recipe), task)
    untaught = TeacherPlan(plan.architectures[1:], replace(recipe, epochs=1, lr=1e-6))
    (low,), _ = measure_priors(able, untaught, task)
    assert high > 60
    assert low < high - 20


def test_priors_are_measured_once(
    prior: PriorPlan, plan: TeacherPlan, task: Task, watched: Watched, own_home: Path
) -> None:
    found = measure_priors(prior, plan, task)
    assert {name: len(calls) for name, calls in watched.calls.items()} == dict.fromkeys(watched.calls, 2)
    (path,) = (own_home / "priors").glob("*.json")
    told = json.loads(path.read_text())
    assert (told["top1_percent"], told["seconds"]) == found
    assert not list((own_home / "runs").glob("priors-*"))
    assert len(list((own_home / "reports").glob("priors-*.jsonl"))) == 1
    assert measure_priors(prior, plan, task) == found
    assert measure_priors(prior, plan, replace(task, seed=7, ipc=1)) == found, "whatever the synthesis"
    assert {len(calls) for calls in watched.calls.values()} == {2}


def test_the_synthesis_has_no_part_in_priors(
    prior: PriorPlan, plan: TeacherPlan, task: Task, watched: Watched, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured for a set of another seed and size, they are the same to the last pixel."""
    (found, _) = measure_priors(prior, plan, task)
    elsewhere = own_home.with_name("elsewhere")
    elsewhere.mkdir()
    (own_home / "teachers").rename(elsewhere / "teachers")
    monkeypatch.setenv("DDBENCH_HOME", str(elsewhere))
    assert measure_priors(prior, plan, replace(task, seed=7, ipc=1))[0] == found
    for name in ("recover", "label_tape"):
        results = [result for *_, result in watched.calls[name]]
        assert [one.equal(other) for one, other in zip(results[:2], results[2:], strict=True)] == [True, True]


def test_other_priors_are_measured_anew(
    prior: PriorPlan, plan: TeacherPlan, task: Task, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[tuple[int, ...]] = []

    def measure(_: int, __: PriorPlan, ___: Any, teachers: TeacherPlan, *____: Any) -> float:
        seeds.append((teachers.seed,))
        return 1.0

    monkeypatch.setattr(module, "_measure", measure)
    measure_priors(prior, plan, task)
    others = [
        (replace(prior, ipc=5), plan, task),
        (replace(prior, inversion=replace(prior.inversion, steps=3)), plan, task),
        (replace(prior, tape=replace(prior.tape, epochs=1)), plan, task),
        (replace(prior, training=replace(prior.training, lr=0.1)), plan, task),
        (replace(prior, initialization="noise"), plan, task),
        (prior, replace(plan, architectures=plan.architectures[::-1]), task),
        (prior, plan.only_first(), task),
        (prior, replace(plan, seed=1), task),
        (prior, plan, replace(task, data=replace(task.images, fingerprint="cd" * 32))),
    ]
    for count, (other, teachers, where) in enumerate(others, start=2):
        measure_priors(other, teachers, where)
        assert len(list((own_home / "priors").glob("*.json"))) == count


def test_a_kill_leaves_no_trace(
    prior: PriorPlan, plan: TeacherPlan, task: Task, own_home: Path, monkeypatch: pytest.MonkeyPatch,
    interrupted: Interrupt,
) -> None:  # fmt: skip
    """Every process is stopped in its first step, until nothing is left to do."""
    obtain_teachers(plan, task)
    (straight, seconds) = measure_priors(prior, plan, task)
    (path,) = (own_home / "priors").glob("*.json")
    reports = {file.name: file.read_text() for file in (own_home / "reports").glob("priors-*")}
    elsewhere = own_home.with_name("elsewhere")
    elsewhere.mkdir()
    (own_home / "teachers").rename(elsewhere / "teachers")
    monkeypatch.setenv("DDBENCH_HOME", str(elsewhere))
    found, lives = None, 0
    while found is None:
        lives += 1
        with interrupted(lambda *_: True, must=False):
            found = measure_priors(prior, plan, task)
        assert (found is None) == (not (elsewhere / "priors" / path.name).exists())
    # of each voter two steps of recovery, two epochs of labels, six batches of a student
    assert lives == 2 * (2 + 2 + 6) + 1
    assert found[0] == straight
    assert {file.name: file.read_text() for file in (elsewhere / "reports").glob("priors-*")} == reports
    assert (found[1], seconds) > (0, 0)


def test_rejects_priors_of_no_images(prior: PriorPlan) -> None:
    with pytest.raises(ConfigError, match=r"^prior ipc is 0; expected at least 1$"):
        replace(prior, ipc=0)
