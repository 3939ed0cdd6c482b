"""Transfer: a body learns from a set of one data set, and is probed and fine-tuned on another, from the first step."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import ImageData, load
from dd_bench.data.specs import SPECS, DatasetSpec
from dd_bench.errors import ConfigError, DataError, HoldoutError, InvalidSetError
from dd_bench.learn.losses import cross_entropy, distillation, mean_squared_error
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.learn.tape_training import TapeTraining, fit_tape
from dd_bench.learn.training import TrainingRecipe, fit
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.targets import Features, HardLabels, SoftLabels, TapedLabels, Targets
from eval import transfer
from eval.cells import Record, SetFacts, read_records
from eval.judging import Bench, Outcome
from eval.probe import draw_labelled, fit_probe
from eval.protocol_kinds import TransferProtocol
from eval.protocols import PROTOCOLS
from eval.students import Subject, baselines_of, judge, student_seed, subject_of
from eval.transfer import Destination, Resize, TransferSubject, check_source, full_transfer, lesson, scratch_subject
from tests.conftest import Interrupt, at

CPU = torch.device("cpu")
NET = "pyramid2-x0.015625"  # 4 and 8 channels
CORNERS = DatasetSpec("corners", (1, 10, 12), 4, (0.3,), (0.25,), mirror=True, class_names=tuple("abcd"))
TINY = TransferProtocol(
    name="tiny-transfer",
    summary="A few steps.",
    architectures=(NET,),
    source="blobs",
    target="corners",
    features=TrainingRecipe(steps=4, batch=6, lr=0.05, schedule="constant", augment="none"),
    classes=TrainingRecipe(steps=5, batch=6, lr=0.02),
    tuning=TrainingRecipe(steps=3, batch=8, lr=0.01),
    probes=(0.1, 0.25, 1.0),
    probe_draws=2,
    probe_l2=0.05,
    full_epochs=2,
    taped=TapeTraining(steps=5, lr=0.01),
)


def draw_corners(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns noise with one bright corner, uint8, and which one it is."""
    draws = generator(seed)
    labels = torch.arange(count) % 4
    images = torch.rand(count, 1, 10, 12, generator=draws) * 0.5
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 5 * (label // 2) : 5 * (label // 2) + 5, 6 * (label % 2) : 6 * (label % 2) + 6] += 0.3
    return (images * 255).byte(), labels


@pytest.fixture
def corners_dir(blobs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with both data sets."""
    monkeypatch.setitem(SPECS, CORNERS.name, CORNERS)
    (blobs_dir / "corners").mkdir()
    (train, labels), (test, test_labels) = draw_corners(40, 0), draw_corners(36, 1)
    tensors = {"train_images": train, "train_labels": labels, "test_images": test, "test_labels": test_labels}
    save_file(tensors, blobs_dir / "corners" / "data.safetensors")
    return blobs_dir


@pytest.fixture
def source(corners_dir: Path) -> ImageData:
    return load("blobs", corners_dir)


@pytest.fixture
def there(corners_dir: Path) -> Destination:
    return Destination.open(TINY, corners_dir)


MakeSubject = Callable[..., TransferSubject]


@pytest.fixture
def set_of(source: ImageData, there: Destination) -> MakeSubject:
    """Returns the first 12 images of the source as a subject with targets of a kind; ``facts`` replace its facts."""

    def make(kind: str = "features", **facts: Any) -> TransferSubject:
        classes, drawn = source.labels[:12], torch.randn(12, 5, generator=generator(3))
        targets: dict[str, Targets] = {
            "features": Features(drawn, torch.zeros(5), 2.0),
            "hard": HardLabels(classes),
            "soft": SoftLabels(drawn[:, :3].contiguous(), classes, 4.0),
        }
        if kind == "taped":
            tape = draw_tape(12, source.spec, TapeRecipe(epochs=1, batch=6, micro=3), 0)
            logits = 3 * torch.randn(1, 12, 3, generator=generator(4))
            targets["taped"] = TapedLabels(logits.half(), tape, classes, 4.0)
        known: dict[str, Any] = {
            "id": "0123456789ab", "sha256": "5e" * 32, "method": "krr-st", "preset": "digits", "dataset": "blobs",
            "fingerprint": source.fingerprint, "ipc": 4, "seed": 0, "recipe": "ba9876543210", "labels": kind,
            "images": 12, "bytes": {"images": 768}, "wall_seconds": 1.0, "teacher_seconds": 0.0, "device": "cpu",
        }  # fmt: skip
        pixels = source.images[:12].float() / 255
        return TransferSubject(SetFacts(**known | facts), source.spec, pixels, targets[kind], there)

    return make


@dataclass
class Fit:
    """What one training was given, and its network before and after."""

    images: Tensor
    values: Tensor
    named: dict[str, Any]
    before: dict[str, Tensor]
    after: dict[str, Tensor]

    def body(self, when: str) -> dict[str, Tensor]:
        return {name: value for name, value in getattr(self, when).items() if name.startswith("features.")}


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    seen: list[Fit] = []

    def spy(model: torch.nn.Module, images: Tensor, values: Tensor, **named: Any) -> None:
        before = copy.deepcopy(model.state_dict())
        assert all(parameter.requires_grad for parameter in model.parameters())
        fit(model, images, values, **named)
        seen.append(Fit(images, values, named, before, copy.deepcopy(model.state_dict())))

    monkeypatch.setattr(transfer, "fit", spy)
    return seen


Train = Callable[..., Outcome]


@pytest.fixture
def train(corners_dir: Path, tmp_path: Path) -> Train:
    """Trains one student of seed 5 in a run of its own, and has it scored."""

    def one(subject: TransferSubject, protocol: TransferProtocol = TINY) -> Outcome:
        run = Run(tmp_path / f"student-{len(list(tmp_path.glob('student-*')))}")
        test = TestSplit.open(protocol.target, corners_dir)
        return subject.train(protocol, NET, Bench("cell-0", "student 1 krr-st", 5, run, test, CPU))

    return one


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(value.equal(second[name]) for name, value in first.items())


# --- what a student goes through -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["features", "hard", "soft"])
def test_matches_reference(
    set_of: MakeSubject, source: ImageData, corners_dir: Path, train: Train, tmp_path: Path, kind: str
) -> None:
    """Written out from the data's file on."""
    subject, run = set_of(kind), Run(tmp_path / "reference")
    raw = load_file(corners_dir / "corners" / "data.safetensors")
    here = replace(CORNERS, image_shape=(1, 8, 8))

    def resized(pixels: Tensor) -> Tensor:
        return F.interpolate(pixels, size=(8, 8), mode="bilinear", antialias=True, align_corners=False)

    assert subject.images is not None
    recipe, objective, values = {
        "features": (TINY.features, F.mse_loss, getattr(subject.targets, "values", None)),
        "hard": (TINY.classes, cross_entropy, torch.eye(3)[source.labels[:12]]),
        "soft": (TINY.classes, partial(distillation, temperature=4.0), getattr(subject.targets, "logits", None)),
    }[kind]
    assert values is not None
    with seeded(5):
        network = build(NET, replace(source.spec, num_classes=values.shape[1]))
    spec = source.spec
    fit(network, subject.images, values, recipe=recipe, objective=objective, spec=spec, seed=5, run=run, label="set")
    with seeded(derive_seed("body", 5)):
        model = build(NET, here)
    model.features.load_state_dict(network.features.state_dict())
    model.eval()
    scores: dict[str, float] = {}
    with torch.no_grad():
        known, unseen = (model.embed(resized(raw[f"{split}_images"].float() / 255)) for split in ("train", "test"))
    for share, draws in ((0.1, 2), (0.25, 2), (1.0, 1)):
        found = []
        for again in range(draws):
            picked = draw_labelled(raw["train_labels"], 4, share, generator(derive_seed("probe", 5, str(share), again)))
            head = fit_probe(known[picked], raw["train_labels"][picked], 4, 0.05)
            found.append((head(unseen).argmax(1) == raw["test_labels"]).double().mean().item())
        scores[f"probe{100 * share:g}"] = fmean(found)
    images = resized(raw["train_images"].float()).round().byte()
    fit(
        model, images, torch.eye(4)[raw["train_labels"]], recipe=TINY.tuning, objective=cross_entropy, spec=here,
        seed=derive_seed("fine-tuning", 5), run=run, label="tuning",
    )  # fmt: skip
    with torch.no_grad():
        logits = model.eval()(resized(raw["test_images"].float() / 255))
    scores |= {
        "top1": (logits.argmax(1) == raw["test_labels"]).double().mean().item(),
        "nll": F.cross_entropy(logits.double(), raw["test_labels"]).item(),
    }
    outcome = train(subject)
    assert set(outcome.metrics) == {"top1", "nll", "probe10", "probe25", "probe100"}
    assert {name: round(value, 6) for name, value in outcome.metrics.items()} == {
        name: round(value, 6) for name, value in scores.items()
    }
    assert outcome.steps == (4 if kind == "features" else 5) + 3
    assert outcome.choice == {}


def test_the_body_goes_on_with_its_statistics_and_the_head_is_fresh(
    set_of: MakeSubject, train: Train, fits: list[Fit]
) -> None:
    train(set_of())
    on_the_set, tuning = fits
    assert same(on_the_set.body("after"), tuning.body("before"))
    assert not same(on_the_set.body("before"), on_the_set.body("after"))
    assert int(tuning.before["features.1.num_batches_tracked"]) == 4, "BatchNorm has counted the steps on the set"
    with seeded(derive_seed("body", 5)):
        fresh = build(NET, replace(CORNERS, image_shape=(1, 8, 8))).state_dict()
    for name in ("head.weight", "head.bias", "normalizer.mean", "normalizer.std"):
        assert tuning.before[name].equal(fresh[name])
    assert (tuning.before["head.weight"].shape[0], on_the_set.before["head.weight"].shape[0]) == (4, 5)
    assert float(on_the_set.before["normalizer.mean"]) == pytest.approx(0.25)
    assert float(tuning.before["normalizer.mean"]) == pytest.approx(0.3)
    for name, value in tuning.after.items():
        assert value.equal(tuning.before[name]) == name.startswith("normalizer"), "everything is fine-tuned"


def test_scratch_differs_only_in_where_its_body_begins(
    set_of: MakeSubject, source: ImageData, there: Destination, train: Train, fits: list[Fit]
) -> None:
    train(set_of())
    outcome = train(scratch_subject(source, there))
    ours, scratch = fits[1:]
    assert outcome.steps == 3
    assert len(fits) == 3, "it learns from no set"
    assert set(outcome.metrics) == {"top1", "nll", "probe10", "probe25", "probe100"}
    with seeded(derive_seed("body", 5)):
        assert same(scratch.before, build(NET, replace(CORNERS, image_shape=(1, 8, 8))).state_dict())
    moved = {name for name, value in scratch.before.items() if not value.equal(ours.before[name])}
    assert moved == set(scratch.body("before"))
    assert scratch.images.equal(ours.images)
    assert scratch.values.equal(ours.values)
    for name in ("recipe", "objective", "spec", "seed"):
        assert scratch.named[name] == ours.named[name]


@pytest.mark.parametrize(
    ("kind", "columns", "objective", "recipe"),
    [
        ("features", 5, mean_squared_error, TINY.features),
        ("hard", 3, cross_entropy, TINY.classes),
        ("soft", 3, distillation, TINY.classes),
    ],
)
def test_targets_decide_how_a_network_learns(
    set_of: MakeSubject, train: Train, fits: list[Fit], kind: str, columns: int, objective: Any, recipe: Any
) -> None:
    subject = set_of(kind)
    train(subject)
    on_the_set, tuning = fits
    assert on_the_set.values.shape == (12, columns)
    assert on_the_set.named["recipe"] == recipe
    assert (on_the_set.named["spec"], on_the_set.named["seed"]) == (subject.spec, 5)
    found = on_the_set.named["objective"]
    if isinstance(found, partial):
        assert found.keywords == {"temperature": 4.0}
        found = found.func
    assert found is objective
    assert tuning.named["objective"] is cross_entropy
    assert tuning.named["recipe"] == TINY.tuning
    assert tuning.named["seed"] == derive_seed("fine-tuning", 5)
    assert on_the_set.values.dtype == torch.float32
    assert tuning.values.equal(F.one_hot(subject.destination.data.labels, 4).float())
    labels = [fit.named["label"] for fit in fits]
    assert labels == ["student 1 krr-st, on the set", "student 1 krr-st, fine-tuning"]


def test_halves_of_the_numbers_become_whole(set_of: MakeSubject) -> None:
    """Targets in float16 are compared with in float32."""
    targets = set_of().targets
    assert isinstance(targets, Features)
    _, _, values = lesson(replace(targets, values=targets.values.half()), TINY, 3)
    assert values.dtype == torch.float32


def test_all_real_data_have_epochs_of_their_own(
    source: ImageData, there: Destination, train: Train, fits: list[Fit]
) -> None:
    subject = full_transfer(source, there)
    assert (subject.facts.method, subject.facts.ipc, subject.facts.images, subject.facts.labels) == (
        "full", 0, 120, "hard"
    )  # fmt: skip
    assert sum(subject.facts.bytes.values()) == 120 * 64 + 120
    outcome = train(subject)
    assert fits[0].named["recipe"] == replace(TINY.classes, steps=0, epochs=2)
    assert fits[0].images is source.images
    assert outcome.steps == 2 * 20 + 3


def test_baselines(source: ImageData, there: Destination) -> None:
    assert [one.facts.method for one in baselines_of(source, TINY, there)] == ["scratch", "full"]
    assert [one.facts.method for one in baselines_of(source, replace(TINY, full_epochs=0), there)] == ["scratch"]
    assert baselines_of(source, TINY) == ()
    scratch = scratch_subject(source, there)
    assert (scratch.facts.ipc, scratch.facts.bytes, scratch.facts.dataset) == (0, {"images": 0}, "blobs")
    assert scratch.judged_on == full_transfer(source, there).judged_on == ("corners", there.data.fingerprint)


def test_the_test_split_is_looked_at_once_for_the_probes_and_once_in_the_end(
    set_of: MakeSubject, tmp_path: Path, corners_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[tuple[str, int]] = []
    score_heads = TestSplit.score_heads

    def spy(self: TestSplit, student: str, embed: Any, heads: Any, **named: Any) -> Any:
        looks.append((student, len(heads)))
        return score_heads(self, student, embed, heads, **named)

    monkeypatch.setattr(TestSplit, "score_heads", spy)
    test = TestSplit.open("corners", corners_dir)
    set_of().train(TINY, NET, Bench("cell-0", "student 1", 5, Run(tmp_path / "first"), test, CPU))
    assert looks == [("cell-0 probes", 2 + 2 + 1), ("cell-0 tuned", 1)]
    with pytest.raises(HoldoutError):
        set_of().train(TINY, NET, Bench("cell-0", "student 1", 5, Run(tmp_path / "again"), test, CPU))


def test_labels_of_a_tape_are_replayed(
    set_of: MakeSubject, fits: list[Fit], train: Train, source: ImageData, tmp_path: Path
) -> None:
    subject = set_of("taped")
    labels, images = subject.targets, subject.images
    assert isinstance(labels, TapedLabels)
    assert images is not None
    outcome = train(subject)
    with seeded(5):
        network = build(NET, source.spec)
    fit_tape(
        network, images, labels.tape, lambda _, __: labels.logits[0].float(), training=TINY.taped,
        objective=partial(distillation, temperature=4.0), run=Run(tmp_path / "reference"), label="reference",
    )  # fmt: skip
    (tuning,) = fits
    learned = {name: value for name, value in network.state_dict().items() if name.startswith("features.")}
    assert tuning.body("before").keys() == learned.keys()
    assert all(tuning.body("before")[name].equal(value) for name, value in learned.items())
    assert outcome.steps == 5 + 3


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_equal_sizes_stay_as_they_are() -> None:
    resize, pixels = Resize(CORNERS), torch.rand(3, 1, 10, 12)
    assert resize(pixels) is pixels
    images = (pixels * 255).byte()
    assert resize.all(images) is images


@pytest.mark.parametrize("shape", [(5, 6), (20, 24), (7, 31)])
def test_resize_matches_reference(shape: tuple[int, int]) -> None:
    """Bilinearly, without aliases: along each side, a triangle as wide as the wider of the two grids."""
    pixels = torch.rand(4, 1, *shape, generator=generator(0))
    found = Resize(CORNERS)(pixels)
    assert found.shape == (4, 1, 10, 12)

    def weights(old: int, new: int) -> Tensor:
        reach = max(old / new, 1.0)
        centres = (torch.arange(new).double() + 0.5) * old / new
        away = (torch.arange(old).double() + 0.5 - centres[:, None]).abs() / reach
        rows = (1 - away).clamp_min(0)
        return rows / rows.sum(1, keepdim=True)

    down, across = weights(shape[0], 10), weights(shape[1], 12)
    torch.testing.assert_close(found.double(), down @ pixels.double() @ across.T, rtol=0, atol=1e-5)
    many = (torch.rand(1003, 1, *shape, generator=generator(1)) * 255).byte()
    whole = Resize(CORNERS).all(many)
    assert (whole.shape, whole.dtype) == ((1003, 1, 10, 12), torch.uint8)
    assert (whole.float() - Resize(CORNERS)(many.float())).abs().max() <= 0.5001


def test_students_see_the_target_in_the_size_of_the_source(
    set_of: MakeSubject, train: Train, fits: list[Fit], there: Destination
) -> None:
    train(set_of())
    assert fits[1].images.shape == (40, 1, 8, 8)
    assert fits[1].images.dtype == torch.uint8
    assert fits[1].named["spec"] == replace(CORNERS, image_shape=(1, 8, 8))
    assert there.data.images.shape == (40, 1, 10, 12)


# --- cells and records -----------------------------------------------------------------------------------------------


def judged(subject: Any, protocol: TransferProtocol, data_dir: Path, results: Path, *, runs: int = 1) -> int:
    test = TestSplit.open(protocol.target, data_dir)
    return judge(subject, protocol, NET, runs=runs, test=test, device=CPU, results=results)


def lasting(results: Path) -> dict[str, Any]:
    """Returns the only record without the times, which no two runs share."""
    ((_, record),) = read_records(results)
    facts = record.model_dump(mode="json")
    for student in facts["students"]:
        del student["train_seconds"], student["date"]
    return facts


def test_the_record_says_on_what_it_was_judged(
    set_of: MakeSubject, there: Destination, corners_dir: Path, results: Path
) -> None:
    subject = set_of()
    assert judged(subject, TINY, corners_dir, results, runs=2) == 2
    assert judged(subject, TINY, corners_dir, results, runs=2) == 0
    ((path, record),) = read_records(results)
    assert record.target_fingerprint == there.data.fingerprint != record.set.fingerprint
    assert record.set == subject.facts
    assert record.protocol == TINY.as_json()
    assert (record.teacher_bytes, record.headline) == (0, "top1")
    assert path.relative_to(results).parts[0] == "blobs"
    for index, student in enumerate(record.students):
        assert student.seed == student_seed(subject, TINY, NET, index)
        assert student.steps == 7
    assert record.students[0].metrics != record.students[1].metrics


@pytest.mark.parametrize("stage", ["on the set", "fine-tuning"])
@pytest.mark.parametrize("step", [0, 2])
def test_resumes_without_a_trace(
    set_of: MakeSubject, corners_dir: Path, results: Path, tmp_path: Path, interrupted: Interrupt,
    monkeypatch: pytest.MonkeyPatch, stage: str, step: int,
) -> None:  # fmt: skip
    protocol = replace(TINY, tuning=replace(TINY.tuning, steps=4))
    judged(set_of(), protocol, corners_dir, results)
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "interrupted"))
    other = tmp_path / "other"
    with interrupted(at(f"student 1 krr-st, {stage}", step)):
        judged(set_of(), protocol, corners_dir, other)
    assert read_records(other) == []
    assert judged(set_of(), protocol, corners_dir, other) == 1
    assert lasting(other) == lasting(results)


def test_rejects_another_copy_of_the_target(
    set_of: MakeSubject, corners_dir: Path, results: Path, there: Destination
) -> None:
    """Be it the one that judges now, or the one that is on record."""
    judged(set_of(), TINY, corners_dir, results)
    raw = load_file(corners_dir / "corners" / "data.safetensors")
    raw["test_images"] = 255 - raw["test_images"]
    save_file(raw, corners_dir / "corners" / "data.safetensors")
    with pytest.raises(InvalidSetError, match=r"was made from corners with fingerprint \w{12}, but the data here have"):
        judged(set_of(), TINY, corners_dir, results)
    other = Destination.open(TINY, corners_dir)
    assert other.data.fingerprint != there.data.fingerprint
    with pytest.raises(
        InvalidSetError,
        match=f"json was judged on data with fingerprint {there.data.fingerprint[:12]}, but the data here have "
        f"{other.data.fingerprint[:12]}; point --data-dir at the copy it was judged on, or delete the record",
    ):
        judged(replace(set_of(), destination=other), TINY, corners_dir, results)
    assert len(read_records(results)) == 1


def test_a_target_that_is_the_source_is_not_told(source: ImageData, corners_dir: Path, results: Path) -> None:
    home = replace(TINY, target="blobs")
    judged(scratch_subject(source, Destination.open(home, corners_dir)), home, corners_dir, results)
    ((path, record),) = read_records(results)
    assert record.target_fingerprint == ""
    assert "target_fingerprint" not in path.read_text()


# --- refusals --------------------------------------------------------------------------------------------------------


def test_rejects_what_it_is_not_for(set_of: MakeSubject, source: ImageData, there: Destination) -> None:
    subject = set_of()
    subject.check(TINY)
    for kind in ("hard", "soft", "taped"):
        set_of(kind).check(TINY)
    scratch_subject(source, there).check(TINY)
    set_of(dataset="blobs@10/5").check(TINY)
    cases: list[tuple[TransferSubject, Any, str]] = [
        (subject, PROTOCOLS["quick"], "protocol quick does not transfer; use one that does, for example"),
        (subject, PROTOCOLS["fkd-quick"], "protocol fkd-quick does not transfer"),
        (subject, PROTOCOLS["graphs"], "protocol graphs does not transfer"),
        (subject, replace(TINY, source="corners"), "protocol tiny-transfer is for sets of corners, but these "
         "are of blobs; no protocol transfers from there (ddbench list protocols)"),
        (set_of(dataset="blobs@10/5"), replace(TINY, source="digits"), "is for sets of digits, but these "
         "are of blobs@10/5"),
        (subject, replace(TINY, target="blobs"), "protocol tiny-transfer leads to blobs, not to corners"),
        (replace(subject, spec=replace(source.spec, image_shape=(3, 8, 8))), TINY,
         "images of blobs have 3 channels, those of corners 1; expected as many"),
    ]  # fmt: skip
    for wrong, protocol, message in cases:
        with pytest.raises(ConfigError) as caught:
            wrong.check(protocol)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_names_the_protocols_of_a_source() -> None:
    with pytest.raises(
        ConfigError, match=r"but these are of cifar10@5; use transfer-cifar-back or transfer-small-back$"
    ):
        check_source(TINY, "cifar10@5")


@pytest.mark.parametrize("protocol", ["quick", "fkd-quick", "hard", "mtt", "infer-dyn"])
def test_rejects_features_where_classes_are_taught(set_of: MakeSubject, protocol: str) -> None:
    features = set_of()
    assert features.images is not None
    subject = Subject(features.facts, features.images, features.targets or HardLabels(torch.zeros(12).long()))
    with pytest.raises(ConfigError) as caught:
        subject.check(PROTOCOLS[protocol])
    assert str(caught.value) == (
        f"the targets of krr-st 0123456789ab are features, but protocol {protocol} teaches classes; use one that "
        "transfers, for example transfer-small (ddbench list protocols)"
    )


def test_rejects_a_transfer_to_nowhere(set_of: MakeSubject, corners_dir: Path, results: Path) -> None:
    hard = set_of("hard")
    assert hard.images is not None
    assert hard.targets is not None
    subject = Subject(hard.facts, hard.images, hard.targets)
    with pytest.raises(ConfigError, match="protocol tiny-transfer is for another data set, which was not given, but"):
        judged(subject, replace(TINY, target="blobs"), corners_dir, results)
    with pytest.raises(ConfigError, match="protocol graphs is for graphs, but krr-st 0123456789ab of blobs holds"):
        subject.check(PROTOCOLS["graphs"])


def test_rejects_a_target_that_is_not_there(corners_dir: Path) -> None:
    (corners_dir / "corners" / "data.safetensors").write_bytes(b"no data")
    with pytest.raises(DataError, match=r"corners/data\.safetensors"):
        Destination.open(TINY, corners_dir)


def test_there_are_no_teachers_and_no_twins(set_of: MakeSubject) -> None:
    assert set_of(parents=("t1",)).teachers(TINY) == ()
    assert set_of().students(7) == 7


def test_subject_of_a_stored_set(
    source: ImageData, there: Destination, set_of: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
    provenance = Provenance(
        method="krr-st", preset="digits", config={}, dataset="blobs", fingerprint=source.fingerprint, ipc=4, seed=3,
        recipe="0123456789ab", parents=("t1",), device="cpu", wall_seconds=1.5, teacher_seconds=2.5,
    )  # fmt: skip
    features = set_of().targets
    assert isinstance(features, Features)
    stored = Store().write(SyntheticSet(Images(source.images[:12]), features, provenance, "tiny-transfer"))
    made = subject_of(stored, source, there)
    assert isinstance(made, TransferSubject)
    assert made.destination is there
    assert made.spec is source.spec
    assert made.images is not None
    assert made.images.equal(source.images[:12].float() / 255)
    assert isinstance(made.targets, Features)
    assert made.targets.values.equal(features.values)
    assert made.facts.labels == "features"
    assert made.judged_on == ("corners", there.data.fingerprint)
    alone = subject_of(stored, source)
    assert isinstance(alone, Subject)
    assert alone.judged_on == ("blobs", source.fingerprint)


# --- does any of this measure anything? ------------------------------------------------------------------------------


def test_a_body_that_has_seen_the_shapes_knows_them_again(source: ImageData, corners_dir: Path, results: Path) -> None:
    """Trained on all blobs, and judged on blobs: probes of a few labels say so, fresh bodies know less."""
    protocol = replace(
        TINY, target="blobs", probes=(0.05, 1.0), probe_draws=5, probe_l2=0.01, full_epochs=8,
        classes=TrainingRecipe(steps=60, batch=40, lr=0.1, augment="none"),
        tuning=TrainingRecipe(steps=10, batch=40, lr=0.01, augment="none"),
    )  # fmt: skip
    there = Destination.open(protocol, corners_dir)
    found: dict[str, Record] = {}
    for subject in baselines_of(source, protocol, there):
        test = TestSplit.open("blobs", corners_dir)
        judge(subject, protocol, "pyramid2-x0.0625", runs=2, test=test, device=CPU, results=results)
    for _, record in read_records(results):
        found[record.set.method] = record
    for metric in ("top1", "probe5"):
        full, scratch = (
            fmean(student.metrics[metric] for student in found[name].students) for name in ("full", "scratch")
        )
        assert full > scratch + 0.1, metric


def test_the_larger_of_both_sizes_says_how_many_images_come_at_once(set_of: MakeSubject) -> None:
    subject = set_of()
    assert subject._at_once(1024) == 1024
    large = replace(CORNERS, image_shape=(1, 128, 128))
    assert replace(subject, spec=large)._at_once(1024) == 256
    there = replace(subject.destination, data=replace(subject.destination.data, spec=large))
    assert replace(subject, destination=there)._at_once(1024) == 256
