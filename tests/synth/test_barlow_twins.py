"""Barlow Twins: the loss against loops, views that are their seed's, networks that learn to agree, and collapses."""

import random
from collections.abc import Callable
from dataclasses import replace
from math import cos, exp, log, pi, sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, DivergedError, NonFiniteError
from dd_bench.models import Classifier, build
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from synth.parts import barlow_twins as module
from synth.parts.barlow_twins import (
    BarlowTwinsRecipe,
    Distortion,
    barlow_twins_loss,
    cross_correlation,
    effective_rank,
    require_spread,
    train_barlow_twins,
)
from tests.conftest import BLOBS, Interrupt, at

RECIPE = BarlowTwinsRecipe(steps=6, batch=50, lr=4e-3, projector=(24, 16), smallest_crop=0.5)
COLOUR = DatasetSpec("toy", (3, 8, 8), 3, (0.5,) * 3, (0.25,) * 3, True, ("a", "b", "c"))
NEUTRAL = replace(RECIPE, jitter=0.0, smallest_crop=1.0)  # whole images in their own colours


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def orthogonal(count: int, width: int, seed: int = 0) -> Tensor:
    """Columns (count, width) of mean 0 and mean square 1, each at right angles to the others."""
    ones = torch.ones(count, 1, dtype=torch.float64)
    basis, _ = torch.linalg.qr(torch.cat([ones, draw(count, width, seed=seed)], dim=1))
    return basis[:, 1:] * sqrt(count)


def network(name: str = "convnet1-batch-x0.0625", spec: DatasetSpec = BLOBS, seed: int = 0) -> Classifier:
    with seeded(seed):
        model = build(name, spec)
    assert isinstance(model, Classifier)
    return model


def train(model: Classifier, data: ImageData, folder: Path, recipe: BarlowTwinsRecipe = RECIPE, seed: int = 0) -> None:
    run = Run(folder, save_every_seconds=1e9)
    train_barlow_twins(model, data.images, recipe=recipe, spec=data.spec, seed=seed, run=run, label="twins")


def state_bytes(model: nn.Module) -> list[bytes]:
    return [tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values()]


# --- the loss --------------------------------------------------------------------------------------------------------


def by_loops(first: list[list[float]], second: list[list[float]], weight: float) -> tuple[list[list[float]], float]:
    """Correlations of columns and the loss, number by number."""
    count, width = len(first), len(first[0])

    def standard(rows: list[list[float]], column: int) -> list[float]:
        values = [row[column] for row in rows]
        mean = sum(values) / count
        deviation = sqrt(sum((value - mean) ** 2 for value in values) / count)
        return [(value - mean) / deviation for value in values]

    table, loss = [], 0.0
    for i in range(width):
        ours = standard(first, i)
        table.append([sum(map(float.__mul__, ours, standard(second, j))) / count for j in range(width)])
        for j in range(width):
            loss += (1 - table[i][j]) ** 2 if i == j else weight * table[i][j] ** 2
    return table, loss


def test_matches_reference() -> None:
    first, second = draw(7, 4), 0.5 * draw(7, 4) + draw(7, 4, seed=1)
    table, loss = by_loops(first.tolist(), second.tolist(), 0.05)
    found = cross_correlation(first, second)
    torch.testing.assert_close(found, torch.tensor(table, dtype=torch.float64), rtol=0, atol=1e-12)
    assert float(barlow_twins_loss(first, second, 0.05)) == pytest.approx(loss, abs=1e-12)
    numpys = np.corrcoef(first.numpy().T, second.numpy().T)[:4, 4:]
    torch.testing.assert_close(found, torch.from_numpy(numpys), rtol=0, atol=1e-12)
    assert barlow_twins_loss(first.float(), second.float(), 0.05).dtype == torch.float32


def test_the_loss_of_the_identity_is_zero() -> None:
    """Where two views agree in features that know nothing of one another, in any units."""
    features = orthogonal(20, 5)
    assert float(barlow_twins_loss(features, 3 * features + 1, 0.7)) == pytest.approx(0, abs=1e-12)
    assert float(barlow_twins_loss(features, -features, 0.7)) == pytest.approx(5 * 4, abs=1e-12)
    same = features[:, :1].expand(20, 5)  # they agree, and all say one thing
    assert float(barlow_twins_loss(same, same, 0.7)) == pytest.approx(0.7 * 5 * 4, abs=1e-12)


def test_the_weight_is_that_of_the_entries_off_the_diagonal() -> None:
    first, second = draw(9, 3), draw(9, 3, seed=1)
    none, one, two = (float(barlow_twins_loss(first, second, weight)) for weight in (0.0, 1.0, 2.0))
    assert two - one == pytest.approx(one - none)
    assert none == pytest.approx(float((1 - cross_correlation(first, second).diagonal()).square().sum()))


def test_scale_and_shift_of_a_column_are_nothing() -> None:
    first, second = draw(9, 3), draw(9, 3, seed=1)
    expected = cross_correlation(first, second)
    scaled = second * torch.tensor([100.0, 1e-3, 2.0]) + torch.tensor([5.0, -1.0, 0.0])
    torch.testing.assert_close(cross_correlation(first, scaled), expected, rtol=0, atol=1e-10)
    turned = cross_correlation(first, second * torch.tensor([1.0, -1.0, 1.0]))
    torch.testing.assert_close(turned, expected * torch.tensor([1.0, -1.0, 1.0]), rtol=0, atol=1e-12)
    order = torch.tensor([8, 0, 3, 2, 1, 7, 6, 5, 4])
    torch.testing.assert_close(cross_correlation(first[order], second[order]), expected, rtol=0, atol=1e-12)


def test_dead_columns_correlate_with_nothing() -> None:
    first, second = draw(9, 3), draw(9, 3, seed=1)
    first[:, 1] = 0.3
    found = cross_correlation(first, second)
    assert found.isfinite().all()
    assert float(found[1].abs().max()) < 1e-10


def test_gradient_is_right() -> None:
    leaves = draw(6, 3).requires_grad_(), draw(6, 3, seed=1).requires_grad_()
    assert gradcheck(lambda a, b: barlow_twins_loss(a, b, 0.05), leaves)
    assert gradcheck(cross_correlation, leaves)


# --- views -----------------------------------------------------------------------------------------------------------


def pixels(spec: DatasetSpec = COLOUR, count: int = 64) -> Tensor:
    return torch.rand(count, *spec.image_shape, generator=generator(3))


@pytest.mark.parametrize("spec", [COLOUR, BLOBS], ids=["colour", "grey"])
def test_views_are_images(spec: DatasetSpec) -> None:
    view = Distortion(RECIPE, spec)(pixels(spec), 0)
    assert (view.shape, view.dtype) == (pixels(spec).shape, torch.float32)
    assert 0 <= float(view.min()) < float(view.max()) <= 1
    assert not view.isclose(pixels(spec)).flatten(1).all(1).any()


@pytest.mark.parametrize("spec", [COLOUR, BLOBS], ids=["colour", "grey"])
def test_views_depend_on_their_seed_alone(spec: DatasetSpec) -> None:
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    first = Distortion(RECIPE, spec)(pixels(spec), 5)
    assert torch.random.get_rng_state().equal(before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]
    assert random.getstate() == before[2]
    distort = Distortion(RECIPE, spec)
    other = distort(pixels(spec), 6)
    with seeded(9):
        assert distort(pixels(spec), 5).equal(first)
    assert not first.isclose(other).flatten(1).all(1).any()


@pytest.mark.parametrize("recipe", [replace(RECIPE, jitter=0.0), replace(RECIPE, smallest_crop=1.0)])
def test_every_image_has_draws_of_its_own(recipe: BarlowTwinsRecipe) -> None:
    """In its crop as in its colours."""
    view = Distortion(recipe, BLOBS)(pixels(BLOBS)[:1].expand(64, -1, -1, -1), 0)
    assert len({image.numpy().tobytes() for image in view}) > 20


def test_mirrored_where_allowed() -> None:
    """Half of all, and none of the images that must not be."""
    neutral = replace(NEUTRAL, jitter=0.0)
    grey = replace(COLOUR, image_shape=(1, 8, 8), mean=(0.5,), std=(0.25,))
    images = pixels(grey, 200)
    kept = Distortion(neutral, replace(grey, mirror=False))(images, 0)
    torch.testing.assert_close(kept, images, rtol=0, atol=1e-6)
    view = Distortion(neutral, grey)(images, 0)
    turned = view.isclose(images.flip(-1), atol=1e-6).flatten(1).all(1)
    straight = view.isclose(images, atol=1e-6).flatten(1).all(1)
    assert (turned ^ straight).all()
    assert 70 < int(turned.sum()) < 130


def test_colours_change_as_far_as_the_jitter() -> None:
    """Images of one colour show what became of it; grey ones get no colour."""
    plain = torch.full((200, 3, 8, 8), 0.5) * torch.tensor([1.0, 0.8, 0.6])[:, None, None]
    changes = [
        (Distortion(replace(NEUTRAL, jitter=jitter), COLOUR)(plain, 0) - plain).abs().amax((1, 2, 3)) for jitter in
        (0.05, 0.4)
    ]  # fmt: skip
    assert changes[0].median() < 0.1 < changes[1].median() < 0.5
    grey = Distortion(NEUTRAL, COLOUR)(plain, 0)
    unchanged = grey.isclose(plain, atol=1e-5).flatten(1).all(1)
    gray = (grey.amax(1) - grey.amin(1)).flatten(1).amax(1) < 1e-5
    assert (unchanged ^ gray).all()  # what is left without jitter is that one in five is shown in grey
    assert 20 < int(gray.sum()) < 60


def test_views_are_differentiable() -> None:
    images = pixels(BLOBS, 4).requires_grad_()
    Distortion(RECIPE, BLOBS)(images, 0).sum().backward()
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0


# --- training --------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Collects what each view was made of."""
    calls, forward = list[SimpleNamespace](), Distortion.forward

    def spy(self: Distortion, pixels: Tensor, seed: int) -> Tensor:
        calls.append(SimpleNamespace(pixels=pixels, seed=seed))
        return forward(self, pixels, seed)

    monkeypatch.setattr(Distortion, "forward", spy)
    return calls


def test_two_views_of_every_image_an_epoch(blobs: ImageData, seen: list[SimpleNamespace], tmp_path: Path) -> None:
    train(network(), blobs, tmp_path)
    assert [len(call.pixels) for call in seen] == [50, 50, 50, 50, 20, 20] * 2
    assert len({call.seed for call in seen}) == len(seen)
    every = sorted(image.numpy().tobytes() for image in blobs.images.float() / 255)
    orders = []
    for epoch in (seen[:6], seen[6:]):
        assert all(first.pixels.equal(second.pixels) for first, second in zip(epoch[::2], epoch[1::2], strict=True))
        orders.append(torch.cat([call.pixels for call in epoch[::2]]))
        assert sorted(image.numpy().tobytes() for image in orders[-1]) == every
    assert not orders[0].equal(orders[1])


def test_the_last_epoch_may_be_cut_short(blobs: ImageData, seen: list[SimpleNamespace], tmp_path: Path) -> None:
    train(network(), blobs, tmp_path, replace(RECIPE, steps=4))
    assert [len(call.pixels) for call in seen] == [50, 50, 50, 50, 20, 20, 50, 50]


def test_adamw_with_a_cosine(blobs: ImageData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Over features and projector; the head learns nothing."""
    rates, made = list[float](), list[SimpleNamespace]()

    class Watched(torch.optim.AdamW):
        def __init__(self, parameters: Any, **settings: Any) -> None:
            parameters = list(parameters)
            made.append(SimpleNamespace(parameters=parameters, **settings))
            super().__init__(parameters, **settings)

        def step(self, *_: Any) -> None:  # type: ignore[override]
            rates.append(self.param_groups[0]["lr"])
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    model = network()
    before = state_bytes(model.head), state_bytes(model.features)
    train(model, blobs, tmp_path)
    assert rates == pytest.approx([4e-3 * (1 + cos(pi * step / 6)) / 2 for step in range(6)])
    assert made[0].weight_decay == 1e-6
    held = {id(parameter) for parameter in made[0].parameters}
    assert {id(parameter) for parameter in model.features.parameters()} < held
    assert not held & {id(parameter) for parameter in model.head.parameters()}
    width = model.head.in_features
    shapes = [tuple(parameter.shape) for parameter in made[0].parameters[len(list(model.features.parameters())) :]]
    assert shapes == [(24, width), (24,), (24,), (16, 24)]
    assert state_bytes(model.head) == before[0]
    assert state_bytes(model.features) != before[1]


def test_one_step_matches_reference(blobs: ImageData, seen: list[SimpleNamespace], tmp_path: Path) -> None:
    """A linear projector and a whole batch: the loss is that of the loops on the views that were drawn."""
    recipe = replace(RECIPE, steps=1, batch=120, projector=(8,))
    losses: list[float] = []

    class Listening(Run):
        def observe(self, **quantities: Tensor) -> None:
            losses.append(float(quantities["loss"].detach()))
            super().observe(**quantities)

    captured, make = list[nn.Sequential](), module._projector
    model, twin = network(), network()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_projector", lambda *shape: captured.append(make(*shape)) or captured[-1])
        patch.setattr(torch.optim.AdamW, "step", lambda *_: None)
        train_barlow_twins(
            model, blobs.images, recipe=recipe, spec=BLOBS, seed=0, run=Listening(tmp_path), label="twins"
        )
    views = list(seen)
    with torch.no_grad():
        ends = [captured[0](twin.train().embed(Distortion(recipe, BLOBS)(view.pixels, view.seed))) for view in views]
    assert losses == [pytest.approx(by_loops(ends[0].tolist(), ends[1].tolist(), 5e-3)[1], rel=1e-3)]


def test_it_learns(blobs: ImageData, tmp_path: Path) -> None:
    """Two views that no training saw agree better, and the features say more; the weight is what makes them."""
    images = blobs.images.float() / 255

    def measured(model: Classifier) -> tuple[float, float]:
        model.eval()
        distort = Distortion(RECIPE, BLOBS)
        with torch.no_grad():
            first, second, plain = (model.embed(view) for view in (distort(images, 1), distort(images, 2), images))
        return float(cross_correlation(first, second).diagonal().mean()), effective_rank(plain)

    recipe = replace(RECIPE, steps=30, batch=60, projector=(64, 64), off_diagonal=0.2)
    found = {}
    for weight in (0.2, 0.0):
        model = network("convnet3-batch-x0.125")
        start = measured(model)
        train(model, blobs, tmp_path / str(weight), replace(recipe, off_diagonal=weight))
        found[weight] = measured(model)
    assert found[0.2][0] > start[0] + 0.1
    assert found[0.2][1] > start[1] + 1
    assert found[0.0][1] < start[1]


@pytest.mark.parametrize("stops", [(0, 1), (2, 5, 6), (7,)])
def test_resume_is_invisible(blobs: ImageData, stops: tuple[int, ...], tmp_path: Path, interrupted: Interrupt) -> None:
    recipe = replace(RECIPE, steps=9)
    straight, resumed = network(), network()
    train(straight, blobs, tmp_path / "straight", recipe)
    for stop in stops:
        with interrupted(at("twins", stop)):
            train(network(), blobs, tmp_path / "stopped", recipe)
    with seeded(4):
        train(resumed, blobs, tmp_path / "stopped", recipe)
    assert state_bytes(resumed) == state_bytes(straight)


def test_seeds_decide(blobs: ImageData, tmp_path: Path) -> None:
    draws = torch.random.get_rng_state()
    models = [network() for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (0, 0, 1), strict=True)):
        train(model, blobs, tmp_path / str(number), replace(RECIPE, steps=3), seed)
    assert state_bytes(models[0]) == state_bytes(models[1])
    assert state_bytes(models[0]) != state_bytes(models[2])
    assert torch.random.get_rng_state().equal(draws)


def test_divergence_is_told(blobs: ImageData, tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"twins: loss became NaN or infinite at step [2-6]; expected a finite"):
        train(network("convnet1-none-x0.0625"), blobs, tmp_path, replace(RECIPE, lr=1e30))


# --- collapse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_rank_of_equal_directions_is_their_number(width: int) -> None:
    assert effective_rank(orthogonal(20, width)) == pytest.approx(width, abs=1e-9)
    wide = orthogonal(20, width) @ torch.linalg.qr(draw(9, 9))[0][:width]  # in 9 dimensions, of which some are idle
    assert effective_rank(1e3 * wide - 7) == pytest.approx(width, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
def test_the_rank_of_two_directions_is_that_of_their_entropy(share: float) -> None:
    features = orthogonal(20, 2) * torch.tensor([share, 1 - share]).double().sqrt()
    expected = exp(-share * log(share) - (1 - share) * log(1 - share))
    assert effective_rank(features) == pytest.approx(expected, abs=1e-6)


def test_the_rank_of_nothing_is_one() -> None:
    assert effective_rank(torch.full((9, 4), 0.1)) == 1
    assert effective_rank(torch.zeros(9, 4)) == 1
    assert effective_rank(draw(9, 1) * draw(1, 4)) == pytest.approx(1, abs=1e-9)
    assert effective_rank(draw(2, 40)) == pytest.approx(1, abs=1e-9)  # two images are one difference


COLLAPSED: dict[str, Callable[[], Tensor]] = {
    "constant": lambda: torch.full((30, 6), 0.3),
    "dead": lambda: torch.zeros(30, 6),
    "one direction": lambda: (draw(30, 1) * draw(1, 6)).float(),
    "one direction and noise": lambda: (draw(30, 1) * draw(1, 6) + 0.01 * draw(30, 6, seed=1)).float(),
    "tiny": lambda: 1e-5 * draw(30, 6).float(),
}


@pytest.mark.parametrize("case", list(COLLAPSED))
def test_rejects_collapsed_networks(case: str) -> None:
    with pytest.raises(
        DivergedError,
        match=r"^the net collapsed: its 6 features of 30 unseen images have an effective rank of [1-5]\.\d\d and "
        r"a variance of \d\.\de[+-]\d\d; expected at least 1\.5 and 1e-08: train it for more steps, or "
        r"lower its lr or the weight off_diagonal$",
    ):
        require_spread(COLLAPSED[case](), "the net")


def test_rejects_features_that_are_no_numbers() -> None:
    with pytest.raises(DivergedError, match=r"rank of nan and a variance of nan; expected"):
        require_spread(torch.full((30, 6), torch.nan), "the net")


def test_rejects_too_few_images_to_see_a_collapse() -> None:
    with pytest.raises(ConfigError, match=r"^the net has 2 images that it has not seen; expected at least 3, "):
        require_spread(draw(2, 6).float(), "the net")


def test_spread_features_are_sound() -> None:
    features = draw(30, 6).float()
    assert require_spread(features, "the net") == effective_rank(features) > 4
    assert require_spread(1e-3 * features, "the net") == pytest.approx(effective_rank(features))
    assert require_spread(features[:, :1], "the net") == 1  # of one feature, no more can be asked


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"batch": 1}, "batch is 1; expected at least 2"),
        ({"lr": 0.0}, "lr is 0.0; expected more than 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; expected at least 0"),
        ({"projector": ()}, r"projector is \(\); expected one width or more, each at least 1"),
        ({"projector": (4, 0)}, r"projector is \(4, 0\)"),
        ({"off_diagonal": -0.1}, "off_diagonal is -0.1; expected at least 0"),
        ({"off_diagonal": float("inf")}, "off_diagonal is inf"),
        ({"smallest_crop": 0.0}, r"smallest_crop is 0.0; expected a share in \(0, 1\]"),
        ({"smallest_crop": 1.01}, "smallest_crop is 1.01"),
        ({"jitter": 1.0}, "jitter is 1.0; expected at least 0 and less than 1"),
        ({"jitter": -0.1}, "jitter is -0.1"),
    ],
)
def test_rejects_recipes(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BarlowTwinsRecipe(**wrong)
