"""Frequent sets: exactly those that brute force finds, in the order and at the cost that is promised."""

import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlxtend.frequent_patterns import fpgrowth, fpmax

from dd_bench.errors import ConfigError
from synth.parts.itemsets import Sets, TooManySetsError, Wanted, mine, mine_as_published, threshold

Transactions = list[list[int]]
LIMIT = 10**6
CLIQUE = list(range(60))  # 2 ** 60 subsets

drawn = st.lists(st.lists(st.integers(0, 6), max_size=7), max_size=9)
check = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def brute_force(transactions: Transactions, theta: int, wanted: Wanted) -> Sets:
    """Returns the sets by their definitions: every subset is counted, and compared with every larger one."""
    items = sorted({item for transaction in transactions for item in transaction})
    counts = {
        chosen: sum(set(chosen) <= set(transaction) for transaction in transactions)
        for size in range(1, len(items) + 1)
        for chosen in combinations(items, size)
    }
    found = {chosen: count for chosen, count in counts.items() if count >= theta}
    larger = {one: [other for other in found if set(one) < set(other)] for one in found}
    if wanted == "closed":
        return {one: count for one, count in found.items() if all(found[other] < count for other in larger[one])}
    if wanted == "maximal":
        return {one: count for one, count in found.items() if not larger[one]}
    return found


@check
@given(drawn, st.integers(1, 5), st.sampled_from(["frequent", "closed", "maximal"]))
def test_matches_reference_of_brute_force(transactions: Transactions, theta: int, wanted: Wanted) -> None:
    assert mine(transactions, theta, wanted=wanted, limit=LIMIT) == brute_force(transactions, theta, wanted)


@check
@given(drawn, st.integers(1, 5))
def test_kinds_are_nested_and_closed_sets_tell_all(transactions: Transactions, theta: int) -> None:
    frequent, closed, maximal = (
        mine(transactions, theta, wanted=wanted, limit=LIMIT) for wanted in ("frequent", "closed", "maximal")
    )
    assert maximal.items() <= closed.items() <= frequent.items()
    for items, count in frequent.items():
        assert count == max(found for other, found in closed.items() if set(items) <= set(other))


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(st.integers(0, 7), max_size=8), min_size=2, max_size=20), st.integers(1, 5))
def test_matches_reference_of_mlxtend(transactions: Transactions, theta: int) -> None:
    """FP-growth and FPmax as somebody else wrote them."""
    table = pd.DataFrame([[item in one for item in range(8)] for one in transactions])
    theta = min(theta, len(table))

    def theirs(miner: Any) -> Sets:
        found = miner(table, min_support=(theta - 0.5) / len(table), use_colnames=True)
        return {
            tuple(sorted(items)): round(share * len(table))
            for share, items in zip(found["support"], found["itemsets"], strict=True)
        }

    assert mine(transactions, theta, limit=LIMIT) == theirs(fpgrowth)
    assert mine(transactions, theta, wanted="maximal", limit=LIMIT) == theirs(fpmax)


def test_sets_come_by_descending_support() -> None:
    transactions = [[0, 1, 2], [0, 1], [0, 2, 3], [0], [1, 3], [1, 2, 3]]
    for wanted in ("frequent", "closed"):
        counts = list(mine(transactions, 1, wanted=wanted, limit=LIMIT).values())
        assert counts == sorted(counts, reverse=True)


def test_order_and_repetitions_do_not_matter() -> None:
    first = mine([[3, 1, 1], [1, 3], [2, 3]], 1, limit=LIMIT)
    assert first == mine([[1, 3], [3, 2, 2, 3], [3, 1]], 1, limit=LIMIT)
    assert first == {(1,): 2, (2,): 1, (3,): 3, (1, 3): 2, (2, 3): 1}


def test_any_iterables_and_large_items() -> None:
    def items() -> Iterator[int]:
        yield from (10**12, -3)

    assert mine([items(), (10**12,)], 2, limit=9) == {(10**12,): 2}


@pytest.mark.parametrize("wanted", ["frequent", "closed", "maximal"])
@pytest.mark.parametrize("transactions", [[], [[]], [[], []]], ids=str)
def test_nothing(transactions: Transactions, wanted: Wanted) -> None:
    assert mine(transactions, 1, wanted=wanted, limit=0) == {}
    assert threshold(transactions, 3, wanted=wanted) == 1


@pytest.mark.parametrize("theta", [0, -1])
def test_rejects_thresholds(theta: int) -> None:
    with pytest.raises(ConfigError, match=f"theta is {theta}; expected a number of graphs, at least 1"):
        mine([[1]], theta, limit=9)


# --- limits ----------------------------------------------------------------------------------------------------------


@check
@given(drawn, st.integers(1, 4), st.sampled_from(["frequent", "closed"]))
def test_the_limit_is_exact(transactions: Transactions, theta: int, wanted: Wanted) -> None:
    count = len(brute_force(transactions, theta, wanted))
    assert len(mine(transactions, theta, wanted=wanted, limit=count)) == count
    if count:
        with pytest.raises(TooManySetsError) as refusal:
            mine(transactions, theta, wanted=wanted, limit=count - 1)
        expected = f"theta {theta} gives more than {count - 1:,} sets of trees; raise theta, or max_sets"
        assert str(refusal.value) == expected


def test_items_that_always_come_together() -> None:
    transactions = [CLIQUE, CLIQUE, [*CLIQUE, 99]]
    start = time.monotonic()
    with pytest.raises(TooManySetsError, match="theta 3 gives more than 5,000 sets"):
        mine(transactions, 3, limit=5000)
    with pytest.raises(TooManySetsError, match="more than 20 sets"):
        mine(transactions, 3, limit=20)
    with pytest.raises(TooManySetsError, match="theta 2"):
        mine_as_published(transactions, 2, limit=5000)
    assert mine(transactions, 3, wanted="closed", limit=1) == {tuple(CLIQUE): 3}
    assert mine(transactions, 3, wanted="maximal", limit=1) == {tuple(CLIQUE): 3}
    both = {tuple(CLIQUE): 3, (*CLIQUE, 99): 1}
    assert mine(transactions, 1, wanted="closed", limit=2) == both
    assert mine(transactions, 1, wanted="maximal", limit=2) == {(*CLIQUE, 99): 1}
    assert threshold(transactions, 5000) == 4
    assert threshold(transactions, 1, wanted="closed") == 2
    assert time.monotonic() - start < 5


def test_maximal_sets_count_the_closed_ones_they_come_from() -> None:
    transactions = [[0, 1, 2], [0, 1], [0]]
    assert mine(transactions, 1, wanted="maximal", limit=3) == {(0, 1, 2): 1}
    with pytest.raises(TooManySetsError):
        mine(transactions, 1, wanted="maximal", limit=2)


# --- the lowest threshold --------------------------------------------------------------------------------------------


@check
@given(drawn, st.integers(1, 40), st.sampled_from(["frequent", "closed", "maximal"]))
def test_threshold_matches_reference_of_brute_force(transactions: Transactions, count: int, wanted: Wanted) -> None:
    found = threshold(transactions, count, wanted=wanted)
    kind: Wanted = "frequent" if wanted == "frequent" else "closed"
    fitting = [
        theta for theta in range(1, len(transactions) + 2) if len(brute_force(transactions, theta, kind)) <= count
    ]
    assert found == min(fitting)
    assert len(mine(transactions, found, wanted=wanted, limit=count)) <= count


# --- the published miner ---------------------------------------------------------------------------------------------

# Transactions, threshold, and what pyfpgrowth 1.0 (PyPI, Python 3.11) gave for them:
#     {sets: count for sets, count in pyfpgrowth.find_frequent_patterns(transactions, theta).items() if sets}
# 400 more random ones, made in the same way, gave equal results; these stand for its kinds of faults.
RECORDED: dict[str, tuple[Transactions, int, Sets]] = {
    "the example of its README": (
        [[1, 2, 5], [2, 4], [2, 3], [1, 2, 4], [1, 3], [2, 3], [1, 3], [1, 2, 3, 5], [1, 2, 3]],
        2,
        {
            (5,): 2, (1, 5): 2, (2, 5): 2, (1, 2, 5): 2, (4,): 2, (2, 4): 2, (1,): 6, (1, 2): 4, (2, 3): 4,
            (1, 2, 3): 2, (1, 3): 4, (2,): 7,
        },
    ),
    "a set that is found twice": ([[0, 1], [0], [1], [1, 0]], 1, {(0,): 3, (0, 1): 2, (1,): 3}),
    "right": ([[0, 1, 2, 3], [1], [0], [1, 3]], 2, {(0,): 2, (3,): 2, (1, 3): 2, (1,): 3}),
    "ties in several orders lose pairs": (
        [[3, 0, 2, 1], [0, 1, 3, 2], [0], [2, 3, 1]], 3, {(3,): 3, (0,): 3, (2,): 3, (1,): 3},
    ),
    "an item whose tree branches is lost": (
        [[1, 2, 0, 3], [3, 2, 1, 0], [1, 3], [3, 1, 2]], 3, {(2, 3): 3, (1, 2): 3, (1,): 4, (3,): 4},
    ),
    "supports are wrong": (
        [[1], [0, 1, 2], [0, 2, 1], [1, 0, 2], [2, 0]],
        2,
        {(1,): 4, (0, 1): 2, (0,): 4, (2,): 4, (1, 2): 2, (0, 2): 3, (0, 1, 2): 2},
    ),
    "all faults": (
        [[2, 0, 3, 1], [1, 3, 2, 0], [1, 3, 0], [1, 0, 2]],
        2,
        {
            (1, 2): 3, (0, 1, 2): 2, (0, 2): 3, (1, 3): 3, (0, 1, 3): 2, (0, 3): 3, (0,): 4, (0, 1): 3, (1,): 4,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDED)
def test_matches_reference_of_the_published_miner(name: str) -> None:
    transactions, theta, expected = RECORDED[name]
    assert mine_as_published(transactions, theta, limit=LIMIT) == expected


def test_the_published_miner_loses_sets() -> None:
    lost = {}
    for name, (transactions, theta, found) in RECORDED.items():
        exact = mine(transactions, theta, limit=LIMIT)
        lost[name] = set(exact) - set(found), {items for items in found if found[items] != exact[items]}
    assert lost["right"] == (set(), set())
    assert lost["the example of its README"][0] == {(3,)}
    assert lost["an item whose tree branches is lost"][0] == {(2,), (1, 3), (1, 2, 3)}
    assert lost["supports are wrong"][1]


def test_the_limit_of_the_published_miner() -> None:
    transactions, theta, found = RECORDED["the example of its README"]
    assert len(mine_as_published(transactions, theta, limit=len(found))) == len(found)
    with pytest.raises(TooManySetsError, match="theta 2 gives more than 3 sets"):
        mine_as_published(transactions, theta, limit=3)
    assert mine_as_published([], 1, limit=9) == {}
    assert mine_as_published([[1]], 2, limit=9) == {}
