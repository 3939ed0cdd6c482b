"""What each graph data set is: label columns and classes, written down once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GraphSpec:
    """The facts of a graph data set that networks and scores need.

    Attributes:
        name: as typed, for example ``nci1``.
        num_classes: K; two classes are scored by ROC-AUC of the second, more by accuracy.
        node_columns: the number of categories of each node label column; (F,), F at least 1.
        edge_columns: the number of categories of each edge label column; (E,), empty where edges have no labels.
        class_names: K names in label order.
    """

    name: str
    num_classes: int
    node_columns: tuple[int, ...]
    edge_columns: tuple[int, ...]
    class_names: tuple[str, ...]


# OGB's published category counts. Atoms: atomic number, chirality, degree, formal charge, hydrogens, radical electrons,
# hybridisation, aromatic, in a ring. Bonds: type, stereo, conjugated.
_ATOM_COLUMNS = (119, 5, 12, 12, 10, 6, 6, 2, 2)
_BOND_COLUMNS = (5, 6, 2)

GRAPH_SPECS: dict[str, GraphSpec] = {
    spec.name: spec
    for spec in (
        # Nodes are pixels with ink, labelled faint (1 to 8 of 16) or dark; edges are labelled across or down.
        GraphSpec("digits-graph", 10, (2,), (2,), tuple("0123456789")),
        # TU node and edge labels are the raw ones less the least, gaps kept: DD's 1 to 89 are 0 to 88.
        GraphSpec("mutag", 2, (7,), (4,), ("not mutagenic", "mutagenic")),
        GraphSpec("nci1", 2, (37,), (), ("inactive", "active")),
        GraphSpec("proteins", 2, (3,), (), ("enzyme", "no enzyme")),
        # Nodes have no labels; ours are their degrees, 0 to 135. TU does not say which genre is which.
        GraphSpec("imdb-binary", 2, (136,), (), ("action or romance", "the other")),
        GraphSpec("dd", 2, (89,), (), ("enzyme", "no enzyme")),
        GraphSpec("aids", 2, (38,), (3,), ("active", "inactive")),
        GraphSpec("ogbg-molbace", 2, _ATOM_COLUMNS, _BOND_COLUMNS, ("no inhibitor", "inhibitor")),
        GraphSpec("ogbg-molbbbp", 2, _ATOM_COLUMNS, _BOND_COLUMNS, ("kept out", "passes")),
        GraphSpec("ogbg-molhiv", 2, _ATOM_COLUMNS, _BOND_COLUMNS, ("inactive", "active")),
    )
}
"""The graph data sets by name; class k is the k-th smallest raw label."""
