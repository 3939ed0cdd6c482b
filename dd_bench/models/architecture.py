"""Names of architectures and what they build: ``<family>[-<norm>][-x<factor>]``.

``convnet3`` is the ConvNet of three blocks with instance normalisation, ``convnet3-batch-x0.25`` the same with
BatchNorm and a quarter of the channels, ``resnet18-x0.25`` a ResNet-18 of width 16, ``gin2-x0.5`` a graph network of
two layers and width 64. An architecture has one canonical spelling, which is what records and files carry, so that
equal networks are never two rows of a board.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Self, overload

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.models import (
    alexnet,
    convnet,
    densenet,
    efficientnet,
    mlp,
    mobilenetv2,
    resnet,
    shufflenet,
    shufflenetv2,
    vgg,
    vit,
)
from dd_bench.models.classifier import Classifier, Features

if TYPE_CHECKING:
    from dd_bench.models.gnn import GraphNetwork, Kind

MAX_FACTOR = 4.0
MAX_LAYERS = 5
_FACTOR = re.compile(r"x([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Family:
    """What a family of image networks offers.

    Attributes:
        summary: one line for listings.
        norms: the normalisations to choose from, the default first; empty where the family has its own.
        features: from (architecture, spec) to the network without its head.
    """

    summary: str
    norms: tuple[str, ...]
    features: Callable[["Architecture", DatasetSpec], Features]


@dataclass(frozen=True)
class GraphFamily:
    """What a family of graph networks offers.

    Attributes:
        summary: one line for listings.
        kind: of layer.
        layers: how many.
    """

    summary: str
    kind: "Kind"
    layers: int
    norms: ClassVar[tuple[str, ...]] = ()


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
        return Classifier(spec, family.features(architecture, spec))
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


def _convnet(depth: int, architecture: Architecture, spec: DatasetSpec) -> Features:
    return convnet.convnet_features(spec, depth=depth, norm=architecture.norm, factor=architecture.factor)


def _pyramid(depth: int, architecture: Architecture, spec: DatasetSpec) -> Features:
    return convnet.pyramid_features(spec, depth=depth, norm=architecture.norm, factor=architecture.factor)


def _pooled(depth: int, architecture: Architecture, spec: DatasetSpec) -> Features:
    return convnet.pooled_features(spec, depth=depth, norm=architecture.norm, factor=architecture.factor)


def _resnet(depth: int, architecture: Architecture, spec: DatasetSpec) -> Features:
    return resnet.resnet_features(spec, depth=depth, factor=architecture.factor)


_GRAPH_TITLES: "dict[Kind, str]" = {
    "gcn": "Graph convolutions (GCN)",
    "gat": "Graph attention (GAT), 4 heads",
    "gin": "Graph isomorphism network (GIN, GINE)",
    "sage": "GraphSAGE, mean",
}

FAMILIES: dict[str, Family | GraphFamily] = {
    **{
        f"convnet{depth}": Family(
            f"ConvNet with {depth} block{'s' if depth > 1 else ''} of width 128 (DC, DSA, MTT)",
            convnet.NORMS,
            partial(_convnet, depth),
        )
        for depth in range(1, convnet.MAX_DEPTH + 1)
    },
    **{
        f"pyramid{depth}": Family(
            f"ConvNet with {depth} blocks whose width doubles up to 512 (KRR-ST)",
            convnet.PYRAMID_NORMS,
            partial(_pyramid, depth),
        )
        for depth in range(convnet.MIN_PYRAMID, convnet.MAX_DEPTH + 1)
    },
    **{
        f"pooled{depth}": Family(
            f"The pyramid with {depth} blocks and global average pooling before its head",
            convnet.PYRAMID_NORMS,
            partial(_pooled, depth),
        )
        for depth in range(convnet.MIN_PYRAMID, convnet.MAX_DEPTH + 1)
    },
    **{
        f"resnet{depth}": Family(f"ResNet-{depth}; 3x3 stem up to 64 pixels, 7x7 above", (), partial(_resnet, depth))
        for depth in resnet.BLOCKS
    },
    "mobilenetv2": Family(
        "MobileNetV2; CIFAR strides up to 64 pixels, as published above",
        (),
        lambda architecture, spec: mobilenetv2.mobilenetv2_features(spec, factor=architecture.factor),
    ),
    "efficientnetb0": Family(
        "EfficientNet-B0 without dropout; CIFAR strides up to 64 pixels, as published above",
        (),
        lambda architecture, spec: efficientnet.efficientnetb0_features(spec, factor=architecture.factor),
    ),
    "shufflenetv1": Family(
        "ShuffleNet v1 with 2 groups; stem with stride 1 up to 64 pixels, 2 and max-pooling above",
        (),
        lambda architecture, spec: shufflenet.shufflenetv1_features(spec, factor=architecture.factor),
    ),
    "shufflenetv2": Family(
        "ShuffleNet v2; stem with stride 1 up to 64 pixels, 2 and max-pooling above",
        (),
        lambda architecture, spec: shufflenetv2.shufflenetv2_features(spec, factor=architecture.factor),
    ),
    "densenet121": Family(
        "DenseNet-121; 3x3 stem up to 64 pixels, 7x7 above; the factor multiplies its growth rate of 32",
        (),
        lambda architecture, spec: densenet.densenet121_features(spec, factor=architecture.factor),
    ),
    "vgg11": Family(
        "VGG11; one linear layer up to 64 pixels (pytorch-cifar, DC), three above",
        vgg.NORMS,
        lambda architecture, spec: vgg.vgg11_features(spec, norm=architecture.norm, factor=architecture.factor),
    ),
    "alexnet": Family(
        "AlexNet; DC's for images up to 64 pixels, the published one above",
        alexnet.NORMS,
        lambda architecture, spec: alexnet.alexnet_features(spec, norm=architecture.norm, factor=architecture.factor),
    ),
    "mlp": Family(
        "Two hidden layers of width 128 on the pixels (DC)",
        (),
        lambda architecture, spec: mlp.mlp_features(spec, factor=architecture.factor),
    ),
    "vit": Family(
        "Vision Transformer of the size of ViT-Ti; 8 x 8 patches below 112 pixels, of 16 pixels above",
        (),
        lambda architecture, spec: vit.vit_features(spec, factor=architecture.factor),
    ),
    **{
        f"{kind}{layers}": GraphFamily(
            f"{title} with {layers} layer{'s' if layers > 1 else ''} of width 128, for graphs", kind, layers
        )
        for kind, title in _GRAPH_TITLES.items()
        for layers in range(1, MAX_LAYERS + 1)
    },
}
"""Every architecture family, in the order listings show them."""
