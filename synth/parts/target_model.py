"""Target models: networks trained without labels, once, whose features synthetic sets learn to teach."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dd_bench.data.images import ImageData
from dd_bench.environment import convolution_layout, describe_device, library_versions
from dd_bench.errors import ConfigError
from dd_bench.models import Architecture, Classifier, build
from dd_bench.networks import NetworkFacts, load_network, save_network
from dd_bench.run import Run, open_run
from dd_bench.seeding import derive_seed, seeded
from dd_bench.sets import digest_json
from dd_bench.settings import as_settings
from dd_bench.targets import Features
from synth.base import Task
from synth.parts.barlow_twins import BarlowTwinsRecipe, require_spread, train_barlow_twins
from synth.parts.embeddings import embed_images
from synth.parts.remembered import remember
from synth.parts.teachers import split_held_out, train_once

_VERSION = 1  # grows when the same plan makes another network


@dataclass(frozen=True)
class TargetPlan:
    """Which network sets the targets, and how it is trained.

    Attributes:
        architecture: a name for ``dd_bench.models.build``; its features, before the head, are the targets.
        recipe: its training by Barlow Twins.
        held_out: share of the training images that it never sees, on which a collapse shows; in (0, 0.5].
        seed: of all draws. It is part of the plan and not of the synthesis, so that sets share the network.
    """

    architecture: str
    recipe: BarlowTwinsRecipe
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", str(Architecture.parse(self.architecture)))
        if not 0 < self.held_out <= 0.5:
            raise ConfigError(f"held_out is {self.held_out}; expected a share in (0, 0.5]")


@dataclass(frozen=True, eq=False)
class TargetModel:
    """A trained target network on the task's device, frozen, and what it says of the real images.

    Attributes:
        model: the network, in evaluation mode.
        facts: what is known of it.
        plain: targets (N, D) float32 of all training images, on the CPU: centred by their own mean, and divided by one
            deviation, so that their mean square is 1 and the error of predicting the mean is 1.
        flipped: the same of the mirrored images, where the data set allows mirroring.
        center: (D,) float32, the mean of the network's features; on the task's device, as the network is.
        scale: the deviation.
    """

    model: Classifier
    facts: NetworkFacts
    plain: Tensor
    flipped: Tensor | None
    center: Tensor
    scale: float

    @torch.no_grad()
    def targets_of(self, pixels: Tensor) -> Tensor:
        """Returns the targets (n, D) of pixels (n, C, H, W) on the model's device."""
        return (self.model.embed(pixels) - self.center) / self.scale

    def as_features(self, values: Tensor) -> Features:
        """Returns targets (m, D) as a set keeps them, with the map back to the network's units."""
        return Features(values.cpu(), self.center.cpu(), self.scale)


def obtain_target(plan: TargetPlan, task: Task, run: Run) -> TargetModel:
    """Returns the plan's network, trained if it is not cached yet, with its targets of all training images.

    It is trained under a lock, in a run of its own that survives kills, and stored when finished. No label is read.

    Raises:
        DivergedError: if the network collapsed.
    """
    data = task.images
    key = {"version": _VERSION, "plan": as_settings(plan), "dataset": data.spec.name, "fingerprint": data.fingerprint}
    network_id = f"barlow-twins-{plan.architecture}-{digest_json(key)[:12]}"
    train_once("target", network_id, lambda run_name: _train(network_id, run_name, plan, task))
    model, facts = load_network(network_id, data.spec)
    assert isinstance(model, Classifier)
    model = model.to(task.device).to(memory_format=convolution_layout(task.device))
    raw = remember(
        "targets", {"network": network_id, "weights": facts.weights_sha256}, run, lambda: _read_off(model, data, run)
    )
    center = raw[0].double().mean(0)
    scale = float((raw[0].double() - center).square().mean().sqrt())
    tables = (raw - center.float()) / scale
    flipped = tables[1] if len(tables) > 1 else None
    return TargetModel(model, facts, tables[0], flipped, center.float().to(task.device), scale)


def _train(network_id: str, run_name: str, plan: TargetPlan, task: Task) -> None:
    data = task.images
    kept, held_out = split_held_out(len(data), plan.held_out, derive_seed("held out", plan.seed))
    seed = derive_seed("target model", plan.architecture, plan.seed)
    with seeded(seed):
        model = build(plan.architecture, data.spec)
    model.to(task.device).to(memory_format=convolution_layout(task.device))
    with open_run(run_name) as run:
        label = f"target model {plan.architecture}"
        train_barlow_twins(
            model, data.images[kept], recipe=plan.recipe, spec=data.spec, seed=seed, run=run, label=label
        )  # fmt: skip
        model.eval()
        rank = require_spread(embed_images(model, data.images[held_out]), label)
        save_network(
            model,
            NetworkFacts(
                id=network_id,
                architecture=plan.architecture,
                dataset=data.spec.name,
                fingerprint=data.fingerprint,
                recipe=as_settings(plan.recipe) | {"held_out": plan.held_out, "objective": "barlow twins"},
                seed=plan.seed,
                held_out_rank=rank,
                held_out_images=len(held_out),
                seconds=run.seconds,
                device=describe_device(task.device),
                versions=library_versions(),
            ),
        )


def _read_off(model: Classifier, data: ImageData, run: Run) -> Tensor:
    """Returns the features of all images and, where allowed, of their mirror images, float32 (1 or 2, N, D)."""
    views = (False, True) if data.spec.mirror else (False,)
    with run.unsaved("targets of the real images", len(views)) as progress:
        tables = []
        for number, mirrored in enumerate(views):
            tables.append(embed_images(model, data.images, mirrored=mirrored))
            progress.update(number + 1)
    return torch.stack(tables)


# The recipe of the authors' target networks is not published; these are ours. "default" is their architecture.
TARGETS = {
    "default": TargetPlan("resnet18", BarlowTwinsRecipe()),
    "small": TargetPlan(
        "pooled3-x0.125", BarlowTwinsRecipe(steps=500, batch=250, projector=(256, 256), smallest_crop=0.3)
    ),
    "medium": TargetPlan(
        "pooled3-x0.25", BarlowTwinsRecipe(steps=3000, batch=250, projector=(512, 512), smallest_crop=0.3)
    ),
    "digits": TargetPlan(
        "pooled2-x0.125", BarlowTwinsRecipe(steps=300, batch=100, projector=(256, 256), smallest_crop=0.5)
    ),
}
