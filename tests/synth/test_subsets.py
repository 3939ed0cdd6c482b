"""Subsets of rows, each against its definition in a few lines."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.cluster import KMeans as Clusters

from dd_bench.seeding import derive_seed, generator
from synth.parts.subsets import farthest_points, herd, nearest_to_centres


def rows(count: int, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, 4)) + 1
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("count", [1, 6, 30])
def test_herding_matches_reference(count: int) -> None:
    """Each next row brings the mean of the chosen ones nearest to the mean of all (iCaRL, algorithm 4)."""
    features = rows(30)
    chosen: list[int] = []
    for step in range(1, count + 1):
        means = (features[chosen].sum(0) + features) / step
        distance = np.linalg.norm(features.mean(0) - means, axis=1)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    assert herd(features, count) == chosen
    assert herd(csr_array(features), count) == chosen


def test_herded_means_are_near() -> None:
    features, count = rows(30), 6
    away = np.linalg.norm(features[herd(features, count)].mean(0) - features.mean(0))
    random = [np.linalg.norm(rows(30)[np.random.default_rng(n).permutation(30)[:count]].mean(0) - features.mean(0))
              for n in range(50)]  # fmt: skip
    assert away < min(random)


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_farthest_points_match_reference(count: int) -> None:
    features = rows(30)
    chosen = [min(range(30), key=lambda row: np.linalg.norm(features[row] - features.mean(0)))]
    while len(chosen) < count:
        left = [row for row in range(30) if row not in chosen]
        chosen.append(max(left, key=lambda row: min(np.linalg.norm(features[row] - features[one]) for one in chosen)))
    assert farthest_points(features, count) == chosen


def test_farthest_points_cover_at_most_twice_as_wide_as_the_best() -> None:
    """Gonzalez's bound, with the best choice found by trying all."""

    def radius(features: np.ndarray, centres: tuple[int, ...]) -> float:
        return float(np.linalg.norm(features[:, None] - features[list(centres)], axis=2).min(1).max())

    for seed in range(20):
        features = rows(10, seed)
        best = min(radius(features, centres) for centres in combinations(range(10), 3))
        assert best <= radius(features, tuple(farthest_points(features, 3))) <= 2 * best + 1e-12


def test_equal_rows_are_taken_once() -> None:
    features = np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    for choose in (farthest_points, herd):
        assert sorted(choose(features, 4)) == [0, 1, 2, 3]
    assert set(farthest_points(features, 2)) == {0, 3}


@pytest.mark.parametrize("count", [1, 7, 40])
def test_k_means_matches_reference(count: int) -> None:
    features = torch.randn(40, 3, generator=generator(0))
    picked = nearest_to_centres(features, count, seed=5)
    clusters = Clusters(count, n_init=1, random_state=derive_seed("k-means", 5) % 2**32).fit(features.double().numpy())
    taken: list[int] = []
    for centre, row in zip(torch.from_numpy(clusters.cluster_centers_), picked.tolist(), strict=True):
        distances = (features.double() - centre).square().sum(1).sqrt()
        distances[taken] = torch.inf
        assert distances[row] <= distances.min() + 1e-9, "the two rows of a cluster of two are as near"
        taken.append(row)
    assert len(picked.unique()) == count
    assert nearest_to_centres(features, count, seed=5).equal(picked)


def test_rows_of_k_means_differ_though_centres_share_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of such centres takes its next."""

    class Found:
        cluster_centers_ = np.array([[5.0], [5.1], [0.2], [4.9]])

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self, _: Any) -> "Found":
            return self

    features = torch.tensor([[0.0], [5.0], [6.0], [9.0], [3.0]])
    assert nearest_to_centres(torch.arange(6.0)[:, None], 6, 0).sort().values.equal(torch.arange(6))
    monkeypatch.setattr("sklearn.cluster.KMeans", Found)
    assert nearest_to_centres(features, 4, 0).tolist() == [1, 2, 0, 4]
