"""Initial pixels: the random control's images, noise like the data, and mosaics of the crops that are easiest."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.functional import resized_crop

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.crops import draw_crops
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import Images
from synth.base import Task
from synth.coreset import Random
from synth.parts import initial_pixels as module
from synth.parts.initial_pixels import Initialization, initial_pixels
from synth.parts.teachers import Teacher

CPU = torch.device("cpu")


class Judge(nn.Module):
    """A random linear classifier that remembers what it saw."""

    def __init__(self, pixels: int, classes: int) -> None:
        super().__init__()
        with seeded(2):
            self.head = nn.Linear(pixels, classes).requires_grad_(False)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        logits: Tensor = self.head(x.flatten(1))
        return 10 * logits


def data_of(counts: list[int], shape: tuple[int, int, int], **facts: tuple[float, ...]) -> ImageData:
    """Returns shuffled random images, so many of each class."""
    names = tuple("abcdefg")[: len(counts)]
    spec = DatasetSpec("toy", shape, len(counts), (0.5,) * shape[0], (0.1,) * shape[0], False, names)
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator(4))]
    images = torch.randint(0, 256, (len(labels), *shape), dtype=torch.uint8, generator=generator(5))
    return ImageData(replace(spec, **facts), images, labels, "ab" * 32)  # type: ignore[arg-type]


def begin(
    kind: Initialization, data: ImageData, count: int, *, judge: Judge | None = None, seed: int = 0,
    rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    judge = judge or Judge(data.images[0].numel(), data.spec.num_classes)
    teacher = Teacher(judge, None)  # type: ignore[arg-type]
    return initial_pixels(kind, data, count, teacher=teacher, seed=seed, device=CPU, rows=rows)


SMALL = data_of([9, 7, 8], (2, 6, 5))
LARGE = data_of([7, 6], (1, 66, 70))


@pytest.mark.parametrize("kind", ["mosaic", "real", "noise"])
def test_shapes_and_seeds(kind: Initialization) -> None:
    first, again, other = (begin(kind, SMALL, 4, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (4, 3, 2, 6, 5)
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert 0 <= first.min() < first.max() <= 1
    assert first.equal(again)
    assert not first.equal(other)
    assert len(first.flatten(0, 1).unique(dim=0)) == 12


# --- real images and noise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 3])
def test_real_images_are_those_of_the_random_control(blobs: ImageData, run: Run, seed: int) -> None:
    control = Random().synthesize(Task(blobs, 4, seed, CPU), run).payload
    assert isinstance(control, Images)
    pixels = begin("real", blobs, 4, seed=seed)
    assert (pixels * 255).round().byte().flatten(0, 1).equal(control.pixels)
    assert pixels.flatten(0, 1).equal(control.decode())


def test_rejects_more_real_images_than_there_are() -> None:
    with pytest.raises(ConfigError, match="class 1 has 7 training examples, but 8 are asked for"):
        begin("real", SMALL, 8)


def test_noise_has_the_mean_and_deviation_of_the_data() -> None:
    data = data_of([1] * 5, (2, 20, 20), mean=(0.4, 0.6), std=(0.05, 0.08))
    noise = begin("noise", data, 10)
    for channel, (mean, std) in enumerate(((0.4, 0.05), (0.6, 0.08))):
        values = noise[:, :, channel].flatten()  # 20,000
        assert float(values.mean()) == pytest.approx(mean, abs=4 * std / 20_000**0.5)
        assert float(values.std()) == pytest.approx(std, rel=0.03)
        assert float(((values - mean) / std).pow(4).mean()) == pytest.approx(3, abs=0.2), "it is normal"


def test_noise_is_clipped() -> None:
    noise = begin("noise", data_of([1] * 5, (1, 20, 20), mean=(0.5,), std=(0.5,)), 5)
    assert (noise.min(), noise.max()) == (0, 1)
    for edge in (0, 1):
        assert (noise == edge).float().mean() == pytest.approx(0.1587, abs=0.015)  # beyond one deviation


# --- mosaics ---------------------------------------------------------------------------------------------------------


def easiest_crops(data: ImageData, label: int, judge: nn.Module, seed: int, limit: int = 300) -> list[Tensor]:
    """Returns the best of five crops of each image of a class, easiest first: torchvision's crops, one by one."""
    draws = generator(derive_seed("mosaic", seed, label))
    members = [row for row, mine in enumerate(data.labels.tolist()) if mine == label]
    rows = [members[place] for place in torch.randperm(len(members), generator=draws)[:limit]]
    height, width = data.spec.image_shape[1:]
    boxes = iter(draw_crops(5 * len(rows), height, width, draws, smallest=0.08).tolist())
    found = []
    for row in rows:
        crops = [resized_crop(data.images[row].float() / 255, *next(boxes), size=[height, width], antialias=False)
                 for _ in range(5)]  # fmt: skip
        losses = [float(F.cross_entropy(judge(crop[None]), torch.tensor([label]))) for crop in crops]
        best = min(range(5), key=losses.__getitem__)
        found.append((losses[best], crops[best]))
    return [crop for _, crop in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize("seed", [0, 1])
def test_small_images_begin_as_the_easiest_crops(seed: int) -> None:
    judge = Judge(60, 3)
    found = begin("mosaic", SMALL, 5, judge=judge, seed=seed)
    for label in range(3):
        crops = easiest_crops(SMALL, label, judge, seed)
        torch.testing.assert_close(found[:, label], torch.stack(crops[:5]), rtol=0, atol=1e-5)


def test_the_first_is_the_argmin_of_what_the_teacher_saw() -> None:
    """Whatever is drawn: of all views of a class, the one of least cross-entropy."""
    judge = Judge(60, 3)
    found = begin("mosaic", SMALL, 1, judge=judge)
    for label, (views, members) in enumerate(zip(judge.seen, (9, 7, 8), strict=True)):
        assert len(views) == 5 * members
        losses = -(10 * judge.head(views.flatten(1))).log_softmax(1)[:, label]
        assert found[0, label].equal(views[losses.argmin()])


def test_large_images_are_grids_of_four() -> None:
    judge = Judge(66 * 70, 2)
    found = begin("mosaic", LARGE, 1, judge=judge)
    for label in range(2):
        crops = easiest_crops(LARGE, label, judge, 0)
        grid = torch.cat([torch.cat(crops[:2], dim=2), torch.cat(crops[2:4], dim=2)], dim=1)  # (1, 132, 140)
        halves = (grid[:, 0::2] + grid[:, 1::2]) / 2
        torch.testing.assert_close(found[0, label], (halves[:, :, 0::2] + halves[:, :, 1::2]) / 2, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "crops"), [((1, 64, 64), 1), ((1, 65, 8), 4), ((1, 8, 65), 4)])
def test_mosaics_begin_above_64_pixels(shape: tuple[int, int, int], crops: int) -> None:
    """Flat images of different greys: each crop is as grey as its image, and a mosaic has one in each corner."""
    data = data_of([5], shape)
    data = replace(data, images=torch.arange(50, 100, 10, dtype=torch.uint8).view(5, 1, 1, 1).expand(-1, *shape))
    corners = (begin("mosaic", data, 1) * 255).round()[0, 0, 0, :: shape[1] - 1, :: shape[2] - 1]
    assert corners.shape == (2, 2)
    assert len(corners.unique()) == crops


def test_a_class_of_few_images_repeats_its_crops_in_turn() -> None:
    judge, data = Judge(60, 3), data_of([2, 1, 3], (2, 6, 5))
    found = begin("mosaic", data, 5, judge=judge)
    for label, count in enumerate((2, 1, 3)):
        crops = easiest_crops(data, label, judge, 0)
        assert len(crops) == count
        expected = torch.stack([crops[slot % count] for slot in range(5)])
        torch.testing.assert_close(found[:, label], expected, rtol=0, atol=1e-5)


def test_a_mosaic_of_few_images_repeats_only_if_it_must() -> None:
    judge, data = Judge(66 * 70, 2), data_of([3, 7], (1, 66, 70))
    found = begin("mosaic", data, 2, judge=judge)
    crops = easiest_crops(data, 0, judge, 0)
    places = [crops[place % 3] for place in range(8)]
    corner = torch.stack([places[0], places[4]]).unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(found[:, 0, :, :33, :35], corner, rtol=0, atol=1e-5)


def test_some_images_of_a_large_class_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (module._LOOKED_AT, module._CROPS) == (300, 5), "RDED's numbers"
    monkeypatch.setattr(module, "_LOOKED_AT", 4)
    judge = Judge(60, 3)
    found = begin("mosaic", SMALL, 4, judge=judge)
    assert [len(views) for views in judge.seen] == [20, 20, 20]
    for label in range(3):
        crops = easiest_crops(SMALL, label, judge, 0, limit=4)
        torch.testing.assert_close(found[:, label], torch.stack(crops), rtol=0, atol=1e-5)


def test_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = begin("mosaic", SMALL, 4)
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    judge = Judge(60, 3)
    torch.testing.assert_close(begin("mosaic", SMALL, 4, judge=judge), whole)
    assert max(map(len, judge.seen)) == 7


def test_more_mosaics_begin_as_fewer_do() -> None:
    assert begin("mosaic", SMALL, 5)[:2].equal(begin("mosaic", SMALL, 2))


@pytest.mark.parametrize("kind", ["real", "mosaic"])
def test_rows_are_all_there_is(kind: Initialization) -> None:
    kept = torch.tensor([row for row in range(len(SMALL)) if row % 4])
    part = ImageData(SMALL.spec, SMALL.images[kept], SMALL.labels[kept], SMALL.fingerprint)
    assert begin(kind, SMALL, 3, rows=kept).equal(begin(kind, part, 3))
    assert not begin(kind, SMALL, 3).equal(begin(kind, part, 3))
