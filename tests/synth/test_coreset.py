"""Real images and graphs, random or herded: as many as asked for, all different, with the labels asked for."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.errors import ConfigError
from dd_bench.graph_sets import Graphs
from dd_bench.graphs import GraphBatch
from dd_bench.learn.tape import Epoch, TapeRecipe, draw_tape
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from dd_bench.sets import Images
from dd_bench.targets import Features, HardLabels, SoftLabels, TapedLabels
from synth.base import DRAWS, Distilled, Synthesizer, Task, config_of, configure, override
from synth.coreset import Random
from synth.infer import Infer
from synth.krr import KRRST
from synth.mirage import Mirage, RandomTrees
from synth.parts.barlow_twins import BarlowTwinsRecipe
from synth.parts.model_pool import PoolRecipe
from synth.parts.sampling import sample_images
from synth.parts.subsets import herd, nearest_to_centres
from synth.parts.tape_labels import TAPE_PLANS, TapePlan
from synth.parts.target_model import TARGETS, TargetModel, TargetPlan, obtain_target
from synth.parts.teachers import PLANS, TeacherPlan, obtain_teachers
from synth.parts.tree_features import tree_features
from synth.pipeline import Order, describe
from synth.selection import Herding, KMeans
from synth.trajectory import MTT
from tests.conftest import BLOBS
from tests.references.trees import canonical, toys_of


def pixels(method: Random, task: Task, run: Run) -> torch.Tensor:
    payload = method.synthesize(task, run).payload
    assert isinstance(payload, Images)
    return payload.pixels


@pytest.mark.parametrize("ipc", [1, 7, 40])
def test_shapes(task: Task, run: Run, ipc: int) -> None:
    made = Random().synthesize(replace(task, ipc=ipc), run)
    assert isinstance(made.payload, Images)
    assert isinstance(made.targets, HardLabels)
    assert made.payload.pixels.shape == (3 * ipc, 1, 8, 8)
    assert made.payload.pixels.dtype == torch.uint8
    assert torch.bincount(made.targets.classes).tolist() == [ipc] * 3
    assert (made.parents, made.teacher_seconds) == ((), 0.0)


def test_images_are_real_different_and_rightly_labelled(task: Task, run: Run, blobs: ImageData) -> None:
    labels = {image.numpy().tobytes(): int(label) for image, label in zip(blobs.images, blobs.labels, strict=True)}
    made = Random().synthesize(replace(task, ipc=9), run)
    found = [image.numpy().tobytes() for image in (made.payload.decode() * 255).round().byte()]
    assert len(set(found)) == 27
    assert [labels[image] for image in found] == made.targets.classes.tolist()


def test_fewer_are_the_beginning_of_more(task: Task, run: Run) -> None:
    many, few = (pixels(Random(), replace(task, ipc=ipc), run) for ipc in (9, 4))
    assert many[:12].equal(few)


def test_seeds_decide(task: Task, run: Run) -> None:
    first, again, other = (pixels(Random(), replace(task, seed=seed), run) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)


def test_teachers_label_the_same_images(task: Task, run: Run, plan: TeacherPlan) -> None:
    hard = Random().synthesize(task, run)
    soft = Random(plan, label_dtype="float32", temperature=4.0).synthesize(task, run)
    assert isinstance(soft.targets, SoftLabels)
    assert soft.payload.decode().equal(hard.payload.decode())
    assert soft.targets.classes.equal(hard.targets.classes)
    teachers = obtain_teachers(plan, task)
    assert soft.parents == tuple(teacher.facts.id for teacher in teachers)
    assert soft.teacher_seconds == sum(teacher.facts.seconds for teacher in teachers) > 0
    images = soft.payload.decode()
    expected = sum((teacher.model(images) for teacher in teachers), start=torch.zeros(12, 3)) / 2
    torch.testing.assert_close(soft.targets.logits, expected)
    assert soft.targets.temperature == 4.0


def test_labels_are_float16_unless_told(task: Task, run: Run, plan: TeacherPlan) -> None:
    targets = Random(plan).synthesize(task, run).targets
    assert isinstance(targets, SoftLabels)
    assert targets.logits.dtype == torch.float16


def test_rejects_more_than_there_are(task: Task, run: Run) -> None:
    with pytest.raises(ConfigError, match="class 0 has 40 training examples, but 41 are asked for; lower --ipc"):
        Random().synthesize(replace(task, ipc=41), run)


@pytest.mark.parametrize(
    ("dataset", "preset"), [("digits", "digits-hard"), ("cifar10", "published-hard"), ("cifar100@50", "small-hard")]
)
def test_presets(dataset: str, preset: str) -> None:
    assert Random.preset_for(dataset) == preset
    assert Random.PRESETS[preset].teachers is None
    assert Random.PRESETS[preset.replace("hard", "soft")].teachers == PLANS[preset.removesuffix("-hard")]


# --- labels of a tape ------------------------------------------------------------------------------------------------

TAPED = TapePlan(
    TapeRecipe(epochs=2, batch=6, micro=3, smallest_crop=0.5), weighting="equal", statistics="running", temperature=4.0
)


def test_a_tape_labels_the_same_images(task: Task, tmp_path: Path, plan: TeacherPlan) -> None:
    """Every view of them, by the mean of all teachers, on a tape that the seed draws."""
    task = replace(task, seed=3)
    hard = Random().synthesize(task, Run(tmp_path / "hard"))
    made = Random(plan, tape=TAPED).synthesize(task, Run(tmp_path / "taped"))
    assert isinstance(made.targets, TapedLabels)
    assert made.payload.decode().equal(hard.payload.decode())
    assert made.targets.classes.equal(hard.targets.classes)
    assert made.targets.temperature == 4.0
    teachers = obtain_teachers(plan, task)
    assert made.parents == tuple(teacher.facts.id for teacher in teachers)
    assert made.teacher_seconds == sum(teacher.facts.seconds for teacher in teachers)
    tape = draw_tape(12, BLOBS, TAPED.recipe, derive_seed("tape", 3))
    for number in range(2):
        epoch = Epoch.of(tape, number, task.device)
        seen = torch.cat([epoch.pixels(made.payload.decode(), batch) for batch in range(2)])
        expected = sum((teacher.model(seen) for teacher in teachers), start=torch.zeros(12, 3)) / 2
        torch.testing.assert_close(made.targets.logits[number].float(), expected, rtol=2e-3, atol=2e-3)


def test_the_first_of_the_teachers_may_label_alone(task: Task, run: Run, plan: TeacherPlan, own_home: Path) -> None:
    made = Random(plan, tape=replace(TAPED, labeller="first")).synthesize(task, run)
    assert len(made.parents) == len(list((own_home / "teachers").iterdir())) == 1


def test_rejects_a_tape_without_teachers() -> None:
    with pytest.raises(ConfigError, match=r"^a tape is set, but no teachers to label it; expected both, or neither$"):
        Random(tape=TAPED)


@pytest.mark.parametrize(
    ("scale", "plan_of", "protocol"),
    [("published", "cv-dd", "fkd-cutmix"), ("small", "small", "fkd-quick"), ("digits", "digits", "fkd-quick")],
)
def test_presets_with_a_tape(scale: str, plan_of: str, protocol: str) -> None:
    preset = Random.PRESETS[f"{scale}-taped"]
    assert preset == Random(PLANS[plan_of], protocol=protocol, tape=TAPE_PLANS[scale])
    thinned = override(preset, {"tape.top": "2", "tape.labeller": "first", "tape.recipe.epochs": "30"})
    assert thinned.tape == replace(
        TAPE_PLANS[scale], top=2, labeller="first", recipe=replace(TAPE_PLANS[scale].recipe, epochs=30)
    )


KNOWN = {
    "published-hard": "c3d8b3d7803d", "published-soft": "7b3ec0fa1f2d", "small-hard": "862cd923efef",
    "small-soft": "ffcc363aebdc", "digits-hard": "862cd923efef", "digits-soft": "1e98e598f3a0",
    "graphs": "fe3c37c7cc5e",
}  # fmt: skip


def test_what_was_before_tapes_has_the_ids_it_had(blobs: ImageData) -> None:
    """Computed before there were any, on a made-up fingerprint: a recipe that moves orphans its records."""
    data = replace(blobs, spec=replace(BLOBS, name="made-up"), fingerprint="ab" * 32)
    task = Task(data, ipc=10, seed=0, device=torch.device("cpu"))
    presets = {name: Random.PRESETS[name] for name in KNOWN}
    assert {name for name in Random.PRESETS if not name.endswith("-taped") and "-features" not in name} == set(KNOWN)
    assert {name: describe(Order("random", "x", preset), task).recipe for name, preset in presets.items()} == KNOWN
    assert not any({"tape", "target", "times"} & set(config_of(preset)) for preset in presets.values())
    for preset, recipe in (("small-ipc10", "35f9ebfc3514"), ("published-cifar10-ipc1", "cec4722e892c")):
        assert describe(Order("mtt", "x", MTT.PRESETS[preset]), task).recipe == recipe


# --- features --------------------------------------------------------------------------------------------------------

TARGET = TargetPlan("convnet1-batch-x0.0625", BarlowTwinsRecipe(steps=2, batch=54, projector=(8,)))
FEATURES = Random(target=TARGET, protocol="transfer-digits")


@pytest.fixture
def target(task: Task, tmp_path: Path) -> TargetModel:
    return obtain_target(TARGET, task, Run(tmp_path / "target"))


def values(made: Distilled) -> torch.Tensor:
    assert isinstance(made.targets, Features)
    return made.targets.values


def test_a_target_says_what_it_sees_in_the_same_images(task: Task, run: Run, target: TargetModel) -> None:
    """Drawn without regard to class, they are those that KRR-ST begins with."""
    task = replace(task, seed=3)
    made = FEATURES.synthesize(task, run)
    picked = sample_images(120, 12, 3)
    assert isinstance(made.payload, Images)
    assert made.payload.pixels.dtype == torch.uint8
    assert made.payload.pixels.equal(task.images.images[picked])
    assert values(made).equal(target.plain[picked])
    assert isinstance(made.targets, Features)
    assert made.targets.center.equal(target.center)
    assert made.targets.scale == target.scale
    assert made.parents == (target.facts.id,)
    assert made.teacher_seconds == target.facts.seconds > 0
    begun = KRRST(
        TARGET, "pyramid2-x0.015625", PoolRecipe(size=1, max_age=2), steps=1, batch=8, lr=1e-30, augment="none"
    ).synthesize(task, Run(run.folder.with_name("krr")))
    torch.testing.assert_close(begun.payload.decode(), made.payload.decode(), rtol=0, atol=1e-6)  # type: ignore[union-attr]
    assert values(begun).equal(values(made))


def test_no_label_is_read_where_there_are_targets(task: Task, run: Run) -> None:
    data = task.images
    permuted = replace(task, data=replace(data, labels=data.labels.flip(0)))
    for method in (FEATURES, KMeans(TARGET)):
        first, again = (method.synthesize(one, run) for one in (task, permuted))
        assert first.payload.decode().equal(again.payload.decode())  # type: ignore[union-attr, arg-type]
        assert values(first).equal(values(again))


def test_as_many_times_the_images(task: Task, run: Run, plan: TeacherPlan) -> None:
    """They begin with those of once."""
    once, twice = (replace(FEATURES, times=times).synthesize(task, run) for times in (1, 2))
    assert (len(values(once)), len(values(twice))) == (12, 24)
    assert values(twice)[:12].equal(values(once))
    assert pixels(replace(FEATURES, times=2), task, run)[:12].equal(pixels(FEATURES, task, run))
    hard = Random(times=2).synthesize(task, run)
    assert hard.payload.decode().equal(Random().synthesize(replace(task, ipc=8), run).payload.decode())  # type: ignore[arg-type, union-attr]
    assert isinstance(hard.targets, HardLabels)
    assert torch.bincount(hard.targets.classes).tolist() == [8] * 3


def test_k_means_is_real_images_with_targets(task: Task, run: Run, target: TargetModel) -> None:
    made = KMeans(TARGET).synthesize(task, run)
    picked = nearest_to_centres(target.plain, 12, 0)
    assert isinstance(made.payload, Images)
    assert made.payload.pixels.equal(task.images.images[picked])
    assert values(made).equal(target.plain[picked])
    assert made.parents == (target.facts.id,)
    other = KMeans(TARGET).synthesize(replace(task, seed=1), run)
    assert not values(other).equal(values(made))
    spread = [torch.cdist(target.plain, values(one)).amin(1).mean() for one in (made, FEATURES.synthesize(task, run))]
    assert spread[0] < spread[1], "all images are nearer to those than to random ones"
    (control,) = KMeans(TARGET, "transfer-digits").controls(task)
    assert (control.method, control.labels, control.seeds) == ("random", "features", DRAWS)
    assert configure(Random, control.config) == FEATURES


@pytest.mark.parametrize(
    ("method", "count"), [(FEATURES, 123), (replace(FEATURES, times=4), 132), (KMeans(TARGET), 123)],
    ids=["random", "times", "k-means"],
)  # fmt: skip
def test_rejects_more_images_than_there_are(
    task: Task, run: Run, own_home: Path, method: Random | KMeans, count: int
) -> None:
    """Before a network is trained."""
    ipc = 41 if count == 123 else 11
    with pytest.raises(ConfigError, match=f"^{count} images are asked for of 120 training images; lower --ipc$"):
        method.synthesize(replace(task, ipc=ipc), run)
    assert not (own_home / "teachers").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": TARGET, "teachers": PLANS["digits"]}, "target and teachers are set; expected features or labels"),
        ({"times": 0}, "times is 0; expected at least 1"),
        ({"times": -2, "target": TARGET}, "times is -2; expected at least 1"),
    ],
)
def test_rejects_settings(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Random(**wrong)


def test_presets_with_features() -> None:
    for scale in ("small", "digits"):
        assert Random.PRESETS[f"{scale}-features"] == Random(target=TARGETS[scale], protocol=f"transfer-{scale}")
        assert KMeans.PRESETS[scale] == KMeans(TARGETS[scale], f"transfer-{scale}")
    assert KMeans.PRESETS["default"] == KMeans(TARGETS["default"], "transfer-cifar")
    assert KMeans.PRESETS["default-cifar10"] == KMeans(TARGETS["default"], "transfer-cifar-back")


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def graph_task(motifs: GraphData) -> Task:
    return Task(motifs, ipc=3, seed=0, device=torch.device("cpu"))


def rows_of(batch: GraphBatch) -> list[str]:
    """Returns each graph in words."""
    labels = torch.zeros(len(batch)).long()
    return [str((toy.nodes, sorted(toy.edges.items()))) for toy in toys_of(batch, labels)]


@pytest.mark.parametrize("ipc", [1, 4, 20])
@pytest.mark.parametrize("method", [Random(protocol="graphs"), Herding()], ids=["random", "herding"])
def test_graphs_are_real_different_and_rightly_labelled(
    graph_task: Task, run: Run, method: Random | Herding, ipc: int
) -> None:
    made = method.synthesize(replace(graph_task, ipc=ipc), run)
    assert isinstance(made.payload, Graphs)
    assert isinstance(made.targets, HardLabels)
    assert torch.bincount(made.targets.classes).tolist() == [ipc] * 3
    assert (made.parents, made.teacher_seconds) == ((), 0.0)
    data = graph_task.graphs
    real = Counter(zip(rows_of(data.graphs), data.labels.tolist(), strict=True))
    found = Counter(zip(rows_of(made.payload.decode()), made.targets.classes.tolist(), strict=True))
    assert found <= real, "none that is not there, and none more often than it is there"


def test_random_graphs_begin_alike_and_seeds_decide(graph_task: Task, run: Run) -> None:
    few, many, other = (
        rows_of(Random().synthesize(replace(graph_task, ipc=ipc, seed=seed), run).payload.decode())
        for ipc, seed in ((2, 0), (5, 0), (2, 1))
    )
    assert many[:6] == few
    assert other != few


def dense_features(batch: GraphBatch, hops: int) -> torch.Tensor:
    """Returns one row a graph: the square root of the share of each explicit tree of each depth."""
    columns = []
    for depth in range(hops + 1):
        names = canonical(batch, depth)
        for name in sorted(set(names)):
            here = torch.tensor([one == name for one in names]).double()
            share = torch.zeros(len(batch)).double().index_add(0, batch.owners, here) / batch.sizes
            columns.append((share / (hops + 1)).sqrt())
    return torch.stack(columns, 1)


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_herding_matches_reference(graph_task: Task, run: Run, hops: int) -> None:
    """Each next graph brings the sum of all chosen nearest to as many times the mean of the class."""
    data = graph_task.graphs
    features = dense_features(data.graphs, hops)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(data)).double())
    ours = torch.from_numpy(tree_features(data.graphs, hops).toarray())
    torch.testing.assert_close(ours @ ours.T, features @ features.T)
    for label in range(3):
        own = features[data.labels == label]
        chosen: list[int] = []
        for step in range(1, 13):
            sums = own[chosen].sum(0) + own
            distance = (step * own.mean(0) - sums).norm(dim=1)
            distance[chosen] = torch.inf
            chosen.append(int(distance.argmin()))
        found = herd(tree_features(data.graphs, hops)[(data.labels == label).numpy()], 12)
        assert len(set(found)) == 12
        torch.testing.assert_close(own[found], own[chosen], msg="graphs of equal trees may change places")


def test_herding_has_no_seed(graph_task: Task, run: Run) -> None:
    first, other = (Herding().synthesize(replace(graph_task, seed=seed), run).payload.decode() for seed in (0, 1))
    assert first.nodes.equal(other.nodes)
    assert first.arcs.equal(other.arcs)


def test_graphs_run_out(graph_task: Task, run: Run) -> None:
    for method, expected in (
        (Herding(), "class 0 has 20 training examples, but 21 are asked for; lower --ipc"),
        (Random(), "class 0 has 20 training examples, but 21 are asked for; lower --ipc"),
    ):
        with pytest.raises(ConfigError, match=expected):
            method.synthesize(replace(graph_task, ipc=21), run)


@pytest.mark.parametrize("method", [Herding(), Mirage(), RandomTrees()], ids=["herding", "mirage", "mirage-random"])
def test_rejects_images(task: Task, run: Run, method: Synthesizer) -> None:
    with pytest.raises(ConfigError) as refusal:
        method.synthesize(task, run)
    assert str(refusal.value).startswith("data set blobs holds images, but this method distils graphs; name a graph")


def test_rejects_graphs(graph_task: Task, run: Run, infer: Infer, plan: TeacherPlan) -> None:
    for method in (infer, Random(plan)):
        with pytest.raises(ConfigError) as refusal:
            method.synthesize(graph_task, run)
        assert str(refusal.value).startswith("data set motifs holds graphs, but this method distils images; for graphs")


def test_presets_of_graphs() -> None:
    assert Random.preset_for("nci1") == Herding.preset_for("nci1") == "graphs"
    assert Random.PRESETS["graphs"] == Random(protocol="graphs")
    (control,) = Herding().controls(None)  # type: ignore[arg-type]
    assert (control.method, dict(control.config)["protocol"]) == ("random", "graphs")
