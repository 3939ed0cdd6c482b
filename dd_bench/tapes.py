"""Tapes: what augmentation did to every image of a set, epoch by epoch, kept so that it can be done again.

Letters in shapes: E epochs, N images, B batches an epoch, G groups. A *position* p in 0 … N-1 numbers the images of an
epoch in the order in which they are shown; batches and groups are ranges of positions, the same in every epoch.
``dd_bench.learn.tape`` draws tapes and replays them.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dd_bench.errors import InvalidSetError


@dataclass(frozen=True, eq=False)
class Tape:
    """The augmentation of E epochs over N images: order, crop, flip, and one CutMix box a batch.

    Attributes:
        order: (E, N) int32, the image at each position; a permutation in every epoch.
        crops: (E, N, 4) int16, the crop of the image at each position, as top, left, height, width in pixels; it is
            resized to the whole image.
        flips: (E, N) bool, whether the crop is then mirrored left to right.
        partners: (E, N) int16, from which position of the same batch, counted from the batch's first, an image takes
            what lies in the box.
        boxes: (E, B, 4) int16, the box of each batch, as top, bottom, left, right in pixels; empty where top = bottom
            or left = right.
        bounds: (B + 1,) int32, the first position of every batch, and N.
        groups: (G + 1,) int32, the same for groups of images that go through a network together; no group crosses a
            batch's bound. Batch statistics are a group's.
    """

    order: Tensor
    crops: Tensor
    flips: Tensor
    partners: Tensor
    boxes: Tensor
    bounds: Tensor
    groups: Tensor

    def __post_init__(self) -> None:
        epochs, count = self.order.shape if self.order.ndim == 2 else (0, 0)
        batches = self.bounds.numel() - 1
        for name, dtype, shape in (
            ("order", torch.int32, (epochs, count)),
            ("crops", torch.int16, (epochs, count, 4)),
            ("flips", torch.bool, (epochs, count)),
            ("partners", torch.int16, (epochs, count)),
            ("boxes", torch.int16, (epochs, batches, 4)),
            ("bounds", torch.int32, (batches + 1,)),
            ("groups", torch.int32, (self.groups.numel(),)),
        ):
            tensor = getattr(self, name)
            if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape) or tensor.numel() == 0:
                raise InvalidSetError(
                    f"the tape's {name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected {dtype} of shape "
                    f"{shape}, and not empty"
                )
        self._check_ranges(count)

    def __len__(self) -> int:
        return self.order.shape[1]

    @property
    def epochs(self) -> int:
        """E, the epochs that are recorded."""
        return self.order.shape[0]

    def ranges(self) -> list[tuple[int, int]]:
        """Returns the (first, last + 1) position of every batch."""
        return _pairs(self.bounds.tolist())

    def groups_of(self, start: int, end: int) -> list[tuple[int, int]]:
        """Returns the (first, last + 1) of every group of the batch at positions ``start`` … ``end`` - 1, from 0 on."""
        inside = [edge - start for edge in self.groups.tolist() if start <= edge <= end]
        return _pairs(inside)

    def check_images(self, count: int, height: int, width: int) -> None:
        """Raises InvalidSetError unless the tape is of ``count`` images of that size."""
        if count != len(self):
            raise InvalidSetError(f"the tape is of {len(self)} images, the set has {count}; expected as many")
        for name, corners, sizes in (
            ("crops", self.crops[..., :2], self.crops[..., 2:]),
            ("boxes", self.boxes[..., 0::2], self.boxes[..., 1::2] - self.boxes[..., 0::2]),
        ):
            smallest = 1 if name == "crops" else 0
            ends = corners.int() + sizes.int()
            limit = torch.tensor([height, width])
            if bool(((corners < 0) | (sizes < smallest) | (ends > limit)).any()):
                raise InvalidSetError(f"the tape's {name} reach over images of {height} x {width} pixels, or are empty")

    def _check_ranges(self, count: int) -> None:
        bounds, groups = self.bounds.tolist(), self.groups.tolist()
        for name, edges in (("bounds", bounds), ("groups", groups)):
            if edges[0] != 0 or edges[-1] != count or any(a >= b for a, b in pairwise(edges)):
                raise InvalidSetError(f"the tape's {name} are {edges!r:.100}; expected ascending from 0 to {count}")
        if not set(bounds) <= set(groups):
            raise InvalidSetError("a group of the tape crosses the bound of a batch; expected groups within batches")
        identity = torch.arange(count, dtype=torch.int32)
        if any(not torch.equal(row.sort().values, identity) for row in self.order):
            raise InvalidSetError(f"the tape's order is no permutation of {count} images in every epoch")
        sizes = torch.tensor([end - start for start, end in _pairs(bounds)])
        if bool(((self.partners < 0) | (self.partners >= sizes.repeat_interleave(sizes))).any()):
            raise InvalidSetError("the tape's partners lie outside their batches")


def _pairs(edges: list[int]) -> list[tuple[int, int]]:
    return list(pairwise(edges))
