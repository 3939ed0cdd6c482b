"""From a command to a stored set: one lock, one run, provenance, and the same work never twice."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from dd_bench import __version__
from dd_bench.environment import describe_device, library_versions, peak_memory_bytes
from dd_bench.errors import ConfigError
from dd_bench.files import locked
from dd_bench.mirror import Mirror
from dd_bench.run import Run, drop_run, open_run
from dd_bench.sets import Control, Provenance, SyntheticSet, recipe_id
from dd_bench.store import Store
from dd_bench.stored import StoredSet, open_set
from synth import find
from synth.base import ControlPlan, Distilled, Synthesizer, Task, config_of, configure


@dataclass(frozen=True)
class Order:
    """What is to be made: a configured method under its name, and how people call the configuration.

    The configuration is brought into one form, so that ``temperature=30`` in Python and ``30.0`` from a command line or
    a manifest are one recipe, with the same teachers.
    """

    method: str
    preset: str
    synthesizer: Synthesizer

    def __post_init__(self) -> None:
        expected = find(self.method)
        if type(self.synthesizer) is not expected:
            raise ConfigError(
                f"{self.method} is {expected.__name__}, but the order holds {type(self.synthesizer).__name__}; "
                "a set must bear the name of what made it"
            )
        object.__setattr__(self, "synthesizer", configure(expected, config_of(self.synthesizer)))


def distil(order: Order, task: Task, store: Store, *, mirror: Mirror | None = None) -> tuple[StoredSet, bool]:
    """Returns the stored set of ``order`` on ``task``, and whether it had to be made.

    A set that is in the store is not made again. One that another process is making is waited for. A killed run goes
    on from its last checkpoint.
    """
    provenance = describe(order, task)
    with locked(f"set {provenance.set_id}"):
        name = f"{order.method}-{provenance.set_id}"
        if store.has(provenance):
            drop_run(name)
            return open_set(store.folder(provenance)), False
        with open_run(name, mirror=mirror) as run:
            distilled = order.synthesizer.synthesize(task, run)
            stored = store.write(_complete(distilled, provenance, order, task, run))
    return stored, True


def describe(order: Order, task: Task) -> Provenance:
    """Returns the part of the provenance that is known before the work: it names the set and its controls."""
    return Provenance(
        method=order.method,
        preset=order.preset,
        config=config_of(order.synthesizer),
        dataset=task.data.spec.name,
        fingerprint=task.data.fingerprint,
        ipc=task.ipc,
        seed=task.seed,
        recipe=_recipe(order.method, order.synthesizer, task),
        controls=controls_of(order.synthesizer.controls(task), task, order.preset),
    )


def order_control(control: Control) -> Order:
    """Returns the order for a control that a set's provenance names."""
    synthesizer = configure(find(control.method), control.config)
    return Order(control.method, control.preset, synthesizer)


def controls_of(plans: Iterable[ControlPlan], task: Task, preset: str) -> tuple[Control, ...]:
    """Returns what a set's provenance says of the sets to compare with; ``preset`` is the set's own."""
    controls = []
    for plan in plans:
        control = configure(find(plan.method), plan.config)
        controls.append(
            Control(
                method=plan.method,
                preset=plan.preset or preset,
                labels=plan.labels,
                config=config_of(control),
                recipe=_recipe(plan.method, control, task),
                seeds=plan.seeds,
            )
        )
    return tuple(controls)


def _recipe(method: str, synthesizer: Synthesizer, task: Task) -> str:
    return recipe_id(
        method=method,
        version=synthesizer.version,
        config=config_of(synthesizer),
        dataset=task.data.spec.name,
        fingerprint=task.data.fingerprint,
        ipc=task.ipc,
    )


def _complete(distilled: Distilled, known: Provenance, order: Order, task: Task, run: Run) -> SyntheticSet:
    provenance = replace(
        known,
        parents=distilled.parents,
        ddbench=__version__,
        libraries=library_versions(),
        device=describe_device(task.device),
        threads=torch.get_num_threads(),
        wall_seconds=run.seconds,
        teacher_seconds=distilled.teacher_seconds,
        peak_memory_bytes=peak_memory_bytes(task.device),
    )
    return SyntheticSet(
        payload=distilled.payload,
        targets=distilled.targets,
        provenance=provenance,
        native_protocol=order.synthesizer.protocol,
        suggested_lr=distilled.suggested_lr,
    )
