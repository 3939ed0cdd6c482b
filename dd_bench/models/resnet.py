"""ResNets of 10 to 101 layers, with the stem that fits the image.

Paper: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (arXiv 1512.03385, table 1).

* Images up to 64 pixels a side: a 3x3 stem with stride 1 and no max-pooling. This is the "modified ResNet-18" of SRe2L,
  INFER and CV-DD, and the form of kuangliu/pytorch-cifar.
* Larger images: the paper's 7x7 stem with stride 2 and 3x3 max-pooling, as in torchvision.
* A bottleneck's stride sits in its 3x3 convolution, as in both (the paper: in the first 1x1, which skips pixels).
* Convolutions start from Kaiming's normal, fan out, as in torchvision (and so in those distillation repositories).

Parameters with the small stem and 10 classes, as in pytorch-cifar, and with the large one and 1,000 classes, the counts
torchvision states: ResNet-18 11,173,962 (with 100 classes 11,220,132) and 11,689,512; ResNet-34 21,282,122 and
21,797,672; ResNet-50 23,520,842 and 25,557,032; ResNet-101 42,512,970 and 44,549,160. ResNet-10, one block a stage, is
KRR-ST's.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import GlobalAverage, conv_bn, fits_small_stem

BASE_WIDTH = 64
EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: (N, C, H, W) to (N, C', H / stride, W / stride).

    The shortcut is the input itself, or a 1x1 convolution with BatchNorm where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(in_channels, out_channels, kernel=3, stride=stride)
        self.second = conv_bn(out_channels, out_channels, kernel=3)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        residual = self.second(F.relu(self.first(x)))
        return F.relu(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut: (N, C, H, W) to (N, C', H / stride, W / stride).

    The first two have a quarter of the block's channels; the shortcut is that of ``BasicBlock``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        hidden = out_channels // EXPANSION
        self.reduce = conv_bn(in_channels, hidden, kernel=1)
        self.filter = conv_bn(hidden, hidden, kernel=3, stride=stride)
        self.expand = conv_bn(hidden, out_channels, kernel=1)
        self.shortcut = _shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        residual = self.expand(F.relu(self.filter(F.relu(self.reduce(x)))))
        return F.relu(residual + self.shortcut(x))


BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
"""Depth -> blocks in each stage; from 50 layers on they are bottlenecks."""


def resnet_features(spec: DatasetSpec, *, depth: int, factor: float) -> Features:
    """Returns ResNet-``depth`` without its head, for images (N, C, H, W) of any size.

    Args:
        spec: gives C, H and W; the longer side chooses the stem.
        depth: a key of ``BLOCKS``.
        factor: multiplies the base width of 64 (at least 4 channels remain); each later stage doubles it.
    """
    base = max(4, int(BASE_WIDTH * factor + 0.5))
    layers = _stem(spec, base)
    channels = base
    block_type, expansion = (BasicBlock, 1) if depth < 50 else (Bottleneck, EXPANSION)
    for stage, blocks in enumerate(BLOCKS[depth]):
        out_channels = base * 2**stage * expansion
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(block_type(channels, out_channels, stride=stride))
            channels = out_channels
    features = nn.Sequential(*layers, GlobalAverage())
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return features, channels


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Returns the layer beside a block's convolutions: nothing where the shape stays the same."""
    same_shape = stride == 1 and in_channels == out_channels
    return nn.Identity() if same_shape else conv_bn(in_channels, out_channels, kernel=1, stride=stride)


def _stem(spec: DatasetSpec, width: int) -> list[nn.Module]:
    """Returns the layers before the first block: full resolution for small images, a quarter of it for large ones."""
    channels = spec.image_shape[0]
    if fits_small_stem(spec):
        return [conv_bn(channels, width, kernel=3), nn.ReLU()]
    return [conv_bn(channels, width, kernel=7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
