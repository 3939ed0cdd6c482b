"""Linear warps of images about their centre."""

import torch
import torch.nn.functional as F
from kornia.geometry.transform import remap
from torch import Tensor


def warp(x: Tensor, matrix: tuple[Tensor, Tensor, Tensor, Tensor], *, align_corners: bool) -> Tensor:
    """Returns x sampled bilinearly at ``matrix`` times each pixel's place in [-1, 1]², 0 beyond the edge.

    Differentiable once in x (``grid_sample`` has no second derivative). Its gradient on CUDA is summed in no fixed
    order; where deterministic algorithms are asked for, another form with a fixed order takes its place.

    Args:
        x: (N, C, H, W).
        matrix: the rows (a, b), (c, d) of the linear map from output to input, x before y; each (N,) or (1,).
        align_corners: whether ±1 are the centres of the outermost pixels, or their outer edges.
    """
    a, b, c, d = matrix
    zero = torch.zeros_like(a)
    theta = torch.stack((a, b, zero, c, d, zero), dim=1).view(-1, 2, 3).to(x.dtype)
    grid = F.affine_grid(theta, [len(theta), *x.shape[1:]], align_corners=align_corners)  # (N or 1, H, W, 2)
    if x.is_cuda and torch.are_deterministic_algorithms_enabled():
        return sample_by_index(x, grid, align_corners=align_corners)
    return remap(x, grid[..., 0], grid[..., 1], align_corners=align_corners, normalized_coordinates=True)


def sample_by_index(x: Tensor, grid: Tensor, *, align_corners: bool) -> Tensor:
    """Returns what ``F.grid_sample(x, grid, "bilinear", "zeros")`` does, by indexing.

    The gradient of indexing is an accumulating ``index_put``, which has a deterministic form on CUDA; slower, and
    differentiable as often as wanted.

    Args:
        x: (N, C, H, W).
        grid: (N or 1, H', W', 2), x before y, in [-1, 1] within the image.
        align_corners: as in ``warp``.
    """
    count, channels, height, width = x.shape
    places = [
        (place + 1) / 2 * (side - 1) if align_corners else ((place + 1) * side - 1) / 2
        for place, side in zip(grid.unbind(-1), (width, height), strict=True)
    ]
    corner = [place.floor() for place in places]
    far = [place - near for place, near in zip(places, corner, strict=True)]  # how much of the next neighbour
    pixels = x.flatten(2)
    images = torch.arange(count, device=x.device)[:, None, None]
    planes = torch.arange(channels, device=x.device)[:, None]
    total = x.new_zeros(())
    for right in (0, 1):
        for down in (0, 1):
            column, row = (corner[0] + right).long(), (corner[1] + down).long()
            weight = (far[0] if right else 1 - far[0]) * (far[1] if down else 1 - far[1])
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            index = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).flatten(1)  # (N or 1, H' W')
            total = total + pixels[images, planes, index[:, None]] * (weight * inside).flatten(1)[:, None]
    return total.view(count, channels, *grid.shape[1:3])
