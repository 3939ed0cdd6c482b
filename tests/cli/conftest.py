"""The command line in this process: a folder of its own, digits at hand, and a protocol of a few steps."""

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dd_bench import interruption
from dd_bench.cli import main
from dd_bench.files import home
from dd_bench.learn.training import TrainingRecipe
from eval.protocol_kinds import EvalProtocol
from eval.protocols import PROTOCOLS

PIXEL = bytes.fromhex(  # the smallest PNG
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738"
    "550000000049454e44ae426082"
)
TINY_NET = "convnet1-batch-x0.05"
TINY_INFER = (
    "synth", "--method", "infer", "--ipc", "2", "--dataset", "digits@20/10",
    "--set", f"teachers.architectures={TINY_NET}", "--set", "teachers.recipe.epochs=1", "--set", "inversion.steps=3",
)  # fmt: skip
TINY_RANDOM = ("synth", "--method", "random", "--ipc", "2", "--dataset", "digits@20/10")


@dataclass(frozen=True)
class Answer:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def fault(self) -> str:
        """The one line of a command that was refused."""
        assert self.code == 2, self
        assert self.out == ""
        assert re.fullmatch(r"ddbench: [^\n]+\n", self.err), self.err
        return self.err.removeprefix("ddbench: ").rstrip("\n")

    @property
    def set_id(self) -> str:
        """The id of the set that ``ddbench synth`` speaks of."""
        found = re.search(r"set ([0-9a-f]{12}),", self.out)
        assert found, self
        return found[1]


Command = Callable[..., Answer]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits_dir: Path) -> Path:
    """An empty current folder, and data that are there."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DDBENCH_DATA", str(digits_dir))
    monkeypatch.delenv("DDBENCH_LEADERBOARDS", raising=False)
    return folder


def tiny_protocols() -> dict[str, EvalProtocol]:
    """Returns ``quick`` in three steps, and ``tiny-dyn``, where teachers label."""
    quick = replace(
        PROTOCOLS["quick"], architectures=(TINY_NET,), recipe=TrainingRecipe(steps=3, batch=8), full_epochs=0
    )
    dyn = replace(quick, name="tiny-dyn", summary="Teachers label.", labels="teachers", temperature=30.0)
    return {protocol.name: protocol for protocol in (quick, dyn)}


@pytest.fixture(autouse=True)
def small_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Students of a few steps, and cards that cost nothing, for one test."""
    for name, protocol in tiny_protocols().items():
        monkeypatch.setitem(PROTOCOLS, name, protocol)
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: PIXEL)


@pytest.fixture
def ddbench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs ``ddbench`` with arguments; a traceback fails the test."""
    monkeypatch.setattr(interruption, "install", lambda: None)  # pytest keeps its own handlers, and its own format
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        code = end.value.code or 0
        assert isinstance(code, int)
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def made(ddbench: Command) -> str:
    """The id of a tiny set of INFER in the store."""
    return ddbench(*TINY_INFER).set_id


@pytest.fixture
def drawn(ddbench: Command) -> str:
    """The id of random real images in the store; they have no controls."""
    return ddbench(*TINY_RANDOM).set_id


@pytest.fixture
def tensors() -> Callable[[str], Path]:
    """From the id of a set in the store to its tensors file."""

    def find(set_id: str) -> Path:
        (path,) = home().glob(f"sets/*/*/*/{set_id}/tensors.safetensors")
        return path

    return find
