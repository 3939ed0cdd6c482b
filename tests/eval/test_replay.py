"""Students of a tape: a loop over what was recorded, and for sets without one a tape of the student's own."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import cos, pi
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import hflip, resized_crop

from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.tape import Epoch, TapeRecipe, draw_tape
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.tapes import Tape
from dd_bench.targets import HardLabels, SoftLabels, TapedLabels, Targets, ThinLabels
from eval import replay as module
from eval.cells import SetFacts, read_records
from eval.judging import Bench
from eval.protocol_kinds import EvalProtocol, GraphProtocol, TapeProtocol
from eval.protocols import PROTOCOLS
from eval.replay import replay_of, train_by_tape
from eval.students import Subject, baselines_of, full_subject, judge, student_seed, subject_of

CPU = torch.device("cpu")
COUNT = 11  # batches of 4, 4 and 3, in groups of 2, of which the last has 3
BLIND = "features.0.bias"
RECIPE = TapeRecipe(epochs=2, batch=4, micro=2, smallest_crop=0.3)


@pytest.fixture
def protocol(net: str) -> TapeProtocol:
    return TapeProtocol(
        name="tiny-tape", summary="Three epochs of a tape of two.", architectures=(net,),
        training=TapeTraining(epochs=3, lr=0.01), tape=replace(RECIPE, epochs=7), temperature=2.0, full_epochs=2,
    )  # fmt: skip


@pytest.fixture
def bench(holdout: TestSplit, tmp_path: Path) -> Bench:
    return Bench("cell-0", "student 1 random", 5, Run(tmp_path / "student"), holdout, CPU)


@pytest.fixture
def images(data: ImageData) -> Tensor:
    return data.images[:COUNT].float() / 255


def taped(spec: DatasetSpec, *, epochs: int = 2, seed: int = 3, **recipe: int) -> TapedLabels:
    """Returns random labels of a tape."""
    tape = draw_tape(COUNT, spec, replace(RECIPE, epochs=epochs, **recipe), seed)  # type: ignore[arg-type]
    logits = 3 * torch.randn(epochs, COUNT, 3, generator=generator(seed))
    return TapedLabels(logits.half(), tape, torch.arange(COUNT) % 3, 4.0)


def fresh(net: str, spec: DatasetSpec) -> nn.Module:
    with seeded(5):
        return build(net, spec)


def view_of(tape: Tape, images: Tensor, epoch: int, first: int, last: int, batch: int) -> Tensor:
    """Returns a batch as torchvision crops and mirrors it, with a box pasted pixel by pixel."""
    height, width = images.shape[2:]
    shown = []
    for place in range(first, last):
        image = images[int(tape.order[epoch, place])]
        crop = resized_crop(image, *tape.crops[epoch, place].tolist(), size=[height, width], antialias=False)
        shown.append(hflip(crop) if tape.flips[epoch, place] else crop)
    mixed = [image.clone() for image in shown]
    top, bottom, left, right = tape.boxes[epoch, batch].tolist()
    for place, image in enumerate(mixed):
        partner = shown[int(tape.partners[epoch, first + place])]
        image[:, top:bottom, left:right] = partner[:, top:bottom, left:right]
    return torch.stack(mixed)


def share_of(tape: Tape, epoch: int, batch: int, spec: DatasetSpec) -> float:
    """Returns the share of the pixels that lie in a batch's box."""
    top, bottom, left, right = tape.boxes[epoch, batch].tolist()
    return (bottom - top) * (right - left) / (spec.image_shape[1] * spec.image_shape[2])


# First and last position of each batch, and where its groups end
BATCHES = ((0, 4, (0, 2, 4)), (4, 8, (0, 2, 4)), (8, 11, (0, 3)))
UNEVEN = ((0, 5, (0, 3, 5)), (5, 11, (0, 3, 6)))


def by_hand(
    model: nn.Module, images: Tensor, labels: TapedLabels, *, epochs: int, lr: float, temperature: float,
    batches: tuple[tuple[int, int, tuple[int, ...]], ...] = BATCHES,
) -> Tensor:  # fmt: skip
    """Returns the weights after training by the tape, which begins again when it is over, in a few plain lines."""
    tape, model = labels.tape, model.train()
    matrices = [one for one in model.parameters() if one.ndim > 1]
    vectors = [one for one in model.parameters() if one.ndim == 1]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}])
    for epoch in range(epochs):
        for group in adam.param_groups:
            group["lr"] = lr * (1 + cos(pi * epoch / epochs)) / 2
        at = epoch % tape.epochs
        for batch, (first, last, cuts) in enumerate(batches):
            seen, told = view_of(tape, images, at, first, last, batch), labels.logits[at, first:last].float()
            adam.zero_grad()
            for start, end in pairwise(cuts):
                target = (told[start:end] / temperature).softmax(1)
                answer = (model(seen[start:end]) / temperature).log_softmax(1)
                loss = (target * (target.log() - answer)).sum() / (last - first)
                loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
    return weights_of(model)


def weights_of(model: nn.Module) -> Tensor:
    """Returns all weights but the bias before BatchNorm, which changes nothing and moves by rounding errors alone."""
    kept = [one.detach().flatten() for name, one in model.named_parameters() if name != BLIND]
    assert len(kept) == len(list(model.parameters())) - 1
    return torch.cat(kept)


# --- sets with a tape ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "temperature"), [(2, 2.0), (1, 2.0), (5, 2.0), (2, None)])
def test_a_student_of_a_tape_matches_a_loop_by_hand(
    protocol: TapeProtocol, bench: Bench, images: Tensor, data: ImageData, net: str, epochs: int,
    temperature: float | None,
) -> None:  # fmt: skip
    """Tapes of as many epochs, of fewer, which are read again, and of more, whose end is not seen."""
    labels, model = taped(data.spec, epochs=epochs), fresh(net, data.spec)
    before = weights_of(model)
    steps = train_by_tape(
        model, images, labels, replace(protocol, temperature=temperature), bench, all_data=False
    )  # fmt: skip
    assert steps == 3 * 3
    after = weights_of(model)
    expected = by_hand(fresh(net, data.spec), images, labels, epochs=3, lr=0.01, temperature=temperature or 4.0)
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-5)
    assert (after - before).abs().mean() > 1e-3


def test_the_loss_is_the_mean_over_a_batch_whatever_its_groups(
    protocol: TapeProtocol, bench: Bench, images: Tensor, data: ImageData, net: str
) -> None:
    labels, model = taped(data.spec, batch=5, micro=3), fresh(net, data.spec)
    train_by_tape(model, images, labels, protocol, bench, all_data=False)
    expected = by_hand(
        fresh(net, data.spec), images, labels, epochs=3, lr=0.01, temperature=2.0, batches=UNEVEN
    )  # fmt: skip
    torch.testing.assert_close(weights_of(model), expected, rtol=1e-3, atol=1e-5)


def test_the_tape_of_a_set_is_every_students_own(
    protocol: TapeProtocol, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is drawn, whatever the seed and the protocol's own tape."""
    monkeypatch.setattr(module, "draw_tape", lambda *_: pytest.fail("a tape was drawn"))
    labels = taped(data.spec)
    for seed in (0, 1):
        replay = replay_of(labels, protocol, protocol.training, COUNT, data.spec, seed=seed)
        assert replay.tape is labels.tape
        for number in range(2):
            epoch = Epoch.of(labels.tape, number, CPU)
            assert replay.lessons(number, epoch).equal(labels.logits[number].float())


def test_thin_labels_teach_what_they_keep(protocol: TapeProtocol, data: ImageData) -> None:
    whole = taped(data.spec)
    thin = ThinLabels.of(whole, 1)
    replay = replay_of(thin, replace(protocol, temperature=None), protocol.training, COUNT, data.spec, seed=0)
    told = replay.lessons(1, Epoch.of(thin.tape, 1, CPU))
    assert told.shape == (COUNT, 3)
    for row, logits in zip(told.tolist(), whole.logits[1].float().tolist(), strict=True):
        best = max(range(3), key=logits.__getitem__)
        others = (sum(logits) - logits[best]) / 2
        assert row == pytest.approx([logits[k] if k == best else others for k in range(3)], abs=5e-3)
    assert replay.objective(told, told) == pytest.approx(0, abs=1e-6)
    assert replay.objective.keywords == {"temperature": 4.0}  # type: ignore[attr-defined]


# --- sets without one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_other_labels_are_mixed_by_area_on_a_tape_of_the_student(
    protocol: TapeProtocol, data: ImageData, kind: str
) -> None:
    classes = torch.arange(COUNT) % 3
    logits = torch.randn(COUNT, 3, generator=generator(1))
    targets: Targets = HardLabels(classes) if kind == "hard" else SoftLabels(logits, classes, 4.0)
    values = F.one_hot(classes, 3).float() if kind == "hard" else logits
    replay = replay_of(targets, protocol, protocol.training, COUNT, data.spec, seed=9)
    tape = draw_tape(COUNT, data.spec, replace(protocol.tape, epochs=3), derive_seed("student tape", 9))
    for name in ("order", "crops", "flips", "partners", "boxes", "bounds", "groups"):
        assert getattr(replay.tape, name).equal(getattr(tape, name)), name
    shares = []
    for number in range(3):
        told = replay.lessons(number, Epoch.of(tape, number, CPU))
        for batch, (first, last) in enumerate(((0, 4), (4, 8), (8, 11))):
            share = share_of(tape, number, batch, data.spec)
            shares.append(share)
            for place in range(first, last):
                own = values[tape.order[number, place]]
                partner = values[tape.order[number, first + tape.partners[number, place]]]
                torch.testing.assert_close(told[place], (1 - share) * own + share * partner)
    assert min(shares) < 0.2 < 0.4 < max(shares)
    one, other = torch.randn(2, 4, 3, generator=generator(2)), torch.tensor([[0.2, 0.8, 0.0]] * 4)
    if kind == "hard":
        expected = -(other * one[0].log_softmax(1)).sum(1).mean()
        torch.testing.assert_close(replay.objective(one[0], other), expected)
    else:
        target, answer = (one[1] / 2).softmax(1), (one[0] / 2).softmax(1)
        expected = (target * (target / answer).log()).sum(1).mean()
        torch.testing.assert_close(replay.objective(one[0], one[1]), expected)


def test_soft_labels_have_the_temperature_of_the_protocol_or_their_own(protocol: TapeProtocol, data: ImageData) -> None:
    soft = SoftLabels(torch.randn(COUNT, 3, generator=generator(1)), torch.arange(COUNT) % 3, 4.0)
    for told, expected in ((2.0, 2.0), (None, 4.0)):
        replay = replay_of(
            soft, replace(protocol, temperature=told), protocol.training, COUNT, data.spec, seed=0
        )  # fmt: skip
        assert replay.objective.keywords == {"temperature": expected}  # type: ignore[attr-defined]


def test_a_taped_student_is_one_whose_labels_were_written_down(
    protocol: TapeProtocol, bench: Bench, images: Tensor, data: ImageData, net: str, tmp_path: Path
) -> None:
    """A student of soft labels, and one of the same tape with the same mixed labels, are the same."""
    soft = SoftLabels(torch.randn(COUNT, 3, generator=generator(1)), torch.arange(COUNT) % 3, 4.0)
    replay = replay_of(soft, protocol, protocol.training, COUNT, data.spec, seed=bench.seed)
    book = torch.stack([replay.lessons(number, Epoch.of(replay.tape, number, CPU)) for number in range(3)])
    written = TapedLabels(book, replay.tape, soft.classes, 4.0)
    found = []
    for name, targets in (("soft", soft), ("written", written)):
        model = fresh(net, data.spec)
        train_by_tape(model, images, targets, protocol, replace(bench, run=Run(tmp_path / name)), all_data=False)
        found.append(weights_of(model))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("count", "training", "epochs", "steps"),
    [
        (11, TapeTraining(epochs=3), 3, 9),
        (11, TapeTraining(steps=7), 3, 7),
        (11, TapeTraining(steps=6), 2, 6),
        (3, TapeTraining(steps=7), 7, 7),
        (8, TapeTraining(steps=7), 4, 7),
        (9, TapeTraining(steps=7), 4, 7),  # the last one joins the batch before
        (5, TapeTraining(steps=7), 7, 7),
    ],
)
def test_a_tape_is_as_long_as_its_student(
    protocol: TapeProtocol, bench: Bench, data: ImageData, net: str, count: int, training: TapeTraining, epochs: int,
    steps: int,
) -> None:  # fmt: skip
    """No view is shown twice, and none is drawn that is not shown."""
    targets = HardLabels(torch.arange(count) % 3)
    protocol = replace(protocol, training=training)
    replay = replay_of(targets, protocol, training, count, data.spec, seed=0)
    assert replay.tape.epochs == epochs
    images = data.images[:count]
    assert train_by_tape(fresh(net, data.spec), images, targets, protocol, bench, all_data=False) == steps


@pytest.mark.parametrize("training", [TapeTraining(steps=7), TapeTraining(epochs=7, stretch=2.0)])
def test_all_data_are_trained_on_for_their_own_epochs(
    protocol: TapeProtocol, bench: Bench, data: ImageData, net: str, monkeypatch: pytest.MonkeyPatch,
    training: TapeTraining,
) -> None:  # fmt: skip
    given: list[tuple[Tape, TapeTraining]] = []
    fit = module.fit_tape

    def spy(model: nn.Module, images: Tensor, tape: Tape, *rest: Any, **named: Any) -> None:
        given.append((tape, named["training"]))
        fit(model, images, tape, *rest, **named)

    monkeypatch.setattr(module, "fit_tape", spy)
    protocol = replace(protocol, training=training)
    steps = train_by_tape(
        fresh(net, data.spec), data.images, HardLabels(data.labels), protocol, bench, all_data=True
    )  # fmt: skip
    assert steps == 2 * 30  # 120 images in batches of 4
    ((tape, told),) = given
    assert tape.epochs == 2
    assert told == replace(training, steps=0, epochs=2)


# --- judged ----------------------------------------------------------------------------------------------------------


class Judging:
    """``judge`` with everything but the subject and the protocol filled in; every call is a new process' first."""

    def __init__(self, results: Path, folder: Path, net: str) -> None:
        self.results, self.folder, self.net = results, folder, net

    def __call__(self, subject: Subject, protocol: Any, *, runs: int = 1, results: Path | None = None) -> Any:
        test = TestSplit.open("blobs", self.folder)
        judge(subject, protocol, self.net, runs=runs, test=test, device=CPU, results=results or self.results)
        ((_, record),) = read_records(results or self.results)
        return record


@pytest.fixture
def judged(results: Path, blobs_dir: Path, net: str) -> Judging:
    return Judging(results, blobs_dir, net)


@pytest.fixture
def taped_subject(subject: Any, data: ImageData) -> Subject:
    labels = taped(data.spec)
    labels = replace(labels, classes=data.labels[:COUNT])
    return replace(subject(COUNT, labels="soft"), targets=labels)


def test_a_taped_set_is_judged_by_its_tape(
    taped_subject: Subject, protocol: TapeProtocol, judged: Judging, holdout: TestSplit, data: ImageData, net: str
) -> None:
    record = judged(taped_subject, protocol, runs=2)
    assert (record.protocol_name, record.protocol_id, record.teacher_bytes) == ("tiny-tape", protocol.id, 0)
    assert record.protocol == protocol.as_json()
    assert isinstance(taped_subject.targets, TapedLabels)
    for index, student in enumerate(record.students):
        assert student.seed == student_seed(taped_subject, protocol, net, index)
        assert (student.steps, student.choice) == (9, {})
        with seeded(student.seed):
            model = build(net, data.spec)
        by_hand(model, taped_subject.images, taped_subject.targets, epochs=3, lr=0.01, temperature=2.0)
        metrics = holdout.score(f"by hand {index}", model.eval(), device=CPU)
        assert student.metrics == pytest.approx(metrics, rel=1e-3)


def test_students_of_other_sets_have_tapes_of_their_own(
    subject: Any, protocol: TapeProtocol, judged: Judging, net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    draw = module.draw_tape

    def spy(count: int, spec: DatasetSpec, recipe: TapeRecipe, seed: int) -> Tape:
        seeds.append(seed)
        return draw(count, spec, recipe, seed)

    monkeypatch.setattr(module, "draw_tape", spy)
    judged(subject(), protocol, runs=2)
    assert seeds == [derive_seed("student tape", student_seed(subject(), protocol, net, index)) for index in range(2)]


def test_resume_is_invisible(
    taped_subject: Subject, protocol: TapeProtocol, judged: Judging, tmp_path: Path, interrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The epoch under way is looked up again; steps that are done are not done again."""
    straight = judged(taped_subject, protocol, results=tmp_path / "undisturbed")
    with interrupted(lambda _, step: step == 4):
        judged(taped_subject, protocol)
    steps: list[int] = []
    original = Run.steps

    def watched(self: Run, *arguments: Any) -> Iterator[int]:
        for step in original(self, *arguments):
            steps.append(step)
            yield step

    monkeypatch.setattr(Run, "steps", watched)
    resumed = judged(taped_subject, protocol)
    assert steps == [5, 6, 7, 8]
    assert resumed.students[0].metrics == straight.students[0].metrics


def test_labels_of_a_tape_are_refused_where_augmentation_is_the_protocols(
    taped_subject: Subject, judged: Judging, results: Path
) -> None:
    for name in ("quick", "infer-static"):
        with pytest.raises(ConfigError) as refusal:
            judged(taped_subject, PROTOCOLS[name])
        assert str(refusal.value) == (
            f"the labels of infer 0123456789ab belong to a tape, but protocol {name} augments by itself; use one that "
            "replays tapes, for example fkd-quick, or one with class labels, for example hard"
        )
    thin = replace(taped_subject, targets=ThinLabels.of(taped_subject.targets, 1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="belong to a tape, but protocol quick augments by itself"):
        judged(thin, PROTOCOLS["quick"])
    assert read_records(results) == []


@pytest.mark.parametrize("thin", [False, True])
def test_a_taped_set_is_judged_by_its_classes_where_the_protocol_says_so(
    taped_subject: Subject, tiny: EvalProtocol, judged: Judging, tmp_path: Path, thin: bool
) -> None:
    hard = replace(tiny, labels="class")
    classes = replace(taped_subject, targets=HardLabels(taped_subject.targets.classes))
    if thin:
        taped_subject = replace(taped_subject, targets=ThinLabels.of(taped_subject.targets, 1))  # type: ignore[arg-type]
    assert PROTOCOLS["hard"].labels == "class"
    taped_subject.check(PROTOCOLS["hard"])
    found, expected = judged(taped_subject, hard), judged(classes, hard, results=tmp_path / "hard")
    assert found.students[0].metrics == expected.students[0].metrics


def test_a_taped_set_is_judged_by_its_teachers_where_the_protocol_says_so(
    taped_subject: Subject, tiny: EvalProtocol, judged: Judging, teacher: Any
) -> None:
    facts = taped_subject.facts.model_copy(update={"parents": (teacher(0),)})
    record = judged(replace(taped_subject, facts=facts), replace(tiny, labels="teachers", temperature=30.0))
    assert record.students[0].steps == 4


def test_tapes_are_for_images(taped_subject: Subject, judged: Judging, protocol: TapeProtocol) -> None:
    graphs = PROTOCOLS["graphs"]
    assert isinstance(graphs, GraphProtocol)
    with pytest.raises(ConfigError, match="protocol graphs is for graphs, but infer 0123456789ab of blobs holds imag"):
        judged(taped_subject, graphs)


def test_all_real_data_stand_beside_the_sets_where_they_have_epochs(
    data: ImageData, protocol: TapeProtocol, judged: Judging
) -> None:
    (full,) = baselines_of(data, protocol)
    assert full.facts == full_subject(data).facts
    assert baselines_of(data, replace(protocol, full_epochs=0)) == ()
    record = judged(full_subject(data), protocol)
    assert record.students[0].steps == 2 * 30


def test_students_learn_from_tapes(data: ImageData, protocol: TapeProtocol, judged: Judging, tmp_path: Path) -> None:
    """Real images by their classes; by permuted ones they do not."""
    long = replace(protocol, training=TapeTraining(epochs=25, lr=0.02), tape=replace(RECIPE, batch=20, micro=20))
    order = torch.randperm(120, generator=generator(0))
    scores = {}
    for name, labels in (("real", data.labels), ("permuted", data.labels[order])):
        facts = full_subject(data).facts.model_copy(update={"method": name, "ipc": 40})
        record = judged(Subject(facts, data.images, HardLabels(labels)), long, results=tmp_path / name)
        scores[name] = record.students[0].metrics["top1"]
    assert scores["real"] > 0.6
    assert scores["permuted"] < 0.5


def test_subject_of_a_stored_taped_set(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    from dd_bench.sets import Images, Provenance, SyntheticSet
    from dd_bench.store import Store

    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
    provenance = Provenance("random", "digits-taped", {}, "blobs", data.fingerprint, 4, 0, "0123456789ab")
    labels = taped(data.spec)
    stored = Store().write(SyntheticSet(Images(data.images[:COUNT]), labels, provenance, "fkd-quick"))
    made = subject_of(stored, data)
    assert isinstance(made, Subject)
    assert isinstance(made.facts, SetFacts)
    assert made.facts.labels == "taped"
    assert isinstance(made.targets, TapedLabels)
    assert made.targets.logits.equal(labels.logits)
    assert made.targets.tape.order.equal(labels.tape.order)
