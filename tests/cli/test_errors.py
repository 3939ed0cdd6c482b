"""What is refused: one line that says what was found, what was expected and what to do; exit code 2; no traceback."""

import errno
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dd_bench import interruption
from dd_bench.cli.main import commands
from dd_bench.errors import DataError, InterruptedRunError
from dd_bench.files import home
from tests.cli.conftest import TINY_INFER, TINY_RANDOM, Command

SYNTH = ("synth", "--method", "infer", "--ipc", "10")

REFUSED: list[tuple[tuple[str, ...], str]] = [
    # commands and options
    (("evl",), r"No such command 'evl'\. Did you mean 'eval'\? See ddbench --help"),
    (("synth",), r"Missing option '--method'\. See ddbench synth --help"),
    ((*SYNTH, "--metod", "x"), r"No such option '--metod'.*'--method'.* See ddbench synth --help"),
    ((*SYNTH, "extra"), r"Got unexpected extra argument \(extra\)\. See ddbench synth --help"),
    (("show",), r"Missing argument 'SET'\. See ddbench show --help"),
    (("list", "set"), r"No such command 'set'\. Did you mean .*'sets'.*\? See ddbench list --help"),
    ((*SYNTH, "--ipc", "0"), r"Invalid value for '--ipc': 0 is not in the range x>=1\. See ddbench synth --help"),
    ((*SYNTH, "--ipc", "ten"), r"Invalid value for '--ipc': 'ten' is not a valid int.*"),
    ((*SYNTH, "--seed", "-1"), r"Invalid value for '--seed': -1 is not in the range x>=0\..*"),
    ((*SYNTH, "--wandb", "yes"), r"Invalid value for '--wandb': 'yes' is not one of 'online', 'offline'\. See .*"),
    ((*SYNTH, "--set", "foo"), r".*'foo' is no setting; expected NAME=VALUE, for example lr=0\.1\. See .*"),
    ((*SYNTH, "--set", "=1"), r".*'=1' is no setting; expected NAME=VALUE, for example lr=0\.1\. See .*"),
    (("eval", "--runs", "0"), r"Invalid value for '--runs': 0 is not in the range x>=1\. See ddbench eval --help"),
    # names
    (
        ("synth", "--method", "infr", "--ipc", "1"),
        r"unknown method 'infr'; did you mean 'infer'\? Known: ast, cv-dd, herding, .*",
    ),
    ((*SYNTH, "--dataset", "digit"), r"unknown data set 'digit'; did you mean 'digits'\? Known: aids, cifar10, .*"),
    ((*SYNTH, "--dataset", "digits@x"), r"data set 'digits@x' has 'x' after the '@'; expected images a class.*"),
    ((*SYNTH, "--dataset", "digits@500"), r"500 train images a class were asked of digits, but class 8 .* has 138; .*"),
    ((*SYNTH, "--preset", "digit"), r"unknown preset 'digit'; did you mean 'digits'\? Known: digits, digits-taped, .*"),
    ((*SYNTH, "--set", "inversion.step=3"), r"unknown setting 'inversion\.step'; did you mean 'inversion\.steps'\?.*"),
    ((*SYNTH, "--set", "inversion=3"), r"unknown setting 'inversion'.* Known: inversion\.alpha, .*"),
    ((*SYNTH, "--set", "protocol=quik"), r"unknown protocol 'quik'; did you mean 'quick'\? Known: fkd-cutmix, .*"),
    ((*SYNTH, "--set", "teachers.architectures=convnet9"), r"unknown model 'convnet9'; did you mean .* Known: .*"),
    ((*SYNTH, "--set", "teachers.architectures=resnet18,convnet2-x0.1"), r"teacher convnet2-x0\.1 has no BatchNorm.*"),
    (("eval", "--protocol", "quik"), r"unknown protocol 'quik'; did you mean 'quick'\? Known: fkd-cutmix, .*"),
    (("eval", "--arch", "convne3"), r"unknown model 'convne3'; did you mean 'convnet3'\? Known: alexnet, .*"),
    (("eval", "--arch", "convnet3-x9"), r"model convnet3: found the width factor 9\.0, expected one above 0.*"),
    # values
    ((*SYNTH, "--set", "inversion.steps=0"), r".*steps=0.*; expected steps >= 1.*"),
    ((*SYNTH, "--set", "inversion.steps=few"), r"inversion\.steps: .*valid integer.* \(found 'few'\)"),
    ((*SYNTH, "--set", "inversion.lr=nan"), r".*nan.*finite.*"),
    ((*SYNTH, "--set", "offset_dtype=int4"), r"offset_dtype: .*'int8' or 'float16' \(found 'int4'\)"),
    (("synth", "--method", "infer", "--ipc", "1"), r"ipc 1 leaves INFER no image: .*; use a larger --ipc, or .*"),
    (
        ("synth", "--method", "random", "--ipc", "999"),
        r"class 0 has 142 training examples, but 999 are .*; lower --ipc",
    ),
    (("synth", "--method", "infer", "--ipc", "999"), r"class 0 has 142 training examples, but 768 are .*; lower --ipc"),
    ((*SYNTH, "--device", "tpu"), r"unknown device 'tpu'; expected auto, cpu, cuda or cuda:N"),
    ((*SYNTH, "--device", "meta"), r"device 'meta' is not supported; expected auto, cpu, cuda or cuda:N"),
    (("eval", "--device", "tpu"), r"unknown device 'tpu'; expected auto, cpu, cuda or cuda:N"),
    (("clean", "--older-than", "week"), r"Invalid value for '--older-than': 'week' is not a valid .*"),
    # the store
    (("eval",), r"no sets to judge in .*sets; make one first, for example: ddbench synth --method infer --ipc 10"),
    (("eval", "0123"), r"unknown set '0123'\. Known: none yet"),
    (("show", "0123"), r"unknown set '0123'\. Known: none yet"),
    (("export", "0123"), r"unknown set '0123'\. Known: none yet"),
    (("import", "none.zip"), r"there is no file none\.zip; expected one that ddbench export has written"),
    (("adopt", "none"), r"Missing option '--name'\. See ddbench adopt --help"),
    (("adopt", "none", "--name", "mine", "--dataset", "digits"), r"there is no file none; write it by safetensors.*"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_rejects(ddbench: Command, arguments: tuple[str, ...], message: str) -> None:
    assert re.fullmatch(message, ddbench(*arguments).fault)
    assert not list(home().glob("[!l]*")), "a refusal does no work (locks apart)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and cuda is welcome")
@pytest.mark.parametrize("command", [SYNTH, ("eval",)])
def test_rejects_a_gpu_that_is_not_there(ddbench: Command, command: tuple[str, ...]) -> None:
    fault = ddbench(*command, "--device", "cuda").fault
    assert fault == "device 'cuda' is not here: torch sees 0 CUDA devices; use --device cpu"


def test_no_arguments_show_the_help(ddbench: Command) -> None:
    for arguments in ((), ("list",)):
        answer = ddbench(*arguments)
        assert answer.code == 2
        assert answer.err.startswith(f"Usage: {' '.join(['ddbench', *arguments])} [OPTIONS] COMMAND")


def test_a_set_by_too_few_letters(ddbench: Command, drawn: str) -> None:
    assert ddbench("show", drawn[:3]).fault == f"unknown set '{drawn[:3]}'. Known: {drawn}"


def test_a_fault_of_many_lines_is_told_in_one(monkeypatch: pytest.MonkeyPatch, ddbench: Command) -> None:
    def refuse(*_: object) -> None:
        raise DataError("a server said:\n\n  500,\r\n\tgo away")

    monkeypatch.setattr("dd_bench.data.images.load", refuse)
    assert ddbench(*TINY_RANDOM).fault == "a server said: 500, go away"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, ddbench: Command) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("dd_bench.data.images.load", broken)
    with pytest.raises(ZeroDivisionError):
        ddbench(*TINY_RANDOM)


def test_a_signal_that_surfaces_as_another_error_is_no_bug(monkeypatch: pytest.MonkeyPatch, ddbench: Command) -> None:
    """An extension module that is interrupted while it is imported says ``initialization failed``."""

    def interrupted(*_: object) -> None:
        with pytest.raises(InterruptedRunError):
            signal.raise_signal(signal.SIGTERM)
        raise ImportError("initialization failed")

    before = signal.signal(signal.SIGTERM, interruption._handle)
    monkeypatch.setattr(interruption, "_requested", None)
    monkeypatch.setattr("dd_bench.data.images.load", interrupted)
    try:
        answer = ddbench(*TINY_RANDOM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert answer.code == 143
    assert re.fullmatch(r"ddbench: stopped at once; what was last saved is kept[^\n]+\n", answer.err)


# --- the disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [TINY_INFER, TINY_RANDOM], ids=["infer", "random"])
def test_a_file_where_the_home_should_be(
    ddbench: Command, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "file"))
    fault = ddbench(*command).fault
    assert fault == (
        f"cannot read or write {tmp_path}/file/locks: Not a directory; make room or choose another folder, then repeat "
        "the command"
    )


@pytest.mark.parametrize("writes", range(6))
def test_a_full_disk(ddbench: Command, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Wherever it comes, it is told in one line with the place, and the same command goes on when there is room."""
    left = [writes]
    sync = os.fsync

    def full(handle: int) -> None:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        fault = ddbench(*TINY_INFER).fault
    assert re.search(rf"{re.escape(str(home()))}\S+", fault)
    assert "No space left on device" in fault
    assert not list(home().rglob("*.partial"))
    answer = ddbench(*TINY_INFER)
    assert answer.code == 0
    assert "made set" in answer.out


def no_memory() -> None:
    torch.empty(2**56)


def no_cuda_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore words.")


def no_python_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize("fail", [no_memory, no_cuda_memory, no_python_memory])
def test_too_little_memory(ddbench: Command, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], None]) -> None:
    monkeypatch.setattr("synth.coreset.sample_per_class", lambda *_: fail())
    fault = ddbench(*TINY_RANDOM).fault
    assert re.match(
        r"out of memory \(.*\); make room and repeat the command, which goes on where it was, or ask", fault
    )
    assert "\n" not in fault


def test_a_full_disk_loses_no_score(ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("eval.cells.write_atomic", full)
        fault = ddbench("eval", "--runs", "1").fault
    assert fault.startswith("cannot read or write: No space left on device; make room")
    assert ddbench("eval", "--runs", "1").code == 0


def test_boards_that_cannot_be_written(ddbench: Command, drawn: str, surroundings: Path) -> None:
    (surroundings / "leaderboards").mkdir()
    (surroundings / "leaderboards" / "results").touch()
    assert "leaderboards/results" in ddbench("eval", "--runs", "1").fault


def test_every_command_is_tried_here() -> None:
    """A new command brings its refusals along; ``leaderboard`` and ``doctor`` have theirs beside them."""
    tried = {arguments[0] for arguments, _ in REFUSED}
    assert set(commands.commands) <= tried | {"leaderboard", "doctor"}
