"""Every family of networks: what it is, which normalisations it offers, and who makes its networks."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from dd_bench.data.specs import DatasetSpec
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
from dd_bench.models.classifier import Features

if TYPE_CHECKING:
    from dd_bench.models.gnn import Kind

MAX_LAYERS = 5  # of graph networks


@dataclass(frozen=True)
class Family:
    """What a family of image networks offers.

    Attributes:
        summary: one line for listings.
        norms: the normalisations to choose from, the default first; empty where the family has its own.
        maker: from the spec, ``factor`` and, where there is a choice, ``norm`` to the network without its head.
    """

    summary: str
    norms: tuple[str, ...]
    maker: Callable[..., Features]

    def features(self, spec: DatasetSpec, *, norm: str, factor: float) -> Features:
        """Returns the network without its head; ``norm`` counts where the family offers a choice."""
        return self.maker(spec, factor=factor, **({"norm": norm} if self.norms else {}))


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
            partial(convnet.convnet_features, depth=depth),
        )
        for depth in range(1, convnet.MAX_DEPTH + 1)
    },
    **{
        f"pyramid{depth}": Family(
            f"ConvNet with {depth} blocks whose width doubles up to 512 (KRR-ST)",
            convnet.PYRAMID_NORMS,
            partial(convnet.pyramid_features, depth=depth),
        )
        for depth in convnet.PYRAMID_DEPTHS
    },
    **{
        f"pooled{depth}": Family(
            f"The pyramid with {depth} blocks and global average pooling before its head",
            convnet.PYRAMID_NORMS,
            partial(convnet.pooled_features, depth=depth),
        )
        for depth in convnet.PYRAMID_DEPTHS
    },
    **{
        f"resnet{depth}": Family(
            f"ResNet-{depth}; 3x3 stem up to 64 pixels, 7x7 above", (), partial(resnet.resnet_features, depth=depth)
        )
        for depth in resnet.BLOCKS
    },
    "mobilenetv2": Family(
        "MobileNetV2; CIFAR strides up to 64 pixels, as published above",
        (),
        mobilenetv2.mobilenetv2_features,
    ),
    "efficientnetb0": Family(
        "EfficientNet-B0 without dropout; CIFAR strides up to 64 pixels, as published above",
        (),
        efficientnet.efficientnetb0_features,
    ),
    "shufflenetv1": Family(
        "ShuffleNet v1 with 2 groups; stem with stride 1 up to 64 pixels, 2 and max-pooling above",
        (),
        shufflenet.shufflenetv1_features,
    ),
    "shufflenetv2": Family(
        "ShuffleNet v2; stem with stride 1 up to 64 pixels, 2 and max-pooling above",
        (),
        shufflenetv2.shufflenetv2_features,
    ),
    "densenet121": Family(
        "DenseNet-121; 3x3 stem up to 64 pixels, 7x7 above; the factor multiplies its growth rate of 32",
        (),
        densenet.densenet121_features,
    ),
    "vgg11": Family(
        "VGG11; one linear layer up to 64 pixels (pytorch-cifar, DC), three above",
        vgg.NORMS,
        vgg.vgg11_features,
    ),
    "alexnet": Family(
        "AlexNet; DC's for images up to 64 pixels, the published one above",
        alexnet.NORMS,
        alexnet.alexnet_features,
    ),
    "mlp": Family(
        "Two hidden layers of width 128 on the pixels (DC)",
        (),
        mlp.mlp_features,
    ),
    "vit": Family(
        "Vision Transformer of the size of ViT-Ti; 8 x 8 patches below 112 pixels, of 16 pixels above",
        (),
        vit.vit_features,
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
