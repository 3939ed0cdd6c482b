"""Result records: one JSON file for each (set, protocol, architecture), with one entry for each trained student.

A record is data: what was judged, how, and what each student reached. Means, deviations and ranks are computed from
records and never stored in them. This module imports no torch, so boards can be rendered anywhere.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from dd_bench.errors import InvalidSetError
from dd_bench.files import locked, safe_name, slug, write_atomic

SCHEMA = 1
SIZE_LIMIT = 1 << 24  # bytes of a record; a student takes some 600
LabelKind = Literal["hard", "soft", "taped", "features"]  # as in dd_bench.targets, which imports torch
HEADLINES = {"auc": "ROC-AUC", "top1": "top-1"}  # what a record may be ranked by, the first that it has


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ControlLink(_Strict):
    """Where a board finds a control of an entry: the recipe id of the control on the same data and ipc."""

    method: str
    labels: LabelKind
    recipe: str


class SetFacts(_Strict):
    """What a board says about a set.

    ``recipe`` is everything that made the set except its seed: sets of one recipe are repetitions of one entry.
    ``bytes`` is the ledger of the tensors file by part (images, offsets, labels, container, …).
    """

    id: str
    sha256: str
    method: str
    preset: str
    dataset: str
    fingerprint: str
    ipc: int = Field(ge=0)  # 0: a baseline, such as all real data or an untrained net
    seed: int
    recipe: str
    labels: LabelKind
    images: int = Field(ge=1)
    bytes: dict[str, int]
    controls: tuple[ControlLink, ...] = ()
    parents: tuple[str, ...] = ()
    wall_seconds: float = Field(ge=0)
    teacher_seconds: float = Field(ge=0)
    device: str


class Student(_Strict):
    """One trained student, or an untrained one of 0 ``steps``.

    ``metrics`` are on the test split, of the last epoch or of what was chosen: ``top1`` in [0, 1], ``nll`` in nats, for
    graphs of two classes ``auc`` in [0, 1], and for transferred students the top-1 of probes (``probe_metric``).
    ``choice`` is what was chosen for this student on a validation split, with its score there (pool, lr, steps, …), or
    by its set (lr); it is written only where something was.
    """

    index: int = Field(ge=0)
    seed: int
    metrics: dict[str, float]
    steps: int = Field(ge=0)
    train_seconds: float = Field(ge=0)
    device: str
    threads: int
    versions: dict[str, str]
    date: str
    choice: dict[str, JsonValue] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_an_empty_choice(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out a choice that was none, so that a record from before there were choices keeps its bytes."""
        known: dict[str, Any] = dump(self)
        if not self.choice:
            known.pop("choice", None)
        return known


class Record(_Strict):
    """All students of one (set, protocol, architecture).

    ``protocol`` is the whole protocol as JSON, ``protocol_id`` its hash. ``teacher_bytes`` counts the teachers that a
    student needs while it trains (0 unless the protocol labels on the fly). ``target_fingerprint`` is of the data set
    whose test split judged, where that is not the set's own; it is written only then.
    """

    schema_version: Literal[1] = 1
    protocol_name: str
    protocol_id: str
    protocol: dict[str, Any]
    architecture: str
    teacher_bytes: int = Field(ge=0, default=0)
    target_fingerprint: str = ""
    set: SetFacts
    students: tuple[Student, ...] = ()

    @model_serializer(mode="wrap")
    def _without_its_own_data(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out a target that is the set's own data, so that a record from before there were others stays."""
        known: dict[str, Any] = dump(self)
        if not self.target_fingerprint:
            known.pop("target_fingerprint", None)
        return known

    @property
    def headline(self) -> str:
        """The metric that boards rank by: ``auc`` where students have it, else ``top1``."""
        return next((name for name in HEADLINES if any(name in one.metrics for one in self.students)), "top1")


def probe_metric(share: float) -> str:
    """Returns the name of the metric of a linear probe with a share of the labels: ``probe5`` for 0.05."""
    return f"probe{100 * share:g}"


def record_path(results: Path, record: Record) -> Path:
    """Returns where ``record`` lives under ``results``.

    The folder of a set is its id and the start of its sha256: a set synthesised again elsewhere has the same id, but
    perhaps other bytes, and its scores are its own.
    """
    facts = record.set
    folder = results / slug(facts.dataset) / safe_name(facts.method) / safe_name(f"{facts.id}-{facts.sha256[:8]}")
    return folder / safe_name(f"{record.protocol_name}-{record.protocol_id}--{record.architecture}.json")


def read_record(path: Path) -> Record:
    """Returns the record in ``path``.

    Raises:
        InvalidSetError: if the file is no record of this schema: too large, no JSON, an unknown field, a wrong type, or
            a number that is NaN or infinite.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_LIMIT + 1)
        if len(raw) > SIZE_LIMIT:
            raise ValueError(f"over {SIZE_LIMIT} bytes")
        record = Record.model_validate_json(raw, strict=True)
        # NaN is no JSON, but pydantic reads it where anything may stand
        json.dumps([record.protocol, *(student.choice for student in record.students)], allow_nan=False)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise _refusal(path, f"{place!r:.100}: {first['msg']:.300}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, str(error)) from error
    return record


def _refusal(path: Path, reason: str) -> InvalidSetError:
    return InvalidSetError(f"{path} is no record of schema {SCHEMA} ({reason}); delete it or restore it")


def read_records(results: Path) -> list[tuple[Path, Record]]:
    """Returns every record under ``results`` with its path, in the order of the paths; none if there is no folder."""
    return [(path, read_record(path)) for path in sorted(results.glob("*/*/*/*.json"))]


def missing_students(results: Path, blank: Record, runs: int) -> list[int]:
    """Returns the indices below ``runs`` that the record of ``blank``'s cell does not hold yet, ascending.

    Raises:
        InvalidSetError: if its students were judged on another copy of the target data.
    """
    path = record_path(results, blank)
    if not path.exists():
        return list(range(runs))
    record = read_record(path)
    if record.target_fingerprint != blank.target_fingerprint:
        raise InvalidSetError(
            f"{path} was judged on data with fingerprint {record.target_fingerprint[:12]}, but the data here have "
            f"{blank.target_fingerprint[:12]}; point --data-dir at the copy it was judged on, or delete the record"
        )
    done = {student.index for student in record.students}
    return [index for index in range(runs) if index not in done]


def add_student(results: Path, blank: Record, student: Student) -> Path:
    """Leaves the record of ``blank``'s cell with ``student`` in it, and returns its path.

    The file is read again under a lock, so that two evaluators add to one record without losing either's work; an
    index that is there already stays as it is.
    """
    path = record_path(results, blank)
    with locked(f"record {path.resolve()}"):
        record = read_record(path) if path.exists() else blank
        if student.index not in {known.index for known in record.students}:
            students = tuple(sorted([*record.students, student], key=lambda known: known.index))
            record = record.model_copy(update={"students": students})
            text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
            write_atomic(path, text.encode())
    return path
