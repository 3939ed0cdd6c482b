"""The pool: networks of all ages, each trained as torch would, and fresh ones in the place of old ones."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.checkpoint import load_tree, save_tree
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.models import Classifier, build
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from synth.parts.model_pool import ModelPool, PoolRecipe
from tests.conftest import Interrupt, at

SPEC = DatasetSpec("toy", (2, 4, 4), 3, (0.5, 0.4), (0.2, 0.3), False, ("a", "b", "c"))
RECIPE = PoolRecipe(size=3, max_age=6)
IMAGES = torch.randn(5, 2, 4, 4, generator=generator(1))
TARGETS = torch.randn(5, 3, generator=generator(2))
CPU = torch.device("cpu")


def fresh() -> Classifier:
    return build("convnet1-batch-x0.03", SPEC)


def pool_of(recipe: PoolRecipe = RECIPE, seed: int = 0) -> ModelPool:
    return ModelPool(recipe, fresh, seed, CPU)


def weights(network: nn.Module) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in network.state_dict().values())


def momenta(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [entry["momentum_buffer"] for entry in optimizer.state.values()]


def textbook(network: nn.Module, recipe: PoolRecipe, steps: int) -> None:
    """SGD with momentum and decay on the mean of all squares, written out, in training mode."""
    network.train()
    velocity = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for _ in range(steps):
        errors = network(IMAGES) - TARGETS
        slopes = torch.autograd.grad((errors**2).sum() / errors.numel(), list(network.parameters()))
        with torch.no_grad():
            for parameter, slope, kept in zip(network.parameters(), slopes, velocity, strict=True):
                kept.mul_(recipe.momentum).add_(slope + recipe.weight_decay * parameter)
                parameter -= recipe.lr * kept


# --- networks and their training -------------------------------------------------------------------------------------


def test_shapes() -> None:
    pool = pool_of()
    assert len(pool.networks) == len(pool.optimizers) == len(pool.ages) == 3
    assert len({weights(network) for network in pool.networks}) == 3
    for network, optimizer in zip(pool.networks, pool.optimizers, strict=True):
        held = optimizer.param_groups[0]
        assert [id(parameter) for parameter in held["params"]] == [id(parameter) for parameter in network.parameters()]
        assert (held["lr"], held["momentum"], held["weight_decay"]) == (0.1, 0.9, 1e-3)
        assert not optimizer.state


def test_ages_are_staggered() -> None:
    """From 1 to one less than the maximum, each as often as the others."""
    recipe = replace(RECIPE, size=5)
    counts = Counter(age for seed in range(200) for age in ModelPool(recipe, Counted, seed, CPU).ages)  # type: ignore[arg-type]
    assert sorted(counts) == [1, 2, 3, 4, 5]
    assert all(abs(count - 200) < 60 for count in counts.values())  # four and a half deviations of 12.6
    assert pool_of(replace(RECIPE, max_age=2)).ages == [1, 1, 1]


def test_seeds_decide() -> None:
    one, same, other = pool_of(), pool_of(), pool_of(seed=1)
    assert one.ages == same.ages
    assert list(map(weights, one.networks)) == list(map(weights, same.networks))
    assert not set(map(weights, one.networks)) & set(map(weights, other.networks))
    assert any(pool_of(seed=seed).ages != one.ages for seed in (1, 2, 3))


@pytest.mark.parametrize("recipe", [RECIPE, replace(RECIPE, lr=0.03, momentum=0.5, weight_decay=0.1)])
def test_growing_matches_reference(recipe: PoolRecipe, run: Run) -> None:
    """As many steps as the age says, of the textbook's, and nothing of what one network does to another."""
    pool, twins = pool_of(recipe), pool_of(recipe).networks
    born, ages = [weights(network) for network in pool.networks], list(pool.ages)
    pool.grow(IMAGES, TARGETS, run)
    assert pool.ages == ages
    for network, twin, age, birth in zip(pool.networks, twins, ages, born, strict=True):
        assert weights(network) != birth
        textbook(twin, recipe, age)
        expected = twin.state_dict()
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
        assert int(network.features[1].num_batches_tracked) == age


def test_a_visit_is_one_more_step(run: Run) -> None:
    pool, twin = pool_of(), pool_of()
    pool.grow(IMAGES, TARGETS, run)
    slot = pool.ages.index(min(pool.ages))
    age, others = pool.ages[slot], [weights(pool.networks[other]) for other in range(3) if other != slot]
    pool.networks[slot].eval()  # as the outer loss leaves it
    pool.visit(slot, IMAGES, TARGETS)
    assert pool.ages[slot] == age + 1
    assert [weights(pool.networks[other]) for other in range(3) if other != slot] == others
    textbook(twin.networks[slot], RECIPE, age + 1)
    for found, expected in zip(pool.networks[slot].parameters(), twin.networks[slot].parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_training_leaves_nothing_behind(run: Run) -> None:
    """No gradient in a network, none in what it was trained on, and no draw: two visits from one state are one."""
    draws = torch.random.get_rng_state()
    images, targets = IMAGES.clone().requires_grad_(), TARGETS.clone().requires_grad_()
    one, other = pool_of(), pool_of()
    one.grow(images.detach(), targets.detach(), run)
    for _ in range(7):
        one.visit(1, images.detach(), targets.detach())
    assert torch.random.get_rng_state().equal(draws)
    assert all(parameter.grad is None for network in one.networks for parameter in network.parameters())
    assert images.grad is None
    assert images.detach().equal(IMAGES)
    assert targets.detach().equal(TARGETS)
    other.grow(IMAGES, TARGETS, Run(run.folder / "again"))
    torch.manual_seed(99)  # of no account
    for _ in range(7):
        other.visit(1, IMAGES, TARGETS)
    assert list(map(weights, one.networks)) == list(map(weights, other.networks))
    torch.random.set_rng_state(draws)


def test_regression_is_learned(run: Run) -> None:
    def error(network: nn.Module) -> float:
        return float(F.mse_loss(network.train()(IMAGES), TARGETS).detach())

    pool = pool_of(PoolRecipe(size=1, max_age=1000, lr=0.05))
    before = error(pool.networks[0])
    pool.grow(IMAGES, TARGETS, run)
    assert error(pool.networks[0]) < 0.2 * before


# --- replacement -----------------------------------------------------------------------------------------------------


def old(pool: ModelPool, slot: int) -> ModelPool:
    for _ in range(pool.recipe.max_age - pool.ages[slot]):
        pool.visit(slot, IMAGES, TARGETS)
    assert pool.ages[slot] == pool.recipe.max_age
    return pool


def test_the_oldest_is_replaced() -> None:
    """By fresh weights, another optimizer without momentum, and age 0; nothing is trained in that visit."""
    pool = pool_of()
    births = weights(pool.networks[1])
    old(pool, 1)
    before, network, optimizer = weights(pool.networks[1]), pool.networks[1], pool.optimizers[1]
    assert momenta(optimizer)
    others = [id(pool.networks[slot]) for slot in (0, 2)]
    pool.visit(1, IMAGES, TARGETS)
    assert pool.ages[1] == 0
    assert pool.networks[1] is not network
    assert pool.optimizers[1] is not optimizer
    assert weights(pool.networks[1]) not in (before, births)
    assert not pool.optimizers[1].state
    assert int(pool.networks[1].features[1].num_batches_tracked) == 0
    assert [id(pool.networks[slot]) for slot in (0, 2)] == others
    pool.visit(1, IMAGES, TARGETS)
    assert pool.ages[1] == 1
    assert len(momenta(pool.optimizers[1])) == len(list(pool.networks[1].parameters()))  # its own are held


def test_who_is_born_hangs_on_seed_slot_and_birth_alone() -> None:
    """Whatever was visited in between, and no two newborns are alike."""
    pool, other = pool_of(), pool_of()
    born = []
    for slot in (0, 1, 0, 2):
        old(pool, slot).visit(slot, IMAGES, TARGETS)
        born.append(weights(pool.networks[slot]))
    assert len({*born, *map(weights, pool_of().networks)}) == 7
    with seeded(5):
        old(other, 2).visit(2, IMAGES + 1, TARGETS)
    old(other, 1).visit(1, IMAGES, TARGETS - 1)
    assert [weights(other.networks[slot]) for slot in (1, 2)] == [born[1], born[3]]


class Counted(nn.Module):
    """Stands for a network, and counts the steps it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.steps = nn.Parameter(torch.zeros(1)), 0


def seen_ages(recipe: PoolRecipe, visits: int, run: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Yields the age that the books say, and the true one, of every network that is visited in uniform slots."""

    def count(pool: ModelPool, slot: int, *_: Tensor) -> Tensor:
        network: Any = pool.networks[slot]
        network.steps += 1
        return torch.zeros(())

    monkeypatch.setattr(ModelPool, "_train", count)
    pool = ModelPool(recipe, Counted, 0, CPU)  # type: ignore[arg-type]
    pool.grow(IMAGES, TARGETS, run)
    for slot in torch.randint(recipe.size, (visits,), generator=generator(0)).tolist():
        network: Any = pool.networks[slot]
        yield pool.ages[slot], network.steps
        pool.visit(slot, IMAGES, TARGETS)


def is_uniform(ages: list[int], max_age: int, size: int) -> bool:
    """Each slot goes round and round, so that each age is seen once more than another at most, in each slot."""
    counts = Counter(ages)
    often = [counts[age] for age in range(max_age + 1)]
    return sum(often) == len(ages) and max(often) - min(often) <= size


def test_all_ages_are_seen_equally_often(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told, true = zip(*seen_ages(PoolRecipe(max_age=100), 20_000, run, monkeypatch), strict=True)
    assert told == true
    assert is_uniform(list(true), 100, 10)
    assert sum(true) / len(true) == pytest.approx(50, rel=0.1)
    assert true.count(0) / len(true) == pytest.approx(1 / 101, rel=0.1)


def test_without_reset_almost_all_networks_are_fresh(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the published code does: the books say the maximum, and what is seen was never trained."""
    recipe = PoolRecipe(max_age=20, reset=False)
    told, true = zip(*seen_ages(recipe, 4_000, run, monkeypatch), strict=True)
    assert not is_uniform(list(true), 20, 10)
    assert true.count(0) / len(true) > 0.95
    assert set(true[1_000:]) == {0}
    assert set(told[1_000:]) == {20}
    assert max(true[:200]) > 10  # it began well


# --- its state -------------------------------------------------------------------------------------------------------


def test_resume_is_invisible(tmp_path: Path, interrupted: Interrupt) -> None:
    straight = pool_of()
    straight.grow(IMAGES, TARGETS, Run(tmp_path / "straight"))
    for stop in (0, 2, sum(straight.ages) - 2):
        with interrupted(at("pool", stop)):
            pool_of().grow(IMAGES, TARGETS, Run(tmp_path / "stopped"))
    resumed = pool_of()
    resumed.grow(IMAGES, TARGETS, Run(tmp_path / "stopped"))
    for slot in (0, 1, 1, 2, 0):
        straight.visit(slot, IMAGES, TARGETS)
        resumed.visit(slot, IMAGES, TARGETS)
    assert list(map(weights, straight.networks)) == list(map(weights, resumed.networks))
    assert straight.ages == resumed.ages


@pytest.mark.parametrize("reset", [True, False])
def test_its_state_is_all_there_is(reset: bool, tmp_path: Path) -> None:
    """Ages, births, weights, running statistics and momentum, into pools at any other point of their lives."""
    recipe = replace(RECIPE, reset=reset)
    pool = pool_of(recipe)
    for slot in [0] * 9 + [1] * 2:
        pool.visit(slot, IMAGES, TARGETS)
    save_tree(tmp_path / "state", pool.state_dict())
    saved: Any = load_tree(tmp_path / "state")
    untouched, busy = pool_of(recipe), pool_of(recipe)
    for slot in [2] * 8 + [1] * 9 + [0]:
        busy.visit(slot, IMAGES, TARGETS)
    for other in (untouched, busy):
        other.load_state_dict(saved)
        assert other.ages == pool.ages
    for slot in [0] * 8 + [1] * 5 + [2] * 3:
        for other in (pool, untouched, busy):
            other.visit(slot, IMAGES, TARGETS)
    for other in (untouched, busy):
        assert list(map(weights, other.networks)) == list(map(weights, pool.networks))
        assert other.ages == pool.ages


def test_rejects_the_state_of_another_size() -> None:
    with pytest.raises(ValueError, match="found a pool of 3; expected one of 2"):
        pool_of(replace(RECIPE, size=2)).load_state_dict(pool_of().state_dict())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size is 0; expected at least 1"),
        ({"max_age": 1}, "max_age is 1; expected at least 2"),
        ({"lr": 0.0}, "lr is 0.0; expected more than 0"),
        ({"lr": float("inf")}, "lr is inf; expected more than 0"),
        ({"lr": float("nan")}, "lr is nan; expected more than 0"),
        ({"momentum": 1.0}, "momentum is 1.0; expected at least 0 and less than 1"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": -1e-3}, "weight_decay is -0.001; expected at least 0"),
        ({"weight_decay": float("inf")}, "weight_decay is inf"),
    ],
)
def test_rejects_recipes(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PoolRecipe(**wrong)
