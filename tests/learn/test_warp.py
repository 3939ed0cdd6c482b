"""Warps by indexing are those of ``grid_sample``, with their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.learn import warp as module
from dd_bench.learn.warp import sample_by_index, warp
from dd_bench.seeding import generator


def draw(shared: bool) -> tuple[Tensor, Tensor]:
    draws = generator(0)
    images = torch.rand(3, 2, 7, 5, generator=draws, dtype=torch.float64)
    grid = torch.rand(1 if shared else 3, 4, 6, 2, generator=draws, dtype=torch.float64) * 3 - 1.5  # also beyond
    return images, grid


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_matches_grid_sample(shared: bool, align_corners: bool) -> None:
    images, grid = draw(shared)
    results = []
    for sample in (sample_by_index, F.grid_sample):
        x = images.clone().requires_grad_()
        places = grid if sample is sample_by_index else grid.expand(3, -1, -1, -1)
        found = sample(x, places, align_corners=align_corners)
        found.square().sum().backward()
        results.append((found.detach(), x.grad))
    torch.testing.assert_close(results[0], results[1])


def test_second_derivatives_are_right() -> None:
    images, grid = draw(shared=True)
    x = images[:1, :1, :3, :3].clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: sample_by_index(x.square(), grid, align_corners=False), (x,))


def test_it_is_taken_where_an_order_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU alone: a CPU's gradient has an order."""

    class OnGpu(Tensor):
        is_cuda = True

    def taken(*_: object, **__: object) -> Tensor:
        raise LookupError("by index")

    monkeypatch.setattr(module, "sample_by_index", taken)
    identity = tuple(torch.tensor([value]) for value in (1.0, 0.0, 0.0, 1.0))
    x = torch.rand(1, 1, 3, 3)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        torch.testing.assert_close(warp(x, identity, align_corners=False), x)  # type: ignore[arg-type]
        with pytest.raises(LookupError, match="by index"):
            warp(x.as_subclass(OnGpu), identity, align_corners=False)  # type: ignore[arg-type]
    torch.testing.assert_close(warp(x.as_subclass(OnGpu), identity, align_corners=False).as_subclass(Tensor), x)  # type: ignore[arg-type]
