"""``ddbench doctor``: all is well, or exactly what is not."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.specs import SPECS
from dd_bench.files import home
from tests.cli.conftest import Command


def test_a_fresh_checkout_is_well(ddbench: Command, digits_dir: Path) -> None:
    answer = ddbench("doctor")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert re.match(r"versions  ddbench \S+, python 3\.\d+\.\d+, torch ", lines[0])
    assert re.fullmatch(r"device    cpu \([^()]+.*\), \d+ CPU threads", lines[1])
    assert re.fullmatch(r"data      digits: \S+digits/data\.safetensors", lines[2])
    assert "data      cifar10: not here yet; prepared when first used" in lines
    assert [line.split()[1].rstrip(":") for line in lines if line.startswith("data ")] == [*SPECS, *GRAPH_SPECS]
    assert re.fullmatch(r"home      \S+, [\d.]+ [MGT]B free", lines[-4])
    assert lines[-3:] == ["sets      0 sound (every byte verified), 0 damaged", "boards    leaderboards", "all is well"]
    assert not home().exists(), "looking changes nothing"


def test_sound_sets_and_boards(ddbench: Command, drawn: str) -> None:
    ddbench("eval", "--runs", "1")
    answer = ddbench("doctor")
    assert answer.code == 0
    assert "sets      1 sound" in answer.out


def test_every_problem_is_told(ddbench: Command, drawn: str, tensors: Callable[[str], Path]) -> None:
    ddbench("eval", "--runs", "1")
    content = bytearray(tensors(drawn).read_bytes())
    content[-1] ^= 1
    tensors(drawn).write_bytes(content)
    page = Path("leaderboards/digits@20+10.md")
    page.write_text(page.read_text() + "and I won\n")
    answer = ddbench("doctor")
    assert answer.code == 1
    assert "sets      0 sound (every byte verified), 1 damaged" in answer.out
    assert "all is well" not in answer.out
    damaged, edited = answer.err.splitlines()
    assert re.match(rf"PROBLEM   set \S*{drawn}: tensors\.safetensors has sha256 ", damaged)
    assert edited.startswith(f"PROBLEM   {page} differs from its records at line ")


def test_a_damaged_record(ddbench: Command, drawn: str) -> None:
    ddbench("eval", "--runs", "1")
    (record,) = Path("leaderboards").rglob("*.json")
    record.write_text("")
    answer = ddbench("doctor")
    assert answer.code == 1
    assert answer.err.startswith(f"PROBLEM   {record} is no record of schema 1")


def test_a_file_where_folders_should_be(ddbench: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch(mode=0o755)  # whoever may write and execute it, it is no folder
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "file" / "home"))
    answer = ddbench("doctor")
    assert answer.code == 1
    assert re.fullmatch(r"PROBLEM   \S+file/home is no folder that can be written\n", answer.err)


def test_damaged_graphs_are_a_problem(ddbench: Command, tmp_path: Path) -> None:
    place = tmp_path / "data" / "mutag" / "data.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"bad")
    answer = ddbench("doctor", "--data-dir", str(tmp_path / "data"))
    assert answer.code == 1
    assert answer.err.startswith(f"PROBLEM   {place} cannot be read")


def test_damaged_data_and_a_full_disk_are_problems(
    ddbench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data" / "cifar10" / "data.safetensors"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"bad")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    answer = ddbench("doctor", "--data-dir", str(tmp_path / "data"))
    assert answer.code == 1
    assert str(place) in answer.err
    assert "has 1.00 kB left" in answer.err
