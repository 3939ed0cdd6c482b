"""Which presets are made for a data set: the published ones, or ours for a CPU."""

from collections.abc import Container

from dd_bench.data.names import plain_name


def scale_of(dataset: str) -> str:
    """Returns the scale a data set's presets are made for: ``digits``, ``small`` (a subset), or ``published``."""
    if dataset.startswith("digits"):
        return "digits"
    return "small" if "@" in dataset else "published"


def preset_for(dataset: str, published: Container[str]) -> str:
    """Returns the stem of the presets for ``dataset``: its scale, with its own settings if they are ``published``.

    Whole data sets for which nothing was published get the settings of CIFAR-10.
    """
    scale = scale_of(dataset)
    return scale if scale != "published" or plain_name(dataset) in published else "published-cifar10"
