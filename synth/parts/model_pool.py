"""A pool of online networks of staggered ages, each trained on the synthetic set as it is learned.

What a set teaches must serve networks of every age, from fresh to trained. Each slot holds a network and its optimizer;
a visit trains it for one more step on the whole set, and at the maximum age a fresh one takes its place. Zhou et al.
(FRePo), NeurIPS 2022, arXiv 2206.00719; Lee et al. (KRR-ST), ICLR 2024, arXiv 2310.06511.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from dd_bench.checkpoint import State, Tree
from dd_bench.environment import convolution_layout
from dd_bench.errors import ConfigError
from dd_bench.learn.losses import mean_squared_error
from dd_bench.models import Classifier
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded


@dataclass(frozen=True)
class PoolRecipe:
    """How many networks there are, and how each is trained by SGD at a constant rate on the whole set.

    Attributes:
        size: number of slots.
        max_age: steps after which a network is replaced.
        lr: learning rate.
        momentum: of SGD.
        weight_decay: L2.
        reset: whether the age of a fresh network is 0. The published code never sets it back, so that from its first
            replacement on every visit finds a new, untrained network (false shows what that does).
    """

    size: int = 10
    max_age: int = 1000
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-3
    reset: bool = True

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("size", self.size >= 1, "at least 1"),
            ("max_age", self.max_age >= 2, "at least 2"),
            ("lr", 0 < self.lr < inf, "more than 0"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0"),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")


class ModelPool:
    """The networks, their optimizers and ages.

    Attributes:
        recipe: of size and training.
        networks: by slot; they take images as the set is learned, that is normalised.
        optimizers: by slot.
        ages: by slot, the steps that its network has been trained, or what the published code takes for them.
    """

    def __init__(self, recipe: PoolRecipe, make: Callable[[], Classifier], seed: int, device: torch.device) -> None:
        """``make`` returns a network with fresh weights from torch's global generator; ``seed`` is that of all."""
        self.recipe, self._make, self._seed, self._device = recipe, make, seed, device
        draws = generator(derive_seed("ages", seed))
        self.ages = torch.randint(1, recipe.max_age, (recipe.size,), generator=draws).tolist()
        self._births = [0] * recipe.size
        self.networks = [self._fresh(slot) for slot in range(recipe.size)]
        self.optimizers = [self._optimizer(network) for network in self.networks]

    def grow(self, images: Tensor, targets: Tensor, run: Run) -> None:
        """Trains every network for as many steps as its age says, in one stage of ``run``.

        Args:
            images: normalised, (m, C, H, W).
            targets: (m, k).
            run: with a stage "pool".
        """
        visits = [slot for slot, age in enumerate(self.ages) for _ in range(age)]
        for step in run.steps("pool", len(visits), self):
            run.observe(loss=self._train(visits[step], images, targets))

    def visit(self, slot: int, images: Tensor, targets: Tensor) -> None:
        """Trains the network in ``slot`` for one step, or puts a fresh one in its place if it is at maximum age."""
        if self.ages[slot] < self.recipe.max_age:
            self._train(slot, images, targets)
            self.ages[slot] += 1
            return
        self._births[slot] += 1
        self.networks[slot] = self._fresh(slot)
        self.optimizers[slot] = self._optimizer(self.networks[slot])
        if self.recipe.reset:
            self.ages[slot] = 0

    def state_dict(self) -> dict[Any, Tree]:
        """Returns everything that training changes."""
        parts = [self._state(slot).state_dict() for slot in range(self.recipe.size)]
        return {"ages": list(self.ages), "births": list(self._births), "slots": dict(enumerate(parts))}

    def load_state_dict(self, tree: dict[Any, Tree]) -> None:
        """Puts the pool into the state that ``state_dict`` returned.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: if ``tree`` is the state of another pool.
        """
        saved: Any = tree
        if not len(saved["ages"]) == len(saved["births"]) == len(saved["slots"]) == self.recipe.size:
            raise ValueError(f"found a pool of {len(saved['slots'])}; expected one of {self.recipe.size}")
        self.ages, self._births = list(saved["ages"]), list(saved["births"])
        for slot, part in saved["slots"].items():
            self._state(slot).load_state_dict(part)

    def _train(self, slot: int, images: Tensor, targets: Tensor) -> Tensor:
        """Takes one full-batch step on the mean squared error, draws nothing, and returns the loss."""
        network, optimizer = self.networks[slot].train(), self.optimizers[slot]
        loss = mean_squared_error(network(images), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _fresh(self, slot: int) -> Classifier:
        with seeded(derive_seed("pool", self._seed, slot, self._births[slot])):
            network = self._make()
        return network.to(self._device, non_blocking=True).to(memory_format=convolution_layout(self._device))

    def _optimizer(self, network: Classifier) -> torch.optim.Optimizer:
        recipe = self.recipe
        return torch.optim.SGD(
            network.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def _state(self, slot: int) -> State:
        return State(network=self.networks[slot], optimizer=self.optimizers[slot])
