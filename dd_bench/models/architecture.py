"""Names of architectures and what they build: ``<family>[-<norm>][-x<factor>]``.

``convnet3`` is the ConvNet of three blocks with instance normalisation, ``convnet3-batch-x0.25`` the same with
BatchNorm and a quarter of the channels, ``resnet18-x0.25`` a ResNet-18 of width 16, ``gin2-x0.5`` a graph network of
two layers and width 64. An architecture has one canonical spelling, which is what records and files carry, so that
equal networks are never two rows of a board.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Self, overload

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.models.classifier import Classifier
from dd_bench.models.families import FAMILIES, Family, GraphFamily

if TYPE_CHECKING:
    from dd_bench.models.gnn import GraphNetwork

MAX_FACTOR = 4.0
_FACTOR = re.compile(r"x([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Architecture:
    """One network, independent of the data set; ``str()`` gives its canonical name.

    Attributes:
        family: a key of ``FAMILIES``.
        norm: one of the family's norms; left empty, the family's default, or its own where there is no choice.
        factor: multiplies every number of channels, in (0, 4].

    Raises:
        UnknownNameError: for a family that is not in the list.
        ConfigError: for a norm the family does not have, or a factor out of range.
    """

    family: str
    norm: str = ""
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UnknownNameError("model", self.family, FAMILIES)
        norms = FAMILIES[self.family].norms
        if self.norm and self.norm not in norms:
            expected = f"one of {', '.join(norms)}" if norms else "none to be named, as this family has its own"
            raise ConfigError(
                f"model {self.family}: found the norm {self.norm!r}, expected {expected}; "
                f"spell it {_usage(self.family)}"
            )
        if not 0 < self.factor <= MAX_FACTOR:
            raise ConfigError(
                f"model {self.family}: found the width factor {self.factor}, expected one above 0 and at most "
                f"{MAX_FACTOR:g}; x0.25 keeps a quarter of the channels"
            )
        if norms and not self.norm:
            object.__setattr__(self, "norm", norms[0])  # so that equal networks compare equal

    @classmethod
    def parse(cls, name: str) -> Self:
        """Returns the architecture that ``name`` spells, canonically or not.

        >>> str(Architecture.parse("convnet3-instance-x1.0"))
        'convnet3'
        >>> Architecture.parse("convnet3-batch-x0.25")
        Architecture(family='convnet3', norm='batch', factor=0.25)

        Raises:
            UnknownNameError: for an unknown family.
            ConfigError: for parts that are neither a norm nor a factor, come twice, or in the wrong order.
        """
        family, *parts = name.split("-")
        if family not in FAMILIES:
            raise UnknownNameError("model", family, FAMILIES)
        factor = 1.0
        if parts and (match := _FACTOR.fullmatch(parts[-1])):
            factor = float(match[1])
            parts.pop()
        if len(parts) > 1 or (parts and not parts[0].isalpha()):
            raise ConfigError(f"model {name!r}: found {'-'.join(parts)!r} after {family}; spell it {_usage(family)}")
        return cls(family, parts[0] if parts else "", factor)

    def __str__(self) -> str:
        norms = FAMILIES[self.family].norms
        norm = f"-{self.norm}" if norms and self.norm != norms[0] else ""
        # Decimal, because a float prints small factors with an exponent, which the grammar does not have.
        factor = "" if self.factor == 1 else f"-x{Decimal(repr(float(self.factor))).normalize():f}"
        return f"{self.family}{norm}{factor}"


@overload
def build(name: str, spec: DatasetSpec) -> Classifier: ...
@overload
def build(name: str, spec: GraphSpec) -> "GraphNetwork": ...
def build(name: str, spec: DatasetSpec | GraphSpec) -> "Classifier | GraphNetwork":
    """Returns the named network with fresh weights on the CPU, in training mode, for the data set ``spec`` describes.

    Image networks take float pixels (N, C, H, W), nominally in [0, 1], and return logits (N, K); graph networks take a
    ``graphs.MessagePlan`` and return logits (count, K). Their forward pass draws no random numbers; their initial
    weights come from torch's global generator: build inside ``seeding.seeded(seed)``.

    Raises:
        UnknownNameError: for an unknown family.
        ConfigError: for a malformed name, an image network for graphs or a graph network for images, or an image too
            small for a ConvNet's depth.
    """
    architecture = Architecture.parse(name)
    check_fit(name, spec)
    family = FAMILIES[architecture.family]
    if isinstance(spec, DatasetSpec) and isinstance(family, Family):
        return Classifier(spec, family.features(spec, norm=architecture.norm, factor=architecture.factor))
    assert isinstance(spec, GraphSpec)
    assert isinstance(family, GraphFamily)
    from dd_bench.models.gnn import GraphNetwork  # PyTorch Geometric takes seconds, which those of images need not wait

    return GraphNetwork(spec, family.kind, family.layers, architecture.factor)


def check_fit(name: str, spec: DatasetSpec | GraphSpec) -> None:
    """Raises ConfigError if the named network takes images and the data are graphs, or the reverse."""
    needs_graphs = isinstance(FAMILIES[Architecture.parse(name).family], GraphFamily)
    if needs_graphs != isinstance(spec, GraphSpec):
        takes, holds, example = ("graphs", "images", "convnet3") if needs_graphs else ("images", "graphs", "gin2-x0.5")
        raise ConfigError(
            f"model {name} takes {takes}, but {spec.name} holds {holds}; choose one for {holds}, for example {example}"
        )


def _usage(family: str) -> str:
    """Returns the spellings a family allows, for messages."""
    norms = "|".join(f"-{norm}" for norm in FAMILIES[family].norms)
    return f"{family}{f'[{norms}]' if norms else ''}[-x<factor>], for example {family}-x0.25"
