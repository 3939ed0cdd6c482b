"""Images that were made elsewhere, taken into the store so that they are judged like everything else.

Whoever has distilled images from other code wants to know what they are worth under one honest protocol: last epoch,
fresh students, beside random real images. That needs the images, not the code. What they saw when they were made, and
what they cost, is their maker's word; records and boards say so.

Only images with classes are taken in. A teacher's soft labels are the larger part of most results, and random real
images with labels of the same teacher, which have to stand beside them, cannot be made without that teacher.
"""

import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dd_bench import __version__
from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, InvalidSetError
from dd_bench.sets import ELSEWHERE, Images, Provenance, SyntheticSet, recipe_id
from dd_bench.store import Store
from dd_bench.stored import StoredSet
from dd_bench.targets import HardLabels
from synth import methods
from synth.base import Task, random_control
from synth.pipeline import controls_of

PRESET = "made elsewhere"

_NAME = re.compile(r"[a-z0-9][a-z0-9.+_-]{0,39}")
_BASELINES = frozenset({"full", "untrained", "scratch", "node-count", "node-edge-count"})  # as boards call them
_BULK, _REACH = 0.01, (-0.5, 1.5)  # of pixels: learned ones may leave [0, 1], but 1 % of them not that far
_CURE = 'write it by safetensors.torch.save_file({"images": images, "labels": labels}, path)'


def adopt(
    path: Path, data: ImageData, store: Store, *, name: str, protocol: str, ipc: int | None = None, seed: int = 0,
    rate: float | None = None,
) -> StoredSet:  # fmt: skip
    """Leaves the images in a file in the store as a set that stands for ``data``, and returns it.

    The set's id comes from its name, data set, size and seed; the same file once more changes nothing.

    Args:
        path: a safetensors file, see ``read_images``.
        data: the training split that the images stand for.
        store: where to.
        name: of the method, as boards will show it: small letters, digits and ``.+_-``.
        protocol: that judges it when none is named.
        ipc: nominal images a class; by default as many as every class has.
        seed: which of several syntheses this is; boards take sets of one name as repetitions.
        rate: the learning rate that was learned with the images, for protocols that use one.

    Raises:
        ConfigError: if the name is taken or not plain, or the size is not to be seen.
        InvalidSetError: if the file is not what is expected.
        DDBenchError: if other images are in the set's place, or the disk refuses.
    """
    _check_name(name)
    images, labels = read_images(path, data.spec)
    task = Task(data, ipc or _images_a_class(labels, data.spec), seed, torch.device("cpu"))
    dataset, fingerprint = data.spec.name, data.fingerprint
    provenance = Provenance(
        method=name,
        preset=PRESET,
        config={},
        dataset=dataset,
        fingerprint=fingerprint,
        ipc=task.ipc,
        seed=seed,
        recipe=recipe_id(
            method=name, version=0, config={"made": ELSEWHERE}, dataset=dataset, fingerprint=fingerprint, ipc=task.ipc
        ),
        controls=controls_of([random_control(protocol)], task, PRESET),
        ddbench=__version__,
        device=ELSEWHERE,
    )
    return store.write(SyntheticSet(Images(images), HardLabels(labels), provenance, protocol, rate))


def read_images(path: Path, spec: DatasetSpec) -> tuple[Tensor, Tensor]:
    """Returns the images (N, C, H, W), uint8 or float32 in pixel space, and the classes (N,) int64 in a file.

    The file holds ``images``, uint8 or floating point, nominally in [0, 1], and ``labels``, integers, one an image.

    Raises:
        InvalidSetError: if it holds something else, images of another shape than the data set's, classes that it does
            not have, or pixels that are normalised.
    """
    if not path.is_file():
        raise InvalidSetError(f"there is no file {path}; {_CURE}")
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            count = (found.get("images") or (0,))[0]
            if found != {"images": (count, *spec.image_shape), "labels": (count,)} or count == 0:
                raise InvalidSetError(
                    f"{path} holds {_told(found)}; expected images (N, {', '.join(map(str, spec.image_shape))}), as "
                    f"those of {spec.name}, labels (N), and nothing else: {_CURE}"
                )
            images, labels = file.get_tensor("images"), file.get_tensor("labels")
    except (SafetensorError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidSetError(f"{path} is no safetensors file ({reason:.200}); {_CURE}") from error
    return _pixels(path, images), _classes(path, labels, spec)


def _pixels(path: Path, images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise InvalidSetError(f"{path}: images are {images.dtype}; expected uint8, or floating point in [0, 1]")
    images = images.float()
    if not images.isfinite().all():
        raise InvalidSetError(f"{path}: some pixels are NaN or infinite; expected finite ones, nominally in [0, 1]")
    ordered = images.flatten().sort().values
    edge = int(_BULK * (len(ordered) - 1))
    low, high = float(ordered[edge]), float(ordered[-1 - edge])
    if low < _REACH[0] or high > _REACH[1]:
        raise InvalidSetError(
            f"{path}: 98 % of the pixels reach from {low:.2f} to {high:.2f}; expected pixel space, nominally [0, 1]. "
            "If they are normalised, multiply by the deviation and add the mean first; if they go to 255, divide by it"
        )
    return images


def _classes(path: Path, labels: Tensor, spec: DatasetSpec) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise InvalidSetError(f"{path}: labels are {labels.dtype}; expected integers, the class of each image")
    labels = labels.long()
    low, high = (int(end) for end in labels.aminmax())
    if low < 0 or high >= spec.num_classes:
        raise InvalidSetError(
            f"{path}: labels reach from {low} to {high}; expected 0 to {spec.num_classes - 1}, the classes of "
            f"{spec.name}"
        )
    return labels


def _images_a_class(labels: Tensor, spec: DatasetSpec) -> int:
    counts = labels.bincount(minlength=spec.num_classes)
    if counts.min() != counts.max():
        raise ConfigError(
            f"classes have from {int(counts.min())} to {int(counts.max())} images; say with --ipc under which size "
            "boards shall show them (their bytes are counted in any case)"
        )
    return int(counts[0])


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r:.100} is no name for boards; expected at most 40 small letters, digits and .+_-")
    if name in methods() or name in _BASELINES:
        raise ConfigError(f"{name} is what ddbench calls its own; give yours another name, for example {name}-official")


def _told(found: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name!r:.40} {shape!r:.60}" for name, shape in sorted(found.items())[:5]) or "nothing"
