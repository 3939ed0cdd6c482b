"""Kinds of evaluation protocols: everything that decides a score but the set and the seed, as data with a hash."""

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.tape import TapeRecipe
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from dd_bench.models.convnet import usual_depth
from dd_bench.sets import digest_json
from dd_bench.settings import as_settings, later

# Each grows when the training code changes what a protocol that counts epochs, or steps, gives for the same seed
_TRAINERS = {"epochs": 1, "steps": 2, "graphs": 1, "tape": 1, "transfer": 1}


class _Protocol:
    """What all kinds do alike."""

    architectures: tuple[str, ...]

    def students_for(self, spec: DatasetSpec | GraphSpec) -> tuple[str, ...]:
        """Returns the architectures that ``spec`` is judged with unless others are asked for."""
        return self.architectures

    def as_json(self, *, described: bool = True) -> dict[str, Any]:
        """Returns the protocol as JSON values, with or without what only describes it."""
        facts: dict[str, Any] = as_settings(self)
        return facts if described else {k: v for k, v in facts.items() if k not in ("name", "summary", "architectures")}


@dataclass(frozen=True)
class EvalProtocol(_Protocol):
    """How students are trained on a set of images.

    Attributes:
        name: what people type.
        summary: one sentence for boards and ``ddbench list protocols``.
        architectures: the students trained unless others are asked for; the first is the board's main one.
            ``convnet`` stands for the ConvNet of the images' size, see ``students_for``.
        recipe: the training.
        labels: which labels students get: ``stored`` (hard labels by cross-entropy, soft ones by distillation),
            ``class`` (the class each image was made for, whatever else is stored), or ``teachers`` (the mean logits of
            the set's own teachers on every augmented and mixed batch).
        temperature: of distillation, or None for the set's own.
        full_epochs: epochs on all real data when ``full`` is judged beside the sets (the same batch, optimizer and
            augmentation); 0: ``full`` is not judged under this protocol.
        learned_lr: whether a set's own learning rate replaces the recipe's; sets without one keep the recipe's.
        whiten: whether ZCA, fitted on the training split, is each student's first layer in the normaliser's place.
            Augmentation acts behind it, as published.

    Raises:
        ConfigError: if teachers, which read pixels, would have to label whitened images.
    """

    name: str
    summary: str
    architectures: tuple[str, ...]
    recipe: TrainingRecipe
    labels: Literal["stored", "class", "teachers"] = "stored"
    temperature: float | None = None
    full_epochs: int = 0
    learned_lr: bool = later(False)
    whiten: bool = later(False)

    def __post_init__(self) -> None:
        if self.whiten and self.labels == "teachers":
            raise ConfigError("whiten is set and labels are teachers, which read pixels; expected only one of the two")

    @property
    def id(self) -> str:
        """The hash of everything that can move a score; names, summaries and default architectures cannot."""
        trainer = _TRAINERS["steps" if self.recipe.steps else "epochs"]
        return digest_json({"trainer": trainer} | self.as_json(described=False))[:8]

    def students_for(self, spec: DatasetSpec | GraphSpec) -> tuple[str, ...]:
        """Returns the architectures that images of ``spec`` are judged with unless others are asked for.

        ``convnet`` becomes the ConvNet with instance normalisation whose depth fits the images, at full width or, for
        ``digits`` and subsets, which are made for CPUs, at a quarter of it.

        Raises:
            ConfigError: if a ConvNet should be fitted to graphs.
        """
        if "convnet" not in self.architectures:
            return self.architectures
        if not isinstance(spec, DatasetSpec):
            raise ConfigError(f"protocol {self.name} is for images, {spec.name} holds graphs: use the protocol graphs")
        width = "-x0.25" if spec.name == "digits" or "@" in spec.name else ""
        fitting = f"convnet{usual_depth(spec)}{width}"
        return tuple(fitting if name == "convnet" else name for name in self.architectures)


@dataclass(frozen=True)
class GraphProtocol(_Protocol):
    """How graph students are trained on a set, and how each chooses between candidates on the validation split.

    A student trains one network for each pool and learning rate, all from the same initial weights and on the same
    batches. The validation score (ROC-AUC for two classes, else accuracy) is read at some steps; the best network at
    its best step is the student, and it alone is scored on the test split. Every set gets the same budget.

    Attributes:
        name: what people type.
        summary: one sentence for boards and ``ddbench list protocols``.
        architectures: the students trained unless others are asked for; the first is the board's main one.
        steps: of Adam, for every candidate on every set. Records of trees are one full batch.
        batch: graphs a step; sets of at most as many are one full batch.
        weight_decay: L2.
        pools: how root states become one vector, the candidates' first axis; ties go to the first listed.
        lrs: learning rates, their second axis.
        checkpoints: steps after which the validation score is read, ascending to at most ``steps``; ties go to the
            fewest.
        labels: what students get; hard classes by cross-entropy, weighted where the set gives weights.

    Raises:
        ConfigError: for a number out of range, an empty axis, or checkpoints that do not ascend.
    """

    name: str
    summary: str
    architectures: tuple[str, ...]
    steps: int
    batch: int = 64
    weight_decay: float = 5e-4
    pools: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")
    lrs: tuple[float, ...] = (1e-2, 1e-3)
    checkpoints: tuple[int, ...] = ()
    labels: Literal["class"] = "class"

    def __post_init__(self) -> None:
        known = {"sum", "mean"}
        for name, sound, expected in (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch", self.batch >= 1, "at least 1"),
            ("weight_decay", 0 <= self.weight_decay < float("inf"), "at least 0"),
            ("pools", bool(self.pools) and known.issuperset(self.pools), "sum, mean or both"),
            ("lrs", bool(self.lrs) and all(0 < lr < float("inf") for lr in self.lrs), "some, each more than 0"),
            (
                "checkpoints",
                bool(self.checkpoints)
                and list(self.checkpoints) == sorted(set(self.checkpoints))
                and self.checkpoints[0] >= 1
                and self.checkpoints[-1] <= self.steps,
                f"some, ascending from 1 to at most {self.steps}",
            ),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")

    @property
    def candidates(self) -> list[tuple[Literal["sum", "mean"], float]]:
        """The (pool, learning rate) that each student tries, in the order in which ties are decided."""
        return list(product(self.pools, self.lrs))

    @property
    def id(self) -> str:
        """The hash of everything that can move a score; names, summaries and default architectures cannot."""
        return digest_json({"trainer": _TRAINERS["graphs"], "graphs": self.as_json(described=False)})[:8]


@dataclass(frozen=True)
class TapeProtocol(_Protocol):
    """How students replay a tape: the augmentation that was recorded with the labels, batch by batch.

    A set without a tape of its own gets one, drawn for each student: its labels, hard or soft, are mixed as the images
    are. So a set is judged under the same augmentation and the same number of batches whatever its labels.

    Attributes:
        name: what people type.
        summary: one sentence for boards and ``ddbench list protocols``.
        architectures: as in ``EvalProtocol``.
        training: optimizer and length.
        tape: of sets that have none.
        temperature: of distillation, or None for the set's own.
        full_epochs: epochs on all real data when ``full`` is judged beside the sets; 0: it is not judged.
        labels: what students get; those that a set stores.
    """

    name: str
    summary: str
    architectures: tuple[str, ...]
    training: TapeTraining
    tape: TapeRecipe
    temperature: float | None = 20.0
    full_epochs: int = 0
    labels: Literal["stored"] = "stored"

    @property
    def id(self) -> str:
        """The hash of everything that can move a score; names, summaries and default architectures cannot."""
        return digest_json({"trainer": _TRAINERS["tape"], "tape": self.as_json(described=False)})[:8]


@dataclass(frozen=True)
class TransferProtocol(_Protocol):
    """How students learn from a set of one data set, and are then judged on another.

    A network is trained on the set: on features by mean squared error, on classes by cross-entropy, on logits by
    distillation. Its body then goes two ways on the target data set, with labels of the training split: a linear probe
    on its features for each share of the labels, and fine-tuning of everything with all of them, which is the headline.
    A student that has seen no set (``scratch``) differs only in where its body begins.

    Attributes:
        name: what people type.
        summary: one sentence for boards and ``ddbench list protocols``.
        architectures: as in ``EvalProtocol``.
        source: base name of the data sets whose sets are judged, whole or cut down.
        target: data set that students are judged on; its images take the size of the source's.
        features: the training on features.
        classes: the training on labels.
        tuning: the fine-tuning.
        probes: shares of the target's labels, ascending in (0, 1]; at least one image a class.
        probe_draws: how often fewer than all labels are drawn; a student's score is their mean.
        probe_l2: weight of half the squared weights beside the mean cross-entropy; features are centred, with mean
            square 1.
        full_epochs: epochs on all real source images when ``full`` is judged beside the sets; 0: it is not judged.
        labels: what students get; those that a set stores.
        taped: the training on labels of a tape, at the set's own temperature.

    Raises:
        ConfigError: for probes or a weight out of range.
    """

    name: str
    summary: str
    architectures: tuple[str, ...]
    source: str
    target: str
    features: TrainingRecipe
    classes: TrainingRecipe
    tuning: TrainingRecipe
    probes: tuple[float, ...] = (0.01, 0.05, 1.0)
    probe_draws: int = 10
    probe_l2: float = 0.01
    full_epochs: int = 0
    labels: Literal["stored"] = "stored"
    taped: TapeTraining = later(TapeTraining(steps=2100))

    def __post_init__(self) -> None:
        ascending = list(self.probes) == sorted(set(self.probes))
        if not (self.probes and ascending and self.probes[0] > 0 and self.probes[-1] <= 1):
            raise ConfigError(f"probes are {list(self.probes)}; expected shares of the labels, ascending in (0, 1]")
        if self.probe_draws < 1:
            raise ConfigError(f"probe_draws is {self.probe_draws}; expected at least 1")
        if not 0 < self.probe_l2 < float("inf"):
            raise ConfigError(f"probe_l2 is {self.probe_l2}; expected a positive number")

    @property
    def id(self) -> str:
        """The hash of everything that can move a score; names, summaries and default architectures cannot."""
        return digest_json({"trainer": _TRAINERS["transfer"], "transfer": self.as_json(described=False)})[:8]


ImageProtocol = EvalProtocol | TapeProtocol | TransferProtocol
AnyProtocol = ImageProtocol | GraphProtocol
