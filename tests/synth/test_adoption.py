"""Images from elsewhere: what is taken in is what the file holds, beside the control that any such set has."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dd_bench.data.images import ImageData, load
from dd_bench.errors import ConfigError, DDBenchError, InvalidSetError
from dd_bench.sets import ELSEWHERE, Images
from dd_bench.store import Store
from dd_bench.targets import HardLabels
from eval import rows
from eval.cells import read_records
from synth import find, methods
from synth.adoption import adopt, read_images
from synth.base import Task, configure
from synth.pipeline import Order, describe, order_control

ROOT = Path(__file__).parents[2]
Adopt = Callable[..., Any]


@pytest.fixture
def data(blobs_dir: Path) -> ImageData:
    return load("blobs", blobs_dir)


@pytest.fixture
def take_in(data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Adopt:
    """Writes tensors into a file and adopts it."""
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")

    def taken(tensors: dict[str, Tensor], **changes: Any) -> Any:
        save_file(tensors, tmp_path / "some.safetensors")
        known = {"name": "theirs", "protocol": "hard"} | changes
        return adopt(tmp_path / "some.safetensors", data, Store(), **known)

    return taken


def some(dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    """Two images of each of three classes."""
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    images = images * 255 if dtype == torch.uint8 else images
    return {"images": images.to(dtype), "labels": torch.tensor([2, 0, 1, 0, 2, 1])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
@pytest.mark.parametrize("integers", [torch.int64, torch.uint8, torch.int16])
def test_what_is_taken_in_is_what_the_file_holds(take_in: Adopt, dtype: torch.dtype, integers: torch.dtype) -> None:
    tensors = some(dtype)
    made = take_in({**tensors, "labels": tensors["labels"].to(integers)}, rate=0.02).load()
    assert isinstance(made.payload, Images)
    assert isinstance(made.targets, HardLabels)
    expected = tensors["images"] if dtype == torch.uint8 else tensors["images"].float()
    assert made.payload.pixels.dtype == expected.dtype
    assert torch.equal(made.payload.pixels, expected)
    assert made.targets.classes.tolist() == [2, 0, 1, 0, 2, 1]
    assert (made.native_protocol, made.suggested_lr) == ("hard", 0.02)


def test_its_making_is_not_known_and_its_data_are(take_in: Adopt, data: ImageData) -> None:
    origin = take_in(some(), seed=3).provenance
    assert (origin.method, origin.preset, origin.ipc, origin.seed) == ("theirs", "made elsewhere", 2, 3)
    assert (origin.dataset, origin.fingerprint) == ("blobs", data.fingerprint)
    assert (origin.device, origin.wall_seconds, origin.parents) == (ELSEWHERE, 0.0, ())
    assert rows.ELSEWHERE == ELSEWHERE


def test_its_control_is_random_images_with_classes(take_in: Adopt, data: ImageData) -> None:
    (control,) = take_in(some()).provenance.controls
    assert (control.method, control.labels, control.seeds) == ("random", "hard", (0, 1, 2, 3, 4))
    task = Task(data, ipc=2, seed=0, device=torch.device("cpu"))
    random = configure(find("random"), {"protocol": "hard", "teachers": None})
    assert describe(order_control(control), task).recipe == control.recipe
    assert describe(Order("random", "any", random), task).recipe == control.recipe


def test_one_name_is_one_recipe_and_one_seed_one_set(take_in: Adopt) -> None:
    first = take_in(some())
    assert take_in(some()) == first
    second = take_in(some(seed=1), seed=1)
    assert second.id != first.id
    assert second.provenance.recipe == first.provenance.recipe
    assert take_in(some(), name="others").provenance.recipe != first.provenance.recipe
    with pytest.raises(DDBenchError, match="is there with other tensors"):
        take_in(some(seed=1))
    assert len(Store().list()) == 3


def test_sizes_that_differ_have_to_be_named(take_in: Adopt) -> None:
    uneven = {**some(), "labels": torch.tensor([0, 0, 0, 1, 1, 2])}
    with pytest.raises(ConfigError, match="classes have from 1 to 3 images; say with --ipc"):
        take_in(uneven)
    with pytest.raises(ConfigError, match="classes have from 0 to 6 images"):
        take_in({**some(), "labels": torch.zeros(6, dtype=torch.int64)})
    assert take_in(uneven, ipc=2).provenance.ipc == 2


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"images": some()["images"] * 255}, r"98 % of the pixels reach from \d.* to 2\d\d.*; expected pixel space"),
        ({"images": (some()["images"] - 0.25) / 0.22}, r"98 % of the pixels reach from -1.* to 3.*multiply by the"),
        ({"images": some()["images"].where(some()["images"] < 0.9, torch.nan)}, "some pixels are NaN or infinite"),
        ({"images": some()["images"].int()}, r"images are torch\.int32; expected uint8, or floating point"),
        ({"images": some()["images"][:, 0]}, r"'images' \(6, 8, 8\).*; expected images \(N, 1, 8, 8\), as those"),
        ({"images": some()["images"].expand(6, 3, 8, 8).clone()}, r"'images' \(6, 3, 8, 8\)"),
        ({"images": some()["images"][:0], "labels": some()["labels"][:0]}, r"'images' \(0, 1, 8, 8\)"),
        ({"labels": some()["labels"][:5]}, r"'labels' \(5,\)"),
        ({"images": torch.tensor(0.5)}, r"'images' \(\)"),
        ({"labels": some()["labels"].float()}, r"labels are torch\.float32; expected integers"),
        ({"labels": some()["labels"] > 0}, r"labels are torch\.bool; expected integers"),
        ({"labels": some()["labels"] + 1}, "labels reach from 1 to 3; expected 0 to 2, the classes of blobs"),
        ({"labels": some()["labels"] - 1}, "labels reach from -1 to 1"),
        ({"logits": torch.zeros(6, 3)}, r"'logits' \(6, 3\)"),
    ],
)  # fmt: skip
def test_refuses(take_in: Adopt, change: dict[str, Tensor], told: str) -> None:
    with pytest.raises(InvalidSetError, match=told) as caught:
        take_in(some() | change)
    assert len(str(caught.value).splitlines()) == 1
    assert Store().list() == ()


def test_pixels_may_leave_the_nominal_range_a_little(take_in: Adopt) -> None:
    tensors = some()
    tensors["images"][0, 0, 0, 0], tensors["images"][1] = -40.0, tensors["images"][1] * 1.9 - 0.45
    made = take_in(tensors).load()
    assert torch.equal(made.payload.decode(), tensors["images"])


def test_refuses_what_is_no_such_file(data: ImageData, tmp_path: Path) -> None:
    files = {"none": None, "folder": None, "text": b"images and labels", "pickle": pickle.dumps(some())}
    (tmp_path / "folder").mkdir()
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        told = "there is no file" if content is None else "is no safetensors file"
        with pytest.raises(InvalidSetError, match=rf"{told}.*; write it by safetensors\.torch\.save_file"):
            read_images(tmp_path / name, data.spec)


@pytest.mark.parametrize("name", ["", "Mine", "a b", "../mine", "-mine", "m" * 41, "naïve", *sorted(methods()), "full"])
def test_refuses_names(take_in: Adopt, name: str) -> None:
    with pytest.raises(ConfigError, match=r"is no name for boards|is what ddbench calls its own"):
        take_in(some(), name=name)


def test_no_baseline_can_be_named(take_in: Adopt) -> None:
    """Of those on record here, which are all that there are."""
    found = {record.set.method for _, record in read_records(ROOT / "leaderboards/results") if record.set.ipc == 0}
    assert len(found) == 5
    for name in found:
        with pytest.raises(ConfigError, match=rf"^{re.escape(name)} is what ddbench calls its own"):
            take_in(some(), name=name)
