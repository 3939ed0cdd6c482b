"""Records: whole, in their place, refused when they are not records, and never short of a student."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dd_bench.errors import InvalidSetError
from eval import cells
from eval.cells import (
    Record,
    SetFacts,
    Student,
    add_student,
    missing_students,
    read_record,
    read_records,
    record_path,
)

FACTS: dict[str, Any] = {
    "id": "0123456789ab", "sha256": "5e" * 32, "method": "infer", "preset": "digits", "dataset": "cifar10@20/20",
    "fingerprint": "f0" * 32, "ipc": 10, "seed": 0, "recipe": "ba9876543210", "labels": "soft", "images": 28,
    "bytes": {"images": 6400}, "parents": ("convnet3-0",), "wall_seconds": 1.5, "teacher_seconds": 0.5, "device": "cpu",
}  # fmt: skip


def blank(**changes: Any) -> Record:
    """Returns a record without students; ``changes`` are of its set, or of itself where it has such a field."""
    own = {name: value for name, value in changes.items() if name in Record.model_fields}
    facts = FACTS | {name: value for name, value in changes.items() if name not in own}
    known: dict[str, Any] = {
        "protocol_name": "quick", "protocol_id": "1a2b3c4d", "protocol": {"labels": "stored", "temperature": None},
        "architecture": "convnet3", "set": SetFacts(**facts),
    }  # fmt: skip
    return Record(**known | own)


def student(index: int, top1: float = 0.5) -> Student:
    return Student(
        index=index, seed=index + 100, metrics={"top1": top1, "nll": 1.25}, steps=8, train_seconds=0.5, device="cpu",
        threads=1, versions={"torch": "2.15"}, date="2026-09-01",
    )  # fmt: skip


@pytest.fixture
def good(results: Path) -> Path:
    return add_student(results, blank(), student(0))


# --- what is written is read -----------------------------------------------------------------------------------------


def test_round_trip(results: Path) -> None:
    for index in (2, 0, 1):
        path = add_student(results, blank(), student(index, index / 4))
    record = read_record(path)
    assert record == blank(students=tuple(student(index, index / 4) for index in range(3)))  # in order
    assert read_records(results) == [(path, record)]
    assert not list(results.rglob(".*")), "nothing unfinished is left"


def test_the_schema_is_what_records_of_the_past_have() -> None:
    assert set(Record.model_fields) == {
        "schema_version", "protocol_name", "protocol_id", "protocol", "architecture", "teacher_bytes",
        "target_fingerprint", "set", "students",
    }  # fmt: skip
    assert set(SetFacts.model_fields) == set(FACTS) | {"controls"}
    assert set(Student.model_fields) == {
        "index", "seed", "metrics", "steps", "train_seconds", "device", "threads", "versions", "date",
        "choice",
    }  # fmt: skip


def test_records_of_the_past_keep_their_bytes() -> None:
    for path, record in read_records(Path(__file__).parents[2] / "leaderboards" / "results"):
        assert (json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n").encode() == (
            path.read_bytes()
        )


def test_a_choice_is_kept_and_none_is_not_written(results: Path) -> None:
    choice = {"pool": "mean", "lr": 0.01, "steps": 40, "validation": 0.75, "tried": [1, 2], "early": None}
    untrained = student(1).model_copy(update={"steps": 0, "choice": choice})
    add_student(results, blank(), student(0))
    path = add_student(results, blank(), untrained)
    written = json.loads(path.read_text())["students"]
    assert "choice" not in written[0]
    assert written[1]["choice"] == choice
    assert read_record(path).students == (student(0), untrained)
    assert list(json.loads(student(0).model_dump_json())) == list(written[0])


def test_a_target_is_kept_and_the_sets_own_data_are_not_written(results: Path) -> None:
    """So a record that was judged on its own data has the bytes that it had before there were others."""
    elsewhere = blank(target_fingerprint="ab" * 32, protocol_id="2b3c4d5e")
    plain, moved = (add_student(results, one, student(0)) for one in (blank(), elsewhere))
    assert plain.parent == moved.parent
    assert "target_fingerprint" not in plain.read_text()
    assert json.loads(moved.read_text())["target_fingerprint"] == "ab" * 32
    assert read_record(plain).target_fingerprint == ""
    assert read_record(moved) == elsewhere.model_copy(update={"students": (student(0),)})
    told = blank().model_dump(mode="json")
    assert list(elsewhere.model_dump(mode="json")) == [*list(told)[:6], "target_fingerprint", *list(told)[6:]]
    assert Record.model_validate_json(moved.read_bytes()).model_dump_json() == read_record(moved).model_dump_json()


@pytest.mark.parametrize("targets", [("ab" * 32, "cd" * 32), ("", "cd" * 32), ("ab" * 32, "")])
def test_rejects_students_of_another_copy_of_the_target(results: Path, targets: tuple[str, str]) -> None:
    ours, theirs = (blank(target_fingerprint=target) for target in targets)
    path = add_student(results, ours, student(0))
    assert missing_students(results, ours, 2) == [1]
    with pytest.raises(InvalidSetError) as caught:
        missing_students(results, theirs, 2)
    assert str(caught.value) == (
        f"{path} was judged on data with fingerprint {targets[0][:12]}, but the data here have {targets[1][:12]}; "
        "point --data-dir at the copy it was judged on, or delete the record"
    )
    assert missing_students(results, theirs.model_copy(update={"architecture": "convnet2"}), 1) == [0]


def test_the_headline_is_the_auc_where_students_have_it() -> None:
    graded = student(0).model_copy(update={"metrics": {"top1": 0.5, "nll": 1.25, "auc": 0.75}})
    assert blank(students=(graded,)).headline == "auc"
    assert blank(students=(student(0),)).headline == blank().headline == "top1"


def test_no_folder_is_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "nowhere") == []


def test_missing_students(results: Path) -> None:
    assert missing_students(results, blank(), 3) == [0, 1, 2]
    add_student(results, blank(), student(1))
    assert missing_students(results, blank(), 3) == [0, 2]
    assert missing_students(results, blank(), 1) == [0]
    assert missing_students(results, blank(architecture="convnet2"), 2) == [0, 1]


def test_a_student_on_record_stays_as_it_is(results: Path, good: Path) -> None:
    before = good.read_bytes()
    assert add_student(results, blank(), student(0, top1=0.99)) == good
    assert good.read_bytes() == before


def test_a_record_that_cannot_be_written_leaves_the_one_before(
    results: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before = good.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        add_student(results, blank(), student(1))
    assert good.read_bytes() == before
    assert [path.name for path in good.parent.iterdir()] == [good.name]


ADD_MANY = """
import sys
from pathlib import Path
from eval.cells import Record, Student, add_student

results, first = Path(sys.argv[1]), int(sys.argv[2])
blank = Record.model_validate_json(sys.argv[3])
student = Student.model_validate_json(sys.argv[4])
print("ready", flush=True)
sys.stdin.readline()
for index in range(first, 40, 2):
    add_student(results, blank, student.model_copy(update={"index": index}))
"""


def test_two_processes_lose_no_student(results: Path) -> None:
    arguments = [str(results), blank().model_dump_json(), student(0).model_dump_json()]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADD_MANY, arguments[0], str(first), *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for first in (0, 1)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # now that both are there, they go on at once
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0
    record = read_record(record_path(results, blank()))
    assert [one.index for one in record.students] == list(range(40))


# --- where a record lies ---------------------------------------------------------------------------------------------


def test_path(results: Path) -> None:
    place = results / "cifar10@20+20" / "infer" / "0123456789ab-5e5e5e5e" / "quick-1a2b3c4d--convnet3.json"
    assert record_path(results, blank()) == place


def test_other_bytes_of_the_same_id_have_a_record_of_their_own(results: Path) -> None:
    ours = add_student(results, blank(), student(0, 0.25))
    theirs = add_student(results, blank(sha256="ab" * 32), student(0, 0.75))
    assert ours.parent != theirs.parent
    assert [read_record(path).students[0].metrics["top1"] for path in (ours, theirs)] == [0.25, 0.75]


@pytest.mark.parametrize(
    "changes",
    [
        {"method": ".."}, {"method": "a/b"}, {"method": ""}, {"method": ".hidden"}, {"method": "a\x00b"},
        {"id": "../../../../etc/passwd"}, {"id": "/etc"}, {"id": "x" * 200}, {"sha256": "../../.."},
        {"architecture": "../x"}, {"architecture": "a\nb"}, {"protocol_name": "/tmp/x"}, {"protocol_id": "../../../x"},
        {"dataset": ""}, {"dataset": "../.."}, {"dataset": "/"},
    ],
    ids=str,
)  # fmt: skip
def test_rejects_names_that_lead_elsewhere(results: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSetError, match="is no plain name"):
        add_student(results, blank(**changes), student(0))
    assert not results.exists()


def test_a_data_set_with_a_slash_is_one_folder(results: Path) -> None:
    path = record_path(results, blank(dataset="../cifar10/../../x"))
    assert path.parts[: len(results.parts)] == results.parts
    assert len(path.relative_to(results).parts) == 4
    assert ".." not in path.parts


# --- what is no record -----------------------------------------------------------------------------------------------


def put(old: str, new: str) -> Callable[[str], str]:
    """Returns the change of a text from ``old`` to ``new``, once."""

    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


DAMAGE: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda _: "", "EOF"),
    "half": (lambda text: text[: len(text) // 2], "EOF"),
    "list": (lambda _: "[]", "Input should be an object"),
    "not json": (lambda _: "top1: 1.0", "Invalid JSON"),
    "deep": (lambda _: "[" * 100_000, "recursion limit"),
    "deep inside": (put('"stored"', "[" * 100_000 + "]" * 100_000), "recursion limit"),
    "huge": (lambda text: text + " " * cells.SIZE_LIMIT, "over 16777216 bytes"),
    "huge number": (put('"ipc": 10', f'"ipc": {"9" * 5000}'), "number out of range"),
    "NaN score": (put('"top1": 0.5', '"top1": NaN'), "students.0.metrics.top1.*finite"),
    "infinite score": (put('"top1": 0.5', '"top1": 1e999'), "students.0.metrics.top1.*finite"),
    "NaN in the protocol": (put('"temperature": null', '"temperature": NaN'), "not JSON compliant"),
    "NaN in a choice": (
        put('"date": "2026-09-01"', '"date": "2026-09-01", "choice": {"lr": NaN}'),
        "not JSON compliant",
    ),
    "negative steps": (put('"steps": 8', '"steps": -1'), "students.0.steps.*greater than or equal to 0"),
    "extra field": (put('"ipc": 10', '"ipc": 10, "mean": 0.9'), "set.mean.*not permitted"),
    "extra field at the top": (put('"architecture"', '"rank": 1, "architecture"'), "rank.*not permitted"),
    "missing field": (put('"recipe": "ba9876543210",', ""), "set.recipe.*required"),
    "number as text": (put('"ipc": 10', '"ipc": "10"'), "set.ipc.*valid integer"),
    "negative size": (put('"ipc": 10', '"ipc": -1'), "set.ipc.*greater than or equal to 0"),
    "no images": (put('"images": 28', '"images": 0'), "set.images"),
    "other labels": (put('"labels": "soft"', '"labels": "warm"'), "set.labels"),
    "newer schema": (put('"schema_version": 1', '"schema_version": 2'), "schema_version"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_rejects_damage_in_one_line(good: Path, name: str) -> None:
    damage, reason = DAMAGE[name]
    good.write_text(damage(good.read_text()))
    with pytest.raises(InvalidSetError, match=f"is no record of schema 1 .*{reason}") as refusal:
        read_record(good)
    message = str(refusal.value)
    assert message.startswith(str(good))
    assert "\n" not in message
    assert len(message) < len(str(good)) + 500
    assert message.endswith("delete it or restore it")


def test_rejects_bytes_that_are_no_text(good: Path) -> None:
    good.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidSetError, match="is no record"):
        read_record(good)


def test_rejects_a_folder_in_place_of_a_record(good: Path) -> None:
    good.unlink()
    good.mkdir()
    with pytest.raises(InvalidSetError, match=re.escape(f"{good} is no record")):
        read_record(good)


def test_a_damaged_record_is_not_written_over(results: Path, good: Path) -> None:
    good.write_text("{")
    for touch in (lambda: add_student(results, blank(), student(1)), lambda: missing_students(results, blank(), 2)):
        with pytest.raises(InvalidSetError, match="is no record"):
            touch()
    assert good.read_text() == "{"


def test_records_are_for_people_too(good: Path) -> None:
    text = good.read_text()
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n"
