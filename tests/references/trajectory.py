"""Trajectory matching written out: experts under torch's own SGD, synthesis as one loop of autograd, lists of rows.

It shares with ``synth`` the seeds of the draws and DSA (which ``tests.references.dsa`` checks), nothing else.
"""

import copy
import math

import torch
import torch.nn.functional as F

from dd_bench.learn.dsa import DSA
from dd_bench.seeding import derive_seed, generator
from tests.references import unroll
from tests.references.training import epoch as batches_of_epoch


def penalty(model, x, norm):
    """The mean of (‖G‖ - 1)² over pixels, or over images, where G is the gradient of the sum of all logits."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    squares = slope**2
    lengths = squares.sum(1).sqrt() if norm == "channel" else squares.sum((1, 2, 3)).sqrt()
    return ((lengths - 1) ** 2).mean()


def train_expert(module, spec, images, labels, seed, *, epochs, batch, lr, momentum, weight_decay, drop, ramp, weight,
                 norm):  # fmt: skip
    """The parameters after 0, 1, … epochs. ``drop`` comes with a new optimizer, as in the authors' code."""
    model, dsa, step = copy.deepcopy(module), DSA(spec), 0
    draws = generator(derive_seed("fit expert", seed))
    path = [torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    for number in range(epochs):
        for rows in batches_of_epoch(len(images), batch, draws):
            x = images[rows]
            seen = dsa.apply(x, dsa.draw(len(x), draws, derive_seed("expert dsa", seed, step)))
            loss = F.cross_entropy(model(seen), labels[rows]) * (ramp[number] if number < len(ramp) else 1)
            if weight:
                loss = loss + weight * penalty(model, x, norm)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        path.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone())
        if drop < 1 and number == epochs // 2 + 1:
            optimizer = torch.optim.SGD(model.parameters(), lr=lr * drop, momentum=momentum, weight_decay=weight_decay)
    return torch.stack(path)


def balance(start, max_start):
    half = max_start // 2
    return math.log(start - half + 8) / math.log(5) if start >= half else math.log(5) / math.log(half - start + 8)


def jitter(theta, shapes, size, draws):
    """Convolutions' weights times 1 + size·d, where d is normal and all of d has length 1."""
    theta, begin = theta.clone(), 0
    for shape in shapes:
        count = math.prod(shape)
        if len(shape) == 4:
            d = torch.randn(shape, generator=draws).flatten()
            theta[begin : begin + count] *= 1 + size * d / (d**2).sum().sqrt()
        begin += count
    return theta


def chunks(count, size, steps, draws):
    """Batches of the published loader: a permutation cut up, and another when it is used up."""
    if size == 0 or size >= count:
        return [None] * steps
    found = []
    while len(found) < steps:
        order = torch.randperm(count, generator=draws).tolist()
        while order:
            found.append(torch.tensor(order[:size]))
            order = order[size:]
    return found[:steps]


def synthesize(config, spec, net, shapes, paths, x, classes, seed):
    """Images and step size at which the last loss was measured, and all losses; ``paths`` are the experts' (E, P)."""
    x, dsa = x.clone().requires_grad_(), DSA(spec)
    soft = config.rate_form == "softplus"
    rate = torch.tensor(math.log(math.exp(config.rate) - 1) if soft else config.rate).requires_grad_()
    outer = torch.optim.SGD([{"params": [x], "lr": config.lr_images}, {"params": [rate], "lr": config.lr_rate}],
                            momentum=0.5)  # fmt: skip
    losses = []
    for step in range(config.iterations):
        turn, place = divmod(step, len(paths))
        order = torch.randperm(len(paths), generator=generator(derive_seed("experts", seed, turn))).tolist()
        start = generator(derive_seed("start", seed, step))
        s = int(torch.randint(config.min_start, config.max_start, (), generator=start))
        path = paths[order[place]]
        theta, draws = path[s], generator(derive_seed("outer draws", seed, step))
        if config.perturbation:
            theta = jitter(theta, shapes, config.perturbation, draws)
        batches = chunks(len(x), config.inner_batch, config.inner_steps, draws)
        scale, dsa_seed = balance(s, config.max_start) if config.balance else 1, derive_seed("inner dsa", seed, step)

        def augment(images, inner_step, dsa_seed=dsa_seed):
            strengths = generator(derive_seed("inner strengths", dsa_seed, inner_step))
            operation = derive_seed("inner operation", dsa_seed, inner_step)
            return dsa.apply(images, dsa.draw(len(images), strengths, operation))

        alpha = (1 + rate.exp()).log() if soft else rate
        states, _ = unroll.train(
            theta, x, classes, alpha, batches=batches, momentum=config.inner_momentum, augment=augment,
            objective=lambda z, y, scale=scale: scale * F.cross_entropy(z, y), net=net,
        )  # fmt: skip
        m, n = config.expert_epochs, config.inner_steps
        points = [(n, path[s + m], 1)]
        if config.waypoints != "none":
            points += [(n // m * i, path[s + i], i / m if config.waypoints == "rising" else 1) for i in range(1, m)]
        loss = unroll.matching_loss(states, points)
        good = x.detach().clone(), alpha.item()
        outer.zero_grad()
        loss.backward(inputs=[x, rate])
        outer.step()
        losses.append(loss.item())
    return *good, losses


def representatives(distances, clusters, count, number):
    """Rows by cluster, the largest first; ``distances`` of each row to its own centre."""
    members = [[row for row, mine in enumerate(clusters) if mine == cluster] for cluster in range(number)]
    members.sort(key=len, reverse=True)
    chosen = []
    for rank, rows in enumerate(members):
        share = count // number + (1 if rank < count % number else 0)
        chosen += sorted(rows, key=lambda row: distances[row])[:share]
    for row in sorted(range(len(clusters)), key=lambda row: distances[row]):
        if len(chosen) < count and row not in chosen:
            chosen.append(row)
    return chosen
