"""The watchdog bites: each thing that a reader must not do fails the test that sees it."""

import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dd_bench.errors import DDBenchError
from tests.fuzz import watching
from tests.fuzz.watching import attempt


class Payload:
    def __reduce__(self) -> tuple[type, tuple[()]]:
        return dict, ()


def refuse(message: str) -> None:
    raise DDBenchError(message)


def connect() -> None:
    with suppress(OSError), socket.socket() as plug:
        plug.settimeout(0.01)
        plug.connect(("127.0.0.1", 9))


OFFENCES: dict[str, Callable[[Path], object]] = {
    "writing outside": lambda folder: (folder / "outside").write_text("x"),
    "upwards": lambda folder: (folder / "inside" / ".." / "outside").write_text("x"),
    "removing": lambda folder: (folder / "there").unlink(),
    "renaming": lambda folder: (folder / "there").rename(folder / "inside" / "here"),
    "a folder": lambda folder: (folder / "new").mkdir(),
    "a link": lambda folder: (folder / "link").symlink_to("x"),
    "unpickling": lambda _: pickle.loads(pickle.dumps(Payload())),
    "connecting": lambda _: connect(),
    "a process": lambda _: subprocess.run(["true"], check=False),
    "no word": lambda _: refuse(""),
}


@pytest.mark.parametrize("offence", OFFENCES)
def test_offences(offence: str, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "there").touch()
    with pytest.raises(AssertionError):
        attempt(lambda: OFFENCES[offence](tmp_path), within=tmp_path / "inside")


def test_what_is_allowed(tmp_path: Path) -> None:
    before = watching.inputs
    (tmp_path / "outside").write_text("x")

    def work() -> str:
        (tmp_path / "inside").mkdir()
        (tmp_path / "inside" / "file").write_text("y")
        (tmp_path / "inside" / "file").rename(tmp_path / "inside" / "other")
        return (tmp_path / "outside").read_text()

    assert attempt(work, within=tmp_path / "inside") == "x"
    assert attempt(lambda: refuse("found x; expected y"), within=tmp_path) is None
    assert watching.inputs == before + 2


def test_other_errors_are_bugs(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        attempt(lambda: {}["x"], within=tmp_path)  # type: ignore[index]


def test_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spin() -> None:
        while True:
            pass

    monkeypatch.setattr(watching, "_SECONDS", 0.05)
    with pytest.raises(AssertionError, match=r"nothing came of it in 0\.05 seconds"):
        attempt(spin, within=tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_hunger(tmp_path: Path) -> None:
    with pytest.raises((MemoryError, RuntimeError)):
        attempt(lambda: torch.empty(2 << 30, dtype=torch.uint8), within=tmp_path)
