"""Training and its gradients written out: one loop that autograd watches, and a network whose layers are slices.

Nothing here is shared with ``synth``: the loop follows the papers' update rule, velocities kept, graph and all.
"""

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS, WIDTH, SIDE, CLASSES = 3, 4, 8, 5
SIZE = WIDTH * CHANNELS * 9 + WIDTH + 2 * WIDTH + CLASSES * WIDTH * 16 + CLASSES


def network():
    """A ConvNet of one block, smooth so that finite differences see no kinks."""
    return nn.Sequential(
        nn.Conv2d(CHANNELS, WIDTH, 3, padding=1), nn.GroupNorm(WIDTH, WIDTH), nn.Softplus(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(WIDTH * SIDE * SIDE // 4, CLASSES),
    )  # fmt: skip


def logits(theta, x):
    """What ``network`` computes with parameters ``theta``."""
    sizes = (WIDTH * CHANNELS * 9, WIDTH, WIDTH, WIDTH, CLASSES * WIDTH * 16, CLASSES)
    parts, begin = [], 0
    for size in sizes:
        parts.append(theta[begin : begin + size])
        begin += size
    kernel, bias, scale, shift, weight, offset = parts
    x = F.conv2d(x, kernel.reshape(WIDTH, CHANNELS, 3, 3), bias, padding=1)
    mean = x.mean((2, 3), keepdim=True)
    deviation = (((x - mean) ** 2).mean((2, 3), keepdim=True) + 1e-5) ** 0.5
    x = scale.reshape(-1, 1, 1) * (x - mean) / deviation + shift.reshape(-1, 1, 1)
    x = (1 + x.exp()).log()
    x = x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).mean((3, 5))
    return x.flatten(1) @ weight.reshape(CLASSES, -1).T + offset


def soft_cross_entropy(z, label_logits):
    """The mean over images of -Σ softmax(label logits) log softmax(z)."""
    p = label_logits.exp() / label_logits.exp().sum(1, keepdim=True)
    return -(p * (z - torch.logsumexp(z, 1, keepdim=True))).sum(1).mean()


def train(theta, x, y, alpha, *, batches, momentum, augment, objective, blind=False, net=logits):
    """Returns θ_0 … θ_N and g_0 … g_{N-1}; ``blind`` gradients take the parameters for constants, as TESLA does."""
    states, gradients, velocity = [theta], [], 0
    for step, batch in enumerate(batches):
        batch = torch.arange(len(x)) if batch is None else batch
        here = states[-1].detach() if blind else states[-1]
        here = here if here.requires_grad else here.requires_grad_()
        pixels = augment(x[batch], step) if augment else x[batch]
        (gradient,) = torch.autograd.grad(objective(net(here, pixels), y[batch]), here, create_graph=True)
        velocity = momentum * velocity + gradient
        states.append(states[-1] - alpha * velocity)
        gradients.append(gradient)
    return states, gradients


def matching_loss(states, points):
    """Σ w ‖θ_n - θ*‖² / ‖θ_0 - θ*‖² over ``points`` (n, θ*, w)."""
    start = states[0].detach()
    return sum(w * ((states[n] - target) ** 2).sum() / ((start - target) ** 2).sum() for n, target, w in points)


def gradients(theta, points, x, y, rate, *, positive=False, **training):
    """Returns L and its gradients in images, labels and rate, by autograd through the whole loop."""
    x, y, rate = (tensor.detach().clone().requires_grad_() for tensor in (x, y, rate))
    alpha = (1 + rate.exp()).log() if positive else rate
    states, _ = train(theta.detach().clone(), x, y, alpha, **training)
    loss = matching_loss(states, points)
    return loss.detach(), *torch.autograd.grad(loss, (x, y, rate))


def tesla(theta, target, x, y, alpha, **training):
    """TESLA's formulas as they should be: -(2α/D) ∂(g_n·r)/∂x summed over steps, and -(2/D) r·Σ g_n; no momentum."""
    x, y = (tensor.detach().clone().requires_grad_() for tensor in (x, y))
    states, steps = train(theta.detach().clone(), x, y, alpha.detach(), momentum=0, blind=True, **training)
    r, distance = (states[-1] - target).detach(), ((theta - target) ** 2).sum()
    total_x, total_y = torch.zeros_like(x), torch.zeros_like(y)
    for gradient in steps:
        by_x, by_y = torch.autograd.grad(gradient @ r, (x, y), retain_graph=True)
        total_x, total_y = total_x - 2 * alpha / distance * by_x, total_y - 2 * alpha / distance * by_y
    return total_x, total_y, -2 / distance * (r @ sum(steps)).detach()
