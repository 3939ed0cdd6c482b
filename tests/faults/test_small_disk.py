"""A disk that really is too small, at whatever write it fills up; needs the right to mount one."""

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.scenes import SCENES
from tests.faults.test_faults import ONE_LINE, TIMES, data
from tests.faults.trials import Trial

__all__ = ["data"]


def mount(folder: Path, options: str) -> bool:
    """Mounts memory as a file system; returns whether that was allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:  # no such command on this system
        return False


@contextmanager
def small_disk(folder: Path, pages: int) -> Iterator[None]:
    """A file system of so many pages of 4 KiB at ``folder``; without the right to make one the test is skipped."""
    folder.mkdir()
    if not mount(folder, f"size={pages * 4}k"):
        pytest.skip("mounting a small file system is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("name", SCENES)
def test_a_full_disk(name: str, data: Path, tmp_path: Path) -> None:
    straight = Trial(name, tmp_path / "straight", data)
    assert straight.play().code == 0
    used = sum(-(-path.stat().st_size // 4096) for path in straight.folder.rglob("*") if path.is_file())
    moments = random.Random(f"{name} {TIMES}")
    for turn in range(TIMES):
        trial = Trial(name, tmp_path / f"small{turn}", data)
        with small_disk(trial.folder, pages := moments.randrange(1, used // 2)):
            ending = trial.play()
            assert ending.code == 2, (pages, ending)
            assert ONE_LINE.fullmatch(ending.said), (pages, ending)
            assert "No space left on device" in ending.said, (pages, ending)
            finished = trial.finished()
            assert mount(trial.folder, "remount,size=64m")
            assert trial.play().code == 0
            assert trial.remains() == straight.remains()
            assert finished.items() <= trial.finished().items(), "what was finished was made again"
