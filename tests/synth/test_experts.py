"""Experts on disk: trained once, by whoever comes first, read row by row, and known by all that shapes them."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dd_bench.errors import ConfigError, InvalidSetError, UnknownNameError
from dd_bench.files import locked
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import seeded
from synth.base import Task
from synth.parts import experts as module
from synth.parts.encoded import EncodedImages, encode_images
from synth.parts.expert_training import ExpertRecipe, train_expert
from synth.parts.experts import ExpertPlan, Experts, obtain_experts
from tests.conftest import Interrupt, at

PLAN = ExpertPlan("convnet1-x0.0625", ExpertRecipe(epochs=4, keep=2, batch=54, lr=0.05), count=3)

Folders = Callable[..., Path]


@pytest.fixture
def encoded(task: Task) -> EncodedImages:
    return encode_images(task.images, whiten=False, device=task.device)


@pytest.fixture
def folder_of(monkeypatch: pytest.MonkeyPatch, encoded: EncodedImages) -> Folders:
    """Returns the folder in which a plan's experts would be, without training any."""

    def find(plan: ExpertPlan, task: Task) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_train", lambda *_: None)
            patch.setattr(module, "Experts", lambda paths, *_: paths)
            paths: Any = obtain_experts(plan, task, encoded)
        assert [path.name for path in paths] == [f"expert{index:03d}.safetensors" for index in range(plan.count)]
        return paths[0].parent  # type: ignore[no-any-return]

    return find


def files(home: Path) -> list[Path]:
    return sorted((home / "experts").glob("*/*"))


def marks(home: Path) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in files(home)]


def contents(home: Path) -> list[dict[str, bytes]]:
    return [{name: value.numpy().tobytes() for name, value in load_file(path).items()} for path in files(home)]


def facts(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["expert"])  # type: ignore[no-any-return]


# --- what they are ---------------------------------------------------------------------------------------------------


def test_a_file_holds_what_the_training_gave(
    task: Task, encoded: EncodedImages, own_home: Path, tmp_path: Path
) -> None:
    experts = obtain_experts(PLAN, task, encoded)
    paths = files(own_home)
    assert [path.name for path in paths] == ["expert000.safetensors", "expert001.safetensors", "expert002.safetensors"]
    assert len({path.parent for path in paths}) == 1
    for index, path in enumerate(paths):
        network, seed = module._fresh_network(PLAN, encoded, index, task.device)
        run = Run(tmp_path / f"again{index}")
        checkpoints, moves = train_expert(network, PLAN.recipe, encoded, seed=seed, run=run, label="again")
        found = load_file(path)
        assert found["checkpoints"].equal(checkpoints)
        assert found["checkpoints"].dtype == torch.float32
        assert found["moves"].equal(moves)
        assert experts.moves[index].equal(moves)
        told = facts(path)
        assert (told["index"], told["plan"]) == (index, asdict(PLAN))
        assert told["seconds"] > 0
        assert told["device"].startswith("cpu (")
    assert experts.count == 3
    assert experts.moves.shape == (3, 4)
    assert experts.seconds == pytest.approx(sum(facts(path)["seconds"] for path in paths))
    assert list((own_home / "runs").iterdir()) == []  # what only the training needed is gone
    assert len(list((own_home / "reports").iterdir())) == 3


def test_rows_are_epochs(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    """Of four epochs two were kept, and the last."""
    experts = obtain_experts(PLAN, task, encoded)
    for index, path in enumerate(files(own_home)):
        checkpoints = load_file(path)["checkpoints"]
        assert len({row.numpy().tobytes() for row in checkpoints}) == len(checkpoints) == 4
        assert experts.segment(index, 0, 2).equal(checkpoints[0:3])
        assert experts.segment(index, 1, 1).equal(checkpoints[1:3])
        assert experts.segment(index, 0, 1).equal(checkpoints[0:2])
        assert experts.last(index).equal(checkpoints[3])


def test_the_network_is_their_function(task: Task, encoded: EncodedImages) -> None:
    """A network that takes encoded images as they are: a second normaliser would be none of MTT's."""
    experts = obtain_experts(PLAN, task, encoded)
    model = build("convnet1-x0.0625", replace(encoded.spec, mean=(0.0,), std=(1.0,)))
    torch.nn.utils.vector_to_parameters(experts.last(1), model.parameters())
    logits = experts.network(experts.last(1), encoded.images[:5])
    torch.testing.assert_close(logits, model(encoded.images[:5]).detach())
    hits = experts.network(experts.last(1), encoded.images).argmax(1) == encoded.labels
    start = experts.network(experts.segment(1, 0, 1)[0], encoded.images).argmax(1) == encoded.labels
    assert hits.sum() > start.sum()


def test_two_experts_start_apart(task: Task, encoded: EncodedImages) -> None:
    experts = obtain_experts(PLAN, task, encoded)
    starts = [experts.segment(index, 0, 1)[0] for index in range(3)]
    assert not any(starts[one].equal(starts[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    assert len({float(moves[0]) for moves in experts.moves}) == 3  # they also see their images in orders of their own


def test_global_draws_are_left_alone(task: Task, encoded: EncodedImages) -> None:
    with seeded(4):
        before = torch.random.get_rng_state()
        obtain_experts(replace(PLAN, count=1), task, encoded)
        assert torch.random.get_rng_state().equal(before)


# --- the cache -------------------------------------------------------------------------------------------------------


def test_trained_once(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    first = obtain_experts(PLAN, task, encoded)
    before = marks(own_home)
    second = obtain_experts(PLAN, replace(task, ipc=9, seed=3), encoded)  # of every ipc and every seed of synthesis
    assert marks(own_home) == before
    assert second.moves.equal(first.moves)
    assert second.seconds == first.seconds
    for index in range(3):
        assert second.segment(index, 0, 2).equal(first.segment(index, 0, 2))
        assert second.last(index).equal(first.last(index))


def test_more_experts_keep_the_first(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    obtain_experts(replace(PLAN, count=2), task, encoded)
    before = marks(own_home)
    assert obtain_experts(PLAN, task, encoded).count == 3
    assert marks(own_home)[:2] == before
    assert len(marks(own_home)) == 3
    assert obtain_experts(replace(PLAN, count=1), task, encoded).count == 1


def test_the_same_again_elsewhere(
    task: Task, encoded: EncodedImages, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    obtain_experts(PLAN, task, encoded)
    elsewhere = own_home.with_name("elsewhere")
    monkeypatch.setenv("DDBENCH_HOME", str(elsewhere))
    obtain_experts(PLAN, task, encoded)
    assert contents(elsewhere) == contents(own_home)
    assert [path.relative_to(elsewhere) for path in files(elsewhere)] == [
        path.relative_to(own_home) for path in files(own_home)
    ]


OTHER: dict[str, Any] = {
    "epochs": 5, "keep": 3, "batch": 55, "lr": 0.051, "momentum": 0.8, "weight_decay": 4e-4, "drop": 0.9, "ramp": 3,
    "penalty": 0.1, "penalty_norm": "sample",
}  # fmt: skip


@pytest.mark.parametrize("field", [field.name for field in fields(ExpertRecipe)])
def test_every_field_of_the_recipe_makes_others(task: Task, folder_of: Folders, field: str) -> None:
    changed = replace(PLAN, recipe=replace(PLAN.recipe, **{field: OTHER[field]}))
    assert folder_of(changed, task) != folder_of(PLAN, task)


def test_all_else_that_shapes_them_makes_others(
    task: Task, folder_of: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = task.images
    found = [
        folder_of(plan, task_)
        for plan, task_ in (
            (PLAN, task),
            (replace(PLAN, seed=1), task),
            (replace(PLAN, whiten=True), task),
            (replace(PLAN, architecture="convnet1-x0.125"), task),
            (PLAN, replace(task, data=replace(data, fingerprint="0" + data.fingerprint[1:]))),
            (PLAN, replace(task, data=replace(data, spec=replace(data.spec, name="blobs@40")))),
        )
    ]
    monkeypatch.setattr(module, "_VERSION", 2)
    found.append(folder_of(PLAN, task))
    assert len(set(found)) == len(found) == 7
    assert all(folder.name.startswith("convnet1-x0.") for folder in found)


def test_nothing_else_makes_others(task: Task, folder_of: Folders) -> None:
    assert folder_of(PLAN, replace(task, ipc=1, seed=9)) == folder_of(PLAN, task)
    assert folder_of(replace(PLAN, count=7), task) == folder_of(PLAN, task)
    assert folder_of(replace(PLAN, architecture="convnet1-x0.06250"), task) == folder_of(PLAN, task)


def test_plans_of_another_seed_start_elsewhere(task: Task, encoded: EncodedImages) -> None:
    plan = replace(PLAN, count=1)
    one, other = (obtain_experts(replace(plan, seed=seed), task, encoded) for seed in (0, 1))
    assert not one.segment(0, 0, 1)[0].equal(other.segment(0, 0, 1)[0])


def test_rejects_plans(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    with pytest.raises(ConfigError, match="count of experts is 0; expected at least 1"):
        replace(PLAN, count=0)
    with pytest.raises(UnknownNameError, match="convnet33"):
        replace(PLAN, architecture="convnet33")
    with pytest.raises(ConfigError, match="BatchNorm2d in training mode"):
        obtain_experts(replace(PLAN, architecture="convnet1-batch-x0.0625"), task, encoded)
    assert files(own_home) == []


# --- interruptions and others at work --------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 4, 11])
def test_what_is_finished_stays_and_the_rest_goes_on(
    task: Task,
    encoded: EncodedImages,
    own_home: Path,
    interrupted: Interrupt,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    obtain_experts(PLAN, task, encoded)
    straight = contents(own_home)
    home = own_home.with_name("killed")
    monkeypatch.setenv("DDBENCH_HOME", str(home))
    with interrupted(at("expert 3 of 3", step)):
        obtain_experts(PLAN, task, encoded)
    before = marks(home)
    assert len(before) == 2
    assert len(list((home / "runs").iterdir())) == 1
    trained: list[int] = []
    steps = Run.steps

    def watched(self: Run, label: str, total: int, state: Any) -> Any:
        for number in steps(self, label, total, state):
            trained.append(number)
            yield number

    monkeypatch.setattr(Run, "steps", watched)
    obtain_experts(PLAN, task, encoded)
    assert trained == list(range(step + 1, 12))  # three batches an epoch, and none of them twice
    assert marks(home)[:2] == before[:2]
    assert contents(home) == straight


def test_an_expert_in_other_hands_is_left_for_the_end(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    obtain_experts(PLAN, task, encoded)
    paths, before = files(own_home), contents(own_home)
    digest, saved = facts(paths[0])["recipe"], paths[0].read_bytes()
    for path in (paths[0], paths[2]):
        path.unlink()
    found: list[Experts] = []
    thread = threading.Thread(target=lambda: found.append(obtain_experts(PLAN, task, encoded)))
    with locked(f"expert {digest} 0", wait_seconds=0):
        thread.start()
        for _ in range(1000):
            if paths[2].exists():
                break
            thread.join(0.01)
        assert paths[2].exists()  # not held up by what comes before it
        thread.join(0.3)
        assert thread.is_alive()  # and now it waits
        assert not paths[0].exists()
        assert not found
        paths[0].write_bytes(saved)  # the others are done
        mark = marks(own_home)[0]
    thread.join(30)
    assert not thread.is_alive()
    assert found[0].count == 3
    assert marks(own_home)[0] == mark  # their work is taken as it is
    assert contents(own_home) == before


def test_an_expert_that_others_gave_up_is_trained(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    plan = replace(PLAN, count=1)
    obtain_experts(plan, task, encoded)
    (path,), before = files(own_home), contents(own_home)
    digest = facts(path)["recipe"]
    path.unlink()
    found: list[Experts] = []
    thread = threading.Thread(target=lambda: found.append(obtain_experts(plan, task, encoded)))
    with locked(f"expert {digest} 0", wait_seconds=0):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(30)
    assert found[0].count == 1
    assert contents(own_home) == before


# --- rejections ------------------------------------------------------------------------------------------------------


def damaged(kind: str, paths: list[Path], other: Path) -> None:
    """Puts something into the second expert's place."""
    path, content = paths[1], paths[1].read_bytes()
    tensors, expert = load_file(path), facts(path)
    if kind == "another index":
        path.write_bytes(paths[0].read_bytes())
    elif kind == "another recipe":
        path.write_bytes(other.read_bytes())
    elif kind == "another network":
        save_file(
            tensors | {"checkpoints": tensors["checkpoints"][:, 1:].clone()}, path, {"expert": json.dumps(expert)}
        )
    elif kind == "too few checkpoints":
        save_file(tensors | {"checkpoints": tensors["checkpoints"][1:].clone()}, path, {"expert": json.dumps(expert)})
    elif kind == "cut":
        path.write_bytes(content[:-100])
    elif kind == "cut in the header":
        path.write_bytes(content[:20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("hello, this is no expert at all")
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
    elif kind == "no facts":
        save_file(tensors, path)
    elif kind == "facts of something else":
        save_file(tensors, path, {"teacher": "{}"})
    elif kind == "facts that are none":
        save_file(tensors, path, {"expert": "{"})
    elif kind == "a list of facts":
        save_file(tensors, path, {"expert": "[]"})
    elif kind == "no moves":
        save_file({"checkpoints": tensors["checkpoints"]}, path, {"expert": json.dumps(expert)})
    elif kind == "moves of another length":
        save_file(tensors | {"moves": torch.zeros(1)}, path, {"expert": json.dumps(expert)})
    elif kind == "seconds that are none":
        save_file(tensors, path, {"expert": json.dumps(expert | {"seconds": None})})
    else:
        save_file({"moves": tensors["moves"]}, path, {"expert": json.dumps(expert)})


HOLDS = (
    r"expert001\.safetensors holds the expert \(recipe, index, shapes\) .*; expected .*: delete it to have it trained"
)
NONE = r"expert001\.safetensors is no expert \(.*\); delete it to have it trained anew"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("another index", HOLDS), ("another recipe", HOLDS), ("another network", HOLDS), ("too few checkpoints", HOLDS),
        ("moves of another length", HOLDS),
        ("cut", NONE), ("cut in the header", NONE), ("empty", NONE), ("text", NONE), ("a folder", NONE),
        ("no facts", NONE), ("facts of something else", NONE), ("facts that are none", NONE), ("a list of facts", NONE),
        ("no moves", NONE), ("seconds that are none", NONE), ("no checkpoints", NONE),
    ],
)  # fmt: skip
def test_rejects_what_is_not_the_expert(
    task: Task, encoded: EncodedImages, own_home: Path, kind: str, message: str
) -> None:
    obtain_experts(replace(PLAN, count=2, seed=1), task, encoded)
    others = files(own_home)
    obtain_experts(replace(PLAN, count=2), task, encoded)
    mine = [path for path in files(own_home) if path not in others]
    damaged(kind, mine, others[1])
    with pytest.raises(InvalidSetError, match=message):
        obtain_experts(replace(PLAN, count=2), task, encoded)


def test_a_deleted_expert_is_trained_anew(task: Task, encoded: EncodedImages, own_home: Path) -> None:
    obtain_experts(PLAN, task, encoded)
    before = contents(own_home)
    files(own_home)[1].unlink()
    obtain_experts(PLAN, task, encoded)
    assert contents(own_home) == before


# --- the space they live in ------------------------------------------------------------------------------------------


def restored(encoded: EncodedImages) -> Tensor:
    pixels: Tensor = encoded.layer.restore(encoded.images)
    return pixels


@pytest.mark.parametrize("whiten", [False, True])
def test_encoded_images_lead_back_to_pixels(task: Task, whiten: bool) -> None:
    encoded = encode_images(task.images, whiten=whiten, device=task.device)
    pixels = task.images.images.float() / 255
    torch.testing.assert_close(restored(encoded), pixels, rtol=0, atol=1e-5)
    assert encoded.images.dtype == torch.float32
    assert not encoded.images.requires_grad
    assert encoded.labels.equal(task.images.labels)
    assert (encoded.spec.mean, encoded.spec.std, encoded.spec.name) == ((0.0,), (1.0,), "blobs")
    if not whiten:
        torch.testing.assert_close(encoded.images, (pixels - 0.25) / 0.22)
    else:
        values = encoded.images.flatten(1).double()
        assert values.mean(0).abs().max() < 1e-5
        spectrum = torch.linalg.eigvalsh(pixels.flatten(1).double().T.cov())
        expected = spectrum.clamp_min(0) / (spectrum.clamp_min(0) + 0.1)
        torch.testing.assert_close(torch.linalg.eigvalsh(values.T.cov()), expected, rtol=1e-3, atol=1e-5)
