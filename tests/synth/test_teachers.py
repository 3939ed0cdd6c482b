"""Teachers: trained once, named by all that shapes them, and measured on images they have never seen."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.environment import library_versions
from dd_bench.errors import ConfigError, InvalidSetError, UnknownNameError
from dd_bench.files import sha256_file
from dd_bench.learn.training import TrainingRecipe
from dd_bench.networks import NetworkFacts, load_network, network_folder
from dd_bench.seeding import derive_seed
from dd_bench.settings import as_settings
from synth.base import Task
from synth.parts import teachers as module
from synth.parts.scales import scale_of
from synth.parts.teachers import PLANS, TeacherPlan, accuracy, obtain_teachers, split_held_out
from tests.conftest import Interrupt, at

Names = Callable[[TeacherPlan, Task], list[str]]


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Collects what each training got, and trains."""
    calls = []
    fit = module.fit

    def spy(model: nn.Module, images: Tensor, values: Tensor, **settings: Any) -> None:
        calls.append(SimpleNamespace(images=images[settings["rows"]], values=values, **settings))
        fit(model, images, values, **settings)

    monkeypatch.setattr(module, "fit", spy)
    return calls


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Returns the ids a plan's teachers would have, without training any."""

    def ids(plan: TeacherPlan, task: Task) -> list[str]:
        found: list[str] = []

        def load(network_id: str, _: object) -> tuple[nn.Module, None]:
            found.append(network_id)
            return nn.Identity(), None

        with monkeypatch.context() as patch:
            patch.setattr(module, "has_network", lambda _: True)
            patch.setattr(module, "load_network", load)
            obtain_teachers(plan, task)
        return found

    return ids


def weights(teacher: NetworkFacts) -> bytes:
    return (network_folder(teacher.id) / "weights.safetensors").read_bytes()


# --- what they are ---------------------------------------------------------------------------------------------------


def test_order_and_state(plan: TeacherPlan, task: Task, blobs: ImageData) -> None:
    teachers = obtain_teachers(plan, task)
    assert [teacher.facts.architecture for teacher in teachers] == list(plan.architectures)
    for teacher in teachers:
        assert not any(part.training for part in teacher.model.modules())
        assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
        assert teacher.model(blobs.images[:2].float() / 255).shape == (2, 3)


def test_facts(plan: TeacherPlan, task: Task, own_home: Path) -> None:
    facts = obtain_teachers(plan, task)[1].facts
    assert facts == load_network(facts.id, task.data.spec)[1]  # they are what the manifest says
    assert (facts.dataset, facts.fingerprint) == ("blobs", task.data.fingerprint)
    assert facts.recipe == as_settings(plan.recipe) | {"held_out": plan.held_out}
    assert (facts.seed, facts.held_out_images) == (plan.seed, 12)
    assert facts.seconds > 0
    assert facts.device.startswith("cpu (")
    assert facts.versions == library_versions()
    assert facts.weights_sha256 == sha256_file(network_folder(facts.id) / "weights.safetensors")
    assert not list((own_home / "runs").glob("teacher-*"))  # what only the training needed is gone


def test_they_learn(task: Task) -> None:
    """The generated data are no noise: a dozen epochs lift a narrow network far above one in three."""
    recipe = TrainingRecipe(epochs=12, batch=36, lr=0.1, augment="none")
    (teacher,) = obtain_teachers(TeacherPlan(("convnet2-batch-x0.125",), recipe, held_out=0.3), task)
    assert teacher.facts.held_out_top1 > 0.7


def test_accuracy_is_measured_on_images_never_trained_on(
    plan: TeacherPlan, task: Task, fits: list[SimpleNamespace]
) -> None:
    teachers = obtain_teachers(replace(plan, held_out=0.25), task)
    every = {image.numpy().tobytes(): row for row, image in enumerate(task.data.images)}
    assert len(every) == 120
    trained = [{every[image.numpy().tobytes()] for image in call.images} for call in fits]
    assert trained[0] == trained[1]  # one slice is held out from all
    held_out = sorted(set(range(120)) - trained[0])
    assert len(held_out) == 30
    for call, teacher in zip(fits, teachers, strict=True):
        rows = [every[image.numpy().tobytes()] for image in call.images]
        assert call.values.equal(torch.eye(3)[task.data.labels[rows]])
        answers = teacher.model(task.data.images[held_out].float() / 255).argmax(1)
        hits = sum(int(a) == int(b) for a, b in zip(answers, task.data.labels[held_out], strict=True))
        assert teacher.facts.held_out_top1 == hits / 30
        assert teacher.facts.held_out_images == 30


def test_accuracy_looks_at_fewer_large_images_at_once() -> None:
    seen: list[int] = []

    class Watched(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(len(pixels))
            return pixels.mean((2, 3))

    images, labels = torch.zeros(130, 2, 128, 128, dtype=torch.uint8), torch.zeros(130, dtype=torch.int64)
    images[:65, 1] = 255
    spec = DatasetSpec("large", (2, 128, 128), 2, (0.5,) * 2, (0.5,) * 2, False, ("a", "b"))
    rows, cpu = torch.arange(130), torch.device("cpu")
    assert accuracy(Watched(), ImageData(spec, images, labels, ""), rows, cpu) == 0.5
    assert seen == [125, 5]
    assert accuracy(Watched(), ImageData(spec, images, labels, ""), rows[:65], cpu) == 0
    assert seen == [125, 5, 65]
    spec, images = replace(spec, image_shape=(2, 8, 8)), images[:, :, :8, :8]
    assert accuracy(Watched(), ImageData(spec, images, labels, ""), rows, cpu) == 0.5
    assert seen == [125, 5, 65, 130]


def test_seeds_of_training(plan: TeacherPlan, task: Task, fits: list[SimpleNamespace]) -> None:
    obtain_teachers(replace(plan, seed=5), task)
    assert [call.seed for call in fits] == [derive_seed("teacher", name, 5) for name in plan.architectures]
    assert len({call.seed for call in fits}) == 2
    obtain_teachers(replace(plan, seed=6), task)
    assert not fits[0].images.equal(fits[2].images)  # the held-out slice is drawn anew, too


# --- the cache -------------------------------------------------------------------------------------------------------


def test_trained_once(plan: TeacherPlan, task: Task, fits: list[SimpleNamespace]) -> None:
    first = obtain_teachers(plan, task)
    second = obtain_teachers(plan, replace(task, ipc=9, seed=3))  # of every ipc and every seed of synthesis
    assert len(fits) == 2
    assert [teacher.facts for teacher in second] == [teacher.facts for teacher in first]
    for one, other in zip(first, second, strict=True):
        state = other.model.state_dict()
        assert all(value.equal(state[name]) for name, value in one.model.state_dict().items())


def test_plans_share_what_they_have_in_common(plan: TeacherPlan, task: Task, fits: list[SimpleNamespace]) -> None:
    obtain_teachers(plan, task)
    obtain_teachers(replace(plan, architectures=(*plan.architectures[::-1], "convnet1-batch-x0.125")), task)
    assert len(fits) == 3


OTHER: dict[str, Any] = {
    "epochs": 3, "batch": 37, "optimizer": "adamw", "lr": 0.051, "schedule": "half", "momentum": 0.8, "nesterov": True,
    "weight_decay": 4e-4, "augment": "dsa", "mix": "mixup", "mix_alpha": 0.7, "bf16": True, "channels_last": True,
    "stretch": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(TrainingRecipe)])
def test_the_id_depends_on_every_field_of_the_recipe(plan: TeacherPlan, task: Task, names: Names, field: str) -> None:
    change = {"epochs": 0, "steps": 8} if field == "steps" else {field: OTHER[field]}
    changed = replace(plan, recipe=replace(plan.recipe, **change))
    assert not set(names(changed, task)) & set(names(plan, task))


def test_the_id_depends_on_all_else_that_shapes_a_teacher(plan: TeacherPlan, task: Task, names: Names) -> None:
    data = task.data
    others = [
        (replace(plan, held_out=0.2), task),
        (replace(plan, seed=1), task),
        (replace(plan, architectures=("convnet3-batch-x0.0625", "convnet2-batch-x0.0625")), task),
        (plan, replace(task, data=replace(data, fingerprint="0" + data.fingerprint[1:]))),
        (plan, replace(task, data=replace(data, spec=replace(data.spec, name="blobs@40")))),
    ]
    ids = [identifier for plan_, task_ in [(plan, task), *others] for identifier in names(plan_, task_)]
    assert len(set(ids)) == len(ids) == 12


def test_the_id_depends_on_nothing_else(plan: TeacherPlan, task: Task, names: Names) -> None:
    ids = names(plan, task)
    assert names(plan, replace(task, ipc=1, seed=9)) == ids
    assert names(replace(plan, architectures=plan.architectures[::-1]), task) == ids[::-1]
    assert [identifier.rpartition("-")[0] for identifier in ids] == list(plan.architectures)


def test_the_same_again_elsewhere(
    plan: TeacherPlan, task: Task, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [(teacher.facts.id, teacher.facts.weights_sha256) for teacher in obtain_teachers(plan, task)]
    monkeypatch.setenv("DDBENCH_HOME", str(own_home.with_name("elsewhere")))
    assert [(teacher.facts.id, teacher.facts.weights_sha256) for teacher in obtain_teachers(plan, task)] == first


def test_an_unfinished_teacher_is_trained(plan: TeacherPlan, task: Task, fits: list[SimpleNamespace]) -> None:
    facts = obtain_teachers(plan, task)[0].facts
    (network_folder(facts.id) / "manifest.json").unlink()  # it is written last
    assert obtain_teachers(plan, task)[0].facts.weights_sha256 == facts.weights_sha256
    assert len(fits) == 3


def test_rejects_a_damaged_teacher(plan: TeacherPlan, task: Task) -> None:
    facts = obtain_teachers(plan, task)[0].facts
    path = network_folder(facts.id) / "weights.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InvalidSetError, match="is not the file its manifest names; delete"):
        obtain_teachers(plan, task)


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_resume_is_invisible(plan: TeacherPlan, task: Task, own_home: Path, interrupted: Interrupt) -> None:
    straight = [(teacher.facts, weights(teacher.facts)) for teacher in obtain_teachers(plan, task)]
    shutil.rmtree(own_home)
    stops = [("convnet1-batch-x0.0625", 1), ("convnet1-batch-x0.0625", 3), ("convnet2-batch-x0.125", 2)]
    for name, stop in stops:
        with interrupted(at(f"teacher {name}", stop)):
            obtain_teachers(plan, task)
    for (facts, content), teacher in zip(straight, obtain_teachers(plan, task), strict=True):
        assert weights(teacher.facts) == content
        assert teacher.facts.held_out_top1 == facts.held_out_top1


# --- the held-out slice and the plan ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "size"), [(120, 0.1, 12), (1000, 0.5, 500), (4, 0.1, 1), (2, 0.5, 1), (15, 0.5, 8), (2, 0.01, 1)]
)
def test_sizes_of_the_split(count: int, share: float, size: int) -> None:
    kept, held_out = split_held_out(count, share, seed=0)
    assert len(held_out) == size
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(count))
    assert kept.tolist() == sorted(kept.tolist())
    assert held_out.tolist() == sorted(held_out.tolist())


def test_seeds_decide_the_split() -> None:
    assert split_held_out(50, 0.2, seed=1)[1].equal(split_held_out(50, 0.2, seed=1)[1])
    assert not split_held_out(50, 0.2, seed=1)[1].equal(split_held_out(50, 0.2, seed=2)[1])


def test_every_image_is_held_out_equally_often() -> None:
    counts = sum(torch.bincount(split_held_out(10, 0.3, seed)[1], minlength=10) for seed in range(1000))
    assert isinstance(counts, Tensor)
    assert counts.sum() == 3000
    assert (counts - 300).abs().max() < 60  # four deviations of 14.5


@pytest.mark.parametrize(
    ("wrong", "found"),
    [
        ({"architectures": ()}, r"teachers are \[\]"),
        ({"architectures": ("convnet1", "convnet2", "convnet1")}, "expected one or more, all different"),
        ({"held_out": 0.0}, "held_out is 0.0"),
        ({"held_out": 0.51}, "held_out is 0.51"),
        ({"held_out": -0.1}, "held_out is -0.1"),
        ({"held_out": float("nan")}, r"held_out is nan; expected a share in \(0, 0.5\]"),
    ],
)
def test_rejects_plans(plan: TeacherPlan, wrong: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        replace(plan, **wrong)


@pytest.mark.parametrize(
    ("dataset", "scale"),
    [
        ("digits", "digits"), ("digits@50", "digits"), ("cifar10", "published"), ("cifar100", "published"),
        ("cifar10@200", "small"), ("cifar100@20/10", "small"),
    ],
)  # fmt: skip
def test_scales(dataset: str, scale: str) -> None:
    assert scale_of(dataset) == scale
    assert scale in PLANS


def test_a_network_is_one_teacher_however_it_is_spelt() -> None:
    recipe = TrainingRecipe(epochs=1)
    assert TeacherPlan(("convnet3-batch-x0.250",), recipe).architectures == ("convnet3-batch-x0.25",)
    with pytest.raises(ConfigError, match="all different"):
        TeacherPlan(("convnet3-batch-x0.25", "convnet3-batch-x0.250"), recipe)
    with pytest.raises(UnknownNameError, match="convnet3"):
        TeacherPlan(("convnet33",), recipe)
