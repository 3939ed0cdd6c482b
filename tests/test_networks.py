"""Trained networks on disk: what was trained is what teaches, or nothing does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from dd_bench import networks
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import DDBenchError, InvalidSetError, UnknownNameError
from dd_bench.files import sha256_file
from dd_bench.models import build
from dd_bench.networks import NetworkFacts, has_network, load_network, network_bytes, network_folder, save_network
from dd_bench.seeding import generator, seeded

SPEC = DatasetSpec("toy", (3, 8, 8), 4, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), True, ("a", "b", "c", "d"))
ARCHITECTURE = "convnet2-batch-x0.0625"


def facts(network_id: str = "net-1", **changes: Any) -> NetworkFacts:
    known: dict[str, Any] = {
        "id": network_id, "architecture": ARCHITECTURE, "dataset": "toy", "fingerprint": "f" * 64,
        "recipe": {"lr": 0.1, "epochs": 3, "augment": "dsa"}, "seed": 2**62, "held_out_top1": 0.1 + 0.2,
        "held_out_images": 7, "seconds": 1.25, "device": "cpu (x)", "versions": {"torch": "2.11"},
    }  # fmt: skip
    return NetworkFacts(**known | changes)


def images() -> Tensor:
    return torch.rand(5, *SPEC.image_shape, generator=generator(1))


@pytest.fixture
def model() -> nn.Module:
    """A network whose running statistics have moved, so that a lost buffer shows."""
    with seeded(3):
        model = build(ARCHITECTURE, SPEC)
    model.train()(images())
    return model


@pytest.fixture
def stored(model: nn.Module) -> Path:
    save_network(model, facts())
    return network_folder("net-1")


def test_round_trip(model: nn.Module) -> None:
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    written = save_network(model, facts())
    loaded, read = load_network("net-1", SPEC)
    assert read == written
    assert read == facts(weights_sha256=sha256_file(network_folder("net-1") / "weights.safetensors"))
    ours, theirs = model.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    model = model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # sums in another order
    assert torch.equal(loaded(images()), model.eval()(images()))


@pytest.mark.usefixtures("stored")
def test_a_loaded_network_is_frozen() -> None:
    loaded, _ = load_network("net-1", SPEC)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {parameter.device.type for parameter in loaded.parameters()} == {"cpu"}
    pixels = images().requires_grad_()
    loaded(pixels).sum().backward()
    assert pixels.grad is not None  # images may still learn from it


def test_the_normaliser_is_part_of_the_weights(stored: Path) -> None:
    """A network brings the units it was trained in, whatever the caller's spec says."""
    shifted = DatasetSpec("other", (3, 8, 8), 4, (0.0,) * 3, (1.0,) * 3, True, SPEC.class_names)
    assert torch.equal(load_network("net-1", shifted)[0](images()), load_network("net-1", SPEC)[0](images()))


def test_weights_are_a_plain_safetensors_file(model: nn.Module, stored: Path) -> None:
    weights = load((stored / "weights.safetensors").read_bytes())
    assert weights.keys() == model.state_dict().keys()
    assert sorted(path.name for path in stored.iterdir()) == ["manifest.json", "weights.safetensors"]
    assert network_bytes("net-1") == (stored / "weights.safetensors").stat().st_size


def test_it_lives_under_home(own_home: Path, stored: Path) -> None:
    assert stored == own_home / "teachers" / "net-1"


@pytest.mark.parametrize("name", ["../net-1", "", "a/b", ".hidden"])
def test_rejects_ids_that_are_paths(name: str) -> None:
    for door in (network_folder, has_network, network_bytes, lambda name: load_network(name, SPEC)):
        with pytest.raises(InvalidSetError, match="is no plain name"):
            door(name)


def test_rejects_an_unknown_id(model: nn.Module) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'net-2'\. Known: none yet"):
        load_network("net-2", SPEC)
    for name in ("resnet18-abc", "net-1"):
        save_network(model, facts(name))
    with pytest.raises(
        UnknownNameError, match=r"unknown teacher 'net-2'; did you mean 'net-1'. Known: net-1, resnet18-abc"
    ):
        load_network("net-2", SPEC)


def test_without_a_manifest_it_does_not_exist(stored: Path) -> None:
    assert has_network("net-1")
    (stored / "manifest.json").unlink()
    assert not has_network("net-1")
    with pytest.raises(UnknownNameError, match=r"unknown teacher 'net-1'\. Known: none yet"):
        load_network("net-1", SPEC)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("file", ["weights.safetensors", "manifest.json"])
def test_an_unfinished_network_does_not_exist(
    monkeypatch: pytest.MonkeyPatch, model: nn.Module, file: str, first: bool
) -> None:
    if not first:
        save_network(model, facts())
    write = networks.write_atomic

    def killed(path: Path, content: bytes) -> None:
        if path.name == file:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(networks, "write_atomic", killed)
    with seeded(9), pytest.raises(KeyboardInterrupt):
        save_network(build(ARCHITECTURE, SPEC), facts())
    assert not has_network("net-1")
    monkeypatch.undo()


def test_a_network_can_be_replaced(model: nn.Module) -> None:
    save_network(model, facts())
    with seeded(9):
        other = build(ARCHITECTURE, SPEC)
    save_network(other, facts(held_out_top1=1.0))
    loaded, read = load_network("net-1", SPEC)
    assert read.held_out_top1 == 1
    assert torch.equal(loaded(images()), other.eval()(images()))


@pytest.mark.parametrize(
    ("top1", "rank"), [(0.3, None), (None, 1.0), (None, 41.7), (None, None), (0.0, 3.5)]
)  # of a classifier, or of a network without labels
def test_either_quality_is_kept(model: nn.Module, top1: float | None, rank: float | None) -> None:
    save_network(model, facts(held_out_top1=top1, held_out_rank=rank))
    _, read = load_network("net-1", SPEC)
    assert (read.held_out_top1, read.held_out_rank) == (top1, rank)


def test_a_manifest_from_before_ranks_is_read(stored: Path) -> None:
    path = stored / "manifest.json"
    content = json.loads(path.read_text())
    del content["held_out_rank"]
    path.write_text(json.dumps(content))
    assert load_network("net-1", SPEC)[1].held_out_rank is None


def swap_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def other_weights(path: Path) -> None:
    with seeded(9):
        path.write_bytes(save(dict(build(ARCHITECTURE, SPEC).state_dict())))


@pytest.mark.parametrize(
    ("tamper", "match"),
    [
        (swap_a_bit, "is not the file its manifest names; delete"),
        (other_weights, "is not the file its manifest names; delete"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is not the file its manifest names; delete"),
        (lambda path: path.write_bytes(b""), "is not the file its manifest names; delete"),
        (lambda path: path.unlink(), "holds no sound network .*No such file.*; delete it to have it trained anew"),
    ],
)
def test_rejects_tampered_weights(stored: Path, tamper: Callable[[Path], object], match: str) -> None:
    tamper(stored / "weights.safetensors")
    with pytest.raises(InvalidSetError, match=match):
        load_network("net-1", SPEC)


def edit(stored: Path, **changes: Any) -> None:
    path = stored / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"weights_sha256": "0" * 64}, "is not the file its manifest names"),
        ({"weights_sha256": ""}, "is not the file its manifest names"),
        ({"id": "net-2"}, "is not the file its manifest names"),
        ({"schema_version": 2}, "holds no sound network"),
        ({"held_out_top1": 1.5}, "holds no sound network"),
        ({"held_out_top1": "NaN"}, "holds no sound network"),
        ({"held_out_rank": 0.5}, "holds no sound network"),
        ({"held_out_rank": "many"}, "holds no sound network"),
        ({"seed": None}, "holds no sound network"),
        ({"more": 1}, "holds no sound network"),
        ({"architecture": "convnet1-batch-x0.0625"}, r"holds no sound network \(Error.s. in loading .* size mismatch"),
        ({"architecture": "convnet9"}, "unknown model 'convnet9'"),
    ],
)
def test_rejects_a_tampered_manifest(stored: Path, changes: dict[str, Any], match: str) -> None:
    edit(stored, **changes)
    with pytest.raises(DDBenchError, match=match) as caught:
        load_network("net-1", SPEC)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_rejects_a_manifest_that_is_none(stored: Path, content: bytes) -> None:
    (stored / "manifest.json").write_bytes(content)
    with pytest.raises(InvalidSetError, match="holds no sound network"):
        load_network("net-1", SPEC)


@pytest.mark.usefixtures("stored")
def test_rejects_another_shape_of_data() -> None:
    grey = DatasetSpec("grey", (1, 8, 8), 4, (0.5,), (0.2,), True, SPEC.class_names)
    with pytest.raises(InvalidSetError, match="holds no sound network"):
        load_network("net-1", grey)


def test_unpickling_is_never_tried(stored: Path) -> None:
    """With a true hash the bytes are read; they are still no safetensors."""
    torch.save({"x": torch.ones(1)}, stored / "weights.safetensors")
    edit(stored, weights_sha256=sha256_file(stored / "weights.safetensors"))
    with pytest.raises(InvalidSetError, match=r"holds no sound network \(Error while deserializing"):
        load_network("net-1", SPEC)


@pytest.mark.parametrize(
    "changes",
    [
        {"held_out_top1": 1.01},
        {"held_out_top1": float("nan")},
        {"seconds": -1.0},
        {"what": 1},
        {"held_out_rank": 0.99},
        {"held_out_rank": float("nan")},
        {"held_out_rank": float("inf")},
    ],
)
def test_rejects_impossible_facts(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="NetworkFacts"):
        facts(**changes)


def test_any_seed_can_be_read(model: nn.Module) -> None:
    """Larger ones than torch's generators take come from ``--set teachers.seed=…``, through a hash."""
    save_network(model, facts(seed=2**64))
    assert load_network("net-1", SPEC)[1].seed == 2**64
