"""Inversion: the loop is the one of the papers, every group is as if alone, and a kill leaves no trace."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import hflip, resized_crop

from dd_bench.errors import ConfigError, NonFiniteError
from dd_bench.learn.crops import draw_crops
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.settings import as_settings
from synth.parts.inversion import (
    Canvas,
    FreePixels,
    InversionRecipe,
    SharedOffsets,
    Views,
    Voter,
    draw_shifts,
    invert,
    roll_groups,
)
from tests.conftest import Interrupt, at
from tests.references import inversion as reference
from tests.references.inversion import TwoLayers

RECIPE = InversionRecipe(steps=6, lr=0.25, alpha=0.7, first_bn_weight=10.0, jitter=2)
CLASSES = torch.tensor([0, 1, 2, 1])
MEAN, STD = torch.tensor([0.4, 0.6]), torch.tensor([0.2, 0.3])
CROPPED = replace(RECIPE, smallest_crop=0.2, mirror=True)


@pytest.fixture
def net() -> TwoLayers:
    with seeded(0):
        return TwoLayers().eval().requires_grad_(False)


def base(groups: int, seed: int = 0) -> Tensor:
    return torch.rand(groups, len(CLASSES), 2, 6, 6, generator=generator(seed))


def learn(
    net: TwoLayers, pixels: Tensor, folder: Path, *, seeds: list[int], recipe: InversionRecipe = RECIPE,
    run: Run | None = None,
) -> SharedOffsets:  # fmt: skip
    canvas = SharedOffsets(pixels, STD.to(pixels))
    voters = [Voter.of_all(net, len(pixels), pixels.device)]
    invert(canvas, CLASSES, voters, recipe=recipe, seeds=seeds, run=run or Run(folder), label="offsets")
    return canvas


def move(
    voters: list[Voter], pixels: Tensor, folder: Path, *, seeds: list[int], recipe: InversionRecipe = CROPPED,
    run: Run | None = None,
) -> FreePixels:  # fmt: skip
    canvas = FreePixels(pixels, MEAN.to(pixels), STD.to(pixels))
    invert(canvas, CLASSES, voters, recipe=recipe, seeds=seeds, run=run or Run(folder), label="pixels")
    return canvas


def voter(net: nn.Module, weights: dict[int, float]) -> Voter:
    """Returns the network as a voter of the groups that ``weights`` names."""
    return Voter(net, torch.tensor(list(weights)), torch.tensor(list(weights.values())))


@pytest.fixture
def nets() -> list[TwoLayers]:
    """Three networks that disagree, in float64."""
    with seeded(1):
        return [TwoLayers().eval().requires_grad_(False).double() for _ in range(3)]


class DyingRun(Run):
    """A run that saves every step and dies, as by SIGKILL, when the step ``death`` is done but not yet saved."""

    def __init__(self, folder: Path, death: int) -> None:
        super().__init__(folder, save_every_seconds=0)
        self.countdown = death

    def observe(self, **quantities: Tensor) -> None:
        super().observe(**quantities)
        self.countdown -= 1
        if self.countdown < 0:
            raise KeyboardInterrupt


# --- the parts -------------------------------------------------------------------------------------------------------


def test_roll_groups_matches_reference() -> None:
    images, shifts = base(3), [(0, 1), (5, 2), (3, 0)]
    rolled = roll_groups(images, shifts)
    for group, (down, right) in enumerate(shifts):
        for row in range(6):
            for column in range(6):
                moved = rolled[group, :, :, (row + down) % 6, (column + right) % 6]
                assert moved.equal(images[group, :, :, row, column])


def test_shifts_reach_from_zero_to_jitter() -> None:
    shifts = draw_shifts(replace(RECIPE, steps=300), [1, 2])
    assert torch.tensor(shifts).shape == (300, 2, 2)
    for group in range(2):
        for axis in range(2):
            counts = torch.bincount(torch.tensor(shifts)[:, group, axis])
            assert len(counts) == RECIPE.jitter + 1
            assert counts.min() > 60  # of 100 expected


def test_shifts_of_a_group_know_no_company() -> None:
    both, alone = draw_shifts(RECIPE, [5, 9]), draw_shifts(RECIPE, [9])
    assert [step[1] for step in both] == [step[0] for step in alone]
    assert draw_shifts(RECIPE, [5]) != alone


def test_no_jitter_moves_nothing() -> None:
    assert draw_shifts(replace(RECIPE, jitter=0), [3]) == [[(0, 0)]] * RECIPE.steps


def test_canvas_counts_in_normalised_units() -> None:
    canvas = SharedOffsets(base(2), STD)
    assert canvas.images().equal(canvas.base)
    with torch.no_grad():
        canvas.moved[1] = 2.0
    expected = canvas.base.clone()
    expected[1, :, 0] += 2 * 0.2
    expected[1, :, 1] += 2 * 0.3
    torch.testing.assert_close(canvas.images(), expected)  # beyond 1 in places: nothing is clipped
    assert canvas.images().max() > 1
    torch.testing.assert_close(canvas.pixel_offsets()[1, :, 0, 0], torch.tensor([0.4, 0.6]))
    assert not canvas.pixel_offsets().requires_grad


def test_free_pixels_count_in_normalised_units() -> None:
    pixels = base(2)
    canvas = FreePixels(pixels, MEAN, STD)
    assert canvas.moved.requires_grad
    torch.testing.assert_close(canvas.moved[0, 1, 0], (pixels[0, 1, 0] - 0.4) / 0.2)
    torch.testing.assert_close(canvas.moved[1, 3, 1], (pixels[1, 3, 1] - 0.6) / 0.3)
    torch.testing.assert_close(canvas.images(), pixels)
    with torch.no_grad():
        canvas.moved[:, :, 0] += 100
        canvas.moved[:, :, 1] -= 100
        canvas.moved[0, 0, 1] = 0.5
    canvas.project()
    torch.testing.assert_close(canvas.images()[:, :, 0], torch.ones(2, 4, 6, 6))
    torch.testing.assert_close(canvas.images()[0, 0, 1], torch.full((6, 6), 0.6 + 0.5 * 0.3))
    torch.testing.assert_close(canvas.images()[1, :, 1], torch.zeros(4, 6, 6))
    assert canvas.moved.requires_grad


def test_offsets_are_free() -> None:
    canvas = SharedOffsets(base(2), STD)
    with torch.no_grad():
        canvas.moved += 100
    canvas.project()
    assert canvas.moved.eq(100).all()


def test_a_voter_of_all_counts_once_everywhere(net: TwoLayers) -> None:
    one = Voter.of_all(net, 3, torch.device("cpu"))
    assert (one.model, one.groups.tolist(), one.weights.tolist()) == (net, [0, 1, 2], [1.0, 1.0, 1.0])


# --- what voters see -------------------------------------------------------------------------------------------------


def seen_by_hand(images: Tensor, recipe: InversionRecipe, seed: int, step: int) -> Tensor:
    """Returns a group's images (n, C, H, W) as torchvision crops and mirrors them, then rolled."""
    (height, width), each = images.shape[-2:], len(images) if recipe.crop_each else 1
    size = recipe.steps * each
    boxes = draw_crops(size, height, width, generator(derive_seed("crops", seed)), smallest=recipe.smallest_crop)
    flips = torch.rand(size, generator=generator(derive_seed("flips", seed))) < 0.5
    shown = []
    for index, image in enumerate(images):
        draw = step * each + (index if recipe.crop_each else 0)
        if recipe.smallest_crop < 1:
            image = resized_crop(image, *boxes[draw].tolist(), size=[height, width], antialias=False)
        shown.append(hflip(image) if recipe.mirror and flips[draw] else image)
    return torch.stack(shown).roll(draw_shifts(recipe, [seed])[step][0], dims=(2, 3))


VIEWS = {
    "published for CV-DD": CROPPED,
    "cropped alone": replace(CROPPED, mirror=False),
    "mirrored alone": replace(CROPPED, smallest_crop=1.0),
    "each its own": replace(CROPPED, crop_each=True),
    "each its own side": replace(CROPPED, smallest_crop=1.0, crop_each=True),
    "still": replace(CROPPED, jitter=0),
    "published for INFER": RECIPE,
}


@pytest.mark.parametrize("recipe", VIEWS.values(), ids=list(VIEWS))
def test_views_match_torchvision(recipe: InversionRecipe) -> None:
    images = torch.rand(2, 4, 2, 6, 9, generator=generator(8))
    views = Views(recipe, images.shape, [3, 4], images.device)
    for step in range(recipe.steps):
        expected = [seen_by_hand(group, recipe, seed, step) for group, seed in zip(images, (3, 4), strict=True)]
        torch.testing.assert_close(views.show(images, step), torch.stack(expected), rtol=0, atol=1e-5)


def test_whole_images_are_moved_and_never_interpolated() -> None:
    images = base(2)
    seen = Views(replace(CROPPED, smallest_crop=1.0), images.shape, [3, 4], images.device).show(images, 0)
    assert seen.flatten(1).sort(1).values.equal(images.flatten(1).sort(1).values)


@pytest.mark.parametrize("each", [False, True])
def test_a_group_shares_its_crop_unless_told(each: bool) -> None:
    """Four copies of an image look alike where the draw is one for all; groups have draws of their own."""
    image = base(1)[:, :1].expand(2, 4, -1, -1, -1)
    views = Views(replace(CROPPED, crop_each=each, jitter=0, steps=20), image.shape, [3, 4], image.device)
    different = 0
    for step in range(20):
        first, second = views.show(image, step)
        assert all((group[1:] - group[:1]).abs().max() < 1e-5 for group in (first, second)) != each
        different += bool((first[0] - second[0]).abs().max() > 0.05)
    assert different > 10, "of 20; whole images may meet"


def test_views_of_a_group_know_no_company() -> None:
    images = base(2)
    both = Views(CROPPED, images.shape, [5, 9], images.device)
    alone = Views(CROPPED, images[1:].shape, [9], images.device)
    for step in range(CROPPED.steps):
        assert both.show(images, step)[1].equal(alone.show(images[1:], step)[0])


def test_half_of_the_steps_are_mirrored() -> None:
    ramp = torch.arange(6.0).expand(1, 1, 1, 6, 6)
    views = Views(replace(CROPPED, smallest_crop=1.0, jitter=0, steps=400), ramp.shape, [5], ramp.device)
    share = sum(bool(views.show(ramp, step)[0, 0, 0, 0, 0]) for step in range(400)) / 400
    assert 0.42 < share < 0.58


# --- the loop --------------------------------------------------------------------------------------------------------


def test_gradient_of_the_offset_is_the_sum_over_images(net: TwoLayers, tmp_path: Path) -> None:
    """The oracle gives every image an offset of its own."""
    pixels, recipe = base(2).double(), replace(RECIPE, steps=1)
    net.double()
    canvas = learn(net, pixels, tmp_path, seeds=[3, 4], recipe=recipe)
    assert canvas.moved.grad is not None
    for group, shift in enumerate(draw_shifts(recipe, [3, 4])[0]):
        own = torch.zeros_like(pixels[group], requires_grad=True)
        images = (pixels[group] + own * STD.view(-1, 1, 1)).roll(shift, dims=(2, 3))
        value = reference.objective(net, images, CLASSES, alpha=recipe.alpha, first_weight=recipe.first_bn_weight)
        (gradients,) = torch.autograd.grad(value, own)
        torch.testing.assert_close(canvas.moved.grad[group, 0], gradients.sum(0))


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, replace(RECIPE, alpha=0.0), replace(RECIPE, jitter=0, first_bn_weight=1.0), replace(RECIPE, lr=0.01)],
)
def test_matches_reference(net: TwoLayers, tmp_path: Path, recipe: InversionRecipe) -> None:
    """Float64 hides no difference but the schedule's float32 cosine."""
    pixels = base(1).double()
    net.double()
    canvas = learn(net, pixels, tmp_path, seeds=[7], recipe=recipe)
    shifts = [step[0] for step in draw_shifts(recipe, [7])]
    expected = reference.invert(
        net, pixels[0], STD.double(), CLASSES, steps=recipe.steps, lr=recipe.lr, alpha=recipe.alpha,
        first_weight=recipe.first_bn_weight, shifts=shifts,
    )  # fmt: skip
    torch.testing.assert_close(canvas.pixel_offsets()[0], expected, rtol=1e-5, atol=1e-7)
    assert expected.abs().max() > recipe.lr * 0.2 / 2  # they went somewhere


def test_groups_are_as_if_alone(net: TwoLayers, tmp_path: Path) -> None:
    """Not to the bit: kernels sum in another order for another batch size; in float64 that is all one can see."""
    pixels = base(3).double()
    net.double()
    together = learn(net, pixels, tmp_path / "all", seeds=[1, 2, 3]).pixel_offsets()
    for group in range(3):
        alone = learn(net, pixels[group : group + 1], tmp_path / str(group), seeds=[group + 1]).pixel_offsets()
        torch.testing.assert_close(together[group], alone[0], rtol=1e-6, atol=1e-9)


def test_reports_the_mean_over_groups(net: TwoLayers, tmp_path: Path) -> None:
    pixels = base(2)
    learn(net, pixels, tmp_path, seeds=[1, 2])
    first = json.loads((tmp_path / "report.jsonl").read_text().splitlines()[0])
    shifts = draw_shifts(RECIPE, [1, 2])[0]
    totals = [
        reference.objective(net, group.roll(shift, dims=(2, 3)), CLASSES, alpha=RECIPE.alpha, first_weight=10.0)
        for group, shift in zip(pixels, shifts, strict=True)
    ]
    assert first["ce"] + RECIPE.alpha * first["bn"] == pytest.approx(float(sum(totals)) / 2, rel=1e-5)
    assert (first["stage"], first["step"]) == ("offsets", 1)


def test_the_rate_falls_from_lr_to_almost_nothing(
    net: TwoLayers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, betas = [], set()
    step = torch.optim.Adam.step

    def spy(self: torch.optim.Adam) -> None:
        rates.append(self.param_groups[0]["lr"])
        betas.add((self.param_groups[0]["betas"], self.param_groups[0]["eps"], self.param_groups[0]["weight_decay"]))
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    learn(net, base(1), tmp_path, seeds=[0], recipe=replace(RECIPE, steps=10))
    assert rates == pytest.approx([0.25 * 0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)], rel=1e-6)
    assert betas == {((0.5, 0.9), 1e-8, 0)}


def test_the_loss_of_every_group_falls(net: TwoLayers, tmp_path: Path) -> None:
    pixels, recipe = base(3), replace(RECIPE, steps=40)
    canvas = learn(net, pixels, tmp_path, seeds=[1, 2, 3], recipe=recipe)
    for before, after in zip(pixels, canvas.images().detach(), strict=True):
        losses = [
            float(reference.objective(net, images, CLASSES, alpha=recipe.alpha, first_weight=10.0))
            for images in (before, after)
        ]
        assert losses[1] < 0.9 * losses[0]


def test_touches_the_offsets_alone(net: TwoLayers, tmp_path: Path) -> None:
    pixels, state = base(2), {name: value.clone() for name, value in net.state_dict().items()}
    before, draws = pixels.clone(), torch.random.get_rng_state()
    learn(net, pixels, tmp_path, seeds=[1, 2])
    assert pixels.equal(before)
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not net.training
    assert torch.random.get_rng_state().equal(draws)


# --- committees ------------------------------------------------------------------------------------------------------


def gradient_of(voters: list[Voter], pixels: Tensor, folder: Path, recipe: InversionRecipe) -> Tensor:
    """Returns the gradient (G, n, C, H, W) of the first step."""
    seeds = list(range(len(pixels)))
    moved = move(voters, pixels, folder, seeds=seeds, recipe=replace(recipe, steps=1)).moved
    assert moved.grad is not None
    return moved.grad


def test_two_voters_are_the_weighted_sum_of_each_alone(nets: list[TwoLayers], tmp_path: Path) -> None:
    """On the same view; the weights of a voter differ between its groups."""
    pixels, (first, second) = base(2).double(), [{0: 0.3, 1: 0.9}, {0: 0.7, 1: 0.1}]
    both = gradient_of([voter(nets[0], first), voter(nets[1], second)], pixels, tmp_path / "both", CROPPED)
    expected = torch.zeros_like(pixels)
    for number, (net, weights) in enumerate(zip(nets, (first, second), strict=False)):
        alone = gradient_of([Voter.of_all(net, 2, pixels.device)], pixels, tmp_path / str(number), CROPPED)
        for group, weight in weights.items():
            expected[group] += torch.tensor(weight).double() * alone[group]
    torch.testing.assert_close(both, expected)
    assert both.abs().amax((1, 2, 3, 4)).min() > 1e-4


@pytest.mark.parametrize("recipe", [CROPPED, replace(CROPPED, crop_each=True), RECIPE], ids=["shared", "each", "whole"])
def test_the_gradient_of_a_committee_matches_autograd(
    nets: list[TwoLayers], tmp_path: Path, recipe: InversionRecipe
) -> None:
    """Statistics read off by hand, views by torchvision, and BN's share weighted together with the cross-entropy."""
    pixels, recipe = base(1).double(), replace(recipe, steps=1)
    found = gradient_of([voter(nets[0], {0: 0.25}), voter(nets[2], {0: 0.75})], pixels, tmp_path, recipe)
    mean, std = (part.double().view(-1, 1, 1) for part in (MEAN, STD))
    moved = ((pixels[0] - mean) / std).requires_grad_()
    seen = seen_by_hand(moved * std + mean, recipe, 0, 0)
    loss = sum(
        weight * reference.objective(net, seen, CLASSES, alpha=0.7, first_weight=10.0)
        for net, weight in ((nets[0], 0.25), (nets[2], 0.75))
    )
    torch.testing.assert_close(found[0], torch.autograd.grad(loss, moved)[0], rtol=1e-5, atol=1e-7)


def test_groups_of_different_committees_are_as_if_alone(nets: list[TwoLayers], tmp_path: Path) -> None:
    """Two groups share a voter, one has a voter of its own, one is judged by all three."""
    pixels = base(4).double()
    shares = [{0: 0.2, 1: 0.6, 3: 0.5}, {0: 0.8, 3: 0.3}, {1: 0.4, 2: 1.0, 3: 0.2}]
    voters = [voter(net, weights) for net, weights in zip(nets, shares, strict=True)]
    together = move(voters, pixels, tmp_path / "all", seeds=[1, 2, 3, 4]).images().detach()
    for group in range(4):
        own = [voter(net, {0: weights[group]}) for net, weights in zip(nets, shares, strict=True) if group in weights]
        alone = move(own, pixels[group : group + 1], tmp_path / str(group), seeds=[group + 1]).images().detach()
        torch.testing.assert_close(together[group], alone[0], rtol=1e-6, atol=1e-8)
        assert (alone[0] - pixels[group]).abs().max() > 0.1


def test_free_pixels_match_a_loop_by_hand(nets: list[TwoLayers], tmp_path: Path) -> None:
    """torch's own Adam on the weighted objectives of torchvision's views, clamped in pixel space after every step."""
    recipe, pixels = replace(CROPPED, steps=12, lr=0.4), base(1).double()
    weights = (0.25, 0.75)
    voters = [voter(net, {0: weight}) for net, weight in zip(nets, weights, strict=False)]
    found = move(voters, pixels, tmp_path, seeds=[7], recipe=recipe).images()[0].detach()
    mean, std = (part.double().view(-1, 1, 1) for part in (MEAN, STD))
    x = ((pixels[0] - mean) / std).requires_grad_()
    adam = torch.optim.Adam([x], betas=(0.5, 0.9))
    for t in range(12):
        adam.param_groups[0]["lr"] = 0.4 * (1 + math.cos(math.pi * t / 12)) / 2
        seen = seen_by_hand(x * std + mean, recipe, 7, t)
        losses = [reference.objective(net, seen, CLASSES, alpha=0.7, first_weight=10.0) for net in nets[:2]]
        adam.zero_grad()
        (weights[0] * losses[0] + weights[1] * losses[1]).backward()  # type: ignore[no-untyped-call]
        adam.step()
        x.data = ((x.data * std + mean).clamp(0, 1) - mean) / std
    expected = (x * std + mean).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert ((expected < 1e-9) | (expected > 1 - 1e-9)).double().mean() > 0.1, "the clamp would not matter"


def test_pixels_stay_in_range_in_every_step(nets: list[TwoLayers], tmp_path: Path) -> None:
    canvas = FreePixels(base(2).double(), MEAN.double(), STD.double())
    ranges: list[tuple[float, float]] = []

    class Watching(Run):
        def observe(self, **quantities: Tensor) -> None:
            images = canvas.images().detach()
            ranges.append((float(images.min()), float(images.max())))

    invert(
        canvas, CLASSES, [Voter.of_all(nets[0], 2, torch.device("cpu"))], recipe=replace(CROPPED, lr=5.0), seeds=[1, 2],
        run=Watching(tmp_path), label="pixels",
    )  # fmt: skip
    assert len(ranges) == CROPPED.steps
    for low, high in ranges:
        assert (low, high) == (pytest.approx(0, abs=1e-12), pytest.approx(1, abs=1e-12))


def test_a_step_of_free_pixels_is_lr_times_std(nets: list[TwoLayers], tmp_path: Path) -> None:
    """Adam's first step is the rate itself wherever there is a gradient."""
    pixels = torch.full((1, 4, 2, 6, 6), 0.5).double()
    recipe = replace(CROPPED, smallest_crop=1.0, steps=1, lr=0.05)
    moved = move([Voter.of_all(nets[0], 1, pixels.device)], pixels, tmp_path, seeds=[1], recipe=recipe)
    steps = (moved.images().detach() - pixels).abs()
    for channel, std in enumerate((0.2, 0.3)):
        torch.testing.assert_close(
            steps[:, :, channel], torch.full((1, 4, 6, 6), 0.05 * std).double(), rtol=1e-3, atol=0
        )


def test_a_relative_distance_is_divided_by_what_the_network_remembers(nets: list[TwoLayers], tmp_path: Path) -> None:
    """One more factor in alpha, of each voter's own; the first layer weighs as much in both sums."""
    pixels, recipe = base(1).double(), replace(CROPPED, steps=1, relative_bn=True)
    found = gradient_of([voter(nets[0], {0: 0.25}), voter(nets[1], {0: 0.75})], pixels, tmp_path / "both", recipe)
    expected = torch.zeros_like(pixels)
    for net, weight in ((nets[0], 0.25), (nets[1], 0.75)):
        sizes = []
        for norm in (net.bn1, net.bn2):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            sizes.append(sum(float((part**2).sum()) ** 0.5 for part in (norm.running_mean, norm.running_var)))
        absolute = replace(recipe, relative_bn=False, alpha=recipe.alpha / (10 * sizes[0] + sizes[1]))
        folder = tmp_path / str(weight)
        expected += weight * gradient_of([Voter.of_all(net, 1, pixels.device)], pixels, folder, absolute)
    torch.testing.assert_close(found, expected)


def test_reports_the_mean_over_voters_and_groups(nets: list[TwoLayers], tmp_path: Path) -> None:
    """Unweighted, so that the numbers of a committee and of one network mean the same."""
    pixels = base(2).double()
    voters = [voter(nets[0], {0: 0.2, 1: 0.2}), voter(nets[1], {0: 0.8})]
    move(voters, pixels, tmp_path, seeds=[1, 2])
    first = json.loads((tmp_path / "report.jsonl").read_text().splitlines()[0])
    totals = [
        [float(reference.objective(net, seen_by_hand(pixels[group], CROPPED, group + 1, 0), CLASSES, alpha=0.7,
                                   first_weight=10.0)) for group in groups]
        for net, groups in ((nets[0], (0, 1)), (nets[1], (0,)))
    ]  # fmt: skip
    expected = (sum(totals[0]) / 2 + totals[1][0]) / 2
    assert first["ce"] + 0.7 * first["bn"] == pytest.approx(expected, rel=1e-4)


def test_a_canvas_of_another_kind_is_moved_alike(nets: list[TwoLayers], tmp_path: Path) -> None:
    """The loop knows of a canvas what ``Canvas`` says, and projects after every step."""

    class Grey:
        def __init__(self) -> None:
            self.moved = torch.full((1, 4, 1, 6, 6), 0.5).double().requires_grad_()
            self.projected = 0

        def images(self) -> Tensor:
            return self.moved.expand(-1, -1, 2, -1, -1)

        def project(self) -> None:
            self.projected += 1

    canvas = Grey()
    known: Canvas = canvas
    voters = [Voter.of_all(nets[0], 1, torch.device("cpu"))]
    invert(known, CLASSES, voters, recipe=CROPPED, seeds=[1], run=Run(tmp_path), label="grey")
    assert canvas.projected == CROPPED.steps
    assert canvas.moved.detach().std() > 0.01


def test_later_settings_are_told_where_they_are_used() -> None:
    """Else the ids of all that was made before them would move."""
    before = {"steps": 1000, "lr": 0.25, "alpha": 1.0, "first_bn_weight": 10.0, "jitter": 4}
    assert as_settings(InversionRecipe()) == before
    used = {"smallest_crop": 0.08, "mirror": True, "crop_each": True, "relative_bn": True}
    assert as_settings(InversionRecipe(**used)) == before | used  # type: ignore[arg-type]


# --- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("death", [0, 1, 3, 5])
def test_a_killed_process_leaves_no_trace(net: TwoLayers, tmp_path: Path, death: int) -> None:
    pixels = base(2)
    straight = learn(net, pixels, tmp_path / "straight", seeds=[1, 2])
    with pytest.raises(KeyboardInterrupt):
        learn(net, pixels, tmp_path / "killed", seeds=[1, 2], run=DyingRun(tmp_path / "killed", death))
    resumed = learn(net, pixels, tmp_path / "killed", seeds=[1, 2])
    assert resumed.pixel_offsets().equal(straight.pixel_offsets())
    reports = [(tmp_path / name / "report.jsonl").read_text() for name in ("straight", "killed")]
    assert reports[0] == reports[1]


def test_a_killed_committee_leaves_no_trace(nets: list[TwoLayers], tmp_path: Path) -> None:
    pixels, voters = base(2).double(), [voter(nets[0], {0: 1.0}), voter(nets[1], {1: 1.0})]
    straight = move(voters, pixels, tmp_path / "straight", seeds=[1, 2])
    with pytest.raises(KeyboardInterrupt):
        move(voters, pixels, tmp_path / "killed", seeds=[1, 2], run=DyingRun(tmp_path / "killed", 3))
    assert move(voters, pixels, tmp_path / "killed", seeds=[1, 2]).moved.equal(straight.moved)


def test_resume_is_invisible(net: TwoLayers, tmp_path: Path, interrupted: Interrupt) -> None:
    pixels = base(2)
    straight = learn(net, pixels, tmp_path / "straight", seeds=[1, 2])
    for stop in (1, 4):
        with interrupted(at("offsets", stop)):
            learn(net, pixels, tmp_path / "killed", seeds=[1, 2])
    resumed = learn(net, pixels, tmp_path / "killed", seeds=[1, 2])
    assert resumed.pixel_offsets().equal(straight.pixel_offsets())


def test_finished_work_is_not_done_again(net: TwoLayers, tmp_path: Path) -> None:
    first = learn(net, base(2), tmp_path, seeds=[1, 2])
    net.conv1.weight.fill_(torch.nan)  # a single step would show
    assert learn(net, base(2), tmp_path, seeds=[1, 2]).pixel_offsets().equal(first.pixel_offsets())


# --- rejections ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"lr": 0.0}, {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"alpha": -0.1},
        {"alpha": math.nan}, {"alpha": math.inf}, {"first_bn_weight": -1.0}, {"first_bn_weight": math.nan},
        {"jitter": -1}, {"smallest_crop": 0.0}, {"smallest_crop": -0.1}, {"smallest_crop": 1.01},
        {"smallest_crop": math.nan},
    ],
)  # fmt: skip
def test_rejects_recipes(wrong: dict[str, float]) -> None:
    message = rf"{next(iter(wrong))}={next(iter(wrong.values()))}.*expected steps >= 1, .*smallest_crop in \(0, 1\]$"
    with pytest.raises(ConfigError, match=message):
        InversionRecipe(**wrong)  # type: ignore[arg-type]


def test_takes_the_edges() -> None:
    InversionRecipe(steps=1, alpha=0, first_bn_weight=0, jitter=0, smallest_crop=1)
    InversionRecipe(smallest_crop=1e-3)


def test_rejects_a_loss_that_is_not_finite(net: TwoLayers, tmp_path: Path) -> None:
    net.head.weight.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match="offsets: ce became NaN or infinite at step 1;"):
        learn(net, base(1), tmp_path, seeds=[0])
    assert not list(tmp_path.glob("*.safetensors"))  # the state is not worth going on from


def test_rejects_a_teacher_without_batch_norm(tmp_path: Path) -> None:
    plain = Voter.of_all(nn.Sequential(nn.Flatten(), nn.Linear(72, 3)), 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="no BatchNorm2d fired"):
        invert(
            SharedOffsets(base(1), STD), CLASSES, [plain], recipe=RECIPE, seeds=[0], run=Run(tmp_path), label="offsets"
        )
