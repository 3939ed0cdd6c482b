"""Training by tape: a plain loop's, to the bit, with batch statistics of the recorded groups, and stopped anywhere."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, NonFiniteError
from dd_bench.learn.losses import cross_entropy, distillation
from dd_bench.learn.tape import Epoch, Lessons, TapeRecipe, constant_lessons, draw_tape
from dd_bench.learn.tape_training import TapeTraining, fit_tape
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from dd_bench.tapes import Tape
from tests.conftest import Interrupt, at

CPU = torch.device("cpu")
SPEC = DatasetSpec("toy", (2, 8, 8), 3, (0.5, 0.4), (0.2, 0.3), True, ("a", "b", "c"))
RECIPE = TapeRecipe(epochs=4, batch=6, micro=4)
PLAIN = TapeTraining(epochs=4, lr=0.01, weight_decay=0.1)
NORMED, BARE = "convnet1-batch-x0.0625", "convnet1-none-x0.0625"
SOFT = partial(distillation, temperature=20.0)


def data(count: int = 20) -> tuple[Tensor, Tensor]:
    """Images (N, 2, 8, 8) uint8 and logits (N, 3)."""
    draws = generator(0)
    images = torch.randint(0, 256, (count, *SPEC.image_shape), dtype=torch.uint8, generator=draws)
    return images, 5 * torch.randn(count, 3, generator=draws)


def network(name: str = NORMED) -> nn.Module:
    with seeded(1):
        return build(name, SPEC)


def draw(count: int = 20, recipe: TapeRecipe = RECIPE) -> Tape:
    return draw_tape(count, SPEC, recipe, 3)


def book(tape: Tape) -> Lessons:
    """Values of every view, by epoch and position."""
    logits = 5 * torch.randn(tape.epochs, len(tape), 3, generator=generator(4))
    return lambda number, _: logits[number]


def train(
    folder: Path, training: TapeTraining = PLAIN, *, tape: Tape | None = None, model: nn.Module | None = None,
    **options: Any,
) -> nn.Module:  # fmt: skip
    tape = draw() if tape is None else tape
    model = network() if model is None else model
    run = Run(folder, save_every_seconds=options.pop("save_every_seconds", 1e9))
    known = {"lessons": book(tape), "objective": SOFT, "run": run, "label": "fit", "images": data(len(tape))[0]}
    fit_tape(model, tape=tape, training=training, **{**known, **options})
    return model


def state_bytes(model: nn.Module) -> list[tuple[str, bytes]]:
    return [(name, tensor.contiguous().numpy().tobytes()) for name, tensor in model.state_dict().items()]


def distance(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of any two numbers of their states."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


def rate(training: TapeTraining, step: int, batches: int) -> float:
    """CV-DD's: lr/2 (1 + cos(pi e / (E eta))), e the epoch; where steps count, the step."""
    now, end = (step // batches, training.epochs) if training.epochs else (step, training.steps)
    return training.lr / 2 * (1 + math.cos(math.pi * now / (end * training.stretch)))


class Watched(nn.Module):
    """Notes what it is shown."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.shown: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.shown.append(pixels.detach().clone())
        logits: Tensor = self.model(pixels)
        return logits


# --- the plain loop's -------------------------------------------------------------------------------------------------

TRAININGS = {
    "epochs": PLAIN,
    "eta 2": replace(PLAIN, stretch=2.0),
    "eta 1.5, no decay": replace(PLAIN, stretch=1.5, weight_decay=0.0),
    "longer than the tape": replace(PLAIN, epochs=7),
    "shorter": replace(PLAIN, epochs=2),
    "steps": replace(PLAIN, epochs=0, steps=10, stretch=2.0),
    "one step": replace(PLAIN, epochs=0, steps=1),
    "more steps than the tape": replace(PLAIN, epochs=0, steps=19),
}


@pytest.mark.parametrize("count", [20, 19, 5])
@pytest.mark.parametrize("name", TRAININGS)
def test_matches_a_plain_loop_to_the_bit(tmp_path: Path, name: str, count: int) -> None:
    """torch's AdamW over two lists of parameters, one backward pass a group, in the layout of a CPU."""
    training, tape, images = TRAININGS[name], draw(count), data(count)[0]
    trained = train(tmp_path, training, tape=tape)
    model, lessons = network().to(memory_format=torch.channels_last).train(), book(tape)
    weights = [one for one in model.parameters() if one.ndim > 1]
    others = [one for one in model.parameters() if one.ndim < 2]
    assert len(weights) == 2  # a convolution's and the head's
    assert len(others) == 4
    optimizer = torch.optim.AdamW([{"params": weights}, {"params": others, "weight_decay": 0.0}],
                                  weight_decay=training.weight_decay)  # fmt: skip
    starts = tape.bounds.tolist()
    batches = len(starts) - 1
    for step in range(training.steps or training.epochs * batches):
        number, batch = divmod(step, batches)
        number %= 4
        epoch = Epoch.of(tape, number, CPU)
        pixels, values = epoch.pixels(images, batch).to(memory_format=torch.channels_last), lessons(number, epoch)
        optimizer.zero_grad()
        edges = [edge for edge in tape.groups.tolist() if starts[batch] <= edge <= starts[batch + 1]]
        for first, last in itertools.pairwise(edges):
            logits = model(pixels[first - starts[batch] : last - starts[batch]])
            share = (last - first) / (starts[batch + 1] - starts[batch])
            (SOFT(logits, values[first:last]) * share).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate(training, step, batches)
        optimizer.step()
    assert state_bytes(trained) == state_bytes(model)
    assert step + 1 == training.total_steps(batches)


@pytest.mark.parametrize("name", TRAININGS)
def test_matches_adamw_by_hand(tmp_path: Path, name: str) -> None:
    """In double precision, without BatchNorm: the gradient is then that of the mean over the whole batch."""
    training, tape, images = TRAININGS[name], draw(17), data(17)[0]
    trained = train(tmp_path, training, tape=tape, model=network(BARE))
    model, lessons, memory = network(BARE).double(), book(tape), {}
    batches = len(tape.ranges())
    for step in range(training.total_steps(batches)):
        number, batch = divmod(step, batches)
        epoch, (start, end) = Epoch.of(tape, number, CPU), tape.ranges()[batch]
        pixels, values = epoch.pixels(images, batch).double(), lessons(number % 4, epoch)[start:end].double()
        student, teacher = ((logits / 20).log_softmax(1) for logits in (model(pixels), values))
        loss = (teacher.exp() * (teacher - student)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                m, v = memory.get(parameter, (0.0, 0.0))
                m, v = memory[parameter] = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
                decay = training.weight_decay * parameter if parameter.ndim > 1 else 0
                parameter -= rate(training, step, batches) * (m / (v.sqrt() + 1e-8) + decay)
    assert distance(trained, model) < 1e-5
    assert training.steps == 1 or distance(trained, network(BARE)) > 0.01  # and went somewhere


@pytest.mark.parametrize("size", [2, 3, 6])
def test_the_loss_is_the_batchs_mean_whatever_its_groups(tmp_path: Path, size: int) -> None:
    """Also of unequal groups; without BatchNorm nothing else depends on them."""
    whole, losses = draw(recipe=replace(RECIPE, batch=6, micro=6)), []
    edges = {2: [2, 4, 6, 8, 10, 12, 14, 16, 18, 20], 3: [1, 6, 7, 12, 17, 18, 20], 6: [6, 12, 18, 20]}[size]
    tape = replace(whole, groups=torch.tensor([0, *edges], dtype=torch.int32))
    models = []
    for name, one in (("whole", whole), ("parts", tape)):
        models.append(train(tmp_path / name, tape=one, model=network(BARE)))
        losses.append(
            [json.loads(line)["loss"] for line in (tmp_path / name / "report.jsonl").read_text().splitlines()]
        )
    assert distance(*models) < 1e-5
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 16


def test_the_reported_loss_is_the_mean_over_the_batch(tmp_path: Path) -> None:
    tape, (images, _) = draw(), data()
    train(tmp_path, TapeTraining(steps=1), tape=tape, model=network(BARE))
    epoch = Epoch.of(tape, 0, CPU)
    expected = SOFT(network(BARE)(epoch.pixels(images, 0)), book(tape)(0, epoch)[:6])
    assert json.loads((tmp_path / "report.jsonl").read_text())["loss"] == pytest.approx(expected.item(), rel=1e-5)


# --- the rate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stretch", "end"), [(1.0, 0.0), (2.0, 0.5), (4.0, (1 + math.sqrt(0.5)) / 2)])
@pytest.mark.parametrize("length", [{"epochs": 300}, {"steps": 1500}])
def test_ends_of_the_rate(stretch: float, end: float, length: dict[str, int]) -> None:
    """At t = 1, one epoch (or step) after the last: 0 for eta 1, half for eta 2, as published."""
    training = TapeTraining(**length, lr=0.3, stretch=stretch)
    assert training.lr_at(0, 5) == 0.3
    assert training.lr_at(1500, 5) == pytest.approx(0.3 * end, abs=1e-15)
    assert training.lr_at(750, 5) == pytest.approx(0.15 * (1 + math.cos(math.pi / 2 / stretch)))
    rates = [training.lr_at(step, 5) for step in range(1500)]
    assert rates == sorted(rates, reverse=True)
    assert len(set(rates)) == (300 if training.epochs else 1500)


def test_the_rate_moves_once_an_epoch() -> None:
    training = TapeTraining(epochs=4, lr=2.0)
    half = math.sqrt(0.5)
    golden = [2.0, 1 + half, 1.0, 1 - half]
    assert [training.lr_at(step, 3) for step in range(12)] == pytest.approx([lr for lr in golden for _ in range(3)])
    golden = [2.0, 1 + math.cos(math.pi / 8), 1 + half, 1 + math.cos(3 * math.pi / 8)]
    assert [replace(training, stretch=2.0).lr_at(step, 1) for step in range(4)] == pytest.approx(golden)


def test_the_rate_moves_once_a_step() -> None:
    training = TapeTraining(steps=4, lr=2.0)
    half = math.sqrt(0.5)
    assert [training.lr_at(step, 3) for step in range(4)] == pytest.approx([2.0, 1 + half, 1.0, 1 - half])


@pytest.mark.parametrize(("length", "total"), [({"epochs": 3}, 15), ({"steps": 7}, 7)])
def test_total_steps(length: dict[str, int], total: int) -> None:
    assert TapeTraining(**length).total_steps(5) == total


# --- what a student sees ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 19, 17, 5])
def test_groups_go_through_the_network_as_recorded(tmp_path: Path, count: int) -> None:
    tape, (images, _), model = draw(count), data(count), Watched(network())
    train(tmp_path, tape=tape, model=model)
    expected = []
    for number in range(4):
        epoch = Epoch.of(tape, number, CPU)
        shown = torch.cat([epoch.pixels(images, batch) for batch in range(len(tape.ranges()))])
        expected += [shown[first:last] for first, last in itertools.pairwise(tape.groups.tolist())]
    assert len(expected) == len(model.shown)
    assert all(map(torch.equal, model.shown, expected))
    assert all(len(pixels) > 1 for pixels in model.shown)


def test_batch_statistics_are_the_groups(tmp_path: Path) -> None:
    """BatchNorm remembers one group after the other, which one pass over the batch would not give."""
    tape, (images, _) = draw(), data()
    trained = train(tmp_path / "a", TapeTraining(steps=1, lr=1e-12), tape=tape)
    together = train(tmp_path / "b", TapeTraining(steps=1, lr=1e-12), tape=replace(tape, groups=tape.bounds))
    model = network().train()
    pixels = Epoch.of(tape, 0, CPU).pixels(images, 0)
    for first, last in ((0, 4), (4, 6)):
        model(pixels[first:last])
    assert distance(trained, model) < 1e-6
    assert distance(trained, together) > 1e-3
    trained = train(tmp_path / "c", tape=tape)
    together = train(tmp_path / "d", tape=replace(tape, groups=tape.bounds))
    assert distance(trained, together) > 1e-2  # nor do the weights go the same way


def test_networks_are_trained_in_training_mode(tmp_path: Path) -> None:
    assert state_bytes(train(tmp_path / "a", model=network().eval())) == state_bytes(train(tmp_path / "b"))


def test_a_shorter_tape_begins_again(tmp_path: Path) -> None:
    tape = draw(recipe=replace(RECIPE, epochs=2))
    parts = ("order", "crops", "flips", "partners", "boxes")
    longer = replace(tape, **{name: torch.cat([getattr(tape, name)] * 3)[:5] for name in parts})
    logits = 5 * torch.randn(2, 20, 3, generator=generator(4))
    asked = []

    def lessons(number: int, epoch: Epoch) -> Tensor:
        asked.append(number)
        return logits[number]

    training = replace(PLAIN, epochs=5)
    short = train(tmp_path / "a", training, tape=tape, lessons=lessons)
    assert asked == [0, 1, 0, 1, 0]  # once an epoch, by its number on the tape
    whole = train(tmp_path / "b", training, tape=longer, lessons=lambda number, _: logits[number % 2])
    assert state_bytes(short) == state_bytes(whole)


def test_lessons_are_asked_with_the_epoch_at_hand(tmp_path: Path) -> None:
    tape, (_, values), seen = draw(), data(), []

    def lessons(number: int, epoch: Epoch) -> Tensor:
        assert torch.equal(epoch.order, tape.order[number].long())
        return epoch.mix(values, 8, 8)

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(target)
        return SOFT(logits, target)

    train(tmp_path / "a", tape=tape, lessons=lessons, objective=objective)
    mixed = [Epoch.of(tape, number, CPU).mix(values, 8, 8) for number in range(4)]
    assert torch.equal(torch.cat(seen), torch.cat(mixed))
    train(tmp_path / "b", tape=tape, lessons=constant_lessons(values, SPEC), objective=objective)
    assert torch.equal(torch.cat(seen[len(seen) // 2 :]), torch.cat(mixed))


def test_it_learns(tmp_path: Path) -> None:
    images, _ = data(60)
    classes = torch.arange(60) % 3
    for image, label in zip(images, classes.tolist(), strict=True):
        image[:, 3 * label : 3 * label + 2] = 255  # a bright bar whose height tells the class
    tape = draw(60, TapeRecipe(epochs=40, batch=16, micro=8, smallest_crop=0.9))
    lessons = constant_lessons(torch.eye(3)[classes], SPEC)
    model = train(
        tmp_path, TapeTraining(epochs=40, lr=0.01), tape=tape, lessons=lessons, objective=cross_entropy, images=images,
        model=network("convnet2-batch-x0.125"),
    ).eval()  # fmt: skip
    assert (model(images / 255).argmax(1) == classes).float().mean() > 0.95


def test_nothing_is_drawn_and_inputs_stay_as_they_are(tmp_path: Path) -> None:
    (images, _), tape = data(), draw()
    floats, kept = images / 255, images.clone()
    with seeded(3):
        before = torch.random.get_rng_state()
        first = train(tmp_path / "a", tape=tape, images=images)
        assert torch.equal(torch.random.get_rng_state(), before)
    with seeded(4):
        again = train(tmp_path / "b", tape=tape, images=floats)
    assert state_bytes(first) == state_bytes(again)
    assert torch.equal(images, kept)
    assert torch.equal(floats, kept / 255)
    assert first.training


def test_gradients_are_of_the_batch_alone(tmp_path: Path) -> None:
    """Whatever a network brings along."""
    model = network(BARE)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    assert state_bytes(train(tmp_path / "a", model=model)) == state_bytes(train(tmp_path / "b", model=network(BARE)))


# --- stopped anywhere -------------------------------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818 - what happens to a process, not an error of it
    """Stands for the end of the process at this place."""


@pytest.mark.parametrize("stops", [(1,), (4,), (5, 6), (3, 4, 8, 15)])
@pytest.mark.parametrize("name", ["epochs", "longer than the tape", "more steps than the tape"])
def test_resume_is_invisible(tmp_path: Path, name: str, stops: tuple[int, ...]) -> None:
    """A kill in the middle of a step, before the last of its groups: there are 2, 2, 2 and 1 in an epoch."""

    def groups_before(step: int) -> int:
        return 7 * (step // 4) + 2 * (step % 4)

    def ending(step: int, first: int) -> Callable[..., None]:
        calls = itertools.count(groups_before(first))

        def hook(*_: Any) -> None:
            if next(calls) == groups_before(step + 1) - 1:
                raise Killed

        return hook

    undisturbed = train(tmp_path / "a", TRAININGS[name])
    first = 0
    for stop in stops:
        model = network()
        model.register_forward_pre_hook(ending(stop, first))
        with pytest.raises(Killed):
            train(tmp_path / "b", TRAININGS[name], model=model, save_every_seconds=0)
        first = stop
    resumed = train(tmp_path / "b", TRAININGS[name])
    assert state_bytes(resumed) == state_bytes(undisturbed)
    assert (tmp_path / "b" / "report.jsonl").read_bytes() == (tmp_path / "a" / "report.jsonl").read_bytes()


@pytest.mark.parametrize("step", [0, 3, 4, 9])
def test_a_signal_is_invisible(tmp_path: Path, interrupted: Interrupt, step: int) -> None:
    undisturbed = train(tmp_path / "a")
    with interrupted(at("fit", step)):
        train(tmp_path / "b")
    resumed = train(tmp_path / "b")
    assert state_bytes(resumed) == state_bytes(undisturbed)


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    first = train(tmp_path)

    def never(*_: Any) -> Tensor:
        raise AssertionError

    assert state_bytes(train(tmp_path, objective=never, lessons=never)) == state_bytes(first)


@pytest.mark.parametrize("bad", [0, 6, 15])
def test_a_bad_loss_stops(tmp_path: Path, bad: int) -> None:
    """Also that of one group of a batch, and of the last step."""
    calls = itertools.count()
    last = {0: 1, 6: 12, 15: 27}[bad]  # there are 2, 2, 2 and 1 groups in an epoch

    def objective(logits: Tensor, target: Tensor) -> Tensor:
        return SOFT(logits, target) * (float("nan") if next(calls) == last else 1)

    with pytest.raises(NonFiniteError, match=f"^fit: loss became NaN or infinite at step {bad + 1}; expected"):
        train(tmp_path, objective=objective)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [{}, {"epochs": 2, "steps": 2}, {"epochs": -1, "steps": 3}, {"steps": -4}])
def test_rejects_lengths(lengths: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"^epochs -?\d and steps -?\d; expected one of them positive, the other 0$"):
        TapeTraining(**lengths)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *(({"lr": lr}, f"^lr is {lr}; expected more than 0$") for lr in (0.0, -0.1, NAN, INF)),
        *(({"stretch": eta}, f"^stretch is {eta}; expected at least 1$") for eta in (0.0, 0.99, -1.0, NAN, INF)),
        *(({"weight_decay": w}, f"^weight_decay is {w}; expected at least 0$") for w in (-1e-4, NAN, INF)),
    ],
)
def test_rejects_numbers(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TapeTraining(epochs=1, **change)


def test_published_settings_are_the_default() -> None:
    assert TapeTraining(epochs=300) == TapeTraining(epochs=300, lr=1e-3, stretch=1.0, weight_decay=0.01)
