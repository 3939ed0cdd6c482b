"""KRR-ST: the gradient of its outer loss, the whole against a loop written out, its controls, and what it is for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.files import home
from dd_bench.models import Classifier, Normalizer, build, encoded_spec
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import Images
from dd_bench.store import Store
from dd_bench.targets import Features
from eval.protocol_kinds import TransferProtocol
from eval.protocols import PROTOCOLS
from synth import krr
from synth.base import DRAWS, Distilled, Task, choose_preset, config_of, configure
from synth.coreset import Random
from synth.krr import KRRST, ShuffledTargets, outer_loss
from synth.parts.barlow_twins import BarlowTwinsRecipe
from synth.parts.model_pool import ModelPool, PoolRecipe
from synth.parts.real_batches import RealBatches
from synth.parts.sampling import sample_images
from synth.parts.target_model import TARGETS, TargetModel, TargetPlan, obtain_target
from synth.parts.unroll import load_higher
from synth.pipeline import Order, distil
from synth.selection import KMeans
from tests.conftest import BLOBS, Interrupt, When, at, draw_blobs, tensors_file

CPU = torch.device("cpu")
TOY = DatasetSpec("toy", (3, 8, 8), 5, (0.0,) * 3, (1.0,) * 3, mirror=True, class_names=tuple("abcde"))
PLAN = TargetPlan("convnet1-batch-x0.0625", BarlowTwinsRecipe(steps=2, batch=54, projector=(8,)))
POOL = PoolRecipe(size=2, max_age=4, lr=0.05)
SMALL = KRRST(PLAN, "pyramid2-x0.015625", POOL, steps=6, batch=32, lr=1e-2, augment="none", protocol="transfer-digits")
STILL = replace(SMALL, steps=1, lr=1e-30)  # one step that moves nothing


def make(method: KRRST, task: Task, folder: Path) -> Distilled:
    return method.synthesize(task, Run(folder / "run" / f"{len(list(folder.glob('run/*')))}"))


def pixels(made: Distilled) -> Tensor:
    assert isinstance(made.payload, Images)
    return made.payload.pixels


def values(made: Distilled) -> Tensor:
    assert isinstance(made.targets, Features)
    return made.targets.values


def normalised(images: Tensor) -> Tensor:
    return (images.float() / 255 - BLOBS.mean[0]) / BLOBS.std[0]


@pytest.fixture
def target(task: Task, tmp_path: Path) -> TargetModel:
    return obtain_target(PLAN, task, Run(tmp_path / "target"))


# --- the gradient of the outer loss ----------------------------------------------------------------------------------


class Toy:
    """A tiny network in double precision whose running statistics are not those of a fresh one, and all it meets."""

    def __init__(self, count: int = 5, real: int = 12) -> None:
        draws = generator(0)
        with seeded(1):
            self.network = build("pyramid2-x0.015625", TOY).double()  # 4 and 8 channels
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean = torch.randn(layer.num_features, generator=draws).double() / 4
                layer.running_var = torch.rand(layer.num_features, generator=draws).double() + 0.5
        self.images = torch.randn(count, 3, 8, 8, generator=draws).double().requires_grad_()
        self.targets = torch.randn(count, 5, generator=draws).double().requires_grad_()
        self.real_images = torch.randn(real, 3, 8, 8, generator=draws).double()
        self.real_targets = torch.randn(real, 5, generator=draws).double()

    def loss(self, images: Tensor, targets: Tensor, ridge: float, some: slice = slice(None)) -> Tensor:
        real = self.real_images[some], self.real_targets[some]
        return outer_loss(self.network, images, targets, *real, ridge)[0]

    def gradients(self, ridge: float, some: slice = slice(None)) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.loss(self.images, self.targets, ridge, some), (self.images, self.targets))

    def frozen(self, ridge: float) -> Callable[[Tensor, Tensor], Tensor]:
        """The same written out, with the number λ that belongs to these images, as a function of images and targets."""
        self.network.eval()

        def rows(images: Tensor) -> Tensor:
            features = self.network.features(images)
            return torch.cat([features, torch.ones(len(images), 1).double()], dim=1)

        amount = ridge * float(rows(self.images).square().sum().detach())

        def loss(images: Tensor, targets: Tensor) -> Tensor:
            support = rows(images)
            kernel = support @ support.T + amount * torch.eye(len(images)).double()
            predicted = rows(self.real_images) @ support.T @ torch.linalg.solve(kernel, targets)
            return (predicted - self.real_targets).square().mean()

        return loss


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.mark.parametrize("ridge", [1e-6, 1e-2])
def test_outer_loss_matches_reference(toy: Toy, ridge: float) -> None:
    """In value, and in its gradient for a λ that does not follow the images."""
    frozen = toy.frozen(ridge)
    expected = frozen(toy.images, toy.targets)
    torch.testing.assert_close(toy.loss(toy.images, toy.targets, ridge), expected, rtol=1e-9, atol=1e-12)
    found = toy.gradients(ridge)
    for ours, theirs in zip(found, torch.autograd.grad(expected, (toy.images, toy.targets)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-11)
        assert ours.abs().max() > 1e-4


def test_gradients_are_those_of_finite_differences(toy: Toy) -> None:
    """By images and targets through convolution, BatchNorm, kernel and solution; with λ = 0 nothing is held back."""
    tolerance: dict[str, Any] = {"eps": 1e-6, "atol": 1e-7, "rtol": 1e-4, "fast_mode": True}
    assert torch.autograd.gradcheck(lambda x, y: toy.loss(x, y, 0.0), (toy.images, toy.targets), **tolerance)
    assert torch.autograd.gradcheck(toy.frozen(1e-2), (toy.images, toy.targets), **tolerance)


def test_the_network_and_the_real_images_are_constants(toy: Toy) -> None:
    toy.network.train()
    before = {name: value.clone() for name, value in toy.network.state_dict().items()}
    for part in (toy.real_images, *toy.network.parameters()):
        part.requires_grad_()
    loss = toy.loss(toy.images, toy.targets, 1e-6)
    assert torch.autograd.grad(loss, toy.real_images, retain_graph=True, allow_unused=True) == (None,)
    torch.autograd.grad(loss, (toy.images, toy.targets))
    assert all(parameter.grad is None for parameter in toy.network.parameters())
    assert not toy.network.training
    assert all(value.equal(before[name]) for name, value in toy.network.state_dict().items())


def test_rows_do_not_depend_on_their_company(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """So the kernel may be made part by part, and again for its gradient, to the same end."""
    whole, expected = toy.gradients(1e-6), krr._embed(toy.network, toy.images)
    loss = toy.loss(toy.images, toy.targets, 1e-6)
    sizes: list[int] = []
    toy.network.features.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for size in (1, 2):
        monkeypatch.setattr(krr, "_IMAGES_AT_ONCE", size)
        torch.testing.assert_close(krr._embed(toy.network, toy.images), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(toy.loss(toy.images, toy.targets, 1e-6), loss, rtol=1e-10, atol=0)
        sizes.clear()
        for ours, theirs in zip(toy.gradients(1e-6), whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
        assert max(sizes) <= size
        assert sum(sizes) == 12 + 2 * 5, "synthetic images are seen twice, real ones once"


def test_the_gradient_is_unbiased_over_real_batches(toy: Toy) -> None:
    whole = toy.gradients(1e-6)
    parts = [toy.gradients(1e-6, slice(start, start + 3)) for start in range(0, 12, 3)]
    for expected, shares in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.stack(shares).mean(0), expected, rtol=1e-8, atol=1e-12)
        assert not torch.allclose(shares[0], expected, rtol=1e-2)


# --- the whole, written out ------------------------------------------------------------------------------------------


def by_hand(config: KRRST, task: Task, target: TargetModel) -> tuple[Tensor, Tensor, list[float], list[int]]:
    """Images, targets, losses, and ages of the networks that gave the kernel."""
    spec, seed = task.images.spec, derive_seed("krr", task.seed)
    picked = sample_images(len(task.images), task.ipc * spec.num_classes, task.seed)
    x, y = normalised(task.images.images[picked]), target.plain[picked].clone()
    outputs = replace(encoded_spec(spec), num_classes=y.shape[1])
    pool, births = config.pool, [0] * config.pool.size

    def fresh(slot: int) -> tuple[Classifier, list[Tensor]]:
        with seeded(derive_seed("pool", seed, slot, births[slot])):
            network = build(config.student, outputs)
        return network, [torch.zeros_like(parameter) for parameter in network.parameters()]

    def train(slot: int) -> None:
        network, velocities = slots[slot]
        network.train()
        parameters = list(network.parameters())
        slopes = torch.autograd.grad((network(x) - y).square().mean(), parameters)
        with torch.no_grad():
            for parameter, slope, velocity in zip(parameters, slopes, velocities, strict=True):
                velocity.mul_(pool.momentum).add_(slope + pool.weight_decay * parameter)
                parameter.sub_(pool.lr * velocity)

    slots = [fresh(slot) for slot in range(pool.size)]
    ages = torch.randint(1, pool.max_age, (pool.size,), generator=generator(derive_seed("ages", seed))).tolist()
    for slot, age in enumerate(ages):
        for _ in range(age):
            train(slot)
    batches, draws = (
        RealBatches(task.images, target, config.augment, config.batch, task.seed),
        derive_seed("slots", task.seed),
    )
    order, losses, seen = generator(draws), [], []
    moments = [(torch.zeros_like(part), torch.zeros_like(part)) for part in (x, y)]
    for step in range(config.steps):
        slot = int(torch.randint(pool.size, (), generator=order))
        seen.append(ages[slot])
        real_x, real_y = batches.draw()
        network = slots[slot][0].eval()
        parts = [x.requires_grad_(), y.requires_grad_()]
        support, queries = (
            torch.cat([network.features(part), torch.ones(len(part), 1)], 1).double() for part in (x, real_x)
        )
        kernel = support @ support.T
        kernel = kernel + config.ridge * kernel.detach().trace() * torch.eye(len(x))
        loss = (queries.detach() @ support.T @ torch.linalg.solve(kernel, y.double()) - real_y).square().mean()
        losses.append(loss.item())
        rate = config.lr * (1 - 0.999 * step / config.steps)
        moved = []
        for part, slope, (first, second) in zip(parts, torch.autograd.grad(loss, parts), moments, strict=True):
            first.mul_(0.9).add_(0.1 * slope)
            second.mul_(0.999).add_(0.001 * slope.square())
            down = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
            moved.append((part - rate * first / (1 - 0.9 ** (step + 1)) / down).detach())
        x, y = moved
        if ages[slot] < pool.max_age:
            train(slot)
            ages[slot] += 1
        else:
            births[slot] += 1
            slots[slot] = fresh(slot)
            ages[slot] = 0 if pool.reset else ages[slot]
    return x, y, losses, seen


class Watched:
    """What each step of a distillation was told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.ages: list[float] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen, observe = Watched(), Run.observe

    def spy(self: Run, **quantities: Tensor) -> None:
        if "age" in quantities:
            seen.losses.append(float(quantities["loss"].detach()))
            seen.ages.append(float(quantities["age"]))
        observe(self, **quantities)

    monkeypatch.setattr(Run, "observe", spy)
    return seen


@pytest.mark.parametrize("reset", [True, False])
def test_matches_reference(task: Task, tmp_path: Path, target: TargetModel, watched: Watched, reset: bool) -> None:
    config = replace(SMALL, steps=12, pool=replace(POOL, reset=reset))
    made = make(config, task, tmp_path)
    x, y, losses, ages = by_hand(config, task, target)
    assert watched.ages == ages
    assert max(ages) == POOL.max_age, "a network was replaced"
    assert (0 in ages) == reset
    torch.testing.assert_close(torch.tensor(watched.losses), torch.tensor(losses), rtol=1e-3, atol=1e-5)
    # Adam turns a slope of rounding errors into a whole step, of 0.01 here
    for found, expected in ((normalised(pixels(made) * 255), x), (values(made), y)):
        assert ((found - expected).abs() < 1e-3).float().mean() > 0.98


def test_the_set_says_what_it_holds(task: Task, tmp_path: Path, target: TargetModel) -> None:
    made = make(SMALL, task, tmp_path)
    assert (pixels(made).shape, pixels(made).dtype) == ((12, 1, 8, 8), torch.float32)
    assert values(made).shape == (12, target.plain.shape[1])
    assert made.parents == (target.facts.id,)
    assert made.teacher_seconds == target.facts.seconds > 0
    assert isinstance(made.targets, Features)
    assert made.targets.center.equal(target.center)
    assert made.targets.scale == target.scale
    raw = target.model.embed(task.images.images.float() / 255).detach()
    restored = target.plain * made.targets.scale + made.targets.center
    torch.testing.assert_close(restored, raw, rtol=1e-4, atol=1e-5)


def test_networks_of_the_pool_keep_no_gradient(
    task: Task, tmp_path: Path, target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, visit = [], ModelPool.visit

    def spy(self: ModelPool, slot: int, *rest: Tensor) -> None:
        seen.extend(parameter.grad for network in self.networks for parameter in network.parameters())
        visit(self, slot, *rest)

    monkeypatch.setattr(ModelPool, "visit", spy)
    make(SMALL, task, tmp_path)
    assert len(seen) > 6
    assert set(seen) == {None}
    assert all(parameter.grad is None for parameter in target.model.parameters())


# --- how it begins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["normalised", "pixels"])
def test_begins_as_real_images_and_what_the_target_says_of_them(
    task: Task, tmp_path: Path, target: TargetModel, monkeypatch: pytest.MonkeyPatch, start: Any
) -> None:
    begun, learn = [], KRRST._distil

    def spy(self: KRRST, images: Tensor, targets: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        begun.append((images, targets))
        return learn(self, images, targets, *rest)

    monkeypatch.setattr(KRRST, "_distil", spy)
    made = make(replace(STILL, start=start), task, tmp_path)
    picked = sample_images(120, 12, task.seed)
    plain = task.images.images[picked].float() / 255
    ((images, targets),) = begun
    expected = Normalizer(BLOBS.mean, BLOBS.std)(plain) if start == "normalised" else plain
    assert images.equal(expected)
    assert targets.equal(target.plain[picked])
    assert values(made).equal(target.plain[picked])
    said = (target.model.embed(plain).detach() - target.center) / target.scale
    torch.testing.assert_close(values(made), said, rtol=1e-4, atol=1e-5)
    stored = plain if start == "normalised" else plain * BLOBS.std[0] + BLOBS.mean[0]
    torch.testing.assert_close(pixels(made), stored, rtol=0, atol=1e-6)


def test_normalised_images_have_mean_0_and_deviation_1(task: Task, tmp_path: Path) -> None:
    task = replace(task, ipc=20)
    fed = [normalised(pixels(make(replace(STILL, start=start), task, tmp_path)) * 255) for start in _STARTS]
    assert abs(float(fed[0].mean())) < 0.3
    assert 0.7 < float(fed[0].std()) < 1.3
    assert abs(float(fed[1].mean()) - BLOBS.mean[0]) < 0.3 * BLOBS.std[0]
    assert 0.7 < float(fed[1].std()) / BLOBS.std[0] < 1.3


_STARTS: tuple[Any, ...] = ("normalised", "pixels")


@pytest.mark.parametrize("learned", ["images", "targets"])
def test_the_other_half_stays_as_it_began(task: Task, tmp_path: Path, target: TargetModel, learned: Any) -> None:
    made, begun = (make(replace(config, learned=learned), task, tmp_path) for config in (SMALL, STILL))
    moved = {"images": not pixels(made).equal(pixels(begun)), "targets": not values(made).equal(values(begun))}
    assert moved == {"images": learned == "images", "targets": learned == "targets"}
    assert values(begun).equal(target.plain[sample_images(120, 12, 0)])


def test_seeds_decide(task: Task, tmp_path: Path) -> None:
    first = make(SMALL, task, tmp_path)
    again = make(replace(SMALL, protocol="transfer-small"), task, tmp_path)
    other = make(SMALL, replace(task, seed=1), tmp_path)
    assert pixels(first).equal(pixels(again)), "and the protocol moves nothing"
    assert not pixels(first).equal(pixels(other))
    assert len(list(home().glob("krr/*"))) == 2


@pytest.mark.parametrize("augment", ["none", "flip", "crop-flip"])
def test_augmentation_is_of_real_images(task: Task, tmp_path: Path, augment: Any) -> None:
    """These must not be mirrored: with and without ``flip`` is the same, crops are not."""
    plain = make(SMALL, task, tmp_path)
    made = make(replace(SMALL, augment=augment), task, tmp_path)
    assert pixels(made).isfinite().all()
    assert pixels(made).equal(pixels(plain)) == (augment != "crop-flip")


def test_no_label_is_read(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = task.images
    permuted = replace(data, labels=data.labels[torch.randperm(120, generator=generator(5))])
    assert not permuted.labels.equal(data.labels)
    made = []
    for name, one in (("ours", data), ("permuted", permuted)):
        monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / name))
        made.append(distil(Order("krr-st", "tiny", SMALL), replace(task, data=one), Store())[0].load())
    assert tensors_file(made[0]) == tensors_file(made[1])


# --- the optimizer ---------------------------------------------------------------------------------------------------


def test_the_rate_falls_in_a_line_to_a_thousandth(
    task: Task, tmp_path: Path, target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, optimizers, step = [], [], torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        optimizers.append(self)
        return step(self, closure)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    make(replace(SMALL, steps=10), task, tmp_path)
    falling = torch.linspace(1, 1e-3, 11).double() * SMALL.lr  # the eleventh would be the thousandth
    torch.testing.assert_close(torch.tensor(rates).double(), falling[:10], rtol=1e-6, atol=0)
    (group,) = optimizers[0].param_groups
    assert (group["weight_decay"], group["betas"], group["eps"], len(group["params"])) == (0.0, (0.9, 0.999), 1e-8, 2)


def test_adamw_without_decay_is_adam(
    task: Task, tmp_path: Path, target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    picked = sample_images(120, 12, 0)
    begin = normalised(task.images.images[picked]), target.plain[picked]
    found = SMALL._distil(*begin, target, task, Run(tmp_path / "adamw"))
    monkeypatch.setattr(torch.optim, "AdamW", torch.optim.Adam)
    expected = SMALL._distil(*begin, target, task, Run(tmp_path / "adam"))
    assert all(ours.equal(theirs) for ours, theirs in zip(found, expected, strict=True))
    assert not found[0].equal(begin[0])


# --- killed and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ["none", "crop-flip"])
@pytest.mark.parametrize("when", [at("pool", 1), at("distil", 0), at("distil", 3)], ids=["pool", "first", "distil"])
def test_resumes_without_a_trace(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted: Interrupt, when: When, augment: Any
) -> None:
    order = Order("krr-st", "tiny", replace(SMALL, augment=augment))
    straight, _ = distil(order, task, Store())
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "interrupted"))
    with interrupted(when):
        distil(order, task, Store())
    assert not list(home().glob("krr/*"))
    resumed, made = distil(order, task, Store())
    assert made
    tensors = [(stored.path / "tensors.safetensors").read_bytes() for stored in (straight, resumed)]
    assert tensors[0] == tensors[1]


# --- controls --------------------------------------------------------------------------------------------------------


def test_shuffled_targets_are_those_of_other_images(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same distillation, which is not done again."""
    made = make(SMALL, task, tmp_path)
    monkeypatch.setattr(KRRST, "_distil", lambda *_: pytest.fail("distilled again"))
    shuffled = make(configure(ShuffledTargets, config_of(SMALL)), task, tmp_path)
    assert pixels(shuffled).equal(pixels(made))
    ours, theirs = values(made), values(shuffled)
    assert not any(one.equal(other) for one, other in zip(ours, theirs, strict=True)), "none stays"
    owners = torch.cdist(theirs.double(), ours.double()).argmin(1)
    assert sorted(owners.tolist()) == list(range(12))
    assert theirs.equal(ours[owners])
    assert not owners.equal((torch.arange(12) + 1) % 12), "in a random order"
    assert shuffled.parents == made.parents


def test_controls(task: Task) -> None:
    """Which half it is that teaches, more images instead of better ones, and labels instead of targets."""
    task = replace(task, seed=7)
    plans = SMALL.controls(task)
    assert [(plan.method, plan.labels, plan.preset, plan.seeds) for plan in plans] == [
        ("random", "features", "real images", DRAWS),
        ("random", "features", "twice as many real images", DRAWS),
        ("random", "hard", "real images", DRAWS),
        ("k-means", "features", "real images", DRAWS[:3]),
        ("krr-st", "features", "images learned", (7,)),
        ("krr-st", "features", "targets learned", (7,)),
        ("krr-shuffled", "features", "", (7,)),
    ]
    configs = [configure(type(one), plan.config) for plan, one in zip(plans, _made(plans), strict=True)]
    assert [getattr(config, "times", None) for config in configs[:3]] == [1, 2, 1]
    assert [getattr(config, "target", None) for config in configs] == [PLAN, PLAN, None, PLAN, PLAN, PLAN, PLAN]
    assert [getattr(config, "learned", None) for config in configs[4:]] == ["images", "targets", "both"]
    assert {config.protocol for config in configs} == {"transfer-digits"}
    for learned in ("images", "targets"):
        half = replace(SMALL, learned=learned)  # type: ignore[arg-type]
        assert half.controls(task) == (plans[0],)
        assert half in configs
    assert configure(ShuffledTargets, config_of(SMALL)).controls(task) == (plans[0],)


def _made(plans: Any) -> Iterator[Any]:
    from synth import find

    for plan in plans:
        yield configure(find(plan.method), plan.config)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "preset", "protocol"),
    [
        ("cifar100", "default", "transfer-cifar"), ("cifar10", "default-cifar10", "transfer-cifar-back"),
        ("cifar100@50", "small", "transfer-small"), ("cifar10@200", "small-cifar10", "transfer-small-back"),
        ("digits-low", "digits", "transfer-digits"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [KRRST, ShuffledTargets])
def test_presets_of_data_sets(method: type[KRRST], dataset: str, preset: str, protocol: str) -> None:
    name, found = choose_preset(method, None, dataset)
    assert (name, found.protocol) == (preset, protocol)
    assert type(found) is method
    bridge = PROTOCOLS[protocol]
    assert isinstance(bridge, TransferProtocol)
    assert bridge.source == dataset.split("@")[0]
    assert bridge.architectures == (found.student,)


@pytest.mark.parametrize("name", ["small", "small-cifar10", "medium", "medium-cifar10", "digits"])
def test_controls_of_presets_have_names_of_their_own(task: Task, name: str) -> None:
    real, *_, means, _, _, _ = KRRST.PRESETS[name].controls(task)
    scale, _, source = name.partition("-")
    assert configure(Random, real.config) == Random.PRESETS[f"{scale}-features{source and '-'}{source}"]
    assert configure(KMeans, means.config) == KMeans.PRESETS[name]


def test_presets() -> None:
    scales = (
        "default", "default-cifar10", "default-tinyimagenet", "small", "small-cifar10", "medium", "medium-cifar10",
        "digits",
    )  # fmt: skip
    assert set(KRRST.PRESETS) == {*scales} | {
        name.replace(name.split("-")[0], f"{name.split('-')[0]}-paper-code", 1) for name in scales
    }
    assert KRRST.preset_for("tinyimagenet") == "default"
    assert choose_preset(KRRST, "default", "tinyimagenet")[1] == KRRST(
        student="pyramid4", lr=1e-5, protocol="transfer-tiny"
    )
    for name in ("small", "medium"):
        assert choose_preset(KRRST, name, "cifar10@200")[1].protocol == "transfer-small-back"
        assert KRRST.PRESETS[name].target == TARGETS[name]
    published = KRRST.PRESETS["default"]
    assert (published.steps, published.batch, published.lr, published.ridge, published.augment) == (
        160_000, 1024, 1e-4, 1e-6, "crop-flip"
    )  # fmt: skip
    assert published.pool == PoolRecipe(10, 1000, lr=0.1, momentum=0.9, weight_decay=1e-3, reset=True)
    assert (published.target, published.student) == (TARGETS["default"], "pyramid3")
    for name, preset in KRRST.PRESETS.items():
        assert configure(KRRST, config_of(preset)) == preset
        assert preset.learned == "both"
        assert isinstance(PROTOCOLS[preset.protocol], TransferProtocol)
        if "-paper-code" in name:
            plain = KRRST.PRESETS[name.replace("-paper-code", "")]
            assert preset == replace(plain, start="pixels", pool=replace(plain.pool, reset=False))
        else:
            assert (preset.start, preset.pool.reset) == ("normalised", True)
    for dataset, scale in (("cifar10@200", "small-paper-code-cifar10"), ("cifar100@20", "small-paper-code")):
        assert choose_preset(KRRST, "small-paper-code", dataset)[0] == scale


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"batch": 0}, "batch is 0; expected at least 1"),
        ({"lr": 0.0}, "lr is 0.0; expected more than 0"),
        ({"lr": math.inf}, "lr is inf; expected more than 0"),
        ({"lr": math.nan}, "lr is nan; expected more than 0"),
        ({"ridge": -1e-6}, "ridge is -1e-06; expected at least 0"),
        ({"ridge": math.inf}, "ridge is inf; expected at least 0"),
        ({"student": "pyramid3-x0.5-batch"}, "model 'pyramid3-x0.5-batch'"),
    ],
)
def test_rejects_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        KRRST(**wrong)
    assert message in str(caught.value)


def test_the_student_has_one_spelling() -> None:
    assert KRRST(student="pyramid3-batch-x0.50").student == "pyramid3-x0.5"


def test_rejects_more_than_there_are(task: Task, run: Run, own_home: Path) -> None:
    """Before the target network is trained."""
    with pytest.raises(ConfigError, match="123 images are asked for of 120 training images; lower --ipc"):
        SMALL.synthesize(replace(task, ipc=41), run)
    assert not (own_home / "teachers").exists()


def test_takes_settings_at_their_limits(task: Task, tmp_path: Path) -> None:
    """Every image there is, a batch of all of them and more, no ridge at all, and a single step."""
    made = make(replace(SMALL, steps=1, batch=10_000, ridge=0.0), replace(task, ipc=40), tmp_path)
    assert pixels(made).shape == (120, 1, 8, 8)
    assert pixels(made).isfinite().all()
    assert values(made).isfinite().all()


# --- what it replaces: a training that autograd unrolls ---------------------------------------------------------------


class Unrolled:
    """Three steps of SGD with momentum on the set, and the error of what comes of it on real images."""

    LR, MOMENTUM, STEPS = 0.1, 0.9, 3

    def __init__(self) -> None:
        draws = generator(3)
        with seeded(4):
            self.network = nn.Sequential(
                nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(),
                nn.Linear(12, 2),
            ).double()  # fmt: skip
        self.x, self.y, self.real_x, self.real_y = (
            torch.randn(*shape, generator=draws).double() for shape in ((4, 2, 4, 4), (4, 2), (6, 2, 4, 4), (6, 2))
        )
        self.x.requires_grad_()
        self.y.requires_grad_()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """By torch.func; BatchNorm gets fresh copies of its buffers, in which it counts."""
        parameters = {name: value.detach() for name, value in self.network.named_parameters()}

        def outputs(parameters: dict[str, Tensor], images: Tensor) -> Tensor:
            buffers = {name: value.clone() for name, value in self.network.named_buffers()}
            found: Tensor = functional_call(self.network.train(), (parameters, buffers), (images,))
            return found

        def inner(parameters: dict[str, Tensor]) -> Tensor:
            return F.mse_loss(outputs(parameters, x), y)

        velocity = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for _ in range(self.STEPS):
            slopes = torch.func.grad(inner)(parameters)
            velocity = {name: self.MOMENTUM * velocity[name] + slope for name, slope in slopes.items()}
            parameters = {name: value - self.LR * velocity[name] for name, value in parameters.items()}
        return F.mse_loss(outputs(parameters, self.real_x), self.real_y)

    def by_higher(self) -> Tensor:
        optimizer = torch.optim.SGD(self.network.train().parameters(), lr=self.LR, momentum=self.MOMENTUM)
        loop = load_higher().innerloop_ctx(self.network, optimizer, copy_initial_weights=True)
        with loop as (network, descent):
            for _ in range(self.STEPS):
                descent.step(F.mse_loss(network(self.x), self.y))
            loss: Tensor = F.mse_loss(network(self.real_x), self.real_y)
        return loss


def test_the_naive_baseline_is_what_higher_and_finite_differences_say() -> None:
    """The bilevel gradient that KRR-ST does without, as a reference for others; it is not KRR-ST's own."""
    work = Unrolled()
    before = {name: value.clone() for name, value in work.network.state_dict().items()}
    loss, theirs = work.loss(work.x, work.y), work.by_higher()
    torch.testing.assert_close(loss, theirs, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(loss, (work.x, work.y))
    for ours, other in zip(gradients, torch.autograd.grad(theirs, (work.x, work.y)), strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-12)
    for number, slope in enumerate(gradients):
        toward = torch.randn(slope.shape, generator=generator(6)).double()
        ends = []
        for sign in (1, -1):
            parts = [work.x.detach(), work.y.detach()]
            parts[number] = parts[number] + sign * 1e-5 * toward
            ends.append(work.loss(*parts))
        torch.testing.assert_close((slope * toward).sum(), (ends[0] - ends[1]) / 2e-5, rtol=0, atol=1e-8)
        assert slope.abs().max() > 1e-3
    assert all(value.equal(before[name]) for name, value in work.network.state_dict().items())


def test_draws_within_the_inner_training_bias_its_gradient() -> None:
    """Ridge regression of 1 on x + ξ, ξ ~ N(0, 1/4), at x = 1: the reason why nothing is drawn inside."""
    deviation, ridge, aim = 0.5, 0.1, 0.2
    scale = 1 + deviation**2 + ridge
    intended = (1 / scale - aim) * (scale - 2) / scale**2  # of θ*(x) = x / (x² + 1/4 + λ)
    assert round(intended, 4) == -0.1929
    seen = 1 + deviation * torch.randn(100_000, 16, generator=generator(0)).double()
    found = []
    for views in (1, 4, 16):
        x = torch.ones((), dtype=torch.float64, requires_grad=True)
        drawn = x + (seen[:, :views] - 1)
        learned = drawn.mean(1) / (drawn.square().mean(1) + ridge)
        (slope,) = torch.autograd.grad((0.5 * (learned - aim).square()).mean(), x)
        found.append(float(slope))
    for ours, known in zip(found, (-0.4568, -0.2615, -0.2095), strict=True):
        assert abs(ours - known) < 0.01
    assert found[0] < found[1] < found[2] < intended, "more views help, more real batches do not"


# --- is it good for anything? ----------------------------------------------------------------------------------------

_GOOD = TargetPlan(
    "convnet2-batch-x0.125", BarlowTwinsRecipe(steps=40, batch=54, projector=(64,), smallest_crop=0.5)
)  # fmt: skip


def errors(images: Tensor, targets: Tensor, seen: Tensor, wanted: Tensor, student: str) -> Tensor:
    """Returns the squared errors, on images unseen, of ridge regression and of the head of two fresh networks."""
    found = []
    for seed in (100, 101):
        with seeded(seed):
            network = build(student, replace(encoded_spec(BLOBS), num_classes=targets.shape[1]))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for step in range(100):
            optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 100)
            optimizer.zero_grad()
            F.mse_loss(network(images), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        network.eval()
        with torch.no_grad():
            rows = [F.pad(network.embed(part), (0, 1), value=1.0).double() for part in (images, seen)]
            kernel = rows[0] @ rows[0].T
            solved = torch.linalg.solve(kernel + 1e-6 * kernel.trace() * torch.eye(len(images)), targets.double())
            ridge = F.mse_loss(rows[1] @ rows[0].T @ solved, wanted.double())
            found.append(torch.stack([ridge, F.mse_loss(network(seen), wanted).double()]))
    return torch.stack(found).mean(0)


def test_distilled_sets_teach_more_than_the_real_images_they_began_as(blobs: ImageData, tmp_path: Path) -> None:
    config = KRRST(
        _GOOD, "pyramid2-x0.0625", PoolRecipe(size=3, max_age=40), steps=100, batch=120, lr=2e-2, augment="none"
    )
    held_out = draw_blobs(100, 7)[0]
    for seed in (0, 1):
        task = Task(blobs, ipc=4, seed=seed, device=CPU)
        made = make(config, task, tmp_path)
        shuffled = make(configure(ShuffledTargets, config_of(config)), task, tmp_path)
        target = obtain_target(_GOOD, task, Run(tmp_path / "target"))
        wanted = target.targets_of(held_out.float() / 255)
        picked = sample_images(120, 12, seed)
        begun, ours, moved = (
            errors(images, targets, normalised(held_out), wanted, config.student)
            for images, targets in (
                (normalised(blobs.images[picked]), target.plain[picked]),
                (normalised(pixels(made) * 255), values(made)),
                (normalised(pixels(shuffled) * 255), values(shuffled)),
            )
        )
        assert (ours / begun).max() <= 0.8, (ours, begun)
        assert begun.max() < 1
        assert moved.min() > 1, "worse than the mean of all targets"
