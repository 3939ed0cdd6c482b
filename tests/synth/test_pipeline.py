"""From an order to a stored set: once, in full, and with everything that is known about it."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dd_bench
from dd_bench.environment import library_versions
from dd_bench.errors import ConfigError, InvalidSetError
from dd_bench.networks import load_network
from dd_bench.run import Run
from dd_bench.sets import digest_json, recipe_id
from dd_bench.store import Store
from synth.base import Distilled, Synthesizer, Task, config_of
from synth.coreset import Random
from synth.infer import BaseOnly, Infer, ScrambledOffsets
from synth.parts.teachers import TeacherPlan
from synth.pipeline import Order, describe, distil, order_control
from tests.conftest import Interrupt, at


@pytest.fixture
def order(infer: Infer) -> Order:
    return Order("infer", "tiny", infer)


@pytest.fixture
def syntheses(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Collects the tasks of all syntheses by INFER."""
    tasks: list[Task] = []
    synthesize = Infer.synthesize

    def spy(self: Infer, task: Task, run: Run) -> Distilled:
        tasks.append(task)
        return synthesize(self, task, run)

    monkeypatch.setattr(Infer, "synthesize", spy)
    return tasks


# --- what is known of a set ------------------------------------------------------------------------------------------


def test_provenance_is_complete(order: Order, task: Task, store: Store) -> None:
    stored, made = distil(order, replace(task, seed=3), store)
    assert made
    origin = stored.provenance
    assert (origin.method, origin.preset, origin.config) == ("infer", "tiny", config_of(order.synthesizer))
    assert (origin.dataset, origin.fingerprint) == ("blobs", task.data.fingerprint)
    assert (origin.ipc, origin.seed) == (4, 3)
    assert origin.recipe == recipe_id(
        method="infer", version=Infer.version, config=origin.config, dataset="blobs",
        fingerprint=task.data.fingerprint, ipc=4,
    )  # fmt: skip
    assert origin.controls == describe(order, replace(task, seed=3)).controls
    assert len(origin.controls) == 4
    facts = [load_network(parent, task.data.spec)[1] for parent in origin.parents]
    assert [fact.architecture for fact in facts] == list(order.synthesizer.teachers.architectures)  # type: ignore[attr-defined]
    assert origin.teacher_seconds == pytest.approx(sum(fact.seconds for fact in facts))
    assert origin.wall_seconds > 0
    assert origin.ddbench == dd_bench.__version__
    assert origin.libraries == library_versions()
    assert {"python", "torch", "ddbench"} <= set(origin.libraries)
    assert origin.device.startswith("cpu (")
    assert origin.threads == torch.get_num_threads()
    assert origin.peak_memory_bytes > 10**7
    synthetic = stored.load()
    assert (synthetic.native_protocol, synthetic.suggested_lr) == ("quick", None)
    assert stored.id == origin.set_id == digest_json({"recipe": origin.recipe, "seed": 3})[:12]
    assert stored.path == store.root / "blobs" / "infer" / "ipc4" / stored.id


def test_the_id_is_known_before_the_work(order: Order, task: Task, store: Store) -> None:
    known = describe(order, task)
    assert (known.parents, known.wall_seconds, known.device) == ((), 0.0, "")
    assert distil(order, task, store)[0].id == known.set_id


def test_the_id_depends_on_recipe_and_seed(order: Order, infer: Infer, task: Task) -> None:
    data = task.data
    others = [
        (order, replace(task, seed=1)),
        (order, replace(task, ipc=5)),
        (order, replace(task, data=replace(data, fingerprint="0" + data.fingerprint[1:]))),
        (order, replace(task, data=replace(data, spec=replace(data.spec, name="blobs@40")))),
        (Order("infer", "tiny", replace(infer, temperature=4.0)), task),
        (Order("infer", "tiny", replace(infer, inversion=replace(infer.inversion, steps=4))), task),
        (Order("infer", "tiny", replace(infer, protocol="hard")), task),
        (Order("infer-base", "tiny", BaseOnly(infer.teachers, infer.inversion, protocol="quick")), task),
        (Order("infer-scrambled", "tiny", ScrambledOffsets(infer.teachers, infer.inversion, protocol="quick")), task),
    ]
    ids = [describe(each, its_task).set_id for each, its_task in [(order, task), *others]]
    assert len(set(ids)) == len(ids)
    recipes = [describe(each, its_task).recipe for each, its_task in [(order, task), *others]]
    assert recipes[0] == recipes[1]  # seeds repeat an entry
    assert len(set(recipes[1:])) == len(others)


def test_the_id_depends_on_the_version(order: Order, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(order, task)
    monkeypatch.setattr(Random, "version", Random.version + 1)
    after = describe(order, task)
    assert after.set_id == before.set_id
    assert after.controls[0].recipe != before.controls[0].recipe
    monkeypatch.setattr(Infer, "version", Infer.version + 1)
    assert describe(order, task).set_id != before.set_id


def test_the_id_depends_on_nothing_else(order: Order, infer: Infer, task: Task) -> None:
    renamed, elsewhere = Order("infer", "other", infer), replace(task, device=torch.device("meta"))
    assert describe(renamed, elsewhere).set_id == describe(order, task).set_id


def test_whole_numbers_are_numbers(task: Task, plan: TeacherPlan) -> None:
    """``4`` written in Python and ``4.0`` read from JSON make one set with one and the same teachers."""
    whole = replace(plan, recipe=replace(plan.recipe, lr=1, weight_decay=0))
    exact = replace(plan, recipe=replace(plan.recipe, lr=1.0, weight_decay=0.0))
    one, other = Order("infer", "a", Infer(whole, temperature=4)), Order("infer", "a", Infer(exact, temperature=4.0))
    assert describe(one, task) == describe(other, task)
    assert repr(one.synthesizer) == repr(other.synthesizer)
    (control, *_) = describe(one, task).controls
    assert order_control(control).synthesizer.teachers == one.synthesizer.teachers  # type: ignore[attr-defined]


def test_control_orders(order: Order, task: Task) -> None:
    for control in describe(order, task).controls:
        again = order_control(control)
        assert (again.method, again.preset) == (control.method, "tiny")
        assert config_of(again.synthesizer) == control.config
        assert describe(again, task).recipe == control.recipe


@pytest.mark.parametrize(
    ("method", "synthesizer", "message"),
    [
        ("infer-base", Infer(), "infer-base is BaseOnly, but the order holds Infer; a set must bear the name"),
        ("infer", BaseOnly(), "infer is Infer, but the order holds BaseOnly"),
        ("random", Infer(), "random is Random, but the order holds Infer"),
    ],
)
def test_rejects_orders_under_another_name(method: str, synthesizer: Synthesizer, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Order(method, "x", synthesizer)


# --- the same work never twice ---------------------------------------------------------------------------------------


def test_the_second_time_is_a_no_op(order: Order, task: Task, store: Store, syntheses: list[Task]) -> None:
    stored, made = distil(order, task, store)
    content = {path.name: path.read_bytes() for path in stored.path.iterdir()}
    again, made_again = distil(order, task, store)
    assert (made, made_again, len(syntheses)) == (True, False, 1)
    assert again == stored
    assert {path.name: path.read_bytes() for path in stored.path.iterdir()} == content


def test_two_at_once_make_one(order: Order, task: Task, store: Store, syntheses: list[Task]) -> None:
    results: list[Any] = []
    threads = [threading.Thread(target=lambda: results.append(distil(order, task, store))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(made for _, made in results) == [False, False, True]
    assert len({stored.sha256 for stored, _ in results}) == len(syntheses) == 1


def test_the_run_folder_goes_when_the_set_is_stored(
    order: Order, task: Task, store: Store, own_home: Path, interrupted: Interrupt
) -> None:
    with interrupted(at("offsets convnet2-batch-x0.125 1-2 of 2", 1)):
        distil(order, task, store)
    (folder,) = (own_home / "runs").glob("infer-*")
    assert folder.name == f"infer-{describe(order, task).set_id}"
    assert len(list(folder.glob("offsets_*"))) == 2
    assert store.list() == ()
    distil(order, task, store)
    assert list((own_home / "runs").iterdir()) == []


def test_a_failure_to_store_loses_no_work(
    order: Order, task: Task, store: Store, own_home: Path, syntheses: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(OSError, match="No space"):
            distil(order, task, store)
    (folder,) = (own_home / "runs").glob("infer-*")
    inversions: list[object] = []
    with monkeypatch.context() as patch:
        patch.setattr("synth.infer.invert", lambda *_, **__: inversions.append(1))
        stored, made = distil(order, task, store)
    assert (made, inversions, len(syntheses)) == (True, [], 2)
    assert stored.provenance.wall_seconds > 0
    assert not folder.exists()


def test_seconds_of_killed_processes_count(
    order: Order, task: Task, store: Store, interrupted: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted(at("offsets convnet2-batch-x0.125 1-2 of 2", 1)):
        distil(order, task, store)
    seconds: list[float] = []

    class Watched(Run):
        def discard(self, *, reports: Path | None = None) -> None:
            seconds.append(self.seconds)
            super().discard(reports=reports)

    monkeypatch.setattr("dd_bench.run.Run", Watched)
    stored = distil(order, task, store)[0]
    assert stored.provenance.wall_seconds == seconds[-1]
    assert stored.provenance.wall_seconds < 60


def test_a_damaged_set_is_told_and_not_made_again(
    order: Order, task: Task, store: Store, syntheses: list[Task]
) -> None:
    stored = distil(order, task, store)[0]
    (stored.path / "tensors.safetensors").write_bytes(b"short")
    with pytest.raises(InvalidSetError, match="delete its folder and synthesise it again"):
        distil(order, task, store)
    assert len(syntheses) == 1
