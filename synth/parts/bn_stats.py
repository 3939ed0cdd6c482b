"""Distance between a batch's feature statistics and those that a network's BatchNorm layers remember."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Groups:
    """How many groups of equal size a batch holds, one after the other."""

    count: int = 1


@contextmanager
def batch_statistics(model: nn.Module) -> Iterator[Groups]:
    """Has every BatchNorm2d of a model in evaluation mode normalise by its batch, and leaves nothing behind.

    The layers' running statistics are out of sight within the block and neither used nor moved; dropout stays off.
    Training mode would do the one with the other two. What the block is given says how many groups a batch holds: each
    has statistics of its own, so many small groups can share a forward pass.
    """
    groups = Groups()
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(layer.running_mean, layer.running_var) for layer in layers]

    def normalise(layer: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        parts = inputs[0].chunk(groups.count)
        return (torch.cat([F.batch_norm(part, None, None, training=True, eps=layer.eps) for part in parts]),)

    handles = [layer.register_forward_pre_hook(normalise) for layer in layers]
    try:
        for layer in layers:  # what is normalised already passes a layer of mean 0 and variance 1 unchanged
            if layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean = torch.zeros_like(layer.running_mean)
                layer.running_var = torch.full_like(layer.running_var, 1 - layer.eps)
        yield groups
    finally:
        for handle in handles:
            handle.remove()
        for layer, (mean, var) in zip(layers, kept, strict=True):
            layer.running_mean, layer.running_var = mean, var


class BNProbe:
    """Watches the inputs of every BatchNorm2d of a model for the length of a ``with`` block.

    A batch may hold several groups of equal size one after the other, each with statistics of its own; in evaluation
    mode images do not influence one another, so groups that share a forward pass stay independent.

    Layers that do not fire in a forward pass add nothing, and neither do those that keep no running statistics; one
    that fires twice counts with its last input. On leaving the block all hooks are gone.
    """

    def __init__(self, model: nn.Module, *, groups: int = 1, first_weight: float = 1.0, relative: bool = False) -> None:
        self._model, self._relative = model, relative
        self._layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        self._groups, self._first_weight = groups, first_weight
        self._distances: dict[int, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "BNProbe":
        self._handles.append(self._model.register_forward_pre_hook(self._forget))
        for index, layer in enumerate(self._layers):
            self._handles.append(layer.register_forward_pre_hook(self._hook(index)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._distances.clear()

    def distance(self) -> Tensor:
        """Returns sum_l w_l (||mu_l - mu^_l||_2 + ||var_l - var^_l||_2) of the last forward pass; (groups,).

        mu_l and var_l are per-channel mean and biased variance over a group's images and positions, mu^_l and var^_l
        the running statistics; plain norms, not squared (as in DeepInversion, arXiv 1912.08795, eq. 4). w_l is
        ``first_weight`` for the first layer, in the model's order, that fired and 1 for the others. With ``relative``
        the sum is divided by sum_l w_l (||mu^_l||_2 + ||var^_l||_2), so that networks of any depth count alike.

        Raises:
            RuntimeError: if no BatchNorm layer has fired since the block began.
        """
        if not self._distances:
            raise RuntimeError(
                "no BatchNorm2d fired inside the block: run the model first, and one that has such layers"
            )
        fired = sorted(self._distances)
        total = self._weigh([self._distances[index] for index in fired])
        if not self._relative:
            return total
        return total / self._weigh([_size(self._layers[index]) for index in fired])

    def _weigh(self, terms: list[Tensor]) -> Tensor:
        first, *rest = terms
        return torch.stack([self._first_weight * first, *rest]).sum(0)

    def _forget(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._distances.clear()

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        layer = self._layers[index]

        def measure(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if layer.running_mean is None or layer.running_var is None:
                return
            x: Tensor = inputs[0]
            x = x.reshape(self._groups, -1, *x.shape[1:])  # (groups, n, c, h, w)
            var, mean = torch.var_mean(x, dim=(1, 3, 4), correction=0)  # (groups, c)
            self._distances[index] = torch.linalg.vector_norm(
                mean - layer.running_mean, dim=1
            ) + torch.linalg.vector_norm(var - layer.running_var, dim=1)

        return measure


def _size(layer: nn.BatchNorm2d) -> Tensor:
    """Returns ||mu^||_2 + ||var^||_2 of a layer that keeps running statistics, as a scalar."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    size: Tensor = torch.linalg.vector_norm(layer.running_mean) + torch.linalg.vector_norm(layer.running_var)
    return size
