"""Drawing tapes, and showing images as a tape says.

The augmentation is that of FKD (Shen and Xing, arXiv 2112.01528) as SRe2L, RDED and CV-DD use it: a random resized crop
and a flip of every image, then CutMix of every batch, all recorded. A label can then belong to one augmented view
rather than to an image, and to the company in which the view is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.augment import Box, draw_box
from dd_bench.learn.crops import draw_crops, resize_crops
from dd_bench.learn.training import batch_bounds
from dd_bench.seeding import derive_seed, generator
from dd_bench.tapes import Tape


@dataclass(frozen=True)
class TapeRecipe:
    """How a tape is drawn.

    Attributes:
        epochs: that are recorded; students that train longer begin again.
        batch: images a step.
        micro: images that go through a network together, so that batch statistics are of so many; a group of one joins
            the one before.
        smallest_crop: share of an image's area, in (0, 1]; 0.08 is published.

    Raises:
        ConfigError: for a number out of range.
    """

    epochs: int = 300
    batch: int = 16
    micro: int = 8
    smallest_crop: float = 0.08

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("batch", 2 <= self.batch < 1 << 15, "2 to 32767"),  # one more image may join the last
            ("micro", 2 <= self.micro <= self.batch, f"2 to the batch, {self.batch}"),
            ("smallest_crop", 0 < self.smallest_crop <= 1, "more than 0 and at most 1"),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")


def draw_tape(count: int, spec: DatasetSpec, recipe: TapeRecipe, seed: int) -> Tape:
    """Returns a tape over ``count`` images of ``spec``; an epoch's draws follow from ``seed`` and its number alone.

    Orders and CutMix partners are uniform permutations, boxes those of ``augment.cutmix`` with alpha 1, clipped. Images
    that must not be mirrored (``spec.mirror``) are not.
    """
    _, height, width = spec.image_shape
    ranges = batch_bounds(count, recipe.batch)
    epochs = []
    for epoch in range(recipe.epochs):
        draws = generator(derive_seed("tape", seed, epoch))
        order = torch.randperm(count, generator=draws)
        crops = draw_crops(count, height, width, draws, smallest=recipe.smallest_crop)
        flips = (torch.rand(count, generator=draws) < 0.5) & spec.mirror
        partners = torch.cat([torch.randperm(end - start, generator=draws) for start, end in ranges])
        boxes = torch.stack([_clipped(draw_box(height, width, draws, 1.0), height, width) for _ in ranges])
        epochs.append((order.int(), crops.short(), flips, partners.short(), boxes.short()))
    order, crops, flips, partners, boxes = (torch.stack(parts) for parts in zip(*epochs, strict=True))
    groups = [start + end for start, stop in ranges for _, end in batch_bounds(stop - start, recipe.micro)]
    bounds = [end for _, end in ranges]
    edges = (torch.tensor([0, *ends], dtype=torch.int32) for ends in (bounds, groups))
    return Tape(order, crops, flips, partners, boxes, *edges)


@dataclass(frozen=True, eq=False)
class Epoch:
    """One epoch of a tape on a device, by positions as ``Tape`` has them; ``ranges`` are the batches' positions."""

    order: Tensor
    crops: Tensor
    flips: Tensor
    partners: Tensor
    boxes: Tensor
    ranges: list[tuple[int, int]]

    @classmethod
    def of(cls, tape: Tape, epoch: int, device: torch.device) -> "Epoch":
        """Returns epoch ``epoch`` of ``tape``; a tape that is over begins again."""
        at = epoch % tape.epochs
        parts = (
            part[at].to(device, non_blocking=True)
            for part in (tape.order, tape.crops, tape.flips, tape.partners, tape.boxes)
        )
        order, crops, flips, partners, boxes = parts
        return cls(order.long(), crops.long(), flips, partners.long(), boxes.long(), tape.ranges())

    def pixels(self, images: Tensor, batch: int) -> Tensor:
        """Returns what a network sees in batch ``batch``: cropped, mirrored and mixed float pixels (n, C, H, W).

        Args:
            images: of the whole set on the epoch's device, (N, C, H, W), uint8 or float pixels.
            batch: number of the batch within the epoch.
        """
        start, end = self.ranges[batch]
        picked = images[self.order[start:end]]
        picked = picked.float() / 255 if picked.dtype == torch.uint8 else picked
        shown = resize_crops(picked, self.crops[start:end], self.flips[start:end])
        inside = self._box(batch).mask(*images.shape[-2:])
        return torch.where(inside, shown[self.partners[start:end]], shown)

    def mix(self, values: Tensor, height: int, width: int) -> Tensor:
        """Returns what belongs to each image, (N, K), in the order of positions and mixed as the pixels are; (N, K).

        A box weighs as much as the share of the ``height`` x ``width`` pixels that it covers.
        """
        taken = [self._box(batch).mask(height, width).float().mean() for batch in range(len(self.ranges))]
        lengths = torch.tensor([end - start for start, end in self.ranges], device=values.device)
        starts = torch.tensor([start for start, _ in self.ranges], device=values.device)
        share = torch.stack(taken).repeat_interleave(lengths, output_size=len(self.order))[:, None]
        partners = self.partners + starts.repeat_interleave(lengths, output_size=len(self.order))
        own = values[self.order]
        return (1 - share) * own + share * own[partners]

    def _box(self, batch: int) -> Box:
        return Box(*self.boxes[batch].unbind())


Lessons = Callable[[int, Epoch], Tensor]  # (number of the epoch, the epoch) -> values (N, K) by position, on the device


def constant_lessons(values: Tensor, spec: DatasetSpec) -> Lessons:
    """Returns lessons in which every image keeps its ``values`` (N, K), and mixed images have mixed ones."""
    _, height, width = spec.image_shape
    return lambda _, epoch: epoch.mix(values.to(epoch.order.device), height, width)


def _clipped(box: Box, height: int, width: int) -> Tensor:
    """Returns a box that may reach over the edge as (4,): top, bottom, left, right within the image."""
    rows = [edge.clamp(0, height) for edge in (box.top, box.bottom)]
    return torch.stack([*rows, *(edge.clamp(0, width) for edge in (box.left, box.right))])
