"""Subsets of rows that stand for all: by herding, by k-means, by farthest points."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from dd_bench.seeding import derive_seed

Rows = NDArray[np.float64] | csr_array


def herd(features: Rows, count: int) -> list[int]:
    """Returns ``count`` different rows, each chosen to bring the sum so far nearest to as many times the mean.

    Welling, "Herding dynamical weights to learn", ICML 2009: w ← w + mean − φ(x), x = argmax ⟨w, φ(x)⟩, which for rows
    of one length is that nearest sum. Of equally good rows the first is taken.

    Args:
        features: (N, D), rows of length 1.
        count: at most N.
    """
    mean = np.asarray(features.mean(axis=0)).ravel()
    wanted = mean.copy()
    chosen: list[int] = []
    for _ in range(count):
        gain = features @ wanted
        gain[chosen] = -np.inf
        chosen.append(int(gain.argmax()))
        row = features[[chosen[-1]]]
        wanted += mean - (row.toarray() if isinstance(row, csr_array) else row).ravel()
    return chosen


def nearest_to_centres(features: Tensor, count: int, seed: int) -> Tensor:
    """Returns indices (count,) of different rows of features (N, D), each nearest to a centre of k-means.

    The centres come one after the other; a row that a centre before has taken is not there for those after it.
    """
    from sklearn.cluster import KMeans  # here, because the import takes a second

    rows = features.double().numpy()
    centres = KMeans(count, n_init=1, random_state=derive_seed("k-means", seed) % 2**32).fit(rows).cluster_centers_
    distances = torch.cdist(torch.from_numpy(centres), features.double())
    picked = []
    for row in distances.round_(decimals=9):  # both of a cluster of two are as near to its centre, but for rounding
        picked.append(int(row.argmin()))
        distances[:, picked[-1]] = torch.inf
    return torch.tensor(picked)


def farthest_points(features: NDArray[np.float64], count: int) -> list[int]:
    """Returns ``count`` different rows, the first nearest to the mean, each next one farthest from those before it.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: no row is more than twice as far from
    the chosen ones as with the best choice of as many centres. Sener and Savarese, "Active learning for convolutional
    neural networks: a core-set approach", ICLR 2018, use it as k-center-greedy. Of equally far rows the first is taken.

    Args:
        features: (N, D); distances are Euclidean.
        count: at most N.
    """
    chosen = [int(np.square(features - features.mean(0)).sum(1).argmin())]
    nearest = np.full(len(features), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, np.square(features - features[chosen[-1]]).sum(1))
        nearest[chosen] = -1  # rows that are equal to chosen ones come after all others, but before chosen ones
        chosen.append(int(nearest.argmax()))
    return chosen
