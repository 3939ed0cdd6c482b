"""Records become the sections of a board: who stands beside whom, on how many sets, and how far from its controls.

A row is one recipe: all sets that differ in nothing but their seed. A section holds the rows that may be compared: the
same data (by fingerprint, and so are those that students go on to), the same ipc, the same protocol id, the same
architecture, the same headline metric; what needs no set (all real data, an untrained net, …) joins each section as a
baseline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dd_bench.errors import InvalidSetError
from eval.cells import Record
from eval.comparisons import Comparison, against_baselines, against_controls
from eval.frames import Link, frame
from eval.rows import Row, rows_of
from eval.statistics import rank_ranges

Verdict = Literal["beaten", "not beaten", "untested"]


@dataclass(frozen=True)
class Standing:
    """A row's place: the ranks it may hold (None: not ranked), and how it stands to random images (None: no link)."""

    row: Row
    rank: tuple[int, int] | None
    reference: Comparison | None


@dataclass(frozen=True)
class Section:
    """Rows that may be compared, best first, then the unranked, then the baselines; and the comparisons with others.

    Attributes:
        data: any of the records, for data set, fingerprint, protocol, architecture and headline metric.
        ipc: the size, or 0 if there are only baselines.
        standings: the rows in order.
        comparisons: rows beside controls other than random images with their kind of labels.
        baselines: entries beside what needs no distillation.
    """

    data: Record
    ipc: int
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    baselines: tuple[Comparison, ...]

    @property
    def verdicts(self) -> list[tuple[Row, Verdict]]:
        """The baselines that entries were held against, best first, and whether any entry is better than each."""
        return [
            (one.row, _verdict(beside))
            for one in self.standings
            if (beside := [other for other in self.baselines if other.link.recipe == one.row.recipe])
        ]


def sections(links: Sequence[Link]) -> list[Section]:
    """Returns the sections of the records of one data set, in a fixed order; baselines alone make one of ipc 0."""
    if not links:
        return []
    found = []
    for _, scope in frame(links).groupby(
        ["fingerprint", "target_fingerprint", "protocol_id", "architecture"], sort=True
    ):
        positions = {ipc: list(dict.fromkeys(part["record"])) for ipc, part in scope.groupby("ipc", sort=True)}
        baselines = [links[at] for at in positions.pop(0, [])]
        found += [section([*(links[at] for at in part), *baselines]) for part in positions.values()]
        if not positions:
            found.append(section(baselines))
    return sorted(found, key=lambda one: (one.data.set.fingerprint, one.ipc, one.data.protocol_name))


def section(links: Sequence[Link]) -> Section:
    """Returns the section of records that may be compared.

    Raises:
        InvalidSetError: if they mix data, protocols, architectures, headline metrics, or two sizes beside baselines.
    """
    scopes = {
        (one.set.dataset, one.set.fingerprint, one.target_fingerprint, one.protocol_id, one.architecture)
        for _, one in links
    }
    sizes = {one.set.ipc for _, one in links}
    if len(scopes) != 1 or len(sizes - {0}) > 1:
        raise InvalidSetError(
            f"a table would mix {sorted(scopes)} at ipc {sorted(sizes)}; "
            "expected one data set, one fingerprint, one protocol id, one architecture and one ipc"
        )
    _check_headlines(links)
    rows = rows_of(links)
    references, others = against_controls(rows)
    standings = _standings(rows, references)
    place = {id(one.row): at for at, one in enumerate(standings)}
    return Section(
        data=links[0][1],
        ipc=max(sizes),
        standings=tuple(standings),
        comparisons=tuple(sorted(others, key=lambda one: place[id(one.row)])),
        baselines=tuple(sorted(against_baselines(rows), key=lambda one: place[id(one.row)])),
    )


def _check_headlines(links: Sequence[Link]) -> None:
    first = {record.headline: path for path, record in reversed(links)}
    if len(first) > 1:
        told = ", ".join(f"{path} by {metric}" for metric, path in sorted(first.items()))
        raise InvalidSetError(
            f"a table would rank by two metrics: {told}; all records of a data set are ranked by auc, or all by top1: "
            "delete those that are wrong and judge their sets again"
        )


def _standings(rows: Mapping[str, Row], references: Mapping[str, Comparison]) -> list[Standing]:
    """Returns the rows in order with their ranks; none for baselines and for rows without a judged control."""
    able = [
        recipe
        for recipe, row in rows.items()
        if row.kind != "baseline"
        and (row.method == "random" or (recipe in references and references[recipe].difference))
    ]
    ranks = dict(zip(able, rank_ranges([rows[recipe].sample for recipe in able]), strict=True))
    standings = [Standing(row, ranks.get(recipe), references.get(recipe)) for recipe, row in rows.items()]
    return sorted(
        standings,
        key=lambda one: (
            one.row.kind == "baseline",
            one.rank is None,
            -one.row.sample.mean,
            one.row.method,
            one.row.recipe,
        ),
    )


def _verdict(comparisons: Sequence[Comparison]) -> Verdict:
    """Returns what entries show against one baseline; one that lies above it untested leaves the question open."""
    found = [one.difference for one in comparisons if one.difference]
    if any(one.word == "better" for one in found):
        return "beaten"
    return "untested" if any(one.word == "untested" and one.gain > 0 for one in found) else "not beaten"
