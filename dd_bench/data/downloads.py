"""Image data sets as torchvision brings them: archives in a folder of the user's, downloaded if they are not there.

torchvision compares the md5 of every archive (and of each of CIFAR's files, whenever a split is opened) with constants
of its own before it reads one; so only the authors' pickles are ever run. The other data sets hold no code at all.
"""

import http.client
import socket
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd_bench.errors import DataError

_PATIENCE_SECONDS = 30.0  # with a server that says nothing


def download(class_name: str, folder: Path) -> dict[str, Tensor]:
    """Returns both splits of ``torchvision.datasets.<class_name>`` in prepared form, from archives in ``folder``.

    Raises:
        DataError: if they are not there and cannot be downloaded; the message says what to put where.
    """
    from torchvision import datasets  # here, because nothing else needs torchvision to read data

    source = getattr(datasets, class_name)
    tensors: dict[str, Tensor] = {}
    try:
        with bounded_silence():
            for split in ("train", "test"):
                found = _open(source, folder, split)
                labels = found.labels if hasattr(found, "labels") else found.targets
                tensors[f"{split}_images"] = _as_images(found.data)
                tensors[f"{split}_labels"] = torch.as_tensor(labels, dtype=torch.int64)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        name, (origin, archives) = folder.name, _archives(source)
        raise DataError(
            f"{name} is not prepared yet: no {name}/data.safetensors lies under --data-dir, DDBENCH_DATA or "
            f"~/.cache/ddbench, and the download of {origin} into {folder} failed ({error}); put "
            f"{archives} into that folder and try again, or point DDBENCH_DATA at a folder that holds "
            f"a prepared {name}/data.safetensors"
        ) from error
    return tensors


def _open(source: Any, folder: Path, split: str) -> Any:
    if hasattr(source, "split_list"):  # SVHN
        return source(root=folder, split=split, download=True)
    return source(root=folder, train=split == "train", download=True)


def _as_images(data: Any) -> Tensor:
    """Returns pixels (N, H, W), (N, H, W, 3) or (N, 3, H, W) as (N, C, H, W) uint8."""
    pixels = torch.as_tensor(data)
    if pixels.ndim == 3:
        return pixels[:, None].contiguous()
    return (pixels.permute(0, 3, 1, 2) if pixels.shape[1] != 3 else pixels).contiguous()


def _archives(source: Any) -> tuple[str, str]:
    """Returns where the archives of a torchvision data set come from, and what they are called within its folder."""
    if hasattr(source, "split_list"):  # SVHN
        lists = [source.split_list[split] for split in ("train", "test")]
        return lists[0][0], " and ".join(name for _, name, *_ in lists)
    if hasattr(source, "resources"):  # MNIST and its like
        names = ", ".join(name for name, _ in source.resources)
        return source.mirrors[0], f"{names} (below {source.__name__}/raw)"
    return source.url, source.filename


@contextmanager
def bounded_silence() -> Iterator[None]:
    """Gives up on servers that stay silent; torchvision sets no time limit, and a firewall may just swallow packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
