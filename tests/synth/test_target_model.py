"""Target models: trained once and without labels, named by all that shapes them, and what they say of real images."""

import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.data.images import ImageData
from dd_bench.environment import library_versions
from dd_bench.errors import ConfigError, DDBenchError, DivergedError, UnknownNameError
from dd_bench.files import home, sha256_file
from dd_bench.networks import NetworkFacts, load_network, network_folder
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from dd_bench.targets import Features
from synth.base import Task
from synth.parts import embeddings, teachers
from synth.parts import target_model as module
from synth.parts.barlow_twins import BarlowTwinsRecipe, effective_rank
from synth.parts.target_model import TARGETS, TargetModel, TargetPlan, obtain_target
from synth.parts.teachers import split_held_out
from tests.conftest import Interrupt, at

LABEL = "target model convnet2-batch-x0.0625"


@pytest.fixture
def goal() -> TargetPlan:
    recipe = BarlowTwinsRecipe(steps=4, batch=60, projector=(16, 16), smallest_crop=0.5)
    return TargetPlan("convnet2-batch-x0.0625", recipe)


@pytest.fixture
def mirrored(task: Task) -> Task:
    """The same images, of a data set whose images may be mirrored."""
    data = task.images
    return replace(task, data=replace(data, spec=replace(data.spec, mirror=True)))


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """Collects what each training got, and trains."""
    calls = list[SimpleNamespace]()
    train = module.train_barlow_twins

    def spy(model: Any, images: Tensor, **settings: Any) -> None:
        calls.append(SimpleNamespace(model=model, images=images, **settings))
        train(model, images, **settings)

    monkeypatch.setattr(module, "train_barlow_twins", spy)
    return calls


def named(plan: TargetPlan, task: Task, run: Run) -> str:
    """Returns the id a plan's network would have, without training it."""
    found: list[str] = []

    def load(network_id: str, _: object) -> tuple[nn.Module, None]:
        found.append(network_id)
        raise KeyError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(teachers, "has_network", lambda _: True)
        patch.setattr(module, "load_network", load)
        with pytest.raises(KeyError):
            obtain_target(plan, task, run)
    return found[0]


def weights(facts: NetworkFacts) -> bytes:
    return (network_folder(facts.id) / "weights.safetensors").read_bytes()


def same(one: TargetModel, other: TargetModel) -> bool:
    return (
        weights(one.facts) == weights(other.facts)
        and one.plain.equal(other.plain)
        and one.center.equal(other.center)
        and one.scale == other.scale
    )


# --- what they are and say -------------------------------------------------------------------------------------------


def test_shapes(goal: TargetPlan, task: Task, run: Run) -> None:
    target = obtain_target(goal, task, run)
    width = target.model.head.in_features
    assert (target.plain.shape, target.plain.dtype) == ((120, width), torch.float32)
    assert (target.center.shape, target.center.dtype) == ((width,), torch.float32)
    assert target.scale > 0
    assert target.flipped is None  # for blobs must not be mirrored
    assert not any(part.training for part in target.model.modules())
    assert not any(parameter.requires_grad for parameter in target.model.parameters())


def test_facts(goal: TargetPlan, task: Task, run: Run, own_home: Path) -> None:
    facts = obtain_target(goal, task, run).facts
    assert facts == load_network(facts.id, task.data.spec)[1]
    assert facts.id.startswith("barlow-twins-convnet2-batch-x0.0625-")
    assert (facts.architecture, facts.dataset, facts.fingerprint) == (
        goal.architecture, "blobs", task.data.fingerprint,
    )  # fmt: skip
    settings = asdict(goal.recipe) | {"projector": [16, 16], "held_out": 0.1, "objective": "barlow twins"}
    assert facts.recipe == settings
    assert (facts.seed, facts.held_out_images, facts.held_out_top1) == (0, 12, None)
    assert facts.seconds > 0
    assert facts.versions == library_versions()
    assert facts.weights_sha256 == sha256_file(network_folder(facts.id) / "weights.safetensors")
    assert not list((own_home / "runs").glob("target-*"))
    assert list((own_home / "reports").glob("target-*.jsonl"))


def test_tables_match_reference(goal: TargetPlan, mirrored: Task, run: Run) -> None:
    """Mean 0 in every feature and mean square 1 over all; the flipped are in the units of the plain."""
    target = obtain_target(goal, mirrored, run)
    images = mirrored.images.images.float() / 255
    with torch.no_grad():
        plain, flipped = (torch.stack([target.model.embed(image[None])[0] for image in part]).double() for part in
                          (images, torch.stack([image[:, :, range(7, -1, -1)] for image in images])))  # fmt: skip
    center = plain.mean(0)
    scale = ((plain - center) ** 2).mean().sqrt()
    torch.testing.assert_close(target.center.double(), center, rtol=1e-5, atol=1e-6)
    assert target.scale == pytest.approx(float(scale), rel=1e-5)
    assert target.flipped is not None
    for table, raw in ((target.plain, plain), (target.flipped, flipped)):
        torch.testing.assert_close(table.double(), (raw - center) / scale, rtol=1e-4, atol=1e-5)
    assert float(target.plain.mean(0).abs().max()) < 1e-5
    assert float(target.plain.square().mean()) == pytest.approx(1, abs=1e-5)
    assert float((target.flipped - target.plain).abs().max()) > 0.1


def test_batches_and_tables_say_the_same(goal: TargetPlan, mirrored: Task, run: Run) -> None:
    target = obtain_target(goal, mirrored, run)
    pixels = mirrored.images.images[7:19].float() / 255
    assert target.flipped is not None
    torch.testing.assert_close(target.targets_of(pixels), target.plain[7:19], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(target.targets_of(pixels.flip(-1)), target.flipped[7:19], rtol=1e-4, atol=1e-5)
    assert not target.targets_of(pixels.requires_grad_()).requires_grad


def test_tables_of_many_images_are_made_in_parts(
    goal: TargetPlan, task: Task, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = obtain_target(goal, task, run)
    shutil.rmtree(home() / "targets")
    monkeypatch.setattr(embeddings, "_BATCH", 7)
    torch.testing.assert_close(obtain_target(goal, task, run).plain, whole.plain, rtol=1e-4, atol=1e-5)


def test_the_map_back_gives_the_networks_own_features(goal: TargetPlan, task: Task, run: Run) -> None:
    target = obtain_target(goal, task, run)
    kept = target.as_features(target.plain[:9])
    assert isinstance(kept, Features)
    assert kept.values.equal(target.plain[:9])
    with torch.no_grad():
        own = target.model.embed(task.images.images[:9].float() / 255)
    torch.testing.assert_close(kept.values * kept.scale + kept.center, own, rtol=1e-4, atol=1e-5)


# --- how they are trained --------------------------------------------------------------------------------------------


def test_no_label_is_read(goal: TargetPlan, task: Task, run: Run, own_home: Path) -> None:
    first = obtain_target(goal, task, run)
    kept = own_home.rename(own_home.with_name("kept"))
    data = task.images
    turned = replace(task, data=replace(data, labels=data.labels.roll(1)))
    hidden = replace(task, data=replace(data, labels=torch.full_like(data.labels, -100)))
    for other in (turned, hidden):
        found = obtain_target(goal, other, Run(run.folder / str(other is hidden)))
        assert found.facts.id == first.facts.id
        assert weights(found.facts) == (kept / "teachers" / first.facts.id / "weights.safetensors").read_bytes()
        assert found.plain.equal(first.plain)
        shutil.rmtree(own_home)


def test_the_rank_is_that_of_images_never_trained_on(
    goal: TargetPlan, task: Task, run: Run, trainings: list[SimpleNamespace]
) -> None:
    target = obtain_target(replace(goal, held_out=0.25), task, run)
    (call,) = trainings
    assert (call.recipe, call.spec, call.label) == (goal.recipe, task.data.spec, LABEL)
    every = {image.numpy().tobytes(): row for row, image in enumerate(task.images.images)}
    trained = {every[image.numpy().tobytes()] for image in call.images}
    held_out = sorted(set(range(120)) - trained)
    assert held_out == split_held_out(120, 0.25, derive_seed("held out", 0))[1].tolist()
    assert target.facts.held_out_images == len(held_out) == 30
    with torch.no_grad():
        features = target.model.embed(task.images.images[held_out].float() / 255)
    assert target.facts.held_out_rank == pytest.approx(effective_rank(features), rel=1e-4)


def test_trained_once(goal: TargetPlan, task: Task, run: Run, trainings: list[SimpleNamespace]) -> None:
    """And read off once, for every ipc and every seed of synthesis; each run is told what it would have cost."""
    first = obtain_target(goal, task, run)
    embedded = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "embed_images", lambda *_, **__: embedded.append(1))
        again = Run(run.folder / "again")
        second = obtain_target(goal, replace(task, ipc=9, seed=3), again)
    assert (len(trainings), embedded) == (1, [])
    assert second.facts == first.facts
    assert same(first, second)
    assert again.seconds == run.seconds > 0


def test_tables_are_those_of_their_weights(goal: TargetPlan, task: Task, run: Run) -> None:
    """A network that was deleted and came out otherwise does not find the tables of the first."""
    first = obtain_target(goal, task, run)
    shutil.rmtree(network_folder(first.facts.id))
    train = module.train_barlow_twins
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train_barlow_twins", lambda *one, **named: train(*one, **named | {"seed": 77}))
        second = obtain_target(goal, task, run)
    assert second.facts.id == first.facts.id
    assert second.facts.weights_sha256 != first.facts.weights_sha256
    torch.testing.assert_close(
        second.plain[:5], second.targets_of(task.images.images[:5].float() / 255), rtol=1e-4, atol=1e-5
    )


def test_resume_is_invisible(goal: TargetPlan, task: Task, run: Run, own_home: Path, interrupted: Interrupt) -> None:
    straight = obtain_target(goal, task, run)
    content = weights(straight.facts)
    shutil.rmtree(own_home)
    for stop in (0, 2):
        with interrupted(at(LABEL, stop)):
            obtain_target(goal, task, Run(run.folder / "stopped"))
    resumed = obtain_target(goal, task, Run(run.folder / "stopped"))
    assert weights(resumed.facts) == content
    assert resumed.plain.equal(straight.plain)
    assert resumed.facts.held_out_rank == straight.facts.held_out_rank


@pytest.mark.parametrize("how", ["constant", "one direction"])
def test_a_collapsed_network_is_not_kept(
    how: str, goal: TargetPlan, task: Task, run: Run, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    @torch.no_grad()
    def ruin(model: Any, *_: Any, **__: Any) -> None:
        for parameter in model.features.parameters():
            parameter.zero_()

    if how == "constant":
        monkeypatch.setattr(module, "train_barlow_twins", ruin)
    else:
        monkeypatch.setattr(
            module, "embed_images", lambda _, images, **__: torch.arange(len(images) * 1.0)[:, None] * torch.ones(9)
        )
    with pytest.raises(DivergedError, match=f"^{LABEL} collapsed: its .* features of 12 unseen images have an"):
        obtain_target(goal, task, run)
    assert not list((own_home / "teachers").glob("*/manifest.json"))
    assert not (own_home / "targets").exists()


# --- names -----------------------------------------------------------------------------------------------------------

OTHER: dict[str, Any] = {
    "steps": 3, "batch": 61, "lr": 0.051, "weight_decay": 1e-5, "projector": (16, 17), "off_diagonal": 0.01,
    "smallest_crop": 0.6, "jitter": 0.3,
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(BarlowTwinsRecipe)])
def test_the_id_depends_on_every_field_of_the_recipe(field: str, goal: TargetPlan, task: Task, run: Run) -> None:
    changed = replace(goal, recipe=replace(goal.recipe, **{field: OTHER[field]}))
    assert named(changed, task, run) != named(goal, task, run)


def test_the_id_depends_on_all_else_that_shapes_it_and_on_nothing_more(goal: TargetPlan, task: Task, run: Run) -> None:
    data = task.data
    others = [
        (replace(goal, held_out=0.2), task),
        (replace(goal, seed=1), task),
        (replace(goal, architecture="convnet2-batch-x0.125"), task),
        (goal, replace(task, data=replace(data, fingerprint="0" + data.fingerprint[1:]))),
        (goal, replace(task, data=replace(data, spec=replace(data.spec, name="blobs@40")))),
    ]
    ids = [named(plan, work, run) for plan, work in [(goal, task), *others]]
    assert len(set(ids)) == 6
    assert named(goal, replace(task, ipc=1, seed=9), run) == ids[0]
    assert named(replace(goal, architecture="convnet2-batch-x0.06250"), task, run) == ids[0]


def test_seeds_of_training(goal: TargetPlan, task: Task, run: Run, trainings: list[SimpleNamespace]) -> None:
    one, other = (obtain_target(replace(goal, seed=seed), task, run) for seed in (0, 1))
    assert [call.seed for call in trainings] == [
        derive_seed("target model", goal.architecture, seed) for seed in (0, 1)
    ]
    assert not trainings[0].images.equal(trainings[1].images)  # another slice is held out
    assert weights(one.facts) != weights(other.facts)


@pytest.mark.parametrize("held_out", [0.0, 0.51, -0.1, float("nan")])
def test_rejects_shares(held_out: float, goal: TargetPlan) -> None:
    with pytest.raises(ConfigError, match=rf"held_out is {held_out}; expected a share in \(0, 0.5\]"):
        replace(goal, held_out=held_out)


def test_rejects_unknown_architectures(goal: TargetPlan) -> None:
    with pytest.raises(UnknownNameError, match="convnet3"):
        replace(goal, architecture="convnet33")


def test_rejects_a_damaged_network(goal: TargetPlan, task: Task, run: Run) -> None:
    path = network_folder(obtain_target(goal, task, run).facts.id) / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DDBenchError, match="is not the file its manifest names; delete"):
        obtain_target(goal, task, run)


def test_plans() -> None:
    assert TARGETS.keys() == {"default", "small", "medium", "digits"}
    assert TARGETS["default"].architecture == "resnet18"
    assert len({str(plan) for plan in TARGETS.values()}) == len(TARGETS)


def test_blobs_are_read_only(goal: TargetPlan, task: Task, run: Run, blobs: ImageData) -> None:
    before = blobs.images.clone(), torch.random.get_rng_state()
    obtain_target(goal, task, run)
    assert blobs.images.equal(before[0])
    assert torch.random.get_rng_state().equal(before[1])
