import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dd_bench.data import reading
from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import load
from dd_bench.data.names import choose
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, DataError


def content_hash(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(tensors[key].contiguous().numpy().tobytes())
    return digest.hexdigest()


def test_shapes(fake, tmp_path: Path) -> None:
    tensors = fake()
    data = load("cifar10", tmp_path)
    assert data.spec == SPECS["cifar10"]
    assert len(data) == 30
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    assert torch.equal(data.images, tensors["train_images"])
    assert torch.equal(data.labels, tensors["train_labels"])


def test_subset_is_cut_from_the_training_split(fake, tmp_path: Path) -> None:
    tensors = fake(train=6)
    data = load("cifar10@04/1", tmp_path)
    rows = choose(tensors["train_labels"], 4, spec=SPECS["cifar10"], split="train")
    assert data.spec.name == "cifar10@4/1"
    assert data.spec.mean == SPECS["cifar10"].mean
    assert torch.equal(data.images, tensors["train_images"][rows])
    assert torch.equal(data.labels, tensors["train_labels"][rows])


def test_holds_the_bytes_of_the_training_split_alone(fake, tmp_path: Path) -> None:
    tensors = fake(train=40, test=40)
    path = tmp_path / "cifar10" / "data.safetensors"
    for name, count in (("cifar10", 400), ("cifar10@5", 50)):
        data = load(name, tmp_path)
        assert data.images.untyped_storage().nbytes() == count * 3 * 32 * 32
        assert data.labels.untyped_storage().nbytes() == count * 8
        assert set(vars(data)) == {"spec", "images", "labels", "fingerprint"}
    if sys.platform == "linux":
        assert mapped_file(load("cifar10", tmp_path).images) == str(path)
        assert mapped_file(load("cifar10@5", tmp_path).images) != str(path)
    load("cifar10", tmp_path).images.zero_()
    assert torch.equal(load_file(path)["train_images"], tensors["train_images"])  # the mapping is private


def mapped_file(tensor: Tensor) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(bound, 16) for bound in line.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def test_fingerprint_matches_reference(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_HASHED_ROWS", 7)
    tensors = fake(train=6, test=3)
    assert load("cifar10", tmp_path).fingerprint == content_hash(tensors)
    for name, train, test in (("cifar10@4", 4, 3), ("cifar10@4/2", 4, 2), ("cifar10@6/3", 6, 3)):
        chosen = dict(tensors)
        for split, per_class in (("train", train), ("test", test)):
            rows = choose(tensors[f"{split}_labels"], per_class, spec=SPECS["cifar10"], split=split)
            for kind in ("images", "labels"):
                chosen[f"{split}_{kind}"] = tensors[f"{split}_{kind}"][rows]
        assert load(name, tmp_path).fingerprint == content_hash(chosen)
        assert TestSplit.open(name, tmp_path).fingerprint == content_hash(chosen)


def test_fingerprint_sees_every_tensor(fake, tmp_path: Path) -> None:
    tensors = fake()
    seen = {load("cifar10", tmp_path).fingerprint}
    for written, (key, tensor) in enumerate(tensors.items()):
        other = tensor.clone()
        other.view(-1)[0] = (int(other.view(-1)[0]) + 1) % 10
        fake(**{key: other})
        os.utime(tmp_path / "cifar10" / "data.safetensors", ns=(0, written))  # clocks of file systems can be coarse
        seen.add(load("cifar10", tmp_path).fingerprint)
    assert len(seen) == 5


def test_fingerprint_is_computed_once_for_a_file(fake, tmp_path: Path) -> None:
    fake()
    load("cifar10", tmp_path)
    before = reading._fingerprint.cache_info()
    load("cifar10", tmp_path)
    TestSplit.open("cifar10", tmp_path)
    after = reading._fingerprint.cache_info()
    assert (after.misses, after.hits) == (before.misses, before.hits + 2)


def test_digits_stay_what_they_were(digits_dir: Path) -> None:
    assert load("digits", digits_dir).fingerprint == "7a2f303afb10794764e2a4041767bc01fa84fc7b926937e39ca6b5fc72598142"
    assert (
        load("digits@10/5", digits_dir).fingerprint
        == "7a77b9bc8c78965409b83ddd885a1d9975a9bd0ab8b4a8af298dbba41f46319e"
    )


def test_parts_of_the_digits_are_data_sets_of_their_own(digits_dir: Path) -> None:
    low, high = (load(base, digits_dir) for base in ("digits-low", "digits-high"))
    assert (len(low), len(high)) == (721, 716)
    assert len({low.fingerprint, high.fingerprint, load("digits", digits_dir).fingerprint}) == 3
    assert torch.bincount(load("digits-high@10", digits_dir).labels).tolist() == [10] * 5


@pytest.mark.parametrize("base", ["cifar10", "cifar100"])
def test_fingerprint_of_real_data_matches_reference(base: str, real) -> None:
    folder = real(base)
    data = load(base, folder)
    assert data.images.shape == (50_000, 3, 32, 32)
    assert data.fingerprint == content_hash(load_file(folder / base / "data.safetensors"))


def test_rejects_larger_subsets_than_there_are(fake, tmp_path: Path) -> None:
    fake(train=3, test=2)
    with pytest.raises(ConfigError, match=r"99999 train images a class were asked of cifar10, but class 0 .* has 3"):
        load("cifar10@99999", tmp_path)
    with pytest.raises(ConfigError, match=r"3 test images a class were asked of cifar10, but class 0 .* has 2"):
        load("cifar10@1/3", tmp_path)


def rejected(tmp_path: Path, match: str, base: str = "cifar10") -> None:
    for opened in (load, TestSplit.open):
        with pytest.raises(DataError, match=match) as caught:
            opened(base, tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        assert str(tmp_path / base / "data.safetensors") in message
        assert message.endswith("replace the file, or delete it to have it made again")


@pytest.mark.parametrize("keep", [0, 5, 200, -1])
def test_rejects_a_truncated_file(keep: int, fake, tmp_path: Path) -> None:
    fake()
    path = tmp_path / "cifar10" / "data.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    rejected(tmp_path, "cannot be read .* expected a whole safetensors file")


@pytest.mark.parametrize("key", ["train_images", "train_labels", "test_images", "test_labels"])
def test_rejects_a_missing_tensor(key: str, fake, tmp_path: Path) -> None:
    fake(**{key: None})
    rejected(tmp_path, f"holds .*; expected {key} too")


def test_rejects_an_empty_file_of_tensors(fake, tmp_path: Path) -> None:
    fake(train_images=None, train_labels=None, test_images=None, test_labels=None)
    rejected(tmp_path, "holds nothing; expected train_images")


@pytest.mark.parametrize("split", ["train", "test"])
def test_rejects_a_wrong_type(split: str, fake, tmp_path: Path) -> None:
    tensors = fake()
    images, labels = f"{split}_images", f"{split}_labels"
    fake(**{images: tensors[images].float()})
    rejected(tmp_path, rf"{images} is F32 of shape \(\d+, 3, 32, 32\); expected U8 of shape \(N, 3, 32, 32\)")
    fake(**{labels: tensors[labels].int()})
    rejected(tmp_path, rf"{labels} is I32 of shape \(\d+,\); expected I64")


@pytest.mark.parametrize("shape", [(20, 3, 28, 28), (20, 32, 32, 3), (20, 3072), (0, 3, 32, 32), ()])
def test_rejects_a_wrong_shape(shape: tuple[int, ...], fake, tmp_path: Path) -> None:
    fake(test_images=torch.zeros(shape, dtype=torch.uint8), test_labels=torch.zeros(shape[:1], dtype=torch.int64))
    rejected(tmp_path, r"test_images is U8 of shape \(.*\); expected U8 of shape \(N, 3, 32, 32\) with N > 0")


@pytest.mark.parametrize("shape", [(29,), (31,), (30, 1), ()])
def test_rejects_wrong_counts(shape: tuple[int, ...], fake, tmp_path: Path) -> None:
    fake(train_labels=torch.zeros(shape, dtype=torch.int64))
    rejected(tmp_path, r"train_labels is I64 of shape .*; expected I64 of shape \(30,\), one label an image")


@pytest.mark.parametrize("label", [-1, 10])
@pytest.mark.parametrize("split", ["train", "test"])
def test_rejects_a_label_out_of_range(label: int, split: str, fake, tmp_path: Path) -> None:
    labels = fake()[f"{split}_labels"]
    labels[3] = label
    fake(**{f"{split}_labels": labels})
    rejected(tmp_path, rf"{split}_labels run from {min(0, label)} to {max(9, label)}; expected 0 to 9")


def test_images_do_not_import_the_test_split() -> None:
    code = "import sys, dd_bench.data.images; print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    modules = set(found.stdout.split())
    assert "dd_bench.data.reading" in modules
    assert not modules & {"dd_bench.data.holdout", "torchvision", "sklearn"}  # the last two only cost time
