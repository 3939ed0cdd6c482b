"""How a network and its twin from torchvision are held against each other."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dd_bench.models import Classifier


def assert_twins(model: Classifier, twin: nn.Module, pixels: Tensor) -> None:
    """Both get the same weights, which they list in the same order, and must do the same with one batch (N, C, H, W).

    Compared are logits, the gradient at the images, running statistics one step on, and then logits in evaluation: in
    float64, where only a mistake shows.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # so that gains are not one and biases not zero
                parameter += 0.1 * torch.randn_like(parameter)
    ours = [value for key, value in model.state_dict().items() if not key.startswith("normalizer")]
    twin.load_state_dict(dict(zip(list(twin.state_dict()), ours, strict=True)))
    model, twin, pixels = model.double().train(), twin.double().train(), pixels.double()
    logits, gradient = logits_and_gradient(model, pixels)
    expected, expected_gradient = logits_and_gradient(twin, model.normalizer(pixels))
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gradient * model.normalizer.std, expected_gradient, rtol=1e-5, atol=1e-6)
    for buffer, expected_buffer in zip(model.features.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(buffer, expected_buffer)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(pixels), twin.eval()(model.normalizer(pixels)))


def logits_and_gradient(model: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
    batch = batch.clone().requires_grad_()
    logits: Tensor = model(batch)
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.arange(len(batch))), batch)
    return logits, gradient
