"""The byte ledger of a set: what each part of its tensors file costs on disk, to the last byte."""

from dd_bench.codec import stored_tensors
from dd_bench.errors import InvalidSetError
from dd_bench.sets import SyntheticSet

# A field that is not named here is a part of its own.
_PARTS = {
    **{"pixels": "images", "base": "images", "scales": "offsets"},
    **dict.fromkeys(("logits", "tops", "kept", "rest"), "labels"),
    **dict.fromkeys(("values", "center"), "targets"),
    **dict.fromkeys(("nodes", "links", "link_labels", "node_counts", "link_counts"), "graphs"),
    **dict.fromkeys(("features", "degrees", "levels", "trunks", "fans", "children"), "trees"),
    **dict.fromkeys(("bonds", "repeats", "bond_labels"), "trees"),
    **dict.fromkeys(("tree_counts", "roots", "copies"), "tree sets"),
}


def ledger(synthetic: SyntheticSet, tensors_bytes: int) -> dict[str, int]:
    """Returns the bytes of each part of a tensors file of ``tensors_bytes``; they sum to it exactly.

    Parts are ``images`` (pixels, base images), ``offsets`` (with their scales), ``pairs`` (which offset goes with which
    image), ``graphs``, ``trees`` (the DAG of subtrees), ``tree sets`` (which trees), ``weights`` (of tree sets),
    ``labels`` (logits), ``tape`` (the augmentation that they belong to), ``targets`` (features and their centre),
    ``classes``, and ``container``: the header and its padding. A set has only the parts of its kinds. Labels are
    counted however small, and images at full size: nothing here is compressed.

    Raises:
        InvalidSetError: if the tensors alone are larger than the file.
    """
    parts: dict[str, int] = {}
    for name, tensor in stored_tensors(synthetic).items():
        own = name.split(".")[1]  # payload.pixels, targets.tape.order
        part = _PARTS.get(own, own)
        parts[part] = parts.get(part, 0) + tensor.nbytes
    container = tensors_bytes - sum(parts.values())
    if container < 0:
        raise InvalidSetError(f"the tensors take {sum(parts.values())} bytes, more than their file of {tensors_bytes}")
    return {**parts, "container": container}
