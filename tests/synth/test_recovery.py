"""Recovery: slots that know nothing of one another, judged by their own voters, and losses that fall."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.learn.training import TrainingRecipe
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from synth.base import Task
from synth.parts import recovery as module
from synth.parts.inversion import FreePixels, InversionRecipe, Voter, invert
from synth.parts.recovery import recover
from synth.parts.teachers import Teacher, TeacherPlan, obtain_teachers
from tests.conftest import Interrupt
from tests.references.inversion import TwoLayers, bn_distance

MEAN, STD = (0.4, 0.6), (0.2, 0.3)
SPEC = DatasetSpec("toy", (2, 6, 6), 3, MEAN, STD, True, ("a", "b", "c"))
RECIPE = InversionRecipe(steps=4, alpha=0.1, jitter=2, smallest_crop=0.3, mirror=True)
COMMITTEES: list[tuple[int, ...]] = [(0, 1), (1, 2), (0, 2), (1,)]
WEIGHTS = [[0.3, 0.7], [0.9, 0.1], [0.5, 0.5], [1.0]]


def nets(classes: int = 3) -> list[nn.Module]:
    """Three networks that disagree, in float64, where sums in another order come to the same pixels."""
    with seeded(1):
        return [TwoLayers(classes=classes).eval().requires_grad_(False).double() for _ in range(3)]


def teachers(models: Sequence[nn.Module]) -> list[Teacher]:
    return [Teacher(model, None) for model in models]  # type: ignore[arg-type]


def begin(slots: int = 4, classes: int = 3) -> Tensor:
    return torch.rand(slots, classes, 2, 6, 6, generator=generator(0)).double()


def make(pixels: Tensor, models: Sequence[nn.Module], folder: Path, **named: Any) -> Tensor:
    known: dict[str, Any] = {
        "committees": COMMITTEES, "weights": WEIGHTS, "recipe": RECIPE, "spec": SPEC, "seed": 5, "run": Run(folder),
        "label": "recover",
    }  # fmt: skip
    known |= named
    return recover(pixels, teachers(models), known.pop("committees"), known.pop("weights"), **known)


@pytest.fixture
def inversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[FreePixels, Tensor, list[Voter], dict[str, Any]]]:
    """Collects what each inversion was given; the canvas is then where it came to."""
    calls: list[tuple[FreePixels, Tensor, list[Voter], dict[str, Any]]] = []

    def spy(canvas: FreePixels, classes: Tensor, voters: list[Voter], **named: Any) -> None:
        calls.append((canvas, classes, voters, named))
        invert(canvas, classes, voters, **named)

    monkeypatch.setattr(module, "invert", spy)
    return calls


def test_matches_a_loop_over_slots(tmp_path: Path) -> None:
    """Each slot alone, with the seed, the voters and the weights that are its own, rounded to bytes."""
    pixels, models = begin(), nets()
    images = make(pixels, models, tmp_path / "all")
    assert images.dtype == torch.uint8
    assert images.shape == (4, 3, 2, 6, 6)
    for slot, (committee, weights) in enumerate(zip(COMMITTEES, WEIGHTS, strict=True)):
        canvas = FreePixels(pixels[slot : slot + 1], torch.tensor(MEAN), torch.tensor(STD))
        voters = [
            Voter(models[index], torch.tensor([0]), torch.tensor([weight]))
            for index, weight in zip(committee, weights, strict=True)
        ]
        invert(
            canvas, torch.arange(3), voters, recipe=RECIPE, seeds=[derive_seed("recovery", 5, 0, slot)],
            run=Run(tmp_path / str(slot)), label="alone",
        )  # fmt: skip
        assert images[slot].equal((canvas.images()[0].detach() * 255).round().byte())
    assert (images.double() / 255 - pixels).abs().amax((1, 2, 3, 4)).min() > 0.1


def test_slots_beside_each_other_or_in_parts_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inversions: list[Any]
) -> None:
    pixels, models = begin(), nets()
    whole = make(pixels, models, tmp_path / "whole")
    assert len(inversions) == 1
    for width, sizes in ((3, [3, 1]), (1, [1] * 4)):
        inversions.clear()
        monkeypatch.setattr(module, "_PIXELS_AT_ONCE", width * 3 * 6 * 6 + 1)
        assert make(pixels, models, tmp_path / str(width)).equal(whole)
        assert [len(canvas.moved) for canvas, *_ in inversions] == sizes
        labels = [named["label"] for *_, named in inversions]
        assert len(set(labels)) == len(sizes)
        assert all(label.startswith("recover") for label in labels)
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 1)
    assert make(pixels, models, tmp_path / "none").equal(whole), "one slot always fits"


def test_more_than_a_hundred_classes_are_split(tmp_path: Path, inversions: list[Any]) -> None:
    """Statistics are of up to 100 images, as published; every class gets an image of its own."""
    spec = replace(SPEC, num_classes=203, class_names=tuple(map(str, range(203))))
    committees: list[tuple[int, ...]] = [(0,), (0, 1)]
    weights, models = [[1.0], [0.5, 0.5]], nets(203)
    pixels = begin(2, 203)
    images = make(
        pixels, models, tmp_path, committees=committees, weights=weights, spec=spec, recipe=replace(RECIPE, steps=2)
    )
    assert [classes.tolist() for _, classes, *_ in inversions] == [
        list(range(100)), list(range(100, 200)), [200, 201, 202],
    ]  # fmt: skip
    assert images.shape == (2, 203, 2, 6, 6)
    parts = [(canvas.images().detach() * 255).round().byte() for canvas, *_ in inversions]
    assert torch.cat(parts, dim=1).equal(images)
    seeds = [tuple(named["seeds"]) for *_, named in inversions]
    assert len({seed for part in seeds for seed in part}) == 6, "no two groups see the same crops"
    assert len({named["label"] for *_, named in inversions}) == 3


def test_only_the_voters_of_a_slot_shape_it(tmp_path: Path) -> None:
    pixels, models = begin(), nets()
    before = make(pixels, models, tmp_path / "before")
    models[2] = models[2].__class__(classes=3).eval().requires_grad_(False).double()
    after = make(pixels, models, tmp_path / "after")
    same = [before[slot].equal(after[slot]) for slot in range(4)]
    assert same == [2 not in committee for committee in COMMITTEES]
    models[0].head.weight.fill_(torch.nan)  # type: ignore[union-attr, operator]
    rest = make(pixels[1:2], models, tmp_path / "rest", committees=COMMITTEES[1:2], weights=WEIGHTS[1:2])
    assert rest.shape == (1, 3, 2, 6, 6), "who votes nowhere is not asked"


def test_weights_decide(tmp_path: Path) -> None:
    """All of the weight on one voter is that voter alone."""
    pixels, models = begin(2), nets()
    committees: list[tuple[int, ...]] = [(0, 1), (0, 2)]
    heavy = make(pixels, models, tmp_path / "a", committees=committees, weights=[[0.0, 1.0], [1.0, 0.0]])
    alone = make(pixels, models, tmp_path / "b", committees=[(1,), (0,)], weights=[[1.0], [1.0]])
    even = make(pixels, models, tmp_path / "c", committees=committees, weights=[[0.5, 0.5]] * 2)
    assert heavy.equal(alone)
    assert not any(heavy[slot].equal(even[slot]) for slot in range(2))


def test_seeds_decide(tmp_path: Path) -> None:
    first, again, other = (make(begin(), nets(), tmp_path / str(n), seed=seed) for n, seed in enumerate((1, 1, 2)))
    assert first.equal(again)
    assert not any(first[slot].equal(other[slot]) for slot in range(4))


def test_pixels_that_hardly_move_come_back(tmp_path: Path) -> None:
    """From bytes to normalised units and back; the pixels to begin with are nobody else's."""
    stored = torch.randint(0, 256, (4, 3, 2, 6, 6), dtype=torch.uint8, generator=generator(3))
    pixels = stored.float() / 255
    models = [net.float() for net in nets()]
    before = pixels.clone()
    assert make(pixels, models, tmp_path, recipe=replace(RECIPE, lr=1e-6)).equal(stored)
    assert pixels.equal(before)


def test_a_kill_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Interrupt) -> None:
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 2 * 3 * 36)
    straight = make(begin(), nets(), tmp_path / "straight")
    found, lives = None, 0
    while found is None:
        lives += 1
        with interrupted(lambda *_: True, must=False):
            found = make(begin(), nets(), tmp_path / "killed")
    assert lives == 2 * 4 + 1
    assert found.equal(straight)


# --- does it do anything? --------------------------------------------------------------------------------------------


def loss_of(model: nn.Module, images: Tensor, recipe: InversionRecipe) -> float:
    """Cross-entropy and BN distance on whole images, read off by hooks of its own."""
    entered: list[tuple[Tensor, nn.BatchNorm2d]] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: entered.append((inputs[0], layer))) for layer in layers
    ]
    error = F.cross_entropy(model(images), torch.arange(len(images)))
    for hook in hooks:
        hook.remove()
    distances = [bn_distance(*pair) for pair in entered]
    return float(error + recipe.alpha * (recipe.first_bn_weight * distances[0] + sum(distances[1:])))


@pytest.mark.parametrize("alpha", [0.01, 1.0])
def test_the_loss_of_every_slot_falls_by_a_third(task: Task, tmp_path: Path, alpha: float) -> None:
    """The smoke gate: two trained networks, three slots, from noise, as images that are stored."""
    plan = TeacherPlan(("convnet1-batch-x0.0625", "convnet2-batch-x0.125"), TrainingRecipe(epochs=8, batch=36, lr=0.05))
    recipe = InversionRecipe(steps=40, alpha=alpha, jitter=1, smallest_crop=0.5)
    spec, voters = task.images.spec, obtain_teachers(plan, task)
    noise = torch.rand(3, 3, 1, 8, 8, generator=generator(1))
    committees: list[tuple[int, ...]] = [(0,), (1,), (0, 1)]
    weights = [[1.0], [1.0], [0.4, 0.6]]
    images = recover(
        noise, voters, committees, weights, recipe=recipe, spec=spec, seed=0, run=Run(tmp_path), label="recover"
    )
    for slot, (committee, shares) in enumerate(zip(committees, weights, strict=True)):
        before, after = (
            sum(share * loss_of(voters[index].model, shown, recipe)
                for index, share in zip(committee, shares, strict=True))
            for shown in (noise[slot], images[slot].float() / 255)
        )  # fmt: skip
        assert after < 0.7 * before


def test_images_that_must_not_be_mirrored_are_not(tmp_path: Path) -> None:
    upright = replace(SPEC, mirror=False)
    asked = make(begin(), nets(), tmp_path / "asked", spec=upright)
    assert asked.equal(
        make(begin(), nets(), tmp_path / "not asked", spec=upright, recipe=replace(RECIPE, mirror=False))
    )
    assert not asked.equal(make(begin(), nets(), tmp_path / "photographs"))
