"""Tapes as data: what is no tape is refused in one line, and a tape knows its batches and groups."""

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.tapes import Tape

EPOCHS, COUNT = 2, 7
BOUNDS, GROUPS = [0, 4, 7], [0, 2, 4, 7]


def tape(**changes: Any) -> Tape:
    """Two epochs of seven images of 6 x 9 pixels, in batches of 4 (two groups of 2) and 3 (one group)."""
    facts: dict[str, Any] = {
        "order": torch.tensor([[6, 5, 4, 3, 2, 1, 0], [0, 2, 4, 6, 1, 3, 5]], dtype=torch.int32),
        "crops": torch.tensor([1, 2, 5, 7], dtype=torch.int16).repeat(EPOCHS, COUNT, 1),
        "flips": torch.tensor([[True, False] * 3 + [True]] * EPOCHS),
        "partners": torch.tensor([[3, 2, 1, 0, 2, 0, 1]] * EPOCHS, dtype=torch.int16),
        "boxes": torch.tensor([[[0, 6, 0, 9], [1, 2, 3, 4]], [[6, 6, 2, 5], [0, 0, 0, 0]]], dtype=torch.int16),
        "bounds": torch.tensor(BOUNDS, dtype=torch.int32),
        "groups": torch.tensor(GROUPS, dtype=torch.int32),
    }
    return Tape(**{**facts, **changes})


def changed(name: str, index: Any, value: Any) -> Tensor:
    """A field of the sound tape with one place changed."""
    tensor = getattr(tape(), name).clone()
    tensor[index] = torch.as_tensor(value, dtype=tensor.dtype)
    return tensor


def refusal(match: str, made: Callable[[], Any]) -> None:
    with pytest.raises(InvalidSetError, match=match) as caught:
        made()
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 300


def test_a_sound_tape() -> None:
    made = tape()
    assert (len(made), made.epochs) == (7, 2)
    assert made.ranges() == [(0, 4), (4, 7)]
    assert [made.groups_of(*span) for span in made.ranges()] == [[(0, 2), (2, 4)], [(0, 3)]]
    made.check_images(7, 6, 9)


def test_the_smallest_tape() -> None:
    """One image, one epoch: it is a batch, and a group, of its own."""
    made = Tape(
        torch.zeros(1, 1, dtype=torch.int32), torch.tensor([[[0, 0, 1, 1]]], dtype=torch.int16),
        torch.zeros(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.int16),
        torch.zeros(1, 1, 4, dtype=torch.int16), *torch.tensor([[0, 1], [0, 1]], dtype=torch.int32),
    )  # fmt: skip
    assert (made.ranges(), made.groups_of(0, 1)) == ([(0, 1)], [(0, 1)])
    made.check_images(1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int16, torch.int32, torch.uint8, torch.float32, torch.bool])
@pytest.mark.parametrize("name", [part.name for part in fields(Tape)])
def test_rejects_other_dtypes(name: str, dtype: torch.dtype) -> None:
    sound = getattr(tape(), name)
    if sound.dtype != dtype:
        refusal(rf"^the tape's {name} is {dtype} .*; expected {sound.dtype} of shape \(",
                lambda: tape(**{name: sound.to(dtype)}))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("order", lambda order: order[0]), ("order", lambda order: order[None]), ("order", lambda order: order[:0]),
        ("order", lambda order: order[:, :0]),
        ("crops", lambda crops: crops[:, :6]), ("crops", lambda crops: crops[:1]), ("crops", lambda crops: crops[0]),
        ("crops", lambda crops: crops[..., :3]),
        ("flips", lambda flips: flips[:, :6]), ("flips", lambda flips: flips[:1]), ("flips", lambda flips: flips.T),
        ("partners", lambda partners: partners[:, :6]), ("partners", lambda partners: partners[0]),
        ("boxes", lambda boxes: boxes[:, :1]), ("boxes", lambda boxes: boxes[:1]), ("boxes", lambda boxes: boxes[0]),
        ("boxes", lambda boxes: boxes[..., :2]), ("boxes", lambda boxes: torch.cat([boxes, boxes], 1)),
        ("bounds", lambda bounds: bounds[None]), ("bounds", lambda bounds: bounds[:0]),
        ("groups", lambda groups: groups[None]), ("groups", lambda groups: groups[:0]),
    ],
)  # fmt: skip
def test_rejects_other_shapes(name: str, change: Callable[[Tensor], Tensor]) -> None:
    refusal(r"^the tape's \w+ is torch\.\w+ of shape \(.*\); expected .*, and not empty$",
            lambda: tape(**{name: change(getattr(tape(), name))}))  # fmt: skip


@pytest.mark.parametrize(
    ("index", "value"), [((0, 0), 5), ((1, 6), 7), ((1, 3), -1), ((0, slice(None)), 3), ((1, 0), 2**31 - 1)]
)
def test_rejects_orders_that_are_no_permutations(index: Any, value: int) -> None:
    refusal("^the tape's order is no permutation of 7 images in every epoch",
            lambda: tape(order=changed("order", index, value)))  # fmt: skip


def test_rejects_one_permutation_over_two_epochs() -> None:
    """Every image twice, but not once in each."""
    order = torch.tensor([[0, 0, 1, 1, 2, 2, 3], [3, 4, 4, 5, 5, 6, 6]], dtype=torch.int32)
    refusal("no permutation", lambda: tape(order=order))


@pytest.mark.parametrize(
    ("index", "value"),
    [((0, 0), 4), ((1, 3), 6), ((0, 4), 3), ((1, 6), 5), ((0, 0), -1), ((1, 6), -3), ((0, 6), 2**15 - 1)],
)
def test_rejects_partners_outside_their_batch(index: Any, value: int) -> None:
    """Positions 0 to 3 are a batch of four, 4 to 6 one of three."""
    refusal("^the tape's partners lie outside their batches",
            lambda: tape(partners=changed("partners", index, value)))  # fmt: skip


@pytest.mark.parametrize("name", ["bounds", "groups"])
@pytest.mark.parametrize(
    ("index", "value"), [(0, 1), (0, -1), (-1, 6), (-1, 8), (1, 0), (1, 7), (1, -2), (1, 9)]
)  # fmt: skip
def test_rejects_edges_that_do_not_ascend_over_all_images(name: str, index: int, value: int) -> None:
    edges = changed(name, index, value)
    refusal(rf"^the tape's {name} are \[.*\]; expected ascending from 0 to 7", lambda: tape(**{name: edges}))


def test_rejects_bounds_of_nothing() -> None:
    refusal("expected", lambda: tape(bounds=torch.tensor([0], dtype=torch.int32)))
    refusal("groups are", lambda: tape(groups=torch.tensor([0], dtype=torch.int32)))


@pytest.mark.parametrize("edges", [[0, 7], [0, 2, 7], [0, 3, 7], [0, 2, 5, 7]])
def test_rejects_groups_across_a_batch(edges: list[int]) -> None:
    refusal("^a group of the tape crosses the bound of a batch",
            lambda: tape(groups=torch.tensor(edges, dtype=torch.int32)))  # fmt: skip


@pytest.mark.parametrize("edges", [[0, 4, 7], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_groups_may_be_batches_or_single_images(edges: list[int]) -> None:
    made = tape(groups=torch.tensor(edges, dtype=torch.int32))
    spans = [
        [first + start, last + start] for start, end in made.ranges() for first, last in made.groups_of(start, end)
    ]
    assert spans == [list(pair) for pair in pairwise(edges)]


def test_a_long_list_of_edges_is_cut() -> None:
    count = 3000
    refusal("the tape's groups are", lambda: replace(tape(), groups=torch.zeros(count, dtype=torch.int32)))


# --- beside images ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [6, 8])
def test_rejects_another_number_of_images(count: int) -> None:
    refusal(
        f"^the tape is of 7 images, the set has {count}; expected as many", lambda: tape().check_images(count, 6, 9)
    )


@pytest.mark.parametrize(
    "crop",
    [[-1, 2, 5, 7], [1, -1, 5, 7], [1, 2, 6, 7], [1, 2, 5, 8], [2, 2, 5, 7], [1, 3, 5, 7], [1, 2, 0, 7], [1, 2, 5, 0],
     [1, 2, -1, 7], [6, 0, 1, 1], [32767, 0, 32767, 1]],
)  # fmt: skip
def test_rejects_crops_outside_the_image(crop: list[int]) -> None:
    made = tape(crops=changed("crops", (1, 4), crop))
    refusal("^the tape's crops reach over images of 6 x 9 pixels, or are empty", lambda: made.check_images(7, 6, 9))


@pytest.mark.parametrize(
    "box",
    [[-1, 2, 3, 4], [1, 7, 3, 4], [1, 2, -1, 4], [1, 2, 3, 10], [3, 2, 3, 4], [1, 2, 5, 4], [32767, -32768, 0, 0]],
)
def test_rejects_boxes_outside_the_image(box: list[int]) -> None:
    made = tape(boxes=changed("boxes", (0, 1), box))
    refusal("^the tape's boxes reach over images of 6 x 9 pixels", lambda: made.check_images(7, 6, 9))


@pytest.mark.parametrize("size", [(5, 9), (6, 8), (9, 6), (3, 3)])
def test_rejects_smaller_images(size: tuple[int, int]) -> None:
    refusal("reach over images of", lambda: tape().check_images(7, *size))


def test_edges_belong_to_the_image() -> None:
    crops, boxes = changed("crops", (1, 4), [0, 0, 6, 9]), changed("boxes", (0, 1), [0, 6, 0, 9])
    tape(crops=crops, boxes=boxes).check_images(7, 6, 9)
    tape(boxes=changed("boxes", (0, 1), [6, 6, 9, 9])).check_images(7, 6, 9)  # empty, at the corner
