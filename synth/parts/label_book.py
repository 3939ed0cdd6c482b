"""Label books: the logits of every view of a tape, in a file that grows epoch by epoch.

At hundreds of epochs they are larger than the images by an order of magnitude (300 MB for CIFAR-100 at ipc 50), so no
process holds one in memory.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dd_bench.checkpoint import Tree


class LabelBook:
    """Logits (E, N, K) as float16 in a file, written one epoch after the other; a stage's state for ``run.steps``."""

    def __init__(self, path: Path, epochs: int, images: int, classes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.shape = path, (epochs, images, classes)
        self._page = images * classes * torch.float16.itemsize  # bytes of an epoch
        self._written = 0
        path.touch()

    def write(self, epoch: int, logits: Tensor) -> None:
        """Puts the logits (N, K) of an epoch where they belong; a second time over the first."""
        with self.path.open("r+b") as file:
            file.seek(epoch * self._page)
            file.write(logits.to(torch.float16).cpu().contiguous().numpy().tobytes())
        self._written = epoch + 1

    def logits(self) -> Tensor:
        """Returns all logits, mapped from the file and read as they are used; (E, N, K)."""
        epochs, images, classes = self.shape
        count = epochs * images * classes
        return torch.from_file(str(self.path), shared=False, size=count, dtype=torch.float16).view(self.shape)

    def state_dict(self) -> dict[Any, Tree]:
        """Returns what is in the file by now, after seeing it to the disk."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        return {"shape": list(self.shape), "written": self._written}

    def load_state_dict(self, tree: dict[Any, Tree]) -> None:
        """Goes on with the file as it was.

        Raises:
            ValueError: if the state is another book's, or the file has lost epochs since.
        """
        written: Any = tree["written"]
        if tree["shape"] != list(self.shape):
            raise ValueError(f"labels of shape {tree['shape']}; expected {list(self.shape)}")
        if self.path.stat().st_size < written * self._page:
            raise ValueError(f"{self.path.name} ends before epoch {written}")
        self._written = written
