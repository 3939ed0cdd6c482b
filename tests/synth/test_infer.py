"""INFER: the published counts and bytes, what a student sees, and controls that differ in one thing each."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_bench.checkpoint import load_tree
from dd_bench.data.images import ImageData
from dd_bench.errors import ConfigError
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator
from dd_bench.sets import Compensated, Images, Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.targets import SoftLabels, TapedLabels
from synth import infer as module
from synth.base import Distilled, Task, config_of
from synth.coreset import Random
from synth.infer import BaseOnly, Infer, ScrambledOffsets, base_images_per_class, compensate, quantise, scramble
from synth.parts.inversion import InversionRecipe, SharedOffsets, Voter
from synth.parts.tape_labels import TAPE_PLANS, TapePlan
from synth.parts.teachers import TeacherPlan, obtain_teachers
from synth.pipeline import Order, describe, distil, order_control
from tests.conftest import BLOBS

Inversions = list[tuple[Tensor, list[int], int]]
TAPED = TapePlan(TapeRecipe(epochs=2, batch=6, micro=3, smallest_crop=0.5), weighting="equal")


@pytest.fixture
def inversions(monkeypatch: pytest.MonkeyPatch) -> Inversions:
    """Collects (base images, seeds, parameters of the teacher) of each inversion, and inverts."""
    calls: Inversions = []
    invert = module.invert

    def spy(canvas: SharedOffsets, classes: Tensor, voters: list[Voter], **settings: Any) -> None:
        assert canvas.std.flatten().tolist() == pytest.approx(BLOBS.std)
        assert classes.tolist() == [0, 1, 2]
        (voter,) = voters
        assert voter.groups.tolist() == list(range(len(canvas.base)))
        assert voter.weights.tolist() == [1.0] * len(canvas.base)
        calls.append((canvas.base.clone(), settings["seeds"], sum(p.numel() for p in voter.model.parameters())))
        invert(canvas, classes, voters, **settings)

    monkeypatch.setattr(module, "invert", spy)
    return calls


def as_control(control: type[Infer], method: Infer) -> Infer:
    return control(**{name: getattr(method, name) for name in asdict(method)})


# --- counts and bytes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "teachers", "ipc", "base", "seen_a_class", "stored", "labels"),
    [
        # the specification's table, row by row: CIFAR-10, CIFAR-100, Tiny-ImageNet, ImageNet-1k
        (10, 4, 1, 0, 0, 0, 0),
        (10, 4, 10, 7, 35, 98, 350),
        (10, 4, 50, 35, 175, 490, 1_750),
        (100, 4, 10, 9, 45, 936, 4_500),
        (100, 4, 50, 48, 240, 4_992, 24_000),
        (100, 4, 100, 96, 480, 9_984, 48_000),
        (200, 4, 10, 9, 45, 1_836, 9_000),
        (200, 4, 50, 49, 245, 9_996, 49_000),
        (1000, 3, 10, 9, 36, 9_027, 36_000),
        (1000, 3, 50, 49, 196, 49_147, 196_000),
    ],
)
def test_published_counts(
    classes: int, teachers: int, ipc: int, base: int, seen_a_class: int, stored: int, labels: int
) -> None:
    count = base_images_per_class(ipc, classes, teachers)
    assert count == base
    assert (teachers + 1) * count == seen_a_class
    assert count * classes + count * teachers == stored
    assert (teachers + 1) * count * classes == labels


@given(st.integers(1, 200), st.integers(2, 1000), st.integers(1, 16))
def test_the_budget_is_kept_and_used(ipc: int, classes: int, slots: int) -> None:
    count = base_images_per_class(ipc, classes, slots)
    assert count * (classes + slots) <= ipc * classes < (count + 1) * (classes + slots)


def task_of(data: ImageData, num_classes: int, ipc: int) -> Task:
    data = replace(data, spec=replace(data.spec, num_classes=num_classes))
    return Task(data, ipc, seed=0, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("classes", "ipc", "int8", "float16"),
    [(10, 10, 7, 5), (100, 10, 9, 9), (100, 50, 48, 46), (10, 50, 35, 27)],  # K C + 2 K M <= ipc C with M = 4
)
def test_float16_offsets_take_two_slots(blobs: ImageData, classes: int, ipc: int, int8: int, float16: int) -> None:
    task = task_of(blobs, classes, ipc)
    assert Infer().base_images_per_class(task) == int8
    assert Infer(offset_dtype="float16").base_images_per_class(task) == float16
    assert float16 * (classes + 8) <= ipc * classes < (float16 + 1) * (classes + 8)


@pytest.mark.parametrize("name", list(Infer.PRESETS))
@pytest.mark.parametrize("classes", [10, 100])
def test_rejects_one_image_a_class(blobs: ImageData, name: str, classes: int) -> None:
    method, task = Infer.PRESETS[name], task_of(blobs, classes, 1)
    networks = len(method.teachers.architectures)
    needed = rf"ipc 1 leaves INFER no image: a base batch needs ipc >= 1 \+ M/C, here 1 \+ {networks}/{classes} "
    with pytest.raises(ConfigError, match=needed + r".*use a larger --ipc, or --method random"):
        method.base_images_per_class(task)


def test_rejects_a_budget_for_nothing_before_any_work(infer: Infer, task: Task, own_home: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"here 1 \+ 2/3 \(an offset of each of 2 teachers"):
        distil(Order("infer", "tiny", infer), replace(task, ipc=1), store)
    with pytest.raises(ConfigError, match=r"here 1 \+ 4/3 "):
        replace(infer, offset_dtype="float16").base_images_per_class(replace(task, ipc=2))
    assert not (own_home / "teachers").exists()
    assert infer.base_images_per_class(replace(task, ipc=2)) == 1


@pytest.mark.parametrize(
    ("classes", "ipc", "image_megabytes", "label_megabytes"),
    [(10, 10, 0.301, 0.014), (10, 50, 1.505, 0.070), (100, 10, 2.875, 1.800)],
)
def test_published_bytes(store: Store, classes: int, ipc: int, image_megabytes: float, label_megabytes: float) -> None:
    """The specification's byte ledger (float32 labels), which gives 2.88 MB for the last."""
    count, draws = base_images_per_class(ipc, classes, 4), generator(0)
    base = torch.randint(0, 256, (count, classes, 3, 32, 32), dtype=torch.uint8, generator=draws)
    payload = compensate(base, 0.1 * torch.randn(4, count, 3, 32, 32, generator=draws), "int8")
    assert len(payload) == 5 * count * classes
    logits = torch.randn(len(payload), classes, generator=draws)
    targets = SoftLabels(logits, torch.arange(classes).repeat(5 * count), 30.0)
    origin = Provenance("infer", "p", {}, "cifar10", "f", ipc, 0, "0123456789ab")
    parts = store.write(SyntheticSet(payload, targets, origin, "infer-static")).ledger
    offsets_alone = parts["offsets"] - 4 * 4 * count  # a float32 scale each
    assert parts["images"] + offsets_alone == (classes + 4) * count * 3 * 32 * 32
    assert (parts["images"] + offsets_alone) / 1e6 == pytest.approx(image_megabytes, abs=5e-4)
    assert parts["labels"] / 1e6 == pytest.approx(label_megabytes, abs=1e-9)
    assert sum(parts.values()) == store.list()[0].size_bytes  # type: ignore[union-attr]


# --- what is stored, and what a student sees -------------------------------------------------------------------------


def draw_offsets(*shape: int, scale: float = 0.4, seed: int = 0) -> Tensor:
    return scale * torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_images_match_reference(dtype: Any) -> None:
    """Blocks: the base images, then the sums of each teacher; in each the base batches, in each the classes."""
    batches, classes, networks = 2, 3, 2
    base = torch.randint(0, 256, (batches, classes, 2, 4, 4), dtype=torch.uint8, generator=generator(1))
    offsets = draw_offsets(networks, batches, 2, 4, 4)
    payload = compensate(base, offsets, dtype)
    seen = payload.decode()
    assert len(seen) == (networks + 1) * batches * classes
    assert payload.base.shape == (batches * classes, 2, 4, 4)
    assert payload.offsets.shape == (networks * batches, 2, 4, 4)
    n = 0
    for block in range(networks + 1):
        for k in range(batches):
            for c in range(classes):
                for channel, row, column in ((0, 0, 0), (1, 3, 2), (0, 2, 1), (1, 0, 3)):
                    value = int(base[k, c, channel, row, column]) / 255
                    error = 1e-6
                    if block:
                        plane = offsets[block - 1, k]
                        value += float(plane[channel, row, column])
                        error += float(plane.abs().max()) / 254 if dtype == "int8" else 1e-3
                    assert float(seen[n, channel, row, column]) == pytest.approx(min(max(value, 0), 1), abs=error)
                assert payload.pairs[n].tolist() == [k * classes + c, (block - 1) * batches + k if block else -1]
                n += 1


def test_base_images_are_kept_to_the_bit() -> None:
    base = torch.randint(0, 256, (2, 3, 1, 4, 4), dtype=torch.uint8, generator=generator(1))
    payload = compensate(base, draw_offsets(1, 2, 1, 4, 4), "int8")
    assert payload.base.equal(base.flatten(0, 1))
    assert payload.decode()[:6].equal(base.flatten(0, 1).float() / 255)


def test_quantise_errs_by_half_a_step_at_most() -> None:
    offsets = torch.cat([draw_offsets(3, 2, 5, 5), draw_offsets(3, 2, 5, 5, scale=1e-4), torch.zeros(1, 2, 5, 5)])
    offsets[2, 0, 0, 0] = -7.0  # an outlier costs its own offset alone
    stored, scales = quantise(offsets, "int8")
    assert (stored.dtype, scales.dtype) == (torch.int8, torch.float32)
    for offset, steps, scale in zip(offsets, stored, scales, strict=True):
        assert float(scale) == pytest.approx(float(offset.abs().max()) / 127)
        assert (offset - steps.float() * scale).abs().max() <= scale * (0.5 + 1e-4)
    assert stored[:-1].abs().amax((1, 2, 3)).tolist() == [127] * 6  # the range is used, and -128 is not
    assert stored[-1].abs().max() == scales[-1] == 0


def test_quantise_to_float16_keeps_eleven_bits() -> None:
    offsets = draw_offsets(3, 2, 5, 5)
    stored, scales = quantise(offsets, "float16")
    assert (stored.dtype, scales.tolist()) == (torch.float16, [1.0] * 3)
    assert ((stored.float() - offsets).abs() <= offsets.abs() * 2**-11 + 2**-25).all()


def test_scramble_keeps_magnitudes_and_nothing_else() -> None:
    offsets = draw_offsets(2, 3, 2, 6, 6) + torch.arange(1.0, 13.0).view(2, 3, 2, 1, 1)  # no plane like another
    mixed = scramble(offsets, seed=3)
    assert mixed.shape == offsets.shape
    before, after = offsets.flatten(3), mixed.flatten(3)
    assert after.abs().sort().values.equal(before.abs().sort().values)
    assert ((after.abs() != before.abs()).float().mean(-1) > 0.8).all()  # every plane has a new pattern
    order = [(row[:, None] == shuffled[None]).int().argmax(1).tolist() for row, shuffled in
             zip(before.abs().flatten(0, 2), after.abs().flatten(0, 2), strict=True)]  # fmt: skip
    assert len({tuple(places) for places in order}) == 12  # and each its own
    assert 0.35 < (after < 0).float().mean() < 0.65  # 432 signs, all positive before
    assert scramble(offsets, seed=3).equal(mixed)
    assert not scramble(offsets, seed=4).equal(mixed)


# --- the method ------------------------------------------------------------------------------------------------------


def synthesize(method: Infer | Random, task: Task, folder: Path) -> Distilled:
    return method.synthesize(task, Run(folder))


def test_shapes(infer: Infer, task: Task, run: Run) -> None:
    made = infer.synthesize(task, run)
    assert isinstance(made.payload, Compensated)
    assert isinstance(made.targets, SoftLabels)
    assert len(made.payload) == 18  # K = 2 of ipc 4, 3 classes, 2 teachers beside the base images
    assert made.payload.offsets.shape == (4, 1, 8, 8)
    assert made.payload.offsets.abs().amax((1, 2, 3)).tolist() == [127] * 4
    assert made.payload.offsets.unique(dim=0).shape[0] == 4
    assert made.targets.logits.shape == (18, 3)
    assert made.targets.logits.dtype == torch.float16
    assert made.targets.classes.tolist() == [0, 1, 2] * 6
    assert made.targets.temperature == 30.0


def test_base_images_are_training_images_of_their_class(infer: Infer, task: Task, run: Run) -> None:
    made = infer.synthesize(task, run)
    assert isinstance(made.payload, Compensated)
    labels = {
        image.numpy().tobytes(): int(label) for image, label in zip(task.data.images, task.data.labels, strict=True)
    }
    assert [labels[image.numpy().tobytes()] for image in made.payload.base] == [0, 1, 2] * 2


@pytest.mark.parametrize("control", [Infer, BaseOnly, ScrambledOffsets])
def test_labels_are_of_the_images_a_student_sees(infer: Infer, task: Task, run: Run, control: type[Infer]) -> None:
    made = as_control(control, replace(infer, label_dtype="float32")).synthesize(task, run)
    assert isinstance(made.targets, SoftLabels)
    teachers = [teacher.model for teacher in obtain_teachers(infer.teachers, task)]
    for image, logits in zip(made.payload.decode(), made.targets.logits, strict=True):
        expected = sum((teacher(image[None])[0] for teacher in teachers), start=torch.zeros(3)) / 2
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_each_offset_lowers_the_loss_of_its_own_teacher(infer: Infer, task: Task, run: Run) -> None:
    """Offset (m, k) stands where the pairs say: it suits teacher m and base batch k."""
    method = replace(infer, inversion=InversionRecipe(steps=40, alpha=0.0, jitter=0, lr=0.1))
    made = method.synthesize(task, run)
    teachers = [teacher.model for teacher in obtain_teachers(infer.teachers, task)]
    blocks = made.payload.decode().view(3, 2, 3, 1, 8, 8)  # (base and teachers, K, C, …)
    truth = torch.arange(3)
    for m, teacher in enumerate(teachers):
        losses = [[nn.functional.cross_entropy(teacher(batch), truth) for batch in block] for block in blocks]
        for k in range(2):
            assert losses[m + 1][k] < losses[0][k]
            assert losses[m + 1][k] < losses[2 - m][k]  # than with the other teacher's


def test_offsets_are_ordered_by_teacher_and_base_batch(
    infer: Infer, task: Task, run: Run, inversions: Inversions
) -> None:
    made = infer.synthesize(task, run)
    assert isinstance(made.payload, Compensated)
    sizes = [sum(p.numel() for p in t.model.parameters()) for t in obtain_teachers(infer.teachers, task)]
    assert [size for _, _, size in inversions] == sizes
    for (base, seeds, _), name in zip(inversions, infer.teachers.architectures, strict=True):
        assert base.equal(made.payload.base.view(2, 3, 1, 8, 8).float() / 255)
        assert seeds == [derive_seed("infer", task.seed, name, k) for k in range(2)]


def test_chunks_of_groups_change_nothing(
    infer: Infer, task: Task, tmp_path: Path, inversions: Inversions, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    """Each group meets the same base images and seeds; the arithmetic of groups is tested with the inversion."""
    task = replace(task, ipc=9)  # K = 5
    synthesize(infer, task, tmp_path / "whole")
    whole = inversions.copy()
    inversions.clear()
    (own_home / "offsets").rename(own_home / "aside")
    monkeypatch.setattr(module, "_IMAGES_AT_ONCE", 7)  # two groups of three images at once
    made = synthesize(infer, task, tmp_path / "chunks")
    assert [len(base) for base, _, _ in inversions] == [2, 2, 1] * 2
    for m, (base, seeds, size) in enumerate(whole):
        parts = inversions[3 * m : 3 * m + 3]
        assert torch.cat([part[0] for part in parts]).equal(base)
        assert [seed for part in parts for seed in part[1]] == seeds
        assert {part[2] for part in parts} == {size}
    assert isinstance(made.payload, Compensated)
    assert made.payload.offsets.shape == (10, 1, 8, 8)
    assert made.payload.offsets.unique(dim=0).shape[0] == 10


def test_float16_stores_the_same_offsets(infer: Infer, task: Task, tmp_path: Path) -> None:
    task, wide = replace(task, ipc=5), replace(infer, offset_dtype="float16")
    assert wide.base_images_per_class(task) == 2
    half = synthesize(wide, task, tmp_path / "half").payload
    byte = synthesize(infer, replace(task, ipc=4), tmp_path / "byte").payload  # K = 2 as well
    assert isinstance(half, Compensated)
    assert isinstance(byte, Compensated)
    assert half.base.equal(byte.base)
    assert half.pairs.equal(byte.pairs)
    assert (half.offsets.dtype, half.scales.unique().tolist()) == (torch.float16, [1.0])
    difference = (half.offsets.float() - byte.offsets.float() * byte.scales[:, None, None, None]).abs()
    assert (difference.amax((1, 2, 3)) <= byte.scales * 0.51 + 1e-3).all()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_label_dtype(infer: Infer, task: Task, run: Run, dtype: Any) -> None:
    made = replace(infer, label_dtype=dtype, temperature=4.0).synthesize(task, run)
    assert isinstance(made.targets, SoftLabels)
    assert made.targets.logits.dtype == getattr(torch, dtype)
    assert made.targets.temperature == 4.0


def test_parents(infer: Infer, task: Task, run: Run) -> None:
    made = infer.synthesize(task, run)
    facts = [teacher.facts for teacher in obtain_teachers(infer.teachers, task)]
    assert made.parents == tuple(fact.id for fact in facts)
    assert made.teacher_seconds == sum(fact.seconds for fact in facts) > 0
    assert made.suggested_lr is None


def test_seeds_decide(infer: Infer, task: Task, store: Store, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = Order("infer", "tiny", infer)
    first, other = distil(order, task, store)[0], distil(order, replace(task, seed=1), store)[0]
    monkeypatch.setenv("DDBENCH_HOME", str(own_home.with_name("elsewhere")))
    again = distil(order, task, Store())[0]
    assert again.path != first.path
    assert (again.id, again.sha256) == (first.id, first.sha256)
    assert other.id != first.id
    assert other.sha256 != first.sha256
    assert other.provenance.parents == first.provenance.parents  # a seed of the synthesis changes no teacher


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("method", [Infer, BaseOnly, Random])
def test_rejects_temperatures(method: Callable[..., Any], temperature: float) -> None:
    with pytest.raises(ConfigError, match=f"temperature is {temperature}; expected a positive number"):
        method(temperature=temperature)


# --- the cache of offsets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [(Infer, ScrambledOffsets), (ScrambledOffsets, Infer)])
def test_offsets_are_learned_once(
    infer: Infer, task: Task, tmp_path: Path, own_home: Path, inversions: Inversions, methods: tuple[type[Infer], ...]
) -> None:
    first, second = Run(tmp_path / "first"), Run(tmp_path / "second")
    payloads = {methods[0]: as_control(methods[0], infer).synthesize(task, first).payload}
    assert len(inversions) == 2
    payloads[methods[1]] = as_control(methods[1], infer).synthesize(task, second).payload
    assert len(inversions) == 2
    (path,) = (own_home / "offsets").iterdir()
    cached: Any = load_tree(path)
    assert 0 < cached["seconds"] <= first.seconds
    assert second.seconds >= cached["seconds"]  # made or found, they cost the same
    plain, mixed = payloads[Infer], payloads[ScrambledOffsets]
    assert isinstance(plain, Compensated)
    assert isinstance(mixed, Compensated)
    stored, scales = quantise(cached["offsets"].flatten(0, 1), "int8")
    assert (plain.offsets.equal(stored), plain.scales.equal(scales)) == (True, True)
    assert mixed.base.equal(plain.base)
    assert mixed.pairs.equal(plain.pairs)
    assert mixed.scales.equal(scales)
    for one, other in zip(plain.offsets.flatten(1), mixed.offsets.flatten(1), strict=True):
        assert one.abs().sort().values.equal(other.abs().sort().values)
    assert not mixed.offsets.equal(plain.offsets)


def test_found_offsets_give_the_same_set(infer: Infer, task: Task, own_home: Path, inversions: Inversions) -> None:
    made = distil(Order("infer", "tiny", infer), task, Store())[0]
    again = distil(Order("infer", "tiny", infer), task, Store(own_home / "other sets"))[0]
    assert len(inversions) == 2
    assert again.sha256 == made.sha256


def test_other_offsets_are_learned_anew(infer: Infer, task: Task, tmp_path: Path, inversions: Inversions) -> None:
    synthesize(infer, task, tmp_path / "a")
    others = [
        (infer, replace(task, seed=1)),
        (infer, replace(task, ipc=2)),
        (replace(infer, inversion=replace(infer.inversion, lr=0.2)), task),
        (replace(infer, teachers=replace(infer.teachers, seed=1)), task),
        (replace(infer, teachers=replace(infer.teachers, architectures=infer.teachers.architectures[::-1])), task),
    ]
    for count, (method, other) in enumerate(others, start=2):
        synthesize(method, other, tmp_path / f"{count}")
        assert len(inversions) == 2 * count


def test_other_seeds_learn_anew_on_the_same_images(
    infer: Infer, task: Task, tmp_path: Path, inversions: Inversions
) -> None:
    """The shifts are drawn by the seed, too; here all images of a class are copies of one."""
    copies = task.data.images[[int((task.data.labels == label).nonzero()[0]) for label in range(3)]]
    data = replace(task.data, images=copies[task.data.labels], fingerprint="copies")
    payloads = []
    for seed in (0, 1):
        payloads.append(synthesize(infer, replace(task, data=data, seed=seed), tmp_path / str(seed)).payload)
        assert len(inversions) == 2 * (seed + 1)
    first, second = payloads
    assert isinstance(first, Compensated)
    assert isinstance(second, Compensated)
    assert first.base.equal(second.base)
    assert not first.offsets.equal(second.offsets)


def test_storage_and_labels_are_no_part_of_the_offsets(
    infer: Infer, task: Task, tmp_path: Path, inversions: Inversions
) -> None:
    synthesize(infer, task, tmp_path / "a")
    synthesize(replace(infer, label_dtype="float32", temperature=4.0, protocol="hard"), task, tmp_path / "b")
    assert len(inversions) == 2


# --- controls --------------------------------------------------------------------------------------------------------


def test_base_only_is_the_first_block(infer: Infer, task: Task, tmp_path: Path) -> None:
    whole = synthesize(infer, task, tmp_path / "infer")
    alone = synthesize(as_control(BaseOnly, infer), task, tmp_path / "base")
    assert isinstance(alone.payload, Images)
    assert isinstance(whole.payload, Compensated)
    assert isinstance(alone.targets, SoftLabels)
    assert isinstance(whole.targets, SoftLabels)
    assert alone.payload.pixels.dtype == torch.uint8
    assert alone.payload.pixels.equal(whole.payload.base)
    assert alone.payload.decode().equal(whole.payload.decode()[: len(alone.payload)])
    assert alone.targets.classes.equal(whole.targets.classes[: len(alone.payload)])
    torch.testing.assert_close(alone.targets.logits, whole.targets.logits[: len(alone.payload)])
    assert alone.parents == whole.parents


def test_base_only_needs_no_inversion(infer: Infer, task: Task, run: Run, inversions: Inversions) -> None:
    as_control(BaseOnly, infer).synthesize(task, run)
    assert inversions == []


def test_the_scrambling_is_drawn_by_the_seed(
    infer: Infer, task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    monkeypatch.setattr(module, "scramble", lambda offsets, seed: seeds.append(seed) or offsets)
    for seed in (0, 1):
        synthesize(as_control(ScrambledOffsets, infer), replace(task, seed=seed), tmp_path / str(seed))
    assert seeds == [derive_seed("scramble", seed) for seed in (0, 1)]


@pytest.mark.parametrize("seed", [0, 1])
def test_base_images_are_among_those_of_the_random_control(infer: Infer, task: Task, tmp_path: Path, seed: int) -> None:
    task = replace(task, seed=seed)
    chosen, drawn = synthesize(infer, task, tmp_path / "i").payload, synthesize(Random(), task, tmp_path / "r").payload
    assert isinstance(chosen, Compensated)
    assert isinstance(drawn, Images)
    assert len(drawn) == 12 > len(chosen.base) == 6
    assert drawn.pixels[:6].equal(chosen.base)


def test_controls(infer: Infer, task: Task) -> None:
    """Which sets must stand beside an entry of seed 1, and with what."""
    soft, hard, base, scrambled = describe(Order("infer", "tiny", infer), replace(task, seed=1)).controls
    assert [control.method for control in (soft, hard, base, scrambled)] == [
        "random", "random", "infer-base", "infer-scrambled",
    ]  # fmt: skip
    assert [control.labels for control in (soft, hard, base, scrambled)] == ["soft", "hard", "soft", "soft"]
    assert {control.preset for control in (soft, hard, base, scrambled)} == {"tiny"}
    assert soft.seeds == hard.seeds == base.seeds
    assert len(soft.seeds) >= 3
    assert scrambled.seeds == (1,)
    assert soft.config["teachers"] == base.config["teachers"] == scrambled.config["teachers"]
    assert soft.config["label_dtype"] == infer.label_dtype
    assert soft.config["temperature"] == infer.temperature
    assert hard.config["teachers"] is None
    assert {control.config["protocol"] for control in (soft, hard, base, scrambled)} == {"quick"}


@pytest.mark.parametrize("control", [BaseOnly, ScrambledOffsets])
def test_controls_of_controls_are_random_images(infer: Infer, task: Task, control: type[Infer]) -> None:
    method = as_control(control, infer)
    assert method.controls(task) == infer.controls(task)[:2]
    assert Random(infer.teachers).controls(task) == ()


def test_a_direct_order_of_a_control_has_its_recipe(infer: Infer, task: Task, store: Store) -> None:
    """However a control comes to be made, its records are found."""
    entry = replace(infer, temperature=4.0, label_dtype="float32")
    plan: TeacherPlan = infer.teachers
    soft, hard, base, scrambled = describe(Order("infer", "tiny", entry), task).controls
    direct = {
        soft.recipe: Order("random", "x", Random(plan, temperature=4.0, label_dtype="float32", protocol="quick")),
        hard.recipe: Order("random", "x", Random(protocol="quick")),
        base.recipe: Order("infer-base", "x", as_control(BaseOnly, entry)),
        scrambled.recipe: Order("infer-scrambled", "x", as_control(ScrambledOffsets, entry)),
    }
    assert len(direct) == 4
    for control in (soft, hard, base, scrambled):
        seeded = replace(task, seed=control.seeds[0])
        stored = distil(order_control(control), seeded, store)[0]
        assert stored.provenance.recipe == control.recipe
        assert stored.load().targets.kind == control.labels
        assert stored.provenance.config == control.config
        again, made = distil(direct[control.recipe], seeded, store)
        assert (again.id, made) == (stored.id, False)


# --- labels of a tape ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Infer, BaseOnly, ScrambledOffsets])
def test_a_tape_labels_the_same_images(
    infer: Infer, task: Task, tmp_path: Path, inversions: Inversions, method: type[Infer]
) -> None:
    """Base images and sums alike, by all teachers; offsets are not learned again."""
    plain = synthesize(as_control(method, infer), task, tmp_path / "plain")
    learned = len(inversions)
    taped = synthesize(as_control(method, replace(infer, tape=TAPED)), task, tmp_path / "taped")
    assert len(inversions) == learned
    assert taped.payload.decode().equal(plain.payload.decode())
    assert isinstance(taped.targets, TapedLabels)
    assert taped.targets.classes.equal(plain.targets.classes)
    assert taped.targets.logits.shape == (2, len(plain.payload), 3)
    expected = draw_tape(len(plain.payload), BLOBS, TAPED.recipe, derive_seed("tape", 0))
    assert taped.targets.tape.crops.equal(expected.crops)
    assert taped.targets.temperature == 20.0
    assert taped.parents == plain.parents
    assert taped.teacher_seconds == plain.teacher_seconds


def test_offsets_of_all_teachers_count_though_one_labels(infer: Infer, task: Task, run: Run) -> None:
    method = replace(infer, tape=replace(TAPED, labeller="first"))
    made = method.synthesize(task, run)
    facts = [teacher.facts for teacher in obtain_teachers(infer.teachers, task)]
    assert made.parents == tuple(fact.id for fact in facts)
    assert made.teacher_seconds == sum(fact.seconds for fact in facts)


@pytest.mark.parametrize("labeller", ["committee", "first"])
def test_controls_of_taped_sets(infer: Infer, task: Task, store: Store, labeller: Any) -> None:
    entry = replace(infer, tape=replace(TAPED, labeller=labeller), protocol="fkd-quick")
    same, hard, base, scrambled = describe(Order("infer", "x", entry), task).controls
    assert [control.labels for control in (same, hard, base, scrambled)] == ["taped", "hard", "taped", "taped"]
    teachers, tape = entry.tape.by(infer.teachers)  # type: ignore[union-attr]
    random = Random(teachers, tape=tape, protocol="fkd-quick")
    assert same.recipe == describe(Order("random", "x", random), task).recipe
    assert hard.recipe == describe(Order("random", "x", Random(protocol="fkd-quick")), task).recipe
    assert base.recipe == describe(Order("infer-base", "x", as_control(BaseOnly, entry)), task).recipe
    assert as_control(BaseOnly, entry).controls(task) == entry.controls(task)[:2]
    for control in (same, base, scrambled):
        stored, _ = distil(order_control(control), replace(task, seed=control.seeds[0]), store)
        assert stored.load().targets.kind == "taped"
        assert stored.provenance.recipe == control.recipe


@pytest.mark.parametrize(
    ("scale", "protocol"), [("published", "fkd-cutmix"), ("small", "fkd-quick"), ("digits", "fkd-quick")]
)
def test_presets_with_a_tape(scale: str, protocol: str) -> None:
    for method in (Infer, BaseOnly, ScrambledOffsets):
        taped, plain = method.PRESETS[f"{scale}-taped"], method.PRESETS[scale]
        assert taped == replace(plain, tape=TAPE_PLANS[scale], protocol=protocol)
        assert plain.tape is None


def test_what_was_before_tapes_has_the_ids_it_had(blobs: ImageData, infer: Infer) -> None:
    """Computed before there were any: records name sets by recipes, and sets name teachers."""
    data = replace(blobs, spec=replace(BLOBS, name="made-up"), fingerprint="ab" * 32)
    task = Task(data, ipc=10, seed=0, device=torch.device("cpu"))
    known = {
        "published": ["3223885ccb8e", "7b3ec0fa1f2d", "1390b3cc76dc", "37b5b1202298", "a513d80ee518"],
        "small": ["598d08701b81", "ffcc363aebdc", "862cd923efef", "ec48a8707f68", "ae7433b59863"],
        "digits": ["a03c7fbd23f7", "1e98e598f3a0", "862cd923efef", "c62f485f641f", "c8328c4a0934"],
    }
    for preset, recipes in known.items():
        facts = describe(Order("infer", preset, Infer.PRESETS[preset]), task)
        assert [facts.recipe, *(control.recipe for control in facts.controls)] == recipes
        assert "tape" not in config_of(Infer.PRESETS[preset])
    named = obtain_teachers(infer.teachers, replace(task, data=replace(blobs, fingerprint="ab" * 32)))
    assert [teacher.facts.id for teacher in named] == [
        "convnet1-batch-x0.0625-b56416d111c5", "convnet2-batch-x0.125-9bbfaf014936",
    ]  # fmt: skip


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "preset"),
    [("digits", "digits"), ("digits@20/10", "digits"), ("cifar10", "published"), ("cifar100", "published"),
     ("cifar10@200", "small")],
)  # fmt: skip
def test_presets(dataset: str, preset: str) -> None:
    for method in (Infer, BaseOnly, ScrambledOffsets):
        assert method.preset_for(dataset) == preset
        assert preset in method.PRESETS


def test_the_published_preset_is_the_published_method() -> None:
    published = Infer.PRESETS["published"]
    assert published == Infer()
    assert published.inversion == InversionRecipe(steps=1000, lr=0.25, alpha=1.0, first_bn_weight=10.0, jitter=4)
    assert published.teachers.architectures == ("resnet18", "mobilenetv2", "efficientnetb0", "shufflenetv1")
    recipe = published.teachers.recipe
    assert (recipe.epochs, recipe.batch, recipe.lr, recipe.weight_decay) == (200, 128, 0.1, 5e-4)
    assert (recipe.optimizer, recipe.schedule, recipe.momentum, recipe.augment) == ("sgd", "cosine", 0.9, "crop-flip")
    assert (published.temperature, published.protocol) == (30.0, "infer-static")
