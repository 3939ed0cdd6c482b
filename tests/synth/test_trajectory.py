"""Trajectory matching as a whole: against a loop that autograd watches, its settings, its guard, and what it is for."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from dd_bench.checkpoint import load_tree
from dd_bench.data.catalogue import load_training
from dd_bench.data.images import ImageData
from dd_bench.errors import ConfigError, DivergedError
from dd_bench.models import build, encoded_spec
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import Images
from dd_bench.store import Store
from dd_bench.targets import HardLabels
from synth.base import Distilled, Task, choose_preset, config_of, configure, override, random_control
from synth.coreset import Random
from synth.parts.encoded import encode_images
from synth.parts.expert_training import ExpertRecipe
from synth.parts.experts import ExpertPlan, Experts, obtain_experts
from synth.parts.guarded import GuardedDescent
from synth.parts.inner import FlatNetwork
from synth.parts.teachers import split_held_out
from synth.parts.unroll import TrajectoryGradient
from synth.pipeline import Order, describe, distil
from synth.trajectory import AST, MTT, TrajectoryMatching, balance_factor, draw_batches, perturb
from tests.conftest import Interrupt, at
from tests.references import trajectory as reference

CPU = torch.device("cpu")
EXPERTS = ExpertPlan("convnet1-x0.0625", ExpertRecipe(epochs=5, keep=5, batch=54, lr=0.05), count=2)
SMALL = MTT(EXPERTS, iterations=3, inner_steps=4, max_start=3, lr_images=5.0, lr_rate=1e-4, rate=0.02, protocol="quick")
FULL = AST(
    EXPERTS, iterations=3, inner_steps=6, expert_epochs=3, max_start=3, min_start=1, inner_batch=5, lr_images=5.0,
    lr_rate=1e-4, rate=0.02, rate_form="softplus", inner_momentum=0.9, initialization="representative", balance=True,
    waypoints="rising", perturbation=3.0, guard=5.0, protocol="quick",
)  # fmt: skip


class Watched:
    """What each update got, and which segments were asked for."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.limits: list[float] = []
        self.segments: list[tuple[int, int, int]] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    seen = Watched()
    update, segment = GuardedDescent.update, Experts.segment

    def spy_update(self: GuardedDescent, gradient: TrajectoryGradient, step_size: Tensor, limit: float) -> None:
        seen.losses.append(float(gradient.loss))
        seen.limits.append(limit)
        update(self, gradient, step_size, limit)

    def spy_segment(self: Experts, index: int, epoch: int, length: int) -> Tensor:
        seen.segments.append((index, epoch, length))
        return segment(self, index, epoch, length)

    monkeypatch.setattr(GuardedDescent, "update", spy_update)
    monkeypatch.setattr(Experts, "segment", spy_segment)
    return seen


def make(synthesizer: TrajectoryMatching, task: Task, folder: Path) -> Distilled:
    return synthesizer.synthesize(task, Run(folder / "run" / f"{len(list(folder.glob('run/*')))}"))


def pixels(made: Distilled) -> Tensor:
    assert isinstance(made.payload, Images)
    return made.payload.decode()


# --- the whole, written out ------------------------------------------------------------------------------------------


def by_hand(config: TrajectoryMatching, task: Task, home: Path) -> tuple[Tensor, float, list[float]]:
    """Pixels, step size and losses by the reference, from the experts' files."""
    data = task.images
    images, spec = data.images.double() / 255, encoded_spec(data.spec)
    mean, std = torch.tensor(data.spec.mean)[:, None, None], torch.tensor(data.spec.std)[:, None, None]
    if config.experts.whiten:
        flat = images.flatten(1)
        s, axes = torch.linalg.eigh(flat.T.cov())
        root = (s.clamp_min(0) + 0.1).sqrt()
        middle = flat.mean(0)
        x = ((flat - middle) @ (axes / root) @ axes.T).view_as(images)
    else:
        x = (images - mean) / std
    (folder,) = (home / "experts").iterdir()
    paths = [load_file(path)["checkpoints"] for path in sorted(folder.glob("*.safetensors"))]
    model = build(config.experts.architecture, spec)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def net(theta: Tensor, batch: Tensor) -> Tensor:
        pieces = theta.split([math.prod(shape) for shape in shapes])
        values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        logits: Tensor = torch.func.functional_call(model, values, (batch,))
        return logits

    if config.initialization == "random":
        control = Random(protocol="quick").synthesize(task, Run(home / "control")).payload
        assert isinstance(control, Images)
        every = {image.numpy().tobytes(): row for row, image in enumerate(data.images)}
        rows = [every[(image * 255).round().byte().numpy().tobytes()] for image in control.decode()]
        chosen = torch.tensor(rows)
    else:
        chosen = representatives_by_hand(net, paths, x.float(), data.labels, task)
    good, alpha, losses = reference.synthesize(
        config, spec, net, shapes, paths, x[chosen].float(), data.labels[chosen], task.seed
    )
    good = good.double()
    back = (
        (good.flatten(1) @ (axes * root) @ axes.T + middle).view_as(good)
        if config.experts.whiten
        else good * std + mean
    )
    return back.float(), alpha, losses


def representatives_by_hand(net: Any, paths: list[Tensor], x: Tensor, labels: Tensor, task: Task) -> Tensor:
    from sklearn.cluster import KMeans

    who = int(torch.randint(len(paths), (), generator=generator(derive_seed("representative expert", task.seed))))
    columns = []
    for label in range(3):
        members = [row for row, mine in enumerate(labels.tolist()) if mine == label]
        logits = net(paths[who][-1], x[members]).detach().double().numpy()
        seed = derive_seed("representatives", task.seed, label) % 2**32
        found = KMeans(min(10, task.ipc), n_init=10, random_state=seed).fit(logits)
        distances = ((logits - found.cluster_centers_[found.labels_]) ** 2).sum(1).tolist()
        chosen = reference.representatives(distances, found.labels_.tolist(), task.ipc, min(10, task.ipc))
        columns.append([members[row] for row in chosen])
    return torch.tensor(columns).T.flatten()


CASES: dict[str, TrajectoryMatching] = {
    "mtt": SMALL,
    "mtt whitened": replace(SMALL, experts=replace(EXPERTS, whiten=True), lr_images=50.0),
    "mtt in batches": replace(SMALL, inner_batch=7, waypoints="equal", rate_form="softplus"),
    "ast": FULL,
    "ast with equal waypoints": replace(FULL, waypoints="equal", inner_batch=0, rate_form="raw", iterations=2),
    "unrolled": replace(SMALL, gradient="unrolled"),
}


@pytest.mark.parametrize("case", list(CASES))
def test_synthesis_is_one_loop_under_autograd(
    case: str, task: Task, own_home: Path, tmp_path: Path, watched: Watched
) -> None:
    config, task = CASES[case], replace(task, seed=list(CASES).index(case))
    made = make(config, task, tmp_path)
    expected, rate, losses = by_hand(config, task, own_home)
    found = pixels(made)
    assert watched.losses == pytest.approx(losses, rel=1e-4)
    start = pixels(make(replace(config, lr_images=1e-9, lr_rate=0.0), task, tmp_path))
    assert (found - start).abs().max() > 0.01  # so that the next line says something
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert made.suggested_lr == pytest.approx(rate, rel=1e-5)
    assert made.suggested_lr != pytest.approx(config.rate, rel=1e-5)
    assert isinstance(made.targets, HardLabels)
    assert made.targets.classes.tolist() == [0, 1, 2] * 4


def test_the_approximation_is_another_gradient(task: Task, tmp_path: Path) -> None:
    exact, tesla = (pixels(make(replace(SMALL, gradient=way), task, tmp_path)) for way in ("adjoint", "tesla"))
    assert 1e-5 < (exact - tesla).abs().max() < 0.5


def test_what_is_given_back(task: Task, own_home: Path, tmp_path: Path) -> None:
    made = make(SMALL, task, tmp_path)
    experts = obtain_experts(EXPERTS, task, encode_images(task.images, whiten=False, device=CPU))
    assert made.teacher_seconds == experts.seconds > 0
    assert made.parents == ()
    assert isinstance(made.payload, Images)
    assert made.payload.decode().shape == (12, 1, 8, 8)
    assert made.payload.decode().dtype == torch.float32
    assert SMALL.controls(task) == (random_control("quick"),)


# --- seeds and starts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [SMALL, FULL], ids=["mtt", "ast"])
def test_one_seed_makes_one_set(config: TrajectoryMatching, task: Task, tmp_path: Path) -> None:
    first, again, other = (make(config, replace(task, seed=seed), tmp_path) for seed in (5, 5, 6))
    assert pixels(first).equal(pixels(again))
    assert first.suggested_lr == again.suggested_lr
    assert not pixels(first).equal(pixels(other))
    assert first.suggested_lr != other.suggested_lr


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("seed", [0, 3])
def test_it_starts_from_the_random_control(task: Task, tmp_path: Path, whiten: bool, seed: int) -> None:
    """Of the same seed; and what is stored are pixels, also of whitened images."""
    task = replace(task, seed=seed)
    config = replace(SMALL, experts=replace(EXPERTS, whiten=whiten), lr_images=1e-9)
    made, control = make(config, task, tmp_path), Random(protocol="quick").synthesize(task, Run(tmp_path / "control"))
    torch.testing.assert_close(pixels(made), pixels(control), rtol=0, atol=1e-5)
    assert made.targets.classes.equal(control.targets.classes)


@pytest.mark.parametrize("ipc", [1, 3, 10, 13, 40])
def test_representatives_are_different_images_of_their_class(task: Task, tmp_path: Path, ipc: int) -> None:
    data = task.images
    rows = {image.numpy().tobytes(): row for row, image in enumerate(data.images)}
    config = replace(SMALL, initialization="representative", iterations=1, lr_images=1e-9)
    made = [make(config, replace(task, ipc=ipc, seed=seed), tmp_path) for seed in (0, 0)]
    found = [rows[(image * 255).round().byte().numpy().tobytes()] for image in pixels(made[0])]
    assert len(set(found)) == len(found) == 3 * ipc
    assert data.labels[found].tolist() == made[0].targets.classes.tolist() == [0, 1, 2] * ipc
    assert pixels(made[0]).equal(pixels(made[1]))


def test_too_few_images_are_told(task: Task, tmp_path: Path) -> None:
    for config in (SMALL, replace(SMALL, initialization="representative")):
        with pytest.raises(ConfigError, match="40 training examples, but 41 are asked for; lower --ipc"):
            make(config, replace(task, ipc=41), tmp_path)


@pytest.mark.parametrize("form", ["raw", "softplus"])
@pytest.mark.parametrize("rate", [1e-7, 0.03, 2.0])
def test_the_step_size_starts_where_it_is_told(task: Task, tmp_path: Path, form: Any, rate: float) -> None:
    made = make(replace(SMALL, rate=rate, rate_form=form, lr_images=1e-9, lr_rate=0.0, guard=1e9), task, tmp_path)
    assert made.suggested_lr == pytest.approx(rate, rel=1e-5)


# --- losses and guards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("waypoints", "still"), [("none", 1), ("equal", 3), ("rising", 2)])
@pytest.mark.parametrize("perturbation", [0.0, 40.0])
def test_a_student_that_stands_still_has_the_loss_of_its_weights(
    task: Task, tmp_path: Path, watched: Watched, waypoints: Any, still: float, perturbation: float
) -> None:
    """Also a jittered one: the distances it is measured by start where it starts. Limits count in such losses."""
    config = replace(FULL, rate=1e-12, lr_rate=0.0, waypoints=waypoints, perturbation=perturbation, guard=1.5)
    make(config, task, tmp_path)
    assert watched.losses == pytest.approx([still] * 3, rel=1e-5)
    assert watched.limits == pytest.approx([1.5 * still] * 3)


def test_segments_are_what_is_asked_for(task: Task, tmp_path: Path, watched: Watched) -> None:
    make(replace(FULL, iterations=8, perturbation=0.0), task, tmp_path)
    assert {length for _, _, length in watched.segments} == {3}
    assert {epoch for _, epoch, _ in watched.segments} == {1, 2}
    rounds = [{expert for expert, _, _ in watched.segments[at : at + 2]} for at in range(0, 8, 2)]
    assert rounds == [{0, 1}] * 4


def test_every_expert_once_a_round_and_starts_uniform() -> None:
    config = replace(SMALL, experts=replace(EXPERTS, count=5), min_start=1, max_start=4)
    drawn = [config._draw_segment(5, 7, step) for step in range(3000)]
    orders = [tuple(expert for expert, _ in drawn[at : at + 5]) for at in range(0, 3000, 5)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(orders)) > 100  # of 120
    starts = Counter(start for _, start in drawn)
    assert set(starts) == {1, 2, 3}
    assert all(abs(count - 1000) < 110 for count in starts.values())  # four deviations of 25.8
    pairs = Counter(drawn)
    assert len(pairs) == 15
    assert all(abs(count - 200) < 60 for count in pairs.values())
    assert [config._draw_segment(5, 7, step) for step in range(20)] == drawn[:20]
    assert [config._draw_segment(5, 8, step) for step in range(20)] != drawn[:20]


EXPLODING: dict[str, dict[str, Any]] = {
    "step sizes below 0": {"lr_images": 1.0, "lr_rate": 10.0},
    "losses over the limit": {"rate": 0.5},
    "images that leap": {"lr_images": 1e5},
    "images that are not finite": {"lr_images": 1e38},
}


@pytest.mark.parametrize("case", list(EXPLODING))
def test_divergence_is_told_and_nothing_is_stored(
    case: str, task: Task, own_home: Path, interrupted: Interrupt, watched: Watched
) -> None:
    config = replace(SMALL, iterations=100, **EXPLODING[case])
    order = Order("mtt", "tiny", config)
    with interrupted(at("match trajectories", 15)):
        distil(order, task, Store())
    saved: Any = load_tree(own_home / "runs" / f"mtt-{describe(order, task).set_id}" / "match_trajectories.safetensors")
    assert saved["step"] == 16
    assert saved["state"]["good_images"].isfinite().all()
    assert saved["state"]["good_rate"] > 0
    assert saved["state"]["strikes"] >= 4
    message = r"iteration [24]0: the matching loss, (never|last) in order.* keeps .*; nothing was stored\."
    with pytest.raises(DivergedError, match=message):
        distil(order, task, Store())
    assert len(watched.losses) in (20, 40)
    assert Store().list() == ()
    with pytest.raises(DivergedError, match=message):  # and again, from the last checkpoint
        distil(order, task, Store())


def test_divergence_in_the_last_iterations_is_told(task: Task, tmp_path: Path) -> None:
    """Also of those that are fewer than lie between two looks at the guard."""
    for iterations in (1, 15):
        with pytest.raises(DivergedError, match=f"iteration {iterations}: the matching loss, never in order"):
            make(replace(SMALL, iterations=iterations, rate=0.5), task, tmp_path)


@pytest.mark.parametrize("lr", [1e5, 1e9])
def test_images_that_explode_are_told(task: Task, tmp_path: Path, watched: Watched, lr: float) -> None:
    """Instance norms see no scale: the loss stays where it is while pixels grow a millionfold."""
    with pytest.raises(DivergedError, match="the images keep leaping"):
        make(replace(SMALL, iterations=60, lr_images=lr), task, tmp_path)
    assert all(loss <= limit for loss, limit in zip(watched.losses, watched.limits, strict=True))


def test_a_few_explosions_are_survived(task: Task, tmp_path: Path, watched: Watched) -> None:
    """Four or so in twenty: what is stored was measured, and was in order."""
    config = replace(SMALL, iterations=20, lr_images=1.0, lr_rate=2e-3)
    made = make(config, task, tmp_path)
    refused = sum(not loss <= limit for loss, limit in zip(watched.losses, watched.limits, strict=True))
    assert 0 < refused < 10
    assert pixels(made).isfinite().all()
    assert made.suggested_lr is not None
    assert made.suggested_lr > 0


# --- its parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_start", "start", "factor"),
    [
        (20, 0, 0.557), (20, 9, 0.732), (20, 10, 1.292), (20, 19, 1.760),
        (40, 0, 0.483), (40, 19, 0.732), (40, 20, 1.292), (40, 39, 2.048),
        (1, 0, 1.292), (3, 0, 0.732), (3, 1, 1.292), (3, 2, 1.365),
    ],
)  # fmt: skip
def test_balance_factors_are_the_published_ones(max_start: int, start: int, factor: float) -> None:
    assert balance_factor(start, max_start) == pytest.approx(factor, abs=6e-4)
    assert balance_factor(start, max_start) == pytest.approx(reference.balance(start, max_start), rel=1e-12)


def network() -> FlatNetwork:
    with seeded(1):
        return FlatNetwork(build("convnet2-x0.25", encoded_spec(load_training("digits").spec)))


def test_perturbation_jitters_convolutions_alone() -> None:
    net = network()
    theta = net.flatten()
    before = theta.clone()
    moved = net.unflatten(perturb(net, theta, 1.0, generator(3)))
    assert theta.equal(before)
    jittered = []
    for name, weight in net.unflatten(theta).items():
        if weight.ndim != 4:
            assert moved[name].equal(weight)
            continue
        jittered.append(name)
        size = ((moved[name] - weight).norm() / weight.norm()).item()
        assert size == pytest.approx(weight.numel() ** -0.5, rel=0.2)
        ratios = (moved[name] / weight - 1).flatten()
        assert ratios.norm().item() == pytest.approx(1, rel=1e-3)  # d has Frobenius norm 1
        assert abs(ratios.mean()) < 4 / weight.numel()
        assert (ratios > 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert len(jittered) == 2
    shapes = [tuple(shape) for shape in net.shapes.values()]
    expected = reference.jitter(theta, shapes, 2.5, generator(9))
    torch.testing.assert_close(perturb(net, theta, 2.5, generator(9)), expected)
    assert not perturb(net, theta, 2.5, generator(10)).equal(expected)
    torch.testing.assert_close(perturb(net, theta, 0.0, generator(9)), theta)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (12, 5, [5, 5, 2]), (8, 4, [4, 4]), (7, 6, [6, 1]), (5, 1, [1] * 5)],
)
def test_batches_are_parts_of_permutations(count: int, size: int, sizes: list[int]) -> None:
    for steps in (1, len(sizes), 2 * len(sizes), 3 * len(sizes) - 1):
        parts = draw_batches(count, size, steps, generator(2), CPU)
        assert [None if part is None else len(part) for part in parts] == (sizes * 3)[:steps]
        for begin in range(0, steps - len(sizes) + 1, len(sizes)):
            whole = torch.cat([part for part in parts[begin : begin + len(sizes)] if part is not None])
            assert sorted(whole.tolist()) == list(range(count))
    long = draw_batches(count, size, 3 * len(sizes), generator(2), CPU)
    rounds = [torch.cat([part for part in long[at : at + len(sizes)] if part is not None]) for at in
              range(0, len(long), len(sizes))]  # fmt: skip
    assert not rounds[0].equal(rounds[1])
    expected = reference.chunks(count, size, 3 * len(sizes), generator(2))
    assert all(a is not None and a.equal(b) for a, b in zip(long, expected, strict=True))


@pytest.mark.parametrize("size", [0, 10, 11])
def test_a_batch_of_all_is_no_batch(size: int) -> None:
    draws = generator(0)
    before = draws.get_state()
    assert draw_batches(10, size, 3, draws, CPU) == [None] * 3
    assert draws.get_state().equal(before)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"iterations": 0}, "iterations is 0; expected at least 1"),
        ({"expert_epochs": 0}, "expert_epochs is 0; expected 1 to the 30 inner_steps"),
        ({"expert_epochs": 31}, "expert_epochs is 31; expected 1 to the 30 inner_steps"),
        ({"inner_steps": 1}, "expert_epochs is 2; expected 1 to the 1 inner_steps"),
        ({"inner_steps": 0}, "expert_epochs is 2; expected 1 to the 0 inner_steps"),
        ({"min_start": -1}, "min_start is -1; expected 0 to 19, below max_start"),
        ({"min_start": 20}, "min_start is 20; expected 0 to 19, below max_start"),
        ({"max_start": 0}, "min_start is 0; expected 0 to -1, below max_start"),
        ({"max_start": 41}, "max_start is 41; expected at most 40, as experts keep 41 epochs"),
        ({"max_start": 40, "expert_epochs": 3}, "max_start is 40; expected at most 39"),
        ({"inner_batch": -1}, "inner_batch is -1; expected at least 0"),
        ({"lr_images": 0.0}, "lr_images is 0.0; expected more than 0"),
        ({"lr_images": math.inf}, "lr_images is inf"),
        ({"lr_rate": -1.0}, "lr_rate is -1.0; expected at least 0"),
        ({"lr_rate": math.nan}, "lr_rate is nan"),
        ({"rate": 0.0}, "rate is 0.0; expected more than 0"),
        ({"rate": math.inf}, "rate is inf"),
        ({"inner_momentum": 1.0}, "inner_momentum is 1.0; expected at least 0 and less than 1"),
        ({"inner_momentum": -0.1}, "inner_momentum is -0.1"),
        ({"perturbation": -1.0}, "perturbation is -1.0; expected at least 0"),
        ({"perturbation": math.inf}, "perturbation is inf"),
        ({"guard": 1.0}, "guard is 1.0; expected more than 1"),
        ({"guard": math.nan}, "guard is nan"),
    ],
)
def test_rejects_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MTT(**wrong)
    assert message in str(caught.value)


def test_takes_settings_at_their_limits(task: Task, tmp_path: Path) -> None:
    """The last start and the last target there are, one step for one epoch, and a batch for every image."""
    config = replace(
        SMALL, iterations=1, inner_steps=1, expert_epochs=1, min_start=4, max_start=5, inner_batch=1, lr_rate=0.0,
        guard=1e9,
    )  # fmt: skip
    assert pixels(make(config, task, tmp_path)).isfinite().all()


@pytest.mark.parametrize("method", [MTT, AST])
def test_every_preset_is_a_configuration(method: Any) -> None:
    assert len(method.PRESETS) == 13
    for preset in method.PRESETS.values():
        assert type(preset) is method
        assert configure(method, config_of(preset)) == preset
        assert preset.experts.recipe.keep >= preset.max_start - 1 + preset.expert_epochs


@pytest.mark.parametrize("method", [MTT, AST])
@pytest.mark.parametrize(
    ("dataset", "ipc", "name"),
    [
        ("cifar10", 1, "published-cifar10-ipc1"), ("cifar10", 3, "published-cifar10-ipc1"),
        ("cifar10", 4, "published-cifar10-ipc10"), ("cifar10", 20, "published-cifar10-ipc10"),
        ("cifar10", 23, "published-cifar10-ipc50"), ("cifar10", 500, "published-cifar10-ipc50"),
        ("cifar100", 10, "published-cifar100-ipc10"), ("tinyimagenet", 50, "published-tinyimagenet-ipc50"),
        ("cifar10@200", 10, "small-ipc10"), ("cifar10@200", 1, "small-ipc1"), ("cifar100@20/10", 50, "small-ipc10"),
        ("cifar10@200/5", 1, "small-ipc1"), ("svhn", 10, "published-cifar10-ipc10"),
        ("nci1", 1, "published-cifar10-ipc1"),
        ("digits", 1, "digits-ipc1"), ("digits", 10, "digits-ipc10"), ("digits@20", 2, "digits-ipc1"),
    ],
)  # fmt: skip
def test_presets_are_chosen_by_data_set_and_size(method: Any, dataset: str, ipc: int, name: str) -> None:
    found, chosen = choose_preset(method, None, dataset, ipc)
    assert (found, chosen) == (name, method.PRESETS[name])
    assert type(chosen) is method


# data set, ipc; N, M, T⁺, batch, ZCA, lr_img, lr_lr, α₀ (dc_benchmark's table; AST's scripts)
@pytest.mark.parametrize(
    ("method", "dataset", "ipc", "row"),
    [
        (MTT, "cifar10", 1, (50, 2, 2, 0, True, 100, 1e-7, 0.01)),
        (MTT, "cifar10", 10, (30, 2, 20, 0, True, 100, 1e-5, 0.001)),
        (MTT, "cifar10", 50, (30, 2, 40, 0, False, 1000, 1e-5, 0.001)),
        (MTT, "cifar100", 1, (20, 3, 20, 0, True, 1000, 1e-5, 0.01)),
        (MTT, "cifar100", 10, (20, 2, 20, 0, False, 1000, 1e-5, 0.01)),
        (MTT, "cifar100", 50, (80, 2, 40, 125, True, 1000, 1e-5, 0.01)),
        (MTT, "tinyimagenet", 1, (10, 2, 10, 0, False, 10000, 1e-4, 0.01)),
        (MTT, "tinyimagenet", 10, (20, 2, 40, 200, False, 10000, 1e-4, 0.01)),
        (MTT, "tinyimagenet", 50, (20, 2, 40, 300, False, 10000, 1e-4, 0.01)),
        (AST, "cifar10", 1, (50, 2, 2, 0, True, 100, 1e-7, 0.01)),
        (AST, "cifar10", 10, (30, 2, 20, 0, True, 100, 1e-6, 0.01)),
        (AST, "cifar10", 50, (30, 2, 40, 0, False, 1000, 1e-5, 0.01)),
        (AST, "cifar100", 1, (20, 3, 20, 0, True, 1000, 1e-5, 0.01)),
        (AST, "cifar100", 10, (20, 2, 30, 128, False, 1000, 1e-5, 0.01)),
        (AST, "cifar100", 50, (80, 2, 40, 700, False, 1000, 1e-5, 0.01)),
        (AST, "tinyimagenet", 1, (10, 2, 10, 0, False, 10000, 1e-4, 0.01)),
        (AST, "tinyimagenet", 10, (20, 2, 40, 500, False, 10000, 1e-4, 0.01)),
        (AST, "tinyimagenet", 50, (20, 2, 40, 300, False, 10000, 1e-4, 0.01)),
    ],
)
def test_published_presets_are_the_published_ones(method: Any, dataset: str, ipc: int, row: tuple[Any, ...]) -> None:
    chosen = method.PRESETS[f"published-{dataset}-ipc{ipc}"]
    found = (
        chosen.inner_steps, chosen.expert_epochs, chosen.max_start, chosen.inner_batch, chosen.experts.whiten,
        chosen.lr_images, chosen.lr_rate, chosen.rate,
    )  # fmt: skip
    assert found == row
    assert chosen.experts.architecture == ("convnet4" if dataset == "tinyimagenet" else "convnet3")
    assert (chosen.iterations, chosen.experts.count, chosen.gradient, chosen.rate_form) == (5000, 100, "adjoint", "raw")
    assert chosen.protocol == ("mtt-zca" if row[4] else "mtt")
    assert chosen.min_start == 0


def test_published_experts() -> None:
    mtt, ast = (method.PRESETS["published-cifar100-ipc1"].experts.recipe for method in (MTT, AST))
    assert (mtt.lr, mtt.momentum, mtt.weight_decay, mtt.batch) == (0.01, 0, 0, 256)
    assert (mtt.drop, mtt.ramp, mtt.penalty) == (1, 0, 0)
    assert (ast.lr, ast.momentum, ast.weight_decay, ast.batch, ast.epochs) == (0.003, 0.9, 1e-3, 256, 50)
    assert (ast.drop, ast.ramp, ast.penalty, ast.penalty_norm) == (0.6, 10, 2, "channel")
    for method, recipe in ((MTT, mtt), (AST, ast)):
        presets = [preset for name, preset in method.PRESETS.items() if name.startswith("published")]
        assert all(preset.experts.recipe == recipe for preset in presets)


# data set, ipc: representative initialization, balance, waypoints and perturbation
@pytest.mark.parametrize(
    ("dataset", "ipc", "on"),
    [
        ("cifar100", 1, (True, True, True)),
        ("cifar100", 10, (True, False, True)),
        ("cifar100", 50, (True, False, False)),
        ("cifar10", 10, (False, True, True)),
        ("tinyimagenet", 1, (False, False, True)),
        ("cifar10", 1, (True, True, True)),
        ("cifar10", 50, (True, True, True)),
        ("tinyimagenet", 10, (True, True, True)),
        ("tinyimagenet", 50, (True, True, True)),
    ],
)
def test_components_are_those_of_asts_scripts(dataset: str, ipc: int, on: tuple[bool, bool, bool]) -> None:
    name = f"published-{dataset}-ipc{ipc}"
    ast, mtt = AST.PRESETS[name], MTT.PRESETS[name]
    assert isinstance(ast, AST)
    assert isinstance(mtt, MTT)
    assert (ast.initialization == "representative", ast.balance, ast.waypoints == "equal") == on
    assert ast.perturbation == (1 if on[2] else 0)
    assert ast.inner_momentum == 0.9
    assert (mtt.initialization, mtt.balance, mtt.waypoints, mtt.perturbation, mtt.inner_momentum) == (
        "random", False, "none", 0, 0,
    )  # fmt: skip


def test_our_presets_have_all_of_ast() -> None:
    for name in ("digits-ipc1", "digits-ipc10", "small-ipc1", "small-ipc10"):
        ast, mtt = AST.PRESETS[name], MTT.PRESETS[name]
        assert isinstance(ast, AST)
        assert isinstance(mtt, MTT)
        assert (ast.initialization, ast.balance, ast.waypoints, ast.perturbation) == (
            "representative",
            True,
            "equal",
            1,
        )
        assert ast.inner_momentum > 0
        assert ast.experts.recipe.momentum > 0
        assert ast.experts.recipe.ramp > 0
        assert ast.experts.recipe.penalty > 0
        assert (mtt.initialization, mtt.balance, mtt.waypoints, mtt.perturbation) == ("random", False, "none", 0)
        assert (
            mtt.inner_momentum
            == mtt.experts.recipe.momentum
            == mtt.experts.recipe.ramp
            == mtt.experts.recipe.penalty
            == 0
        )
        assert ast.experts.count == mtt.experts.count


def test_settings_reach_into_the_experts() -> None:
    _, preset = choose_preset(MTT, None, "digits", 1)
    changed = override(preset, {"experts.count": "3", "experts.recipe.epochs": "30", "rate_form": "softplus"})
    assert changed == replace(
        preset, rate_form="softplus",
        experts=replace(preset.experts, count=3, recipe=replace(preset.experts.recipe, epochs=30)),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="max_start is 10; expected at most 3, as experts keep 4 epochs"):
        override(preset, {"experts.recipe.keep": "4"})
    with pytest.raises(ConfigError, match="gradient: Input should be 'adjoint'"):
        override(preset, {"gradient": "adjont"})


# --- what it is for --------------------------------------------------------------------------------------------------


def accuracy(images: Tensor, classes: Tensor, unseen: Tensor, truth: Tensor, data: ImageData) -> float:
    """Mean accuracy on real images of two networks trained on a few, in the plainest way there is."""
    hits = 0.0
    for seed in range(2):
        with seeded(seed):
            model = build("convnet2-x0.25", data.spec)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(model(images), classes).backward()
            optimizer.step()
        with torch.no_grad():
            hits += (model(unseen).argmax(1) == truth).float().mean().item() / 2
    return hits


@pytest.mark.slow
def test_distilled_images_teach_more_than_those_they_started_from(tmp_path: Path) -> None:
    """On images of the training split that neither experts nor synthesis have seen."""
    data = load_training("digits")
    kept, rest = split_held_out(len(data.labels), 0.25, seed=0)
    part = replace(data, images=data.images[kept], labels=data.labels[kept], fingerprint="cd" * 32)
    preset = MTT.PRESETS["digits-ipc1"]
    assert isinstance(preset, MTT)
    experts = replace(preset.experts, count=3, recipe=replace(preset.experts.recipe, epochs=6, keep=6))
    config = replace(preset, experts=experts, iterations=60, inner_steps=10, max_start=4)
    task = Task(part, ipc=1, seed=0, device=CPU)
    made, control = make(config, task, tmp_path), Random().synthesize(task, Run(tmp_path / "control"))
    unseen, truth, classes = data.images[rest].float() / 255, data.labels[rest], made.targets.classes
    before, after = (accuracy(pixels(one), classes, unseen, truth, data) for one in (control, made))
    assert before < 0.65
    assert after > before + 0.18  # seen: 0.28
