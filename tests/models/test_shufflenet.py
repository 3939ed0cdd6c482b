import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models import Classifier, build


def shufflenet_reference(model: Classifier, pixels: Tensor) -> Tensor:
    """ShuffleNet v1 (g = 2) written out with functions; weights in the order of ``model.parameters()``."""
    weights = iter(model.parameters())

    def conv_bn(x: Tensor, *, groups: int = 1, stride: int = 1, padding: int = 0) -> Tensor:
        x = F.conv2d(x, next(weights), None, stride, padding, 1, groups)
        return F.batch_norm(x, None, None, next(weights), next(weights), training=True)

    x = F.relu(conv_bn(model.normalizer(pixels)))
    for stage, blocks in enumerate((4, 8, 4)):
        for block in range(blocks):
            first_groups, stride = (1 if stage == block == 0 else 2), (2 if block == 0 else 1)
            y = F.relu(conv_bn(x, groups=first_groups))
            if first_groups == 2:
                half = y.shape[1] // 2
                y = torch.stack([y[:, :half], y[:, half:]], dim=2).flatten(1, 2)
            y = F.relu(conv_bn(y, groups=y.shape[1], stride=stride, padding=1))
            y = conv_bn(y, groups=2)
            x = F.relu(y + x) if stride == 1 else F.relu(torch.cat([y, F.avg_pool2d(x, 3, 2, 1)], dim=1))
    logits = F.linear(x.mean(dim=(2, 3)), next(weights), next(weights))
    assert next(weights, None) is None
    return logits


@pytest.mark.parametrize("name", ["shufflenetv1", "shufflenetv1-x0.25"])
def test_matches_reference(name: str, cifar10: DatasetSpec) -> None:
    model, pixels = build(name, cifar10), torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(model(pixels), shufflenet_reference(model, pixels), rtol=1e-3, atol=1e-4)


def test_stage_widths_are_the_papers(cifar10: DatasetSpec) -> None:
    model, widths = build("shufflenetv1", cifar10).eval(), []
    x = torch.rand(1, 3, 32, 32)
    for layer in model.features[:-1]:
        x = layer(x)
        widths.append(x.shape[1:])
    assert list(dict.fromkeys(widths)) == [(24, 32, 32), (200, 16, 16), (400, 8, 8), (800, 4, 4)]


@pytest.mark.parametrize("factor", [0.001, 0.05, 0.125, 0.77, 3.3])
def test_every_factor_divides_into_groups(factor: float, digits: DatasetSpec) -> None:
    model = build(f"shufflenetv1-x{factor}", digits).eval()
    assert model(torch.rand(1, 1, 8, 8)).shape == (1, 10)
    pointwise = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    # The stem and the very first unit's first convolution have one group, the other 31 of 16 units two.
    assert [m.groups for m in pointwise] == [1, 1] + [2] * 31
