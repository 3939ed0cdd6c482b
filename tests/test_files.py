"""Files that are whole or absent, names that stay in their folder, and locks that hold between processes."""

import errno
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dd_bench import files
from dd_bench.errors import DDBenchError, InvalidSetError
from dd_bench.files import (
    home,
    human_bytes,
    is_held,
    lock_file,
    locked,
    measure,
    remove_lock,
    safe_name,
    sha256_file,
    slug,
    write_atomic,
)  # fmt: skip

HOLD_LOCK = "import sys\nfrom dd_bench.files import locked\nwith locked('work'):\n print('held', flush=True)\n input()"


def test_write_atomic_writes(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_write_atomic_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException, place: str
) -> None:
    path = tmp_path / "record.json"
    write_atomic(path, b"old")

    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail) if place == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(fault)):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_removes_what_killed_writers_left(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".a[1].json.abcd1234.partial", ".a[1].json.abcd1235.partial",
                                                      ".a1.json.abcd1234.partial"))  # fmt: skip
    for path in (old, young, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (time.time() - 3700,) * 2)
    write_atomic(tmp_path / "a[1].json", b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "a[1].json", young, other])


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


@pytest.mark.parametrize("name", ["infer", "cifar10@20+20", "sre2l++", "a" * 100, "0.1", "k=3,l-2_x"])
def test_safe_names(name: str) -> None:
    assert safe_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "/etc", ".hidden", "a b", "a\n", "a\0", "ä", "-rf", "a" * 101, "~"]
)
def test_rejects_names(name: str) -> None:
    with pytest.raises(InvalidSetError, match="is no plain name"):
        safe_name(name)


def test_slugs() -> None:
    assert slug("cifar10@20/20") == "cifar10@20+20"
    assert slug("imagefolder:/data/my pets/../x") == "imagefolder+data+my+pets+..+x"
    assert slug("../../x") == "x"
    assert slug("sre2l++") == "sre2l++"
    assert len(slug("x/" * 200)) == 100
    with pytest.raises(InvalidSetError, match="is no plain name"):
        slug("/..")


def test_human_bytes() -> None:
    sizes = [0, 999, 1000, 9_994, 9_995, 99_949, 301_056, 999_499, 999_500, 2_875_392, 28_330_000_000, 5 * 10**15]
    assert [human_bytes(size) for size in sizes] == [
        "0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "99.9 kB", "301 kB", "999 kB", "1.00 MB", "2.88 MB", "28.3 GB",
        "5000 TB",
    ]  # fmt: skip


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_HOME", "/elsewhere")
    assert home() == Path("/elsewhere")
    monkeypatch.setenv("DDBENCH_HOME", "")
    assert home() == Path("artifacts")


def test_locks_hold_between_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK],
        cwd=Path(files.__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(DDBenchError, match="another process works on work; wait"), locked("work", wait_seconds=0.1):
            pass
        with locked("other work", wait_seconds=0):
            pass
        other.kill()  # a lock dies with its process, however that dies
        other.wait()
        with locked("work", wait_seconds=5):
            pass


def test_whether_a_lock_is_held() -> None:
    path = lock_file("work")
    assert not is_held(path)
    assert not path.parent.exists(), "looking changes nothing"
    with locked("work"):
        assert is_held(path)
        assert not remove_lock(path)
        assert not is_held(lock_file("other work"))
    assert path.exists()
    assert not is_held(path)
    assert remove_lock(path)
    assert not path.exists()
    assert remove_lock(path), "what is gone is gone"
    assert list(path.parent.iterdir()) == []


def test_a_lock_s_file_goes_before_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round somebody could hold the lock in between, on a file that is about to lose its name."""
    with locked("work"):
        pass
    path, release, there = lock_file("work"), files.FileLock.release, []

    def releasing(self: files.FileLock) -> None:
        there.append(path.exists())
        release(self)

    monkeypatch.setattr(files.FileLock, "release", releasing)
    assert remove_lock(path)
    assert there[0] is False


def test_a_lock_that_cannot_be_opened_counts_as_held(tmp_path: Path) -> None:
    (tmp_path / "x.lock").mkdir()
    assert is_held(tmp_path / "x.lock")
    assert not remove_lock(tmp_path / "x.lock")
    assert (tmp_path / "x.lock").is_dir()


def test_measure(tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "empty").mkdir()
    outside.write_bytes(b"x" * 10_000)
    for name, moment in (("a", 3), ("deep/b", 7)):
        (folder / name).write_bytes(b"x" * moment)
        os.utime(folder / name, (moment, moment))
    (folder / "link").symlink_to(outside)
    for link in (folder / "link", folder / "empty"):
        os.utime(link, (5, 5), follow_symlinks=False)
    assert measure(folder) == (10, 7)
    assert measure(folder / "a") == (3, 3)
    assert measure(folder / "link") == (0, 5)
    assert measure(folder / "empty") == (0, 5)
    with pytest.raises(FileNotFoundError):
        measure(tmp_path / "nothing")


def test_measure_passes_over_what_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").write_bytes(b"123")
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / "gone", self / "here"]))
    assert measure(tmp_path)[0] == 3
