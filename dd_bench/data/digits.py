"""Scikit-learn's handwritten digits and our split of them; what ``digits`` and ``digits-graph`` have in common."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dd_bench.data.names import choose
from dd_bench.data.specs import SPECS

_TEST = 36  # test images a class: together a fifth of the 1,797


def read_digits() -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Returns grey levels, labels and what is for testing, in scikit-learn's order.

    scikit-learn has no split; ours puts 36 images of each class into the test, chosen as subsets are.

    Returns:
        levels (1797, 8, 8) from 0 to 16, labels (1797,) int64 in [0, 10), test (1797,) bool.
    """
    from sklearn.datasets import load_digits  # here, because the import takes a second

    bunch = load_digits()
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    test[choose(labels, _TEST, spec=SPECS["digits"], split="all")] = True
    return bunch.images.astype(np.int64), labels, test
