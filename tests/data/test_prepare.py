import pickle
import stat
import threading
import time
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dd_bench.data import prepare as preparing
from dd_bench.data.downloads import _archives
from dd_bench.data.prepare import find, locate, prepare
from dd_bench.data.specs import SPECS
from dd_bench.errors import DataError


class FakeCifar:
    """torchvision's interface over two images a class; notes how often it is opened."""

    url = "https://example.org/cifar.tar.gz"
    filename = "cifar.tar.gz"
    opened: int

    def __init__(self, *, root: Path, train: bool, download: bool) -> None:
        assert download
        assert Path(root).is_dir()
        type(self).opened += 1
        self.targets = [i % 10 for i in range(20)]
        self.data = np.zeros((20, 32, 32, 3), np.uint8)
        self.data[:, 4, 9, 1] = np.arange(20) + (0 if train else 100)


class NoNetwork(FakeCifar):
    def __init__(self, **_options: object) -> None:
        raise URLError("no route to host")


@pytest.fixture
def cifar(monkeypatch: pytest.MonkeyPatch) -> type[FakeCifar]:
    FakeCifar.opened = 0
    monkeypatch.setattr("torchvision.datasets.CIFAR10", FakeCifar)
    return FakeCifar


def test_digits_have_a_split_of_their_own(digits_dir: Path) -> None:
    from sklearn.datasets import load_digits

    tensors = load_file(digits_dir / "digits" / "data.safetensors")
    assert tensors["train_images"].shape == (1437, 1, 8, 8)
    assert tensors["test_images"].shape == (360, 1, 8, 8)
    assert torch.bincount(tensors["test_labels"]).tolist() == [36] * 10
    # together they are scikit-learn's images, once each, in grey levels 0 … 255
    ours = [
        (bytes(x.flatten().tolist()), int(y))
        for split in ("train", "test")
        for x, y in zip(tensors[f"{split}_images"], tensors[f"{split}_labels"], strict=True)
    ]
    theirs = load_digits()
    grey = [bytes(round(float(v) * 255 / 16) for v in image.ravel()) for image in theirs.images]
    assert sorted(ours) == sorted(zip(grey, theirs.target.tolist(), strict=True))


@pytest.mark.parametrize("split", ["train", "test"])
def test_low_and_high_digits_are_the_digits(split: str, digits_dir: Path) -> None:
    """Each image in one of them, in its order and its split, with its class counted from 0."""
    whole, low, high = (
        load_file(digits_dir / base / "data.safetensors") for base in ("digits", "digits-low", "digits-high")
    )
    images, labels = whole[f"{split}_images"], whole[f"{split}_labels"]
    for part, first in ((low, 0), (high, 5)):
        rows = [row for row, label in enumerate(labels.tolist()) if first <= label < first + 5]
        assert torch.equal(part[f"{split}_images"], images[rows])
        assert part[f"{split}_labels"].tolist() == [labels.tolist()[row] - first for row in rows]
        assert part[f"{split}_labels"].dtype == torch.int64
        assert set(part[f"{split}_labels"].tolist()) == {0, 1, 2, 3, 4}
    assert len(low[f"{split}_labels"]) + len(high[f"{split}_labels"]) == len(labels)


def test_low_and_high_digits_are_named_after_them() -> None:
    assert SPECS["digits-low"].class_names + SPECS["digits-high"].class_names == SPECS["digits"].class_names


def test_no_low_digit_is_a_high_digit(digits_dir: Path) -> None:
    """And no training image of either is a test image of the other."""
    seen: list[set[bytes]] = []
    for base in ("digits-low", "digits-high"):
        tensors = load_file(digits_dir / base / "data.safetensors")
        seen.append({bytes(image.flatten().tolist()) for split in ("train", "test")
                     for image in tensors[f"{split}_images"]})  # fmt: skip
    assert not seen[0] & seen[1]


def test_cifar_is_converted_once(cifar: type[FakeCifar], tmp_path: Path) -> None:
    path = prepare("cifar10", tmp_path)
    assert path == tmp_path / "cifar10" / "data.safetensors"
    tensors = load_file(path)
    assert {key: (t.dtype, tuple(t.shape)) for key, t in tensors.items()} == {
        "train_images": (torch.uint8, (20, 3, 32, 32)),
        "train_labels": (torch.int64, (20,)),
        "test_images": (torch.uint8, (20, 3, 32, 32)),
        "test_labels": (torch.int64, (20,)),
    }
    assert tensors["train_images"][7].nonzero().tolist() == [[1, 4, 9]]  # channel, row, column
    assert tensors["train_images"][7, 1, 4, 9] == 7
    assert tensors["test_images"][7, 1, 4, 9] == 107
    assert tensors["train_labels"].tolist() == [i % 10 for i in range(20)]
    written = path.stat().st_mtime_ns
    assert prepare("cifar10", tmp_path) == path
    assert cifar.opened == 2  # each split once
    assert path.stat().st_mtime_ns == written


def test_processes_that_ask_together_prepare_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slow(_folder: Path) -> dict[str, torch.Tensor]:
        calls.append(1)
        time.sleep(0.2)
        return {"train_labels": torch.zeros(1)}

    monkeypatch.setitem(preparing._MAKERS, "digits", slow)
    threads = [threading.Thread(target=prepare, args=("digits", tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_failure_leaves_no_prepared_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparing, "write_atomic", full_disk)
    with pytest.raises(DataError, match=r"cannot be written .*No space left"):
        prepare("digits", tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_first_folder_that_has_it_wins(fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, environment, cache = tmp_path / "named", tmp_path / "env", tmp_path / "home" / ".cache" / "ddbench"
    monkeypatch.setenv("DDBENCH_DATA", str(environment))
    fake(folder=cache)
    assert find("cifar10", named).parent.parent == cache
    fake(folder=environment)
    assert find("cifar10", named).parent.parent == environment
    fake(folder=named)
    assert find("cifar10", named).parent.parent == named
    assert find("cifar10").parent.parent == environment


def test_locating_makes_nothing(fake, tmp_path: Path) -> None:
    assert locate("cifar10") is None
    assert locate("digits", tmp_path) is None
    assert not list(tmp_path.iterdir())
    fake()
    assert locate("cifar10", tmp_path) == find("cifar10", tmp_path)


@pytest.mark.parametrize("explicit", [True, False])
def test_only_the_explicit_folder_or_the_cache_is_written(
    explicit: bool, cifar: type[FakeCifar], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = tmp_path / "env"
    environment.mkdir()
    monkeypatch.setenv("DDBENCH_DATA", str(environment))
    path = find("cifar10", tmp_path / "named" if explicit else None)
    assert path.parent.parent == (tmp_path / "named" if explicit else tmp_path / "home" / ".cache" / "ddbench")
    assert path.is_file()
    assert not list(environment.iterdir())
    assert (tmp_path / "home").exists() is not explicit


def test_a_finished_file_needs_no_writable_folder(fake, tmp_path: Path) -> None:
    fake()
    folder = tmp_path / "cifar10"
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert find("cifar10", tmp_path) == prepare("cifar10", tmp_path)
        assert [path.name for path in folder.iterdir()] == [
            "data.safetensors"
        ]  # no lock was taken either (root may write anywhere)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_rejects_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"^digits is not prepared yet, and .* cannot be written .*--data-dir"
    ) as caught:
        find("digits")
    assert "\n" not in str(caught.value)


def test_rejects_a_folder_of_an_unknown_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_DATA", "~no-such-user-here/data")
    with pytest.raises(DataError, match="no home folder"):
        find("digits")


def test_without_network_the_message_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", NoNetwork)
    with pytest.raises(DataError) as caught:
        find("cifar10")
    message = str(caught.value)
    assert "\n" not in message
    assert f"download of https://example.org/cifar.tar.gz into {tmp_path}/home/.cache/ddbench/cifar10 failed" in message
    assert "no route to host" in message
    assert "put cifar.tar.gz into that folder" in message
    assert "DDBENCH_DATA at a folder that holds a prepared cifar10/data.safetensors" in message
    assert not list(tmp_path.rglob("data.safetensors"))


class FakeMnist:
    """torchvision's interface of MNIST and Fashion-MNIST: grey tensors without a channel."""

    mirrors = ("https://example.org/grey/",)
    resources = (("images.gz", "md5"), ("labels.gz", "md5"))

    def __init__(self, *, root: Path, train: bool, download: bool) -> None:
        assert download
        self.data = torch.zeros(20, 28, 28, dtype=torch.uint8)
        self.data[:, 4, 9] = torch.arange(20).byte() + (0 if train else 100)
        self.targets = torch.arange(20) % 10


class FakeSvhn:
    """torchvision's interface of SVHN: arrays with channels first, and labels by another name."""

    split_list = {  # noqa: RUF012 - as torchvision has it
        "train": ["https://example.org/train.mat", "train.mat", "md5"],
        "test": ["https://example.org/test.mat", "test.mat", "md5"],
    }

    def __init__(self, *, root: Path, split: str, download: bool) -> None:
        assert download
        self.data = np.zeros((20, 3, 32, 32), np.uint8)
        self.data[:, 1, 4, 9] = np.arange(20) + {"train": 0, "test": 100}[split]
        self.labels = np.arange(20) % 10


@pytest.mark.parametrize(
    ("base", "name", "fake_source", "place"),
    [
        ("mnist", "MNIST", FakeMnist, (0, 4, 9)),
        ("fashionmnist", "FashionMNIST", FakeMnist, (0, 4, 9)),
        ("svhn", "SVHN", FakeSvhn, (1, 4, 9)),
    ],
)
def test_other_data_sets_are_converted(
    base: str,
    name: str,
    fake_source: type,
    place: tuple[int, int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"torchvision.datasets.{name}", fake_source)
    tensors = load_file(prepare(base, tmp_path))
    for split, first in (("train", 0), ("test", 100)):
        images, labels = tensors[f"{split}_images"], tensors[f"{split}_labels"]
        assert (images.dtype, tuple(images.shape)) == (torch.uint8, (20, *SPECS[base].image_shape))
        assert (labels.dtype, labels.tolist()) == (torch.int64, [i % 10 for i in range(20)])
        assert images[7].nonzero().tolist() == [list(place)]
        assert images[7][place] == first + 7


@pytest.mark.parametrize(
    ("base", "name", "fake_source", "told"),
    [
        (
            "mnist",
            "MNIST",
            FakeMnist,
            "https://example.org/grey/ .* put images.gz, labels.gz .below Gone/raw. into that",
        ),
        ("svhn", "SVHN", FakeSvhn, "https://example.org/train.mat .* put train.mat and test.mat into that folder"),
    ],
)
def test_without_network_other_messages_say_what_to_put_where(
    base: str, name: str, fake_source: type, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(self: object, **_options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(f"torchvision.datasets.{name}", type("Gone", (fake_source,), {"__init__": gone}))
    with pytest.raises(DataError, match=rf"^{base} is not prepared yet: .* the download of {told}"):
        prepare(base, tmp_path)
    assert not list(tmp_path.rglob("data.safetensors"))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "SVHN", "CIFAR10", "CIFAR100"])
def test_torchvision_says_where_archives_come_from(name: str) -> None:
    """The real classes, whose attributes the messages are made of."""
    import torchvision.datasets

    origin, archives = _archives(getattr(torchvision.datasets, name))
    assert origin.startswith("http")
    assert "." in archives


class Intruder:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_rejects_foreign_pickles_unloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares every file's md5 before it unpickles, unpacked by itself or found there."""
    from torchvision.datasets import CIFAR10, utils

    def unreachable(*_args: object, **_options: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(utils, "_get_redirect_url", unreachable)
    unpacked = tmp_path / "cifar10" / CIFAR10.base_folder
    unpacked.mkdir(parents=True)
    loaded = tmp_path / "loaded"
    for name in [file for file, _md5 in CIFAR10.train_list + CIFAR10.test_list] + [CIFAR10.meta["filename"]]:
        (unpacked / name).write_bytes(pickle.dumps(Intruder(loaded)))
    with pytest.raises(DataError, match=r"cs\.toronto\.edu/.*no route to host"):
        prepare("cifar10", tmp_path)
    assert not loaded.exists()
    pickle.loads((unpacked / "data_batch_1").read_bytes())  # the file is of this test: loading it shows it was armed
    assert loaded.exists()
