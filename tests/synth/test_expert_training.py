"""One expert: its recipe, its steps against torch's own SGD, its checkpoints, and the gradient penalty."""

from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, NonFiniteError
from dd_bench.models import Normalizer, encoded_spec
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from synth.parts import expert_training as module
from synth.parts.encoded import EncodedImages
from synth.parts.expert_training import ExpertRecipe, gradient_penalty, train_expert
from synth.parts.inner import FlatNetwork
from tests.conftest import Interrupt, at
from tests.references import trajectory as reference
from tests.references.unroll import network as smooth_network

SPEC = encoded_spec(DatasetSpec("toy", (3, 8, 8), 5, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), True, tuple("abcde")))
AST = ExpertRecipe(epochs=7, keep=7, batch=9, lr=0.02, momentum=0.9, weight_decay=1e-2, drop=0.6, ramp=4, penalty=2.0)
PLAIN = ExpertRecipe(epochs=3, keep=3, batch=9, lr=0.05)


def encoded(count: int = 19) -> EncodedImages:
    """Of batches of nine, the second takes the one image that is left over."""
    draws = generator(0)
    images = torch.randn(count, 3, 8, 8, generator=draws, dtype=torch.float64)
    return EncodedImages(SPEC, Normalizer(SPEC.mean, SPEC.std), images, torch.randint(5, (count,), generator=draws))


def fresh() -> FlatNetwork:
    with seeded(3):
        return FlatNetwork(smooth_network().double())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def train(recipe: ExpertRecipe, run: Run, **changes: Any) -> tuple[Tensor, Tensor]:
    fields = {"network": fresh(), "encoded": encoded(), "seed": 8} | changes
    return train_expert(recipe=recipe, run=run, label="expert", **fields)


def expected_path(recipe: ExpertRecipe, **changes: Any) -> Tensor:
    data, settings = encoded(), asdict(recipe)
    del settings["keep"]
    settings |= {"weight": settings.pop("penalty"), "norm": settings.pop("penalty_norm"), **changes}
    path: Tensor = reference.train_expert(fresh().module, SPEC, data.images, data.labels, 8, **settings)
    return path


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_the_ramp_is_the_published_one() -> None:
    weights = [ExpertRecipe(ramp=10).loss_weight(epoch) for epoch in range(12)]
    assert weights == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1, 1])
    assert [ExpertRecipe(ramp=5).loss_weight(epoch) for epoch in range(6)] == pytest.approx(
        [0.5, 0.6, 0.7, 0.8, 0.9, 1]
    )
    assert [ExpertRecipe(ramp=0).loss_weight(epoch) for epoch in (0, 1, 49)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("epochs", "keep", "kept"),
    [(4, 4, (0, 1, 2, 3, 4)), (4, 3, (0, 1, 2, 3, 4)), (9, 2, (0, 1, 2, 9)), (1, 1, (0, 1))],
)
def test_the_start_the_first_epochs_and_the_last_stay(epochs: int, keep: int, kept: tuple[int, ...]) -> None:
    assert ExpertRecipe(epochs=epochs, keep=keep).kept == kept


def test_the_defaults_are_mtts() -> None:
    assert asdict(ExpertRecipe()) == {
        "epochs": 50, "keep": 50, "batch": 256, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0, "drop": 1.0,
        "ramp": 0, "penalty": 0.0, "penalty_norm": "channel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0, "keep": 0}, "expert epochs is 0; expected at least 1"),
        ({"keep": 0}, "expert keep is 0; expected 1 to 50, the epochs there are"),
        ({"keep": 51}, "expert keep is 51; expected 1 to 50"),
        ({"batch": 1}, "expert batch is 1; expected at least 2"),
        ({"lr": 0.0}, "expert lr is 0.0; expected more than 0"),
        ({"lr": float("inf")}, "expert lr is inf"),
        ({"lr": float("nan")}, "expert lr is nan"),
        ({"momentum": 1.0}, "expert momentum is 1.0; expected at least 0 and less than 1"),
        ({"momentum": -0.1}, "expert momentum is -0.1"),
        ({"weight_decay": -1e-4}, "expert weight_decay is -0.0001; expected at least 0"),
        ({"weight_decay": float("inf")}, "expert weight_decay is inf"),
        ({"drop": 0.0}, "expert drop is 0.0; expected more than 0 and at most 1"),
        ({"drop": 1.1}, "expert drop is 1.1"),
        ({"ramp": -1}, "expert ramp is -1; expected at least 0"),
        ({"penalty": -1.0}, "expert penalty is -1.0; expected at least 0"),
        ({"penalty": float("inf")}, "expert penalty is inf"),
    ],
)
def test_rejects_recipes(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ExpertRecipe(**wrong)
    assert message in str(caught.value)


def test_takes_recipes_at_their_limits() -> None:
    ExpertRecipe(epochs=1, keep=1, batch=2, momentum=0, weight_decay=0, drop=1, ramp=0, penalty=0)


# --- its steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("recipe", "ramp"),
    [
        (PLAIN, []),
        (replace(PLAIN, momentum=0.9, weight_decay=0.1), []),
        (replace(PLAIN, epochs=6, keep=6, momentum=0.9, drop=0.6), []),
        (replace(PLAIN, epochs=5, keep=5, drop=0.1), []),
        (replace(PLAIN, epochs=6, keep=6, momentum=0.9), []),
        (replace(PLAIN, ramp=2, penalty=2.0), [0.5, 0.75]),
        (AST, [0.5, 0.625, 0.75, 0.875]),
        (replace(AST, penalty_norm="sample"), [0.5, 0.625, 0.75, 0.875]),
    ],
    ids=["mtt", "heavy", "drop", "drop of odd epochs", "momentum goes on", "penalty", "ast", "sample"],
)
def test_an_expert_is_what_torchs_sgd_makes(recipe: ExpertRecipe, ramp: list[float], run: Run) -> None:
    checkpoints, moves = train(recipe, run)
    path = expected_path(recipe, ramp=ramp)
    torch.testing.assert_close(checkpoints, path, rtol=1e-9, atol=1e-11)
    squares = [((after - before) ** 2).sum().item() for before, after in pairwise(path)]
    assert moves.tolist() == pytest.approx(squares, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("momentum", 0.8), ("weight_decay", 0.0), ("drop", 1.0), ("ramp", 0), ("penalty", 0.0), ("lr", 0.021),
        ("penalty_norm", "sample"),
    ],
)  # fmt: skip
def test_every_field_moves_the_end(change: str, value: Any, tmp_path: Path) -> None:
    """So that none of the comparisons above is vacuous."""
    first, _ = train(AST, Run(tmp_path / "first"))
    second, _ = train(replace(AST, **{change: value}), Run(tmp_path / "second"))
    assert (first[-1] - second[-1]).abs().max() > 1e-4


def test_without_a_weight_the_penalty_is_not_even_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "gradient_penalty", None)
    train(PLAIN, run)


def test_seeds_decide(tmp_path: Path) -> None:
    ends = [train(PLAIN, Run(tmp_path / str(n)), seed=seed)[0] for n, seed in enumerate((8, 8, 9))]
    assert ends[0].equal(ends[1])
    assert ends[0][0].equal(ends[2][0])
    assert not ends[0][1].equal(ends[2][1])


# --- its checkpoints -------------------------------------------------------------------------------------------------


def test_no_two_checkpoints_are_the_same(run: Run) -> None:
    """A list of tensors that share memory holds the last one over and over."""
    network = fresh()
    start = network.flatten()
    checkpoints, moves = train(PLAIN, run, network=network)
    assert checkpoints.shape == (4, network.size)
    assert len({row.numpy().tobytes() for row in checkpoints}) == 4
    assert checkpoints[0].equal(start)
    assert network.flatten().equal(start)  # the network stays at its start
    assert moves.dtype == torch.float32
    assert (moves > 0).all()


def test_only_the_epochs_asked_for_are_kept(tmp_path: Path) -> None:
    whole, moves = train(AST, Run(tmp_path / "whole"))
    some, same_moves = train(replace(AST, keep=2), Run(tmp_path / "some"))
    assert some.equal(whole[[0, 1, 2, 7]])
    assert same_moves.equal(moves)
    assert len(moves) == 7


@pytest.mark.parametrize("step", [0, 3, 4, 9, 10, 11, 13])
def test_resume_is_invisible(tmp_path: Path, interrupted: Interrupt, step: int) -> None:
    """In the middle of an epoch and at both of its ends, before and after momentum starts anew (step 10)."""
    straight = train(AST, Run(tmp_path / "straight"))
    with interrupted(at("expert", step), must=step < 13):
        train(AST, Run(tmp_path / "other"))
    assert all(a.equal(b) for a, b in zip(train(AST, Run(tmp_path / "other")), straight, strict=True))


def test_data_that_are_not_finite_stop_it_and_tell_the_step(run: Run) -> None:
    data = encoded()
    data.images[4] = torch.nan
    with pytest.raises(NonFiniteError, match=r"expert: loss became NaN or infinite at step [12];"):
        train(PLAIN, run, encoded=data)


def test_a_learning_rate_too_large_stops_it(run: Run) -> None:
    with pytest.raises(NonFiniteError, match="expert: loss became NaN or infinite at step 2;"):
        train(replace(PLAIN, lr=1e306, weight_decay=1e6), run)


# --- the gradient penalty --------------------------------------------------------------------------------------------


def linear(weight: Tensor) -> FlatNetwork:
    """Logits of images (n, 2, 3, 4) whose gradients are the weights (K, 24) themselves."""
    layer = nn.Linear(24, len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    return FlatNetwork(nn.Sequential(nn.Flatten(), layer))


def test_penalty_of_a_linear_network() -> None:
    draws = generator(1)
    weight = torch.randn(3, 24, generator=draws, dtype=torch.float64)
    images = torch.randn(5, 2, 3, 4, generator=draws, dtype=torch.float64)
    net, slope = linear(weight), weight.sum(0).view(2, 12)
    lengths = [(slope[0, n] ** 2 + slope[1, n] ** 2) ** 0.5 for n in range(12)]
    by_pixel = sum((length - 1) ** 2 for length in lengths) / 12
    by_image = ((slope**2).sum() ** 0.5 - 1) ** 2
    assert gradient_penalty(net, net.flatten(), images, "channel").item() == pytest.approx(by_pixel.item(), rel=1e-12)
    assert gradient_penalty(net, net.flatten(), images, "sample").item() == pytest.approx(by_image.item(), rel=1e-12)


@pytest.mark.parametrize("norm", ["channel", "sample"])
def test_penalty_is_the_mean_over_pixels_or_images(norm: Any) -> None:
    data, net = encoded(6), fresh()
    found = gradient_penalty(net, net.flatten(), data.images, norm)
    assert found.shape == ()
    assert found.item() == pytest.approx(reference.penalty(net.module, data.images, norm).item(), rel=1e-12)
    singly = [gradient_penalty(net, net.flatten(), image[None], norm).item() for image in data.images]
    assert found.item() == pytest.approx(sum(singly) / 6, rel=1e-12)


@pytest.mark.parametrize("norm", ["channel", "sample"])
def test_gradient_of_the_penalty_matches_finite_differences(norm: Any) -> None:
    data, net = encoded(4), fresh()
    theta = net.flatten().requires_grad_()
    (gradient,) = torch.autograd.grad(gradient_penalty(net, theta, data.images, norm), theta)
    assert gradient.norm() > 1e-3
    for seed in range(3):
        direction = torch.randn(net.size, generator=generator(seed), dtype=torch.float64)
        ahead, behind = (
            gradient_penalty(net, theta.detach() + sign * 1e-6 * direction, data.images, norm).item()
            for sign in (1, -1)
        )
        assert (ahead - behind) / 2e-6 == pytest.approx(gradient.dot(direction).item(), rel=1e-5)


@pytest.mark.parametrize("norm", ["channel", "sample"])
def test_pixels_that_no_logit_sees_leave_gradients_finite(norm: Any) -> None:
    """A root is infinitely steep at 0: grey pixels behind a dead ReLU, or padding, must not make the expert NaN."""
    weight = torch.ones(3, 24, dtype=torch.float64)
    weight.view(3, 2, 12)[..., :5] = 0
    for blind in (weight, torch.zeros_like(weight)):
        net = linear(blind)
        theta = net.flatten().requires_grad_()
        value = gradient_penalty(net, theta, torch.zeros(2, 2, 3, 4, dtype=torch.float64), norm)
        (gradient,) = torch.autograd.grad(value, theta)
        assert value.isfinite()
        assert gradient.isfinite().all()
    assert value == 1
    assert gradient.abs().max() == 0


def test_penalty_leaves_no_trace() -> None:
    data, net = encoded(3), fresh()
    gradient_penalty(net, net.flatten(), data.images, "channel")
    assert not data.images.requires_grad
    assert data.images.grad is None
