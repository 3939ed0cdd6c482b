"""The card: the right pixels in the right places, for every kind of image."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from numpy.typing import NDArray

from dd_bench import card
from dd_bench.card import render_card
from dd_bench.sets import Compensated, Images, Payload, Provenance, SyntheticSet
from dd_bench.targets import Features, HardLabels, SoftLabels, Targets

ORIGIN = Provenance(
    method="sre2l++", preset="p", config={}, dataset="imagefolder:/a $b_ü", fingerprint="f", ipc=1, seed=0, recipe="ab"
)


def sheet(payload: Payload, targets: Targets) -> NDArray[np.uint8]:
    """Returns the card's pixels (height, width, 3)."""
    png = render_card(SyntheticSet(payload, targets, ORIGIN, "hard"), {"images": 12_345, "container": 99})
    pixels: NDArray[np.float32] = imread(io.BytesIO(png), format="png")
    return (pixels[..., :3] * 255).round().astype(np.uint8)


def tile(pixels: NDArray[np.uint8], row: int, column: int, *, side: int, caption: bool = False) -> NDArray[np.uint8]:
    top = card._TOP + row * (side + card._GAP + (card._CAPTION if caption else 0))
    left = card._LEFT + column * (side + card._GAP)
    return pixels[top : top + side, left : left + side]


def test_colours_and_places_are_right() -> None:
    image = torch.zeros(4, 3, 4, 4, dtype=torch.uint8)
    image[0, 0], image[1, 1], image[2, 2] = 255, 200, 100
    image[3, :, 0, 3] = torch.tensor([10, 20, 30], dtype=torch.uint8)
    pixels = sheet(Images(image), HardLabels(torch.tensor([7, 7, 2, 2])))
    side = 100
    assert (tile(pixels, 0, 0, side=side) == [0, 0, 100]).all()  # class 2 comes first
    assert (tile(pixels, 1, 0, side=side) == [255, 0, 0]).all()
    assert (tile(pixels, 1, 1, side=side) == [0, 200, 0]).all()
    corner = tile(pixels, 0, 1, side=side)
    assert (corner[:25, 75:] == [10, 20, 30]).all()
    assert not corner[25:].any()
    assert not corner[:, :75].any()


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_equal_channels_are_gray_and_clipped(channels: int) -> None:
    image = torch.stack([torch.full((channels, 2, 2), value) for value in (-3.0, 0.2, 7.0, *[0.5] * 27)])
    pixels = sheet(Images(image), HardLabels(torch.tensor([0] * 3 + [1] * 27)))
    shades = [tile(pixels, 0, column, side=100) for column in range(3)]
    assert [np.unique(shade).tolist() for shade in shades] == [[0], [51], [255]]


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_images_that_have_grown_are_stretched(size: float) -> None:
    half = torch.tensor([-1.0, 1.0, 1.0, -1.0]).expand(2, 3, 4, 4)
    image = size * torch.stack([half[0], 3 * half[1] - 2])  # mean 0 and -2, deviation 1 and 3, times the size
    stretched = sheet(Images(image), HardLabels(torch.zeros(2, dtype=torch.int64)))
    deviation = torch.std(half[0]).item()
    for column in range(2):
        dark, bright = np.unique(tile(stretched, 0, column, side=100))
        assert dark == pytest.approx(255 * (0.5 - 1 / (5 * deviation)), abs=1)
        assert bright == pytest.approx(255 * (0.5 + 1 / (5 * deviation)), abs=1)


def test_large_sets_show_twenty_classes_and_ten_images() -> None:
    classes = torch.arange(25).repeat_interleave(12)
    image = (classes * 10)[:, None, None, None].expand(-1, 1, 2, 2).to(torch.uint8)
    pixels = sheet(Images(image), HardLabels(classes))
    assert pixels.shape[0] == card._TOP + 20 * (100 + card._GAP) + card._GAP
    assert pixels.shape[1] == card._LEFT + 10 * (100 + card._GAP) + card._GAP
    assert [int(tile(pixels, row, 9, side=100).max()) for row in range(20)] == list(range(0, 200, 10))


def test_large_images_shrink() -> None:
    image = torch.zeros(1, 1, 300, 150)
    image[..., ::2, :] = 1
    pixels = sheet(Images(image), HardLabels(torch.tensor([0])))
    assert (pixels[card._TOP : card._TOP + 99, card._LEFT : card._LEFT + 49, 0] > 80).all()  # means, no moiré
    assert pixels.shape == (card._TOP + 100 + 2 * card._GAP, card._MIN_WIDTH, 3)


def test_soft_labels_are_captioned(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[card._Row] = []

    def draw(heading: list[str], rows: list[card._Row]) -> bytes:
        drawn.extend(rows)
        return " ".join(heading).encode()

    monkeypatch.setattr(card, "_draw", draw)
    logits = torch.tensor([[0.0, 0, 0, 0], [99, 0, 0, 0], [2, 2, -99, -99]])
    labels = SoftLabels(logits, torch.tensor([0, 0, 1]), 1.0)
    synthetic = SyntheticSet(Images(torch.zeros(3, 1, 2, 2)), labels, ORIGIN, "hard")
    heading = render_card(synthetic, {"images": 48_000, "container": 7}).decode()
    assert [row.captions for row in drawn] == [["1.39", "0.00"], ["0.69"]]
    for fact in (
        "sre2l++",
        "imagefolder+a+b_+",
        "ipc 1",
        ORIGIN.set_id,
        "48.0 kB: images 48.0 kB, container 7 B",
        "1.39",
    ):
        assert fact in heading


def test_offsets_are_shown_around_gray() -> None:
    payload = Compensated(
        base=torch.zeros(1, 1, 2, 2, dtype=torch.uint8),
        offsets=torch.stack([torch.full((1, 2, 2), step) for step in (100, -100, 0)]).to(torch.int8),
        scales=torch.tensor([0.002, 0.001, 1.0]),
        pairs=torch.tensor([[0, -1], [0, 0]], dtype=torch.int32),
    )
    soft = SoftLabels(torch.zeros(2, 2), torch.tensor([0, 0]), 1.0)
    pixels = sheet(payload, soft)
    bottom = card._TOP + 100 + card._GAP + card._CAPTION
    row = pixels[bottom : bottom + 100]
    lefts = [card._LEFT + column * (100 + card._GAP) for column in range(3)]
    assert [np.unique(row[:, left : left + 100]).tolist() for left in lefts] == [[255], [64], [128]]
    assert (tile(pixels, 0, 1, side=100, caption=True) == 51).all()  # 100 steps of 0.002 over a black base
    nothing = replace(payload, offsets=torch.zeros_like(payload.offsets))
    assert (sheet(nothing, soft)[bottom : bottom + 100, lefts[0] : lefts[0] + 100] == 128).all()


def features(count: int) -> Features:
    return Features(torch.zeros(count, 5), torch.zeros(5), 1.0)


def test_images_without_classes_follow_one_another() -> None:
    """In the order of the set, ten a row."""
    shades = torch.arange(0, 230, 10)
    image = shades[:, None, None, None].expand(-1, 1, 2, 2).to(torch.uint8)
    pixels = sheet(Images(image), features(23))
    assert pixels.shape[0] == card._TOP + 3 * (100 + card._GAP) + card._GAP  # and no line of captions
    shown = [np.unique(tile(pixels, place // 10, place % 10, side=100)).tolist() for place in range(23)]
    assert shown == [[shade] for shade in shades.tolist()]
    assert (tile(pixels, 2, 3, side=100) == 255).all()


def test_large_sets_without_classes_show_the_first_two_hundred() -> None:
    image = torch.arange(205)[:, None, None, None].expand(-1, 1, 2, 2).to(torch.uint8)
    pixels = sheet(Images(image), features(205))
    assert pixels.shape[0] == card._TOP + 20 * (100 + card._GAP) + card._GAP
    assert [int(tile(pixels, row, 9, side=100).max()) for row in range(20)] == list(range(9, 200, 10))


@pytest.mark.parametrize(
    ("count", "labels", "described"),
    [
        (3, ["0"], "3 images · without classes, 5 features each"),
        (10, ["0"], "10 images · without"),
        (11, ["0", "10"], "11 images · without"),
        (200, [str(start) for start in range(0, 200, 10)], "200 images · without"),
        (201, [str(start) for start in range(0, 200, 10)], "200 of 201 images · without classes, 5 features each"),
    ],
)
def test_rows_without_classes_are_numbered(
    count: int, labels: list[str], described: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[card._Row] = []

    def draw(heading: list[str], rows: list[card._Row]) -> bytes:
        drawn.extend(rows)
        return "\n".join(heading).encode()

    monkeypatch.setattr(card, "_draw", draw)
    synthetic = SyntheticSet(Images(torch.zeros(count, 1, 2, 2)), features(count), ORIGIN, "hard")
    heading = render_card(synthetic, {"images": 48_000, "targets": 7}).decode().splitlines()
    assert [row.label for row in drawn] == labels
    assert sum(len(row.tiles) for row in drawn) == min(count, 200)
    assert not any(row.captions for row in drawn)
    assert len(heading) == 3
    assert heading[2].startswith(described)
    assert "entropy" not in heading[2]


def test_images_without_classes_may_have_grown_or_have_offsets() -> None:
    half = torch.tensor([-1.0, 1.0, 1.0, -1.0]).expand(3, 4, 4)
    stretched = sheet(Images(50 * torch.stack([half, 3 * half - 2])), features(2))
    found = [np.unique(tile(stretched, 0, column, side=100)).tolist() for column in range(2)]
    assert found[0] == pytest.approx(found[1], abs=1)  # each about its own mean
    assert len(found[0]) == 2
    payload = Compensated(
        base=torch.full((1, 1, 2, 2), 51, dtype=torch.uint8),
        offsets=torch.full((1, 1, 2, 2), 100, dtype=torch.int8),
        scales=torch.tensor([0.002]),
        pairs=torch.tensor([[0, -1], [0, 0]], dtype=torch.int32),
    )
    pixels = sheet(payload, features(2))
    assert [np.unique(tile(pixels, 0, column, side=100)).tolist() for column in range(2)] == [[51], [102]]
    assert (tile(pixels, 1, 0, side=100) == 255).all()  # the row of offsets


def test_cards_repeat() -> None:
    synthetic = SyntheticSet(Images(torch.rand(2, 3, 8, 8)), HardLabels(torch.arange(2)), ORIGIN, "hard")
    first, again = (render_card(synthetic, {"images": 1}) for _ in range(2))
    assert first == again
