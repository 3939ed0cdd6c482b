"""The mirror: wandb really writes, offline and without a network; and nothing it does can stop a run."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import dd_bench
from dd_bench.checkpoint import State
from dd_bench.errors import InterruptedRunError
from dd_bench.mirror import Mirror
from dd_bench.run import Run
from tests.references.wandb_file import WandbFile

OFFLINE = """
import signal, sys
from pathlib import Path
from PIL import Image
from dd_bench import interruption
from dd_bench.mirror import Mirror

folder = Path(sys.argv[1])
interruption.install()
Image.new("RGB", (3, 2)).save(folder / "card.png")
with Mirror(
    "offline", folder=folder / "new" / "runs", name="the name", job="synth", group="3f9a77",
    config={"lr": 0.0625, "path": Path("x"), "settings": {"steps": [1, 2]}},
) as mirror:
    for step in range(1, 400):
        mirror.log("teacher convnet3-x0.25", 7 * step, {"loss": 1 / step, "bn": step})
        if step % 4 == 0:
            mirror.part("8a10 quick").log("student 1", step, {"loss": step / 8})
    mirror.log_card(folder / "card.png")
    mirror.summarise({"set": "3f9a77", "bytes": 301056})
    mirror.part("8a10 quick x0.25").summarise({"record": "leaderboards/results/x.json", "top1": 0.5})
mirror.log("student 1", 21, {"loss": 0.0})
assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == interruption._handle
"""


def wandb_process(code: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    root = Path(dd_bench.__file__).parents[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "NETRC"))}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code, str(folder)],
        cwd=folder, env=clean | {"HOME": str(folder), "PYTHONPATH": str(root)} | environment,
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


def test_offline_runs_land_on_disk(tmp_path: Path) -> None:
    done = wandb_process(OFFLINE, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (written,) = (tmp_path / "new" / "runs" / "wandb").glob("offline-run-*/run-*.wandb")
    run = WandbFile.finished(written)
    assert run.about == {"name": "the name", "project": "ddbench", "group": "3f9a77", "job": "synth"}
    assert {name: run.config[name] for name in ("lr", "path", "settings")} == {
        "lr": 0.0625, "path": "x", "settings": {"steps": [1, 2]},
    }  # fmt: skip
    # curves lie over the steps of their own stages, and a dot in a name takes nothing apart
    teacher, student = "teacher convnet3-x0_25", "8a10 quick/student 1"
    assert run.axes == {f"{stage}/*": f"{stage}/step" for stage in (teacher, student)}
    assert run.curve(f"{teacher}/loss", f"{teacher}/step") == [(7 * step, 1 / step) for step in range(1, 400)]
    assert run.curve(f"{teacher}/bn", f"{teacher}/step") == [(7 * step, step) for step in range(1, 400)]
    assert run.curve(f"{student}/loss", f"{student}/step") == [(step, step / 8) for step in range(4, 400, 4)]
    assert not [name for row in run.history for name in row if isinstance(name, tuple) and "card" not in name]
    (card,) = (written.parent / "files").rglob("card*.png")
    assert card.read_bytes() == (tmp_path / "card.png").read_bytes()
    assert str(card.relative_to(written.parent / "files")) in run.files
    assert {name: run.summary[name] for name in ("set", "bytes", "8a10 quick x0_25/record")} == {
        "set": "3f9a77", "bytes": 301056, "8a10 quick x0_25/record": "leaderboards/results/x.json",
    }  # fmt: skip
    assert run.exit_code == 0


KILLED = """
import os, sys, time, warnings
from pathlib import Path
from dd_bench.mirror import Mirror

warnings.simplefilter("default")
with Mirror("offline", folder=Path(sys.argv[1]), name="x", job="synth", config={}) as mirror:
    mirror.log("a", 1, {"loss": 1.0})
    me = str(os.getpid())
    children = [
        int(place.name) for place in Path("/proc").glob("[0-9]*")
        if (place / "stat").read_text().rpartition(")")[2].split()[1] == me
    ]
    assert children, "wandb has a process of its own"
    for child in children:
        os.kill(child, 9)
    for step in range(2, 200):
        mirror.log("a", step, {"loss": 1.0})
        time.sleep(0.005)
print("went on")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="finds wandb's process in /proc")
def test_wandb_is_killed(tmp_path: Path) -> None:
    done = wandb_process(KILLED, tmp_path)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert done.stderr.count("UserWarning: wandb failed (") == 1
    assert "Traceback" not in done.stderr


SILENT = """
import socket, sys, warnings
from pathlib import Path
from dd_bench import mirror
from dd_bench.mirror import Mirror

warnings.simplefilter("default", UserWarning)
mirror._INIT_SECONDS = 2.0
with socket.create_server(("127.0.0.1", 0)) as server:
    import os
    os.environ["WANDB_BASE_URL"] = f"http://127.0.0.1:{server.getsockname()[1]}"
    with Mirror("online", folder=Path(sys.argv[1]), name="x", job="synth", config={}) as it:
        it.log("a", 1, {"loss": 1.0})
    print("went on")
"""


def test_a_server_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    done = wandb_process(SILENT, tmp_path, WANDB_API_KEY="a" * 40)
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert done.stderr.count("UserWarning: wandb failed (") == 1


FAILED = """
import sys
from pathlib import Path
from dd_bench.mirror import Mirror

with Mirror("offline", folder=Path(sys.argv[1]), name="x", job="synth", config={}):
    raise SystemExit("diverged")
"""


def test_a_run_that_fails_is_one_that_failed(tmp_path: Path) -> None:
    done = wandb_process(FAILED, tmp_path)
    assert done.stderr == "diverged\n"
    (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    assert WandbFile.finished(written).exit_code == 1


NO_ACCOUNT = """
import sys, warnings
from pathlib import Path
from dd_bench.mirror import Mirror

warnings.simplefilter("default")
with Mirror("online", folder=Path(sys.argv[1]), name="x", job="synth", config={}) as mirror:
    mirror.log("a", 1, {"loss": 1.0})
print("went on")
"""


def test_online_without_an_account_only_warns(tmp_path: Path) -> None:
    done = wandb_process(NO_ACCOUNT, tmp_path, WANDB_BASE_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (0, "went on\n")
    assert done.stderr.count("UserWarning: wandb failed (") == 1


class FakeWandb(ModuleType):
    """A wandb that notes what it is asked, and fails where it is told to."""

    def __init__(self, fails: str = "", error: Exception | None = None) -> None:
        super().__init__("wandb")
        self.asked: list[tuple[str, Any]] = []
        self.fails, self.error = fails, error or RuntimeError("the server\nis full")
        self.summary = self

    def _ask(self, name: str, what: Any) -> None:
        self.asked.append((name, what))
        if name == self.fails:
            raise self.error

    def Settings(self, **options: Any) -> dict[str, Any]:  # noqa: N802 - wandb's name
        return options

    def Image(self, path: str) -> str:  # noqa: N802 - wandb's name
        return f"image {Path(path).name}"

    def init(self, **options: Any) -> "FakeWandb":
        self._ask("init", options)
        return self

    def define_metric(self, name: str, *, step_metric: str) -> None:
        self._ask("define", (name, step_metric))

    def log(self, values: dict[str, Any]) -> None:
        self._ask("log", values)

    def update(self, values: dict[str, Any]) -> None:
        self._ask("update", values)

    def finish(self, *, exit_code: int) -> None:
        self._ask("finish", exit_code)

    def teardown(self, *, exit_code: int) -> None:
        raise ConnectionResetError("what is left of it")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> FakeWandb:
    fake = FakeWandb(*getattr(request, "param", ()))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def use_all(mirror: Mirror) -> None:
    with mirror:
        mirror.log("fit", 1, {"loss": 0.5, "bn": 2.0})
        mirror.log("labels", 1, {"loss": 0.25})
        mirror.log("fit", 2, {"loss": 0.125})
        mirror.log_card(Path("folder") / "card.png")
        mirror.summarise({"id": "x"})


def test_what_wandb_is_asked(fake: FakeWandb, tmp_path: Path) -> None:
    use_all(Mirror("offline", folder=tmp_path / "new", name="n", job="synth", config={"a": 1}))
    (_, options), *asked = fake.asked
    assert (tmp_path / "new").is_dir()
    assert {key: options[key] for key in ("project", "name", "config", "dir", "mode")} == {
        "project": "ddbench", "name": "n", "config": {"a": 1}, "dir": str(tmp_path / "new"), "mode": "offline",
    }  # fmt: skip
    assert asked == [
        ("define", ("fit/*", "fit/step")),
        ("log", {"fit/loss": 0.5, "fit/bn": 2.0, "fit/step": 1}),
        ("define", ("labels/*", "labels/step")),
        ("log", {"labels/loss": 0.25, "labels/step": 1}),
        ("log", {"fit/loss": 0.125, "fit/step": 2}),
        ("log", {"card": "image card.png"}),
        ("update", {"id": "x"}),
        ("finish", 0),
    ]


@pytest.mark.parametrize("fake", [("init",), ("define",), ("log",), ("update",), ("finish",)], indirect=True)
def test_a_failing_wandb_only_warns(fake: FakeWandb, tmp_path: Path) -> None:
    with pytest.warns(
        UserWarning, match=r"^wandb failed \(the server is full\); the run goes on without it$"
    ) as caught:
        use_all(Mirror("online", folder=tmp_path, name="n", job="synth", config={}))
    assert len(caught) == 1
    assert fake.asked[-1][0] == fake.fails  # after which it is left alone


def test_a_missing_wandb_only_warns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.warns(UserWarning, match="wandb failed .*wandb.*; the run goes on") as caught:
        use_all(Mirror("offline", folder=tmp_path, name="n", job="synth", config={}))
    assert len(caught) == 1


def test_a_folder_that_cannot_be_only_warns(fake: FakeWandb, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="wandb failed"):
        use_all(Mirror("offline", folder=tmp_path / "file" / "in", name="n", job="synth", config={}))
    assert fake.asked == []


@pytest.mark.parametrize(
    "fake", [(name, InterruptedRunError(15, "at once")) for name in ("init", "log")], indirect=True
)
def test_a_signal_is_no_failure_of_wandb(fake: FakeWandb, tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match="stopped at once"):
        use_all(Mirror("online", folder=tmp_path, name="n", job="synth", config={}))


@pytest.mark.parametrize("fake", [("log",)], indirect=True)
def test_a_run_outlives_its_mirror(fake: FakeWandb, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", mirror=Mirror("offline", folder=tmp_path, name="n", job="synth", config={}))

    def work() -> None:
        for _ in run.steps("fit", 5, State(x=torch.zeros(1))):
            run.observe(loss=torch.ones(()))

    with pytest.warns(UserWarning, match="wandb failed") as caught:
        work()
    assert len(caught) == 1
    assert len((tmp_path / "run" / "report.jsonl").read_text().splitlines()) == 5
