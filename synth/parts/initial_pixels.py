"""What free pixels begin as: real images, mosaics of telling crops, or noise."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.data.images import ImageData
from dd_bench.learn.crops import draw_crops, resize_crops
from dd_bench.models import images_at_once
from dd_bench.seeding import derive_seed, generator
from synth.parts.sampling import sample_per_class
from synth.parts.teachers import Teacher

Initialization = Literal["mosaic", "real", "noise"]

_LOOKED_AT = 300  # images of a class whose crops are judged, and the crops of each; RDED's numbers
_CROPS = 5
_WHOLE_CROPS_UP_TO = 64  # pixels; larger images are mosaics of 2 x 2 crops
_AT_ONCE = 500


def initial_pixels(
    kind: Initialization, data: ImageData, count: int, *, teacher: Teacher, seed: int, device: torch.device,
    rows: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Returns ``count`` images a class to begin with, float pixels (count, K, C, H, W) on ``device``.

    Real images are taken from ``rows`` (n,) of the data, by default from all.

    ``real`` are the images of the random control of the same seed; ``noise`` is normal about the data's mean with its
    deviation, clipped; for ``mosaic`` see ``choose_mosaics``.

    Raises:
        ConfigError: if a class has too few images.
    """
    spec = data.spec
    rows = torch.arange(len(data)) if rows is None else rows
    if kind == "noise":
        shape = (count, spec.num_classes, *spec.image_shape)
        noise = torch.randn(shape, generator=generator(derive_seed("initial noise", seed)))
        mean, std = (torch.tensor(part).view(-1, 1, 1) for part in (spec.mean, spec.std))
        return (noise * std + mean).clamp(0, 1).to(device)
    if kind == "real":
        picked = rows[sample_per_class(data.labels[rows], count, spec.num_classes, seed)]
        return data.images[picked].to(device).float() / 255
    return choose_mosaics(data, rows, count, teacher=teacher, seed=seed, device=device)


@torch.no_grad()
def choose_mosaics(
    data: ImageData, rows: Tensor, count: int, *, teacher: Teacher, seed: int, device: torch.device
) -> Tensor:
    """Returns mosaics of the crops that a teacher finds easiest, easiest first, (count, K, C, H, W) in [0, 1].

    Of up to 300 random images of a class in ``rows`` five random resized crops each are judged, the one of least
    cross-entropy stands for its image, and the best of those fill the mosaics in order: one whole crop for images up to
    64 pixels, a grid of 2 x 2 above (after RDED, arXiv 2312.03526, whose output CV-DD begins with, but its crops are
    square; the authors' "medium" is not defined in any code). A class of few images is looked at whole and repeats its
    crops only if it must.
    """
    spec = data.spec
    channels, height, width = spec.image_shape
    side = 1 if max(height, width) <= _WHOLE_CROPS_UP_TO else 2
    at_once = images_at_once(_AT_ONCE, spec.image_shape)
    mosaics = []
    for label in range(spec.num_classes):
        draws = generator(derive_seed("mosaic", seed, label))
        members = rows[data.labels[rows] == label]
        looked_at = members[torch.randperm(len(members), generator=draws)[:_LOOKED_AT]]
        images = data.images[looked_at].repeat_interleave(_CROPS, dim=0)
        crops = draw_crops(len(images), height, width, draws, smallest=0.08)
        views, losses = [], []
        for part, boxes in zip(torch.split(images, at_once), torch.split(crops, at_once), strict=True):
            seen = resize_crops(part.to(device).float() / 255, boxes.to(device))
            truth = torch.full((len(part),), label, device=device)
            views.append(seen)
            losses.append(F.cross_entropy(teacher.model(seen), truth, reduction="none"))
        loss, best = torch.cat(losses).view(-1, _CROPS).min(1)
        easiest = loss.argsort()[torch.arange(count * side**2) % len(loss)]
        chosen = torch.cat(views).view(-1, _CROPS, channels, height, width)[easiest, best[easiest]]
        mosaics.append(_tile(chosen.view(count, side, side, channels, height, width)))
    return torch.stack(mosaics, dim=1)


def _tile(parts: Tensor) -> Tensor:
    """Returns images (n, C, H, W) of grids (n, s, s, C, H, W), each part shrunk to its share."""
    count, side, _, channels, height, width = parts.shape
    if side == 1:
        return parts[:, 0, 0]
    rows = parts.permute(0, 3, 1, 4, 2, 5).reshape(count, channels, side * height, side * width)
    return F.interpolate(rows, size=(height, width), mode="area")
