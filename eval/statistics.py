"""Intervals, comparisons and ranks for nested scores, so that chance does not pose as a result.

Scores are nested: an entry's sets (synthesis seeds or random draws) each hold students. The students of one set share
that set's luck, so they are no repetitions of the method: the unit of every interval and test is the set. Where only
one set exists its students are the units, and the result speaks for that set alone. Everything is a Student t or Welch
t computation on a handful of units, which takes the units as roughly normal with spreads that may differ.

References:
    Welch, "The generalization of 'Student's' problem when several different population variances are involved", 1947.
    Satterthwaite, "An approximate distribution of estimates of variance components", 1946.
    Holm, "A simple sequentially rejective multiple test procedure", 1979.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

from scipy.special import stdtr, stdtrit

ALPHA = 0.05  # of every test; one minus this is the coverage of every interval
_SAME = 1e-12  # scores are in [0, 1]: means of equal scores differ by rounding, never by more than this

Kind = Literal["sets", "students"]
Word = Literal["better", "tie", "worse", "untested"]


@dataclass(frozen=True)
class Sample:
    """The scores of one entry's independent units: ``values`` holds a set's mean each, or a student's score each."""

    values: tuple[float, ...]
    kind: Kind

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("a sample holds no values; expected one or more")

    @property
    def mean(self) -> float:
        """The mean over the units."""
        return math.fsum(self.values) / len(self.values)

    @property
    def variance(self) -> float:
        """The unbiased variance over the units; exactly 0 for a single unit, or where all are equal up to rounding."""
        if max(self.values) - min(self.values) <= _SAME:
            return 0.0
        mean = self.mean
        return math.fsum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1)


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, over so many ``units`` of a ``kind``; no interval where no spread was seen."""

    mean: float
    low: float | None
    high: float | None
    units: int
    kind: Kind


@dataclass(frozen=True)
class Difference:
    """How far a first sample's mean lies above a second's, its 95 % interval, and the two-sided p-value.

    Interval and p-value are None where nothing can be tested: a side has one unit, or neither side has any spread.
    """

    gain: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def word(self) -> Word:
        """What may be said of the first side at the 5 % level."""
        if self.p is None:
            return "untested"
        if self.p >= ALPHA:
            return "tie"
        return "better" if self.gain > 0 else "worse"


def nested(draws: Sequence[Sequence[float]]) -> Sample:
    """Returns the sample of scores nested as sets, then students: set means, or one set's students.

    Every set weighs the same, however many students it has.

    Raises:
        ValueError: if there is no set, or a set without students.
    """
    if len(draws) == 1:
        return Sample(tuple(draws[0]), "students")
    return Sample(tuple(Sample(tuple(students), "students").mean for students in draws), "sets")


def estimate(sample: Sample) -> Estimate:
    """Returns the mean with its t interval.

    A single unit has no interval. Nor have units that are all equal: a width of zero would claim certainty, while equal
    scores only mean that the noise is finer than one test image, or that the students collapsed in the same way.
    """
    units, variance = len(sample.values), sample.variance
    if variance == 0:
        return Estimate(sample.mean, None, None, units, sample.kind)
    reach = math.sqrt(variance / units) * _quantile(units - 1)
    return Estimate(sample.mean, sample.mean - reach, sample.mean + reach, units, sample.kind)


def compare(first: Sample, second: Sample) -> Difference:
    """Returns the difference of the means with Welch's t interval (Satterthwaite's degrees of freedom) and p-value.

    A side whose units are all equal borrows the variance of the other, which alone then counts for the degrees of
    freedom: its own zero would pass for exact knowledge and make small differences significant.
    """
    gain = first.mean - second.mean
    noise = _noise(first, second)
    if noise is None:
        return Difference(gain, None, None, None)
    error, freedom = noise
    reach = error * _quantile(freedom)
    return Difference(gain, gain - reach, gain + reach, float(2 * stdtr(freedom, -abs(gain) / error)))


def compare_with_constant(sample: Sample, value: float) -> Difference:
    """Returns how far the mean lies above a value that has no noise of its own, with the one-sample t test.

    Units that are all equal, or a single one, leave the difference untested, as everywhere.
    """
    gain, variance, units = sample.mean - value, sample.variance, len(sample.values)
    if variance == 0:
        return Difference(gain, None, None, None)
    error = math.sqrt(variance / units)
    reach = error * _quantile(units - 1)
    return Difference(gain, gain - reach, gain + reach, float(2 * stdtr(units - 1, -abs(gain) / error)))


def compare_paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Returns the mean difference of pairs with the paired t test: what both of a pair share cancels.

    Raises:
        ValueError: if the two are not equally long, or empty.
    """
    return compare_with_constant(
        Sample(tuple(one - other for one, other in zip(first, second, strict=True)), "sets"), 0.0
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p-values, in the given order.

    Rejecting those below 5 % keeps the chance of any false rejection in the family at 5 %.

    >>> [round(p, 6) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    adjusted = [0.0] * len(p_values)
    floor = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = floor
    return adjusted


def corrected(differences: Iterable[Difference]) -> list[Difference]:
    """Returns the differences with Holm's p-values over all of them that could be tested; intervals stay as they are.

    An interval is a statement about one difference, the p-value and the word about one member of a family.
    """
    family = list(differences)
    adjusted = iter(holm([difference.p for difference in family if difference.p is not None]))
    return [one if one.p is None else replace(one, p=next(adjusted)) for one in family]


def rank_ranges(samples: Sequence[Sample]) -> list[tuple[int, int] | None]:
    """Returns the best and the worst rank each sample may hold; None for a sample without an interval.

    All pairs are compared (Holm over the pairs). A sample's best rank is one below all that are significantly better,
    its worst rank one above all that are significantly worse; samples nobody can tell apart share all their ranks.
    """
    ranked = [index for index, sample in enumerate(samples) if sample.variance > 0]
    pairs = list(combinations(ranked, 2))
    above, below = dict.fromkeys(ranked, 0), dict.fromkeys(ranked, 0)
    for (one, other), difference in zip(
        pairs, corrected(compare(samples[one], samples[other]) for one, other in pairs), strict=True
    ):
        if difference.word in ("better", "worse"):
            winner, loser = (one, other) if difference.word == "better" else (other, one)
            below[winner] += 1
            above[loser] += 1
    return [(1 + above[index], len(ranked) - below[index]) if index in above else None for index in range(len(samples))]


def _noise(first: Sample, second: Sample) -> tuple[float, float] | None:
    """Returns the standard error of the difference and its degrees of freedom; None if it cannot be known."""
    n, m = len(first.values), len(second.values)
    v, w = first.variance, second.variance
    if min(n, m) < 2 or v == w == 0:
        return None
    if v == 0 or w == 0:
        return math.sqrt(max(v, w) * (1 / n + 1 / m)), float(m - 1 if v == 0 else n - 1)
    a, b = v / n, w / m
    return math.sqrt(a + b), (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))


def _quantile(freedom: float) -> float:
    return float(stdtrit(freedom, 1 - ALPHA / 2))
