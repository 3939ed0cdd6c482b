"""Label books: a file of epochs that outlives kills, refuses what it has lost, and is never in memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dd_bench.errors import DDBenchError
from dd_bench.run import Run
from dd_bench.seeding import generator
from synth.parts.label_book import LabelBook
from tests.conftest import Interrupt, at

EPOCHS, COUNT, CLASSES = 5, 4, 3


def logits_of(number: int) -> Tensor:
    return torch.randn(COUNT, CLASSES, generator=generator(number))


@pytest.fixture
def book(tmp_path: Path) -> LabelBook:
    return LabelBook(tmp_path / "run" / "labels.f16", EPOCHS, COUNT, CLASSES)


def fill(book: LabelBook, run: Run, calls: list[int] | None = None) -> Tensor:
    for number in run.steps("labels", EPOCHS, book):
        book.write(number, logits_of(number))
        if calls is not None:
            calls.append(number)
    return book.logits()


EXPECTED = torch.stack([logits_of(number).half() for number in range(EPOCHS)])


def test_what_is_written_is_read(book: LabelBook) -> None:
    for number in range(EPOCHS):
        book.write(number, logits_of(number))
    found = book.logits()
    assert (found.shape, found.dtype) == ((EPOCHS, COUNT, CLASSES), torch.float16)
    assert torch.equal(found, EXPECTED)
    assert book.path.stat().st_size == EPOCHS * COUNT * CLASSES * 2
    assert book.path.read_bytes() == EXPECTED.numpy().tobytes()


def test_an_epoch_may_be_written_again(book: LabelBook) -> None:
    for number, seed in ((0, 0), (1, 8), (2, 9), (1, 1), (2, 2), (3, 3), (4, 4)):
        book.write(number, logits_of(seed))
    assert torch.equal(book.logits(), EXPECTED)


def test_logits_are_written_whatever_their_layout(book: LabelBook) -> None:
    for number in range(EPOCHS):
        book.write(number, logits_of(number).double().T.contiguous().T)
    assert torch.equal(book.logits(), EXPECTED)


def test_logits_that_are_changed_do_not_change_the_file(book: LabelBook) -> None:
    for number in range(EPOCHS):
        book.write(number, logits_of(number))
    book.logits().zero_()
    assert torch.equal(book.logits(), EXPECTED)


def test_resume_is_invisible(book: LabelBook, run: Run, interrupted: Interrupt) -> None:
    calls: list[int] = []
    for stop in (0, 2):
        with interrupted(at("labels", stop)):
            fill(LabelBook(book.path, *book.shape), Run(run.folder), calls)
    assert torch.equal(fill(LabelBook(book.path, *book.shape), Run(run.folder), calls), EXPECTED)
    assert calls == list(range(EPOCHS))  # none twice
    assert torch.equal(fill(LabelBook(book.path, *book.shape), Run(run.folder), calls), EXPECTED)
    assert calls == list(range(EPOCHS))  # and finished is finished


def test_what_was_not_saved_is_written_again(book: LabelBook, run: Run) -> None:
    """A kill leaves more epochs, and half of one, in the file than the checkpoint knows."""
    calls: list[int] = []
    for number in run.steps("labels", EPOCHS, book):
        book.write(number, logits_of(number + 100))
        if number == 3:
            break
    with book.path.open("r+b") as file:
        file.truncate(3 * COUNT * CLASSES * 2 + 5)
    assert torch.equal(fill(LabelBook(book.path, *book.shape), Run(run.folder), calls), EXPECTED)
    assert calls == list(range(EPOCHS))


def test_a_longer_tape_of_the_same_name_is_not_read_on(book: LabelBook, run: Run) -> None:
    """Leftovers behind the end are none of the book."""
    book.path.write_bytes(b"\x7f" * 1000)
    assert torch.equal(fill(book, run), EXPECTED)


@pytest.mark.parametrize("lost", [1, COUNT * CLASSES * 2, 10**6])
@pytest.mark.parametrize("stop", [2, None])
def test_refuses_a_file_that_was_cut_since(
    book: LabelBook, run: Run, interrupted: Interrupt, stop: int | None, lost: int
) -> None:
    with interrupted(at("labels", stop if stop is not None else -1), must=stop is not None):
        fill(book, run)
    size = book.path.stat().st_size
    with book.path.open("r+b") as file:
        file.truncate(max(size - lost, 0))
    written = EPOCHS if stop is None else stop + 1
    match = rf"holds other work \(labels.f16 ends before epoch {written}\); expected .* delete .* to start anew$"
    with pytest.raises(DDBenchError, match=match) as caught:
        fill(LabelBook(book.path, *book.shape), Run(run.folder))
    assert len(str(caught.value).splitlines()) == 1


def test_refuses_a_file_that_is_gone(book: LabelBook, run: Run) -> None:
    fill(book, run)
    book.path.unlink()
    with pytest.raises(DDBenchError, match="ends before epoch 5"):
        fill(LabelBook(book.path, *book.shape), Run(run.folder))


@pytest.mark.parametrize(
    "shape", [(EPOCHS, COUNT, CLASSES + 1), (EPOCHS, COUNT - 1, CLASSES), (EPOCHS, CLASSES, COUNT)]
)
def test_refuses_the_state_of_another_book(
    book: LabelBook, run: Run, interrupted: Interrupt, shape: tuple[int, int, int]
) -> None:
    with interrupted(at("labels", 1)):
        fill(book, run)
    with pytest.raises(DDBenchError, match=r"holds other work \(labels of shape \[5, 4, 3\]; expected \["):
        fill(LabelBook(book.path, *shape), Run(run.folder))


def test_state_says_what_is_written(book: LabelBook) -> None:
    assert book.state_dict() == {"shape": [EPOCHS, COUNT, CLASSES], "written": 0}
    book.write(0, logits_of(0))
    book.write(1, logits_of(1))
    state = book.state_dict()
    assert state == {"shape": [EPOCHS, COUNT, CLASSES], "written": 2}
    again = LabelBook(book.path, *book.shape)
    again.load_state_dict(state)
    assert again.state_dict() == state  # also when it is saved again before anything is written


# --- memory ----------------------------------------------------------------------------------------------------------

_WORK = """
import hashlib, sys, torch
from dataclasses import replace
from pathlib import Path
from dd_bench import codec
from dd_bench.data.specs import SPECS
from dd_bench.learn.tape import TapeRecipe, draw_tape
from dd_bench.run import Run
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.targets import TapedLabels
from synth.parts.label_book import LabelBook

folder, epochs, count, classes = Path(sys.argv[1]), 60, 500, 2000


def work(epochs):
    tape = draw_tape(count, SPECS["digits"], TapeRecipe(epochs=epochs), 0)
    book = LabelBook(folder / f"{epochs}.f16", epochs, count, classes)
    page = torch.arange(count * classes).view(count, classes) % 1000 / 8
    for number in Run(folder / f"{epochs}").steps("labels", epochs, book):
        book.write(number, page + number)
    targets = TapedLabels(book.logits(), tape, torch.zeros(count, dtype=torch.int64), 20.0)
    origin = Provenance(
        method="m", preset="p", config={}, dataset="d", fingerprint="f", ipc=1, seed=0, recipe="0123456789ab"
    )
    made = SyntheticSet(Images(torch.zeros(count, 1, 8, 8)), targets, origin, "hard")
    codec.write(folder / "tensors", made)
    parts = {"payload": codec.describe(made.payload), "targets": codec.describe(targets)}
    del made, targets
    _, targets = codec.read(folder / "tensors", **parts)
    for number in range(epochs):
        assert torch.equal(targets.epoch(number, classes), (page + number).half().float())


work(2)  # what is loaded once is not counted
print("ready", flush=True)
sys.stdin.readline()
work(epochs)
(folder / "done").touch()
sys.stdin.readline()  # until it is closed
"""


def anonymous(process: int) -> int:
    """The bytes of a process that are its own, and not of a mapped file; 0 when it is over."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told in /proc")
def test_no_book_is_ever_in_memory(tmp_path: Path) -> None:
    """120 MB, written, made a set, stored and read again, page by page of 2 MB."""
    with subprocess.Popen(
        [sys.executable, "-c", _WORK, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        before = most = anonymous(process.pid)
        assert before > 10**7
        process.stdin.write("\n")
        process.stdin.flush()
        while not (tmp_path / "done").exists() and process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.002)
    assert (tmp_path / "done").exists()
    assert (tmp_path / "tensors").stat().st_size > 120 * 10**6
    assert most - before < 60 * 10**6  # half of the book; measured are 24 to 31 MB, of several pages' scratch
