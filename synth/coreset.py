"""Random real images and graphs, the control of everything: they cost nothing, and every method must beat them.

ddbench synth --method random --ipc 10
ddbench synth --method random --ipc 10 --preset digits-soft
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import GraphData
from dd_bench.errors import ConfigError
from dd_bench.graph_sets import Graphs
from dd_bench.run import Run
from dd_bench.settings import later
from dd_bench.targets import HardLabels
from synth.base import ControlPlan, Distilled, Synthesizer, Task
from synth.parts.real_images import Labelling, with_targets
from synth.parts.sampling import sample_images, sample_per_class
from synth.parts.scales import scale_of
from synth.parts.tape_labels import TAPE_PLANS, TapePlan
from synth.parts.target_model import TARGETS, TargetPlan, obtain_target
from synth.parts.teachers import PLANS, TeacherPlan


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
        self._labels()  # refuses what cannot be
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
        if isinstance(task.data, GraphData) and self.teachers is None:
            return Distilled(Graphs.of(task.data.graphs.pick(picked)), HardLabels(task.data.labels[picked]))
        return self._labels().label(picked, task, run)

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """None: this is the control."""
        return ()

    def _labels(self) -> Labelling:
        return Labelling(self.teachers, self.label_dtype, self.temperature, self.tape)


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
    **{
        f"{scale}-features{source}": Random(target=TARGETS[scale], protocol=f"transfer-small{way}")
        for scale in ("small", "medium")
        for source, way in (("", ""), ("-cifar10", "-back"))
    },
    "digits-features": Random(target=TARGETS["digits"], protocol="transfer-digits"),
    "graphs": Random(protocol="graphs"),
}
