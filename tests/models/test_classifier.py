"""The promises every architecture keeps."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.data.specs import DatasetSpec
from dd_bench.models import Classifier, build, images_at_once
from dd_bench.seeding import generator, seeded
from tests.models.conftest import CIFAR_FAMILIES

SMALL = ["convnet2-x0.125", "convnet3-batch-x0.125", "convnet3-none-x0.125", "resnet18-x0.125"]
SMALL += ["resnet50-x0.125", "mobilenetv2-x0.25", "efficientnetb0-x0.25", "shufflenetv1-x0.25", "shufflenetv2-x0.25"]
SMALL += ["densenet121-x0.125", "pyramid2-x0.125", "pooled2-x0.125", "vgg11-x0.125", "alexnet-x0.125", "mlp-x0.25"]
SMALL += ["vit-x0.0625"]
WITHOUT = ("convnet2-x", "convnet3-none", "alexnet", "mlp", "vit")
BATCH_NORMED = [name for name in SMALL if not name.startswith(WITHOUT)]


def images(spec: DatasetSpec, count: int = 2) -> Tensor:
    return torch.rand(count, *spec.image_shape, generator=generator(0))


def seeded_model(name: str, spec: DatasetSpec) -> Classifier:
    with seeded(0):
        return build(name, spec)


@pytest.mark.parametrize("factor", [0.01, 0.125, 0.3])
@pytest.mark.parametrize("family", CIFAR_FAMILIES)
def test_shapes(family: str, factor: float, cifar10: DatasetSpec) -> None:
    model = build(f"{family}-x{factor}", cifar10).eval()
    embeddings = model.embed(images(cifar10))
    assert embeddings.shape == (2, model.head.in_features)
    assert model(images(cifar10)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_shapes_of_two_tiny_grey_images_in_training(name: str, digits: DatasetSpec) -> None:
    model = seeded_model(name, digits)
    logits = model(images(digits))
    assert model.training
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
    assert (logits[0] != logits[1]).any()


@pytest.mark.parametrize("name", SMALL)
def test_forward_is_a_function_of_weights_and_batch(name: str, digits: DatasetSpec) -> None:
    model, pixels = seeded_model(name, digits), images(digits, 4)
    state, untouched = torch.random.get_rng_state(), pixels.clone()
    first, second = model(pixels), model(pixels)
    assert torch.equal(first, second)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(pixels, untouched)


@pytest.mark.parametrize("name", SMALL)
def test_equal_seeds_give_equal_networks(name: str, digits: DatasetSpec) -> None:
    first, second = seeded_model(name, digits).state_dict(), seeded_model(name, digits).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_reaches_images_and_every_parameter(name: str, cifar10: DatasetSpec) -> None:
    model, pixels = seeded_model(name, cifar10), images(cifar10, 4).requires_grad_()
    F.cross_entropy(model(pixels), torch.arange(4)).backward()
    assert pixels.grad is not None
    assert (pixels.grad != 0).any(dim=(1, 2, 3)).all()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []


@pytest.mark.parametrize("name", SMALL)
def test_gradient_of_gradient_matches_reference(name: str, make_spec: Callable[..., DatasetSpec]) -> None:
    # Trajectory matching differentiates a training step: d/d(pixels) of a function of the parameters' gradient. The
    # reference is a central difference in float64. A ReLU that flips within the step spoils a difference, so the better
    # of two steps counts.
    spec = make_spec("tiny", (1, 16, 16), 10)
    model, pixels = seeded_model(name, spec).double(), images(spec, 8).double().requires_grad_()
    parameters, labels = list(model.parameters()), torch.arange(8)
    probes = [torch.randn(p.shape, dtype=torch.float64, generator=generator(1)) for p in parameters]
    direction = torch.randn(pixels.shape, dtype=torch.float64, generator=generator(2))

    def probed_gradient(batch: Tensor) -> Tensor:
        loss = F.cross_entropy(model(batch), labels)
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.stack([(g * v).sum() for g, v in zip(gradients, probes, strict=True)]).sum()

    def difference(step: float) -> float:
        ahead, behind = probed_gradient(pixels + step * direction), probed_gradient(pixels - step * direction)
        return (ahead - behind).item() / (2 * step)

    (gradient,) = torch.autograd.grad(probed_gradient(pixels), pixels)
    slope = (gradient * direction).sum().item()
    assert min(abs(slope - difference(step)) for step in (1e-8, 1e-7)) < 1e-4 * abs(slope)


@pytest.mark.parametrize("name", BATCH_NORMED)
def test_every_batch_norm_fires(name: str, digits: DatasetSpec) -> None:
    model, fired = seeded_model(name, digits), set[nn.Module]()
    norms = {module for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in norms:
        norm.register_forward_hook(lambda module, *_: fired.add(module))
    model(images(digits))
    assert norms
    assert fired == norms


def test_state_survives_a_round_trip(digits: DatasetSpec) -> None:
    source = seeded_model("shufflenetv1-x0.125", digits).eval()
    with seeded(1):
        target = build("shufflenetv1-x0.125", digits).eval()
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(images(digits)), target(images(digits)))


@pytest.mark.parametrize(
    ("shape", "count"),
    [((1, 8, 8), 1024), ((3, 64, 64), 1024), ((3, 32, 128), 1024), ((3, 65, 64), 1008), ((3, 128, 128), 256),
     ((3, 224, 224), 83), ((3, 5000, 5000), 1)],
)  # fmt: skip
def test_larger_images_come_in_smaller_batches(shape: tuple[int, int, int], count: int) -> None:
    assert images_at_once(1024, shape) == count
