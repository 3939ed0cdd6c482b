"""Random resized crops whose boxes are drawn apart from their use, so that they can be recorded and replayed.

A crop is four integers: top, left, height, width in pixels. Boxes are drawn on the CPU, so that every device sees the
same; resizing is two small matrix products an image, differentiable, with an order of summation that does not change
from run to run.
"""

import math

import torch
from torch import Tensor

RATIOS = (3 / 4, 4 / 3)
_TRIES = 10


def draw_crops(count: int, height: int, width: int, draws: torch.Generator, *, smallest: float) -> Tensor:
    """Returns boxes (count, 4) int64 as torchvision's ``RandomResizedCrop`` draws them for such images.

    The area is uniform on [``smallest``, 1] of the image's, the logarithm of the aspect ratio uniform between 3/4 and
    4/3, sides are rounded, the first of ten draws that fits counts, and the corner is uniform. Where none fits, it is
    the largest centred crop of an allowed ratio.

    Args:
        count: boxes.
        height: of the images.
        width: of the images.
        draws: a generator on the CPU.
        smallest: share of the image's area, in (0, 1].
    """
    share, turn = torch.rand(2, count, _TRIES, generator=draws, dtype=torch.float64)
    area = height * width * (smallest + (1 - smallest) * share)
    low, high = (math.log(ratio) for ratio in RATIOS)
    ratio = torch.exp(low + (high - low) * turn)
    sizes = torch.stack([(area / ratio).sqrt(), (area * ratio).sqrt()], dim=-1).round().long()  # (count, tries, 2)
    fits = ((sizes > 0) & (sizes <= torch.tensor([height, width]))).all(-1)
    first = fits.int().argmax(1)
    size = sizes[torch.arange(count), first]  # (count, 2)
    free = torch.tensor([height, width]) - size + 1
    corner = (torch.rand(count, 2, generator=draws, dtype=torch.float64) * free).long()
    fallback = torch.tensor(_largest_crop(height, width)).expand(count, 4)
    return torch.where(fits.any(1, keepdim=True), torch.cat([corner, size], dim=1), fallback)


def resize_crops(images: Tensor, crops: Tensor, flips: Tensor | None = None) -> Tensor:
    """Returns each image's crop, resized to the whole image bilinearly, and mirrored where ``flips`` says so.

    Equal to torchvision's ``resized_crop`` (bilinear, corners not aligned) of each image by itself; since a crop is
    never larger than its image, antialiasing would change nothing.

    Args:
        images: (N, C, H, W).
        crops: (N, 4) integers within the images, or (1, 4) for one box that all share.
        flips: (N,) or (1,) booleans, or None for nowhere.

    Returns:
        (N, C, H, W), differentiable in ``images``.
    """
    height, width = images.shape[-2:]
    top, left, tall, wide = crops.unbind(1)
    rows, columns = _weights(top, tall, height), _weights(left, wide, width)
    if flips is not None:
        columns = torch.where(flips[:, None, None], columns.flip(1), columns)
    return rows[:, None].to(images) @ images @ columns[:, None].mT.to(images)


def _weights(start: Tensor, size: Tensor, full: int) -> Tensor:
    """Returns matrices (N, full, full) that stretch ``size`` pixels from ``start`` on over ``full``; rows sum to 1."""
    places = torch.arange(full, device=start.device)
    ends = (size - 1)[:, None].float()
    source = ((places + 0.5) * (size / full)[:, None] - 0.5).clamp_min(0).minimum(ends)  # (N, full) within the crop
    distance = (places - start[:, None])[:, None, :] - source[:, :, None]
    return (1 - distance.abs()).clamp_min(0)  # a tent: of two neighbours, each counts by its nearness


def _largest_crop(height: int, width: int) -> tuple[int, int, int, int]:
    low, high = RATIOS
    tall, wide = min(height, round(width / low)), min(width, round(height * high))
    return (height - tall) // 2, (width - wide) // 2, tall, wide
