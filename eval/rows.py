"""Records become rows: one a recipe, with the scores of its distinct sets, and the part it plays on a board."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from eval.cells import ControlLink
from eval.frames import Link, frame
from eval.statistics import Estimate, Sample, estimate, nested

ELSEWHERE = "elsewhere"  # the device of sets that ddbench did not make, as in dd_bench.sets, which imports torch
CONSTANTS = frozenset({"node-count", "node-edge-count"})  # baselines without chance: one value for a data set

Kind = Literal["entry", "control", "baseline"]


@dataclass(frozen=True)
class Row:
    """One recipe under one protocol and architecture.

    Attributes:
        links: its records with their paths, in the order of the paths.
        draws: the headline score in [0, 1] by distinct set, then student.
        seeds: the seeds that each distinct set was made with; several where they give the same bytes.
        kind: ``baseline`` for what needs no set (all real data, an untrained net, …); ``control`` for random images and
            what another row links; else ``entry``.
    """

    links: tuple[Link, ...]
    draws: tuple[tuple[float, ...], ...]
    seeds: tuple[tuple[int, ...], ...]
    kind: Kind

    @property
    def method(self) -> str:
        """The method that made the sets."""
        return self.links[0][1].set.method

    @property
    def labels(self) -> str:
        """The kind of the sets' labels."""
        return self.links[0][1].set.labels

    @property
    def images(self) -> int:
        """The number of images that a set of the row has."""
        return self.links[0][1].set.images

    @property
    def bytes(self) -> int:
        """The size of the largest set's tensors file; 0 for a baseline that needs no data."""
        return max(sum(record.set.bytes.values()) for _, record in self.links)

    @property
    def teacher_bytes(self) -> int:
        """The size of the teachers that students need while they train."""
        return max(record.teacher_bytes for _, record in self.links)

    @property
    def recipe(self) -> str:
        """The id of everything that made the sets but their seeds."""
        return self.links[0][1].set.recipe

    @property
    def controls(self) -> list[ControlLink]:
        """All controls that any of the sets links, each once."""
        return list(dict.fromkeys(link for _, record in self.links for link in record.set.controls))

    @property
    def teachers(self) -> set[tuple[str, ...]]:
        """The distinct groups of teachers behind the sets."""
        return {tuple(sorted(record.set.parents)) for _, record in self.links if record.set.parents}

    def metric(self, name: str) -> Sample:
        """Returns the values of any metric by independent unit, of the students that have it."""
        students = frame(self.links)
        draws = [part[name].dropna().tolist() for _, part in students[~students["again"]].groupby("draw", sort=True)]
        return nested([values for values in draws if values])

    @property
    def sample(self) -> Sample:
        """The scores by independent unit."""
        return nested(self.draws)

    @property
    def estimate(self) -> Estimate:
        """Mean score and its interval."""
        return estimate(self.sample)

    @property
    def constant(self) -> bool:
        """Whether the score has no noise, so that other rows are held against its one value."""
        return self.kind == "baseline" and self.method in CONSTANTS and self.sample.variance == 0

    @property
    def made_elsewhere(self) -> bool:
        """Whether some of its sets were taken in as they were, so that nobody here knows how they were made."""
        return any(record.set.device == ELSEWHERE for _, record in self.links)

    @property
    def speaks_for_one_set(self) -> bool:
        """Whether there is an interval, and it is over the students of one set, for an entry that could have others."""
        return self.kind != "baseline" and self.estimate.kind == "students" and self.estimate.low is not None

    @property
    def by_seed(self) -> dict[int, float]:
        """The mean score of a set by the seed that made it.

        Left out are sets that several seeds give, and seeds of several sets: no pair of them is independent of others.
        """
        uses = Counter(seed for seeds in self.seeds for seed in seeds)
        return {
            seeds[0]: nested([draw]).mean
            for seeds, draw in zip(self.seeds, self.draws, strict=True)
            if len(seeds) == 1 and uses[seeds[0]] == 1
        }


def rows_of(links: Sequence[Link]) -> dict[str, Row]:
    """Returns the rows of records that may be compared, by recipe."""
    linked = {link.recipe for _, record in links for link in record.set.controls if link.recipe != record.set.recipe}
    rows: dict[str, Row] = {}
    for _, part in frame(links).groupby("recipe", sort=True):
        own = tuple(links[at] for at in dict.fromkeys(part["record"]))
        facts = own[0][1].set
        control = facts.method == "random" or facts.recipe in linked
        draws = part[~part["again"]].groupby("draw", sort=True)["score"]
        seeds = part.groupby("draw", sort=True)["set_seed"]  # the same draws: one student of each set is no repetition
        rows[facts.recipe] = Row(
            links=own,
            draws=tuple(tuple(scores) for _, scores in draws),
            seeds=tuple(tuple(sorted(set(found))) for _, found in seeds),
            kind="baseline" if facts.ipc == 0 else "control" if control else "entry",
        )
    return rows
