"""Tapes: drawn as CutMix and torchvision would, and replayed to the bit, anywhere and in any order."""

import hashlib
import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from dd_bench import codec
from dd_bench import store as store_module
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.crops import draw_crops
from dd_bench.learn.tape import Epoch, TapeRecipe, constant_lessons, draw_tape
from dd_bench.seeding import derive_seed, generator
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.tapes import Tape
from dd_bench.targets import TapedLabels

CPU = torch.device("cpu")
SPEC = DatasetSpec("toy", (3, 9, 7), 4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), True, ("a", "b", "c", "d"))
RECIPE = TapeRecipe(epochs=3, batch=8, micro=4)
ORIGIN = Provenance(
    method="m", preset="p", config={}, dataset="d", fingerprint="f", ipc=1, seed=0, recipe="0123456789ab"
)


def pictures(count: int, *, seed: int = 0, spec: DatasetSpec = SPEC) -> Tensor:
    return torch.randint(0, 256, (count, *spec.image_shape), dtype=torch.uint8, generator=generator(seed))


def draw(count: int = 20, recipe: TapeRecipe = RECIPE, seed: int = 5, **changes: Any) -> Tape:
    return draw_tape(count, replace(SPEC, **changes), recipe, seed)


def set_of(images: Tensor, tape: Tape) -> SyntheticSet:
    """A set whose labels are noise: only its tape matters here."""
    logits = torch.randn(tape.epochs, len(tape), 4, generator=generator(9)).half()
    return SyntheticSet(Images(images), TapedLabels(logits, tape, torch.arange(len(tape)) % 4, 20.0), ORIGIN, "hard")


def everywhere(tape: Tape) -> list[tuple[int, int]]:
    """All (epoch, batch) of a tape, in an order of no epoch."""
    places = list(itertools.product(range(tape.epochs), range(len(tape.ranges()))))
    return [places[number] for number in torch.randperm(len(places), generator=generator(1)).tolist()]


def digest(images: Tensor, tape: Tape, places: list[tuple[int, int]]) -> str:
    """The hash of what batches show, in the order of ``places`` as sorted: equal only to the bit."""
    shown = {place: Epoch.of(tape, place[0], CPU).pixels(images, place[1]) for place in places}
    content = b"".join(shown[place].contiguous().numpy().tobytes() for place in sorted(shown))
    return hashlib.sha256(content).hexdigest()


def is_same(one: Tape, other: Tape) -> bool:
    return all(torch.equal(getattr(one, part.name), getattr(other, part.name)) for part in fields(Tape))


def reference(images: Tensor, tape: Tape, epoch: int, batch: int) -> Tensor:
    """Crop, flip and CutMix in a few lines: one image, one pixel after the other."""
    start, end = tape.bounds[batch].item(), tape.bounds[batch + 1].item()
    views = []
    for position in range(start, end):
        image = images[int(tape.order[epoch, position])] / 255
        view = v2.functional.resized_crop(image, *tape.crops[epoch, position].tolist(), list(image.shape[1:]))
        views.append(v2.functional.hflip(view) if tape.flips[epoch, position] else view)
    mixed = [view.clone() for view in views]
    top, bottom, left, right = tape.boxes[epoch, batch].tolist()
    for place, row, column in itertools.product(range(end - start), range(top, bottom), range(left, right)):
        mixed[place][:, row, column] = views[tape.partners[epoch, start + place]][:, row, column]
    return torch.stack(mixed)


# --- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 17, 3, 1])
def test_shows_what_the_reference_shows(count: int) -> None:
    images, tape = pictures(count), draw(count)
    kinds = Counter[bool]()
    for number, batch in everywhere(tape):
        shown = Epoch.of(tape, number, CPU).pixels(images, batch)
        torch.testing.assert_close(shown, reference(images, tape, number, batch), rtol=0, atol=1e-6)
        kinds[bool((tape.boxes[number, batch, 0::2] < tape.boxes[number, batch, 1::2]).all())] += 1
    assert count < 17 or kinds[True] > 4  # some boxes hold something


@pytest.mark.parametrize("source", [pictures(20), pictures(20).float() / 255 * 3 - 1])
def test_replay_survives_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Tensor) -> None:
    monkeypatch.setattr(store_module, "render_card", lambda *_: b"\x89PNG, in name only")
    tape = draw()
    before = digest(source, tape, list(itertools.product(range(3), range(3))))
    loaded = Store(tmp_path).write(set_of(source, tape)).load()
    assert isinstance(loaded.payload, Images)
    assert isinstance(loaded.targets, TapedLabels)
    assert is_same(loaded.targets.tape, tape)
    assert {getattr(tape, part.name).dtype for part in fields(Tape)} == {torch.int16, torch.int32, torch.bool}
    assert digest(loaded.payload.pixels, loaded.targets.tape, everywhere(tape)) == before
    assert digest(loaded.payload.decode(), loaded.targets.tape, everywhere(tape)) == before


def test_replay_in_a_fresh_process(tmp_path: Path) -> None:
    images, tape = pictures(21), draw(21)
    codec.write(tmp_path / "tensors", set_of(images, tape))
    places = everywhere(tape)[4:]
    script = f"""
import hashlib, torch
from pathlib import Path
from dd_bench import codec
from dd_bench.learn.tape import Epoch
from dd_bench.manifest import Part
parts = {{"payload": Part(kind="images", scalars={{}}), "targets": Part(kind="taped", scalars={{"temperature": 20.0}})}}
payload, targets = codec.read(Path({str(tmp_path / "tensors")!r}), **parts)
shown = {{(number, batch): Epoch.of(targets.tape, number, torch.device("cpu")).pixels(payload.pixels, batch)
         for number, batch in {places}}}
print(hashlib.sha256(b"".join(shown[at].contiguous().numpy().tobytes() for at in sorted(shown))).hexdigest())
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert result.stdout.strip() == digest(images, tape, places)


def test_a_tape_that_is_over_begins_again() -> None:
    images, tape = pictures(20), draw()
    for number in range(3):
        for later in (number + 3, number + 300):
            assert torch.equal(
                Epoch.of(tape, later, CPU).pixels(images, 1), Epoch.of(tape, number, CPU).pixels(images, 1)
            )


def test_images_stay_as_they_are() -> None:
    images = pictures(20)
    floats = images / 255
    kept = images.clone(), floats.clone()
    for number, batch in everywhere(draw()):
        epoch = Epoch.of(draw(), number, CPU)
        shown = epoch.pixels(images, batch)
        assert torch.equal(epoch.pixels(floats, batch), shown)
        assert shown.dtype == torch.float32
        shown.zero_()
    assert torch.equal(images, kept[0])
    assert torch.equal(floats, kept[1])


def test_all_an_image_can_be_is_itself() -> None:
    """Nothing cropped, nothing mirrored, no box: the images in the tape's order, to the bit."""
    images, tape = pictures(20), draw(recipe=replace(RECIPE, smallest_crop=1.0), mirror=False, image_shape=(3, 8, 8))
    images = pictures(20, spec=replace(SPEC, image_shape=(3, 8, 8)))
    tape = replace(tape, boxes=torch.zeros_like(tape.boxes))
    for number in range(3):
        epoch = Epoch.of(tape, number, CPU)
        shown = torch.cat([epoch.pixels(images, batch) for batch in range(3)])
        assert torch.equal(shown, images[tape.order[number].long()] / 255)


# --- draws -----------------------------------------------------------------------------------------------------------


def test_draws_come_in_one_order() -> None:
    """Order, crops, flips, partners, boxes, from one generator an epoch: sets and students' scores hang on it."""
    tape, (height, width) = draw(), SPEC.image_shape[1:]
    for number in range(3):
        draws = generator(derive_seed("tape", 5, number))
        assert tape.order[number].tolist() == torch.randperm(20, generator=draws).tolist()
        crops = draw_crops(20, height, width, draws, smallest=0.08)
        assert tape.crops[number].tolist() == crops.tolist()
        assert tape.flips[number].tolist() == (torch.rand(20, generator=draws) < 0.5).tolist()
        partners = [torch.randperm(size, generator=draws).tolist() for size in (8, 8, 4)]
        assert tape.partners[number].tolist() == list(itertools.chain(*partners))
        for box in tape.boxes[number].tolist():
            uniform, turn = torch.rand(2, generator=draws, dtype=torch.float64).tolist()
            cosine = math.cos(2 * math.pi * turn)  # λ ~ Beta(1, 1) as ``symmetric_beta`` has it, w = 1 - U
            distance = 0.5 * math.sqrt(uniform * cosine**2 / (1 - uniform + uniform * cosine**2))
            weight = 0.5 + math.copysign(distance, cosine)
            half = [int(side * math.sqrt(1 - weight)) // 2 for side in (height, width)]
            row, column = (int(torch.randint(side, (), generator=draws)) for side in (height, width))
            rows = (max(row - half[0], 0), min(row + half[0], height))
            assert box == [*rows, max(column - half[1], 0), min(column + half[1], width)]


@pytest.mark.parametrize("recorded", [1, 2, 7])
def test_an_epoch_does_not_depend_on_how_many_are_recorded(recorded: int) -> None:
    long, short = draw(recipe=replace(RECIPE, epochs=7)), draw(recipe=replace(RECIPE, epochs=recorded))
    for part in fields(Tape):
        if part.name not in ("bounds", "groups"):
            assert torch.equal(getattr(long, part.name)[:recorded], getattr(short, part.name))
    assert short.epochs == recorded


def test_micro_batches_move_no_draw() -> None:
    other = draw(recipe=replace(RECIPE, micro=2))
    assert not torch.equal(other.groups, draw().groups)
    assert is_same(replace(other, groups=draw().groups), draw())


def test_seeds_and_epochs_differ() -> None:
    tape, before = draw(), torch.random.get_rng_state()
    assert is_same(draw(), tape)
    assert torch.equal(torch.random.get_rng_state(), before)  # the global generator was not asked
    other = draw(seed=6)
    for part in fields(Tape):
        values = getattr(tape, part.name)
        if part.name not in ("bounds", "groups"):
            assert not torch.equal(values, getattr(other, part.name))
            assert not torch.equal(values[0], values[1])


def test_images_that_must_not_be_mirrored_are_not() -> None:
    assert not draw(400, mirror=False).flips.any()
    flips = draw(400).flips
    assert stats.binomtest(int(flips.sum()), flips.numel()).pvalue > 0.01
    assert is_same(replace(draw(400), flips=torch.zeros_like(flips)), draw(400, mirror=False))  # and that is all


def test_orders_and_partners_are_uniform_permutations() -> None:
    recipe = TapeRecipe(epochs=900, batch=3, micro=3)
    tape = draw(6, recipe, image_shape=(1, 4, 4))
    for rows, kinds in ((tape.partners[:, :3], 6), (tape.partners[:, 3:], 6), (tape.order[:, :2], 30)):
        counts = Counter(map(tuple, rows.tolist()))
        assert len(counts) == kinds
        assert stats.chisquare(list(counts.values())).pvalue > 0.01
    assert all(sorted(row) == [0, 1, 2] for row in tape.partners.view(-1, 3).tolist())
    both = Counter(
        zip(map(tuple, tape.partners[:, :3].tolist()), map(tuple, tape.partners[:, 3:].tolist()), strict=True)
    )
    assert len(both) == 36  # batches of an epoch know nothing of each other


def test_boxes_are_those_of_cutmix() -> None:
    """Against Yun et al.'s ``rand_bbox``, with numpy's draws."""
    height, width, count = 24, 33, 3000
    tape = draw(2 * count, TapeRecipe(epochs=1, batch=2, micro=2), image_shape=(1, height, width))
    ours = tape.boxes[0].double().numpy()
    draws = np.random.default_rng(0)
    cut = np.sqrt(1 - draws.beta(1.0, 1.0, count))
    rows, columns = draws.integers(height, size=count), draws.integers(width, size=count)
    tall, wide = (height * cut).astype(int), (width * cut).astype(int)
    theirs = np.stack([
        np.clip(rows - tall // 2, 0, height), np.clip(rows + tall // 2, 0, height),
        np.clip(columns - wide // 2, 0, width), np.clip(columns + wide // 2, 0, width),
    ], axis=1)  # fmt: skip
    for name, measure in {
        "area": lambda box: (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]),
        "middle": lambda box: box[:, 0] + box[:, 1],
        "centre": lambda box: box[:, 2] + box[:, 3],
        "tall": lambda box: box[:, 1] - box[:, 0],
        "wide": lambda box: box[:, 3] - box[:, 2],
    }.items():
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 0.01, name
    assert (ours.min(0)[[0, 2]] == 0).all()
    assert (ours.max(0)[[1, 3]] == [height, width]).all()  # clipped, and no further
    tape.check_images(2 * count, height, width)


@pytest.mark.parametrize("smallest", [0.08, 0.5, 1.0])
def test_crops_are_as_small_as_the_recipe_says(smallest: float) -> None:
    recipe = TapeRecipe(epochs=1, batch=100, micro=100, smallest_crop=smallest)
    crops = draw(3000, recipe, image_shape=(1, 60, 60)).crops[0].double()
    shares = crops[:, 2] * crops[:, 3] / 3600
    assert smallest - 0.02 < shares.min() <= smallest + 0.01


# --- batches and groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "batch", "micro", "groups"),
    [
        (100, 16, 8, [[8, 8]] * 6 + [[4]]), (16, 16, 8, [[8, 8]]), (32, 16, 8, [[8, 8], [8, 8]]),
        (97, 16, 8, [[8, 8]] * 5 + [[8, 9]]),  # a last batch of one joins the one before, and its group too
        (98, 16, 8, [[8, 8]] * 6 + [[2]]), (105, 16, 8, [[8, 8]] * 6 + [[9]]), (107, 16, 8, [[8, 8]] * 6 + [[8, 3]]),
        (111, 16, 8, [[8, 8]] * 6 + [[8, 7]]), (10, 10, 8, [[8, 2]]), (10, 10, 3, [[3, 3, 4]]), (9, 16, 8, [[9]]),
        (5, 16, 8, [[5]]), (1, 16, 8, [[1]]), (2, 16, 8, [[2]]), (17, 16, 8, [[8, 9]]), (6, 2, 2, [[2]] * 3),
        (7, 2, 2, [[2], [2], [3]]), (15, 5, 2, [[2, 3]] * 3), (10, 5, 5, [[5], [5]]),
        (25, 12, 5, [[5, 5, 2], [5, 5, 3]]),
    ],
)  # fmt: skip
def test_groups(count: int, batch: int, micro: int, groups: list[list[int]]) -> None:
    tape = draw(count, TapeRecipe(epochs=1, batch=batch, micro=micro))
    assert [end - start for start, end in tape.ranges()] == [sum(sizes) for sizes in groups]
    assert [[last - first for first, last in tape.groups_of(*span)] for span in tape.ranges()] == groups


def test_no_group_is_one_image_or_crosses_a_batch() -> None:
    for count, batch in itertools.product(range(1, 27), range(2, 9)):
        for micro in range(2, batch + 1):
            tape = draw(count, TapeRecipe(epochs=1, batch=batch, micro=micro), image_shape=(1, 2, 2))
            covered: list[int] = []
            for start, end in tape.ranges():
                assert 2 <= end - start <= batch + 1 or count == 1
                for first, last in tape.groups_of(start, end):
                    assert 2 <= last - first <= micro + 1 or count == 1
                    covered += range(start + first, start + last)
            assert covered == list(range(count))


def test_partners_of_the_largest_batch_have_room() -> None:
    """One image more joins it, and the numbers of partners still fit in 16 bits."""
    tape = draw(32768, TapeRecipe(epochs=1, batch=32767), image_shape=(1, 1, 1))
    assert tape.ranges() == [(0, 32768)]
    assert tape.partners[0].sort().values.tolist() == list(range(32768))


# --- labels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 17, 5, 2])
def test_labels_are_mixed_as_the_pixels_are(count: int) -> None:
    """Images of one brightness each, which no crop can change: their pixels say how much of whom is in a mixture."""
    images = (torch.arange(float(count)) / 64).view(-1, 1, 1, 1).expand(-1, *SPEC.image_shape)
    tape = draw(count, replace(RECIPE, epochs=12))
    met = 0
    for number in range(tape.epochs):
        epoch = Epoch.of(tape, number, CPU)
        shown = torch.cat([epoch.pixels(images, batch) for batch in range(len(tape.ranges()))])
        mixed = epoch.mix(torch.eye(count), *SPEC.image_shape[1:])
        torch.testing.assert_close(mixed.sum(1), torch.ones(count))
        torch.testing.assert_close(mixed @ torch.arange(float(count)), shown.mean((1, 2, 3)) * 64, rtol=0, atol=1e-4)
        for row, pixels in zip(mixed, shown, strict=True):
            values, counts = (pixels[0] * 64).round().long().unique(return_counts=True)
            assert row.nonzero().flatten().tolist() == values.tolist()
            torch.testing.assert_close(row[values], counts / 63)
            met += len(values) == 2
    assert met > 5


def test_values_are_mixed_by_the_share_of_pixels_in_the_box() -> None:
    """A quarter of 8 x 4 pixels, nothing, everything, and two batches that do not mix."""
    tape = Tape(
        order=torch.tensor([[4, 3, 2, 1, 0]] * 3, dtype=torch.int32),
        crops=torch.tensor([0, 0, 8, 4], dtype=torch.int16).repeat(3, 5, 1),
        flips=torch.zeros(3, 5, dtype=torch.bool),
        partners=torch.tensor([[1, 0, 2, 0, 1]] * 3, dtype=torch.int16),
        boxes=torch.tensor([[[0, 4, 1, 3], [4, 8, 0, 2]], [[3, 3, 0, 4], [0, 8, 2, 2]], [[0, 8, 0, 4]] * 2],
                           dtype=torch.int16),
        bounds=torch.tensor([0, 2, 5], dtype=torch.int32),
        groups=torch.tensor([0, 2, 5], dtype=torch.int32),
    )  # fmt: skip
    values = torch.tensor([[0.0, 8.0], [10.0, 8.0], [20.0, 4.0], [30.0, 8.0], [40.0, 8.0]])
    mixed = [Epoch.of(tape, number, CPU).mix(values, 8, 4)[:, 0].tolist() for number in range(3)]
    # positions show 40, 30 | 20, 10, 0; their partners 30, 40 | 0, 20, 10
    assert mixed == [[37.5, 32.5, 15.0, 12.5, 2.5], [40.0, 30.0, 20.0, 10.0, 0.0], [30.0, 40.0, 0.0, 20.0, 10.0]]


def test_constant_lessons_are_mixed_values() -> None:
    tape, values = draw(), torch.randn(20, 4, generator=generator(2))
    lessons = constant_lessons(values, SPEC)
    for number in range(3):
        epoch = Epoch.of(tape, number, CPU)
        assert torch.equal(lessons(77, epoch), epoch.mix(values, 9, 7))


# --- recipes ---------------------------------------------------------------------------------------------------------

NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        *(({"epochs": epochs}, f"^epochs is {epochs}; expected at least 1$") for epochs in (0, -1)),
        *(({"batch": batch}, f"^batch is {batch}; expected 2 to 32767$") for batch in (1, 0, 32768)),
        *(({"micro": micro}, f"^micro is {micro}; expected 2 to the batch, 16$") for micro in (1, 0, 17)),
        ({"batch": 4}, "^micro is 8; expected 2 to the batch, 4$"),
        *(({"smallest_crop": share}, f"^smallest_crop is {share}; expected more than 0 and at most 1$")
          for share in (0.0, -0.1, 1.1, NAN)),
    ],
)  # fmt: skip
def test_rejects_numbers(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TapeRecipe(**change)


def test_the_published_recipe_is_the_default() -> None:
    assert TapeRecipe() == TapeRecipe(epochs=300, batch=16, micro=8, smallest_crop=0.08)
