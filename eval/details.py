"""The folded part of a section: exact bytes, steps, teachers, versions, and the whole protocol."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd
from pydantic import JsonValue

from eval.cells import Student
from eval.markdown import code, escape, span, table
from eval.rows import Row
from eval.sections import Section

_MANY = 4  # different values of a choice, up to which each is counted


def details(section: Section, names: Mapping[str, str]) -> str:
    """Returns what few need and a sceptic looks for, folded away: ``names`` are those of the rows, by recipe."""
    rows = [standing.row for standing in section.standings]
    students = [student for row in rows for _, record in row.links for student in record.students]
    dates = sorted(escape(student.date[:10]) for student in students)
    versions: dict[str, set[str]] = {}
    for name, version in (pair for student in students for pair in student.versions.items()):
        versions.setdefault(name, set()).add(version)
    libraries = ", ".join(escape(f"{name} {' / '.join(sorted(found))}") for name, found in sorted(versions.items()))
    protocol = json.dumps(section.data.protocol, indent=1, sort_keys=True, ensure_ascii=False)
    return "\n\n".join(
        [
            "<details><summary>Exact bytes, steps, other metrics, teachers, versions, the whole protocol</summary>",
            table(_choices(section, pd.DataFrame([_exact(row, names) for row in rows]))),
            f"Judged from {dates[0]} to {dates[-1]} with {libraries or 'unrecorded versions'}.",
            f"```json\n{protocol}\n```",
            "</details>",
        ]
    )


def _exact(row: Row, names: Mapping[str, str]) -> dict[str, str]:
    largest = max((record.set for _, record in row.links), key=lambda facts: (sum(facts.bytes.values()), facts.id))
    parts = [f"{escape(part)} {count:,}" for part, count in sorted(largest.bytes.items())]
    metrics = sorted({name for _, record in row.links for one in record.students for name in one.metrics})
    metrics.remove(row.links[0][1].headline)
    means = {name: row.metric(name).mean for name in metrics}
    return {
        "entry": names[row.recipe],
        "labels": row.labels,
        "recipe": code(row.recipe),
        "instances": f"{largest.images:,}",
        "bytes of the set": f"{' + '.join(parts)} = {sum(largest.bytes.values()):,}",
        "bytes of teachers": f"{row.teacher_bytes:,}",
        "steps": span(student.steps for _, record in row.links for student in record.students),
        "other metrics": ", ".join(f"{escape(name)} {mean:.3f}" for name, mean in means.items()),
        "teachers": " ".join(code(one) for one in sorted({one for group in row.teachers for one in group})),
    }


def _choices(section: Section, cells: pd.DataFrame) -> pd.DataFrame:
    """Returns the cells with a column of what was chosen for the students, where anything was."""
    told = [_chosen(standing.row) for standing in section.standings]
    # a rate that came with the set was chosen before there was a student, and not by its scores
    title = "trained at" if section.data.protocol.get("learned_lr") else "chosen on validation data"
    return cells.assign(**{title: told}) if any(told) else cells


def _chosen(row: Row) -> str:
    """Returns the values of each choice with the number of students that have them; of many numbers only the span."""
    students: dict[tuple[str, int], Student] = {}
    for _, record in row.links:
        for student in record.students:  # a set again, of the same bytes, has the same students
            students.setdefault((record.set.sha256, student.seed), student)
    values: dict[str, list[JsonValue]] = {}
    for name, value in (pair for student in students.values() for pair in student.choice.items()):
        values.setdefault(name, []).append(value)
    return "; ".join(f"{escape(name)} {_tally(values[name])}" for name in sorted(values))


def _tally(values: Sequence[JsonValue]) -> str:
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    counts = Counter(_word(value) for value in values)
    if len(counts) > _MANY and len(numbers) == len(values):
        return f"{min(numbers):.3g}–{max(numbers):.3g}"
    return " / ".join(
        f"{escape(word)} × {count}" for word, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    )


def _word(value: JsonValue) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
