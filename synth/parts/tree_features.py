"""Graphs as vectors: how often each computation tree stands in them."""

from scipy.sparse import csr_array, hstack

from dd_bench.colours import refine
from dd_bench.graphs import GraphBatch


def tree_features(batch: GraphBatch, hops: int) -> csr_array:
    """Returns the square roots of the shares of all trees of depth 0 to ``hops``; (G, trees), rows of length 1.

    The Weisfeiler-Lehman subtree features (Shervashidze et al., JMLR 2011), made insensitive to the size of graphs.
    """
    colours = refine(batch, hops)
    owners = batch.owners.numpy()
    share = 1 / batch.sizes.numpy()[owners] / (hops + 1)
    return hstack(
        [
            csr_array((share, (owners, level)), shape=(len(batch), len(first))).sqrt()  # equal places are added up
            for level, first in zip(colours.levels, colours.firsts, strict=True)
        ],
        format="csr",
    )
