"""Coresets: real images or graphs chosen from the training split. They cost little, and every method must beat them.

ddbench synth --method random --ipc 10
ddbench synth --method random --ipc 10 --preset digits-soft
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import ClassVar, Literal

import numpy as np
import torch
from scipy.sparse import csr_array, hstack
from torch import Tensor

from dd_bench.colours import refine
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import GraphData
from dd_bench.errors import ConfigError
from dd_bench.graph_sets import Graphs
from dd_bench.graphs import GraphBatch
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from dd_bench.sets import Images
from dd_bench.settings import later
from dd_bench.targets import HardLabels, SoftLabels
from synth.base import ControlPlan, Distilled, Synthesizer, Task, random_control
from synth.parts.labeler import label_images
from synth.parts.sampling import sample_images, sample_per_class
from synth.parts.tape_labels import TAPE_PLANS, TapePlan, label_by_tape
from synth.parts.target_model import TARGETS, TargetModel, TargetPlan, obtain_target
from synth.parts.teachers import PLANS, TeacherPlan, obtain_teachers, scale_of


@dataclass(frozen=True)
class Random:
    """ipc images or graphs of each class, drawn uniformly without replacement.

    Attributes:
        teachers: who labels the images; none for hard labels, which graphs always have.
        label_dtype: of soft labels, ``float16`` or ``float32``.
        temperature: at which students match soft labels.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
        tape: how teachers label every view of a tape, instead of the plain images once.
        target: a network whose features are the targets, instead of labels; images are then drawn without regard to
            class, which nobody knows.
        times: draws as many times ipc.
    """

    teachers: TeacherPlan | None = None
    label_dtype: Literal["float16", "float32"] = "float16"
    temperature: float = 30.0
    protocol: str = "hard"
    tape: TapePlan | None = later(None)
    target: TargetPlan | None = later(None)
    times: int = later(1)

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    def __post_init__(self) -> None:
        if not 0 < self.temperature < inf:
            raise ConfigError(f"temperature is {self.temperature}; expected a positive number")
        if self.tape is not None and self.teachers is None:
            raise ConfigError("a tape is set, but no teachers to label it; expected both, or neither")
        if self.target is not None and self.teachers is not None:
            raise ConfigError("target and teachers are set; expected features or labels, not both")
        if self.times < 1:
            raise ConfigError(f"times is {self.times}; expected at least 1")

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns the preset with hard labels and the data set's native protocol."""
        return "graphs" if dataset in GRAPH_SPECS else f"{scale_of(dataset)}-hard"

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns the drawn images or graphs with their classes, or images with what networks say of them."""
        count, num_classes = task.ipc * self.times, task.data.spec.num_classes
        if self.target is not None:
            drawn = sample_images(len(task.images), count * num_classes, task.seed)
            return with_targets(drawn, obtain_target(self.target, task, run), task)
        picked = sample_per_class(task.data.labels, count, num_classes, task.seed).flatten()
        classes = task.data.labels[picked]
        if isinstance(task.data, GraphData) and self.teachers is None:
            return Distilled(Graphs.of(task.data.graphs.pick(picked)), HardLabels(classes))
        payload = Images(task.images.images[picked])
        if self.teachers is None:
            return Distilled(payload, HardLabels(classes))
        if self.tape is not None:
            return label_by_tape(payload, classes, self.teachers, self.tape, task=task, run=run)
        teachers = obtain_teachers(self.teachers, task)
        labels = label_images(payload.decode(), [t.model for t in teachers], device=task.device, run=run)
        return Distilled(
            payload=payload,
            targets=SoftLabels(labels.to(getattr(torch, self.label_dtype)), classes, self.temperature),
            parents=tuple(teacher.facts.id for teacher in teachers),
            teacher_seconds=sum(teacher.facts.seconds for teacher in teachers),
        )

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """None: this is the control."""
        return ()


Random.PRESETS = {
    "published-hard": Random(),
    "published-soft": Random(PLANS["published"], protocol="infer-static"),
    "small-hard": Random(protocol="quick"),
    "small-soft": Random(PLANS["small"], protocol="quick"),
    "digits-hard": Random(protocol="quick"),
    "digits-soft": Random(PLANS["digits"], protocol="quick"),
    **{
        f"{scale}-taped": Random(PLANS[of], protocol=protocol, tape=TAPE_PLANS[scale])
        for scale, of, protocol in (
            ("published", "cv-dd", "fkd-cutmix"),
            ("small", "small", "fkd-quick"),
            ("digits", "digits", "fkd-quick"),
        )
    },
    "small-features": Random(target=TARGETS["small"], protocol="transfer-small"),
    "small-features-cifar10": Random(target=TARGETS["small"], protocol="transfer-small-back"),
    "digits-features": Random(target=TARGETS["digits"], protocol="transfer-digits"),
    "graphs": Random(protocol="graphs"),
}


@dataclass(frozen=True)
class KMeans:
    """Real images nearest to the centres of k-means among a target network's features, with these features.

    Attributes:
        target: the network.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
    """

    target: TargetPlan = TARGETS["default"]
    protocol: str = "transfer-cifar"

    default_dataset: ClassVar[str] = "digits-low"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns ``default`` for whole data sets, ``small`` for a subset, ``digits`` for digits."""
        scale = scale_of(dataset)
        return "default" if scale == "published" else scale

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns ipc times as many images as there are classes, though no class is looked at."""
        count = task.ipc * task.images.spec.num_classes
        sample_images(len(task.images), count, task.seed)  # refuses what cannot be before the network is trained
        target = obtain_target(self.target, task, run)
        with run.unsaved("k-means", 1) as progress:
            picked = nearest_to_centres(target.plain, count, task.seed)
            progress.update(1)
        return with_targets(picked, target, task)

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random real images with targets."""
        return (random_control(self.protocol, target=self.target),)


KMeans.PRESETS = {
    "default": KMeans(),
    "default-cifar10": KMeans(protocol="transfer-cifar-back"),
    "default-tinyimagenet": KMeans(protocol="transfer-tiny"),
    "small": KMeans(TARGETS["small"], "transfer-small"),
    "small-cifar10": KMeans(TARGETS["small"], "transfer-small-back"),
    "digits": KMeans(TARGETS["digits"], "transfer-digits"),
}


def with_targets(picked: Tensor, target: TargetModel, task: Task) -> Distilled:
    """Returns the training images at ``picked`` (m,) with their targets."""
    return Distilled(
        payload=Images(task.images.images[picked]),
        targets=target.as_features(target.plain[picked]),
        parents=(target.facts.id,),
        teacher_seconds=target.facts.seconds,
    )


def nearest_to_centres(features: Tensor, count: int, seed: int) -> Tensor:
    """Returns indices (count,) of different rows of features (N, D), each nearest to a centre of k-means.

    The centres come one after the other; a row that a centre before has taken is not there for those after it.
    """
    from sklearn.cluster import KMeans as Clusters  # here, because the import takes a second

    rows = features.double().numpy()
    centres = Clusters(count, n_init=1, random_state=derive_seed("k-means", seed) % 2**32).fit(rows).cluster_centers_
    distances = torch.cdist(torch.from_numpy(centres), features.double())
    picked = []
    for row in distances.round_(decimals=9):  # both of a cluster of two are as near to its centre, but for rounding
        picked.append(int(row.argmin()))
        distances[:, picked[-1]] = torch.inf
    return torch.tensor(picked)


@dataclass(frozen=True)
class Herding:
    """ipc graphs of each class whose mean features follow those of all graphs of the class.

    Welling, "Herding dynamical weights to learn", ICML 2009. Features are how often each computation tree of depth 0 to
    ``hops`` stands in a graph (the Weisfeiler-Lehman subtree features), as square roots of shares, so that they have
    length 1 and neither size nor frequent trees drown the rest. Nothing is drawn: every seed gives the same graphs.

    Attributes:
        hops: depth of the deepest trees that are counted.
        protocol: the evaluation that ``ddbench eval`` uses unless told otherwise.
    """

    hops: int = 2
    protocol: str = "graphs"

    default_dataset: ClassVar[str] = "digits-graph"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]]

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns ``graphs``, the only preset."""
        return "graphs"

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns the chosen graphs with their classes, in the order of choice.

        Raises:
            ConfigError: for images, or if a class has fewer than ipc graphs.
        """
        data = task.graphs
        picked: list[int] = []
        with run.unsaved("herding", data.spec.num_classes) as progress:
            features = tree_features(data.graphs, self.hops)
            for label in range(data.spec.num_classes):
                members = torch.nonzero(data.labels == label).flatten().numpy()
                if len(members) < task.ipc:
                    raise ConfigError(
                        f"class {label} has {len(members)} training graphs, but {task.ipc} are asked for; lower --ipc"
                    )
                picked += members[herd(features[members], task.ipc)].tolist()
                progress.update(label + 1)
        index = torch.tensor(picked)
        return Distilled(Graphs.of(data.graphs.pick(index)), HardLabels(data.labels[index]))

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Random graphs."""
        return (random_control(self.protocol),)


Herding.PRESETS = {"graphs": Herding()}


def tree_features(batch: GraphBatch, hops: int) -> csr_array:
    """Returns the features of ``Herding`` of all graphs; (G, trees of all depths), rows of length 1."""
    colours = refine(batch, hops)
    owners = batch.owners.numpy()
    share = 1 / batch.sizes.numpy()[owners] / (hops + 1)
    return hstack(
        [
            csr_array((share, (owners, level)), shape=(len(batch), len(first))).sqrt()  # equal places are added up
            for level, first in zip(colours.levels, colours.firsts, strict=True)
        ],
        format="csr",
    )


def herd(features: csr_array, count: int) -> list[int]:
    """Returns ``count`` different rows, each chosen to bring the sum so far nearest to as many times the mean."""
    mean = np.asarray(features.mean(axis=0)).ravel()
    wanted = mean.copy()
    chosen: list[int] = []
    for _ in range(count):
        gain = features @ wanted
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        wanted += mean - features[[chosen[-1]]].toarray().ravel()
    return chosen
