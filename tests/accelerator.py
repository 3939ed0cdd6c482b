"""An accelerator where there is none: tensors that compute on the CPU and claim to lie elsewhere.

Inside ``accelerator()`` the device ``meta`` computes. What CUDA would refuse is refused there: operations on tensors of
two devices, generators of another device than what they draw, and, where deterministic algorithms are asked for, those
that have no such form. What would make the host wait for CUDA is noted. That is less than a GPU – no kernel of one runs
– but nearly all that code written without one gets wrong.

``meta`` has no storage of its own in torch, takes part in autograd on the calling thread, and needs no driver.
"""

import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta")

_ATEN = torch.ops.aten
_ROOMS = tuple(f"{Path(__file__).parents[1] / room}/" for room in ("dd_bench", "synth", "eval"))
_MOVING = (_ATEN._to_copy.default, _ATEN.copy_.default)
_TAKING_INDICES = (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default)  # which may lie on the CPU
_READING = (  # their result's size or fate depends on values
    _ATEN._local_scalar_dense.default, _ATEN.nonzero.default, _ATEN.masked_select.default, _ATEN.equal.default,
    _ATEN.is_nonzero.default, _ATEN._linalg_check_errors.default, _ATEN._unique2.default, _ATEN.bincount.default,
    _ATEN.repeat_interleave.Tensor,
)  # fmt: skip
_UNORDERED = {  # have no deterministic form on CUDA (torch.use_deterministic_algorithms), or none for some arguments
    f"aten::{name}" for name in (
        "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "adaptive_max_pool2d_backward",
        "adaptive_max_pool3d_backward", "avg_pool3d_backward", "fractional_max_pool2d_backward",
        "fractional_max_pool3d_backward", "max_pool3d_with_indices_backward", "max_unpool2d", "max_unpool3d",
        "upsample_linear1d_backward", "upsample_bilinear2d_backward", "upsample_bicubic2d_backward",
        "upsample_trilinear3d_backward", "_upsample_bilinear2d_aa_backward", "_upsample_bicubic2d_aa_backward",
        "reflection_pad1d_backward", "reflection_pad2d_backward", "reflection_pad3d_backward",
        "replication_pad1d_backward", "replication_pad2d_backward", "replication_pad3d_backward", "nll_loss2d_forward",
        "nll_loss2d_backward", "_ctc_loss", "_ctc_loss_backward", "put_", "histc", "kthvalue", "median",
        "grid_sampler_2d_backward", "grid_sampler_3d_backward", "cumsum", "index_reduce", "scatter_reduce",
    )
}  # fmt: skip


class Distant(Tensor):
    """A tensor of the accelerator."""

    near: Tensor
    is_cuda = True  # for our code; torch's own looks at the device

    @staticmethod
    def __new__(cls, near: Tensor) -> Self:
        made = Tensor._make_wrapper_subclass(
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.near = near
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(
        cls, operation: Any, _: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(operation, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: "Distant") -> None:
        self.near.data = other.near

    def tolist(self) -> Any:
        return self.to("cpu").tolist()  # type: ignore[no-untyped-call]

    def __repr__(self, **_: Any) -> str:
        return f"Distant({self.near!r})"

    def __deepcopy__(self, _: dict[int, Any]) -> Tensor:
        return self.detach().clone().requires_grad_(self.requires_grad)


class DistantGenerator(torch.Generator):
    """A generator of the accelerator, with a CPU generator's numbers."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


@dataclass
class Waits:
    """Where the host waited for the accelerator, and how often: ``file:line`` of ours, and the operation.

    Attributes:
        noted: whether what happens now is noted.
    """

    noted: bool = True
    places: Counter[str] = field(default_factory=Counter)

    def add(self, what: str) -> None:
        frame = sys._getframe()
        while frame is not None and not frame.f_code.co_filename.startswith(_ROOMS):
            frame = frame.f_back  # type: ignore[assignment]
        place = "tests" if frame is None else f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_name}"
        self.places[f"{place}: {what}"] += self.noted


_waits = Waits()


def _compute(operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Runs an operation where its tensors lie, or where it is told to make some."""
    tensors = list(_tensors_of((args, kwargs)))
    distant = [isinstance(tensor, Distant) for tensor in tensors]
    if operation not in _MOVING and any(distant) and not all(distant):
        _refuse_mixture(operation, tensors)
    if any(distant) and operation._schema.name in _UNORDERED and torch.are_deterministic_algorithms_enabled():
        raise RuntimeError(f"{operation} does not have a deterministic implementation")
    goal = kwargs.get("device")
    there = any(distant) if goal is None else torch.device(goal) == DEVICE
    if operation is _ATEN.copy_.default:
        there = distant[0]
    if any(distant) and (operation in _READING or (operation in _MOVING and not there)):
        _waits.add(operation._schema.name)
    if operation in _MOVING and there and not distant[-1] and not kwargs.get("non_blocking", args[2:] == (True,)):
        _waits.add(f"{operation._schema.name} to the accelerator")
    if any(distant) and operation in _TAKING_INDICES and any(_masks(args[1])):
        _waits.add(f"{operation._schema.name} by a mask")
    if any(distant) and operation in _TAKING_INDICES and not all(distant[: len(list(_tensors_of(args[1]))) + 1]):
        _waits.add(f"{operation._schema.name} by indices of the CPU")
    here, ours = _mapped(Distant, lambda tensor: tensor.near, (args, kwargs))
    if goal is not None:
        ours["device"] = torch.device("cpu")
    result = operation(*here, **ours)
    if not there:
        return result
    result = _mapped(Tensor, Distant, result)
    if operation is _ATEN._to_copy.default or not any(distant) or not _shares(operation):
        return result
    return return_and_correct_aliasing(operation, args, kwargs, result)


@cache
def _shares(operation: Any) -> bool:
    """Returns whether a result may be an argument, or a view of one."""
    return any(one.alias_info is not None for one in operation._schema.returns)


def _tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors_of(part)
    elif isinstance(value, dict):
        yield from _tensors_of(list(value.values()))


def _mapped(kind: type[Tensor], change: Callable[[Any], Any], value: Any) -> Any:
    """Returns ``value`` with all tensors of a kind changed; torch's own pytrees take longer than the operation."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)([_mapped(kind, change, part) for part in value])
    if isinstance(value, dict):
        return {key: _mapped(kind, change, part) for key, part in value.items()}
    return value


def _refuse_mixture(operation: Any, tensors: list[Tensor]) -> None:
    """Raises as CUDA does, which takes scalars from the CPU, and indices into its own tensors."""
    if operation in _TAKING_INDICES and isinstance(tensors[0], Distant):
        return
    if any(tensor.dim() > 0 for tensor in tensors if not isinstance(tensor, Distant)):
        found = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device, but found {found}")


def _masks(indices: Any) -> Iterator[bool]:
    for index in indices:
        yield index is not None and index.dtype in (torch.bool, torch.uint8)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(
        self, operation: Any, _: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _compute(operation, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Checks generators, which lose their class on the way to the dispatcher."""

    def __torch_function__(
        self, function: Any, _: object, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if generator is not None:
            owner = next((arg.device for arg in args if isinstance(arg, Tensor)), "cpu")
            device = torch.device(kwargs.get("device") or owner)
            if device != generator.device:
                raise RuntimeError(f"expected a '{device}' device type for generator but found '{generator.device}'")
        return function(*args, **kwargs)


def _then_move(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns ``make`` on the CPU, then moved: torch gives tensors on ``meta`` no values."""

    def made(data: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        tensor = make(data, dtype=dtype)
        return tensor if device is None else tensor.to(device)

    return made


class _Torch(types.ModuleType):
    """torch, but for generators of the accelerator."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def Generator(device: torch.device | str = "cpu") -> torch.Generator:  # noqa: N802 - a class in torch
        return DistantGenerator() if torch.device(device) == DEVICE else torch.Generator(device)


@contextmanager
def accelerator() -> Iterator[Waits]:
    """Makes ``DEVICE`` compute for a block, and yields where the host waited for it."""
    _waits.places.clear()
    _waits.noted = True
    with ExitStack() as stack:
        for replacement in (
            patch("dd_bench.seeding.torch", _Torch("torch")),
            patch("torch.tensor", _then_move(torch.tensor)),
            patch("torch.as_tensor", _then_move(torch.as_tensor)),
            patch("torch.autocast", lambda *_, **__: nullcontext()),
            *_allow_fused_optimizers(),
            _Functions(),
            _Dispatch(),
        ):
            stack.enter_context(replacement)  # type: ignore[arg-type]
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "for .*: copying from a non-meta parameter")  # which here is no no-op
        yield _waits


def _allow_fused_optimizers() -> Iterator[Any]:
    name = "_get_fused_kernels_supported_devices"
    for module in map(import_module, ("torch.optim.optimizer", "torch.optim.adam", "torch.optim.sgd")):
        if hasattr(module, name):
            yield patch.object(module, name, lambda: ["cpu", DEVICE.type])
