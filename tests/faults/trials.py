"""A trial: a scene is disturbed, then played again; what is left must be what was there without the fault."""

import multiprocessing
import os
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from dd_bench.files import sha256_file
from eval.cells import read_records
from tests.faults.injection import Fault
from tests.faults.scenes import act, said_in

ROOT = Path(__file__).parents[2]
_PATIENCE = 120.0  # seconds for a scene, after which it hangs

_processes = multiprocessing.get_context("forkserver")  # forks of one that has imported torch, and done nothing yet
_processes.set_forkserver_preload(
    ["tests.faults.scenes", "dd_bench.cli.main", "higher", "sklearn.cluster", "sklearn.metrics", "torch_geometric.nn"]
)


@dataclass(frozen=True)
class Ending:
    """How a process ended: its exit code (negative: a signal), what it said, and after how many seconds."""

    code: int
    said: str
    seconds: float


@dataclass(frozen=True)
class Remains:
    """What is left of a scene: bytes of the set, scores by record, names of boards; what should not be there."""

    tensors: str
    scores: dict[str, list[Any]]
    boards: tuple[str, ...]
    litter: tuple[str, ...]


class Trial:
    """One scene in one folder, played by as many processes as it takes."""

    def __init__(self, scene: str, folder: Path, data: Path) -> None:
        self.scene, self.folder, self.data = scene, folder, data

    def start(self, fault: Fault | None = None) -> BaseProcess:
        """Starts the scene in a process of its own."""
        known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, known)]))
        self.started = time.monotonic()
        process = _processes.Process(target=act, args=(self.scene, self.folder, self.data, fault))
        process.start()
        return process

    def finish(self, process: BaseProcess, said_before: int = 0) -> Ending:
        """Waits for a process and returns how it ended; ``said_before`` characters were there before it."""
        process.join(_PATIENCE)
        if process.is_alive():
            process.kill()
            process.join()
            raise AssertionError(f"{self.scene} hangs")
        said = said_in(self.folder)
        heard = said.read_text()[said_before:] if said.exists() else ""
        return Ending(process.exitcode or 0, heard, time.monotonic() - self.started)

    def play(self, fault: Fault | None = None) -> Ending:
        """Plays the scene to its end, whatever that is."""
        said = said_in(self.folder)
        before = len(said.read_text()) if said.exists() else 0
        self._age_leftovers()
        return self.finish(self.start(fault), before)

    def kill_after(self, seconds: float) -> Ending:
        """Plays the scene and kills it after so long, wherever it is."""
        process = self.start()
        time.sleep(seconds)
        process.kill()
        return self.finish(process)

    def count(self) -> tuple[int, int]:
        """Returns how many changes of the disk and observed steps there were when the scene was played to count."""
        changes, observed = (self.folder / "counted").read_text().split()
        return int(changes), int(observed)

    def remains(self) -> Remains:
        """Returns what is left."""
        results = self.folder / "boards" / "results"
        (tensors,) = self.folder.glob("home/sets/*/*/*/*/tensors.safetensors")
        scores = {
            str(path.relative_to(results)): [(one.index, one.seed, one.metrics, one.steps) for one in record.students]
            for path, record in read_records(results)
        }
        boards = tuple(sorted(path.name for way in ("*.md", "*/*.svg") for path in results.parent.glob(way)))
        litter = sorted(
            str(path.relative_to(self.folder))
            for path in [
                *self.folder.rglob("*.partial"),
                *self.folder.rglob("*.former"),
                *self.folder.glob("home/runs/*"),
            ]
        )
        return Remains(sha256_file(tensors), scores, boards, tuple(litter))

    def _age_leftovers(self) -> None:
        """Has cut-off writes be two hours old, which is when they are taken for what they are."""
        for path in self.folder.rglob("*.partial"):
            if path.is_file():
                os.utime(path, (time.time() - 7200,) * 2)

    def finished(self) -> dict[str, Any]:
        """Returns what is finished and must never be made again: networks and sets, and students on record."""
        found: dict[str, Any] = {}
        for manifest in self.folder.glob("home/**/manifest.json"):
            if not any(part.startswith(".") for part in manifest.relative_to(self.folder).parts):
                for path in manifest.parent.iterdir():
                    found[str(path.relative_to(self.folder))] = (path.stat().st_mtime_ns, sha256_file(path))
        for path, record in read_records(self.folder / "boards" / "results"):
            found |= {f"{path.name} {one.index}": one for one in record.students}
        return found

    def checkpoints(self) -> list[Path]:
        """Returns the checkpoints of unfinished work, those before the last aside."""
        return sorted(self.folder.glob("home/runs/*/*.safetensors"))
