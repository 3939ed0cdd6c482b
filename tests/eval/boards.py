"""Records for boards: sets of any method, judged with the scores a test wants to see."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.cells import ControlLink, Record, SetFacts, Student, add_student

RANDOM = ControlLink(method="random", labels="hard", recipe="random-hard")
PROTOCOL = {"name": "quick", "summary": "800 steps on a <narrow> net.", "labels": "stored", "recipe": {"steps": 800}}
DRAWS = (0.80, 0.82, 0.84)

Judge = Callable[..., None]


def record(method: str = "infer", *, seed: int = 0, cell: dict[str, Any] | None = None, **facts: Any) -> Record:
    """Returns a record without students: ``facts`` are the set's, ``cell`` the rest's."""
    recipe = facts.get("recipe", f"{method}-{facts.get('labels', 'hard')}")
    digest = hashlib.sha256(f"{recipe} {seed} {facts.get('fingerprint')}".encode()).hexdigest()
    known = {
        "id": f"{recipe}-{seed}", "sha256": digest, "preset": "digits", "dataset": "digits", "fingerprint": "f" * 64,
        "ipc": 10, "recipe": recipe, "labels": "hard", "images": 100, "wall_seconds": 12.0, "teacher_seconds": 0.0,
        "bytes": {"images": 6400, "labels": 100, "container": 320}, "device": "cpu (x86)",
        "controls": () if method in ("random", "full") else (RANDOM,),
    }  # fmt: skip
    place = {"protocol_name": "quick", "protocol_id": "1a2b3c4d", "protocol": PROTOCOL, "architecture": "convnet3"}
    return Record(**place | (cell or {}), set=SetFacts(**known | facts, method=method, seed=seed))


def student(blank: Record, index: int, top1: float, **changes: Any) -> Student:
    seed = int(hashlib.sha256(f"{blank.set.sha256} {index}".encode()).hexdigest()[:8], 16)
    known = {
        "index": index, "seed": seed, "metrics": {"top1": top1, "nll": 0.5}, "steps": 800, "train_seconds": 4.2,
        "device": "cpu (x86)", "threads": 2, "versions": {"torch": "2.15.0"}, "date": "2026-09-01",
    }  # fmt: skip
    return Student(**known | changes)


def judging(results: Path) -> Judge:
    def judged(method: str, scores: Sequence[float | Sequence[float]], *, metric: str = "top1", **facts: Any) -> None:
        """Records one set for each of ``scores``, with one student or several; ``facts`` may hold a ``student``."""
        changes = facts.pop("student", {})
        for seed, students in enumerate(scores):
            blank = record(method, **{"seed": seed} | facts)
            for index, score in enumerate([students] if isinstance(students, float) else students):
                metrics = {"top1": 0.5, "nll": 0.5} | {metric: score}
                add_student(results, blank, student(blank, index, score, **{"metrics": metrics} | changes))

    return judged


def line(page: str, *words: str) -> str:
    """Returns the only line of a table before the first details that holds the words."""
    rows = [
        one for one in page.split("<details>")[0].splitlines() if one[0:1] == "|" and all(word in one for word in words)
    ]
    assert len(rows) == 1, rows
    return rows[0]
