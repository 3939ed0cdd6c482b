"""A section of a board as markdown: its tables, the notes below them, and the details a sceptic opens."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from eval.cells import HEADLINES
from eval.comparisons import Comparison
from eval.details import details
from eval.frames import decisive
from eval.machines import letters, makers, marks, trainers
from eval.markdown import chance, code, escape, phrase, points, seconds, size, span, table
from eval.names import entry_names, heading
from eval.notes import notes
from eval.probe_tables import probe_table
from eval.rows import Row
from eval.sections import Section, Standing
from eval.statistics import Difference, nested

_LABEL_USE = {
    "stored": "Students see the labels that a set stores.",
    "class": "Students see the class that each instance was made for, whatever labels a set stores.",
    "teachers": "A set's teachers label every batch, whatever labels it stores.",
}


def section_markdown(section: Section, folder: Path, picture: str) -> str:
    """Returns the section as markdown for a page in ``folder``, from which links go to the records and ``picture``."""
    names = entry_names(section)
    shown = f"![Scores with 95 % intervals, beside random]({quote(picture, safe='/@=,+')})"
    blocks = [f"## {escape(heading(section))}", _protocol(section), shown, table(_board(section, names, folder))]
    if (probes := probe_table(section, names)) is not None:
        blocks += ["Linear probes on features as they are, of a student that is not fine-tuned:", table(probes)]
    if section.comparisons:
        blocks += ["Against the other controls:", table(_against(section.comparisons, names))]
    if section.baselines:
        blocks += ["Against what needs no distillation:", table(_beside_baselines(section.baselines, names))]
        blocks += [
            f"**No entry here is significantly better than {escape(row.method)} ({percent(row)}).**"
            for row, verdict in section.verdicts
            if verdict == "not beaten"
        ]
    return "\n\n".join([*blocks, *notes(section, names), details(section, names)])


def percent(row: Row) -> str:
    """Returns the mean score in percent."""
    return f"{100 * row.sample.mean:.1f}"


def score(row: Row) -> str:
    """Returns the mean in percent with the half-width of its interval, or why there is none."""
    found, mean = row.estimate, percent(row)
    if found.low is None or found.high is None:
        return f"{mean} ({'deterministic' if row.constant else 'one student' if found.units == 1 else 'no spread'})"
    return f"{mean} ± {50 * (found.high - found.low):.1f}{' †' if row.speaks_for_one_set else ''}"


def gain(standing: Standing) -> str:
    """Returns the gain over random images with the same labels, or what is missing to know it."""
    if standing.row.kind == "baseline":
        return ""
    if standing.row.method == "random":
        return "(control)"
    if standing.reference is None:
        return "control missing: the set names none"
    if standing.reference.difference is None:
        return _missing(standing.reference)
    found = standing.reference.difference
    return f"{found.word}, {_interval(found)}" + ("" if found.p is None else f", {chance(found.p)}")


def rank(standing: Standing) -> str:
    """Returns the range of ranks the row may hold."""
    if standing.rank is None:
        return "–"
    best, worst = standing.rank
    return f"{best}" if best == worst else f"{best}–{worst}"


def _protocol(section: Section) -> str:
    data, settings = section.data, section.data.protocol
    words = escape(str(settings["summary"])) if settings.get("summary") else phrase(decisive(data))
    use = _LABEL_USE.get(str(settings.get("labels")), "")
    return (
        f"Protocol {code(data.protocol_name)} (id {code(data.protocol_id)}), students {code(data.architecture)}: "
        f"{words.rstrip('.')}. {use}"
    ).strip()


def _board(section: Section, names: Mapping[str, str], folder: Path) -> pd.DataFrame:
    rows = [standing.row for standing in section.standings]
    made, trained = letters(rows, makers), letters(rows, trainers)
    return pd.DataFrame(
        {
            "rank": rank(one),
            "entry": names[one.row.recipe],
            "labels": one.row.labels,
            f"{HEADLINES[section.data.headline]}, %": score(one.row),
            "runs": _runs(one.row),
            "gain over random, points": gain(one),
            "bytes": _bytes(one.row),
            "synthesis, s": _synthesis(one.row) + marks(makers(one.row), made),
            "training, s": _training(one.row) + marks(trainers(one.row), trained),
            "records": _records(one.row, folder),
        }
        for one in section.standings
    )


def _against(comparisons: Iterable[Comparison], names: Mapping[str, str]) -> pd.DataFrame:
    found = list(comparisons)
    cells = pd.DataFrame(
        {
            "entry": names[one.row.recipe],
            "labels": one.row.labels,
            "control": names.get(one.link.recipe, escape(one.link.method)),
            "its labels": one.link.labels,
            "gain, points": _gain(one),
            "p (Holm)": _corrected_chance(one),
        }
        for one in found
    )
    return (
        cells.assign(**{"paired by seed": [_paired(one) for one in found]}) if any(o.paired for o in found) else cells
    )


def _beside_baselines(comparisons: Iterable[Comparison], names: Mapping[str, str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "entry": names[one.row.recipe],
            "labels": one.row.labels,
            "baseline": names[one.link.recipe],
            "gain, points": _gain(one),
            "p (Holm)": _corrected_chance(one),
        }
        for one in comparisons
    )


def _gain(one: Comparison) -> str:
    return f"{one.difference.word}, {_interval(one.difference)}" if one.difference else _missing(one)


def _corrected_chance(one: Comparison) -> str:
    if one.difference is None or one.difference.p is None:
        return ""
    return chance(one.difference.p).removeprefix("p ").removeprefix("= ")


def _paired(one: Comparison) -> str:
    if one.paired is None:
        return ""
    found = one.paired.difference
    return f"{_interval(found)}{'' if found.p is None else f', {chance(found.p)}'} ({one.paired.seeds} seeds)"


def _interval(found: Difference) -> str:
    if found.low is None or found.high is None:
        return points(found.gain)
    return f"{points(found.gain)} [{points(found.low)}, {points(found.high)}]"


def _missing(one: Comparison) -> str:
    return f"control missing ({one.draws} of {one.needed} draws): run `ddbench eval`"


def _runs(row: Row) -> str:
    return f"{len(row.draws)} set{'s' if len(row.draws) > 1 else ''} × {span(len(draw) for draw in row.draws)}"


def _bytes(row: Row) -> str:
    own, teachers = row.bytes, row.teacher_bytes
    return f"{size(own + teachers)} (set {size(own)} + teachers {size(teachers)})" if teachers else size(own)


def _synthesis(row: Row) -> str:
    if row.kind == "baseline":
        return ""
    if row.made_elsewhere:
        return "not known"
    sets = {(record.set.id, record.set.sha256): record.set for _, record in row.links}.values()
    teachers = _mean(one.teacher_seconds for one in sets)
    return seconds(_mean(one.wall_seconds for one in sets)) + (f" + teachers {seconds(teachers)}" if teachers else "")


def _training(row: Row) -> str:
    return seconds(_mean(student.train_seconds for _, record in row.links for student in record.students))


def _records(row: Row, folder: Path) -> str:
    paths = [Path(os.path.relpath(path, folder)).as_posix() for path, _ in row.links]
    return " ".join(f"[{number}]({quote(path, safe='/@=,+')})" for number, path in enumerate(paths, 1))


def _mean(values: Iterable[float]) -> float:
    return nested([list(values)]).mean
