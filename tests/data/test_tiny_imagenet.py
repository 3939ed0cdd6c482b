"""Tiny-ImageNet out of an archive of the published form, with a class's images and annotations made small."""

import hashlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from dd_bench.data import tiny_imagenet
from dd_bench.data.images import load
from dd_bench.data.prepare import prepare
from dd_bench.errors import DataError

_IDS = [f"n{1000 + 7 * n:08}" for n in range(200)]
_ROOT = "tiny-imagenet-200"


def jpeg(level: int) -> bytes:
    file = BytesIO()
    image = Image.new("L", (64, 64), level) if level % 5 == 0 else Image.new("RGB", (64, 64), (level,) * 3)
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes the archive, where ``changed`` replaces members (None leaves one out); its md5 passes for Stanford's."""

    def write(changed: dict[str, bytes | None] | None = None) -> Path:
        members: dict[str, bytes | None] = {}
        for label in reversed(range(200)):  # in an order of its own, as members of archives are
            for number in range(2):
                members[f"{_ROOT}/train/{_IDS[label]}/images/{_IDS[label]}_{number}.JPEG"] = jpeg(label + number)
            members[f"{_ROOT}/train/{_IDS[label]}/{_IDS[label]}_boxes.txt"] = b"not an image"
            members[f"{_ROOT}/val/images/val_{label}.JPEG"] = jpeg(label + 50)
        lines = [f"val_{label}.JPEG\t{_IDS[label]}\t0\t0\t63\t63" for label in range(200)]
        members[f"{_ROOT}/val/val_annotations.txt"] = "\n".join(lines).encode()
        path = tmp_path / "tinyimagenet" / tiny_imagenet.ARCHIVE
        path.parent.mkdir(exist_ok=True)
        with ZipFile(path, "w", ZIP_DEFLATED) as file:
            for name, content in (members | (changed or {})).items():
                if content is not None:
                    file.writestr(name, content)
        monkeypatch.setattr(tiny_imagenet, "_MD5", hashlib.md5(path.read_bytes()).hexdigest())
        return path

    return write


def test_classes_are_in_the_order_of_their_ids(archive: Callable[..., Path], tmp_path: Path) -> None:
    archive()
    found = load("tinyimagenet", tmp_path)
    assert found.spec.image_shape == (3, 64, 64)
    assert found.labels.tolist() == [label for label in range(200) for _ in range(2)]
    levels = [label + number for label in range(200) for number in range(2)]
    assert torch.equal(found.images, torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64))
    subset = load("tinyimagenet@1/1", tmp_path)
    assert subset.labels.tolist() == list(range(200))


def test_rejects_another_archive(archive: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", gone)
    path = archive()
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match=r"download of http://cs231n.stanford.edu/tiny-imagenet-200.zip into .* failed"):
        prepare("tinyimagenet", tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=r"put tiny-imagenet-200.zip into that folder and try again"):
        prepare("tinyimagenet", tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({f"{_ROOT}/val/images/val_7.JPEG": None}, "no item named"),
        ({f"{_ROOT}/val/val_annotations.txt": b"val_0.JPEG\tn99999999\n"}, "not Tiny-ImageNet"),
        ({f"{_ROOT}/val/val_annotations.txt": b"val_0.JPEG"}, "not Tiny-ImageNet"),
        ({f"{_ROOT}/train/n99999999/images/n99999999_0.JPEG": b""}, "201 classes, expected 200"),
        ({f"{_ROOT}/val/images/val_7.JPEG": b"no image"}, "val_7.JPEG is no image that can be read"),
        ({f"{_ROOT}/val/images/val_7.JPEG": bytes(5_000_000)}, "val_7.JPEG is 5,000,000 bytes long, expected at most"),
    ],
    ids=["missing", "unknown class", "short line", "too many classes", "no image", "bomb"],
)
def test_rejects_what_stanford_did_not_publish(
    changed: dict[str, bytes | None], told: str, archive: Callable[..., Path], tmp_path: Path
) -> None:
    archive(changed)
    with pytest.raises(DataError, match=told) as caught:
        prepare("tinyimagenet", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("data.safetensors"))
    assert not np.any([path.suffix == ".partial" for path in tmp_path.rglob("*")])
