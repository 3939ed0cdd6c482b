"""Which machines a section's seconds were measured on, and the marks that tell them apart."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from eval.markdown import escape
from eval.rows import Row

Machines = Callable[[Row], list[str]]


def makers(row: Row) -> list[str]:
    """Returns the machines that made a row's sets; a baseline has none, and others' are not known."""
    return (
        [] if row.kind == "baseline" or row.made_elsewhere else sorted({record.set.device for _, record in row.links})
    )


def trainers(row: Row) -> list[str]:
    """Returns the machines that trained a row's students, CPUs with their threads."""
    students = [student for _, record in row.links for student in record.students]
    return sorted({f"{one.device}, threads: {one.threads}" if "cpu" in one.device else one.device for one in students})


def letters(rows: Iterable[Row], machines: Machines) -> dict[str, str]:
    """Returns a mark for each machine that a column of seconds was measured on; none if one machine did it all."""
    names = _names(rows, machines)
    return {name: f"m{number}" for number, name in enumerate(names, 1)} if len(names) > 1 else {}


def marks(names: Iterable[str], known: Mapping[str, str]) -> str:
    """Returns the marks of machines as markdown; ``known`` are those of ``letters``."""
    return "".join(f" <sup>{known[name]}</sup>" for name in names if name in known)


def listed(rows: Sequence[Row], machines: Machines) -> str:
    """Returns the machines in words, with their marks."""
    known = letters(rows, machines)
    return " and ".join(f"{escape(name)}{marks([name], known)}" for name in _names(rows, machines))


def _names(rows: Iterable[Row], machines: Machines) -> list[str]:
    return sorted({name for row in rows for name in machines(row)})
