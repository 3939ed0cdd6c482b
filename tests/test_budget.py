"""The byte ledger: every byte of a tensors file has one owner."""

import pytest
import torch

from dd_bench.budget import ledger
from dd_bench.errors import InvalidSetError
from dd_bench.sets import Compensated, Images, Payload, Provenance, SyntheticSet
from dd_bench.targets import Features, HardLabels, SoftLabels, Targets
from tests.conftest import tensors_file

ORIGIN = Provenance(
    method="m", preset="p", config={}, dataset="d", fingerprint="f", ipc=10, seed=0, recipe="0123456789ab"
)


def ledger_of(payload: Payload, targets: Targets) -> dict[str, int]:
    synthetic = SyntheticSet(payload, targets, ORIGIN, "hard")
    content = tensors_file(synthetic)
    parts = ledger(synthetic, len(content))
    assert sum(parts.values()) == len(content)
    return parts


@pytest.mark.parametrize(
    ("num_classes", "ipc", "bases", "offsets", "image_bytes", "label_bytes", "pair_bytes", "class_bytes"),
    [
        # The counts and sizes of INFER's released code with four offsets a batch of classes, float32 labels.
        (10, 10, 70, 28, 301_056, 14_000, 700, 350),
        (10, 50, 350, 140, 1_505_280, 70_000, 7_000, 1_750),
        (100, 10, 900, 36, 2_875_392, 1_800_000, 18_000, 4_500),
    ],
)
def test_matches_reference(
    num_classes: int,
    ipc: int,
    bases: int,
    offsets: int,
    image_bytes: int,
    label_bytes: int,
    pair_bytes: int,
    class_bytes: int,
) -> None:
    of_a_class = int(ipc / (4 / num_classes + 1))
    assert (of_a_class * num_classes, of_a_class * 4) == (bases, offsets)
    pairs = torch.tensor([(i, j) for i in range(bases) for j in (-1, *(4 * (i % of_a_class) + m for m in range(4)))])
    classes = torch.arange(num_classes).repeat_interleave(5 * of_a_class)
    payload = Compensated(
        base=torch.zeros(bases, 3, 32, 32, dtype=torch.uint8),
        offsets=torch.zeros(offsets, 3, 32, 32, dtype=torch.int8),
        scales=torch.ones(offsets),
        pairs=pairs.int(),
    )
    parts = ledger_of(payload, SoftLabels(torch.zeros(len(pairs), num_classes), classes, 4.0))
    container = parts.pop("container")
    assert 8 < container < 600
    assert parts["images"] + parts["offsets"] == image_bytes + 4 * offsets  # a float32 scale for each offset
    assert parts["images"] == bases * 3 * 32 * 32
    assert (parts["labels"], parts["pairs"], parts["classes"]) == (label_bytes, pair_bytes, class_bytes)


def test_plain_images() -> None:
    parts = ledger_of(Images(torch.zeros(10, 1, 8, 8)), HardLabels(torch.arange(10)))
    assert {**parts, "container": 0} == {"images": 10 * 64 * 4, "classes": 10, "container": 0}
    parts = ledger_of(Images(torch.zeros(10, 1, 8, 8, dtype=torch.uint8)), HardLabels(torch.arange(10)))
    assert parts["images"] == 640


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.float16, 2)])
def test_features_are_targets(dtype: torch.dtype, width: int) -> None:
    """With their centre; the deviation is a number of the manifest."""
    features = Features(torch.zeros(10, 7, dtype=dtype), torch.zeros(7), 2.0)
    parts = ledger_of(Images(torch.zeros(10, 1, 8, 8)), features)
    container = parts.pop("container")
    assert 8 < container < 600
    assert parts == {"images": 10 * 64 * 4, "targets": 10 * 7 * width + 7 * 4}


@pytest.mark.parametrize(
    ("largest", "width"), [(0, 1), (255, 1), (256, 2), (999, 2), (32_767, 2), (32_768, 4), (2**31, 8)]
)
def test_classes_take_the_smallest_integers(largest: int, width: int) -> None:
    parts = ledger_of(Images(torch.zeros(2, 1, 2, 2)), HardLabels(torch.tensor([0, largest])))
    assert parts["classes"] == 2 * width


@pytest.mark.parametrize(
    ("bases", "plain", "width"), [(128, True, 1), (129, True, 2), (256, False, 1), (257, False, 2)]
)
def test_pairs_take_the_smallest_integers(bases: int, plain: bool, width: int) -> None:
    payload = Compensated(
        base=torch.zeros(bases, 1, 2, 2, dtype=torch.uint8),
        offsets=torch.zeros(1, 1, 2, 2, dtype=torch.int8),
        scales=torch.ones(1),
        pairs=torch.tensor([[0, -1 if plain else 0], [bases - 1, 0]], dtype=torch.int32),
    )
    assert ledger_of(payload, HardLabels(torch.tensor([0, 1])))["pairs"] == 4 * width


def test_rejects_a_file_smaller_than_its_tensors() -> None:
    synthetic = SyntheticSet(Images(torch.zeros(2, 1, 8, 8)), HardLabels(torch.arange(2)), ORIGIN, "hard")
    with pytest.raises(InvalidSetError, match="514 bytes, more than their file of 500"):
        ledger(synthetic, 500)
