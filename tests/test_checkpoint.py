"""Checkpoints: what goes in comes out to the bit, in the same objects, and nothing else comes in."""

import ast
import contextlib
import json
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dd_bench
from dd_bench.checkpoint import State, load_tree, peek_tree, save_tree
from dd_bench.errors import InvalidSetError
from dd_bench.seeding import generator, seeded


def same(a: Any, b: Any) -> bool:
    """Equal in structure, types and bits; a tuple is as good as a list."""
    if isinstance(a, Tensor):
        if not (isinstance(b, Tensor) and a.dtype == b.dtype and a.shape == b.shape):
            return False
        bits = (t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b))
        return torch.equal(*bits)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(b) is list and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def round_trip(tree: Any, tmp_path: Path) -> Any:
    save_tree(tmp_path / "deep" / "tree.safetensors", tree)
    return load_tree(tmp_path / "deep" / "tree.safetensors")


@pytest.mark.parametrize(
    "tree",
    [
        None, True, 0, -(2**70), 0.1, 5e-324, 1.7976931348623157e308, "", "naïve \0 \n ✓ \ud800", [], (), {}, [[]],
        {"": {}}, (1, (2.0, [None, False])), {0: "int", "0": "str", -1: None}, {"tensor": "0"},
        {"list": [1], "dict": 2}, [{"tensor": {"tensor": [{"list": 0}]}}], OrderedDict(b=1, a=2),
    ],
)  # fmt: skip
def test_round_trip_of_plain_trees(tmp_path: Path, tree: Any) -> None:
    restored = round_trip(tree, tmp_path)
    assert same(dict(tree) if isinstance(tree, OrderedDict) else tree, restored)


def tensors() -> dict[str, Tensor]:
    weird = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-45])
    base = torch.arange(24.0).view(2, 3, 4)
    return {
        "float32": weird,
        "float64": weird.double(),
        "float16": weird.half(),
        "bfloat16": weird.bfloat16(),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(256, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "scalar int": torch.tensor(7),
        "empty": torch.empty(0),
        "empty of a shape": torch.empty(3, 0, 2, dtype=torch.bfloat16),
        "transposed": base.mT,
        "strided": base[:, ::2, 1:],
        "expanded": torch.ones(1, 3).expand(4, 3),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
    }


@pytest.mark.parametrize("name", tensors())
def test_round_trip_of_tensors(tmp_path: Path, name: str) -> None:
    tensor = tensors()[name]
    restored = round_trip(tensor, tmp_path)
    assert same(tensor, restored)
    assert restored.is_contiguous()
    assert not restored.requires_grad
    assert type(restored) is Tensor


def test_tensors_may_share_memory(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    tree = {"whole": base, "part": base[2:4], "view": base.view(2, 3), "again": [base, base]}
    restored = round_trip(tree, tmp_path)
    assert same(tree, restored)
    restored["whole"].zero_()
    assert restored["part"].tolist() == [2, 3]  # apart from now on
    assert base.sum() == 15


def test_a_checkpoint_outlives_its_replacement(tmp_path: Path) -> None:
    """Restored tensors may be views of the file; saving anew must not pull it from under them."""
    path = tmp_path / "x"
    save_tree(path, torch.arange(10_000))
    restored: Any = load_tree(path)
    save_tree(path, torch.zeros(10_000))
    path.unlink()
    assert torch.equal(restored, torch.arange(10_000))
    restored += 1  # and they can be written to


def trained(kind: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    with seeded(1):
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
        model[0].bias.requires_grad_(False)  # a parameter without optimizer state
    parameters = model.parameters()
    optimizer: torch.optim.Optimizer
    match kind:
        case "sgd":
            optimizer = torch.optim.SGD(parameters, lr=0.1)  # momentum buffers that are None
        case "momentum":
            optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
        case "adam":
            optimizer = torch.optim.Adam(parameters, lr=0.1, betas=(0.5, 0.9), amsgrad=True)
        case _:
            optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.3)
    for step in range(3):
        train(model, optimizer, step)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    images = torch.rand(4, 1, 4, 4, generator=generator(step))
    optimizer.zero_grad()
    model(images).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "momentum", "adam", "adamw"])
def test_training_goes_on_to_the_bit(tmp_path: Path, kind: str) -> None:
    model, optimizer = trained(kind)
    with seeded(2):
        other_model, other_optimizer = trained(kind)
        train(other_model, other_optimizer, 17)  # another state, to be replaced
    tree = State(model=model, optimizer=optimizer).state_dict()
    restored = round_trip(tree, tmp_path)
    assert same(tree, restored)
    State(model=other_model, optimizer=other_optimizer).load_state_dict(restored)
    for step in (10, 11, 12):
        train(model, optimizer, step)
        train(other_model, other_optimizer, step)
    assert same(dict(model.state_dict()), dict(other_model.state_dict()))
    assert same(optimizer.state_dict(), round_trip(other_optimizer.state_dict(), tmp_path))


def test_generators_go_on_to_the_bit(tmp_path: Path) -> None:
    draws, other = generator(5), generator(6)
    torch.randn(3, generator=draws)  # an odd number: half of a Box-Muller pair is waiting
    tree = round_trip(State(draws=draws).state_dict(), tmp_path)
    expected = torch.randn(20, generator=draws)
    State(draws=other).load_state_dict(tree)
    assert torch.equal(torch.randn(20, generator=other), expected)


def test_state_fills_the_same_objects() -> None:
    leaf = torch.zeros(3, requires_grad=True)
    model, view = nn.Linear(2, 2), torch.zeros(4)
    weight, alias = model.weight, view[1:3]
    state = State(leaf=leaf, model=model, view=view)
    saved = {"leaf": torch.ones(3), "model": {"weight": torch.full((2, 2), 7.0), "bias": torch.ones(2)},
             "view": torch.arange(4.0)}  # fmt: skip
    state.load_state_dict(saved)
    assert leaf.tolist() == [1, 1, 1]
    assert leaf.is_leaf
    assert leaf.requires_grad
    assert model.weight is weight
    assert weight.tolist() == [[7, 7], [7, 7]]
    assert alias.tolist() == [1, 2]
    saved["view"].zero_()
    assert alias.tolist() == [1, 2]
    assert list(state.state_dict()) == ["leaf", "model", "view"]


class Counter:
    """Not torch's, but with its pair of methods: parts of many kinds, and one of them inside another."""

    def __init__(self) -> None:
        self.ages, self.loaded = [0, 0], 0
        self.network = nn.Linear(2, 1)
        self.inner = State(draws=generator(len(self.ages)), seen=torch.zeros(2))

    def state_dict(self) -> dict[Any, Any]:
        return {"ages": self.ages, "network": {0: self.network.state_dict()}, "inner": self.inner.state_dict()}

    def load_state_dict(self, tree: dict[Any, Any]) -> None:
        self.ages, self.loaded = list(tree["ages"]), self.loaded + 1
        self.network.load_state_dict(tree["network"][0])
        self.inner.load_state_dict(tree["inner"])


def test_any_part_with_a_state_goes_on(tmp_path: Path) -> None:
    """Beside torch's own parts, through a file, with keys that are numbers."""
    one, other = Counter(), Counter()
    leaf, twin = torch.ones(3), torch.zeros(3)
    one.ages[1] = 7
    draws: Any = one.inner.parts["draws"]
    torch.rand(3, generator=draws)
    tree = State(leaf=leaf, counter=one, nested=State(leaf=leaf)).state_dict()
    restored = round_trip(tree, tmp_path)
    assert same(tree, restored)
    State(leaf=twin, counter=other, nested=State(leaf=torch.zeros(3))).load_state_dict(restored)
    assert (other.ages, other.loaded) == ([0, 7], 1)
    assert twin.equal(leaf)
    assert same(dict(one.network.state_dict()), dict(other.network.state_dict()))
    theirs: Any = other.inner.parts["draws"]
    assert torch.rand(5, generator=draws).equal(torch.rand(5, generator=theirs))


def test_a_part_may_refuse_what_is_not_its_state() -> None:
    with pytest.raises(KeyError, match="ages"):
        State(counter=Counter()).load_state_dict({"counter": {}})
    with pytest.raises(ValueError, match="found the parts counter; expected pool"):
        State(pool=Counter()).load_state_dict({"counter": Counter().state_dict()})


@pytest.mark.parametrize(
    ("saved", "match"),
    [
        ({}, "found the parts ; expected tensor"),
        ({"tensor": torch.ones(3), "more": 1}, "found the parts tensor, more; expected tensor"),
        ({"tensor": torch.ones(1)}, r"found tensor as \(1,\) torch.float32; expected \(3,\) torch.float32"),
        ({"tensor": torch.ones(3).long()}, r"found tensor as \(3,\) torch.int64; expected \(3,\) torch.float32"),
    ],
)
def test_rejects_the_state_of_other_parts(saved: dict[Any, Any], match: str) -> None:
    tensor = torch.zeros(3)
    with pytest.raises(ValueError, match=match):
        State(tensor=tensor).load_state_dict(saved)
    assert not tensor.any()


@pytest.mark.parametrize(
    "foreign",
    [
        object(), {1, 2}, b"bytes", 1j, np.int64(3), np.ones(2), Path("x"), nn.Linear(1, 1), len, {"x": [object()]},
        {1.5: 0}, {None: 0}, {(1, 2): 0}, {True: 0},
    ],
)  # fmt: skip
def test_rejects_foreign_objects(tmp_path: Path, foreign: Any) -> None:
    with pytest.raises(TypeError, match="checkpoint"):
        save_tree(tmp_path / "x", foreign)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_rejects_plain_numbers_that_json_lacks(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tree(tmp_path / "x", {"a": [number]})
    assert list(tmp_path.iterdir()) == []


READERS = pytest.mark.parametrize("read", [load_tree, peek_tree])
Reader = Callable[[Path], Any]


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.fixture
def good(tmp_path: Path) -> bytes:
    save_tree(tmp_path / "good", {"a": torch.arange(50.0), "b": [1, "x"]})
    return (tmp_path / "good").read_bytes()


@READERS
@pytest.mark.parametrize("kind", ["empty", "text", "pickle", "torch", "zeros", "huge header"])
def test_rejects_other_files(tmp_path: Path, kind: str, read: Reader) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "torch":
        torch.save({"a": Bomb()}, path)
    else:
        content = {"empty": b"", "text": b"{}", "pickle": pickle.dumps(Bomb()), "zeros": bytes(64),
                   "huge header": (2**62).to_bytes(8, "little") + b"{}"}  # fmt: skip
        path.write_bytes(content[kind])
    with pytest.raises(InvalidSetError, match=r"x\.safetensors is no checkpoint of ddbench .* delete it"):
        read(path)


@READERS
def test_rejects_a_cut_file(tmp_path: Path, good: bytes, read: Reader) -> None:
    path = tmp_path / "cut"
    for length in [*range(0, len(good), 7), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(InvalidSetError, match="cut is no checkpoint"):
            read(path)


def test_rejects_every_forgotten_bit(tmp_path: Path, good: bytes) -> None:
    """Of the tensors and of what stands around them; before there were checksums, tensors could change in silence."""
    path = tmp_path / "bit"
    for at in [*range(8, len(good), 5), len(good) - 1]:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with contextlib.suppress(InvalidSetError):
            assert same(load_tree(path), load_tree(tmp_path / "good")), "a space of the header, perhaps"
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(InvalidSetError, match="its checksum differs"):
        load_tree(path)


def test_files_from_before_checksums_are_read(tmp_path: Path) -> None:
    save_file({"0": torch.ones(2)}, tmp_path / "old", metadata={"tree": '{"tensor": "0"}'})
    assert torch.equal(cast(Tensor, load_tree(tmp_path / "old")), torch.ones(2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.uint8, torch.int64, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_checksums_know_every_tensor(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    save_tree(tmp_path / "x", {"a": tensor})
    loaded = cast(dict[str, Tensor], load_tree(tmp_path / "x"))["a"]
    assert loaded.dtype == dtype
    assert torch.equal(loaded, tensor)


@READERS
def test_rejects_a_longer_file(tmp_path: Path, good: bytes, read: Reader) -> None:
    (tmp_path / "long").write_bytes(good + b"\0")
    with pytest.raises(InvalidSetError, match="long is no checkpoint"):
        read(tmp_path / "long")


@READERS
@pytest.mark.parametrize(
    "skeleton",
    [
        None, "", "{", "[]", "{}", '{"tensor": "9"}', '{"tensor": []}', '{"tensor": "0", "list": []}', '{"list": 3}',
        '{"dict": [["a"]]}', '{"dict": [[[], 1]]}', '{"object": [1]}', '{"dict": 1}', '[{"tensor": "0"}]',
        '{"list": [' * 5000 + "]}" * 5000,
    ],
)  # fmt: skip
def test_rejects_foreign_safetensors(tmp_path: Path, skeleton: str | None, read: Reader) -> None:
    path = tmp_path / "foreign"
    save_file({"0": torch.ones(2)}, path, metadata=None if skeleton is None else {"tree": skeleton})
    with pytest.raises(InvalidSetError, match="foreign is no checkpoint"):
        read(path)


@READERS
def test_what_is_not_there_is_not_damaged(tmp_path: Path, read: Reader) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


def test_a_peek_sees_all_but_the_tensors(tmp_path: Path) -> None:
    tree = {"step": 3, "state": {"x": torch.zeros(1000), "list": [1.5, torch.ones(2), None, "text"]}, 7: True}
    save_tree(tmp_path / "x", tree)
    assert peek_tree(tmp_path / "x") == {"step": 3, "state": {"x": None, "list": [1.5, None, None, "text"]}, 7: True}


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    save_tree(path, 1)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        save_tree(path, 2)
    monkeypatch.undo()
    assert load_tree(path) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_a_checkpoint_is_a_plain_safetensors_file(tmp_path: Path, good: bytes) -> None:
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    assert header["0"] == {"dtype": "F32", "shape": [50], "data_offsets": [0, 200]}
    assert json.loads(header["__metadata__"]["tree"]) == {"dict": [["a", {"tensor": "0"}], ["b", {"list": [1, "x"]}]]}


def test_nothing_unpickles() -> None:
    """Not even torch.load with weights_only: no line of the packages reads what could run."""
    root = Path(dd_bench.__file__).parents[1]
    files = [path for package in ("dd_bench", "synth", "eval") for path in (root / package).rglob("*.py")]
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                names = ["pickle"]
            for name in names:
                assert name.split(".")[0] not in (
                    "pickle",
                    "cPickle",
                    "dill",
                    "cloudpickle",
                    "joblib",
                    "marshal",
                    "shelve",
                )
                assert name not in ("torch.load", "torch.save", "torch.package")
