"""Evaluation protocols: everything that decides a score but the set and the seed, as data with a hash.

Scores of different protocol ids are different quantities and never share a ranking. To change a protocol is to make
another one: add it under a new name.
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.learn.tape import TapeRecipe
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from dd_bench.models.convnet import usual_depth
from dd_bench.sets import digest_json
from dd_bench.settings import as_settings, later

# Each grows when the training code changes what a protocol that counts epochs, or steps, gives for the same seed
_TRAINERS = {"epochs": 1, "steps": 2, "graphs": 1, "tape": 1}


@dataclass(frozen=True)
class EvalProtocol:
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

    def as_json(self, *, described: bool = True) -> dict[str, Any]:
        """Returns the protocol as JSON values, with or without what only describes it."""
        return _as_json(self, described)


@dataclass(frozen=True)
class GraphProtocol:
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

    def students_for(self, _: DatasetSpec | GraphSpec) -> tuple[str, ...]:
        """Returns the architectures, the same for all graphs."""
        return self.architectures

    def as_json(self, *, described: bool = True) -> dict[str, Any]:
        """Returns the protocol as JSON values, with or without what only describes it."""
        return _as_json(self, described)


@dataclass(frozen=True)
class TapeProtocol:
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

    def students_for(self, spec: DatasetSpec | GraphSpec) -> tuple[str, ...]:
        """Returns the architectures that images of ``spec`` are judged with unless others are asked for."""
        return self.architectures

    def as_json(self, *, described: bool = True) -> dict[str, Any]:
        """Returns the protocol as JSON values, with or without what only describes it."""
        return _as_json(self, described)


ImageProtocol = EvalProtocol | TapeProtocol
AnyProtocol = ImageProtocol | GraphProtocol


def _as_json(protocol: AnyProtocol, described: bool) -> dict[str, Any]:
    facts: dict[str, Any] = as_settings(protocol)
    return facts if described else {k: v for k, v in facts.items() if k not in ("name", "summary", "architectures")}


# INFER's post-evaluation (zhangxin-xd/UFC, ufc_validation/val_static.py); its length differs by protocol
_INFER_STUDENT = TrainingRecipe(
    epochs=400, batch=64, optimizer="adamw", lr=1e-3, weight_decay=0.01, mix="mixup", mix_alpha=0.8
)

_HARD = EvalProtocol(
    name="hard",
    summary="Class labels; 1000 epochs of SGD with DSA, a tenth of the rate from the middle on "
    "(the DC/DSA/DM evaluator).",
    architectures=("convnet3",),
    # Theirs, and MTT's, runs one epoch more, at the low rate, and MTT's DSA aligns corners
    recipe=TrainingRecipe(epochs=1000, batch=256, lr=0.01, schedule="half", augment="dsa"),
    labels="class",
    full_epochs=60,
)
_MTT = replace(
    _HARD,
    name="mtt",
    summary="Class labels; 1000 epochs of SGD with DSA at the rate that the set learned, else 0.01, a tenth from the "
    "middle on (MTT's evaluator).",
    architectures=("convnet",),
    learned_lr=True,
)

_FKD = TapeProtocol(
    name="fkd-cutmix",
    summary="Labels of a recorded tape of crops, flips and CutMix; 300 epochs of AdamW, batch 16 in groups of 8, KL at "
    "temperature 20, the rate falling to 0 (CV-DD's evaluator; last epoch).",
    architectures=("resnet18",),
    training=TapeTraining(epochs=300),
    tape=TapeRecipe(epochs=300),
)

PROTOCOLS: dict[str, AnyProtocol] = {
    protocol.name: protocol
    for protocol in (
        _HARD,
        _MTT,
        replace(
            _MTT,
            name="mtt-zca",
            summary="Class labels; images whitened by ZCA of the training split, then 1000 epochs of SGD with DSA at "
            "the rate that the set learned, else 0.01, a tenth from the middle on (MTT's evaluator with ZCA).",
            whiten=True,
        ),
        EvalProtocol(
            name="infer-static",
            summary="Stored labels, interpolated by mixup; 400 epochs of AdamW, KL at temperature 30 "
            "(INFER's evaluator; last epoch).",
            architectures=("resnet18", "convnet3-batch"),
            recipe=_INFER_STUDENT,
            temperature=30.0,
        ),
        EvalProtocol(
            name="infer-dyn",
            summary="The set's teachers label every mixed batch; 80 epochs of AdamW, KL at temperature 30 (INFER+Dyn; "
            "teachers count as bytes).",
            architectures=("resnet18", "convnet3-batch"),
            recipe=replace(_INFER_STUDENT, epochs=80),
            labels="teachers",
            temperature=30.0,
        ),
        EvalProtocol(
            name="quick",
            summary="Stored labels, interpolated by mixup; 800 steps of AdamW on a narrow ConvNet, each on 64 images "
            "whatever the set's size. Made for a CPU.",
            architectures=("convnet3-batch-x0.25",),
            recipe=replace(_INFER_STUDENT, epochs=0, steps=800, channels_last=True),
            full_epochs=40,
        ),
        _FKD,
        replace(
            _FKD,
            name="fkd-cutmix-half",
            summary="As fkd-cutmix, the rate falling to half (CV-DD's eta 2; last epoch).",
            training=replace(_FKD.training, stretch=2.0),
        ),
        replace(
            _FKD,
            name="fkd-quick",
            summary="Labels of a recorded tape, as in fkd-cutmix; 2100 batches of 16 on a narrow ConvNet, whatever the "
            "set's size. Made for a CPU.",
            architectures=("convnet3-batch-x0.25",),
            training=TapeTraining(steps=2100),
            full_epochs=40,
        ),
        GraphProtocol(
            name="graphs",
            summary="Class labels; 400 steps of Adam for each pool (sum, mean) and rate (0.01, 0.001), of which the "
            "validation split chooses one and its length.",
            architectures=("gcn2-x0.5", "gat2-x0.5", "gin2-x0.5"),
            steps=400,
            batch=32,
            checkpoints=(50, 100, 200, 400),
        ),
    )
}


def find_protocol(name: str) -> AnyProtocol:
    """Returns the protocol ``name``, or raises UnknownNameError with the nearest one."""
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
