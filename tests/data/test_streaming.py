"""Streamed files are those that safetensors would have written, and their facts those of the pixels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dd_bench.data.specs import DatasetSpec
from dd_bench.data.streaming import Moments, write_stream

SPEC = DatasetSpec("some", (3, 5, 5), 2, (0.5,) * 3, (0.25,) * 3, mirror=False, class_names=("a", "b"))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    images = {split: draws.integers(0, 256, (n, 3, 5, 5), np.uint8) for split, n in (("train", 7), ("test", 3))}
    labels = {"train": np.arange(7) % 2, "test": np.array([1, 0, 1])}
    batches = {split: [part[:2], part[2:]] for split, part in images.items()}
    write_stream(tmp_path / "f", SPEC, labels, batches, facts={"note": "größer"})
    found = load_file(tmp_path / "f")
    for split in ("train", "test"):
        assert torch.equal(found[f"{split}_images"], torch.from_numpy(images[split]))
        assert torch.equal(found[f"{split}_labels"], torch.from_numpy(labels[split]))
    pixels = images["train"] / 255
    with safe_open(tmp_path / "f", framework="pt") as file:
        facts = file.metadata()
    assert facts["note"] == "größer"
    assert facts["mean"] == str([round(float(pixels[:, c].mean()), 4) for c in range(3)])
    assert facts["std"] == str([round(float(pixels[:, c].std()), 4) for c in range(3)])


def test_moments_of_batches_are_those_of_all() -> None:
    images = np.random.default_rng(1).integers(0, 256, (10, 2, 3, 3), np.uint8)
    images[:, 1] = 51  # a channel that never changes
    moments = Moments(2)
    for batch in (images[:1], images[1:8], images[8:]):
        moments.add(batch)
    mean, deviation = moments.result()
    assert mean == [round(float(images[:, 0].mean() / 255), 4), 0.2]
    assert deviation == [round(float((images[:, 0] / 255).std()), 4), 0.0001]


@pytest.mark.parametrize("count", [1, 3])
def test_rejects_another_number_of_images(count: int, tmp_path: Path) -> None:
    images = {"train": [np.zeros((count, 3, 5, 5), np.uint8)], "test": [np.zeros((2, 3, 5, 5), np.uint8)]}
    with pytest.raises(ValueError, match="train has 2 labels, but another number of images"):
        write_stream(tmp_path / "f", SPEC, {split: np.zeros(2, np.int64) for split in images}, images)
    assert not list(tmp_path.iterdir())
