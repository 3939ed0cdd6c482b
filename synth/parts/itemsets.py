"""Frequent sets of items: all, closed or maximal ones, exactly; and what a published miner finds instead.

Transactions are sets of items. The support of a set is the number of transactions that hold all of it. A set is closed
if no larger one has the same support, and maximal if no larger one is frequent. Tidsets (which transactions hold a set)
are Python integers with a bit a transaction: an intersection is one ``&``, a support one ``bit_count``.

References:
    Zaki, "Scalable algorithms for association mining", 2000 (Eclat: depth-first search over tidsets).
    Uno, Kiyomi, Arimura, "LCM ver. 2", 2004 (closed sets by prefix-preserving closure extension, each found once).
    Han, Pei, Yin, "Mining frequent patterns without candidate generation", 2000 (FP-growth).
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import combinations, islice, takewhile
from typing import Literal

from dd_bench.errors import ConfigError

Sets = dict[tuple[int, ...], int]  # the items of a set, ascending, and its support
Wanted = Literal["frequent", "closed", "maximal"]


class TooManySetsError(ConfigError):
    """More sets are frequent than were allowed for; a lower threshold would only give more."""

    def __init__(self, theta: int, limit: int) -> None:
        super().__init__(f"theta {theta} gives more than {limit:,} sets of trees; raise theta, or max_sets")


def mine(transactions: Sequence[Iterable[int]], theta: int, *, wanted: Wanted = "frequent", limit: int) -> Sets:
    """Returns the frequent, closed or maximal sets with a support of at least ``theta``, and their supports.

    The empty set is none of them.

    Args:
        transactions: items, repetitions meaningless.
        theta: smallest support, at least 1.
        wanted: which sets; ``maximal`` ones are the closed ones that nothing frequent contains.
        limit: the largest number of sets (for ``maximal``: of closed sets) that may be looked at.

    Raises:
        TooManySetsError: when the limit is passed; nothing is enumerated beyond it.
        ConfigError: for a theta below 1.
    """
    if theta < 1:
        raise ConfigError(f"theta is {theta}; expected a number of graphs, at least 1")
    search = _Search.over(transactions, theta, together=wanted != "frequent")
    if len(search.tidsets) > limit:  # each is a set, or the heart of one, by itself
        raise TooManySetsError(theta, limit)
    sets: Sets = {}
    for number, (chosen, tidset) in enumerate(search.frequent() if wanted == "frequent" else search.closed()):
        if number >= limit:
            raise TooManySetsError(theta, limit)
        if wanted != "maximal" or search.is_maximal(chosen, tidset):
            sets[tuple(sorted(item for at in chosen for item in search.items[at]))] = tidset.bit_count()
    return sets


def threshold(transactions: Sequence[Iterable[int]], count: int, *, wanted: Wanted = "frequent") -> int:
    """Returns the lowest theta at which at most ``count`` sets are frequent (or closed, which also bounds ``maximal``).

    Where the most frequent ones alone are more than ``count`` that is a theta at which there are none.
    """
    together = wanted != "frequent"
    # Distinct tidsets of single items belong to distinct sets: the first `count` of them bound the threshold.
    supports = sorted(
        (one.bit_count() for one in _Search.over(transactions, 1, together=together).tidsets), reverse=True
    )
    search = _Search.over(transactions, supports[count] if len(supports) > count else 1, together=together)
    found = search.frequent() if wanted == "frequent" else search.closed()
    beyond = next(islice(found, count, None), None)
    return 1 if beyond is None else beyond[1].bit_count() + 1


@dataclass(frozen=True)
class _Search:
    """Best-first search over positions in ``items``: sets come by descending support.

    Attributes:
        items: the items of each position; those that always occur together share one where closed sets are wanted.
        tidsets: which transactions hold them, by ascending support, so that rare items, which soon lead nowhere, are
            looked at with the most others.
        theta: smallest support.
        transactions: how many there are.
    """

    items: list[list[int]]
    tidsets: list[int]
    theta: int
    transactions: int

    @classmethod
    def over(cls, transactions: Sequence[Iterable[int]], theta: int, *, together: bool) -> "_Search":
        tidsets: Counter[int] = Counter()
        for bit, transaction in enumerate(transactions):
            for item in set(transaction):
                tidsets[item] |= 1 << bit
        groups: dict[tuple[int, int], list[int]] = {}
        for item in sorted(tidsets):
            if tidsets[item].bit_count() >= theta:
                groups.setdefault((tidsets[item], -1 if together else item), []).append(item)
        ranked = sorted(groups.items(), key=lambda group: (group[0][0].bit_count(), group[1]))
        return cls([items for _, items in ranked], [tidset for (tidset, _), _ in ranked], theta, len(transactions))

    def frequent(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yields every frequent set once, as an extension of the set of its first positions."""
        queue = [(0, (), (1 << self.transactions) - 1)]  # type: list[tuple[int, tuple[int, ...], int]]
        while queue:
            _, chosen, tidset = heappop(queue)
            if chosen:
                yield chosen, tidset
            for at in range(chosen[-1] + 1 if chosen else 0, len(self.tidsets)):
                both = tidset & self.tidsets[at]
                if (support := both.bit_count()) >= self.theta:
                    heappush(queue, (-support, (*chosen, at), both))

    def closed(self) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yields every closed set once (LCM): an extension counts where its closure adds nothing before it."""
        everyone = (1 << self.transactions) - 1
        queue = [(-self.transactions, self._closure(everyone), -1, everyone)] if self.transactions >= self.theta else []
        while queue:
            _, closure, core, tidset = heappop(queue)
            if closure:
                yield closure, tidset
            inside = set(closure)
            others = [at for at in range(len(self.tidsets)) if at not in inside]
            for at in others:
                if at <= core:
                    continue
                both = tidset & self.tidsets[at]
                if (support := both.bit_count()) < self.theta:
                    continue
                if all(both & ~self.tidsets[earlier] for earlier in takewhile(at.__gt__, others)):
                    heappush(queue, (-support, self._closure(both), at, both))

    def is_maximal(self, chosen: Sequence[int], tidset: int) -> bool:
        """Says whether no other item can be added."""
        inside = set(chosen)
        others = (other for at, other in enumerate(self.tidsets) if at not in inside)
        return all((tidset & other).bit_count() < self.theta for other in others)

    def _closure(self, tidset: int) -> tuple[int, ...]:
        return tuple(at for at, other in enumerate(self.tidsets) if not tidset & ~other)


def mine_as_published(transactions: Sequence[Sequence[int]], theta: int, *, limit: int) -> Sets:
    """Returns what pyfpgrowth 1.0 finds, with which Mirage's sets were made; it is not what is frequent.

    Two faults of that package are kept (https://github.com/evandempsey/fp-growth/issues/24): an item whose conditional
    tree branches is not reported by itself, and items of equal support are ordered by where they stand in each
    transaction, which splits counts between branches. Supports of sets that are found twice are added.

    Args:
        transactions: distinct items each; their order decides between ties.
        theta: smallest support.
        limit: the largest number of sets.

    Raises:
        TooManySetsError: when the limit is passed.
    """
    sets = _grow([(list(transaction), 1) for transaction in transactions], theta, None, 0, limit)
    sets.pop((), None)
    return sets


@dataclass
class _Prefix:
    """A node of a prefix tree: how many transactions come through, and where they go next."""

    path: tuple[int, ...]  # the items above, the nearest first
    count: int = 0
    children: dict[int, "_Prefix"] = field(default_factory=dict)


def _grow(weighted: list[tuple[list[int], int]], theta: int, suffix: int | None, support: int, limit: int) -> Sets:
    """Returns the sets of a conditional tree, each with ``suffix``."""
    counts: Counter[int] = Counter()
    for items, weight in weighted:
        for item in items:
            counts[item] += weight
    frequent = {item: count for item, count in counts.items() if count >= theta}
    root, nodes = _Prefix(()), {item: [] for item in frequent}  # type: tuple[_Prefix, dict[int, list[_Prefix]]]
    for items, weight in weighted:
        node, path = root, ()  # type: tuple[_Prefix, tuple[int, ...]]
        for item in sorted((item for item in items if item in frequent), key=lambda item: -frequent[item]):
            if item not in node.children:
                node.children[item] = _Prefix(path)
                nodes[item].append(node.children[item])
            node = node.children[item]
            node.count += weight
            path = (item, *path)
    tail = () if suffix is None else (suffix,)
    if _is_single_path(root):
        if 2 ** len(frequent) > limit:
            raise TooManySetsError(theta, limit)
        return {tail: support} | {
            tuple(sorted([*chosen, *tail])): min(frequent[item] for item in chosen)
            for size in range(1, len(frequent) + 1)
            for chosen in combinations(frequent, size)
        }
    sets: Counter[tuple[int, ...]] = Counter()
    for item in sorted(frequent, key=lambda item: frequent[item]):
        paths = [(list(node.path), node.count) for node in nodes[item]]
        for found, count in _grow(paths, theta, item, frequent[item], limit).items():
            sets[tuple(sorted([*found, *tail]))] += count
        if len(sets) > limit:
            raise TooManySetsError(theta, limit)
    return dict(sets)


def _is_single_path(node: _Prefix) -> bool:
    while node.children:
        if len(node.children) > 1:
            return False
        (node,) = node.children.values()
    return True
