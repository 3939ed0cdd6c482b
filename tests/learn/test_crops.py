"""Random resized crops: torchvision's pixels for a box, and torchvision's boxes, in distribution."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor
from torch.autograd import gradcheck
from torchvision.transforms import RandomResizedCrop, v2

from dd_bench.learn.crops import RATIOS, draw_crops, resize_crops
from dd_bench.seeding import generator

SIZES = [(8, 8), (5, 7), (7, 4), (1, 6), (6, 1), (1, 1), (32, 32), (3, 40)]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(shape, generator=generator(seed), dtype=dtype)


def some_boxes(height: int, width: int, count: int, seed: int = 0) -> Tensor:
    """Boxes of every kind: the whole image, single pixels at the corners, and whatever chance gives."""
    draws = generator(seed)
    boxes = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, width - 1, 1, 1), (0, 0, height, 1), (0, 0, 1, width)]
    while len(boxes) < count:
        tall, wide = (int(torch.randint(1, side + 1, (), generator=draws)) for side in (height, width))
        top, left = (int(torch.randint(end + 1, (), generator=draws)) for end in (height - tall, width - wide))
        boxes.append((top, left, tall, wide))
    return torch.tensor(boxes[:count])


def by_torchvision(image: Tensor, box: Tensor, flip: bool, *, antialias: bool = False) -> Tensor:
    """The crop of one image (C, H, W), resized and maybe mirrored."""
    top, left, tall, wide = box.tolist()
    size = list(image.shape[-2:])
    resized = v2.functional.resized_crop(image, top, left, tall, wide, size, antialias=antialias)
    return v2.functional.hflip(resized) if flip else resized


def theirs(height: int, width: int, count: int, smallest: float) -> Tensor:
    """Boxes (count, 4) as torchvision draws them."""
    image = torch.empty(1, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = [RandomResizedCrop.get_params(image, [smallest, 1.0], list(RATIOS)) for _ in range(count)]
    return torch.tensor(made)


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "antialias"),
    # torch's own antialiased interpolation repeats the first row of images one pixel wide
    [(*size, antialias) for size in SIZES for antialias in (False, True) if size[1] > 1 or not antialias],
)
def test_each_crop_is_torchvisions(height: int, width: int, antialias: bool) -> None:
    images, boxes = draw(24, 3, height, width), some_boxes(height, width, 24)
    flips = draw(24, seed=1) < 0.5
    cropped = resize_crops(images, boxes, flips)
    assert (cropped.shape, cropped.dtype) == (images.shape, torch.float32)
    for number in range(24):
        expected = by_torchvision(images[number], boxes[number], bool(flips[number]), antialias=antialias)
        torch.testing.assert_close(cropped[number], expected, rtol=0, atol=1e-6)


def test_every_box_of_a_small_image() -> None:
    """None is special; float64 hides nothing but the weights' float32."""
    height, width = 4, 3
    rows, columns = (
        [(start, size) for size in range(1, side + 1) for start in range(side - size + 1)] for side in (height, width)
    )
    boxes = torch.tensor([(top, left, tall, wide) for (top, tall), (left, wide) in itertools.product(rows, columns)])
    images = draw(len(boxes), 2, height, width, dtype=torch.float64)
    cropped = resize_crops(images, boxes)
    assert cropped.dtype == torch.float64
    for image, box, found in zip(images, boxes, cropped, strict=True):
        top, left, tall, wide = box.tolist()
        part = image[None, :, top : top + tall, left : left + wide]
        expected = F.interpolate(part, size=(height, width), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-7)


def test_numbers_to_follow_with_a_pencil() -> None:
    """Two pixels stretched over four lie at -0.25, 0.25, 0.75 and 1.25 between them."""
    image = torch.tensor([[9.0, 0.0, 4.0, 9.0]]).view(1, 1, 1, 4)
    box = torch.tensor([[0, 1, 1, 2]])
    assert resize_crops(image, box).flatten().tolist() == [0.0, 1.0, 3.0, 4.0]
    assert resize_crops(image, box, torch.tensor([True])).flatten().tolist() == [4.0, 3.0, 1.0, 0.0]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_whole_image_stays_as_it_is(height: int, width: int) -> None:
    images, whole = draw(4, 3, height, width), torch.tensor([[0, 0, height, width]])
    assert torch.equal(resize_crops(images, whole), images)
    flips = torch.tensor([True, False, True, False])
    mirrored = resize_crops(images, whole.expand(4, 4), flips)
    assert torch.equal(mirrored, torch.where(flips.view(-1, 1, 1, 1), images.flip(-1), images))


def test_one_box_and_one_flip_serve_all_images() -> None:
    """To rounding: on some processors one matrix for all images is multiplied in another order than one for each."""
    images, box = draw(5, 2, 6, 9), torch.tensor([[1, 3, 4, 5]])
    flips, one = torch.tensor([True, False, True, True, False]), torch.tensor([True])
    every, boxes = box.expand(5, 4), some_boxes(6, 9, 5)
    expected = [by_torchvision(image, box[0], bool(flip)) for image, flip in zip(images, flips, strict=True)]
    for found, same in (
        (resize_crops(images, box), resize_crops(images, every)),
        (resize_crops(images, box, flips), resize_crops(images, every, flips)),
        (resize_crops(images, box, one), resize_crops(images, every, one.expand(5))),
        (resize_crops(images, boxes, one), resize_crops(images, boxes, one.expand(5))),
        (resize_crops(images, box, flips), torch.stack(expected)),
    ):
        torch.testing.assert_close(found, same, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_boxes_are_integers_of_any_kind(dtype: torch.dtype) -> None:
    images, boxes = draw(20, 1, 32, 30), some_boxes(32, 30, 20)
    assert torch.equal(resize_crops(images, boxes.to(dtype)), resize_crops(images, boxes))


def test_crops_invent_no_brightness() -> None:
    """Weights sum to one: an even image stays even, and no pixel leaves the range."""
    boxes = some_boxes(32, 32, 60)
    torch.testing.assert_close(resize_crops(torch.full((60, 1, 32, 32), 0.7), boxes), torch.full((60, 1, 32, 32), 0.7))
    images = (draw(60, 1, 32, 32) < 0.5).float()
    cropped = resize_crops(images, boxes)
    assert -1e-6 <= cropped.min() <= cropped.max() <= 1 + 1e-6


@pytest.mark.parametrize("shared", [False, True])
def test_gradient_is_that_of_torchs_own_interpolation(shared: bool) -> None:
    images, weights = draw(6, 2, 5, 8, dtype=torch.float64), draw(6, 2, 5, 8, seed=2, dtype=torch.float64)
    boxes = some_boxes(5, 8, 9)[6:7] if shared else some_boxes(5, 8, 9)[3:]
    flips = torch.tensor([True, False, False, True, True, False])
    ours = images.clone().requires_grad_()
    (found,) = torch.autograd.grad((weights * resize_crops(ours, boxes, flips)).sum(), ours)
    oracle = images.clone().requires_grad_()
    views = [by_torchvision(oracle[n], boxes[0 if shared else n], bool(flips[n])) for n in range(6)]
    (expected,) = torch.autograd.grad((weights * torch.stack(views)).sum(), oracle)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found == 0).any()  # what lies outside a crop has no part in it


def test_gradcheck() -> None:
    images = draw(3, 2, 4, 5, dtype=torch.float64).requires_grad_()
    boxes, flips = torch.tensor([[0, 0, 4, 5], [1, 2, 2, 3], [3, 0, 1, 4]]), torch.tensor([True, False, True])
    assert gradcheck(lambda x: resize_crops(x, boxes, flips), images)


# --- boxes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "smallest"), [(32, 32, 0.08), (32, 24, 0.08), (20, 48, 0.25), (64, 64, 0.5)]
)
def test_boxes_are_drawn_as_torchvisions(height: int, width: int, smallest: float) -> None:
    count = 3000
    ours, them = (
        boxes.double() for boxes in (draw_crops(count, height, width, generator(3), smallest=smallest),
                                     theirs(height, width, count, smallest))
    )  # fmt: skip
    for name, measure in {
        "top": lambda box: box[:, 0],
        "left": lambda box: box[:, 1],
        "height": lambda box: box[:, 2],
        "width": lambda box: box[:, 3],
        "area": lambda box: box[:, 2] * box[:, 3],
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "bottom": lambda box: box[:, 0] + box[:, 2],
        "right": lambda box: box[:, 1] + box[:, 3],
        "diagonal": lambda box: box[:, 0] - box[:, 1],
        "row within its range": lambda box: box[:, 0] / (height - box[:, 2] + 1),
    }.items():
        one, other = measure(ours).numpy(), measure(them).numpy()
        assert stats.ks_2samp(one, other).pvalue > 0.005, name
        assert abs(one.mean() - other.mean()) < 4 * other.std() / (count / 2) ** 0.5 + 1e-12, name


def test_boxes_of_a_tiny_image_come_as_often_as_torchvisions() -> None:
    """Of 4 x 5 pixels there are few boxes, so that all can be counted."""
    count = 6000
    ours = draw_crops(count, 4, 5, generator(1), smallest=0.2)
    kinds, code = torch.unique(torch.cat([ours, theirs(4, 5, count, 0.2)]), dim=0, return_inverse=True)
    table = np.zeros((2, len(kinds)))
    np.add.at(table, (np.repeat([0, 1], count), code.numpy()), 1)
    usual = table.sum(0) >= 20
    assert usual.sum() > 30
    assert table[:, ~usual].sum() < 0.05 * table.sum()
    assert stats.chi2_contingency(table[:, usual]).pvalue > 0.01


def test_the_area_is_uniform_and_the_ratios_logarithm_too() -> None:
    """From an image so large that rounding is invisible; a box that does not fit is drawn anew, a half never is."""
    boxes = draw_crops(4000, 10_000, 10_000, generator(0), smallest=0.08).double()
    area, ratio = boxes[:, 2] * boxes[:, 3] / 1e8, boxes[:, 3] / boxes[:, 2]
    free = area < 0.75  # all ratios fit
    assert stats.kstest(area[free].numpy(), stats.uniform(0.08, 0.67).cdf).pvalue > 0.01
    logarithm = ratio[free].log().numpy()
    low, high = np.log(RATIOS)
    assert stats.kstest(logarithm, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(np.corrcoef(area[free], logarithm)[0, 1]) < 0.05
    corner = (boxes[:, :2] / (10_001 - boxes[:, 2:])).numpy()
    for place in corner.T:
        assert stats.kstest(place, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(corner.T)[0, 1]) < 0.05


@pytest.mark.parametrize("smallest", [1e-6, 0.08, 0.9, 1.0])
@pytest.mark.parametrize(("height", "width"), [*SIZES, (224, 224), (2, 30_000)])
def test_boxes_lie_inside(height: int, width: int, smallest: float) -> None:
    boxes = draw_crops(400, height, width, generator(5), smallest=smallest)
    assert (boxes.shape, boxes.dtype) == ((400, 4), torch.int64)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor([height, width])).all()


@pytest.mark.parametrize("side", [1, 2, 8, 9, 32, 224])
def test_the_whole_of_a_square_is_the_square(side: int) -> None:
    assert (draw_crops(500, side, side, generator(side), smallest=1.0) == torch.tensor([0, 0, side, side])).all()


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [
        (4, 16, [0, 5, 4, 5]),
        (16, 4, [5, 0, 5, 4]),
        (3, 40, [0, 18, 3, 4]),
        (41, 3, [18, 0, 4, 3]),
        (1, 9, [0, 4, 1, 1]),
    ],
)
def test_where_none_fits_it_is_the_largest_of_an_allowed_ratio(height: int, width: int, box: list[int]) -> None:
    ours = draw_crops(50, height, width, generator(0), smallest=1.0)
    assert (ours == torch.tensor(box)).all()
    assert theirs(height, width, 3, 1.0).tolist() == [box] * 3


def test_some_fall_back_as_often_as_torchvisions() -> None:
    """Of 12 x 30 pixels, the largest allowed are 12 x 16; areas up to 0.53 fit, so some draws fail ten times."""
    ours, them = draw_crops(3000, 12, 30, generator(2), smallest=0.5), theirs(12, 30, 3000, 0.5)
    fallback = torch.tensor([0, 7, 12, 16])
    counts = [int((boxes == fallback).all(1).sum()) for boxes in (ours, them)]
    assert min(counts) > 100
    assert stats.chi2_contingency([counts, [3000 - count for count in counts]]).pvalue > 0.01


def test_every_draw_is_the_generators() -> None:
    def make(**change: Any) -> Tensor:
        return draw_crops(30, 20, 24, generator(change.pop("seed", 7)), smallest=0.1)

    before = torch.random.get_rng_state()
    assert torch.equal(make(), make())
    assert not torch.equal(make(), make(seed=8))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(torch.unique(make(), dim=0)) > 25  # each image has one of its own
