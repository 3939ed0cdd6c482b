"""VGG11, on which distilled sets are judged across architectures; for small images, and as published above 64 pixels.

Paper: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (arXiv 1409.1556,
configuration A), for small images in the form of kuangliu/pytorch-cifar, DC and KRR-ST: a normalisation behind each of
the eight 3x3 convolutions, and one linear layer in place of three. A pooling that would leave nothing of a small image
is left out.

Parameters with BatchNorm on CIFAR-10, as in pytorch-cifar: 9,231,114.

Images with a side over 64 pixels get the published three linear layers, less their dropout. Parameters with 1,000
classes, the counts torchvision states: 132,868,840 with BatchNorm, 132,863,336 without. Weights start as torchvision's
(Kaiming's normal, fan out; 0.01 in linear layers): without BatchNorm, the logits of random images then deviate by 8e-3,
and from PyTorch's defaults by 3e-5. On small images they start as PyTorch's defaults, as in those repositories.
"""

from torch import nn

from dd_bench.data.specs import DatasetSpec
from dd_bench.models.classifier import Features
from dd_bench.models.layers import fits_small_stem, hidden_layers, norm_layers

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))  # a max-pooling follows each
NORMS = ("batch", "instance", "none")


def vgg11_features(spec: DatasetSpec, *, norm: str, factor: float) -> Features:
    """Returns VGG11 without its head, for images (N, C, H, W).

    Args:
        spec: gives C, H and W.
        norm: one of ``NORMS``.
        factor: multiplies every width; at least one channel remains.
    """
    channels, height, width = spec.image_shape
    layers: list[nn.Module] = []
    for stage in STAGES:
        for full in stage:
            filters = max(1, int(full * factor + 0.5))
            layers += [nn.Conv2d(channels, filters, 3, padding=1), *norm_layers(norm, filters), nn.ReLU()]
            channels = filters
        if min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
    if fits_small_stem(spec):
        return nn.Sequential(*layers, nn.Flatten()), channels * height * width
    hidden, width = hidden_layers(channels, (height, width), side=7, factor=factor)
    features = nn.Sequential(*layers, *hidden)
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return features, width
