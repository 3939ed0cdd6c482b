"""Runs: stopped anywhere and gone on with, nobody can tell; what is bad is never saved; signals are answered."""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dd_bench import interruption, progress, run
from dd_bench.checkpoint import State, load_tree, save_tree
from dd_bench.errors import DDBenchError, InterruptedRunError, InvalidSetError, NonFiniteError
from dd_bench.run import Run
from dd_bench.seeding import generator

NAN, INF = float("nan"), float("inf")


class Killed(Exception):  # noqa: N818 - what happens to a process, not an error of it
    """Stands for the end of the process at this place."""


class Clock:
    """Stands for the module `time`; goes on only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(run, "time", clock)
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps whose states were saved, as they come."""
    steps: list[int] = []

    def save(path: Path, tree: Any) -> None:
        steps.append(tree["step"])
        save_tree(path, tree)

    monkeypatch.setattr(run, "save_tree", save)
    return steps


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Our handlers, for one test."""
    monkeypatch.setattr(interruption, "_requested", None)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interruption.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_loop_is_left_open() -> Iterator[None]:
    yield
    assert interruption._loops == 0


class Work:
    """A walk that depends on everything a stage has: a state of its own, and draws."""

    def __init__(self) -> None:
        self.place, self.draws = torch.zeros(3, dtype=torch.float64), generator(3)
        self.seen: list[int] = []

    def do(
        self, run: Run, *, label: str = "walk", total: int = 250, each: Callable[[int], None] = lambda step: None
    ) -> "Work":
        for step in run.steps(label, total, State(place=self.place, draws=self.draws)):
            self.place += torch.randn(3, generator=self.draws, dtype=torch.float64)
            run.observe(loss=self.place.sum(), size=self.place.abs().max())
            each(step)
            self.seen.append(step)
        return self


def killed(*steps: int) -> Callable[[int], None]:
    """Returns what to do in a step: the process ends in ``steps``, elsewhere nothing happens."""

    def each(step: int) -> None:
        if step in steps:
            raise Killed

    return each


def observing(run: Run, **series: Mapping[int, float] | float) -> Callable[[int], None]:
    """Returns what to do in a step: observe 1, or what the series says for the step (or for every step)."""

    def each(step: int) -> None:
        numbers = {name: one if isinstance(one, float) else one.get(step, 1.0) for name, one in series.items()}
        run.observe(**{name: torch.tensor(number) for name, number in numbers.items()})

    return each


def reports(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "report.jsonl").read_text().splitlines()]


# --- going on ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    work = Work().do(Run(folder))
    assert work.seen == list(range(250))
    return work.place, work.draws.get_state(), (folder / "report.jsonl").read_bytes()


@pytest.mark.parametrize("every", [0.0, 7.0, 1e9])
@pytest.mark.parametrize("stops", [(0,), (1,), (6, 7, 8), (3, 120, 121, 249), (249, 249, 249)])
def test_resume_is_invisible(
    tmp_path: Path, clock: Clock, undisturbed: tuple[Tensor, Tensor, bytes], every: float, stops: tuple[int, ...]
) -> None:
    def ending(*steps: int) -> Callable[[int], None]:
        def each(step: int) -> None:
            clock.now += 1
            killed(*steps)(step)

        return each

    for stop in stops:
        with pytest.raises(Killed):
            Work().do(Run(tmp_path, save_every_seconds=every), each=ending(stop))
        with (tmp_path / "report.jsonl").open("a") as file:
            file.write('{"stage": "walk", "st')  # a line that was being written
    work = Work().do(Run(tmp_path, save_every_seconds=every), each=ending())
    place, draws, report = undisturbed
    assert torch.equal(work.place, place)
    assert torch.equal(work.draws.get_state(), draws)
    assert (tmp_path / "report.jsonl").read_bytes() == report
    first = {0.0: stops[-1], 7.0: max(stops) // 7 * 7, 1e9: 0}[every]
    assert work.seen == list(range(first, 250))


VANISH = """
import os, sys
from pathlib import Path
from dd_bench.run import Run
from tests.test_run import Work
folder, every, stop = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
Work().do(Run(folder, save_every_seconds=every), each=lambda step: os._exit(77) if step == stop else None)
"""


def python(code: str, *arguments: object) -> "subprocess.Popen[str]":
    root = Path(run.__file__).parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_resume_after_a_process_vanished(tmp_path: Path, undisturbed: tuple[Tensor, Tensor, bytes]) -> None:
    with python(VANISH, tmp_path, 0, 101) as process:
        _, errors = process.communicate()
    assert process.returncode == 77, errors
    work = Work().do(Run(tmp_path))
    assert work.seen[0] == 101
    assert torch.equal(work.place, undisturbed[0])
    assert (tmp_path / "report.jsonl").read_bytes() == undisturbed[2]


def test_finished_work_is_not_done_again(tmp_path: Path, undisturbed: tuple[Tensor, Tensor, bytes]) -> None:
    Work().do(Run(tmp_path))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    again = Work().do(Run(tmp_path))
    assert again.seen == []
    assert torch.equal(again.place, undisturbed[0])
    assert torch.equal(again.draws.get_state(), undisturbed[1])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_stages_go_on_each_by_itself(tmp_path: Path) -> None:
    def both(folder: Path, each: Callable[[int], None]) -> tuple[Work, Work, list[dict[str, Any]]]:
        run = Run(folder, save_every_seconds=0)
        first = Work().do(run, label="first part", total=120)
        second = Work().do(run, label="second part", total=10, each=each)
        return first, second, reports(folder)

    first, second, lines = both(tmp_path / "a", killed())
    assert {line["stage"]: line["step"] for line in lines} == {"first part": 120, "second part": 10}
    with pytest.raises(Killed):
        both(tmp_path / "b", killed(4))
    first_again, second_again, lines_again = both(tmp_path / "b", killed())
    assert (first_again.seen, second_again.seen) == ([], [4, 5, 6, 7, 8, 9])
    assert torch.equal(first_again.place, first.place)
    assert torch.equal(second_again.place, second.place)
    assert lines_again == lines
    assert sorted(path.name for path in (tmp_path / "b").iterdir() if path.suffix != ".before") == [
        "first_part.safetensors", "report.jsonl", "second_part.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("offsets resnet18-x0.25 1-8 of 10", "offsets_resnet18-x0.25_1-8_of_10"), ("sre2l++", "sre2l++"),
        ("a/b c\\d", "a+b_c+d"), ("../../up", "up"), (".hidden", "hidden"), ("é" + "x" * 300, "x" * 100),
    ],
)  # fmt: skip
def test_labels_name_files(tmp_path: Path, label: str, name: str) -> None:
    folder = tmp_path / "in" / "here"
    Work().do(Run(folder), label=label, total=2)
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == {f"{name}.safetensors"}
    assert (folder / f"{name}.safetensors").is_file()
    assert reports(folder)[-1]["stage"] == label
    assert Work().do(Run(folder), label=label, total=2).seen == []


def test_a_stage_of_no_steps_leaves_killed(tmp_path: Path) -> None:
    assert Work().do(Run(tmp_path / "run"), total=0).seen == []
    assert list(tmp_path.iterdir()) == []


def test_discard(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.discard()  # nothing there yet
    Work().do(run, total=2)
    run.discard()
    assert list(tmp_path.iterdir()) == []


def test_discard_keeps_the_report(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.discard(reports=tmp_path / "reports")  # nothing there yet
    assert list(tmp_path.iterdir()) == []
    Work().do(run, total=2)
    report = (tmp_path / "run" / "report.jsonl").read_bytes()
    run.discard(reports=tmp_path / "reports")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")] == ["reports/run.jsonl"]
    assert (tmp_path / "reports" / "run.jsonl").read_bytes() == report
    assert not run.folder.exists()


# --- other work -------------------------------------------------------------------------------------------------------


def test_rejects_another_length(tmp_path: Path) -> None:
    Work().do(Run(tmp_path), total=5)
    before = (tmp_path / "report.jsonl").read_bytes()
    with pytest.raises(
        DDBenchError, match=r"holds other work \('walk' with 5 steps\); expected 'walk' with 6 .* to start anew"
    ):
        Work().do(Run(tmp_path), total=6)
    assert (tmp_path / "report.jsonl").read_bytes() == before


def test_rejects_another_label(tmp_path: Path) -> None:
    Work().do(Run(tmp_path), label="a b", total=5)
    with pytest.raises(DDBenchError, match=r"holds other work \('a b' with 5 steps\); expected 'a_b' with 5"):
        Work().do(Run(tmp_path), label="a_b", total=5)


@pytest.mark.parametrize(
    ("state", "found"),
    [
        (State(place=torch.zeros(4, dtype=torch.float64), draws=generator(0)), r"found place as \(3,\)"),
        (State(place=torch.zeros(3, dtype=torch.float64)), "found the parts place, draws; expected place"),
        (State(place=torch.nn.Linear(2, 2), draws=generator(0)), "Expected state_dict to be dict-like"),
        (State(place=generator(0), draws=generator(0)), ""),
        (torch.nn.Linear(2, 2), r"Error\(s\) in loading state_dict for Linear: Missing key"),
    ],
)
def test_rejects_another_state(tmp_path: Path, state: Any, found: str) -> None:
    Work().do(Run(tmp_path), total=5)
    with pytest.raises(DDBenchError, match=rf"^.*walk\.safetensors holds other work \(.*{found}.*$") as caught:
        list(Run(tmp_path).steps("walk", 5, state))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tree", [None, [1], {"step": 3}, {"label": "walk", "total": 5, "step": 2}, 7])
def test_rejects_another_tree(tmp_path: Path, tree: Any) -> None:
    save_tree(tmp_path / "walk.safetensors", tree)
    with pytest.raises(DDBenchError, match="holds other work"):
        Work().do(Run(tmp_path), total=5)


def test_rejects_a_damaged_checkpoint(tmp_path: Path) -> None:
    Work().do(Run(tmp_path), total=5)
    path = tmp_path / "walk.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidSetError, match=r"walk\.safetensors is no checkpoint .* delete it"):
        Work().do(Run(tmp_path), total=5)


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    at = len(content) - 9
    spoilt = {"cut": content[:-1], "empty": b"", "one bit": content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]}
    path.write_bytes(spoilt[how])


@pytest.mark.parametrize("how", ["cut", "empty", "one bit"])
def test_a_damaged_checkpoint_costs_one_interval(
    tmp_path: Path, undisturbed: tuple[Tensor, Tensor, bytes], how: str
) -> None:
    def run() -> Run:
        return Run(tmp_path, save_every_seconds=0)

    with pytest.raises(Killed):
        Work().do(run(), each=killed(40))
    spoil(tmp_path / "walk.safetensors", how)
    work = Work()
    with pytest.warns(UserWarning, match=r"walk\.safetensors is damaged; going on from the checkpoint before it$"):
        work.do(run())
    assert work.seen == list(range(39, 250)), "one step was done again"
    assert torch.equal(work.place, undisturbed[0])
    assert torch.equal(work.draws.get_state(), undisturbed[1])
    assert (tmp_path / "report.jsonl").read_bytes() == undisturbed[2]


def test_rejects_two_damaged_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Work().do(Run(tmp_path, save_every_seconds=0), each=killed(40))
    for path in tmp_path.glob("walk.*"):
        spoil(path, "one bit")
    with pytest.raises(InvalidSetError, match=r"walk\.safetensors is no checkpoint .*its checksum differs.* delete it"):
        Work().do(Run(tmp_path))


def test_without_links_the_last_checkpoint_is_all_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    with pytest.raises(Killed):
        Work().do(Run(tmp_path, save_every_seconds=0), each=killed(40))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.jsonl", "walk.safetensors"]
    assert Work().do(Run(tmp_path)).seen[0] == 40


# --- when states are saved, and seconds counted -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("every", "expected"),
    [(0.0, list(range(1, 26))), (10.0, [4, 8, 12, 16, 20, 24, 25]), (1e9, [25])],
)
def test_save_interval(tmp_path: Path, clock: Clock, saved: list[int], every: float, expected: list[int]) -> None:
    def each(step: int) -> None:
        clock.now += 3

    Work().do(Run(tmp_path, save_every_seconds=every), total=25, each=each)
    assert saved == expected


def test_seconds_are_those_of_all_processes(tmp_path: Path, clock: Clock) -> None:
    def ending(*steps: int) -> Callable[[int], None]:
        def each(step: int) -> None:
            clock.now += 10
            killed(*steps)(step)

        return each

    for stop in (4, 7):  # each loses the step under way
        clock.now += 5000  # between processes nothing counts
        with pytest.raises(Killed):
            Work().do(Run(tmp_path, save_every_seconds=0), total=10, each=ending(stop))
    clock.now += 5000
    last = Run(tmp_path, save_every_seconds=0)
    Work().do(last, total=10, each=ending())
    assert last.seconds == 100
    clock.now += 5000
    Work().do(last, label="second", total=3, each=ending())
    assert last.seconds == 130
    again = Run(tmp_path)
    for label, total in (("walk", 10), ("second", 3)):
        clock.now += 5000
        Work().do(again, label=label, total=total, each=ending())
    assert again.seconds == 130


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "steps"),
    [
        (1, [1]), (3, [1, 2, 3]), (199, list(range(1, 200))), (250, list(range(2, 251, 2))),
        (305, [*range(3, 304, 3), 305]),
    ],
)  # fmt: skip
def test_reports(tmp_path: Path, total: int, steps: list[int]) -> None:
    values: list[dict[str, float]] = []
    run, work = Run(tmp_path), Work()

    def each(step: int) -> None:
        values.append({"loss": float(work.place.sum()), "size": float(work.place.abs().max())})

    work.do(run, total=total, each=each)
    assert reports(tmp_path) == [{"stage": "walk", "step": step, **values[step - 1]} for step in steps]


def test_the_mirror_sees_every_report(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = []

    class Spy:
        def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
            lines.append({"stage": stage, "step": step, **values})

    Work().do(Run(tmp_path, mirror=Spy()), total=305)  # type: ignore[arg-type]
    assert lines == reports(tmp_path)
    assert len(lines) == 102


def test_steps_that_observe_nothing_are_not_reported(tmp_path: Path) -> None:
    assert list(Run(tmp_path).steps("quiet", 4, State(x=torch.zeros(1)))) == [0, 1, 2, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["quiet.safetensors"]


def test_stages_do_not_mix_their_quantities(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for label in ("a", "b"):
        for _ in run.steps(label, 2, State(x=torch.zeros(1))):
            run.observe(**{f"loss of {label}": torch.ones(())})
    assert [list(line) for line in reports(tmp_path)[::2]] == [
        ["stage", "step", "loss of a"],
        ["stage", "step", "loss of b"],
    ]


class Reads(TorchDispatchMode):
    """Counts what makes a host wait for its device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.count += name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::item")
        return func(*args, **(kwargs or {}))


def test_observing_waits_for_no_device(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with Reads() as reads:
        float(torch.ones(()))
        assert reads.count == 1  # the spy sees
        for step in run.steps("spied", 1000, State(x=torch.zeros(1))):
            before = reads.count
            run.observe(a=torch.ones(()) * step, b=torch.ones((), dtype=torch.bfloat16))
            assert reads.count == before


# --- bad numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("series", "name", "step"),
    [
        ({"loss": {0: NAN}}, "loss", 1),
        ({"loss": {123: NAN}}, "loss", 124),
        ({"loss": {123: INF}}, "loss", 124),
        ({"loss": {123: -INF}}, "loss", 124),
        ({"loss": {999: NAN}}, "loss", 1000),
        ({"loss": {124: NAN, 126: NAN, 125: INF}}, "loss", 125),
        ({"fine": 1.0, "bn": {123: NAN}, "ce": {122: INF}}, "ce", 123),
        ({"bn": {121: NAN}, "ce": {122: INF}, "fine": 1.0}, "bn", 122),
    ],
)
def test_the_first_bad_step_is_named(
    tmp_path: Path, saved: list[int], series: dict[str, Any], name: str, step: int
) -> None:
    run = Run(tmp_path, save_every_seconds=1e9)
    with pytest.raises(NonFiniteError, match=rf"^walk: {name} became NaN or infinite at step {step}; expected"):
        Work().do(run, total=1000, each=observing(run, **series))
    assert saved == []
    assert max([line["step"] for line in reports(tmp_path)] if step > 10 else [0]) == (step - 1) // 10 * 10


def test_the_last_good_state_stays(tmp_path: Path, saved: list[int]) -> None:
    good = Work()

    def each(step: int) -> None:
        if step < 57:
            good.place.copy_(work.place)
        observing(run, loss={57: NAN})(step)

    run, work = Run(tmp_path, save_every_seconds=0), Work()
    with pytest.raises(NonFiniteError, match=r"at step 58; .* the last good state is kept"):
        work.do(run, total=1000, each=each)
    assert saved == list(range(1, 58))
    tree: Any = load_tree(tmp_path / "walk.safetensors")
    assert tree["step"] == 57
    assert torch.equal(tree["state"]["place"], good.place)


def test_a_bad_step_is_named_alike_after_a_restart(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Work().do(Run(tmp_path, save_every_seconds=0), total=1000, each=killed(33))
    run = Run(tmp_path, save_every_seconds=1e9)
    with pytest.raises(NonFiniteError, match="at step 36; "):
        Work().do(run, total=1000, each=observing(run, loss={35: NAN}))
    tree: Any = load_tree(tmp_path / "walk.safetensors")
    assert tree["step"] == 33


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_observes_any_scalar(tmp_path: Path, dtype: torch.dtype) -> None:
    run = Run(tmp_path)
    for _ in run.steps("typed", 1, State(x=torch.zeros(1))):
        run.observe(one=torch.ones((), dtype=dtype), also=torch.ones(1, requires_grad=True))
    assert reports(tmp_path) == [{"stage": "typed", "step": 1, "one": 1.0, "also": 1.0}]


def test_large_doubles_are_finite(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for _ in run.steps("large", 1, State(x=torch.zeros(1))):
        run.observe(large=torch.tensor(1e300, dtype=torch.float64))
    assert reports(tmp_path)[0]["large"] == 1e300


# --- signals ----------------------------------------------------------------------------------------------------------


def at(step: int, *numbers: int) -> Callable[[int], None]:
    def each(now: int) -> None:
        if now == step:
            for number in numbers:
                signal.raise_signal(number)

    return each


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_first(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    saved: list[int],
    undisturbed: tuple[Tensor, Tensor, bytes],
    number: int,
    code: int,
) -> None:
    work = Work()
    with pytest.raises(InterruptedRunError, match="stopped in walk after step 42 of 250; everything so far") as caught:
        work.do(Run(tmp_path, save_every_seconds=1e9), each=at(41, number))
    assert caught.value.exit_code == code
    assert saved == [42]
    assert work.seen[-1] == 41  # the step under way came to its end
    monkeypatch.setattr(interruption, "_requested", None)  # another process
    again = Work().do(Run(tmp_path))
    assert again.seen[0] == 42
    assert torch.equal(again.place, undisturbed[0])
    assert (tmp_path / "report.jsonl").read_bytes() == undisturbed[2]


@pytest.mark.usefixtures("signals")
def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    work = Work()
    with pytest.raises(InterruptedRunError, match="stopped at once") as caught:
        work.do(Run(tmp_path, save_every_seconds=0), each=at(41, signal.SIGTERM, signal.SIGINT))
    assert caught.value.exit_code == 130
    assert work.seen[-1] == 40
    tree: Any = load_tree(tmp_path / "walk.safetensors")
    assert tree["step"] == 41


@pytest.mark.usefixtures("signals")
def test_a_signal_outside_a_loop_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InterruptedRunError, match="stopped at once") as caught:
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143
    monkeypatch.setattr(interruption, "_requested", None)  # another process
    with pytest.raises(Killed):
        Work().do(Run(tmp_path), total=5, each=killed(2))  # a loop that is over, however it ended
    with pytest.raises(InterruptedRunError, match="stopped at once"):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("signals")
def test_a_signal_that_foreign_code_swallows_stops_the_next_loop(tmp_path: Path) -> None:
    with suppress(InterruptedRunError):  # as an import does that tries something and goes on without it
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(InterruptedRunError, match="stopped in work after step 1 of 5"):
        Work().do(Run(tmp_path), label="work", total=5)


@pytest.mark.usefixtures("signals")
def test_a_signal_in_the_last_step_stops_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows may take long, and is in no loop; the finished work is saved, and only has to be stored."""
    run = Run(tmp_path, save_every_seconds=1e9)
    with pytest.raises(InterruptedRunError, match="stopped in walk after step 5 of 5"):
        Work().do(run, total=5, each=at(4, signal.SIGTERM))
    monkeypatch.setattr(interruption, "_requested", None)  # another process
    assert Work().do(run, total=5).seen == []


@pytest.mark.usefixtures("signals")
def test_a_signal_while_the_last_state_is_saved_stops_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def signalling(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        save_tree(*arguments)

    monkeypatch.setattr(run, "save_tree", signalling)
    with pytest.raises(InterruptedRunError, match="stopped in walk after step 5 of 5"):
        Work().do(Run(tmp_path, save_every_seconds=1e9), total=5)


@pytest.mark.usefixtures("signals")
def test_a_signal_saves_no_bad_state(tmp_path: Path, saved: list[int]) -> None:
    run = Run(tmp_path, save_every_seconds=1e9)

    def each(step: int) -> None:
        observing(run, loss={40: NAN})(step)
        at(41, signal.SIGTERM)(step)

    with pytest.raises(NonFiniteError, match="at step 41"):
        Work().do(run, total=1000, each=each)
    assert saved == []


@pytest.mark.usefixtures("signals")
def test_a_signal_between_two_glances_saves_nothing_unseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: list[int]
) -> None:
    """It comes after the step was found to need no look, as late as `Progress.update`."""
    run, update = Run(tmp_path, save_every_seconds=1e9), progress.Progress.update

    def interrupted(self: progress.Progress, step: int, values: Mapping[str, float] | None = None) -> None:
        update(self, step, values)
        if step == 41:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(progress.Progress, "update", interrupted)
    with pytest.raises(NonFiniteError, match="at step 41"):
        Work().do(run, total=1000, each=observing(run, loss={40: NAN}))
    assert saved == []


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_line_tells_what_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int, code: int
) -> None:
    cli = importlib.import_module("dd_bench.cli.main")
    monkeypatch.setattr(cli, "commands", lambda *_, **__: Work().do(Run(tmp_path), each=at(7, number)))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == code
    assert capsys.readouterr().err == (
        "ddbench: stopped in walk after step 8 of 250; everything so far is saved, and the same command goes on from "
        "there\n"
    )


LONG = """
import sys, time
from pathlib import Path
from dd_bench import interruption
from dd_bench.errors import InterruptedRunError
from dd_bench.run import Run
from tests.test_run import Work

def each(step):
    if step == 20:
        print("there", flush=True)
    if step >= 20:
        time.sleep(0.05)

interruption.install()
try:
    Work().do(Run(Path(sys.argv[1])), total=10_000, each=each)
except InterruptedRunError as error:
    sys.exit(error.exit_code)
"""


def test_a_signal_from_outside_saves_first(tmp_path: Path) -> None:
    with python(LONG, tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert (process.returncode, errors) == (143, "")
    tree: Any = load_tree(tmp_path / "walk.safetensors")
    assert 21 <= tree["step"] < 10_000
