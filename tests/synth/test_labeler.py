"""Labels: the plain mean of the teachers' logits, or their sum over every view of a tape, and teachers as they were."""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.data.images import ImageData
from dd_bench.errors import DDBenchError
from dd_bench.learn.losses import distillation
from dd_bench.learn.tape import Epoch, TapeRecipe, draw_tape
from dd_bench.learn.tape_training import TapeTraining, fit_tape
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from dd_bench.tapes import Tape
from synth.parts.labeler import label_images, label_tape
from tests.conftest import BLOBS, Interrupt, at

CPU = torch.device("cpu")
RECIPE = TapeRecipe(epochs=3, batch=8, micro=4)
STAGE = "labels of the tape"


class Counting(nn.Module):
    """Notes the batches it gets, and their sizes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.batches: list[int] = []
        self.shown: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        self.shown.append(pixels.clone())
        logits: Tensor = self.model(pixels)
        return logits


@pytest.fixture
def teachers() -> list[nn.Module]:
    """Two networks whose running statistics are far from those of a batch, so that the mode shows."""
    with seeded(0):
        models = [build(name, BLOBS) for name in ("convnet1-batch-x0.0625", "resnet18-x0.125")]
        for model in models:
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    assert layer.running_mean is not None
                    layer.running_mean.normal_()
    return [model.eval().requires_grad_(False) for model in models]


def draw(count: int) -> Tensor:
    return torch.rand(count, *BLOBS.image_shape, generator=generator(count))


def naive(images: Tensor, teachers: Sequence[nn.Module]) -> Tensor:
    rows = []
    with torch.no_grad():
        for image in images:
            logits = [teacher(image[None])[0] for teacher in teachers]
            rows.append(sum(logits[1:], start=logits[0]) / len(logits))
    return torch.stack(rows)


@pytest.mark.parametrize(("count", "batches"), [(1, [1]), (256, [256]), (257, [256, 1]), (515, [256, 256, 3])])
def test_matches_reference(teachers: list[nn.Module], run: Run, count: int, batches: list[int]) -> None:
    images = draw(count)
    counted = [Counting(teacher) for teacher in teachers]
    logits = label_images(images, counted, device=CPU, run=run)
    assert (logits.shape, logits.dtype) == ((count, 3), torch.float32)
    torch.testing.assert_close(logits, naive(images, teachers), rtol=1e-4, atol=1e-5)
    assert [teacher.batches[-len(batches) :] for teacher in counted] == [batches, batches]


def test_one_teacher_speaks_for_itself(teachers: list[nn.Module], run: Run) -> None:
    images = draw(5)
    assert label_images(images, teachers[:1], device=CPU, run=run).equal(teachers[0](images))


def test_raw_logits(teachers: list[nn.Module], run: Run) -> None:
    """No temperature, no softmax: a bias moves labels by itself."""
    images = draw(5)
    with torch.no_grad():
        before = naive(images, teachers[:1])
        teachers[0].head.bias += 100  # type: ignore[union-attr, operator]
    torch.testing.assert_close(label_images(images, teachers[:1], device=CPU, run=run), before + 100)


def test_teachers_stay_as_they_were(teachers: list[nn.Module], run: Run) -> None:
    states = [{name: value.clone() for name, value in teacher.state_dict().items()} for teacher in teachers]
    logits = label_images(draw(40), teachers, device=CPU, run=run)
    assert not logits.requires_grad
    for teacher, state in zip(teachers, states, strict=True):
        assert not any(module.training for module in teacher.modules())
        assert all(value.equal(state[name]) for name, value in teacher.state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.parameters())


def test_images_stay_as_they_were(teachers: list[nn.Module], run: Run, blobs: ImageData) -> None:
    images = blobs.images.float() / 255
    label_images(images, teachers, device=CPU, run=run)
    assert images.equal(blobs.images.float() / 255)


def test_resume_is_invisible(teachers: list[nn.Module], run: Run, interrupted: Interrupt) -> None:
    images = draw(600)
    expected = label_images(images, teachers, device=CPU, run=Run(run.folder / "straight"))
    with interrupted(at("labels", 1)):
        label_images(images, teachers, device=CPU, run=run)
    counted = [Counting(teacher) for teacher in teachers]
    assert label_images(images, counted, device=CPU, run=run).equal(expected)
    assert counted[1].batches == [88]  # what was left


# --- labels of a tape ------------------------------------------------------------------------------------------------


def tape_of(count: int = 21, recipe: TapeRecipe = RECIPE) -> Tape:
    return draw_tape(count, BLOBS, recipe, 3)


def label(
    images: Tensor, tape: Tape, teachers: Sequence[nn.Module], folder: Path, *, weights: Sequence[float] = (0.75, 0.25),
    statistics: Any = "batch", num_classes: int = 3,
) -> Tensor:  # fmt: skip
    return label_tape(
        images, tape, teachers, weights, num_classes=num_classes, statistics=statistics, device=CPU, run=Run(folder)
    )


def in_training_mode(teacher: nn.Module) -> nn.Module:
    """A copy that normalises by its batch, as the published code has it."""
    return copy.deepcopy(teacher).train()


def spans(edges: Tensor) -> list[tuple[int, int]]:
    return list(itertools.pairwise(edges.tolist()))


def states(teachers: Sequence[nn.Module]) -> list[Any]:
    """Everything a teacher is: numbers, where they lie, modes, hooks, and whether it can be trained."""
    return [
        [(name, tensor.data_ptr(), tensor.tolist()) for name, tensor in teacher.state_dict().items()]
        + [(name, module.training, len(module._forward_pre_hooks)) for name, module in teacher.named_modules()]
        + [(name, one.requires_grad, one.grad) for name, one in teacher.named_parameters()]
        for teacher in teachers
    ]


@pytest.mark.parametrize("count", [21, 16, 17, 3, 2])
@pytest.mark.parametrize("weights", [(0.75, 0.25), (0.5, 0.5), (2.0, -1.0), (0.0, 1.0)])
def test_batch_statistics_are_training_modes(
    teachers: list[nn.Module], tmp_path: Path, count: int, weights: tuple[float, float]
) -> None:
    """Whose networks have no dropout; group by group, votes as they are weighted."""
    images, tape = draw(count), tape_of(count)
    logits = label(images, tape, teachers, tmp_path, weights=weights)
    assert (logits.shape, logits.dtype, logits.requires_grad) == ((3, count, 3), torch.float16, False)
    for number in range(3):
        epoch = Epoch.of(tape, number, CPU)
        shown = torch.cat([epoch.pixels(images, batch) for batch in range(len(tape.ranges()))])
        for first, last in spans(tape.groups):
            with torch.no_grad():
                votes = [in_training_mode(teacher)(shown[first:last]) for teacher in teachers]
            expected = weights[0] * votes[0] + weights[1] * votes[1]
            torch.testing.assert_close(logits[number, first:last].float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("count", "batch", "micro"), [(300, 16, 8), (523, 16, 8), (290, 10, 4), (601, 300, 300), (600, 300, 7)]
)
def test_batch_statistics_of_many_batches(
    teachers: list[nn.Module], tmp_path: Path, count: int, batch: int, micro: int
) -> None:
    """However many go through the teachers at once, and whatever is left over."""
    images, tape = draw(count), tape_of(count, TapeRecipe(epochs=1, batch=batch, micro=micro))
    logits = label(images, tape, teachers[:1], tmp_path, weights=[1.0])
    epoch, trained = Epoch.of(tape, 0, CPU), in_training_mode(teachers[0])
    shown = torch.cat([epoch.pixels(images, number) for number in range(len(tape.ranges()))])
    with torch.no_grad():
        expected = torch.cat([trained(shown[first:last]) for first, last in spans(tape.groups)])
    torch.testing.assert_close(logits[0].float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("count", [21, 17, 2, 1])
def test_running_statistics_are_evaluation_modes(teachers: list[nn.Module], tmp_path: Path, count: int) -> None:
    """One view at a time: with them no view knows of another."""
    images, tape = draw(count), tape_of(count)
    logits = label(images, tape, teachers, tmp_path, statistics="running", weights=(0.5, 0.5))
    for number in range(3):
        epoch = Epoch.of(tape, number, CPU)
        shown = torch.cat([epoch.pixels(images, batch) for batch in range(len(tape.ranges()))])
        torch.testing.assert_close(logits[number].float(), naive(shown, teachers), rtol=2e-3, atol=2e-3)


def test_kinds_of_statistics_differ(teachers: list[nn.Module], tmp_path: Path) -> None:
    images, tape = draw(21), tape_of()
    batch, running = (label(images, tape, teachers, tmp_path / kind, statistics=kind) for kind in ("batch", "running"))
    assert (batch - running).abs().max() > 0.1


@pytest.mark.parametrize(("statistics", "known"), [("batch", True), ("running", False)])
def test_company_counts_with_batch_statistics_alone(
    teachers: list[nn.Module], tmp_path: Path, statistics: str, known: bool
) -> None:
    """One image gives way to another; without CutMix, who was not in its group has the label it had."""
    images, tape = draw(21), tape_of()
    tape = replace(tape, boxes=torch.zeros_like(tape.boxes))
    other = images.clone()
    other[7] = 1 - other[7]
    before, after = (
        label(pixels, tape, teachers, tmp_path / name, statistics=statistics)
        for name, pixels in (("before", images), ("after", other))
    )
    for number in range(3):
        place = tape.order[number].tolist().index(7)
        first, last = next(span for span in spans(tape.groups) if span[0] <= place < span[1])
        moved = (before[number] != after[number]).any(1)
        assert moved[place]
        partners = [position for position in range(first, last) if position != place]
        assert bool(moved[partners].all()) == bool(moved[partners].any()) == known
        assert not moved[:first].any()
        assert not moved[last:].any()


@pytest.mark.parametrize(("statistics", "known"), [("batch", True), ("running", False)])
def test_labels_change_with_the_groups(teachers: list[nn.Module], tmp_path: Path, statistics: str, known: bool) -> None:
    images, tape = draw(16), tape_of(16)
    other = replace(tape, groups=torch.tensor([0, 6, 8, 12, 16], dtype=torch.int32))
    before, after = (
        label(images, one, teachers, tmp_path / name, statistics=statistics)
        for name, one in (("before", tape), ("after", other))
    )
    assert bool((before[:, :8] != after[:, :8]).any()) == known
    assert torch.equal(before[:, 8:], after[:, 8:])


@pytest.mark.parametrize("count", [21, 17, 5, 2])
def test_teachers_see_what_students_will(teachers: list[nn.Module], tmp_path: Path, count: int) -> None:
    """To the bit, in the same groups, mixed images and all."""
    images, tape = (draw(count) * 255).byte(), tape_of(count)
    teacher, student = (Counting(model) for model in (teachers[0], in_training_mode(teachers[1])))
    logits = label(images, tape, [teacher], tmp_path / "labels", weights=[1.0])
    told: list[Tensor] = []

    def objective(answers: Tensor, values: Tensor) -> Tensor:
        told.append(values)
        return distillation(answers, values, 20.0)

    student.requires_grad_()
    fit_tape(
        student, images, tape, lambda number, _: logits[number].float(), training=TapeTraining(epochs=3),
        objective=objective, run=Run(tmp_path / "student"), label="fit",
    )  # fmt: skip
    rows = [image.numpy().tobytes() for image in torch.cat(teacher.shown)]
    assert len(rows) == len(set(rows)) == 3 * count
    assert student.batches == [last - first for first, last in spans(tape.groups)] * 3
    for group in student.shown:  # is one after the other in what the teacher saw, too
        places = [rows.index(image.numpy().tobytes()) for image in group]
        assert places == list(range(places[0], places[0] + len(group)))
    with torch.no_grad():
        taught = [in_training_mode(teachers[0])(shown) for shown in student.shown]
    torch.testing.assert_close(torch.cat(told), torch.cat(taught), rtol=2e-3, atol=2e-3)


def test_labels_are_of_the_mixed_image(teachers: list[nn.Module], tmp_path: Path) -> None:
    images, tape = draw(21), tape_of()
    plain = replace(tape, boxes=torch.zeros_like(tape.boxes))
    mixed, unmixed = (label(images, one, teachers, tmp_path / str(at)) for at, one in enumerate((tape, plain)))
    areas = (tape.boxes[..., 1] - tape.boxes[..., 0]) * (tape.boxes[..., 3] - tape.boxes[..., 2])
    for number, (batch, (start, end)) in itertools.product(range(3), enumerate(tape.ranges())):
        same = torch.equal(mixed[number, start:end], unmixed[number, start:end])
        assert same == (int(areas[number, batch]) == 0)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_teachers_of_a_tape_stay_as_they_were(teachers: list[nn.Module], tmp_path: Path, statistics: str) -> None:
    images = draw(21)
    before, kept = states(teachers), images.clone()
    label(images, tape_of(), teachers, tmp_path, statistics=statistics)
    assert states(teachers) == before
    assert torch.equal(images, kept)


@pytest.mark.parametrize("call", [0, 1, 2])
def test_teachers_stay_as_they_were_after_a_failure(teachers: list[nn.Module], tmp_path: Path, call: int) -> None:
    before, calls = states(teachers), itertools.count()

    def fail(*_: Any) -> None:
        if next(calls) == call:
            raise RuntimeError("out of memory")

    handle = teachers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        label(draw(21), tape_of(), teachers, tmp_path)
    handle.remove()
    assert states(teachers) == before


def test_a_teacher_may_vote_twice(teachers: list[nn.Module], tmp_path: Path) -> None:
    before, images = states(teachers), draw(21)
    twice = label(images, tape_of(), [teachers[0], teachers[0]], tmp_path / "a", weights=(0.25, 0.5))
    once = label(images, tape_of(), teachers[:1], tmp_path / "b", weights=(0.75,))
    torch.testing.assert_close(twice, once, rtol=2e-3, atol=2e-3)
    assert states(teachers) == before


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_dropout_stays_off(teachers: list[nn.Module], tmp_path: Path, statistics: str) -> None:
    images = draw(21)
    with_dropout = nn.Sequential(nn.Dropout(0.5), teachers[1], nn.Dropout(0.5)).eval()
    dropped = label(images, tape_of(), [with_dropout], tmp_path / "a", weights=[1.0], statistics=statistics)
    plain = label(images, tape_of(), teachers[1:], tmp_path / "b", weights=[1.0], statistics=statistics)
    assert torch.equal(dropped, plain)


def test_nothing_is_drawn(teachers: list[nn.Module], tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    first = label(draw(21), tape_of(), teachers, tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before)
    as_bytes = (draw(21) * 255).byte()
    again = [
        label(pixels, tape_of(), teachers, tmp_path / name)
        for name, pixels in (("b", draw(21)), ("c", as_bytes), ("d", as_bytes.float() / 255))
    ]
    assert torch.equal(first, again[0])
    assert torch.equal(again[1], again[2])


@pytest.mark.parametrize("weights", [(1.0,), (0.5, 0.25, 0.25), ()])
def test_rejects_another_number_of_weights(
    teachers: list[nn.Module], tmp_path: Path, weights: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match="zip"):
        label(draw(5), tape_of(5), teachers, tmp_path, weights=weights)


@pytest.mark.parametrize("stops", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_resumed_labels_are_the_same(
    teachers: list[nn.Module], tmp_path: Path, interrupted: Interrupt, statistics: str, stops: tuple[int, ...]
) -> None:
    images, tape, before = draw(21), tape_of(), states(teachers)
    expected = label(images, tape, teachers, tmp_path / "straight", statistics=statistics)
    counted = [Counting(teacher) for teacher in teachers]
    for stop in stops:
        with interrupted(at(STAGE, stop)):
            label(images, tape, counted, tmp_path / "run", statistics=statistics)
        assert states(teachers) == before
    assert torch.equal(label(images, tape, counted, tmp_path / "run", statistics=statistics), expected)
    assert torch.equal(label(images, tape, counted, tmp_path / "run", statistics=statistics), expected)
    assert sum(counted[0].batches) == sum(counted[1].batches) == 3 * 21  # no epoch twice, and finished is finished
    books = [next((tmp_path / name).glob("*.f16")).read_bytes() for name in ("straight", "run")]
    assert books[0] == books[1]


def test_labels_of_another_tape_or_a_cut_book_are_refused(
    teachers: list[nn.Module], tmp_path: Path, interrupted: Interrupt
) -> None:
    images = draw(21)
    with interrupted(at(STAGE, 1)):
        label(images, tape_of(), teachers, tmp_path)
    for count, recipe, match in ((21, replace(RECIPE, epochs=5), "with 3 steps"), (20, RECIPE, "labels of shape")):
        with pytest.raises(DDBenchError, match=match):
            label(images[:count], tape_of(count, recipe), teachers, tmp_path)
    book = next(tmp_path.glob("*.f16"))
    book.write_bytes(book.read_bytes()[:-1])
    with pytest.raises(DDBenchError, match="ends before epoch 2"):
        label(images, tape_of(), teachers, tmp_path)


def test_stages_of_other_names_have_books_of_their_own(teachers: list[nn.Module], run: Run) -> None:
    images, tape = draw(21), tape_of()
    facts: Callable[..., Tensor] = lambda name, teacher: label_tape(  # noqa: E731
        images, tape, [teacher], [1.0], num_classes=3, statistics="batch", device=CPU, run=run, label=name
    )
    first, second = facts("one of them", teachers[0]), facts("the other", teachers[1])
    assert not torch.equal(first, second)
    assert torch.equal(facts("one of them", teachers[0]), first)
    assert torch.equal(facts("the other", teachers[1]), second)
