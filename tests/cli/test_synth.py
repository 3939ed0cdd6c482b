"""``ddbench synth``: a set, where it lies, and never the same work twice."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dd_bench.codec import payload_bytes
from dd_bench.files import home
from dd_bench.store import Store
from eval.cells import read_records
from tests.cli.conftest import TINY_INFER, TINY_NET, TINY_RANDOM, Command
from tests.references.wandb_file import WandbFile

Tensors = Callable[[str], Path]


def times(folder: Path) -> dict[Path, int]:
    """Returns when each file of sets and teachers was written."""
    files = [path for name in ("sets", "teachers") for path in (folder / name).rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in files}


def test_readme(ddbench: Command) -> None:
    """The first command of the README, cut short: the embedded digits, without a data set being named."""
    answer = ddbench("synth", "--method", "infer", "--ipc", "2", *TINY_INFER[7:])
    stored = Store().find(answer.set_id)
    origin = stored.provenance
    assert (origin.dataset, origin.method, origin.ipc, origin.seed) == ("digits", "infer", 2, 0)
    assert origin.preset == f"digits; inversion.steps=3, teachers.architectures={TINY_NET}, teachers.recipe.epochs=1"
    assert stored.manifest.images == 20  # K = floor(2 / (1 + 1/10)) = 1 base image a class, and its sum with an offset
    made, picture, following = answer.out.splitlines()
    place = os.path.relpath(stored.path)
    assert made == f"made set {stored.id}, {stored.size_bytes:,} bytes, in {place}"
    assert picture == f"its picture: {place}/card.png"
    assert following == f"next: ddbench eval {stored.id}, or ddbench eval for all that is not judged yet"
    assert not list(home().glob("runs/*")), "a finished run is tidied away"


def test_the_same_command_twice_is_a_no_op(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ddbench(*TINY_INFER)
    before = times(home())

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("worked again")

    monkeypatch.setattr("synth.infer.Infer.synthesize", work)
    again = ddbench(*TINY_INFER[:7], *TINY_INFER[9:], *TINY_INFER[7:9])  # settings in another order
    assert again.code == 0
    assert again.set_id == first.set_id
    assert again.out == first.out.replace("made set", "already there: set")
    assert times(home()) == before


def test_the_seed_and_every_setting_make_another_set(ddbench: Command) -> None:
    commands = [TINY_RANDOM, (*TINY_RANDOM, "--seed", "1"), (*TINY_RANDOM, "--ipc", "3"),
                (*TINY_RANDOM, "--set", "temperature=4"), (*TINY_RANDOM, "--dataset", "digits@21/10")]  # fmt: skip
    assert len({ddbench(*command).set_id for command in commands}) == len(commands)


def test_what_is_asked_for_twice_in_other_words_is_one_set(ddbench: Command) -> None:
    ids = {
        ddbench(*command).set_id
        for command in (
            TINY_RANDOM,
            (*TINY_RANDOM, "--preset", "digits-hard", "--device", "cpu"),
            (*TINY_RANDOM, "--set", "temperature=30", "--set", " protocol = quick "),
            (*TINY_RANDOM, "--dataset", "digits@020/010"),
        )
    }
    assert len(ids) == 1


def test_teachers_are_shared(ddbench: Command) -> None:
    ddbench(*TINY_INFER)
    before = {path: moment for path, moment in times(home()).items() if "teachers" in path.parts}
    ddbench(*TINY_INFER, "--seed", "1")
    after = {path: moment for path, moment in times(home()).items() if "teachers" in path.parts}
    assert len(before) == 2
    assert after == before


def test_the_home_may_lie_elsewhere(
    ddbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, surroundings: Path
) -> None:
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "elsewhere"))
    assert "in ../elsewhere/sets/" in ddbench(*TINY_RANDOM).out
    monkeypatch.delenv("DDBENCH_HOME")
    assert "in artifacts/sets/" in ddbench(*TINY_RANDOM).out
    assert (surroundings / "artifacts" / "sets").is_dir()


def test_a_stale_lock_stops_nobody(ddbench: Command, tensors: Tensors) -> None:
    """Lock files stay behind when a process dies; what counts is who holds them."""
    set_id = ddbench(*TINY_RANDOM).set_id
    assert list(home().glob("locks/*.lock"))
    path = tensors(set_id).parent
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    assert ddbench(*TINY_RANDOM).set_id == set_id


# --- graphs ----------------------------------------------------------------------------------------------------------

TINY_MIRAGE = ("synth", "--method", "mirage", "--dataset", "motifs", "--set", "hops=1")


@pytest.fixture
def motifs_here(motifs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_DATA", str(motifs_dir))


@pytest.mark.parametrize("method", ["mirage", "mirage-random"])
def test_methods_for_graphs_have_graphs_by_default(ddbench: Command, method: str) -> None:
    answer = ddbench("synth", "--method", method, "--ipc", "1")
    stored = Store().find(answer.set_id)
    assert stored.provenance.dataset == "digits-graph"
    assert f"sets/digits-graph/{method}/ipc1/" in answer.out
    assert set(stored.load().targets.classes.tolist()) == set(range(10))


@pytest.mark.usefixtures("motifs_here")
@pytest.mark.parametrize("method", ["mirage", "mirage-random"])
def test_size_in_bytes(ddbench: Command, method: str) -> None:
    command = ("synth", "--method", method, "--dataset", "motifs", "--set", "hops=1", "--bytes", "400")
    answer = ddbench(*command)
    stored = Store().find(answer.set_id)
    assert stored.provenance.preset == "exact; budget=400, hops=1"
    assert stored.provenance.config["budget"] == 400
    assert stored.provenance.ipc == 5, "an average graph of each class takes 79 bytes"
    assert "sets/motifs/" in answer.out
    assert 300 < payload_bytes(stored.load().payload) <= 400
    assert ddbench(*command).out.startswith(f"already there: set {stored.id}")
    assert ddbench(*command[:-2], "--ipc", "5", "--set", "budget=400").set_id == stored.id
    assert ddbench(*command[:-2], "--ipc", "5").set_id != stored.id


@pytest.mark.usefixtures("motifs_here")
@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ((*TINY_MIRAGE,), "how large shall the set be? Give either --ipc or --bytes. See ddbench synth --help"),
        ((*TINY_MIRAGE, "--ipc", "1", "--bytes", "9"), "how large shall the set be? Give either --ipc or --bytes."),
        ((*TINY_MIRAGE, "--bytes", "0"), "Invalid value for '--bytes': 0 is not in the range x>=1."),
        (
            ("synth", "--method", "mtt", "--bytes", "500"),
            "method mtt has no byte budget; give the size of its set with --ipc",
        ),
        (
            ("synth", "--method", "infer", "--bytes", "500"),
            "method infer has no byte budget; give the size of its set with --ipc",
        ),
        (
            ("synth", "--method", "herding", "--bytes", "500", "--dataset", "motifs"),
            "method herding has no byte budget; give the size of its set with --ipc",
        ),
        (
            (*TINY_MIRAGE, "--bytes", "500", "--dataset", "digits"),
            "digits holds images, whose methods have no byte budget; give the size with --ipc",
        ),
        (
            (*TINY_MIRAGE, "--ipc", "1", "--dataset", "digits"),
            "data set digits holds images, but this method distils graphs; name a graph data set, for example "
            "--dataset digits-graph (ddbench list datasets)",
        ),
        (
            ("synth", "--method", "infer", "--ipc", "10", "--dataset", "motifs"),
            "data set motifs holds graphs, but this method distils images; for graphs there are mirage, herding and ",
        ),
        (
            (*TINY_MIRAGE, "--ipc", "1", "--set", "theta=3,3"),
            "theta holds 2 thresholds, but motifs has 3 classes; expected one for each, separated by commas",
        ),
        ((*TINY_MIRAGE, "--ipc", "1", "--set", "theta=99,3,3"), "theta 99 leaves class 0 (star) without tree sets: "),
    ],
)
def test_refusals_about_graphs(ddbench: Command, command: tuple[str, ...], fault: str) -> None:
    assert ddbench(*command).fault.startswith(fault)
    assert not list(home().glob("sets/*"))


@pytest.fixture
def undetermined() -> Iterator[None]:
    """What ``--deterministic`` sets is a process's own; this one goes on."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


@pytest.mark.usefixtures("undetermined")
def test_deterministic(ddbench: Command, tensors: Tensors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same set, which says how it was made; on a CPU of the same bytes as without."""
    plain = ddbench(*TINY_INFER)
    before = tensors(plain.set_id).read_bytes()
    monkeypatch.setenv("DDBENCH_HOME", str(home() / "again"))
    answer = ddbench(*TINY_INFER, "--deterministic")
    assert answer.set_id == plain.set_id
    assert tensors(answer.set_id).read_bytes() == before
    assert Store().find(answer.set_id).provenance.device.endswith(", deterministic")
    assert ddbench("eval", "--runs", "1", "--deterministic").code == 0
    (record, *_) = [record for _, record in read_records(Path("leaderboards/results")) if record.set.method == "infer"]
    assert record.students[0].device.endswith(", deterministic")


@pytest.mark.usefixtures("undetermined")
def test_what_cannot_be_deterministic_is_told(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(*_: object) -> None:
        torch.empty(2).put_(torch.tensor([1]), torch.ones(1))

    monkeypatch.setattr("synth.coreset.sample_per_class", put)
    answer = ddbench(*TINY_RANDOM, "--deterministic")
    assert answer.code == 2
    assert answer.fault == ("put_ has no deterministic form on this device; repeat the command without --deterministic")


class FakeWandb:
    """As much of wandb as a run needs; ``failing`` names the call that fails."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.summary = failing, self
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def _call(self, name: str, /, *values: Any, **named: Any) -> Any:
        self.calls.append((name, values, named))
        if name == self.failing:
            raise ConnectionError("no route to host")
        return self

    def logged(self, quantity: str) -> int:
        """Returns how often a quantity was logged."""
        return sum(name == "log" and quantity in values[0] for name, values, _ in self.calls)

    def __getattr__(self, name: str) -> Any:
        return lambda *values, **named: self._call(name, *values, **named)


@pytest.mark.parametrize("failing", ["", "init", "log", "finish"])
def test_wandb_is_only_a_mirror(
    ddbench: Command, monkeypatch: pytest.MonkeyPatch, tensors: Tensors, failing: str
) -> None:
    plain = ddbench(*TINY_INFER)
    bytes_without = tensors(plain.set_id).read_bytes()
    monkeypatch.setenv("DDBENCH_HOME", str(home() / "mirrored"))
    fake = FakeWandb(failing)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if failing:
        with pytest.warns(UserWarning, match=r"wandb failed \(no route to host\); the run goes on without it"):
            answer = ddbench(*TINY_INFER, "--wandb", "offline")
    else:
        answer = ddbench(*TINY_INFER, "--wandb", "offline")
    assert answer.code == 0
    assert tensors(answer.set_id).read_bytes() == bytes_without
    names = [name for name, _, _ in fake.calls]
    assert names[:2] == ["Settings", "init"]
    if not failing:
        (_, _, options) = fake.calls[1]
        assert options["mode"] == "offline"
        assert options["config"]["settings"]["inversion"]["steps"] == 3
        assert {"Image", "update", "finish"} <= set(names)
        assert fake.logged(f"offsets {TINY_NET} 1-1 of 1/ce".replace(".", "_")) == 3


def test_wandb_offline(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one, which needs neither an account nor a network."""
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    answer = ddbench(*TINY_RANDOM, "--wandb", "offline")
    assert answer.code == 0
    (written,) = home().glob("wandb/wandb/offline-run-*/*.wandb")
    run, stored = WandbFile.finished(written), Store().find(answer.set_id)
    assert run.about == {
        "name": "synth random digits@20/10 ipc2 seed0", "project": "ddbench", "group": stored.id, "job": "synth"
    }  # fmt: skip
    origin = stored.provenance
    assert run.config["settings"] == json.loads(json.dumps(dict(origin.config)))
    for name in ("method", "preset", "dataset", "fingerprint", "ipc", "seed"):
        assert run.config[name] == getattr(origin, name)
    assert (run.summary["set"], run.summary["bytes"]) == (stored.id, stored.size_bytes)
    (card,) = written.parent.rglob("files/media/images/card*.png")
    assert card.read_bytes() == (stored.path / "card.png").read_bytes()
