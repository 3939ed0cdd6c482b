"""Teachers: networks trained once on real data, cached with their recipe, and shared by all sets that ask for them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.data.images import ImageData
from dd_bench.environment import describe_device, library_versions
from dd_bench.errors import ConfigError
from dd_bench.files import locked
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.training import TrainingRecipe, fit
from dd_bench.models import Architecture, build, images_at_once
from dd_bench.networks import NetworkFacts, has_network, load_network, save_network
from dd_bench.run import drop_run, open_run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import digest_json
from dd_bench.settings import as_settings
from synth.base import Task

_VERSION = 1  # grows when the same plan makes other networks


@dataclass(frozen=True)
class TeacherPlan:
    """Which networks teach, and how they are trained.

    Attributes:
        architectures: names for ``dd_bench.models.build``, all different; kept in their canonical spelling.
        recipe: the training of each.
        held_out: share of the training split that teachers never see, on which their accuracy is measured; in (0, 0.5].
        seed: of initialisation, order, augmentation and the held-out slice. It is part of the plan and not of the
            synthesis, so that sets of several seeds and their controls have the same teachers.
    """

    architectures: tuple[str, ...]
    recipe: TrainingRecipe
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        # In their canonical spelling, so that one network is never two teachers; unknown names are refused here.
        names = tuple(str(Architecture.parse(name)) for name in self.architectures)
        object.__setattr__(self, "architectures", names)
        if not self.architectures or len(set(self.architectures)) < len(self.architectures):
            raise ConfigError(f"teachers are {list(self.architectures)}; expected one or more, all different")
        if not 0 < self.held_out <= 0.5:
            raise ConfigError(f"held_out is {self.held_out}; expected a share in (0, 0.5]")

    def only_first(self) -> "TeacherPlan":
        """Returns the plan of the first network alone, which is the same network."""
        return replace(self, architectures=self.architectures[:1])


@dataclass(frozen=True)
class Teacher:
    """A trained network on the task's device, frozen and in evaluation mode, and what is known of it."""

    model: nn.Module
    facts: NetworkFacts


def obtain_teachers(plan: TeacherPlan, task: Task) -> list[Teacher]:
    """Returns the plan's teachers in its order, training those that are not cached yet.

    A teacher is trained under a lock, in a run of its own that survives kills, and stored when finished.
    """
    return [_obtain(architecture, plan, task) for architecture in plan.architectures]


def _obtain(architecture: str, plan: TeacherPlan, task: Task) -> Teacher:
    recipe = as_settings(plan.recipe) | {"held_out": plan.held_out}
    key = {"version": _VERSION, "architecture": architecture, "recipe": recipe, "seed": plan.seed,
           "dataset": task.data.spec.name, "fingerprint": task.data.fingerprint}  # fmt: skip
    network_id = f"{architecture}-{digest_json(key)[:12]}"
    train_once("teacher", network_id, lambda run_name: _train(network_id, run_name, architecture, plan, task))
    model, facts = load_network(network_id, task.images.spec)
    return Teacher(model.to(task.device), facts)


def train_once(kind: str, network_id: str, train: Callable[[str], None]) -> None:
    """Has ``train``, which gets the name of its run, leave a network on disk, unless it is there.

    It trains under a lock: processes that ask together wait for the first, and go on with its run if it is killed.
    """
    run_name = f"{kind}-{network_id}"
    with locked(f"{kind} {network_id}"):
        if has_network(network_id):
            drop_run(run_name)
        else:
            train(run_name)


def _train(network_id: str, run_name: str, architecture: str, plan: TeacherPlan, task: Task) -> None:
    spec, labels = task.images.spec, task.images.labels
    seed = derive_seed("teacher", architecture, plan.seed)
    kept, held_out = split_held_out(len(labels), plan.held_out, derive_seed("held out", plan.seed))
    with seeded(seed):
        model = build(architecture, spec)
    model.to(task.device)
    with open_run(run_name) as run:
        one_hot = F.one_hot(labels[kept], spec.num_classes).float()
        fit(
            model, task.images.images, one_hot, rows=kept, recipe=plan.recipe, objective=cross_entropy, spec=spec,
            seed=seed, run=run, label=f"teacher {architecture}",
        )  # fmt: skip
        top1 = accuracy(model, task.images, held_out, task.device)
        save_network(
            model,
            NetworkFacts(
                id=network_id,
                architecture=architecture,
                dataset=spec.name,
                fingerprint=task.data.fingerprint,
                recipe=as_settings(plan.recipe) | {"held_out": plan.held_out},
                seed=plan.seed,
                held_out_top1=top1,
                held_out_images=len(held_out),
                seconds=run.seconds,
                device=describe_device(task.device),
                versions=library_versions(),
            ),
        )


def split_held_out(count: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Returns the ascending indices of the kept and the held-out part; at least one image each."""
    order = torch.randperm(count, generator=generator(seed))
    size = min(max(1, round(count * share)), count - 1)
    return order[size:].sort().values, order[:size].sort().values


@torch.no_grad()
def accuracy(model: nn.Module, data: ImageData, rows: Tensor, device: torch.device) -> float:
    """Returns the top-1 in [0, 1] of a network on some rows (n,) of the data; it is left in evaluation mode."""
    model.eval()
    hits = torch.zeros((), dtype=torch.int64, device=device)
    for part in torch.split(rows, images_at_once(500, data.spec.image_shape)):
        pixels = data.images[part].to(device).float() / 255
        hits += (model(pixels).argmax(1) == data.labels[part].to(device)).sum()
    return int(hits) / len(rows)


# The plan "published" follows the companion repository of INFER (AngusDujw/Diversity-Driven-Synthesis,
# pretrain/squeeze_cifar100.py): SGD 0.1, cosine over 200 epochs, batch 128, weight decay 5e-4. The others are ours, for
# a CPU: narrow nets, few epochs.
PLANS = {
    "published": TeacherPlan(
        ("resnet18", "mobilenetv2", "efficientnetb0", "shufflenetv1"), TrainingRecipe(epochs=200, batch=128, lr=0.1)
    ),
    # CV-DD's committee as it trains it on CIFAR (squeeze/scripts/squeeze_cifar10.sh in its repository)
    "cv-dd": TeacherPlan(
        ("resnet18", "resnet50", "shufflenetv2-x0.5", "mobilenetv2", "densenet121"),
        TrainingRecipe(epochs=200, batch=512, optimizer="adam", lr=1e-3, weight_decay=1e-4),
    ),
    "small": TeacherPlan(
        ("convnet3-batch-x0.25", "convnet4-batch-x0.25", "resnet18-x0.125"),
        TrainingRecipe(epochs=30, batch=100, lr=0.1, nesterov=True, channels_last=True),
    ),
    "digits": TeacherPlan(
        ("convnet2-batch-x0.25", "convnet3-batch-x0.25", "resnet18-x0.125"),
        TrainingRecipe(epochs=15, batch=64, lr=0.05, nesterov=True),
    ),
}
