"""Trained networks on disk: weights as safetensors beside a manifest that says what they are and how good.

Synthesizers train and write them; protocols that label on the fly read them. The normaliser's mean and std are buffers
of the weights, so a network can never be fed in another data set's units.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import InvalidSetError, UnknownNameError
from dd_bench.files import home, locked, safe_name, write_atomic
from dd_bench.models import build
from dd_bench.seeding import seeded

_MANIFEST, _WEIGHTS = "manifest.json", "weights.safetensors"


class NetworkFacts(BaseModel):
    """What is known of a trained network, of which some was measured on a slice of *train* that it never saw.

    ``held_out_top1`` in [0, 1] is a classifier's; ``held_out_rank``, at least 1, is the effective rank of the features
    of a network that was trained without labels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    schema_version: Literal[1] = 1
    id: str
    architecture: str
    dataset: str
    fingerprint: str
    recipe: dict[str, Any]
    seed: int
    held_out_top1: float | None = Field(default=None, ge=0, le=1)
    held_out_rank: float | None = Field(default=None, ge=1)
    held_out_images: int
    seconds: float = Field(ge=0)
    device: str
    versions: dict[str, str]
    weights_sha256: str = ""


def network_folder(network_id: str) -> Path:
    """Returns where the network ``network_id`` lives under ``home()``."""
    return home() / "teachers" / safe_name(network_id)


def save_network(model: nn.Module, facts: NetworkFacts) -> NetworkFacts:
    """Leaves the network on disk; its manifest is written last, so an unfinished one does not exist."""
    folder = network_folder(facts.id)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()})
    with locked(f"network {facts.id}"):
        (folder / _MANIFEST).unlink(missing_ok=True)  # an old one would vouch for the new weights
        write_atomic(folder / _WEIGHTS, content)
        facts = facts.model_copy(update={"weights_sha256": hashlib.sha256(content).hexdigest()})
        write_atomic(folder / _MANIFEST, (facts.model_dump_json(indent=1) + "\n").encode())
    return facts


def has_network(network_id: str) -> bool:
    """Returns whether the network is complete on disk."""
    return (network_folder(network_id) / _MANIFEST).is_file()


def network_bytes(network_id: str) -> int:
    """Returns the size of the network's weights on disk in bytes."""
    return (network_folder(network_id) / _WEIGHTS).stat().st_size


def load_network(network_id: str, spec: DatasetSpec) -> tuple[nn.Module, NetworkFacts]:
    """Returns the network on the CPU, in evaluation mode and without gradients, and its facts.

    Raises:
        UnknownNameError: if there is no such network here.
        InvalidSetError: if its files are damaged or of another schema.
    """
    folder = network_folder(network_id)
    if not has_network(network_id):
        known = [path.parent.name for path in folder.parent.glob(f"*/{_MANIFEST}")]
        raise UnknownNameError("teacher", network_id, known)
    try:
        facts = NetworkFacts.model_validate_json((folder / _MANIFEST).read_bytes())
        content = (folder / _WEIGHTS).read_bytes()
        if facts.id != network_id or hashlib.sha256(content).hexdigest() != facts.weights_sha256:
            raise InvalidSetError(f"{folder / _WEIGHTS} is not the file its manifest names; delete {folder}")
        with seeded(0):  # the weights drawn here are replaced at once; nobody else's draws may notice
            model = build(facts.architecture, spec)
        model.load_state_dict(load(content))
    except (OSError, ValidationError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]  # torch and pydantic tell it in several lines
        raise InvalidSetError(
            f"{folder} holds no sound network ({reason}); delete it to have it trained anew"
        ) from error
    return model.eval().requires_grad_(False), facts
