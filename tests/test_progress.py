"""The progress line: one a minute in a log, one that moves on a terminal, none for what is over at once."""

import re
from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from dd_bench import progress
from dd_bench.progress import Progress


class Clock:
    """Stands for the module `time`; goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


Screen = Callable[..., StringIO]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Makes stderr a file, or a terminal of some width, and returns what was written to it."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def make(*, terminal: bool = False, width: int = 100) -> StringIO:
        written = StringIO()
        monkeypatch.setattr(
            progress, "Console",
            lambda **options: Console(**options | {"file": written}, force_terminal=terminal, width=width),
        )  # fmt: skip
        return written

    return make


def work(clock: Clock, progress: Progress, steps: range, *, seconds: float, loss: float = 0.0) -> None:
    for step in steps:
        clock.now += seconds
        progress.update(step + 1, {"loss": loss or 1 / (step + 1)} if step % 10 == 9 else None)


def frames(written: StringIO) -> list[str]:
    """What a terminal showed, drawing after drawing."""
    text = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "\r", written.getvalue())
    return [frame for frame in re.split(r"[\r\n]+", text) if frame.strip()]


def remains(written: StringIO) -> list[str]:
    """What a terminal (or a file) holds in the end, by a terminal that knows just what rich asks of it."""
    lines, row = [""], 0
    for code, text in re.findall(r"(\x1b\[[?0-9;]*[A-Za-z]|[\r\n])|([^\x1b\r\n]+)", written.getvalue()):
        match code:
            case "":
                lines[row] = text + lines[row][len(text) :]
            case "\n":
                row += 1
                lines += [""] * (row == len(lines))
            case "\x1b[1A":
                row -= 1
            case "\x1b[2K":
                lines[row] = ""
            case _:
                assert code in ("\r", "\x1b[?25l", "\x1b[?25h")
    return [line for line in lines if line]


def test_a_log_gets_a_line_a_minute(clock: Clock, screen: Screen) -> None:
    written = screen()
    with Progress("student 1", 2000) as line:
        work(clock, line, range(1999), seconds=0.25)
        assert [text.split("  ")[1] for text in written.getvalue().splitlines()] == [
            "240/2000", "480/2000", "720/2000", "960/2000", "1200/2000", "1440/2000", "1680/2000", "1920/2000",
        ]  # fmt: skip
        work(clock, line, range(1999, 2000), seconds=0.25)
    lines = written.getvalue().splitlines()
    assert lines[0] == "student 1  240/2000  loss 0.004167  4.0/s  1:00  7:20 left"
    assert lines[-1] == "student 1  2000/2000  loss 0.0005  4.0/s  8:20"
    assert "\x1b" not in written.getvalue()


def test_slow_steps_come_one_a_line(clock: Clock, screen: Screen) -> None:
    written = screen()
    with Progress("slow", 3) as line:
        work(clock, line, range(3), seconds=4000)
    assert written.getvalue().splitlines() == [
        "slow  1/3  4000.0 s each  1:06:40  2:13:20 left",
        "slow  2/3  4000.0 s each  2:13:20  1:06:40 left",
        "slow  3/3  4000.0 s each  3:20:00",
    ]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(("seconds", "left"), [(0.0, []), (0.19, []), (0.21, ["short  10/10  4.8/s  0:02"])])
def test_short_stages_are_silent(clock: Clock, screen: Screen, terminal: bool, seconds: float, left: list[str]) -> None:
    written = screen(terminal=terminal)
    with Progress("short", 10) as line:
        work(clock, line, range(9), seconds=seconds)
        clock.now += seconds
        line.update(10)
    assert remains(written) == left


def test_a_terminal_shows_one_moving_line(clock: Clock, screen: Screen) -> None:
    written = screen(terminal=True)
    with Progress("teacher resnet18", 1000) as line:
        work(clock, line, range(500), seconds=0.125, loss=2.30259)
        half = ["teacher resnet18  500/1000  loss 2.303  8.0/s  1:02  1:02 left"]
        assert frames(written)[-1:] == remains(written) == half
        assert 200 < len(frames(written)) <= 250  # at most five a second, and not at every step
        work(clock, line, range(500, 1000), seconds=0.125, loss=0.000123456)
    assert all(re.fullmatch(r"teacher resnet18  \d+/1000 .*", frame) for frame in frames(written))
    assert remains(written) == ["teacher resnet18  1000/1000  loss 0.0001235  8.0/s  2:05"]
    assert written.getvalue().count("\x1b[?25l") == written.getvalue().count("\x1b[?25h") == 1  # the cursor is back


def test_a_narrow_terminal_still_shows_one_line(clock: Clock, screen: Screen) -> None:
    written = screen(terminal=True, width=30)
    with Progress("offsets resnet18-x0.25 1-8 of 10", 1000) as line:
        work(clock, line, range(100), seconds=0.3, loss=2.3)
        assert set(frames(written)) == {"offsets resnet18-x0.25 1-8 of…"}
        assert "\x1b[1A" not in written.getvalue()  # it never has to go up a line
    assert remains(written) == ["offsets resnet18-x0.25 1-8 of 10  100/1000  loss 2.3  3.3/s  0:30  4:30 left"]


def test_rate_and_eta_are_those_of_this_process(clock: Clock, screen: Screen) -> None:
    written = screen()
    with Progress("resumed", 10_000, first=9000, earlier_seconds=86_400) as line:
        work(clock, line, range(9000, 9060), seconds=2)
        assert line.seconds == 86_520
    lines = written.getvalue().splitlines()
    assert lines[0] == "resumed  9030/10000  loss 0.0001107  2.0 s each  24:01:00  32:20 left"
    assert lines[1] == "resumed  9060/10000  loss 0.0001104  2.0 s each  24:02:00  31:20 left"


def test_a_slow_beginning_is_forgotten(clock: Clock, screen: Screen) -> None:
    """An hour for the first step, a second for each later one: after a minute or two the ETA is that of the latter."""
    written = screen()
    with Progress("fit", 10_000) as progress:
        work(clock, progress, range(1), seconds=3600)
        assert "1/10000  3600.0 s each" in written.getvalue().splitlines()[-1]
        work(clock, progress, range(1, 130), seconds=1)
        assert written.getvalue().splitlines()[-1].endswith("1.0/s  1:02:00  2:44:39 left")


def test_slow_steps_have_a_rate(clock: Clock, screen: Screen) -> None:
    """Each takes longer than what is looked back on."""
    written = screen()
    with Progress("fit", 100) as progress:
        work(clock, progress, range(10), seconds=300)
        assert written.getvalue().splitlines()[-1].endswith("300.0 s each  50:00  7:30:00 left")


def test_before_the_first_step_there_is_no_eta(clock: Clock, screen: Screen) -> None:
    written = screen()
    with Progress("resumed", 10, first=5, earlier_seconds=30) as line:
        clock.now += 60
        line.update(5)
    assert written.getvalue().splitlines()[0] == "resumed  5/10  0.0/s  1:30"


def test_values_stay_until_there_are_newer_ones(clock: Clock, screen: Screen) -> None:
    written = screen()
    with Progress("values", 9) as line:
        line.update(1, {"ce": 1.5, "bn": 20000.0})
        for values in (None, {}):
            clock.now += 60
            line.update(2, values)
        clock.now += 60
        line.update(3, {"ce": 0.25})
    middle = [text.split("  ")[2:-3] for text in written.getvalue().splitlines()]
    assert middle[:3] == [["ce 1.5", "bn 2e+04"], ["ce 1.5", "bn 2e+04"], ["ce 0.25"]]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stage_that_fails_leaves_no_line(clock: Clock, screen: Screen, terminal: bool) -> None:
    written = screen(terminal=terminal)

    def fail() -> None:
        with Progress("failing", 10) as line:
            work(clock, line, range(5), seconds=1)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert remains(written) == []
    assert written.getvalue().count("\x1b[?25l") == written.getvalue().count("\x1b[?25h") == terminal


def test_labels_are_text(clock: Clock, screen: Screen) -> None:
    written = screen()
    with Progress("[bold]x[/bold] :smile: 100%", 2) as line:
        work(clock, line, range(2), seconds=2)
    assert written.getvalue().startswith("[bold]x[/bold] :smile: 100%  2/2")


def test_it_writes_to_stderr(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("here", 2) as line:
        work(clock, line, range(2), seconds=2)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("here  2/2")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (0.5, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599.6, "1:00:00"), (360_000, "100:00:00")],
)
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text
