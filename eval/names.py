"""What a section and its rows are called, as plain text and as markdown."""

from collections import Counter
from dataclasses import dataclass

from eval.markdown import code, escape
from eval.sections import Section


@dataclass(frozen=True)
class EntryName:
    """How a row is called: its method, its preset, and its recipe's id where two rows would look alike, else empty."""

    method: str
    preset: str
    recipe: str
    bold: bool

    @property
    def text(self) -> str:
        """The name as it is."""
        return " · ".join(part for part in (self.method, self.preset, self.recipe) if part)

    @property
    def markdown(self) -> str:
        """The name as markdown, with the method of an entry in bold."""
        method = f"**{escape(self.method)}**" if self.bold else escape(self.method)
        return " · ".join(part for part in (method, escape(self.preset), self.recipe and code(self.recipe)) if part)


def heading(section: Section) -> str:
    """Returns what the section holds: size, protocol with its id, architecture, and which copy of the data."""
    size_words = f"{section.ipc} per class" if section.ipc else "all real data"
    data = section.data
    protocol = f"{data.protocol_name}-{data.protocol_id}"
    copies = data.set.fingerprint[:8] + (f" to {data.target_fingerprint[:8]}" if data.target_fingerprint else "")
    return f"{size_words}, {protocol}, {data.architecture}, data {copies}"


def names_of(section: Section) -> dict[str, EntryName]:
    """Returns how each row is called, by recipe.

    No setting shapes random real data with class labels: their preset is only that of whoever asked for them first.
    """
    rows = [standing.row for standing in section.standings]
    presets = {row.recipe: " / ".join(sorted({record.set.preset for _, record in row.links})) for row in rows}
    presets |= {row.recipe: "" for row in rows if (row.method, row.labels) == ("random", "hard")}
    twins = Counter((row.method, row.labels, presets[row.recipe]) for row in rows)
    return {
        row.recipe: EntryName(
            method=row.method,
            preset=presets[row.recipe],
            recipe=row.recipe if twins[row.method, row.labels, presets[row.recipe]] > 1 else "",
            bold=row.kind == "entry",
        )
        for row in rows
    }


def entry_names(section: Section) -> dict[str, str]:
    """Returns the names of the rows as markdown, by recipe."""
    return {recipe: name.markdown for recipe, name in names_of(section).items()}
