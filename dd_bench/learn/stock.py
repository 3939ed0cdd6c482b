"""The images that a training draws its batches from: on the device, if they fit there, else where they are."""

import torch
from torch import Tensor

from dd_bench.environment import holds


class Stock:
    """Images, or some rows of them, batch by batch on a device.

    Images that a GPU cannot hold stay on the CPU, mapped from their file as likely as not, and travel batch by batch
    through pinned memory, for which nobody waits. Values are the same either way. On a CPU nothing is copied.

    Args:
        images: (N, C, H, W).
        rows: (n,) int64, of the images that count, or None for all of them.
        device: where batches are wanted.
    """

    def __init__(self, images: Tensor, rows: Tensor | None, device: torch.device) -> None:
        self._count = len(images) if rows is None else len(rows)
        self._distant = images.device.type != device.type
        if self._distant and holds(device, self._count * images[:1].nbytes):
            images, rows = (images if rows is None else images[rows]).to(device), None
            self._distant = False
        self._images, self._device = images, device
        self._rows = None if rows is None else rows.to(images.device)
        self._order: Tensor | None = None

    def __len__(self) -> int:
        return self._count

    def reorder(self) -> None:
        """Tells that ``order`` has changed since the last batch."""
        self._order = None

    def take(self, order: Tensor, start: int, end: int) -> Tensor:
        """Returns the images ``order[start:end]`` on the device; ``order`` lies there, too, and counts rows.

        If the images do not, the order is read off once whenever it has changed.
        """
        if self._distant:
            self._order = order = order.to(self._images.device) if self._order is None else self._order
        picked = order[start:end]
        batch = self._images[picked if self._rows is None else self._rows[picked]]
        if self._distant and self._device.type == "cuda":
            batch = batch.pin_memory()
        return batch.to(self._device, non_blocking=True)
