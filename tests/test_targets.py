"""Labels of tapes, and features: what is none is refused, thinning keeps what it says, every byte is in the ledger."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dd_bench import codec
from dd_bench.budget import ledger
from dd_bench.data.specs import SPECS
from dd_bench.errors import InvalidSetError
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.seeding import generator
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.tapes import Tape
from dd_bench.targets import Features, HardLabels, Labels, SoftLabels, TapedLabels, Targets, ThinLabels
from tests.conftest import tensors_file

NAN, INF = float("nan"), float("inf")
EPOCHS, COUNT, CLASSES = 3, 6, 5
ORIGIN = Provenance(
    method="m", preset="p", config={}, dataset="d", fingerprint="f", ipc=1, seed=0, recipe="0123456789ab"
)


def draw(count: int = COUNT, epochs: int = EPOCHS, side: int = 8) -> Tape:
    spec = replace(SPECS["cifar10"], image_shape=(3, side, side))
    return draw_tape(count, spec, TapeRecipe(epochs=epochs, batch=16, micro=8), seed=0)


def noise(*shape: int, dtype: torch.dtype = torch.float16, scale: float = 5.0) -> Tensor:
    return (torch.randn(shape, generator=generator(0)) * scale).to(dtype)


def taped(**changes: Any) -> TapedLabels:
    facts: dict[str, Any] = {
        "logits": noise(EPOCHS, COUNT, CLASSES), "tape": draw(), "classes": torch.tensor([0, 1, 2, 3, 4, 0]),
        "temperature": 20.0,
    }  # fmt: skip
    return TapedLabels(**{**facts, **changes})


def thin(**changes: Any) -> ThinLabels:
    facts: dict[str, Any] = {
        "tops": noise(EPOCHS, COUNT, 2), "kept": torch.tensor([3, 1], dtype=torch.int16).repeat(EPOCHS, COUNT, 1),
        "rest": noise(EPOCHS, COUNT), "tape": draw(), "classes": torch.tensor([0, 1, 2, 3, 4, 0]), "temperature": 20.0,
    }  # fmt: skip
    return ThinLabels(**{**facts, **changes})


def with_value(tensor: Tensor, value: float) -> Tensor:
    changed = tensor.clone()
    changed[(-1,) * tensor.ndim] = value
    return changed


def refusal(match: str, made: Callable[[], Any]) -> None:
    with pytest.raises(InvalidSetError, match=match) as caught:
        made()
    assert len(str(caught.value).splitlines()) == 1


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sound_labels(dtype: torch.dtype) -> None:
    labels = taped(logits=noise(EPOCHS, COUNT, CLASSES, dtype=dtype))
    for number in range(EPOCHS):
        found = labels.epoch(number, CLASSES)
        assert (found.shape, found.dtype) == ((COUNT, CLASSES), torch.float32)
        assert torch.equal(found, labels.logits[number].float())
    assert labels.kind == thin().kind == "taped"
    thinned = thin(tops=noise(EPOCHS, COUNT, 2, dtype=dtype), rest=noise(EPOCHS, COUNT, dtype=dtype))
    assert (thinned.epoch(2, CLASSES).shape, thinned.epoch(2, CLASSES).dtype) == ((COUNT, CLASSES), torch.float32)


@pytest.mark.parametrize(("make", "name"), [(taped, "logits"), (thin, "tops")])
@pytest.mark.parametrize(
    "shape",
    [(COUNT, 2), (EPOCHS, COUNT), (EPOCHS, COUNT, 2, 1), (EPOCHS - 1, COUNT, 2), (EPOCHS + 1, COUNT, 2),
     (EPOCHS, COUNT - 1, 2), (COUNT, EPOCHS, 2), (EPOCHS, COUNT, 0)],
)  # fmt: skip
def test_rejects_labels_of_another_shape_than_the_tape(make: Callable[..., Any], name: str, shape: Any) -> None:
    refusal(
        rf"^{name} is float16 of shape \(.*\); expected float16 or float32 of shape \(3, 6, K\), as the tape",
        lambda: make(**{name: noise(*shape)}),
    )


@pytest.mark.parametrize(("make", "name"), [(taped, "logits"), (thin, "tops")])
@pytest.mark.parametrize("tape", [draw(count=5), draw(epochs=2), draw(epochs=4)])
def test_rejects_another_tape(make: Callable[..., Any], name: str, tape: Tape) -> None:
    refusal(rf"^{name} is float16 of shape \(3, 6, .\); expected", lambda: make(tape=tape))


@pytest.mark.parametrize(("make", "name"), [(taped, "logits"), (thin, "tops")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int16])
def test_rejects_other_dtypes(make: Callable[..., Any], name: str, dtype: torch.dtype) -> None:
    refusal(f"^{name} is {str(dtype)[6:]} ", lambda: make(**{name: noise(EPOCHS, COUNT, 2, dtype=dtype)}))


@pytest.mark.parametrize(("make", "name"), [(taped, "logits"), (thin, "tops"), (thin, "rest")])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_rejects_what_is_not_finite(make: Callable[..., Any], name: str, value: float) -> None:
    bad = with_value(getattr(make(), name), value)
    refusal(f"^{name} holds 1 values that are NaN or infinite", lambda: make(**{name: bad}))


@pytest.mark.parametrize("make", [taped, thin])
@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_rejects_temperatures(make: Callable[..., Any], temperature: float) -> None:
    refusal(f"^temperature is {temperature}; expected a positive number", lambda: make(temperature=temperature))


@pytest.mark.parametrize("make", [taped, thin])
@pytest.mark.parametrize(
    ("classes", "match"),
    [
        (torch.zeros(6), "^classes is float32"),
        (torch.zeros(6, dtype=torch.int32), "^classes is int32"),
        (torch.zeros(6, 1, dtype=torch.int64), r"^classes is int64 of shape \(6, 1\)"),
        (torch.zeros(0, dtype=torch.int64), "^classes is .* and not empty"),
        (torch.tensor([0, 1, 2, 3, 4, -1]), r"^classes hold -1; expected labels in \[0, K\)"),
    ],
)
def test_rejects_classes(make: Callable[..., Any], classes: Tensor, match: str) -> None:
    refusal(match, lambda: make(classes=classes))


def test_rejects_classes_without_a_column() -> None:
    refusal(
        "^logits have 5 columns beside classes up to 5; expected one column a class",
        lambda: taped(classes=torch.tensor([0, 1, 2, 3, 4, 5])),
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"kept": torch.zeros(EPOCHS, COUNT, 2, dtype=torch.int64)}, "^kept is int64"),
        ({"kept": torch.zeros(EPOCHS, COUNT, 3, dtype=torch.int16)}, r"^kept is int16 of shape \(3, 6, 3\)"),
        ({"kept": torch.zeros(COUNT, 2, dtype=torch.int16)}, "^kept is int16"),
        ({"rest": noise(EPOCHS, COUNT, 1)}, "^kept is .* expected int16 of the shape of tops, rest"),
        ({"rest": noise(EPOCHS - 1, COUNT)}, "^kept is .* expected int16 of the shape of tops, rest"),
        ({"rest": noise(EPOCHS, COUNT, dtype=torch.float32)}, "^rest is float32 .* expected the dtype of tops"),
        ({"kept": with_value(thin().kept, -1)}, "^kept holds -1; expected classes"),
    ],
)
def test_rejects_thin_labels(change: dict[str, Any], match: str) -> None:
    refusal(match, lambda: thin(**change))


@pytest.mark.parametrize("labels", [taped(), thin()])
def test_a_set_holds_labels_to_its_images(labels: Targets) -> None:
    """The tape's number of images, its crops and boxes, and one class an image."""
    pixels = torch.zeros(COUNT, 3, 8, 8, dtype=torch.uint8)
    SyntheticSet(Images(pixels), labels, ORIGIN, "hard")
    with pytest.raises(InvalidSetError, match="6 targets for 5 images"):
        SyntheticSet(Images(pixels[:5]), labels, ORIGIN, "hard")
    with pytest.raises(InvalidSetError, match="there are 1 classes for a tape of 6 images"):
        SyntheticSet(Images(pixels), replace(labels, classes=torch.tensor([0])), ORIGIN, "hard")
    with pytest.raises(InvalidSetError, match="reach over images of 7 x 8"):
        SyntheticSet(Images(pixels[:, :, 1:]), labels, ORIGIN, "hard")
    with pytest.raises(InvalidSetError, match="reach over images of 8 x 7"):
        SyntheticSet(Images(pixels[:, :, :, 1:]), labels, ORIGIN, "hard")


# --- features --------------------------------------------------------------------------------------------------------


def features(**changes: Any) -> Features:
    facts: dict[str, Any] = {"values": noise(COUNT, 4, dtype=torch.float32), "center": torch.ones(4), "scale": 0.5}
    return Features(**{**facts, **changes})


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_sound_features(dtype: torch.dtype) -> None:
    values = noise(COUNT, 4, dtype=dtype)
    made = features(values=values)
    assert made.kind == "features"
    assert made.values is values
    assert not isinstance(made, Labels)  # no image has a class
    assert isinstance(made, Targets)


@pytest.mark.parametrize("count", [1, 6])
def test_every_kind_counts_its_images(count: int) -> None:
    classes, tape = torch.zeros(count, dtype=torch.int64), draw(count)
    taped_labels = TapedLabels(noise(EPOCHS, count, CLASSES), tape, classes, 20.0)
    kinds: list[Targets] = [
        HardLabels(classes), SoftLabels(torch.zeros(count, 3), classes, 1.0), taped_labels,
        ThinLabels.of(taped_labels, 2), features(values=noise(count, 4)),
    ]  # fmt: skip
    assert [len(targets) for targets in kinds] == [count] * 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            {"values": noise(COUNT)},
            r"^values is float16 of shape \(6,\); expected float16 or float32 of shape \(N, D\)",
        ),
        ({"values": noise(COUNT, 4, 1)}, r"^values is float16 of shape \(6, 4, 1\); expected"),
        ({"values": noise(COUNT, 4, dtype=torch.float64)}, "^values is float64"),
        ({"values": noise(COUNT, 4, dtype=torch.bfloat16)}, "^values is bfloat16"),
        ({"values": torch.zeros(COUNT, 4, dtype=torch.int64)}, "^values is int64"),
        ({"values": with_value(noise(COUNT, 4), NAN)}, "^values holds 1 values that are NaN or infinite"),
        ({"values": with_value(noise(COUNT, 4), -INF)}, "^values holds 1 values"),
        ({"center": torch.ones(5)}, r"^center is float32 of shape \(5,\); expected float32 of shape \(4,\)"),
        ({"center": torch.ones(1)}, r"^center is float32 of shape \(1,\)"),
        ({"center": torch.ones(())}, r"^center is float32 of shape \(\)"),
        ({"center": torch.ones(COUNT, 4)}, r"^center is float32 of shape \(6, 4\)"),
        ({"center": torch.ones(4).half()}, "^center is float16"),
        ({"center": with_value(torch.ones(4), INF)}, "^center holds 1 values that are NaN or infinite"),
    ],
)
def test_rejects_features(change: dict[str, Any], match: str) -> None:
    refusal(match, lambda: features(**change))


@pytest.mark.parametrize("scale", [0.0, -1.0, NAN, INF])
def test_rejects_scales(scale: float) -> None:
    refusal(f"^scale is {scale}; expected a positive number$", lambda: features(scale=scale))


# --- thinning --------------------------------------------------------------------------------------------------------


def naive(row: list[float], count: int) -> list[float]:
    """The largest logits as they are, the mean of the others in their place."""
    top = sorted(range(len(row)), key=lambda index: -row[index])[:count]
    others = [value for index, value in enumerate(row) if index not in top]
    return [row[index] if index in top else sum(others) / len(others) for index in range(len(row))]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_thinning_keeps_the_largest_and_the_mean_of_the_rest(count: int, dtype: torch.dtype) -> None:
    labels = taped(logits=noise(EPOCHS, COUNT, CLASSES, dtype=dtype))
    made = ThinLabels.of(labels, count)
    assert (made.tops.shape, made.tops.dtype, made.rest.dtype) == ((EPOCHS, COUNT, count), dtype, dtype)
    assert made.tape is labels.tape
    assert made.classes is labels.classes
    assert made.temperature == labels.temperature
    for number in range(EPOCHS):
        expected = torch.tensor([naive(row, count) for row in labels.logits[number].tolist()])
        found = made.epoch(number, CLASSES)
        torch.testing.assert_close(found, expected, rtol=2e-3 if dtype == torch.float16 else 1e-5, atol=1e-4)
        kept = found == labels.logits[number].float()
        assert (kept.sum(1) >= count).all()  # what is kept is not rounded


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_all_but_one_kept_is_all(dtype: torch.dtype) -> None:
    labels = taped(logits=noise(EPOCHS, COUNT, CLASSES, dtype=dtype))
    made = ThinLabels.of(labels, CLASSES - 1)
    error = 1e-3 if dtype == torch.float16 else 1e-6
    for number in range(EPOCHS):
        torch.testing.assert_close(made.epoch(number, CLASSES), labels.epoch(number, CLASSES), rtol=error, atol=error)


def test_thinning_of_many_classes_and_of_large_logits() -> None:
    """Sums of float16 would be out of range; an epoch of other columns is none of its business."""
    logits = noise(2, 4, 1000, scale=10_000.0).clamp(-60_000, 60_000)
    labels = TapedLabels(logits, draw(4, 2), torch.tensor([0, 1, 2, 999]), 20.0)
    made = ThinLabels.of(labels, 10)
    for number in range(2):
        expected = torch.tensor([naive(row, 10) for row in logits[number].tolist()])
        torch.testing.assert_close(made.epoch(number, 1000), expected, rtol=1e-3, atol=0.1)


def test_the_mean_does_least_harm() -> None:
    """To the variance of the difference of logits, which KL is at high temperature."""
    labels = taped()
    made = ThinLabels.of(labels, 2)
    harm = [
        (replace(made, rest=made.rest + shift).epoch(0, CLASSES) - labels.epoch(0, CLASSES)).var(1).mean()
        for shift in (-1.0, 0.0, 1.0)
    ]
    assert harm[1] < min(harm[0], harm[2])


def test_ties_keep_no_class_twice() -> None:
    made = ThinLabels.of(taped(logits=torch.ones(EPOCHS, COUNT, CLASSES).half()), 3)
    assert all(len(set(row)) == 3 for row in made.kept.view(-1, 3).tolist())
    assert torch.equal(made.epoch(1, CLASSES), torch.ones(COUNT, CLASSES))


# --- bytes -----------------------------------------------------------------------------------------------------------


def set_of(targets: Targets, side: int = 8) -> SyntheticSet:
    pixels = torch.zeros(len(targets), 3, side, side, dtype=torch.uint8)
    return SyntheticSet(Images(pixels), targets, ORIGIN, "hard")


def bytes_of(targets: Targets, side: int = 8) -> dict[str, int]:
    content = len(tensors_file(set_of(targets, side)))
    parts = ledger(set_of(targets, side), content)
    assert sum(parts.values()) == content
    return parts


@pytest.mark.parametrize(
    ("classes", "ipc", "megabytes"), [(10, 1, 0.06), (10, 10, 0.6), (100, 1, 6.0)]
)  # CIFAR-10 at 1 and 10 images a class, CIFAR-100 at 1, from the published code
def test_ledger_is_the_published_table(classes: int, ipc: int, megabytes: float) -> None:
    count, epochs = classes * ipc, 300
    tape = draw(count, epochs, side=32)
    logits = torch.zeros(epochs, count, classes, dtype=torch.float16)
    labels = TapedLabels(logits, tape, torch.arange(classes).repeat(ipc), 20.0)
    parts = bytes_of(labels, side=32)
    assert parts["labels"] == count * epochs * classes * 2 == round(megabytes * 1e6)
    assert parts["images"] == count * 3 * 32 * 32
    batches = -(-count // 16)
    # of every image: order, four of the crop, flip, partner, a byte each; of every batch the box
    assert parts["tape"] == epochs * (count * 7 + batches * 4) + (batches + 1) + (len(tape.groups))
    assert parts["classes"] == count
    assert set(parts) == {"images", "labels", "tape", "classes", "container"}


def test_what_thinning_saves() -> None:
    """10 of 100 logits with their classes and a mean: 2·10 + 10 + 2 bytes for 200."""
    labels = TapedLabels(noise(20, 30, 100), draw(30, 20), torch.arange(30), 20.0)
    whole, thinned = bytes_of(labels), bytes_of(ThinLabels.of(labels, 10))
    assert (whole["labels"], thinned["labels"]) == (20 * 30 * 200, 20 * 30 * (2 * 10 + 10 + 2))
    assert {name: size for name, size in whole.items() if name not in ("labels", "container")} == {
        name: size for name, size in thinned.items() if name not in ("labels", "container")
    }


def test_classes_beyond_a_byte_take_two() -> None:
    logits = noise(2, 4, 300)
    logits[0, 0, 299] = 100.0
    labels = TapedLabels(logits, draw(4, 2), torch.arange(4), 20.0)
    assert bytes_of(ThinLabels.of(labels, 3))["labels"] == 2 * 4 * (2 * 3 + 2 * 3 + 2)


def test_stored_labels_are_the_same(tmp_path: Any) -> None:
    labels = taped()
    for targets in (labels, ThinLabels.of(labels, 2)):
        made = set_of(targets)
        codec.write(tmp_path / "tensors", made)
        _, read = codec.read(
            tmp_path / "tensors", payload=codec.describe(made.payload), targets=codec.describe(targets)
        )
        assert isinstance(read, type(targets))
        for number in range(EPOCHS):
            assert torch.equal(read.epoch(number, CLASSES), targets.epoch(number, CLASSES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_stored_features_are_the_same(dtype: torch.dtype, tmp_path: Any) -> None:
    targets = features(values=noise(COUNT, 4, dtype=dtype), center=torch.tensor([0.1, -2.0, 0.0, 1e-9]), scale=1 / 3)
    made = set_of(targets)
    codec.write(tmp_path / "tensors", made)
    _, read = codec.read(tmp_path / "tensors", payload=codec.describe(made.payload), targets=codec.describe(targets))
    assert isinstance(read, Features)
    assert torch.equal(read.values, targets.values)
    assert read.values.dtype == dtype
    assert torch.equal(read.center, targets.center)
    assert read.scale == targets.scale


@pytest.mark.parametrize(
    ("name", "tensor", "match"),
    [
        ("values", torch.zeros(COUNT - 1, 4), "set has 5 targets for 6 images"),
        ("values", with_value(torch.zeros(COUNT, 4), NAN), "values holds 1 values that are NaN or infinite"),
        ("center", torch.zeros(3), r"center is float32 of shape \(3,\); expected float32 of shape \(4,\)"),
        ("center", torch.zeros(4).half(), "center is float16"),
        ("center", None, "expected exactly .*targets.center"),
    ],
)
def test_rejects_features_of_another_file(name: str, tensor: Tensor | None, match: str, tmp_path: Any) -> None:
    made = set_of(features())
    stored = {"payload.pixels": torch.zeros(COUNT, 3, 8, 8, dtype=torch.uint8), "targets.values": torch.zeros(COUNT, 4),
              "targets.center": torch.zeros(4)}  # fmt: skip
    if tensor is None:
        del stored[f"targets.{name}"]
    else:
        stored[f"targets.{name}"] = tensor
    save_file(stored, tmp_path / "tensors")

    def read() -> SyntheticSet:
        payload, targets = codec.read(
            tmp_path / "tensors", payload=codec.describe(made.payload), targets=codec.describe(made.targets)
        )
        return SyntheticSet(payload, targets, ORIGIN, "hard")

    refusal(match, read)


def test_rejects_a_class_kept_twice() -> None:
    refusal("a class twice for one view", lambda: thin(kept=torch.full((EPOCHS, COUNT, 2), 3, dtype=torch.int16)))


@pytest.mark.parametrize("made", [taped, thin])
def test_rejects_classes_of_another_number_than_the_tape(made: Callable[..., Any]) -> None:
    refusal("there are 2 classes for a tape of 6 images", lambda: made(classes=torch.tensor([0, 1])))


def test_rejects_labels_of_another_number_of_classes() -> None:
    refusal("logits have 5 columns; expected 4", lambda: taped().epoch(0, 4))
    refusal("kept holds class 3; expected less than 3", lambda: thin().epoch(0, 3))
