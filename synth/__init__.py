"""Synthesizers: one public file for each method or family, listed in ``METHODS``.

A method of another package joins through the entry-point group ``ddbench.synthesizers``; its name then works
everywhere a built-in one does.
"""

from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from dd_bench.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from synth.base import Synthesizer

METHODS = {
    "ast": "synth.trajectory:AST",
    "cv-dd": "synth.committee:CVDD",
    "herding": "synth.selection:Herding",
    "infer": "synth.infer:Infer",
    "infer-base": "synth.infer:BaseOnly",
    "infer-scrambled": "synth.infer:ScrambledOffsets",
    "k-center": "synth.selection:KCenter",
    "k-means": "synth.selection:KMeans",
    "krr-shuffled": "synth.krr:ShuffledTargets",
    "krr-st": "synth.krr:KRRST",
    "mirage": "synth.mirage:Mirage",
    "mirage-random": "synth.mirage:RandomTrees",
    "mtt": "synth.trajectory:MTT",
    "random": "synth.coreset:Random",
    "sre2l": "synth.committee:SRe2L",
    "sre2l++": "synth.committee:SRe2LPlusPlus",
}

ENTRY_POINTS = "ddbench.synthesizers"
_ROLE = ("__dataclass_fields__", "default_dataset", "version", "PRESETS", "preset_for", "synthesize", "controls")


def methods() -> dict[str, str]:
    """Returns every known method: name to ``module:Class``. Built-in names cannot be taken by other packages."""
    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | METHODS


def find(name: str) -> "type[Synthesizer]":
    """Returns the class of the method ``name``, importing its module now and no earlier.

    Raises:
        UnknownNameError: with the nearest known name and the whole list.
        ConfigError: if the module of an external method cannot be imported or holds no such class.
    """
    found: type[Synthesizer]
    if name in METHODS:  # what fails in there is our bug and keeps its traceback
        found = _load(METHODS[name])
        return found
    known = methods()
    if name not in known:
        raise UnknownNameError("method", name, known)
    try:
        found = _load(known[name])
        lacking = [part for part in _ROLE if not hasattr(found, part)]
    except Exception as error:  # whatever foreign code raises while it is imported
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"method {name!r} should be {known[name]}, but {reason}; mend or remove that package"
        ) from error
    if lacking:
        raise ConfigError(
            f"method {name!r} is {known[name]}, which has no {', '.join(lacking)}; expected a dataclass in the role of "
            "synth.base.Synthesizer: mend or remove that package"
        )
    return found


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)
