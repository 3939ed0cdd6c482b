"""All that computes, on an accelerator: nothing is mixed with what lies on the CPU, and no step of a training waits."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dd_bench import store
from dd_bench.environment import compute_deterministically
from dd_bench.learn.dsa import DSA
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.training import TrainingRecipe, fit
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import generator
from synth.parts.inner import FlatNetwork, InnerTraining, ReplayedDSA, space_waypoints
from synth.parts.unroll import Method, trajectory_gradient
from tests.accelerator import DEVICE, Waits, accelerator
from tests.cli.conftest import PIXEL
from tests.conftest import BLOBS, draw_blobs
from tests.faults.scenes import SCENES, STUDENTS, left_by, play, play_in_pieces
from tests.models.conftest import IMAGE_FAMILIES, spec_of

# Where a step may wait, and how often it does in the contract's small work
LOOKS = Counter({
    "expert_training.py train_expert: aten::copy_": 8,  # a checkpoint and a move, for two epochs of two experts
    "guarded.py check: aten::_local_scalar_dense": 2,  # whether the images are lost, at the end
    "label_book.py write: aten::_to_copy": 6,  # an epoch's labels, for two epochs of three books
    "dsa.py _statistics: aten::_to_copy to the accelerator": 2,  # mean and deviation, once a process
    # kornia picks on the CPU which images it changes and how: four times a view, two views a step, three steps
    "barlow_twins.py forward: aten::_to_copy to the accelerator": 24,
})  # fmt: skip


@contextmanager
def steps_watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """The accelerator, whose waits are noted while a loop's body runs, and not while its run saves or shows."""
    proceed = Run.steps
    with accelerator() as waits:
        waits.noted = False

        def steps(*args: Any) -> Iterator[int]:
            for step in proceed(*args):
                waits.noted = True
                yield step
                waits.noted = False

        monkeypatch.setattr(Run, "steps", steps)
        yield waits


def test_it_computes() -> None:
    with accelerator() as waits:
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=DEVICE).requires_grad_()
        y = (x @ x).square().sum()
        (slope,) = torch.autograd.grad(y, x, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), x)
        assert x.device == slope.device == curve.device == DEVICE
        assert waits.places == {"tests: aten::_to_copy to the accelerator": 1}
        there = [part.detach().cpu() for part in (y, slope, curve)]
    z = x.detach().near.requires_grad_()  # type: ignore[attr-defined]
    y = (z @ z).square().sum()
    (slope,) = torch.autograd.grad(y, z, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), z)
    assert all(a.equal(b) for a, b in zip(there, (y, slope, curve), strict=True))


def test_it_refuses_mixtures() -> None:
    with accelerator():
        here, there = torch.ones(2), torch.ones(2, device=DEVICE)
        for mix in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here[there.long()],
                    lambda: F.linear(there, here[None]), lambda: here.index_add_(0, there.long(), there)):  # fmt: skip
            with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
                mix()
        assert (there + torch.tensor(1.0)).tolist() == [2, 2]  # scalars may
        assert there[torch.tensor([0])].tolist() == [1]  # and indices
        for draws, device in ((generator(0), DEVICE), (generator(0, DEVICE), "cpu")):
            with pytest.raises(RuntimeError, match="device type for generator"):
                torch.rand(2, generator=draws, device=device)


def test_it_notes_what_waits() -> None:
    with accelerator() as waits:
        there = torch.ones(3, device=DEVICE)
        for look in (lambda: float(there[0]), there.cpu, lambda: there[there > 0], there.nonzero, there.tolist,
                     lambda: torch.zeros(3).copy_(there), lambda: bool(there.any()), lambda: torch.ones(3).to(DEVICE),
                     lambda: there.copy_(torch.ones(3)), lambda: torch.tensor([1.0], device=DEVICE),
                     lambda: there[torch.tensor([1])]):  # fmt: skip
            waits.places.clear()
            look()
            assert waits.places, look
        waits.places.clear()
        there.copy_(torch.ones(3), non_blocking=True)
        torch.ones(3).to(DEVICE, non_blocking=True)
        torch.where(there > 0, there, 0).sum().add_(torch.tensor(1.0))
        assert not waits.places


@pytest.fixture
def deterministic() -> Iterator[None]:
    """``--deterministic``, for one test."""
    compute_deterministically()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.usefixtures("deterministic")
def test_it_refuses_what_has_no_order() -> None:
    with accelerator():
        pixels = torch.ones(1, 1, 4, 4, device=DEVICE, requires_grad=True)
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            F.adaptive_avg_pool2d(pixels, 2).sum().backward()


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("name", SCENES)
def test_every_method_and_its_judgement(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in every stage it leaves there, too, what it leaves undisturbed."""
    scene, straight, in_pieces = SCENES[name], tmp_path / "straight", tmp_path / "pieces"
    data = request.getfixturevalue(f"{scene.dataset}_dir")
    monkeypatch.setattr(store, "render_card", lambda *_: PIXEL)
    monkeypatch.setenv("DDBENCH_HOME", str(straight / "home"))
    with steps_watched(monkeypatch) as waits:
        play(scene, straight, data, DEVICE)
    assert waits.places <= LOOKS
    tensors, students = left_by(straight)
    assert len(tensors) == 1
    assert len(students) == STUDENTS
    assert all(0 <= metrics["top1"] <= 1 for metrics in students)

    monkeypatch.setenv("DDBENCH_HOME", str(in_pieces / "home"))
    with accelerator():
        play_in_pieces(scene, in_pieces, data, DEVICE)
    assert left_by(in_pieces) == (tensors, students)


@pytest.mark.parametrize("options", [
    {"augment": "none", "optimizer": "sgd", "nesterov": True, "schedule": "constant"},
    {"augment": "dsa", "optimizer": "adam", "schedule": "half"},
    {"augment": "crop-flip", "mix": "mixup", "channels_last": True},
    {"augment": "crop-flip", "mix": "cutmix", "optimizer": "adamw"},
])  # fmt: skip
@pytest.mark.usefixtures("deterministic")
def test_training(options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator learns from the same draws is what the CPU learns."""
    images, labels = draw_blobs(8, seed=0)
    values = F.one_hot(labels, 3).float()
    recipe = TrainingRecipe(epochs=7, batch=5, lr=0.01, **options)

    def learn(device: torch.device) -> torch.Tensor:
        torch.manual_seed(0)
        network = build("convnet1-x0.0625", BLOBS).to(device)
        fit(network, images, values, recipe=recipe, objective=cross_entropy, spec=BLOBS, seed=2,
            run=Run(tmp_path / device.type), label="fit")  # fmt: skip
        return torch.cat([value.detach().flatten() for value in network.parameters()]).cpu()

    expected = learn(torch.device("cpu"))
    with steps_watched(monkeypatch) as waits:
        found = learn(DEVICE)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert waits.places <= LOOKS


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("family", IMAGE_FAMILIES)
@pytest.mark.parametrize("side", [64, 80])
def test_network(family: str, side: int) -> None:
    """Small and large images have different networks."""
    spec = spec_of("squares", (3, side, side), 10)
    pixels = torch.rand(2, *spec.image_shape, generator=generator(0))
    network = build(f"{family}-x0.0625", spec)
    expected = network(pixels).mean().detach()
    with accelerator() as waits:
        there, pixels = network.to(DEVICE), pixels.to(DEVICE)
        waits.places.clear()
        found = there(pixels).mean()
        found.backward()
        assert not waits.places
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
        assert all(part.grad is not None for part in there.parameters() if part.requires_grad)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("method", ["adjoint", "unrolled", "tesla"])
def test_trajectory_gradient(method: Method) -> None:
    with accelerator() as waits:
        network = FlatNetwork(build("convnet1-x0.0625", BLOBS).to(DEVICE))
        start = network.flatten()
        draws = generator(0, DEVICE)
        images = torch.rand(6, *BLOBS.image_shape, generator=draws, device=DEVICE)
        batches = (torch.tensor([0, 3, 5], device=DEVICE), None, torch.tensor([1, 2], device=DEVICE)) * 5
        inner = InnerTraining(network, batches, momentum=0.9, augment=ReplayedDSA(DSA(BLOBS), 0))
        labels, rate = torch.eye(3, device=DEVICE).repeat(2, 1), torch.tensor(0.01, device=DEVICE)
        waits.places.clear()
        found = trajectory_gradient(
            inner, start, space_waypoints([start + 1, start - 1], len(batches)), images=images, labels=labels,
            rate=rate, method=method,
        )  # fmt: skip
        assert waits.places <= LOOKS
        assert found.images.device == DEVICE
        assert bool(found.sound)
