"""The training loop: it is the textbook's, every draw is its seed's, and it can be stopped anywhere."""

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, NonFiniteError, UnknownNameError
from dd_bench.learn.augment import crop_flip, cutmix, mixup
from dd_bench.learn.dsa import DSA
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.training import TrainingRecipe, batch_bounds, fit
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from tests.references import training as reference

SPEC = DatasetSpec("toy", (2, 8, 8), 3, (0.5, 0.4), (0.2, 0.3), True, ("a", "b", "c"))
PLAIN = TrainingRecipe(epochs=3, batch=6, lr=0.05, augment="none")


class Killed(Exception):  # noqa: N818 - what happens to a process, not an error of it
    """Stands for the end of the process at this place."""


def data(count: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (N, 2, 8, 8) uint8 and one-hot classes (N, 3)."""
    draws = generator(seed)
    images = torch.randint(0, 256, (count, *SPEC.image_shape), dtype=torch.uint8, generator=draws)
    return images, torch.eye(3)[torch.randint(3, (count,), generator=draws)]


def network(name: str = "convnet1-batch-x0.0625") -> nn.Module:
    with seeded(1):
        return build(name, SPEC)


def train(
    folder: Path, recipe: TrainingRecipe, *, model: nn.Module | None = None, count: int = 20, seed: int = 5,
    objective: Callable[[Tensor, Tensor], Tensor] = cross_entropy, **options: Any,
) -> nn.Module:  # fmt: skip
    model = network() if model is None else model
    images, values = data(count)
    run = Run(folder, save_every_seconds=options.pop("save_every_seconds", 1e9))
    arguments = {"images": images, "values": values, "label": "fit", "spec": SPEC, "run": run} | options
    fit(model, recipe=recipe, objective=objective, seed=seed, **arguments)
    return model


def state_bytes(model: nn.Module) -> list[tuple[str, bytes]]:
    return [(name, tensor.contiguous().numpy().tobytes()) for name, tensor in model.state_dict().items()]


def distance(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of any two numbers of their states."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


# --- the textbook's ---------------------------------------------------------------------------------------------------

RECIPES = {
    "momentum": {},
    "nesterov": {"nesterov": True},
    "plain sgd": {"momentum": 0.0, "weight_decay": 0.0},
    "strong decay": {"momentum": 0.5, "weight_decay": 0.1},
    "half": {"schedule": "half", "epochs": 4},
    "steps": {"epochs": 0, "steps": 11},
    "half steps": {"epochs": 0, "steps": 10, "schedule": "half"},
    "constant": {"schedule": "constant", "weight_decay": 1e-3},
    "constant steps": {"epochs": 0, "steps": 7, "schedule": "constant"},
    "adamw": {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1},
    "adamw steps": {"optimizer": "adamw", "lr": 0.003, "epochs": 0, "steps": 5, "schedule": "half"},
}


@pytest.mark.parametrize("count", [19, 20, 5])
@pytest.mark.parametrize("name", RECIPES)
def test_matches_reference(tmp_path: Path, name: str, count: int) -> None:
    recipe = dataclasses.replace(PLAIN, **RECIPES[name])
    # Adam divides a gradient by its size: that of a bias before BatchNorm is rounding alone, and so would be its steps
    architecture = "convnet1-none-x0.0625" if recipe.optimizer == "adamw" else "convnet1-batch-x0.0625"
    images, values = data(count)
    trained = train(tmp_path, recipe, count=count, model=network(architecture))
    expected, rates = reference.train(
        network(architecture), images / 255.0, values, recipe, cross_entropy, generator(derive_seed("fit", 5))
    )
    assert recipe.total_steps(count) == len(rates)
    assert [recipe.lr * recipe.lr_factor(step, count) for step in range(len(rates))] == pytest.approx(rates, abs=1e-12)
    assert distance(trained, expected) < 2e-6
    assert (trained.head.weight - network(architecture).head.weight).abs().max() > 1e-3  # and went somewhere


def test_adamw_matches_torch(tmp_path: Path) -> None:
    """In a naive loop over the same batches, to the bit."""
    recipe = dataclasses.replace(PLAIN, optimizer="adamw", lr=0.003, weight_decay=0.1)
    trained = train(tmp_path, recipe)
    (images, values), model, draws = data(), network().train(), generator(derive_seed("fit", 5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = reference.rate(recipe, epoch, recipe.epochs)
        for batch in reference.epoch(20, recipe.batch, draws):
            optimizer.zero_grad()
            cross_entropy(model(images[batch] / 255), values[batch]).backward()
            optimizer.step()
    assert state_bytes(trained) == state_bytes(model)


def test_it_learns(tmp_path: Path) -> None:
    images, values = data(60)
    for label in range(3):
        images[values[:, label] == 1, :, 2 * label : 2 * label + 2] = 255  # a bright bar whose height tells the class
    model = train(
        tmp_path, TrainingRecipe(epochs=8, batch=16, lr=0.05, mix="mixup"), images=images, values=values,
        model=network("convnet2-batch-x0.125"),
    ).eval()  # fmt: skip
    assert (model(images / 255).argmax(1) == values.argmax(1)).float().mean() > 0.95


# --- schedules and batches --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "full"),
    [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3), (1000, 501)],  # E // 2 + 1 epochs at full rate
)
def test_half_drops_after_the_middle_epoch(epochs: int, full: int) -> None:
    recipe = TrainingRecipe(epochs=epochs, batch=10, schedule="half")
    factors = [recipe.lr_factor(step, 25) for step in range(3 * epochs)]  # three batches an epoch
    assert factors == [1.0] * 3 * full + [0.1] * 3 * (epochs - full)


@pytest.mark.parametrize(("steps", "full"), [(1, 1), (2, 2), (10, 6), (11, 6)])
def test_half_of_steps(steps: int, full: int) -> None:
    recipe = TrainingRecipe(steps=steps, batch=10, schedule="half")
    assert [recipe.lr_factor(step, 25) for step in range(steps)] == [1.0] * full + [0.1] * (steps - full)


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 9}, {"epochs": 1}])
def test_constant_never_moves(length: dict[str, int]) -> None:
    recipe = TrainingRecipe(batch=10, schedule="constant", **length)
    assert [recipe.lr_factor(step, 25) for step in range(recipe.total_steps(25))] == [1.0] * recipe.total_steps(25)


def test_cosine_moves_once_an_epoch() -> None:
    recipe = TrainingRecipe(epochs=4, batch=10)
    half = math.sqrt(0.5) / 2
    golden = [1, 0.5 + half, 0.5, 0.5 - half]
    factors = [recipe.lr_factor(step, 25) for step in range(12)]
    assert factors == pytest.approx([factor for factor in golden for _ in range(3)], abs=1e-15)
    assert len(set(factors)) == 4


def test_a_stretched_cosine() -> None:
    """It ends at half, or falls, rises and falls, as PyTorch's annealing does with T_max = E / 3."""
    root = math.sqrt(0.5) / 2
    half = TrainingRecipe(steps=2, batch=10, stretch=2.0)
    assert [half.lr_factor(step, 25) for step in range(3)] == pytest.approx([1, 0.5 + root, 0.5], abs=1e-15)
    waves = TrainingRecipe(epochs=12, batch=25, stretch=4 / 12)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    for epoch in range(12):
        assert waves.lr_factor(epoch, 25) == pytest.approx(annealing.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        annealing.step()


def test_cosine_moves_once_a_step() -> None:
    recipe = TrainingRecipe(steps=6, batch=10)
    root = math.sqrt(3) / 4
    golden = [1, 0.5 + root, 0.75, 0.5, 0.25, 0.5 - root]
    assert [recipe.lr_factor(step, 25) for step in range(6)] == pytest.approx(golden, abs=1e-15)


@pytest.mark.parametrize(
    ("images", "batch", "bounds"),
    [
        (1, 4, [(0, 1)]),
        (2, 4, [(0, 2)]),
        (4, 4, [(0, 4)]),
        (5, 4, [(0, 5)]),
        (6, 4, [(0, 4), (4, 6)]),
        (8, 4, [(0, 4), (4, 8)]),
        (9, 4, [(0, 4), (4, 9)]),
        (3, 2, [(0, 3)]),
    ],
)
def test_batch_bounds(images: int, batch: int, bounds: list[tuple[int, int]]) -> None:
    assert batch_bounds(images, batch) == bounds


def test_batches_cover_everything_once() -> None:
    for images, batch in itertools.product(range(1, 60), range(2, 20)):
        bounds = batch_bounds(images, batch)
        assert [start for start, _ in bounds] == [0, *(end for _, end in bounds[:-1])]
        assert bounds[-1][1] == images
        sizes = [end - start for start, end in bounds]
        assert set(sizes[:-1]) <= {batch}
        assert 2 <= sizes[-1] <= batch + 1 or images == 1


@pytest.mark.parametrize(
    ("recipe", "images", "total"),
    [
        (TrainingRecipe(epochs=3, batch=10), 25, 9), (TrainingRecipe(epochs=3, batch=10), 21, 6),
        (TrainingRecipe(epochs=3, batch=10), 5, 3), (TrainingRecipe(steps=7, batch=10), 25, 7),
    ],
)  # fmt: skip
def test_total_steps(recipe: TrainingRecipe, images: int, total: int) -> None:
    assert recipe.total_steps(images) == total


class Watched(nn.Module):
    """A linear model that keeps what it is shown."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        with seeded(0):
            self.head = nn.Linear(math.prod(SPEC.image_shape), classes)
        self.shown: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown.append(pixels.detach().clone())
        return self.head(pixels.flatten(1))


def numbered(count: int) -> tuple[Tensor, Tensor]:
    """Images whose every pixel is their number, and one-hot values that say the same."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, *SPEC.image_shape) / 256, torch.eye(count)


def shown_batches(model: "Watched") -> list[list[int]]:
    return [(pixels[:, 0, 0, 0] * 256).int().tolist() for pixels in model.shown]


def test_each_image_comes_once_an_epoch(tmp_path: Path) -> None:
    model, (images, values) = Watched(19), numbered(19)
    train(tmp_path, dataclasses.replace(PLAIN, lr=1e-9, epochs=3), model=model, images=images, values=values)
    seen = shown_batches(model)
    assert [len(batch) for batch in seen] == [6, 6, 7] * 3
    epochs = [list(itertools.chain(*seen[start : start + 3])) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(19)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)  # in another order every time


@pytest.mark.parametrize("count", [4, 18, 19])
def test_where_steps_count_every_batch_is_full(tmp_path: Path, count: int) -> None:
    model, (images, values) = Watched(count), numbered(count)
    recipe = dataclasses.replace(PLAIN, lr=1e-9, epochs=0, steps=20)
    train(tmp_path, recipe, model=model, images=images, values=values)
    seen = shown_batches(model)
    assert [len(batch) for batch in seen] == [6] * 20
    stream = list(itertools.chain(*seen))
    passes = [stream[start : start + count] for start in range(0, len(stream) - count + 1, count)]
    assert len(passes) >= 6
    assert all(sorted(one) == list(range(count)) for one in passes)
    assert len({tuple(one) for one in passes}) > 1


# --- augmentation, mixing, labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_images_and_labels_are_mixed_alike(tmp_path: Path, mix: Any) -> None:
    model, (images, values) = Watched(20), numbered(20)
    targets: list[Tensor] = []

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return cross_entropy(logits, target)

    recipe = dataclasses.replace(PLAIN, mix=mix, mix_alpha=1.0, lr=1e-9)
    train(tmp_path, recipe, model=model, images=images, values=values, objective=objective)
    assert len(targets) == len(model.shown) == 12
    shares = []
    for pixels, target in zip(model.shown, targets, strict=True):
        assert torch.allclose(pixels.mean((1, 2, 3)) * 256, target @ torch.arange(20.0), atol=1e-4)
        assert torch.allclose(target.sum(1), torch.ones(len(target)))
        mixed = target[(target > 0).sum(1) == 2]  # who met another; some meet themselves
        assert ((target > 0).sum(1) <= 2).all()
        shares.append(sorted({round(float(share), 5) for share in mixed[mixed > 0]}))
    assert all(len(pair) <= 2 and sum(pair) == pytest.approx(1, abs=1e-4) for pair in shares if pair)  # one λ a batch
    assert len({tuple(pair) for pair in shares}) > 6  # another one the next time


@pytest.mark.parametrize(("mirror", "kinds"), [(True, 18), (False, 9)])
def test_crop_flip_pads_an_eighth_and_may_mirror(tmp_path: Path, mirror: bool, kinds: int) -> None:
    model, spec = Watched(), dataclasses.replace(SPEC, mirror=mirror)
    images = (torch.arange(64, dtype=torch.uint8) + 1).view(1, 1, 8, 8).repeat(300, 2, 1, 1)
    train(
        tmp_path, TrainingRecipe(steps=1, batch=300, lr=1e-9), model=model, images=images,
        values=torch.eye(3)[torch.zeros(300, dtype=torch.int64)], spec=spec,
    )  # fmt: skip
    counts = Counter(image.numpy().tobytes() for image in model.shown[0])
    assert len(counts) == kinds


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("augment", ["none", "crop-flip", "dsa"])
def test_draws_come_in_one_order(tmp_path: Path, augment: Any, mix: Any) -> None:
    """The order of an epoch, then for each step augmentation and mixing, all from one generator: scores hang on it."""
    model, targets, (images, values) = Watched(), [], data()
    recipe = dataclasses.replace(PLAIN, augment=augment, mix=mix, mix_alpha=0.3)

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        targets.append(target)
        return cross_entropy(logits, target)

    train(tmp_path, recipe, model=model, objective=objective)
    draws, dsa, expected = generator(derive_seed("fit", 5)), DSA(SPEC), []
    for _ in range(3):
        for batch in torch.randperm(20, generator=draws).split(6):
            pixels, target = images[batch] / 255, values[batch]
            if augment == "crop-flip":
                pixels = crop_flip(pixels, draws, pad=1, mirror=True)
            if augment == "dsa":
                choice = derive_seed("dsa", 5, len(expected))
                pixels = dsa.apply(pixels, dsa.draw(len(batch), draws, choice))
            if mix != "none":
                pixels, target = {"mixup": mixup, "cutmix": cutmix}[mix](pixels, target, draws, 0.3)
            expected.append((pixels, target))
    assert len(expected) == len(targets) == len(model.shown)
    for (pixels, target), shown, used in zip(expected, model.shown, targets, strict=True):
        assert torch.equal(pixels, shown)
        assert torch.equal(target, used)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_labeler_sees_what_the_model_sees(tmp_path: Path, bf16: bool) -> None:
    model, (images, values) = Watched(), data()
    asked: list[Tensor] = []
    answers: list[Tensor] = []
    used: list[Tensor] = []
    weight = torch.rand(math.prod(SPEC.image_shape), 3, requires_grad=True)

    def labeler(pixels: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        assert not torch.is_autocast_enabled("cpu")  # a teacher's answer is float32 whatever the student runs in
        asked.append(pixels.clone())
        answers.append((pixels.flatten(1) @ weight).softmax(1))
        return answers[-1]

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        assert torch.is_grad_enabled()
        used.append(target)
        return cross_entropy(logits, target)

    recipe = dataclasses.replace(PLAIN, augment="crop-flip", mix="cutmix", bf16=bf16)
    train(tmp_path, recipe, model=model, images=images, values=values, objective=objective, labeler=labeler)
    assert len(asked) == 12
    assert all(map(torch.equal, asked, model.shown))
    assert all(a is b for a, b in zip(answers, used, strict=True))
    assert weight.grad is None


def test_inputs_stay_as_they_are(tmp_path: Path) -> None:
    images, values = data()
    floats = images / 255
    kept = (floats.clone(), values.clone())
    train(tmp_path, dataclasses.replace(PLAIN, augment="dsa", mix="mixup"), images=floats, values=values)
    assert torch.equal(floats, kept[0])
    assert torch.equal(values, kept[1])


# --- every draw is its seed's -----------------------------------------------------------------------------------------

DRAWING = {
    "order": PLAIN,
    "dsa": dataclasses.replace(PLAIN, augment="dsa"),
    "crop-flip, mixup": dataclasses.replace(PLAIN, augment="crop-flip", mix="mixup", nesterov=True),
    "cutmix, adamw": dataclasses.replace(PLAIN, mix="cutmix", optimizer="adamw", lr=0.01, channels_last=True),
    "dsa, mixup, steps": dataclasses.replace(PLAIN, epochs=0, steps=11, augment="dsa", mix="mixup", momentum=0.0),
    "bf16": dataclasses.replace(PLAIN, augment="crop-flip", bf16=True),
}


@pytest.mark.parametrize("name", DRAWING)
def test_a_seed_means_one_network(tmp_path: Path, name: str) -> None:
    recipe = DRAWING[name]
    with seeded(3):
        first = train(tmp_path / "a", recipe)
        left = torch.random.get_rng_state()
    with seeded(4):
        again = train(tmp_path / "b", recipe)
    with seeded(3):
        assert torch.equal(torch.random.get_rng_state(), left)  # the global generator was not asked
    other = train(tmp_path / "c", recipe, seed=6)
    assert state_bytes(first) == state_bytes(again)
    assert state_bytes(first) != state_bytes(other)


@pytest.mark.parametrize("stops", [(1,), (5, 6), (2, 4, 9, 10)])
@pytest.mark.parametrize("name", DRAWING)
def test_resume_is_invisible(tmp_path: Path, name: str, stops: tuple[int, ...]) -> None:
    def ending(at: int, first: int) -> Callable[[Tensor, Tensor], Tensor]:
        steps = itertools.count(first)

        def objective(logits: Tensor, target: Tensor) -> Tensor:
            if next(steps) == at:
                raise Killed
            return cross_entropy(logits, target)

        return objective

    undisturbed = train(tmp_path / "a", DRAWING[name])
    first = 0
    for stop in stops:
        with pytest.raises(Killed):
            train(tmp_path / "b", DRAWING[name], objective=ending(stop, first), save_every_seconds=0)
        first = stop
    resumed = train(tmp_path / "b", DRAWING[name])
    assert state_bytes(resumed) == state_bytes(undisturbed)
    assert (tmp_path / "b" / "report.jsonl").read_bytes() == (tmp_path / "a" / "report.jsonl").read_bytes()


def test_a_finished_fit_is_not_done_again(tmp_path: Path) -> None:
    first = train(tmp_path, PLAIN)

    def never(logits: Tensor, target: Tensor) -> Tensor:
        raise AssertionError

    assert state_bytes(train(tmp_path, PLAIN, objective=never)) == state_bytes(first)


def test_uint8_and_float_images_are_the_same(tmp_path: Path) -> None:
    images, _ = data()
    recipe = dataclasses.replace(PLAIN, augment="dsa", mix="mixup")
    as_bytes = train(tmp_path / "a", recipe, images=images)
    as_floats = train(tmp_path / "b", recipe, images=images.float() / 255)
    assert state_bytes(as_bytes) == state_bytes(as_floats)


def test_channels_last_changes_only_rounding(tmp_path: Path) -> None:
    recipe = dataclasses.replace(PLAIN, augment="crop-flip", mix="mixup")
    model = network("convnet2-batch-x0.0625")
    last = train(tmp_path / "b", dataclasses.replace(recipe, channels_last=True), model=model)
    first = train(tmp_path / "a", recipe, model=network("convnet2-batch-x0.0625"))
    weights = [parameter for parameter in last.parameters() if parameter.dim() == 4 and parameter.shape[1] > 1]
    assert weights
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    assert distance(first, last) < 1e-4


@pytest.mark.parametrize("augment", ["none", "crop-flip", "dsa"])
def test_channels_last_is_the_layout_of_images_too(tmp_path: Path, augment: Any) -> None:
    model, layouts = Watched(), []
    model.register_forward_pre_hook(
        lambda module, args: layouts.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    train(tmp_path, dataclasses.replace(PLAIN, augment=augment, channels_last=True), model=model)
    assert layouts == [True] * 12


def test_bf16_is_close(tmp_path: Path) -> None:
    dtypes: set[tuple[torch.dtype, torch.dtype]] = set()

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        dtypes.add((logits.dtype, target.dtype))
        return cross_entropy(logits, target)

    exact = train(tmp_path / "a", PLAIN, objective=objective)
    coarse = train(tmp_path / "b", dataclasses.replace(PLAIN, bf16=True), objective=objective)
    assert dtypes == {(torch.float32, torch.float32)}  # the loss is never in bfloat16
    assert {parameter.dtype for parameter in coarse.parameters()} == {torch.float32}
    moved = [(a - b).norm() for a, b in zip(exact.parameters(), network().parameters(), strict=True)]
    apart = [(a - b).norm() for a, b in zip(exact.parameters(), coarse.parameters(), strict=True)]
    assert 1e-6 < sum(apart) / sum(moved) < 0.1


# --- bad numbers, waiting, bad recipes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("bad", "total"), [(4, 12), (123, 1000)])
def test_a_bad_loss_stops(tmp_path: Path, bad: int, total: int) -> None:
    steps = itertools.count()

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target) * (float("inf") if next(steps) == bad else 1)

    with pytest.raises(NonFiniteError, match=f"^fit: loss became NaN or infinite at step {bad + 1}; expected"):
        train(tmp_path, dataclasses.replace(PLAIN, epochs=0, steps=total), objective=objective, count=6)


WAITING = {
    f"aten::{name}"
    for name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")
}


class Reads(TorchDispatchMode):
    """Notes every operation whose result the host must see."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        if func.name() in WAITING:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads() -> Iterator[Reads]:
    with Reads() as reads:
        yield reads


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("augment", ["none", "crop-flip", "dsa"])
def test_no_step_waits_for_the_device(tmp_path: Path, reads: Reads, augment: Any, mix: Any) -> None:
    """The schedule is `half`, as cosine computes its factor on the host, with a tensor that never leaves it."""
    float(torch.ones(()))
    assert reads.names == ["aten::_local_scalar_dense"]  # the spy sees
    start = reads.total
    recipe = TrainingRecipe(steps=60, batch=6, lr=0.01, schedule="half", augment=augment, mix=mix)
    train(tmp_path, recipe, count=18, labeler=lambda pixels: pixels.mean((2, 3)) @ torch.ones(2, 3))
    assert reads.total - start > 60 * 20  # and saw the steps
    assert reads.names == ["aten::_local_scalar_dense"]


@pytest.mark.parametrize("lengths", [{}, {"epochs": 2, "steps": 2}, {"epochs": -1, "steps": 3}, {"steps": -4}])
def test_rejects_lengths(lengths: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"epochs -?\d and steps -?\d; expected one of them positive, the other 0"):
        TrainingRecipe(**lengths)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"batch": 1}, "batch is 1; expected at least 2"),
        ({"batch": 0}, "batch is 0; expected at least 2"),
        *(({"lr": lr}, f"lr is {lr}; expected more than 0") for lr in (0.0, -0.1, NAN, INF)),
        *(({"mix_alpha": alpha}, f"mix_alpha is {alpha}; expected more than 0") for alpha in (0.0, -1.0, NAN)),
        *(({"momentum": m}, f"momentum is {m}; expected at least 0 and less than 1") for m in (-0.1, 1.0, NAN)),
        *(({"weight_decay": w}, f"weight_decay is {w}; expected at least 0") for w in (-1e-4, NAN, INF)),
        *(({"stretch": eta}, f"stretch is {eta}; expected more than 0") for eta in (0.0, -1.0, NAN, INF)),
        ({"nesterov": True, "momentum": 0.0}, "nesterov is set and momentum is 0"),
        ({"schedule": "half", "stretch": 2.0}, "stretch is 2.0 and schedule half; expected a cosine to stretch"),
    ],
)
def test_rejects_numbers(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TrainingRecipe(epochs=1, **change)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"optimizer": "adams"}, "unknown optimizer 'adams'; did you mean 'adam'. Known: adam, adamw, sgd"),
        ({"schedule": "step"}, r"unknown schedule 'step'\. Known: constant, cosine, half"),
        (
            {"augment": "crop_flip"},
            "unknown augment 'crop_flip'; did you mean 'crop-flip'. Known: crop-flip, dsa, none",
        ),
        ({"mix": "cut-mix"}, "unknown mix 'cut-mix'; did you mean 'cutmix'. Known: cutmix, mixup, none"),
        ({"mix": None}, "unknown mix 'None'"),
    ],
)
def test_rejects_unknown_choices(change: dict[str, Any], match: str) -> None:
    with pytest.raises(UnknownNameError, match=match):
        TrainingRecipe(epochs=1, **change)
