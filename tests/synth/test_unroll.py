"""Gradients through training: three ways, two of them the same; the adjoint in the memory of a few steps."""

import gc
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, NonFiniteError, UnknownNameError
from dd_bench.learn.dsa import DSA, OPERATIONS
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from synth.parts import unroll
from synth.parts.inner import FlatNetwork, InnerTraining, ReplayedDSA, Waypoint, space_waypoints
from synth.parts.unroll import TrajectoryGradient, trajectory_gradient
from tests.references import unroll as reference

SPEC = DatasetSpec("toy", (3, 8, 8), 5, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), True, tuple("abcde"))
METHODS = ("adjoint", "unrolled", "tesla")
BATCHES = tuple(torch.tensor(batch) for batch in ([0, 3, 5], [5, 1, 2, 4], [2, 0, 1], [4, 5, 3, 1], [4], [3, 2]))
RATE = torch.tensor(0.05, dtype=torch.float64)
AUGMENTED = ReplayedDSA(DSA(SPEC), seed=3)


class Problem:
    """Seven images, of which the last is in no batch; soft labels as logits; three checkpoints near a start."""

    def __init__(self, seed: int = 0) -> None:
        draws = generator(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draws, dtype=torch.float64)

        with seeded(seed):
            self.module = reference.network().double()
        self.network = FlatNetwork(self.module)
        self.start = self.network.flatten()
        self.targets = [self.start + 0.03 * normal(reference.SIZE) for _ in range(3)]
        self.images = torch.rand(7, 3, 8, 8, generator=draws, dtype=torch.float64)
        self.labels = normal(7, 5).requires_grad_()

    def inner(self, **changes: Any) -> InnerTraining:
        return replace(InnerTraining(self.network, BATCHES, objective=reference.soft_cross_entropy), **changes)

    def solve(
        self, inner: InnerTraining, method: Any = "adjoint", targets: int = 1, **changes: Any
    ) -> TrajectoryGradient:
        fields = {"images": self.images, "labels": self.labels, "rate": RATE, "start": self.start} | changes
        waypoints = fields.pop("waypoints", space_waypoints(self.targets[:targets], len(inner.batches)))
        return trajectory_gradient(inner, waypoints=waypoints, method=method, **fields)

    def expect(self, inner: InnerTraining, waypoints: Sequence[Waypoint], rate: Tensor = RATE, **changes: Any) -> Any:
        points = [(point.step, point.target, point.weight) for point in waypoints]
        return reference.gradients(
            self.start, points, self.images, self.labels, rate, positive=inner.positive, batches=inner.batches,
            momentum=inner.momentum, augment=inner.augment, objective=inner.objective, **changes,
        )  # fmt: skip


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def assert_close(found: TrajectoryGradient, expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    """Loss and gradients of images, labels and rate agree, relative to their norms."""
    for name, ours, theirs in zip(
        ("loss", "images", "labels", "rate"),
        (found.loss, found.images, found.labels, found.rate),
        expected,
        strict=True,
    ):
        assert ours is not None
        assert relative(ours, theirs) < tolerance, name


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def parts(result: TrajectoryGradient) -> list[Tensor]:
    assert result.labels is not None
    return [result.loss, result.images, result.labels, result.rate]


# --- the network and its steps ---------------------------------------------------------------------------------------


def test_flat_network_matches_reference(problem: Problem) -> None:
    expected = problem.module(problem.images)
    torch.testing.assert_close(problem.network(problem.start, problem.images), expected, rtol=1e-12, atol=1e-12)
    moved = problem.targets[0]
    torch.testing.assert_close(problem.network(moved, problem.images), reference.logits(moved, problem.images))
    assert problem.network.size == reference.SIZE


def test_flat_network_neither_aliases_nor_touches_the_module(problem: Problem) -> None:
    """A vector that shared memory with the module would make all checkpoints of an expert its last one."""
    vector = problem.network.flatten()
    before = vector.clone()
    vector += 1
    assert problem.network.flatten().equal(before)
    assert not vector.requires_grad
    pieces = problem.network.unflatten(vector)
    assert {name: piece.shape for name, piece in pieces.items()} == problem.network.shapes
    assert torch.cat([piece.flatten() for piece in pieces.values()]).equal(vector)
    assert pieces["0.weight"].data_ptr() == vector.data_ptr()  # perturbing a piece perturbs the vector


def test_replayed_dsa_follows_from_seed_and_step(problem: Problem) -> None:
    views = [AUGMENTED(problem.images, step) for step in range(20)]
    assert all(view.equal(AUGMENTED(problem.images, step)) for step, view in enumerate(views))
    assert sum(views[0].equal(view) for view in views) < 3  # a flip of nothing may repeat
    assert not replace(AUGMENTED, seed=4)(problem.images, 0).equal(views[0])


def test_replayed_dsa_draws_every_operation_and_every_image(monkeypatch: pytest.MonkeyPatch, problem: Problem) -> None:
    seen = []
    draw = DSA.draw
    monkeypatch.setattr(DSA, "draw", lambda *args: seen.append(draw(*args)) or seen[-1])
    for step in range(120):
        AUGMENTED(problem.images, step)
    counts = [sum(parameters.operation == operation for parameters in seen) for operation in OPERATIONS]
    assert min(counts) > 8  # of 20 expected
    assert all(len(strength) == 7 for parameters in seen for strength in parameters.strengths)


@pytest.mark.parametrize(
    ("count", "steps", "places", "weights"),
    [(1, 5, [5], [1]), (2, 30, [15, 30], [0.5, 1]), (3, 20, [6, 12, 20], [1 / 3, 2 / 3, 1]), (2, 2, [1, 2], [0.5, 1])],
)
def test_waypoints_lie_where_ast_has_them(
    count: int, steps: int, places: list[int], weights: list[float]
) -> None:  # fmt: skip
    targets = list(torch.eye(count))
    for rising in (False, True):
        points = space_waypoints(targets, steps, rising=rising)
        assert [point.step for point in points] == places
        assert [point.weight for point in points] == (weights if rising else [1] * count)
        assert all(point.target is target for point, target in zip(points, targets, strict=True))


# --- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [None, AUGMENTED], ids=["plain", "dsa"])
@pytest.mark.parametrize("targets", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0, 0.9])
def test_gradient_of_all_three_matches_reference(
    problem: Problem, momentum: float, targets: int, augment: ReplayedDSA | None
) -> None:
    """The adjoint and ``higher`` are autograd through the loop, TESLA through its own; soft labels learn."""
    inner = problem.inner(momentum=momentum, augment=augment)
    waypoints = space_waypoints(problem.targets[:targets], len(BATCHES), rising=True)
    exact, blind = problem.expect(inner, waypoints), problem.expect(inner, waypoints, blind=True)
    for method in METHODS:
        found = problem.solve(inner, method, waypoints=waypoints)
        assert_close(found, blind if method == "tesla" else exact)
        assert found.sound
        assert found.finite_steps == len(BATCHES)
    assert_close(
        problem.solve(inner, "adjoint", waypoints=waypoints),
        parts(problem.solve(inner, "unrolled", waypoints=waypoints)),
    )
    assert relative(blind[1], exact[1]) > 1e-3  # so none of the above is vacuous
    assert exact[1][6].abs().max() == 0  # the image in no batch


@pytest.mark.parametrize("operation", OPERATIONS)
def test_gradient_passes_through_every_operation(problem: Problem, operation: str) -> None:
    """Also scale and rotate, which can be differentiated but once."""
    inner = problem.inner(augment=ReplayedDSA(DSA(SPEC, operation), 0), momentum=0.5, batches=BATCHES[:2])
    expected = problem.expect(inner, space_waypoints(problem.targets[:1], 2))
    for method in ("adjoint", "unrolled"):
        assert_close(problem.solve(inner, method), expected)


@pytest.mark.parametrize("method", METHODS)
def test_gradient_reaches_the_rate_through_softplus(problem: Problem, method: str) -> None:
    inner, rate = problem.inner(positive=True, momentum=0.9), torch.tensor(-3.0, dtype=torch.float64)
    points = space_waypoints(problem.targets[:2], len(BATCHES))
    assert_close(
        problem.solve(inner, method, rate=rate, waypoints=points),
        problem.expect(inner, points, rate, blind=method == "tesla"),
    )


@pytest.mark.parametrize("method", METHODS)
def test_all_images_in_one_batch(problem: Problem, method: str) -> None:
    """None is every image in order; waypoints may come in any order, and several at one step."""
    inner = problem.inner(batches=(None, BATCHES[0], None, None), momentum=0.9, augment=AUGMENTED)
    points = [
        Waypoint(4, problem.targets[0]),
        Waypoint(1, problem.targets[1], 0.3),
        Waypoint(4, problem.targets[2], 2.0),
    ]
    expected = problem.expect(inner, points, blind=method == "tesla")
    assert_close(problem.solve(inner, method, waypoints=points), expected)
    listed = replace(inner, batches=tuple(torch.arange(7) if batch is None else batch for batch in inner.batches))
    assert_close(problem.solve(listed, method, waypoints=points), expected)


def test_an_image_twice_in_a_batch_counts_twice(problem: Problem) -> None:
    inner = problem.inner(batches=(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 1])))
    assert_close(problem.solve(inner), problem.expect(inner, space_waypoints(problem.targets[:1], 2)))


@pytest.mark.parametrize("rate", [0.0, -0.05])
def test_gradient_at_odd_step_sizes(problem: Problem, rate: float) -> None:
    """At 0 nothing moves: L is Σ w, only the rate can learn, and nothing may be divided by it."""
    inner, value = problem.inner(momentum=0.9), torch.tensor(rate, dtype=torch.float64)
    points = space_waypoints(problem.targets, len(BATCHES), rising=True)
    found, expected = problem.solve(inner, waypoints=points, rate=value), problem.expect(inner, points, value)
    if rate == 0:
        assert found.loss == pytest.approx(2)
        torch.testing.assert_close(found.terms, torch.ones(3, dtype=torch.float64))
        assert found.images.abs().max() == 0
        assert relative(found.rate, expected[3]) < 1e-10
    else:
        assert_close(found, expected)


@pytest.mark.parametrize("method", ["adjoint", "unrolled"])
def test_gradient_matches_finite_differences(problem: Problem, method: str) -> None:
    inner = problem.inner(momentum=0.9, augment=AUGMENTED)
    labels = problem.labels.detach()
    found, draws, h = problem.solve(inner, method, targets=3), generator(5), 1e-5
    for name, value, gradient in (
        ("images", problem.images, found.images), ("labels", labels, found.labels), ("rate", RATE, found.rate),
    ):  # fmt: skip
        direction = torch.randn(value.shape, generator=draws, dtype=torch.float64)
        ahead, behind = (
            problem.solve(inner, targets=3, **{name: value + sign * h * direction}).loss for sign in (1, -1)
        )
        assert gradient is not None
        assert ((ahead - behind) / (2 * h)).item() == pytest.approx((gradient * direction).sum().item(), rel=1e-6), name


@pytest.mark.parametrize("arch", ["convnet2-instance-x0.05", "resnet18-x0.03"])
def test_gradient_of_our_networks(arch: str) -> None:
    """Normaliser, ReLU, and BatchNorm where it is frozen; hard labels do not learn."""
    with seeded(0):
        network = FlatNetwork(build(arch, SPEC).double().eval())
    start = network.flatten()
    target = start + 0.02 * torch.randn(network.size, generator=generator(1), dtype=torch.float64)
    images = torch.rand(4, 3, 8, 8, generator=generator(2), dtype=torch.float64)
    labels = torch.eye(5, dtype=torch.float64)[[0, 3, 1, 3]]
    inner = InnerTraining(network, (None, BATCHES[2], None), momentum=0.9, augment=AUGMENTED)
    points = space_waypoints([start / 2, target], 3)
    both = [
        trajectory_gradient(inner, start, points, images=images, labels=labels, rate=RATE, method=method)
        for method in ("adjoint", "unrolled")
    ]
    assert relative(both[0].images, both[1].images) < 1e-10
    assert relative(both[0].rate, both[1].rate) < 1e-10
    assert both[0].labels is both[1].labels is None


def test_descent_lowers_the_loss(problem: Problem) -> None:
    """The sign, once more: images, labels and step size go down the hill together."""
    inner, values = problem.inner(momentum=0.9), {"images": problem.images, "labels": problem.labels, "rate": RATE}
    losses = []
    for _ in range(5):
        found = problem.solve(inner, targets=2, **values)
        losses.append(found.loss.item())
        squared = found.images.square().sum() + found.labels.square().sum() + found.rate.square()
        values = {
            name: (value - 0.05 * found.loss / squared * getattr(found, name)).detach().requires_grad_(name == "labels")
            for name, value in values.items()
        }
    assert losses == sorted(losses, reverse=True)


# --- TESLA -----------------------------------------------------------------------------------------------------------


def test_tesla_is_its_formula_with_the_factor_two(problem: Problem) -> None:
    inner = problem.inner(augment=AUGMENTED)
    found = problem.solve(inner, "tesla")
    expected = reference.tesla(
        problem.start, problem.targets[0], problem.images, problem.labels, RATE, batches=BATCHES, augment=AUGMENTED,
        objective=inner.objective,
    )  # fmt: skip
    assert_close(found, (found.loss, *expected))


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_tesla_is_exact_for_one_step_and_in_the_last_batch(problem: Problem, momentum: float) -> None:
    for batches in (BATCHES[:1], (*BATCHES[:4], torch.tensor([6]))):
        inner = problem.inner(batches=batches, momentum=momentum)
        exact, tesla = problem.solve(inner, "adjoint"), problem.solve(inner, "tesla")
        last = batches[-1]
        assert relative(tesla.images[last], exact.images[last]) < 1e-12
        assert (relative(tesla.images, exact.images) < 1e-12) == (len(batches) == 1)


def test_tesla_strays_with_step_size_and_steps(problem: Problem) -> None:
    errors = []
    for steps, rate in ((2, 0.01), (6, 0.01), (6, 0.05), (12, 0.05)):
        inner, value = problem.inner(batches=(None,) * steps), torch.tensor(rate, dtype=torch.float64)
        exact, tesla = (problem.solve(inner, method, rate=value).images for method in ("adjoint", "tesla"))
        errors.append(relative(tesla, exact))
    assert errors == sorted(errors)
    assert errors[0] < 0.05
    assert errors[-1] > 3 * errors[0]


# --- memory and waiting ----------------------------------------------------------------------------------------------


class Live:
    """Elements that graphs hold for a backward pass, now and at most."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def add(self, count: int) -> None:
        self.now += count
        self.peak = max(self.peak, self.now)


class Saved:
    """A tensor in a graph's keeping; counted until the graph lets it go."""

    def __init__(self, tensor: Tensor, live: Live) -> None:
        self.tensor = tensor
        live.add(tensor.numel())
        weakref.finalize(self, live.add, -tensor.numel())


@contextmanager
def graphs_counted() -> Iterator[Live]:
    live = Live()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: Saved(tensor, live), lambda saved: saved.tensor):
        yield live


def graph_peak(problem: Problem, method: str, steps: int) -> int:
    inner = problem.inner(batches=(BATCHES[0],) * steps, momentum=0.9, augment=ReplayedDSA(DSA(SPEC, "color"), 0))
    with graphs_counted() as live:
        problem.solve(inner, method, targets=2)
    assert live.now == 0
    return live.peak


def test_graphs_do_not_grow_with_steps(problem: Problem) -> None:
    for method in ("adjoint", "tesla"):
        assert graph_peak(problem, method, 12) == graph_peak(problem, method, 24) > reference.SIZE
    assert graph_peak(problem, "unrolled", 12) > 4 * graph_peak(problem, "unrolled", 2)
    assert graph_peak(problem, "adjoint", 24) < graph_peak(problem, "unrolled", 24) / 2


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_graphs_that_are_kept_and_graphs_drawn_again_are_one(
    problem: Problem, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = problem.inner(momentum=momentum, augment=AUGMENTED)
    whole = problem.solve(inner, "unrolled", targets=2)
    assert whole.labels is not None
    for kept in (0, 1, 3, 100):
        monkeypatch.setattr(unroll, "_KEPT", kept)
        found = problem.solve(inner, "adjoint", targets=2)
        assert_close(found, (whole.loss, whole.images, whole.labels, whole.rate))


class Operations(TorchDispatchMode):
    """Counts what is handed to the device, forwards and backwards; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += all(one.alias_info is None for one in operation._schema.returns)
        return operation(*args, **(kwargs or {}))


def test_the_adjoint_starts_few_more_operations(problem: Problem) -> None:
    """On a device that is faster than its host these are the seconds; at most 1.3 times as many at N = 20."""
    inner = problem.inner(batches=(BATCHES[0],) * 20, momentum=0.9, augment=AUGMENTED)
    counts = {}
    for method in ("adjoint", "unrolled"):
        with Operations() as operations:
            problem.solve(inner, method, targets=2)
        counts[method] = operations.count
    assert 20 * 50 < counts["unrolled"] < counts["adjoint"] < 1.3 * counts["unrolled"]


def tensors() -> list[Tensor]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]  # `isinstance` wakes up proxies


def parameter_vectors() -> int:
    return sum(tensor.shape == (reference.SIZE,) for tensor in tensors())


def test_one_parameter_vector_a_step_is_kept(problem: Problem) -> None:
    """Velocities are not: (4) has no need of them."""
    counts: dict[int, int] = {}
    for steps in (12, 20):  # more than those whose graphs are kept
        before, most = parameter_vectors(), 0

        def watch(images: Tensor, step: int) -> Tensor:
            nonlocal most
            if step == 0:  # asked on the way there, and again on the way back
                most = max(most, parameter_vectors() - before)  # noqa: B023
            return images

        problem.solve(problem.inner(batches=(BATCHES[4],) * steps, momentum=0.9, augment=watch))
        counts[steps] = most
    assert counts[20] - counts[12] == 8
    assert counts[12] <= 12 + 8


@pytest.mark.parametrize(("method", "iterations"), [("adjoint", 200), ("unrolled", 50), ("tesla", 50)])
def test_nothing_is_left_behind(method: str, iterations: int) -> None:
    """Without the garbage collector's help, which comes late when the garbage is few objects and large."""
    problem = Problem()
    inner = problem.inner(batches=BATCHES[4:], momentum=0.9)

    problem.solve(inner, method)
    gc.collect()
    gc.disable()
    try:
        before = len(tensors())
        for _ in range(iterations):
            problem.solve(inner, method)
        assert len(tensors()) == before
    finally:
        gc.enable()


class NoWaiting(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select"), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_nobody_waits_for_the_device(problem: Problem, method: str) -> None:
    inner = problem.inner(momentum=0.9, augment=AUGMENTED, positive=True)
    with NoWaiting():
        found = problem.solve(inner, method, targets=3)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            found.loss.item()


# --- behaviour -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_call_leaves_no_trace(problem: Problem, method: str) -> None:
    watched = {"images": problem.images, "labels": problem.labels, "start": problem.start, "target": problem.targets[0]}
    before = {name: tensor.detach().clone() for name, tensor in watched.items()}
    parameters, draws = problem.network.flatten(), torch.random.get_rng_state()
    images = problem.images.clone().requires_grad_()
    inner = problem.inner(momentum=0.9, augment=AUGMENTED)
    with torch.no_grad():  # the caller's mode is the caller's matter
        first = problem.solve(inner, method, images=images)
    second = problem.solve(inner, method)
    assert all(a.equal(b) for a, b in zip(parts(first), parts(second), strict=True))
    assert all(not tensor.requires_grad and tensor.grad_fn is None for tensor in parts(first))
    assert all(tensor.detach().equal(before[name]) for name, tensor in watched.items())
    assert not problem.start.requires_grad
    assert images.grad is problem.labels.grad is None
    assert problem.network.flatten().equal(parameters)
    assert all(parameter.grad is None for parameter in problem.module.parameters())
    assert torch.random.get_rng_state().equal(draws)


@pytest.mark.parametrize("method", METHODS)
def test_divergence_is_told(problem: Problem, method: str, tmp_path: Path) -> None:
    """A student that blows up in its second step: numbers on the device, no exception but the run's."""
    inner, rate = problem.inner(), torch.tensor(1e200, dtype=torch.float64)
    found = problem.solve(inner, method, rate=rate)
    assert not found.sound
    assert 0 < found.finite_steps < len(BATCHES)
    with pytest.raises(NonFiniteError, match="loss became NaN or infinite at step 1"):
        observe(Run(tmp_path / "lost"), found)
    observe(Run(tmp_path / "healthy"), problem.solve(inner, method))


def observe(run: Run, found: TrajectoryGradient) -> None:
    for _ in run.steps("matching", 1, nn.Linear(1, 1)):
        run.observe(loss=found.loss, finite_steps=found.finite_steps, sound=found.sound)


@pytest.mark.parametrize("method", METHODS)
def test_a_gradient_alone_may_be_lost(problem: Problem, method: str) -> None:
    """A root is steep at 0: the loss knows nothing of it."""
    inner = problem.inner(augment=lambda images, _: images.sqrt())
    found = problem.solve(inner, method, images=problem.images.index_fill(3, torch.tensor(2), 0))
    assert found.loss.isfinite()
    assert not found.sound
    assert found.finite_steps == len(BATCHES)


def test_a_target_at_the_start_is_told(problem: Problem) -> None:
    """It divides by 0, and the student is not to blame."""
    found = problem.solve(problem.inner(), waypoints=[Waypoint(len(BATCHES), problem.start)])
    assert not found.sound
    assert found.finite_steps == len(BATCHES)


# --- rejections ------------------------------------------------------------------------------------------------------


def test_rejects_networks_that_change(problem: Problem) -> None:
    for part in (nn.BatchNorm2d(3), nn.Dropout(0.1)):
        with pytest.raises(ConfigError, match=f"0 is a {type(part).__name__} in training mode"):
            FlatNetwork(nn.Sequential(part))
        FlatNetwork(nn.Sequential(part).eval())


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"batches": ()}])
def test_rejects_trainings(problem: Problem, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        problem.inner(**wrong)


@pytest.mark.parametrize("count", [0, 4])
def test_rejects_waypoints_without_a_step_each(count: int) -> None:
    with pytest.raises(ConfigError, match=f"{count} targets for 3 inner steps"):
        space_waypoints([torch.zeros(1)] * count, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"start": torch.zeros(3)}, r"start: found shape \(3,\); expected \(445,\)"),
        ({"waypoints": [Waypoint(6, torch.zeros(1))]}, r"target at step 6: found shape \(1,\)"),
        ({"labels": torch.zeros(6, 5)}, r"labels: found shape \(6,\); expected \(7,\)"),
        ({"rate": torch.zeros(1)}, r"rate: found shape \(1,\); expected \(\)"),
        ({"waypoints": []}, r"waypoints at steps \[\] of 6"),
        ({"waypoints": [Waypoint(5, torch.zeros(445))]}, r"waypoints at steps \[5\] of 6"),
        ({"waypoints": [Waypoint(step, torch.zeros(445)) for step in (6, 0)]}, r"waypoints at steps \[0, 6\]"),
        ({"waypoints": [Waypoint(step, torch.zeros(445)) for step in (6, 7)]}, r"waypoints at steps \[6, 7\]"),
    ],
)
def test_rejects_what_does_not_fit(problem: Problem, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        problem.solve(problem.inner(), **wrong)


def test_rejects_unknown_methods(problem: Problem) -> None:
    with pytest.raises(UnknownNameError, match="unknown trajectory gradient 'adjont'; did you mean 'adjoint'"):
        problem.solve(problem.inner(), "adjont")
