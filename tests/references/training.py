"""Training written out: update rules by hand in double precision, one parameter after the other, nothing augmented."""

import copy
import math

import torch


def rate(recipe, period, periods):
    """The learning rate in a period (epoch or step, from 0) of so many."""
    if recipe.schedule == "constant":
        return recipe.lr
    if recipe.schedule == "half":
        return recipe.lr if period <= periods // 2 else recipe.lr / 10
    return recipe.lr / 2 * (1 + math.cos(math.pi * period / periods))


def epoch(count, size, draws):
    """The batches of one epoch as lists of indices; nobody is left alone at the end."""
    order = torch.randperm(count, generator=draws).tolist()
    batches = [order[start : start + size] for start in range(0, count, size)]
    if len(batches[-1]) == 1 and len(batches) > 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def plan(recipe, count, draws):
    """The batch and the learning rate of every step; a rate belongs to an epoch, or to a step where steps count."""
    if recipe.epochs:
        rates = [rate(recipe, number, recipe.epochs) for number in range(recipe.epochs)]
        return [(batch, lr) for lr in rates for batch in epoch(count, recipe.batch, draws)]
    stream = []  # one pass after the other, cut into whole batches
    while len(stream) < recipe.steps * recipe.batch:
        stream += torch.randperm(count, generator=draws).tolist()
    cuts = [stream[step * recipe.batch : (step + 1) * recipe.batch] for step in range(recipe.steps)]
    return [(cut, rate(recipe, step, recipe.steps)) for step, cut in enumerate(cuts)]


def train(model, images, values, recipe, objective, draws):
    """Returns a double-precision copy of ``model``, trained, and the learning rate of each step."""
    model = copy.deepcopy(model).double().train()
    images, values = images.double(), values.double()
    update = sgd if recipe.optimizer == "sgd" else adamw
    memory = [{} for _ in model.parameters()]
    steps = plan(recipe, len(images), draws)
    for batch, lr in steps:
        loss = objective(model(images[batch]), values[batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient, kept in zip(model.parameters(), gradients, memory, strict=True):
                parameter -= lr * update(parameter, gradient, kept, recipe)
    return model, [lr for _, lr in steps]


def sgd(parameter, gradient, kept, recipe):
    gradient = gradient + recipe.weight_decay * parameter
    kept["velocity"] = recipe.momentum * kept.get("velocity", 0) + gradient
    return gradient + recipe.momentum * kept["velocity"] if recipe.nesterov else kept["velocity"]


def adamw(parameter, gradient, kept, recipe, betas=(0.9, 0.999), eps=1e-8):
    kept["t"] = kept.get("t", 0) + 1
    kept["m"] = betas[0] * kept.get("m", 0) + (1 - betas[0]) * gradient
    kept["v"] = betas[1] * kept.get("v", 0) + (1 - betas[1]) * gradient**2
    m, v = kept["m"] / (1 - betas[0] ** kept["t"]), kept["v"] / (1 - betas[1] ** kept["t"])
    return m / (v.sqrt() + eps) + recipe.weight_decay * parameter
