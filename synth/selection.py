"""Selected real images and graphs: coresets that look at the data before they choose.

ddbench synth --method herding --ipc 10
ddbench synth --method k-center --ipc 10 --dataset cifar10@200 --preset small-soft
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.errors import ConfigError
from dd_bench.graph_sets import Graphs
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from dd_bench.settings import later
from dd_bench.targets import HardLabels
from synth.base import ControlPlan, Distilled, Synthesizer, Task, random_control
from synth.parts.embeddings import embed_training
from synth.parts.real_images import Labelling, with_targets
from synth.parts.sampling import require_enough, sample_images
from synth.parts.scales import scale_of
from synth.parts.subsets import farthest_points, herd, nearest_to_centres
from synth.parts.tape_labels import TAPE_PLANS
from synth.parts.target_model import TARGETS, TargetPlan, obtain_target
from synth.parts.teachers import PLANS, TeacherPlan
from synth.parts.tree_features import tree_features

_HARD = Labelling()
_FEATURES = {scale: PLANS[scale].only_first() for scale in ("published", "small", "digits")}  # who sees

Choose = Callable[[Tensor, int], Sequence[int]]
"""From the indices (n,) of a class's training examples and the class to which of the n are taken."""


def choose_by_class(data: ImageData | GraphData, choose: Choose, run: Run, name: str) -> Tensor:
    """Returns the indices of what ``choose`` takes, class by class."""
    picked = []
    with run.unsaved(name, data.spec.num_classes) as progress:
        for label in range(data.spec.num_classes):
            members = torch.nonzero(data.labels == label).flatten()
            picked.append(members[torch.as_tensor(choose(members, label))])
            progress.update(label + 1)
    return torch.cat(picked)


@dataclass(frozen=True)
class Herding:
    """ipc images or graphs of each class whose mean features follow those of the whole class.

    Welling, "Herding dynamical weights to learn", ICML 2009; of images as in iCaRL (Rebuffi et al., CVPR 2017), on what
    a teacher sees before its head. Features of graphs are how often each computation tree of depth 0 to ``hops`` stands
    in one (the Weisfeiler-Lehman subtree features), as square roots of shares. All have length 1, so that neither the
    size of graphs nor frequent trees drown the rest. Nothing is drawn: every seed chooses alike.

    Attributes:
        hops: depth of the deepest trees that are counted in graphs.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
        features: the teacher that sees images, the first of the plan; none for graphs.
        labels: who labels images.
    """

    hops: int = 2
    protocol: str = "graphs"
    features: TeacherPlan | None = later(None)
    labels: Labelling = later(_HARD)

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns ``graphs``, or the preset with hard labels and the data set's native protocol."""
        return "graphs" if dataset in GRAPH_SPECS else f"{scale_of(dataset)}-hard"

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns the chosen graphs or images with their labels, class by class in the order of choice.

        Raises:
            ConfigError: if a class has fewer than ipc examples, or the preset is for the other kind of data.
        """
        data = task.graphs if self.features is None else task.images
        require_enough(data.labels, task.ipc, data.spec.num_classes)
        if self.features is None:
            features = tree_features(task.graphs.graphs, self.hops)
            picked = choose_by_class(data, lambda members, _: herd(features[members.numpy()], task.ipc), run, "herding")
            return Distilled(Graphs.of(task.graphs.graphs.pick(picked)), HardLabels(data.labels[picked]))
        rows, teacher = embed_training(self.features, task, run)
        picked = choose_by_class(data, lambda members, _: herd(rows[members].numpy(), task.ipc), run, "herding")
        return self.labels.label(picked, task, run, shapers=[teacher])

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random graphs, or random images with the same labels and with hard ones."""
        return self.labels.controls(self.protocol)


@dataclass(frozen=True)
class KMeans:
    """Real images nearest to the centres of k-means: ipc of each class, or of all where there are no classes.

    Attributes:
        target: a network that was trained without labels, whose features are the targets; classes are not looked at.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
        features: instead of a target: the teacher, the first of the plan, in whose features each class is clustered.
        labels: who labels the images then.
    """

    target: TargetPlan | None = TARGETS["default"]
    protocol: str = "transfer-cifar"
    features: TeacherPlan | None = later(None)
    labels: Labelling = later(_HARD)

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    def __post_init__(self) -> None:
        if (self.target is None) == (self.features is None):
            raise ConfigError(
                f"target and features are both {'missing' if self.target is None else 'set'}; expected one of them"
            )

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns the preset with hard labels and the data set's native protocol."""
        return f"{scale_of(dataset)}-hard"

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns ipc images a class with their labels, or as many in all with their targets.

        Raises:
            ConfigError: if there are fewer images than that.
        """
        if self.target is not None:
            count = task.ipc * task.images.spec.num_classes
            sample_images(len(task.images), count, task.seed)  # refuses what cannot be before the network is trained
            target = obtain_target(self.target, task, run)
            with run.unsaved("k-means", 1) as progress:
                nearest = nearest_to_centres(target.plain, count, task.seed)
                progress.update(1)
            return with_targets(nearest, target, task)
        assert self.features is not None
        require_enough(task.images.labels, task.ipc, task.images.spec.num_classes)
        rows, teacher = embed_training(self.features, task, run)

        def choose(members: Tensor, label: int) -> list[int]:
            chosen: list[int] = nearest_to_centres(
                rows[members], task.ipc, derive_seed("class", label, task.seed)
            ).tolist()
            return chosen

        picked = choose_by_class(task.images, choose, run, "k-means")
        return self.labels.label(picked, task, run, shapers=[teacher])

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random images with the same targets, or with the same labels and with hard ones."""
        if self.target is not None:
            return (random_control(self.protocol, target=self.target),)
        return self.labels.controls(self.protocol)


@dataclass(frozen=True)
class KCenter:
    """ipc images of each class of which every other one is near one: greedy k-center in a teacher's features.

    Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR 2018, within each
    class and from the image nearest to the class's mean on. Nothing is drawn: every seed chooses alike.

    Attributes:
        features: the teacher, the first of the plan.
        labels: who labels the images.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
    """

    features: TeacherPlan = _FEATURES["published"]
    labels: Labelling = _HARD
    protocol: str = "hard"

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns the preset with hard labels and the data set's native protocol."""
        return f"{scale_of(dataset)}-hard"

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns the chosen images with their labels, class by class in the order of choice.

        Raises:
            ConfigError: if a class has fewer than ipc images.
        """
        require_enough(task.images.labels, task.ipc, task.images.spec.num_classes)
        rows, teacher = embed_training(self.features, task, run)
        picked = choose_by_class(
            task.images, lambda members, _: farthest_points(rows[members].numpy(), task.ipc), run, "k-center"
        )
        return self.labels.label(picked, task, run, shapers=[teacher])

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random images with the same labels and with hard ones."""
        return self.labels.controls(self.protocol)


# Who labels, under which protocol
_LABELS = {
    "published-hard": (_HARD, "hard"),
    "published-soft": (Labelling(PLANS["published"]), "infer-static"),
    "published-taped": (Labelling(PLANS["cv-dd"], tape=TAPE_PLANS["published"]), "fkd-cutmix"),
    **{
        f"{scale}-{kind}": labels
        for scale in ("small", "digits")
        for kind, labels in (
            ("hard", (_HARD, "quick")),
            ("soft", (Labelling(PLANS[scale]), "quick")),
            ("taped", (Labelling(PLANS[scale], tape=TAPE_PLANS[scale]), "fkd-quick")),
        )
    },
}
_CHOICES = [(name, _FEATURES[name.partition("-")[0]], labels, protocol) for name, (labels, protocol) in _LABELS.items()]

Herding.PRESETS = {
    "graphs": Herding(),
    **{name: Herding(protocol=protocol, features=plan, labels=labels) for name, plan, labels, protocol in _CHOICES},
}
KCenter.PRESETS = {name: KCenter(plan, labels, protocol) for name, plan, labels, protocol in _CHOICES}
KMeans.PRESETS = {
    **{name: KMeans(None, protocol, plan, labels) for name, plan, labels, protocol in _CHOICES},
    "default": KMeans(),
    "default-cifar10": KMeans(protocol="transfer-cifar-back"),
    "default-tinyimagenet": KMeans(protocol="transfer-tiny"),
    **{
        f"{scale}{source}": KMeans(TARGETS[scale], f"transfer-small{way}")
        for scale in ("small", "medium")
        for source, way in (("", ""), ("-cifar10", "-back"))
    },
    "digits": KMeans(TARGETS["digits"], "transfer-digits"),
}
