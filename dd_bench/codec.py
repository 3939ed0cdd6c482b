"""Synthetic sets as safetensors files and back.

A file holds tensors and nothing else: equal tensors give equal bytes, whichever method made them, because the
evaluator's students are seeded with their sha256. Plain numbers and the kinds go to the manifest. Neither way holds the
whole file in memory: label books, which have hundreds of megabytes, are copied from one mapping and read from another.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.manifest import CURE, TENSORS, Part
from dd_bench.sets import Compensated, Images, Payload, SyntheticSet
from dd_bench.tapes import Tape
from dd_bench.targets import Features, HardLabels, SoftLabels, TapedLabels, Targets, ThinLabels


@dataclass(frozen=True)
class Kind:
    """A dataclass that can be stored: tensor fields go to the tensors file, float fields to the manifest.

    Attributes:
        type: the dataclass; its constructor is what checks shapes, dtypes and values on reading.
        indices: integer fields and the dtype they have in memory; on disk they take the smallest dtype that holds them.
        parts: fields that are such dataclasses themselves; their tensors are named ``field.tensor``.
    """

    type: type[Any]
    indices: Mapping[str, torch.dtype] = field(default_factory=dict)
    parts: Mapping[str, "Kind"] = field(default_factory=dict)

    @property
    def scalars(self) -> list[str]:
        """The names of the fields that are plain numbers."""
        return [entry.name for entry in fields(self.type) if entry.type is float]

    @property
    def tensors(self) -> dict[str, torch.dtype | None]:
        """The names of all tensors, with the dtype that each has in memory if it is an index."""
        own = {one.name: self.indices.get(one.name) for one in fields(self.type) if one.type is Tensor}
        return own | {
            f"{name}.{inner}": kind for name, part in self.parts.items() for inner, kind in part.tensors.items()
        }

    def stored(self, part: object) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of ``part`` by name, indices in the smallest dtype that holds them."""
        for name, index in self.tensors.items():
            value: Any = part
            for attribute in name.split("."):
                value = getattr(value, attribute)
            yield name, _narrow(value.detach()) if index else value.detach()

    def make(self, stored: Mapping[str, Tensor], scalars: Mapping[str, float]) -> Any:
        """Returns the part whose ``stored`` tensors and ``scalars`` these are; its constructors check them."""
        own = {name: _widen(name, stored[name], kind) for name, kind in self.tensors.items() if "." not in name}
        for name, part in self.parts.items():
            inner = {full.partition(".")[2]: value for full, value in stored.items() if full.startswith(f"{name}.")}
            own[name] = part.make(inner, {})
        return self.type(**own, **scalars)


_TREE_WEIGHTS = ("copies", "weights")  # what of trees is no index

PAYLOADS: Final[Mapping[str, Kind]] = {
    "images": Kind(Images),
    "compensated": Kind(Compensated, {"pairs": torch.int32}),
    "graphs": Kind(Graphs, dict.fromkeys(("nodes", "links", "link_labels", "node_counts", "link_counts"), torch.int64)),
    "trees": Kind(Trees, {entry.name: torch.int64 for entry in fields(Trees) if entry.name not in _TREE_WEIGHTS}),
}
_CLASSES = {"classes": torch.int64}
_TAPE = {"tape": Kind(Tape, {**dict.fromkeys(("order", "bounds", "groups"), torch.int32),
                             **dict.fromkeys(("crops", "partners", "boxes"), torch.int16)})}  # fmt: skip
TARGETS: Final[Mapping[str, Kind]] = {
    "hard": Kind(HardLabels, _CLASSES),
    "soft": Kind(SoftLabels, _CLASSES),
    "taped": Kind(TapedLabels, _CLASSES, _TAPE),
    "features": Kind(Features),
    "taped-top": Kind(ThinLabels, _CLASSES | {"kept": torch.int16}, _TAPE),
}

_HEADER_LIMIT = 1 << 16  # bytes; real headers hold a few hundred
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def describe(part: Payload | Targets) -> Part:
    """Returns what the manifest says about ``part``: its kind and its plain numbers."""
    name, kind = _kind_of(part)
    return Part(kind=name, scalars={scalar: float(getattr(part, scalar)) for scalar in kind.scalars})


def stored_tensors(synthetic: SyntheticSet) -> dict[str, Tensor]:
    """Returns the tensors of a set by their names on disk (``payload.pixels``, ``targets.logits``, …), as stored."""
    return {
        f"{side}.{name}": tensor
        for side, part in (("payload", synthetic.payload), ("targets", synthetic.targets))
        for name, tensor in _kind_of(part)[1].stored(part)
    }


def payload_bytes(payload: Payload) -> int:
    """Returns the bytes that the tensors of ``payload`` take on disk, without any container."""
    return sum(tensor.nbytes for _, tensor in _kind_of(payload)[1].stored(payload))


def write(path: Path, synthetic: SyntheticSet) -> None:
    """Leaves the tensors of a set in the file ``path``, on the disk and not only on its way there.

    Raises:
        InvalidSetError: if a tensor was changed in place, after the set was made, into something no set may hold.
    """
    replace(synthetic, payload=replace(synthetic.payload), targets=replace(synthetic.targets))  # checks all once more
    seen: set[int] = set()
    tensors = {name: _alone(tensor, seen) for name, tensor in stored_tensors(synthetic).items()}
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # a full disk, told as an OSError's text
        raise OSError(None, f"{error!s:.200}", str(path)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def read(path: Path, *, payload: Part, targets: Part) -> tuple[Payload, Targets]:
    """Returns the payload and the targets in the file ``path``, checked by their own constructors.

    Tensors are mapped from the file and read as they are used; writing to them does not change it.

    Raises:
        InvalidSetError: if a kind is unknown, or the file is not what ``write`` would have written for the kinds.
    """
    parts = {"payload": (_look_up(payload, PAYLOADS), payload), "targets": (_look_up(targets, TARGETS), targets)}
    _check_header(path, {f"{side}.{name}" for side, (kind, _) in parts.items() for name in kind.tensors})
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]  # torch appends its stack
        raise InvalidSetError(f"{TENSORS} is no valid safetensors file ({reason:.200}); {CURE}") from error
    made = {}
    for side, (kind, part) in parts.items():
        own = {name.partition(".")[2]: tensor for name, tensor in stored.items() if name.startswith(side)}
        made[side] = kind.make(own, part.scalars)
    return made["payload"], made["targets"]


def _kind_of(part: Payload | Targets) -> tuple[str, Kind]:
    return next((name, kind) for name, kind in {**PAYLOADS, **TARGETS}.items() if type(part) is kind.type)


def _look_up(part: Part, kinds: Mapping[str, Kind]) -> Kind:
    if part.kind not in kinds:
        raise InvalidSetError(
            f"the kind {part.kind!r:.100} is unknown, expected one of {', '.join(kinds)}; a newer ddbench may know it"
        )
    wanted = kinds[part.kind].scalars
    if sorted(part.scalars) != sorted(wanted):
        raise InvalidSetError(f"{part.kind} has the numbers {sorted(part.scalars)!r:.100}, expected {wanted}; {CURE}")
    return kinds[part.kind]


def _alone(tensor: Tensor, seen: set[int]) -> Tensor:
    """Returns a contiguous tensor on the CPU whose memory is not in ``seen``, where safetensors would refuse it."""
    tensor = tensor.cpu().contiguous()
    storage = tensor.untyped_storage()
    if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
        tensor = tensor.clone()
    seen.add(tensor.untyped_storage().data_ptr())
    return tensor


def _check_header(path: Path, expected: set[str]) -> None:
    """Holds the header to its limit before anything parses it, and to exactly the expected names (no metadata)."""
    total = path.stat().st_size
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if total < 8 or size > min(_HEADER_LIMIT, total - 8):
            raise InvalidSetError(f"{TENSORS} is no safetensors file (a header of {size} bytes in {total}); {CURE}")
        content = file.read(size)
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidSetError(f"{TENSORS} has no readable header ({error!s:.200}); {CURE}") from error
    if not isinstance(header, dict) or set(header) != expected:
        raise InvalidSetError(f"{TENSORS} holds {sorted(header)!r:.300}; expected exactly {sorted(expected)}; {CURE}")


def _narrow(index: Tensor) -> Tensor:
    """Returns integers in the smallest dtype that holds them all."""
    low, high = (int(end) for end in index.aminmax()) if index.numel() else (0, 0)
    return index.to(next(kind for kind in _NARROW if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max))


def _widen(name: str, stored: Tensor, index: torch.dtype | None) -> Tensor:
    """Returns a stored tensor as it is in memory; there is one encoding of an index, so any other is refused."""
    if index is None:
        return stored
    if (narrow := _narrow(wide := stored.to(index)).dtype) != stored.dtype:
        raise InvalidSetError(f"{name} is stored as {stored.dtype}, expected {narrow}; {CURE}")
    return wide
