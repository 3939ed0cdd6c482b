"""What a synthesizer gets, what it is, and what it gives back."""

from collections.abc import Iterator, Mapping
from dataclasses import Field, asdict, dataclass
from functools import cache
from math import isfinite, log
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError

from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.data.names import plain_name
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.run import Run
from dd_bench.sets import Payload
from dd_bench.settings import as_settings
from dd_bench.targets import LabelKind, Targets

DRAWS = (0, 1, 2, 3, 4)  # seeds of controls that cost next to nothing; the draw is most of their noise


@dataclass(frozen=True)
class Task:
    """What to distil: the training split of a data set, and how much of it may remain. There is no test split in it.

    Attributes:
        data: the training split, of images or of graphs.
        ipc: nominal instances (images, graphs) a class, at least 1.
        seed: the seed of every draw of the synthesis.
        device: where to compute.
    """

    data: ImageData | GraphData
    ipc: int
    seed: int
    device: torch.device

    def __post_init__(self) -> None:
        if self.ipc < 1:
            raise ConfigError(f"ipc is {self.ipc}; expected at least one instance a class")

    @property
    def images(self) -> ImageData:
        """The data of a method that distils images.

        Raises:
            ConfigError: if the data set holds graphs.
        """
        if isinstance(self.data, ImageData):
            return self.data
        raise ConfigError(
            f"data set {self.data.spec.name} holds graphs, but this method distils images; for graphs there are "
            "mirage, herding and random"
        )

    @property
    def graphs(self) -> GraphData:
        """The data of a method that distils graphs.

        Raises:
            ConfigError: if the data set holds images.
        """
        if isinstance(self.data, GraphData):
            return self.data
        raise ConfigError(
            f"data set {self.data.spec.name} holds images, but this method distils graphs; name a graph data set, for "
            "example --dataset digits-graph (ddbench list datasets)"
        )


@dataclass(frozen=True)
class ControlPlan:
    """A set that must stand beside an entry.

    Attributes:
        method: name in ``synth.methods()``.
        labels: the kind of its labels.
        config: settings of that method as nested dicts; what is absent has the method's default.
        seeds: the seeds to make it with.
        preset: what people call its configuration; empty: as the entry's.
    """

    method: str
    labels: LabelKind
    config: Mapping[str, Any]
    seeds: tuple[int, ...]
    preset: str = ""


def random_control(
    protocol: str, *, teachers: Any = None, tape: Any = None, target: Any = None, preset: str = "", **settings: Any
) -> ControlPlan:
    """Returns the control every entry needs: ``DRAWS`` of random real images, judged under ``protocol``.

    With a ``target`` (a ``TargetPlan``) it has features. Else labels are hard without ``teachers`` (a ``TeacherPlan``),
    those of a tape with a ``tape`` (a ``TapePlan``), and otherwise the teachers' logits with ``settings``
    (``temperature``, ``label_dtype``). ``settings`` may also say ``times``. A tape names its preset itself.
    """
    if target is not None:
        config = {"protocol": protocol, "target": as_settings(target), **settings}
        return ControlPlan("random", "features", config, seeds=DRAWS, preset=preset)
    if tape is not None:
        preset = tape.words
        teachers, tape = tape.by(teachers)
        settings["tape"] = as_settings(tape)
    labels: LabelKind = "hard" if teachers is None else "soft" if tape is None else "taped"
    config = {"protocol": protocol, "teachers": None if teachers is None else as_settings(teachers), **settings}
    return ControlPlan("random", labels, config, seeds=DRAWS, preset=preset)


@dataclass(frozen=True)
class Distilled:
    """What a synthesizer gives back; the pipeline adds the provenance that only it knows (time, versions, device).

    ``parents`` are the ids of the teachers that shaped or labelled the set; ``teacher_seconds`` what they cost.
    """

    payload: Payload
    targets: Targets
    parents: tuple[str, ...] = ()
    teacher_seconds: float = 0.0
    suggested_lr: float | None = None


class Synthesizer(Protocol):
    """A method: a frozen dataclass whose fields are its hyperparameters, one sentence each.

    ``version`` grows with every change that moves what the same configuration makes. ``PRESETS`` are complete
    configurations by name; a variant of a method may inherit them. ``default_dataset`` needs no download.
    ``protocol`` names the evaluation that ``ddbench eval`` uses when not told otherwise.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    default_dataset: ClassVar[str]
    version: ClassVar[int]
    PRESETS: ClassVar[Mapping[str, "Synthesizer"]]

    @property
    def protocol(self) -> str: ...  # noqa: D102

    @staticmethod
    def preset_for(dataset: str) -> str:
        """Returns the name of the preset for a data set (``digits``, ``cifar10``, ``cifar10@200`` …)."""

    def synthesize(self, task: Task, run: Run) -> Distilled:
        """Returns the set; long loops go through ``run.steps``, so that a killed process loses little."""

    def controls(self, task: Task) -> tuple[ControlPlan, ...]:
        """Returns the sets to compare with; for a method's entry, random real images with the same labels first."""


S = TypeVar("S", bound=Synthesizer)


def config_of(synthesizer: Synthesizer) -> dict[str, Any]:
    """Returns the configuration as JSON values (tuples as lists); later fields only where they are not as before."""
    return TypeAdapter(dict[str, Any]).dump_python(as_settings(synthesizer), mode="json")  # type: ignore[no-any-return]


def configure(method: type[S], config: Mapping[str, Any]) -> S:
    """Returns the synthesizer with a configuration in the form of ``config_of``; absent fields have their defaults.

    Raises:
        UnknownNameError: if there is no such field.
        ConfigError: if a field is of the wrong type, out of range, or not finite.
    """
    try:
        made: S = _adapter(method).validate_python(dict(config))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"]) or method.__name__
        raise ConfigError(f"{where}: {problem['msg']} (found {problem['input']!r})") from error
    known = dict(_leaves(asdict(made)))
    for path, value in known.items():
        if isinstance(value, float) and not isfinite(value):
            raise ConfigError(f"{path} is {value}; expected a finite number")
    for path in sorted(set(dict(_leaves(config))) - set(known)):  # pydantic passes over them in silence
        raise UnknownNameError("setting", path, known)
    return made


@cache  # it takes milliseconds to make, which every command would spend several times
def _adapter(method: type[S]) -> TypeAdapter[S]:
    return TypeAdapter(method)


def choose_preset(method: type[S], name: str | None, dataset: str, ipc: int | None = None) -> tuple[str, S]:
    """Returns the preset ``name``, or the one for ``dataset``, with its name.

    Where a preset has a version for the data set, or for that which it is a part of (``paper-nci1`` beside ``paper``),
    its name stands for that; a folder of images has the versions for its name (``imagefolder:imagenette:224``). Where
    it has versions for sizes (``small-ipc1``, ``small-ipc10``), it stands for the one whose ipc is nearest in ratio.

    A preset that ``method`` inherits becomes one of ``method`` itself: INFER's controls share INFER's presets.

    Raises:
        UnknownNameError: if the method has no such preset.
    """
    name = name or method.preset_for(dataset)
    for stem in (f"{name}-{dataset}", f"{name}-{plain_name(dataset)}", name):
        sizes = {int(size): stem + mark + size for known in method.PRESETS
                 for start, mark, size in [known.rpartition("-ipc")] if start == stem and size.isdecimal()}  # fmt: skip
        if stem not in method.PRESETS and sizes and ipc is not None:
            stem = sizes[min(sizes, key=lambda size: (abs(log(size / ipc)), size))]
        if stem in method.PRESETS:
            return stem, configure(method, config_of(method.PRESETS[stem]))
    raise UnknownNameError("preset", name, method.PRESETS)


def override(synthesizer: S, settings: Mapping[str, str]) -> S:
    """Returns the synthesizer with typed overrides, ``{"steps": "50", "teachers.recipe.epochs": "3"}``.

    Values are read as the field's own type: numbers, true/false, words, comma-separated lists.

    Raises:
        UnknownNameError: for a field that does not exist. ConfigError: for a value of the wrong type.
    """
    config: dict[str, Any] = TypeAdapter(dict[str, Any]).dump_python(
        asdict(synthesizer), mode="json"
    )  # with all fields
    for path, text in settings.items():
        node = config
        *parents, last = path.split(".")
        for part in parents:
            if not isinstance(node.get(part), dict):
                raise UnknownNameError("setting", path, dict(_leaves(config)))
            node = node[part]
        if last not in node or isinstance(node[last], dict):
            raise UnknownNameError("setting", path, dict(_leaves(config)))
        node[last] = [item for item in text.split(",") if item] if isinstance(node[last], list) else text
    return configure(type(synthesizer), config)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings of a nested configuration, each with its dotted path."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
