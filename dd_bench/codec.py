"""Synthetic sets as safetensors bytes and back.

The bytes hold tensors and nothing else: equal tensors give equal bytes, whichever method made them, because the
evaluator's students are seeded with their sha256. Plain numbers and the kinds go to the manifest.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.manifest import CURE, TENSORS, Part
from dd_bench.sets import Compensated, HardLabels, Images, Payload, SoftLabels, SyntheticSet, Targets


@dataclass(frozen=True)
class Kind:
    """A dataclass that can be stored: tensor fields go to the tensors file, float fields to the manifest.

    Attributes:
        type: the dataclass; its constructor is what checks shapes, dtypes and values on reading.
        indices: integer fields and the dtype they have in memory; on disk they take the smallest dtype that holds them.
    """

    type: type[Any]
    indices: Mapping[str, torch.dtype] = field(default_factory=dict)

    def names(self, of: object) -> list[str]:
        """Returns the names of the fields whose type is ``of``."""
        return [entry.name for entry in fields(self.type) if entry.type is of]


_TREE_WEIGHTS = ("copies", "weights")  # what of trees is no index

PAYLOADS: Final[Mapping[str, Kind]] = {
    "images": Kind(Images),
    "compensated": Kind(Compensated, {"pairs": torch.int32}),
    "graphs": Kind(Graphs, dict.fromkeys(("nodes", "links", "link_labels", "node_counts", "link_counts"), torch.int64)),
    "trees": Kind(Trees, {entry.name: torch.int64 for entry in fields(Trees) if entry.name not in _TREE_WEIGHTS}),
}
TARGETS: Final[Mapping[str, Kind]] = {
    "hard": Kind(HardLabels, {"classes": torch.int64}),
    "soft": Kind(SoftLabels, {"classes": torch.int64}),
}

_HEADER_LIMIT = 1 << 16  # bytes; real headers hold a few hundred
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def describe(part: Payload | Targets) -> Part:
    """Returns what the manifest says about ``part``: its kind and its plain numbers."""
    name, kind = _kind_of(part)
    return Part(kind=name, scalars={scalar: float(getattr(part, scalar)) for scalar in kind.names(float)})


def stored_tensors(synthetic: SyntheticSet) -> dict[str, Tensor]:
    """Returns the tensors of a set by their names on disk (``payload.pixels``, ``targets.logits``, …), as stored."""
    return {
        f"{side}.{name}": _narrow(tensor.detach()) if name in kind.indices else tensor.detach()
        for side, part in (("payload", synthetic.payload), ("targets", synthetic.targets))
        for kind in (_kind_of(part)[1],)
        for name, tensor in _tensors(part, kind)
    }


def payload_bytes(payload: Payload) -> int:
    """Returns the bytes that the tensors of ``payload`` take on disk, without any container."""
    _, kind = _kind_of(payload)
    return sum((_narrow(tensor) if name in kind.indices else tensor).nbytes for name, tensor in _tensors(payload, kind))


def to_bytes(synthetic: SyntheticSet) -> bytes:
    """Returns the tensors file of a set.

    Raises:
        InvalidSetError: if a tensor was changed in place, after the set was made, into something no set may hold.
    """
    replace(synthetic, payload=replace(synthetic.payload), targets=replace(synthetic.targets))  # checks all once more
    # Copies, because safetensors refuses tensors that share memory.
    return safetensors.save(
        {
            name: tensor.cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in stored_tensors(synthetic).items()
        }
    )


def from_bytes(content: bytes, *, payload: Part, targets: Part) -> tuple[Payload, Targets]:
    """Returns the payload and the targets in ``content``, checked by their own constructors.

    Raises:
        InvalidSetError: if a kind is unknown, or the bytes are not what ``to_bytes`` would have written for the kinds.
    """
    parts = {"payload": (_look_up(payload, PAYLOADS), payload), "targets": (_look_up(targets, TARGETS), targets)}
    _check_header(content, {f"{side}.{name}" for side, (kind, _) in parts.items() for name in kind.names(Tensor)})
    try:
        stored = safetensors.load(content)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]  # torch appends its stack
        raise InvalidSetError(f"{TENSORS} is no valid safetensors file ({reason:.200}); {CURE}") from error
    made = {
        side: kind.type(
            **{name: _widen(name, stored[f"{side}.{name}"], kind) for name in kind.names(Tensor)}, **part.scalars
        )
        for side, (kind, part) in parts.items()
    }
    return made["payload"], made["targets"]


def _kind_of(part: Payload | Targets) -> tuple[str, Kind]:
    return next((name, kind) for name, kind in {**PAYLOADS, **TARGETS}.items() if type(part) is kind.type)


def _look_up(part: Part, kinds: Mapping[str, Kind]) -> Kind:
    if part.kind not in kinds:
        raise InvalidSetError(
            f"the kind {part.kind!r:.100} is unknown, expected one of {', '.join(kinds)}; a newer ddbench may know it"
        )
    wanted = kinds[part.kind].names(float)
    if sorted(part.scalars) != sorted(wanted):
        raise InvalidSetError(f"{part.kind} has the numbers {sorted(part.scalars)!r:.100}, expected {wanted}; {CURE}")
    return kinds[part.kind]


def _tensors(part: Payload | Targets, kind: Kind) -> Iterator[tuple[str, Tensor]]:
    return ((name, getattr(part, name)) for name in kind.names(Tensor))


def _check_header(content: bytes, expected: set[str]) -> None:
    """Holds the header to its limit before anything parses it, and to exactly the expected names (no metadata)."""
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(_HEADER_LIMIT, len(content) - 8):
        raise InvalidSetError(f"{TENSORS} is no safetensors file (a header of {size} bytes in {len(content)}); {CURE}")
    try:
        header = json.loads(content[8 : 8 + size])
    except (ValueError, RecursionError) as error:
        raise InvalidSetError(f"{TENSORS} has no readable header ({error!s:.200}); {CURE}") from error
    if not isinstance(header, dict) or set(header) != expected:
        raise InvalidSetError(f"{TENSORS} holds {sorted(header)!r:.300}; expected exactly {sorted(expected)}; {CURE}")


def _narrow(index: Tensor) -> Tensor:
    """Returns integers in the smallest dtype that holds them all."""
    low, high = (int(end) for end in index.aminmax()) if index.numel() else (0, 0)
    return index.to(next(kind for kind in _NARROW if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max))


def _widen(name: str, stored: Tensor, kind: Kind) -> Tensor:
    """Returns a stored tensor as it is in memory; there is one encoding of an index, so any other is refused."""
    if name not in kind.indices:
        return stored
    index = stored.to(kind.indices[name])
    if (narrow := _narrow(index).dtype) != stored.dtype:
        raise InvalidSetError(f"{name} is stored as {stored.dtype}, expected {narrow}; {CURE}")
    return index
