"""``ddbench list runs`` and ``ddbench clean``: what is shown is what is there, and what goes."""

import os
import re
import shutil
import time
from pathlib import Path

import pytest

from dd_bench import housekeeping
from dd_bench.files import home, human_bytes, lock_file
from dd_bench.run import lock_of_run
from tests.cli.conftest import Command
from tests.cli.test_catalogue import table
from tests.test_housekeeping import aged, everything, make_cache, make_file, make_network, make_run
from tests.test_runs import other_process_at, save_stage

HOUR = 3600.0


def sizes(out: str) -> dict[str, str]:
    """Returns the indented lines of ``ddbench clean``: size by path."""
    found = re.findall(r"^ +([\d.]+ \w+)  (\S+?)[,:] ", out, re.MULTILINE)
    return {path: size for size, path in found}


def furnish() -> dict[str, Path]:
    """Leaves one thing of each kind that may go, and returns them."""
    return {
        "run": make_run("infer-0123456789ab"),
        "leftover": make_file(home() / "teachers" / ".x.abcd1234.partial", content=b"x" * 2000),
        "network": make_network("idle"),
        "cache": make_cache(),
        "lock": make_file(home() / "locks" / "0123.lock", content=b""),
    }


# --- list runs --------------------------------------------------------------------------------------------------------


def test_no_runs(ddbench: Command) -> None:
    answer = ddbench("list", "runs")
    assert (answer.code, answer.err) == (0, "")
    assert re.fullmatch(r"no runs in \S+/runs: nothing is unfinished\n", answer.out)
    assert not home().exists(), "looking changes nothing"


def test_runs(ddbench: Command) -> None:
    now = time.time()
    save_stage("infer-1", "teacher", 30, 30, seconds=3600, saved=now - 30 * HOUR)
    save_stage("infer-1", "labels [of 2]", 7, 300, seconds=125.4, saved=now - 2.5 * HOUR)
    save_stage("student-2", "student 1 infer", 5, 9, saved=now)
    (home() / "runs" / "young").mkdir()
    with other_process_at("student-2"):
        answer = ddbench("list", "runs")
    rows = table(answer)
    assert rows["run"] == ["stage last saved", "spent", "left of stage", "size", "saved", "process"]
    size = human_bytes(sum(file.stat().st_size for file in (home() / "runs" / "infer-1").iterdir()))
    assert rows["infer-1"] == ["labels [of 2], step 7 of 300", "1:02:05", "1:27:29", size, "2 hours ago", "-"]
    assert rows["student-2"][0] == "student 1 infer, step 5 of 9"
    assert rows["student-2"][4:] == ["just now", "at work"]
    assert rows["young"] == ["nothing saved yet", "0:00", "-", "0 B", "never", "-"]
    assert answer.out.endswith("\nthe command that a run belongs to goes on with it; ddbench clean shows what can go\n")


def test_a_damaged_checkpoint_is_told_in_its_row(ddbench: Command) -> None:
    save_stage("a", "first", 1, 3)
    save_stage("a", "second", 1, 3).write_bytes(b"bad")
    save_stage("b", "only", 1, 3).write_bytes(b"bad")
    answer = ddbench("list", "runs")
    rows = table(answer)
    assert rows["a"][0] == "first, step 1 of 3; damaged: second.safetensors"
    assert rows["b"][0] == "damaged: only.safetensors"
    assert "where a checkpoint is damaged, delete its file: that stage starts anew\n" in answer.out
    assert answer.err == ""


# --- clean ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--yes",), ("--caches", "--yes", "--older-than", "0")])
def test_nothing_to_clean(ddbench: Command, options: tuple[str, ...]) -> None:
    answer = ddbench("clean", *options)
    assert (answer.code, answer.err) == (0, "")
    assert re.fullmatch(r"nothing can go from \S+; next: ddbench list runs\n", answer.out)
    assert not home().exists(), "looking changes nothing"


def test_without_yes_nothing_is_touched(ddbench: Command) -> None:
    furnish()
    before = {path: path.lstat().st_mtime_ns for path in everything()}
    for options in ((), ("--caches",), ("--older-than", "3")):
        answer = ddbench("clean", *options)
        assert (answer.code, answer.err) == (0, "")
        assert re.search(
            rf"\n[\d.]+ kB can go from \S+; next: ddbench clean {' '.join([*options, '--yes'])}\n$", answer.out
        )
    assert {path: path.lstat().st_mtime_ns for path in everything()} == before


@pytest.mark.parametrize("with_caches", [False, True])
def test_what_is_shown_is_what_goes(ddbench: Command, with_caches: bool) -> None:
    things = furnish()
    options = ("--caches",) * with_caches
    shown, before = ddbench("clean", *options), everything()
    answer = ddbench("clean", *options, "--yes")
    assert answer.code == 0
    assert answer.out.splitlines()[:-1] == shown.out.splitlines()[:-1]
    gone = [path for kind, path in things.items() if with_caches or kind != "cache"]
    assert everything() == {path for path in before if not {path, *path.parents} & set(gone)}

    found = sizes(shown.out)
    assert {(Path.cwd() / path).resolve() for path in found} == {
        (path if kind in ("run", "leftover", "network") else path.parent).resolve() for kind, path in things.items()
    }
    assert ("(they stay; --caches removes them, too)" in shown.out) == (not with_caches)
    assert shown.out.splitlines()[-1].split(" can go")[0] == answer.out.splitlines()[-1].split(" freed")[0]
    assert re.search(r"\n[\d.]+ kB freed in \S+; next: ddbench list runs\n$", answer.out)


def test_sizes(ddbench: Command) -> None:
    things = furnish()
    total = 0
    for kind, path in things.items():
        size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir()))
        total += size if kind != "cache" else 0
        line = path if path.is_dir() or kind == "leftover" else path.parent
        assert re.search(rf"^ +{human_bytes(size)}  \S*/{re.escape(str(line.relative_to(home())))}[,:] ",
                         ddbench("clean").out, re.MULTILINE), kind  # fmt: skip
    assert ddbench("clean").out.splitlines()[-1].startswith(f"{human_bytes(total)} can go from ")


def test_only_caches(ddbench: Command) -> None:
    path = make_cache("krr")
    make_file(home() / "krr" / "fedcba9876543210.safetensors", content=b"foreign")
    make_file(home() / "somebody's" / "0123456789abcdef.safetensors", content=path.read_bytes())
    answer = ddbench("clean", "--yes")
    assert re.search(r"\nnothing can go from \S+; next: ddbench clean --caches\n$", answer.out)
    assert re.search(r"^ +\d+ B  \S+/krr: 1 file$", answer.out, re.MULTILINE)
    assert path.exists()
    ddbench("clean", "--caches", "--yes")
    assert not path.exists()
    assert len(list(home().rglob("*.safetensors"))) == 2


def test_a_run_at_work_stays(ddbench: Command) -> None:
    things = furnish()
    held = make_run("held")
    with other_process_at("held"):
        answer = ddbench("clean", "--older-than", "0", "--caches", "--yes")
    assert answer.code == 0
    assert "\nstays: 1 × unfinished run: a process is at it\n" in answer.out
    assert "\nstays: 1 × network that no set names: processes are at work\n" in answer.out
    assert "\nstays: 1 × cached file: processes are at work\n" in answer.out
    assert [kind for kind, path in things.items() if path.exists()] == ["network", "cache"]
    assert held.exists()
    assert lock_file(lock_of_run("held")).exists()
    assert str(held.name) not in "".join(sizes(answer.out))


def test_sets_and_their_teachers_stay(ddbench: Command, made: str) -> None:
    ddbench("eval", made, "--runs", "1", "--control-runs", "1")
    before = {path for path in everything() if "locks" not in path.parts}
    for path in home().rglob("*"):
        if path.is_dir():
            aged(path, 100)
    answer = ddbench("clean", "--older-than", "0", "--yes")
    assert answer.code == 0
    assert {path for path in everything() if "locks" not in path.parts} == before
    assert not list((home() / "locks").iterdir())
    ddbench("clean", "--caches", "--yes")
    assert not list((home() / "offsets").iterdir())
    assert "nothing to do" in ddbench("eval", made, "--runs", "1", "--control-runs", "1").out


def test_what_comes_into_use_meanwhile_is_told(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    things, remove = furnish(), housekeeping.remove

    def later(waste: housekeeping.Waste) -> bool:
        if waste.kind == "run":
            os.utime(waste.path / "stage.safetensors")
        return remove(waste)

    monkeypatch.setattr(housekeeping, "remove", later)
    answer = ddbench("clean", "--yes")
    assert re.search(r"\nstays: \S+/runs/infer-0123456789ab \(it vanished, or came into use\)\n", answer.out)
    assert [kind for kind, path in things.items() if path.exists()] == ["run", "cache"]
    freed = 2000 + 10
    assert answer.out.splitlines()[-1].startswith(f"{human_bytes(freed)} freed")


def test_what_the_disk_refuses_is_told_and_the_rest_goes(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    things, rmtree = furnish(), shutil.rmtree

    def refusing(folder: Path) -> None:
        if "infer" in folder.name:
            raise PermissionError(13, "Permission denied", "x")
        rmtree(folder)

    monkeypatch.setattr(shutil, "rmtree", refusing)
    answer = ddbench("clean", "--yes")
    assert answer.code == 1
    assert re.fullmatch(r"cannot remove \S+/runs/infer-0123456789ab: Permission denied\n", answer.err)
    assert not things["network"].exists()
    assert not things["leftover"].exists()


def test_refusals(ddbench: Command) -> None:
    assert "-1 is not in the range" in ddbench("clean", "--older-than", "-1").fault
