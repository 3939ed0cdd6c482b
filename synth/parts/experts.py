"""Experts: networks trained on real data whose parameters are kept after every epoch, for others to follow.

Papers: Cazenavette et al. 2022 (MTT, arXiv 2203.11932); Shen, Yang and Lam 2023 (AST, arXiv 2310.10541), whose experts
change smoothly. AST's formulas follow its authors' code (shenjiyuan123/AST-Alignment-with-Smooth-Expert at 8030869);
its paper was not at hand.

One file holds one expert, under a lock of its own: of a hundred, those that are finished stay when a process is killed,
and several processes share the work. ``benchmarks/experts.py`` compares that with training several in one process.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dd_bench.environment import describe_device, library_versions
from dd_bench.errors import BusyError, ConfigError, InvalidSetError
from dd_bench.files import home, locked, write_atomic
from dd_bench.models import Architecture, build
from dd_bench.run import drop_run, open_run
from dd_bench.seeding import derive_seed, seeded
from dd_bench.sets import digest_json
from synth.base import Task
from synth.parts.encoded import EncodedImages
from synth.parts.expert_training import ExpertRecipe, train_expert
from synth.parts.inner import FlatNetwork

_VERSION = 1  # grows when the same plan makes other experts


@dataclass(frozen=True)
class ExpertPlan:
    """Which experts there are.

    Attributes:
        architecture: name for ``dd_bench.models.build``, kept in its canonical spelling; no BatchNorm.
        recipe: the training of each.
        count: how many.
        whiten: whether they see ZCA-whitened images instead of normalised ones.
        seed: of initialisation, order and augmentation. It is part of the plan and not of the synthesis, so that sets
            of several seeds follow the same experts.
    """

    architecture: str
    recipe: ExpertRecipe
    count: int = 100
    whiten: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", str(Architecture.parse(self.architecture)))
        if self.count < 1:
            raise ConfigError(f"count of experts is {self.count}; expected at least 1")


class Experts:
    """The checkpoints of a plan's experts, read from their files as they are asked for.

    Attributes:
        network: the function whose parameters they are.
        count: number of experts.
        seconds: wall seconds that their training took, all together.
        moves: ‖θ_{e+1} - θ_e‖² of each expert and epoch, (count, E) float32 on the CPU: how smooth they are.

    Raises:
        InvalidSetError: if a file is damaged, or of other experts than its name says.
    """

    def __init__(self, paths: list[Path], digest: str, recipe: ExpertRecipe, network: FlatNetwork) -> None:
        self.network, self.count, self.seconds = network, len(paths), 0.0
        self._row = {epoch: row for row, epoch in enumerate(recipe.kept)}
        self._files: list[Any] = []  # safetensors' readers, which know no types
        moves = []
        for index, path in enumerate(paths):
            try:
                file: Any = safe_open(path, framework="pt")
                facts = json.loads(file.metadata()["expert"])
                moves.append(file.get_tensor("moves"))
                shapes = tuple(file.get_slice("checkpoints").get_shape()), tuple(moves[-1].shape)
                found = (facts["recipe"], facts["index"], *shapes)
                self.seconds += float(facts["seconds"])
            except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
                raise InvalidSetError(f"{path} is no expert ({error}); delete it to have it trained anew") from error
            expected = (digest, index, (len(recipe.kept), network.size), (recipe.epochs,))
            if found != expected:
                raise InvalidSetError(
                    f"{path} holds the expert (recipe, index, shapes) {found}; expected {expected}: delete it to have "
                    "it trained anew"
                )
            self._files.append(file)
        self.moves = torch.stack(moves)

    def segment(self, index: int, epoch: int, length: int) -> Tensor:
        """Returns the checkpoints (length + 1, P) of an expert after ``epoch`` … ``epoch + length`` epochs."""
        row = self._row[epoch]
        part: Tensor = self._files[index].get_slice("checkpoints")[row : row + length + 1]
        return part

    def last(self, index: int) -> Tensor:
        """Returns an expert's final parameters (P,)."""
        part: Tensor = self._files[index].get_slice("checkpoints")[len(self._row) - 1]
        return part


def obtain_experts(plan: ExpertPlan, task: Task, encoded: EncodedImages) -> Experts:
    """Returns the plan's experts, training those that are not on disk yet.

    Another process that trains experts of the plan is left to its own; only at the end is it waited for.

    Args:
        plan: which.
        task: names the data and the device.
        encoded: the training split, whitened if the plan says so.
    """
    recipe = asdict(plan.recipe)
    digest = digest_json({"version": _VERSION, "architecture": plan.architecture, "recipe": recipe, "seed": plan.seed,
                          "whiten": plan.whiten, "dataset": task.data.spec.name,
                          "fingerprint": task.data.fingerprint})  # fmt: skip
    folder = home() / "experts" / f"{plan.architecture}-{digest[:12]}"
    paths = [folder / f"expert{index:03d}.safetensors" for index in range(plan.count)]
    for wait_seconds in (0, -1):
        for index, path in enumerate(paths):
            run_name = f"expert-{digest[:12]}-{index:03d}"
            if path.exists():
                drop_run(run_name)
                continue
            with suppress(BusyError), locked(f"expert {digest} {index}", wait_seconds=wait_seconds):
                if not path.exists():
                    _train(path, run_name, index, digest, plan, encoded, task.device)
    network, _ = _fresh_network(plan, encoded, 0, task.device)
    return Experts(paths, digest, plan.recipe, network)


def _fresh_network(
    plan: ExpertPlan, encoded: EncodedImages, index: int, device: torch.device
) -> tuple[FlatNetwork, int]:
    """Returns an expert's network at its start, and the seed of the rest of its training."""
    seed = derive_seed("expert", plan.architecture, plan.seed, index)
    with seeded(seed):
        module = build(plan.architecture, encoded.spec)
    return FlatNetwork(module.to(device)), seed


def _train(
    path: Path, run_name: str, index: int, digest: str, plan: ExpertPlan, encoded: EncodedImages, device: torch.device
) -> None:
    network, seed = _fresh_network(plan, encoded, index, device)
    with open_run(run_name) as run:
        checkpoints, moves = train_expert(
            network, plan.recipe, encoded, seed=seed, run=run, label=f"expert {index + 1} of {plan.count}"
        )
        facts = {"recipe": digest, "index": index, "seconds": round(run.seconds, 3), "plan": asdict(plan),
                 "device": describe_device(device), "versions": library_versions()}  # fmt: skip
        write_atomic(path, save({"checkpoints": checkpoints, "moves": moves}, {"expert": json.dumps(facts)}))
