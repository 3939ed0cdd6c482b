"""The notes below a section's tables: what their marks mean, and what their intervals do not see."""

from collections.abc import Mapping

from eval.machines import listed, makers, trainers
from eval.markdown import span
from eval.rows import Row
from eval.sections import Section


def notes(section: Section, names: Mapping[str, str]) -> list[str]:
    """Returns what the tables' marks mean, and what their intervals do not see."""
    rows = [standing.row for standing in section.standings]
    found = []
    if any(row.speaks_for_one_set for row in rows):
        found.append(
            "† One distinct set: interval, rank and gain are over its students and speak for this set, not for the "
            "method; the noise of synthesis is not seen."
        )
    if any(row.estimate.low is None and row.estimate.units > 1 and not row.constant for row in rows):
        found.append("No spread: all scores are equal, which says nothing about their noise; such a row has no rank.")
    shared = [names[row.recipe] for row in rows if len(row.draws) > 1 and len(row.teachers) == 1]
    if shared:
        found.append(f"The sets of {', '.join(shared)} share their teachers: other teachers' noise is not seen.")
    foreign = [names[row.recipe] for row in rows if row.made_elsewhere]
    if foreign:
        found.append(
            f"Made elsewhere and taken in as images: {', '.join(foreign)}. Which data they were made from, how, and at "
            "what cost, is their maker's word."
        )
    if lengths := unequal_training(section):
        told = ", ".join(f"{names[row.recipe]} ({row.labels}) {steps}" for row, steps in lengths)
        if chooses_steps(section):
            found.append(f"The number of steps was chosen for each student on validation data: {told}.")
        else:
            found.append(
                f"**Unequal training**: the protocol fixes epochs, so larger sets train for more steps: {told}. A gain "
                "over a row with fewer steps is not the images' alone."
            )
    made = f"synthesis on {listed(rows, makers)}; " if any(makers(row) for row in rows) else ""
    found.append(f"Seconds: {made}training on {listed(rows, trainers)}.")
    return found


def unequal_training(section: Section) -> list[tuple[Row, str]]:
    """Returns the rows with their numbers of steps, if these differ, and nothing if all trained alike."""
    rows = [standing.row for standing in section.standings if standing.row.kind != "baseline"]
    lengths = [(row, span(student.steps for _, record in row.links for student in record.students)) for row in rows]
    return lengths if len({steps for _, steps in lengths}) > 1 else []


def chooses_steps(section: Section) -> bool:
    """Returns whether the numbers of steps were chosen on validation data, and are a result rather than a budget."""
    students = (one for standing in section.standings for _, record in standing.row.links for one in record.students)
    return any("steps" in student.choice for student in students)
