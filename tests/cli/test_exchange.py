"""``ddbench export`` and ``ddbench import``: a set travels from one home to another."""

import hashlib
import re
from pathlib import Path

import pytest

from dd_bench.store import Store
from tests.cli.conftest import Command


def test_there_and_back(ddbench: Command, drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = ddbench("export", drawn[:6])
    assert answer.code == 0
    name = f"digits@20+10-random-ipc2-{drawn}.zip"
    size = Path(name).stat().st_size
    digest = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    assert answer.out.splitlines() == [
        f"packed set {drawn}, {size:,} bytes, in {name}",
        f"its sha256: {digest}",
        f"next, where it is wanted: ddbench import {name}",
    ]
    assert ddbench("export", drawn).out.startswith(f"there already: set {drawn}")
    named = ddbench("export", drawn, "--to", "mine.zip")
    assert Path("mine.zip").read_bytes() == Path(name).read_bytes()
    assert named.out.endswith("ddbench import mine.zip\n")

    before = Store().find(drawn).load().payload
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "elsewhere"))
    answer = ddbench("import", name)
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert re.fullmatch(rf"took in set {drawn} \(random, digits@20/10, ipc 2, seed 0\), [\d,]+ bytes, in \S+", lines[0])
    assert lines[-1] == f"next: ddbench show {drawn}, or ddbench eval {drawn}"
    assert Store().find(drawn).load().payload.decode().equal(before.decode())  # type: ignore[union-attr, arg-type]
    assert ddbench("import", name).out == answer.out, "twice is once"
    assert ddbench("eval", drawn, "--runs", "1").code == 0


def test_rejects_in_one_line(ddbench: Command, drawn: str) -> None:
    Path("set.zip").write_bytes(b"no archive")
    for command, told in (
        (("import", "set.zip"), r"set\.zip is no archive of a set \(.*\); have it exported again"),
        (("import", "none.zip"), r"there is no file none\.zip; expected one"),
        (("export", "ffff"), r"unknown set 'ffff'"),
        (("export", drawn, "--to", "set.zip"), r"set\.zip is there already and is not this set; name another"),
    ):
        answer = ddbench(*command)
        assert answer.code == 2
        assert re.fullmatch(rf"ddbench: {told}[^\n]*\n", answer.err), answer.err
