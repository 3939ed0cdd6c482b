"""``imagefolder:PATH``: any folder of images becomes a data set, or the message says why it cannot."""

import hashlib
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dd_bench.data import image_folder, streaming
from dd_bench.data.catalogue import other_specs
from dd_bench.data.folder_listing import list_folder
from dd_bench.data.holdout import open_test
from dd_bench.data.images import load
from dd_bench.data.prepare import locate
from dd_bench.errors import ConfigError, DataError

Folder = Callable[..., Path]


def draw(seed: int, width: int = 16, height: int = 16, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Folder:
    """Writes ``photos``: images of two classes, or of those given by name, numbered through; returns the folder."""

    def write(
        classes: dict[str, int] | None = None, name: str = "photos", *, inside: str = "", start: int = 0,
        width: int = 16, height: int = 16, channels: int = 3,
    ) -> Path:  # fmt: skip
        number = start
        for label, count in (classes or {"cat": 10, "dog": 21}).items():
            (folder := tmp_path / name / inside / label).mkdir(parents=True)
            for index in range(count):
                Image.fromarray(draw(number, width, height, channels)).save(folder / f"{index:03}.png")
                number += 1
        return tmp_path / name

    return write


def tensors_of(name: str, data: Path) -> dict[str, torch.Tensor]:
    load(name, data)
    (path,) = data.glob("imagefolder*/data.safetensors")
    return load_file(path)


def test_a_folder_becomes_a_data_set(photos: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, data = photos(), tmp_path / "data"
    found = load(f"imagefolder:{source}", data)
    assert found.spec.name == "imagefolder:photos"
    assert found.spec.image_shape == (3, 16, 16)
    assert found.spec.class_names == ("cat", "dog")
    assert found.spec.mirror
    assert torch.bincount(found.labels).tolist() == [9, 18]  # a tenth is for testing: 1 of 10, 3 of 21
    pixels = found.images.double().div(255)
    assert found.spec.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=6e-5)
    assert found.spec.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=6e-5)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "imagefolder:photos: 2 classes, 27 images for training and 4 for testing, 16×16 pixels, kept as they are; kept "
        f"in {data}/imagefolder+photos/data.safetensors"
    )
    # every image lies in one split, as it was, the test split by the sha256 of its path
    tensors = load_file(data / "imagefolder+photos" / "data.safetensors")
    number = 0
    held_out: list[bytes] = []
    learnt: list[bytes] = []
    for label, count, tested in (("cat", 10, 1), ("dog", 21, 3)):
        paths = [f"{label}/{index:03}.png" for index in range(count)]
        test = sorted(paths, key=lambda path: hashlib.sha256(path.encode()).hexdigest())[:tested]
        for path in paths:
            (held_out if path in test else learnt).append(draw(number).transpose(2, 0, 1).tobytes())
            number += 1
    assert [bytes(image.numpy().tobytes()) for image in tensors["test_images"]] == held_out
    assert [bytes(image.numpy().tobytes()) for image in tensors["train_images"]] == learnt


def test_one_name_from_everywhere(photos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, data = photos(), tmp_path / "data"
    whole = load(f"imagefolder:{source}", data)
    small = load(f"imagefolder:{source}:8@5/1", data)
    assert small.spec.name == "imagefolder:photos:8@5/1"
    assert small.spec.image_shape == (3, 8, 8)
    assert len(small.images) == 10
    monkeypatch.chdir(tmp_path / "data")
    assert load("imagefolder:photos", data).fingerprint == whole.fingerprint
    assert load("imagefolder:photos:8@5/1", data).fingerprint == small.fingerprint
    assert load("imagefolder:../photos/", data).fingerprint == whole.fingerprint
    with pytest.raises(DataError, match=r"^photos is no folder, and imagefolder\+photos\+9/data.safetensors is in"):
        load("imagefolder:photos:9", data)
    monkeypatch.chdir(tmp_path)
    assert load("imagefolder:photos", data).fingerprint == whole.fingerprint
    assert set(other_specs(data)) == {"imagefolder:photos", "imagefolder:photos:8"}


def test_the_fingerprint_is_of_pixels_not_of_places(photos: Folder, tmp_path: Path) -> None:
    first = load(f"imagefolder:{photos()}", tmp_path / "a")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "photos").rename(tmp_path / "elsewhere" / "photos")
    assert load(f"imagefolder:{tmp_path}/elsewhere/photos", tmp_path / "b").fingerprint == first.fingerprint
    (tmp_path / "elsewhere" / "photos" / "cat" / "000.png").unlink()
    assert load(f"imagefolder:{tmp_path}/elsewhere/photos", tmp_path / "c").fingerprint != first.fingerprint


def test_rejects_a_folder_that_changed(photos: Folder, tmp_path: Path) -> None:
    source, data = photos(), tmp_path / "data"
    load(f"imagefolder:{source}", data)
    Image.fromarray(draw(99)).save(source / "cat" / "new.png")
    with pytest.raises(DataError, match=r"photos are not those .* prepared from; delete .*imagefolder\+photos to have"):
        load(f"imagefolder:{source}", data)
    load("imagefolder:photos", data)  # what was prepared is still there by its name


@pytest.mark.parametrize("test", ["test", "val", "validation"])
def test_splits_of_the_folder_are_kept(test: str, photos: Folder, tmp_path: Path) -> None:
    photos({"cat": 3, "dog": 2}, inside="train")
    source = photos({"cat": 1, "dog": 2}, inside=test, start=5)
    tensors = tensors_of(f"imagefolder:{source}", tmp_path / "data")
    for split, first, labels in (("train", 0, [0, 0, 0, 1, 1]), ("test", 5, [0, 1, 1])):
        assert tensors[f"{split}_labels"].tolist() == labels
        for index, image in enumerate(tensors[f"{split}_images"]):
            assert np.array_equal(image, draw(first + index).transpose(2, 0, 1))


def test_the_test_split_is_out_of_reach_but_there(photos: Folder, tmp_path: Path) -> None:
    source = photos()
    load(f"imagefolder:{source}", tmp_path / "data")
    split = open_test("imagefolder:photos", tmp_path / "data")
    found = split.score("s", lambda pixels: torch.tensor([[1.0, 0.0]]).expand(len(pixels), 2), device="cpu")
    assert found["top1"] == 0.25  # one of the four is a cat


def red(mode: str) -> Image.Image:
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    return image.convert(mode) if mode != "P" else image.quantize(4)


FORMS: dict[str, tuple[Callable[[], Image.Image], str, tuple[int, ...]]] = {
    "rgb": (lambda: red("RGB"), "png", (255, 0, 0)),
    "palette": (lambda: red("P"), "png", (255, 0, 0)),
    "cmyk": (lambda: red("CMYK"), "tif", (255, 0, 0)),
    "clear": (lambda: Image.new("RGBA", (8, 8), (255, 0, 0, 0)), "png", (255, 255, 255)),
    "half-clear": (lambda: Image.new("RGBA", (8, 8), (255, 0, 0, 128)), "webp", (255, 127, 127)),
    "grey": (lambda: Image.new("L", (8, 8), 7), "bmp", (7, 7, 7)),
    "bilevel": (lambda: Image.new("1", (8, 8), 1), "png", (255, 255, 255)),
    "16-bit": (lambda: Image.fromarray(np.full((8, 8), 511, np.uint16)), "png", (1, 1, 1)),
    "grey-alpha": (lambda: Image.new("LA", (8, 8), (0, 0)), "png", (255, 255, 255)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_image(form: str, photos: Folder, tmp_path: Path) -> None:
    make, suffix, expected = FORMS[form]
    source = photos({"cat": 2, "dog": 2}, width=8, height=8)  # colours, so that the data set has three channels
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    make().save(source / "cat" / f"zzz.{suffix}", **options)
    found = tensors_of(f"imagefolder:{source}", tmp_path / "data")
    labels = [*found["train_labels"].tolist(), *found["test_labels"].tolist()]
    images = torch.cat([found["train_images"], found["test_images"]])[torch.tensor(labels) == 0]
    flat = [image for image in images if all(len(channel.unique()) == 1 for channel in image)]
    assert [image[:, 0, 0].tolist() for image in flat] == [list(expected)]


def test_grey_folders_have_one_channel(photos: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = photos(channels=1)
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    Image.fromarray(deep).save(source / "cat" / "016.png")
    found = load(f"imagefolder:{source}", tmp_path / "data")
    assert found.spec.image_shape == (1, 16, 16)
    assert any(torch.equal(image.flatten(), torch.arange(256, dtype=torch.uint8)) for image in found.images)
    assert "kept as they are, grey" in capsys.readouterr().err


def test_cameras_and_animations(photos: Folder, tmp_path: Path) -> None:
    source = photos({"cat": 2, "dog": 2}, width=8, height=8)
    picture = Image.fromarray(draw(50, 8, 8))
    exif = picture.getexif()
    exif[0x0112] = 6  # turned a quarter to the right to be seen
    picture.save(source / "cat" / "turned.png", exif=exif)
    frames = [Image.fromarray(np.full((8, 8), level, np.uint8)) for level in (9, 200)]
    frames[0].save(source / "cat" / "moving.gif", save_all=True, append_images=frames[1:])
    found = tensors_of(f"imagefolder:{source}", tmp_path / "data")
    images = torch.cat([found["train_images"], found["test_images"]]).numpy()
    seen = [image.tobytes() for image in images]
    assert np.rot90(draw(50, 8, 8), -1).transpose(2, 0, 1).tobytes() in seen
    assert np.full((3, 8, 8), 9, np.uint8).tobytes() in seen


def test_images_are_cut_about_their_centre_and_resized(
    photos: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photos({"cat": 2, "dog": 2}, width=20, height=10)
    found = tensors_of(f"imagefolder:{source}:10", tmp_path / "data")
    images = {image.numpy().tobytes() for image in torch.cat([found["train_images"], found["test_images"]])}
    assert images == {draw(n, 20, 10)[:, 5:15].transpose(2, 0, 1).tobytes() for n in range(4)}
    assert "20×10 pixels, cut and resized to 10×10; kept" in capsys.readouterr().err
    usual = load(f"imagefolder:{source}", tmp_path / "other")
    assert usual.spec.image_shape == (3, 64, 64)


@pytest.mark.parametrize(("size", "classes", "channels"), [(8, 2, 1), (224, 2, 3), (8, 1000, 3)])
def test_every_extent(size: int, classes: int, channels: int, photos: Folder, tmp_path: Path) -> None:
    source = photos({f"c{n:03}": 2 for n in range(classes)}, width=size, height=size, channels=channels)
    found = load(f"imagefolder:{source}", tmp_path / "data")
    assert found.spec.image_shape == (channels, size, size)
    assert found.spec.num_classes == classes
    assert torch.bincount(found.labels).tolist() == [1] * classes


def test_memory_stays_bounded(photos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 MB of pixels never more than a few batches are held at once."""
    monkeypatch.setattr(image_folder, "_AT_ONCE", 8)
    source = photos({"cat": 2, "dog": 2}, width=224, height=224)
    for number in range(78):
        os.link(source / "cat" / "000.png", source / "dog" / f"link{number}.png")
    listing = list_folder(source)
    image_folder._survey(listing, "photos")  # what is imported once does not count
    tracemalloc.start()
    load(f"imagefolder:{source}", tmp_path / "data")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "data" / "imagefolder+photos" / "data.safetensors").stat().st_size > 12_000_000
    # a batch as bytes, and as the float64 of its moments with squares: 1.2 MB + 2 * 9.6 MB
    assert peak < 2.5 * 8 * 8 * 3 * 224 * 224


def _write_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "dog" / "000.png").write_bytes(content)


def _draw_large(width: int) -> Callable[[Path], object]:
    return lambda folder: Image.new("1", (width, 9_000)).save(folder / "dog" / "000.png")


def _cut_off(folder: Path) -> None:
    _write_bytes((folder / "dog" / "001.png").read_bytes()[:300])(folder)


def _leave_one(folder: Path) -> None:
    for path in (folder / "cat").glob("00[1-9].png"):
        path.unlink()


def _split_unlike(folder: Path) -> None:
    for number, name in enumerate(("train/a", "train/b", "test/a", "test/c")):
        (folder / name).mkdir(parents=True)
        (folder / "cat" / f"00{number}.png").rename(folder / name / "x.png")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no image": (_write_bytes(b"no image"), r"dog/000.png is no image that can be read .*; mend it, or"),
    "cut off": (_cut_off, r"dog/000.png is no image that can be read"),
    "huge": (_draw_large(10_000), r"dog/000.png .*89,?478,?485"),
    "bomb": (_draw_large(20_000), r"dog/000.png .*decompression bomb"),
    "empty class": (lambda f: (f / "bird").mkdir(), r"photos/bird holds no images; expected some of .bmp, .gif, "),
    "single image": (_leave_one, r"class 'cat' has a single image; expected"),
    "one class": (
        lambda f: (f / "cat").rename(f / ".cat"),
        r"photos has 1 folders; expected one for each of 2 to 1000",
    ),
    "name": (lambda f: (f / "cat").rename(f / "c\nt"), r"class 'c\\nt' has no printable name"),
    "splits": (_split_unlike, r"photos/train and .*photos/test differ in classes \('b, c'\)"),
}


@pytest.mark.parametrize("way", BROKEN)
def test_rejects_what_is_no_folder_of_images(way: str, photos: Folder, tmp_path: Path) -> None:
    source, (break_it, told) = photos(), BROKEN[way]
    break_it(source)
    with pytest.raises(DataError, match=told) as caught:
        load(f"imagefolder:{source}", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert locate("imagefolder:photos", tmp_path / "data") is None
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("imagefolder:", "names no folder"),
        ("imagefolder:/", "names no folder"),
        ("imagefolder:..", None),
        ("imagefolder:photos:7", "size is 7; expected 8 to 224 pixels"),
        ("imagefolder:photos:225", "size is 225; expected"),
        ("imagefolder:photos@0", "has '0' after the '@'"),
        (f"imagefolder:{'x' * 61}", "at most 60"),
        ("imagefolder:\0", "names no folder"),
    ],
)
def test_rejects_names(name: str, told: str | None, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=told):
        load(name, tmp_path)


HOSTILE: dict[str, dict[str, str] | None] = {
    "none": None,
    "extra": {"more": "1"},
    "deep": {"classes": "[" * 100_000},
    "not json": {"size": "sixteen"},
    "another size": {"size": "17"},
    "negative": {"size": "-16"},
    "huge": {"size": "1" + "0" * 5000},
    "NaN": {"mean": "[NaN, 0.5, 0.5]"},
    "no deviation": {"std": "[0.0, 0.5, 0.5]"},
    "too many": {"mean": "[0.5, 0.5, 0.5, 0.5]"},
    "class name": {"classes": json.dumps(["cat", "d\no\x1b[31mg"])},
    "classes": {"classes": json.dumps([f"c{n}" for n in range(1001)])},
}


@pytest.mark.parametrize("change", HOSTILE)
def test_rejects_what_a_prepared_file_says_of_itself(change: str, photos: Folder, tmp_path: Path) -> None:
    load(f"imagefolder:{photos()}", tmp_path / "data")
    path = tmp_path / "data" / "imagefolder+photos" / "data.safetensors"
    with safe_open(path, framework="pt") as file:
        facts = file.metadata()
    changed = HOSTILE[change]
    save_file(load_file(path), path, None if changed is None else {**facts, **changed})
    with pytest.raises(DataError) as caught:
        load("imagefolder:photos", tmp_path / "data")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_is_stopped_leaves_nothing(
    error: BaseException, photos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, data = photos(), tmp_path / "data"

    def stop(_self: streaming.Moments, _images: np.ndarray) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(streaming.Moments, "add", stop)
        with pytest.raises((KeyboardInterrupt, DataError)):
            load(f"imagefolder:{source}", data)
    assert [path.name for path in data.rglob("*") if path.is_file()] in ([], ["data.safetensors.lock"])
    assert len(load(f"imagefolder:{source}", data).images) == 27


def test_a_disk_without_room_is_told_before_anything_is_read(
    photos: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = photos()
    monkeypatch.setattr(streaming.shutil, "disk_usage", lambda _folder: Usage())
    with pytest.raises(DataError, match=r"would take 24\.\d kB, but .* has 1\.00 kB left; make room there, or name"):
        load(f"imagefolder:{source}", tmp_path / "data")


class Usage:
    free = 1000
