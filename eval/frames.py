"""Records as one table of students, after a look for what would make a board lie."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dd_bench.errors import InvalidSetError
from eval.cells import Record, record_path

Link = tuple[Path, Record]

_DESCRIPTIVE = ("name", "summary", "architectures")  # what a protocol says of itself beside what moves scores


def checked(links: Sequence[Link], results: Path) -> list[Link]:
    """Returns the records under ``results`` that hold students.

    Raises:
        InvalidSetError: for a record outside its place (a copy would count twice), a student twice, a top-1 (or an AUC
            that other students have) that is absent or no fraction, or one protocol id (or recipe) that stands for two
            different things.
    """
    meanings: dict[tuple[str, str], tuple[object, Path]] = {}
    for path, record in links:
        if path != (home := record_path(results, record)):
            raise InvalidSetError(f"{path} holds a record that belongs at {home}; move it there or delete it")
        _check_students(path, record)
        facts = record.set
        for name, meaning in (
            (("protocol id", record.protocol_id), decisive(record)),
            (("recipe", facts.recipe), (facts.method, facts.dataset, facts.fingerprint, facts.ipc, facts.labels)),
        ):
            known, where = meanings.setdefault(name, (meaning, path))
            if known != meaning:
                raise InvalidSetError(
                    f"{' '.join(name)} stands for two different things, in {where} and in {path}; "
                    "an id names one: delete the record that is wrong"
                )
    return [(path, record) for path, record in links if record.students]


def frame(links: Sequence[Link]) -> pd.DataFrame:
    """Returns one row a student, with its metrics and what boards group by.

    ``score`` is the record's headline metric. ``record`` is the position in ``links``; ``seed`` is the student's,
    ``set_seed`` the one its set was made with. ``draw`` numbers the independent sets of a recipe: sets are one draw if
    they share their id (the same seed, synthesised again elsewhere) or their bytes (a method that gives the same set
    for every seed), for neither is a repetition. ``again`` marks a student whose bytes and seed another one had
    before it, as the students of such sets have: it is the same student, and no further evidence.
    """
    rows: list[dict[str, Any]] = []
    for position, (_, record) in enumerate(links):
        facts = record.set.model_dump(include={"dataset", "fingerprint", "ipc", "recipe", "method", "labels", "sha256"})
        cell = {
            "protocol": record.protocol_name,
            "protocol_id": record.protocol_id,
            "target_fingerprint": record.target_fingerprint,
            "architecture": record.architecture,
            "record": position,
            "set_seed": record.set.seed,
        }
        rows.extend(
            {**one.metrics, **facts, **cell, "seed": one.seed, "score": one.metrics[record.headline]}
            for one in record.students
        )
    draws = _draws([record for _, record in links])
    students = pd.DataFrame(rows)
    return students.assign(
        draw=[draws[position] for position in students["record"]],
        again=students.duplicated(["recipe", "protocol_id", "architecture", "sha256", "seed"]),
    )


def decisive(record: Record) -> dict[str, Any]:
    """Returns the part of the protocol that can move a score."""
    return {name: value for name, value in record.protocol.items() if name not in _DESCRIPTIVE}


def _check_students(path: Path, record: Record) -> None:
    indices = [student.index for student in record.students]
    if len(set(indices)) < len(indices):
        raise InvalidSetError(f"{path} holds a student twice (indices {indices}); delete it and judge the set again")
    for name in dict.fromkeys(("top1", record.headline)):
        for student in record.students:
            score = student.metrics.get(name)
            if score is None or not 0 <= score <= 1:
                raise InvalidSetError(
                    f"{path}: student {student.index} has {name} {'missing' if score is None else score}; "
                    "expected a fraction in [0, 1]: delete the record and judge the set again"
                )


def _draws(records: Sequence[Record]) -> list[int]:
    """Returns for each record the number of its draw: equal for records linked by (recipe, id) or (recipe, bytes)."""
    draw: dict[tuple[str, str, str], int] = {}
    keys = [((one.set.recipe, "id", one.set.id), (one.set.recipe, "sha256", one.set.sha256)) for one in records]
    for at, pair in enumerate(keys):
        joined = {draw[key] for key in pair if key in draw}
        if len(joined) > 1:  # this record shows that two draws so far were one
            draw.update({key: at for key, known in draw.items() if known in joined})
        draw |= dict.fromkeys(pair, min(joined) if len(joined) == 1 else at)
    return [draw[pair[0]] for pair in keys]
