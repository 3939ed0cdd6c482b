"""Checkpoints: nested state (dicts, lists, numbers, tensors) in one safetensors file, without pickle.

The tensors are stored as they are; the shape of the tree around them goes, as JSON, into the file's metadata, together
with a checksum of both: a disk that forgets a bit would otherwise change results in silence.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from dd_bench.errors import InvalidSetError
from dd_bench.files import write_atomic

Tree: TypeAlias = "Tensor | bool | int | float | str | list[Tree] | tuple[Tree, ...] | dict[Any, Tree] | None"


class Stateful(Protocol):
    """What a stage needs to go on: torch's own pair of methods."""

    def state_dict(self) -> dict[Any, Tree]: ...  # noqa: D102
    def load_state_dict(self, tree: dict[Any, Tree]) -> None: ...  # noqa: D102


class State:
    """Named parts of a training state as one: modules, optimizers, generators, plain tensors, and what is like them.

    ``load_state_dict`` fills the very same objects: tensors are copied into, generators are set.
    """

    def __init__(self, **parts: nn.Module | torch.optim.Optimizer | torch.Generator | Tensor | Stateful) -> None:
        self.parts = parts

    def state_dict(self) -> dict[Any, Tree]:
        """Returns the state of every part, by name."""
        return {name: _state_of(part) for name, part in self.parts.items()}

    def load_state_dict(self, tree: dict[Any, Tree]) -> None:
        """Puts every part into the state that ``state_dict`` returned.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: if ``tree`` is the state of other parts; some
                may be changed by then.
        """
        if tree.keys() != self.parts.keys():
            raise ValueError(f"found the parts {', '.join(map(str, tree))}; expected {', '.join(self.parts)}")
        for name, part in self.parts.items():
            saved: Any = tree[name]
            if isinstance(part, torch.Generator):
                part.set_state(saved)
            elif isinstance(part, Tensor):
                _fill(part, saved, name)
            else:
                part.load_state_dict(saved)


def _state_of(part: Any) -> Tree:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return part if isinstance(part, Tensor) else part.state_dict()


@torch.no_grad()
def _fill(tensor: Tensor, saved: Tensor, name: str) -> None:
    if (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype):  # copy_ would broadcast and convert
        found, expected = (f"{tuple(it.shape)} {it.dtype}" for it in (saved, tensor))
        raise ValueError(f"found {name} as {found}; expected {expected}")
    tensor.copy_(saved)


def save_tree(path: Path, tree: Tree) -> None:
    """Leaves ``tree`` in ``path``, atomically. Tuples come back as lists.

    Raises:
        TypeError: if the tree holds anything but dicts with str or int keys, lists, tuples, numbers, str, None and
            tensors.
        ValueError: if one of its plain numbers is NaN or infinite; in tensors both are fine.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_strip(tree, tensors), allow_nan=False)
    write_atomic(path, save(tensors, metadata={"tree": skeleton, "crc32": _checksum(skeleton, tensors)}))


def load_tree(path: Path) -> Tree:
    """Returns the tree that ``save_tree`` wrote, tensors on the CPU.

    Raises:
        InvalidSetError: if the file is no such tree.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
            facts = file.metadata()
        if facts.get("crc32", expected := _checksum(facts["tree"], tensors)) != expected:  # older files have none
            raise ValueError("its checksum differs")
        return _restore(json.loads(facts["tree"]), tensors)
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidSetError(
            f"{path} is no checkpoint of ddbench ({error}); delete it to start that stage anew"
        ) from error


def _checksum(skeleton: str, tensors: dict[str, Tensor]) -> str:
    """Returns the CRC-32 of the skeleton and of the tensors' bytes in the order of their names, hexadecimal."""
    crc = zlib.crc32(skeleton.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def peek_tree(path: Path) -> Tree:
    """Returns the tree that ``save_tree`` wrote with None in the place of every tensor; only the header is read.

    Raises:
        InvalidSetError: if the file is no such tree, or shorter than its header says.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return _restore(json.loads(file.metadata()["tree"]), dict.fromkeys(names))
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidSetError(
            f"{path} is no checkpoint of ddbench ({error}); delete it to start that stage anew"
        ) from error


def _strip(tree: Tree, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().cpu().contiguous().clone()  # clone: safetensors refuses shared memory
        return {"tensor": name}
    if isinstance(tree, dict):
        if not all(type(key) in (str, int) for key in tree):
            raise TypeError(f"checkpoint keys must be str or int, found {list(tree)[:3]}")
        return {"dict": [[key, _strip(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_strip(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a checkpoint cannot hold {type(tree).__name__}")


def _restore(node: Any, tensors: Mapping[str, Tree]) -> Tree:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _restore(value, tensors) for key, value in content}
    if kind == "list":
        return [_restore(value, tensors) for value in content]
    raise ValueError(f"found a node {kind!r:.40}; expected a tensor, a dict or a list")
