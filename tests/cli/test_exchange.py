"""``ddbench export``, ``import`` and ``adopt``: a set travels from one home to another, or comes from other code."""

import hashlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dd_bench.seeding import generator
from dd_bench.sets import ELSEWHERE
from dd_bench.store import Store
from dd_bench.stored import StoredSet
from tests.cli.conftest import Command
from tests.eval.boards import line


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


def test_images_from_elsewhere_stand_beside_random_ones(ddbench: Command) -> None:
    for seed in range(3):
        draws = generator(seed)
        images = torch.rand(20, 1, 8, 8, generator=draws)
        save_file({"images": images, "labels": torch.arange(20) % 10}, "mine.safetensors")
        answer = ddbench(
            "adopt", "mine.safetensors", "--name", "mine", "--dataset", "digits@20/10", "--seed", str(seed)
        )
        assert answer.code == 0, answer.err
    stored = Store().list()[-1].path
    lines = answer.out.splitlines()
    assert re.fullmatch(r"took in set \w{12} \(20 images, ipc 2, seed 2\), [\d,]+ bytes, in \S+", lines[0])
    assert lines[1].endswith("/card.png; are the colours right?")
    assert lines[2].endswith(", under quick, or with --protocol under another")
    assert "cost" in ddbench("show", stored.name).out
    assert "not known: made elsewhere" in ddbench("show", stored.name).out

    assert ddbench("eval", "--runs", "1").code == 0
    page = Path("leaderboards/digits@20+10.md").read_text()
    row = line(page, "**mine** · made elsewhere")
    assert "| 3 sets × 1 |" in row
    assert "| not known |" in row
    assert re.search(r"\| (better|tie|worse), [+-]?\d", row), "it stands beside its control"
    assert "Made elsewhere and taken in as images: **mine** · made elsewhere. Which data they were made from" in page
    assert "Seconds: synthesis on cpu" in page
    assert ELSEWHERE not in page.split("Seconds:")[1].splitlines()[0]
    assert ddbench("doctor").code == 0


@pytest.mark.parametrize(
    ("options", "protocol"), [((), "quick"), (("--rate", "0.02"), "mtt"), (("--protocol", "hard"), "hard")]
)
def test_who_judges_images_from_elsewhere(ddbench: Command, options: tuple[str, ...], protocol: str) -> None:
    save_file({"images": torch.rand(10, 1, 8, 8), "labels": torch.arange(10)}, "mine.safetensors")
    answer = ddbench("adopt", "mine.safetensors", "--name", "mine", "--dataset", "digits", *options)
    assert f"under {protocol}," in answer.out
    (stored,) = Store().list()
    assert isinstance(stored, StoredSet)
    assert stored.manifest.native_protocol == protocol


def test_adoption_is_refused_in_one_line(ddbench: Command) -> None:
    save_file({"images": torch.rand(10, 1, 8, 8), "labels": torch.arange(10)}, "mine.safetensors")
    for changes, told in (
        ({"--name": "infer"}, r"infer is what ddbench calls its own"),
        ({"--dataset": "mutag"}, r"mutag holds graphs; expected a data set of images"),
        ({"--dataset": "digtis"}, r"unknown data set 'digtis'.*did you mean 'digits'"),
        ({"--protocol": "harder"}, r"unknown protocol 'harder'.*did you mean 'hard'"),
        ({"--rate": "-1"}, r"suggested_lr is -1\.0; expected a positive number"),
    ):
        options = {"--name": "mine", "--dataset": "digits"} | changes
        answer = ddbench("adopt", "mine.safetensors", *(word for pair in options.items() for word in pair))
        assert answer.code == 2
        assert re.fullmatch(rf"ddbench: {told}[^\n]*\n", answer.err), answer.err
    assert Store().list() == ()
