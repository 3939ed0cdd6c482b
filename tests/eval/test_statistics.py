from functools import partial

import numpy as np
import pytest
from scipy import stats

from eval.statistics import (
    Difference,
    Sample,
    compare,
    compare_paired,
    compare_with_constant,
    corrected,
    estimate,
    holm,
    nested,
    rank_ranges,
)

sets = partial(Sample, kind="sets")
students = partial(Sample, kind="students")


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 10), (5, 4)])
def test_matches_reference(n: int, m: int) -> None:
    generator = np.random.default_rng(n)
    one, other = generator.normal(0.6, 0.02, n), generator.normal(0.5, 0.05, m)
    welch = stats.ttest_ind(one, other, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    found = compare(sets(tuple(one)), sets(tuple(other)))
    assert found.gain == pytest.approx(one.mean() - other.mean())
    assert (found.low, found.high, found.p) == pytest.approx((low, high, welch.pvalue))

    expected = stats.t.interval(0.95, df=n - 1, loc=one.mean(), scale=stats.sem(one))
    single = estimate(sets(tuple(one)))
    assert (single.low, single.high) == pytest.approx(expected)
    assert (single.units, single.kind) == (n, "sets")


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_constant_matches_reference(n: int) -> None:
    scores = np.random.default_rng(n).normal(0.6, 0.02, n)
    reference = stats.ttest_1samp(scores, 0.59)
    low, high = reference.confidence_interval(0.95)
    found = compare_with_constant(sets(tuple(scores)), 0.59)
    assert found.gain == pytest.approx(scores.mean() - 0.59)
    assert (found.low, found.high) == pytest.approx((low - 0.59, high - 0.59))
    assert found.p == pytest.approx(reference.pvalue)


@pytest.mark.parametrize("n", [3, 5])
def test_pairs_match_reference(n: int) -> None:
    generator = np.random.default_rng(n)
    luck = generator.normal(0.5, 0.1, n)  # what both of a pair share, and cancels
    one, other = luck + generator.normal(0.03, 0.01, n), luck + generator.normal(0, 0.01, n)
    reference = stats.ttest_rel(one, other)
    low, high = reference.confidence_interval(0.95)
    found = compare_paired(tuple(one), tuple(other))
    assert found.gain == pytest.approx((one - other).mean())
    assert (found.low, found.high, found.p) == pytest.approx((low, high, reference.pvalue))
    apart = compare(sets(tuple(one)), sets(tuple(other)))
    assert apart.p is not None
    assert apart.p > reference.pvalue
    with pytest.raises(ValueError, match="zip"):
        compare_paired((0.1, 0.2), (0.1,))


def test_what_has_no_spread_is_no_evidence_against_a_constant() -> None:
    for sample in (sets((0.8, 0.8, 0.8)), students((0.8,))):
        found = compare_with_constant(sample, 0.5)
        assert (found.low, found.high, found.p, found.word) == (None, None, None, "untested")
        assert found.gain == pytest.approx(0.3)
    assert compare_paired((0.1 + 0.2, 0.5, 0.6), (0.2, 0.4, 0.5)).word == "untested"  # equal but for rounding


def test_the_unit_is_the_set_and_students_only_where_there_is_one_set() -> None:
    assert nested([(0.1, 0.3), (0.5,), (0.5, 0.75, 1.0)]) == sets((0.2, 0.5, 0.75))  # sets weigh the same
    assert nested([(0.1, 0.3, 0.4)]) == students((0.1, 0.3, 0.4))
    with pytest.raises(ValueError, match="one or more"):
        nested([(0.1,), ()])


def test_a_single_student_has_no_interval_and_no_test() -> None:
    alone = nested([(0.5,)])
    assert (estimate(alone).mean, estimate(alone).low, estimate(alone).units) == (0.5, None, 1)
    found = compare(alone, sets((0.1, 0.2, 0.3)))
    assert (found.low, found.high, found.p, found.word) == (None, None, None, "untested")
    assert found.gain == pytest.approx(0.3)


def test_equal_scores_claim_no_certainty() -> None:
    constant = sets((0.1 + 0.2, 0.3, 0.3))  # equal but for rounding
    assert constant.variance == 0
    assert estimate(constant).low is None
    assert compare(constant, sets((0.9, 0.9))).word == "untested"  # not NaN, and no infinite significance

    spread = sets((0.31, 0.32, 0.33, 0.34))
    found, naive = compare(spread, constant), stats.ttest_1samp(spread.values, 0.3)
    assert naive.pvalue < 0.05  # what zero variance would have called knowledge
    assert found.word == "tie"
    assert found.p is not None
    assert found.p > naive.pvalue
    mirrored = compare(constant, spread)
    assert (mirrored.gain, mirrored.p) == (-found.gain, found.p)


def test_words() -> None:
    assert [Difference(gain, 0, 0, p).word for gain, p in [(0.1, 0.04), (-0.1, 0.04), (0.1, 0.05), (0.1, None)]] == [
        "better",
        "worse",
        "tie",
        "untested",
    ]


def test_holm_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, then never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_family_counts_what_could_be_tested() -> None:
    family = [Difference(0.1, 0.0, 0.2, 0.02), Difference(0.1, None, None, None), Difference(0.1, 0.0, 0.2, 0.03)]
    found = corrected(family)
    assert [one.p for one in found] == [0.04, None, 0.04]
    assert [one.low for one in found] == [0.0, None, 0.0]


def test_ranks_show_ties_as_ties() -> None:
    far, near, near_too, low = (
        sets(tuple(mean + step for step in (-0.01, 0.0, 0.01))) for mean in (0.9, 0.505, 0.5, 0.1)
    )
    assert rank_ranges([low, near, far, near_too]) == [(4, 4), (2, 3), (1, 1), (2, 3)]
    assert rank_ranges([far]) == [(1, 1)]
    assert rank_ranges([sets((0.3, 0.3)), near, nested([(0.99,)]), far]) == [None, (2, 2), None, (1, 1)]
    assert rank_ranges([]) == []


def _draw(generator: np.random.Generator, shape: tuple[int, int], images: int | None = None) -> list[list[float]]:
    """Returns scores (sets, students) of one and the same quality, as fractions of so many test images if given."""
    scores = 0.5 + generator.normal(0, 0.02, (shape[0], 1)) + generator.normal(0, 0.01, shape)
    return (scores if images is None else np.round(scores * images) / images).tolist()


@pytest.mark.parametrize(("sizes", "images"), [((3, 3), None), ((3, 10), None), ((3, 3), 100)])
def test_noise_is_seldom_called_better(sizes: tuple[int, int], images: int | None) -> None:
    generator = np.random.default_rng(0)
    words = []
    for _ in range(2000):
        one, other = (nested(_draw(generator, (size, 5 if images is None else 1), images)) for size in sizes)
        words.append(compare(one, other).word)
    better = words.count("better") / len(words)
    assert better <= 0.05 + 2 * 0.005  # the standard error of 5 % over 2000 trials
    assert (better > 0.005) or images  # the test is not merely blind; few images make it more careful


def test_students_as_units_would_call_noise_better() -> None:
    generator = np.random.default_rng(0)
    words = []
    for _ in range(500):
        one, other = (students(tuple(np.ravel(_draw(generator, (3, 5))))) for _ in range(2))
        words.append(compare(one, other).word)
    assert words.count("better") / len(words) > 0.1


def test_noise_is_seldom_ranked() -> None:
    generator = np.random.default_rng(0)
    everything = [(1, 6)] * 6
    ranked = [rank_ranges([nested(_draw(generator, (3, 3))) for _ in range(6)]) != everything for _ in range(500)]
    assert sum(ranked) / len(ranked) <= 0.05 + 2 * 0.01
