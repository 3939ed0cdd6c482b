"""Representatives: real images that stand for the clusters of their class.

AST (Shen, Yang and Lam 2023, arXiv 2310.10541) starts from them. Its authors' code makes ten clusters whatever the
size of the set, and takes ipc // 10 images of each: none at all below ipc 10, and the same image twice where clusters
overlap. Here every image is a different one, and there are as many as were asked for.
"""

import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from dd_bench.errors import ConfigError

_CLUSTERS = 10


def choose_representatives(features: Tensor, count: int, *, seed: int) -> Tensor:
    """Returns the indices (count,) of different rows, cluster by cluster of k = min(10, count), the largest first.

    Each cluster gives count // k of its members, the count % k largest one more, those nearest to its centre. What a
    small cluster lacks is made up by the rows, of all that are left, which are nearest to their own centres. For count
    1 that is the row nearest to the mean.

    Args:
        features: (N, D), one row for each image of a class; squared Euclidean distances are what counts.
        count: at least 1.
        seed: of the centres' start.

    Raises:
        ConfigError: if there are fewer than ``count`` rows.
    """
    if len(features) < count:
        raise ConfigError(f"a class has {len(features)} training examples, but {count} are asked for; lower --ipc")
    rows = features.double().cpu().numpy()
    clusters = min(_CLUSTERS, count)
    with warnings.catch_warnings():  # fewer different rows than clusters: the empty ones give nothing
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = KMeans(clusters, n_init=10, random_state=seed % 2**32).fit(rows)
    distance = np.square(rows - found.cluster_centers_[found.labels_]).sum(1)
    sizes = np.bincount(found.labels_, minlength=clusters)
    chosen: list[int] = []
    for rank, cluster in enumerate(np.argsort(-sizes, kind="stable")):
        members = np.flatnonzero(found.labels_ == cluster)
        quota = count // clusters + (rank < count % clusters)
        chosen += members[np.argsort(distance[members], kind="stable")[:quota]].tolist()
    left = np.setdiff1d(np.argsort(distance, kind="stable"), chosen, assume_unique=True)  # keeps the order
    return torch.tensor([*chosen, *left[: count - len(chosen)].tolist()])
