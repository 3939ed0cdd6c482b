"""Herded, clustered and covering images: chosen in a teacher's features, class by class, with any kind of labels."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.data.graphs import GraphData
from dd_bench.errors import ConfigError
from dd_bench.learn.tape import TapeRecipe
from dd_bench.models import Classifier
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from dd_bench.sets import Images
from dd_bench.targets import HardLabels, SoftLabels, TapedLabels
from synth.base import DRAWS, Distilled, Synthesizer, Task, config_of, configure
from synth.coreset import Random
from synth.parts.real_images import Labelling
from synth.parts.subsets import farthest_points, herd, nearest_to_centres
from synth.parts.tape_labels import TapePlan
from synth.parts.target_model import TARGETS
from synth.parts.teachers import PLANS, TeacherPlan, obtain_teachers
from synth.selection import Herding, KCenter, KMeans

TAPE = TapePlan(TapeRecipe(epochs=2, batch=6, micro=3, smallest_crop=0.5), weighting="equal")
NAMES = ("herding", "k-means", "k-center")


def method(name: str, plan: TeacherPlan, labels: Labelling | None = None) -> Herding | KMeans | KCenter:
    labels = labels or Labelling()
    return {
        "herding": Herding(protocol="quick", features=plan, labels=labels),
        "k-means": KMeans(None, "quick", plan, labels),
        "k-center": KCenter(plan, labels, "quick"),
    }[name]


def pixels(made: Distilled) -> Tensor:
    assert isinstance(made.payload, Images)
    return made.payload.pixels


@pytest.mark.parametrize("name", NAMES)
def test_matches_reference(name: str, task: Task, run: Run, plan: TeacherPlan) -> None:
    """In each class, what the algorithm chooses among the rows of length 1 of the first teacher."""
    made = method(name, plan).synthesize(task, run)
    teacher = obtain_teachers(plan, task)[0]
    assert isinstance(teacher.model, Classifier)
    with torch.no_grad():
        seen = teacher.model.embed(task.images.images.float() / 255).double()
    expected = []
    for label in range(3):
        members = torch.nonzero(task.images.labels == label).flatten()
        rows = F.normalize(seen[members])
        chosen = {
            "herding": lambda rows=rows: herd(rows.numpy(), 4),
            "k-means": lambda rows=rows, label=label: nearest_to_centres(rows, 4, derive_seed("class", label, 0)),
            "k-center": lambda rows=rows: farthest_points(rows.numpy(), 4),
        }[name]()
        expected.append(members[torch.as_tensor(chosen)])
    assert pixels(made).equal(task.images.images[torch.cat(expected)])
    assert made.targets.classes.tolist() == [label for label in range(3) for _ in range(4)]  # type: ignore[union-attr]
    assert made.parents == (teacher.facts.id,)
    assert made.teacher_seconds == teacher.facts.seconds > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ipc", [1, 40])
def test_images_are_real_and_different(name: str, ipc: int, task: Task, run: Run, plan: TeacherPlan) -> None:
    made = method(name, plan).synthesize(replace(task, ipc=ipc), run)
    real = {bytes(image.flatten().tolist()): int(label)
            for image, label in zip(task.images.images, task.images.labels, strict=True)}  # fmt: skip
    found = [bytes(image.flatten().tolist()) for image in pixels(made)]
    assert len(set(found)) == 3 * ipc
    assert isinstance(made.targets, HardLabels)
    assert [real[image] for image in found] == made.targets.classes.tolist()


@pytest.mark.parametrize(("name", "drawn"), [("herding", False), ("k-means", True), ("k-center", False)])
def test_seeds(name: str, drawn: bool, task: Task, run: Run, plan: TeacherPlan) -> None:
    first, other = (pixels(method(name, plan).synthesize(replace(task, seed=seed), run)) for seed in (0, 1))
    assert first.equal(other) is not drawn


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_those_of_random_images(
    name: str, task: Task, run: Run, plan: TeacherPlan, blobs: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal kinds, by the same teachers; every teacher counts once."""
    hard = method(name, plan).synthesize(task, run)
    soft = method(name, plan, Labelling(plan, "float32", 4.0)).synthesize(task, run)
    taped = method(name, plan, Labelling(plan, tape=TAPE)).synthesize(task, run)
    assert pixels(soft).equal(pixels(hard))
    assert pixels(taped).equal(pixels(hard))
    teachers = obtain_teachers(plan, task)
    assert isinstance(soft.targets, SoftLabels)
    images = pixels(hard).float() / 255
    torch.testing.assert_close(soft.targets.logits, torch.stack([one.model(images) for one in teachers]).mean(0))
    assert isinstance(taped.targets, TapedLabels)
    assert soft.parents == taped.parents == tuple(teacher.facts.id for teacher in teachers)
    monkeypatch.setattr("synth.coreset.sample_per_class", lambda *_: _places(task.images.images, pixels(hard)))
    assert_same_labels(Random(plan, "float32", 4.0).synthesize(task, run), soft)
    assert_same_labels(Random(plan, tape=TAPE).synthesize(task, Run(run.folder.with_name("taped"))), taped)


def _places(images: Tensor, some: Tensor) -> Tensor:
    return torch.stack([(images == one).flatten(1).all(1).nonzero()[0, 0] for one in some])


def assert_same_labels(first: Distilled, other: Distilled) -> None:
    logits = [one.targets.logits.float() for one in (first, other)]  # type: ignore[union-attr]
    assert logits[0].equal(logits[1])


@pytest.mark.parametrize("name", NAMES)
def test_random_images_with_such_labels_stand_beside(name: str, task: Task, plan: TeacherPlan) -> None:
    for labels, kinds in (
        (Labelling(), ["hard"]), (Labelling(plan, temperature=4.0), ["soft", "hard"]),
        (Labelling(plan, tape=TAPE), ["taped", "hard"]),
    ):  # fmt: skip
        controls = method(name, plan, labels).controls(task)
        assert [(one.method, one.labels, one.seeds) for one in controls] == [("random", kind, DRAWS) for kind in kinds]
        same = configure(Random, controls[0].config)
        assert (same.teachers, same.temperature, same.protocol) == (labels.teachers, labels.temperature, "quick")
        assert same.tape == labels.tape


@pytest.mark.parametrize("name", NAMES)
def test_rejects_before_a_network_is_trained(name: str, task: Task, run: Run, plan: TeacherPlan) -> None:
    with pytest.raises(ConfigError, match="class 0 has 40 training examples, but 41 are asked for; lower --ipc"):
        method(name, plan).synthesize(replace(task, ipc=41), run)
    assert not (run.folder.parent / "ddbench" / "teachers").exists()


@pytest.mark.parametrize("name", NAMES)
def test_rejects_graphs(name: str, motifs: GraphData, run: Run, plan: TeacherPlan) -> None:
    graphs = Task(motifs, ipc=1, seed=0, device=torch.device("cpu"))
    with pytest.raises(ConfigError, match="data set motifs holds graphs, but this method distils images"):
        method(name, plan).synthesize(graphs, run)


def test_rejects_settings(plan: TeacherPlan) -> None:
    with pytest.raises(ConfigError, match="target and features are both set; expected one of them"):
        KMeans(features=plan)
    with pytest.raises(ConfigError, match="target and features are both missing; expected one of them"):
        KMeans(None)


@pytest.mark.parametrize("chosen", [Herding, KMeans, KCenter])
def test_presets(chosen: type[Synthesizer]) -> None:
    for dataset, scale, protocol in (
        ("digits", "digits", "quick"), ("cifar10@200", "small", "quick"), ("cifar10", "published", "hard")
    ):  # fmt: skip
        assert chosen.preset_for(dataset) == f"{scale}-hard"
        for kind in ("hard", "soft", "taped"):
            preset, same = chosen.PRESETS[f"{scale}-{kind}"], Random.PRESETS[f"{scale}-{kind}"]
            assert preset.protocol == same.protocol
            (control, *_) = preset.controls(None)  # type: ignore[arg-type]
            assert configure(Random, control.config) == same
        assert chosen.PRESETS[f"{scale}-hard"].protocol == protocol
        assert chosen.PRESETS[f"{scale}-hard"].features == PLANS[scale].only_first()  # type: ignore[attr-defined]


def test_what_was_before_is_hashed_as_before() -> None:
    assert config_of(Herding()) == {"hops": 2, "protocol": "graphs"}
    assert set(config_of(KMeans(TARGETS["digits"]))) == {"target", "protocol"}
