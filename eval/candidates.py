"""Candidates: the networks a graph student trains side by side, and the one that the validation split chooses."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from dd_bench.checkpoint import State
from dd_bench.data.graph_specs import GraphSpec
from dd_bench.errors import NonFiniteError
from dd_bench.graphs import GraphBatch, MessagePlan, plan_graphs
from dd_bench.models import build
from dd_bench.models.gnn import GraphNetwork, Pool
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from eval.protocol_kinds import GraphProtocol
from eval.validation import Validation


@dataclass(frozen=True)
class Lesson:
    """What a step trains on: a plan of R read-outs, their classes (R,) int64, and loss weights (R,) float32."""

    plan: MessagePlan
    classes: Tensor
    weights: Tensor

    def loss(self, model: GraphNetwork) -> Tensor:
        """Returns the weighted mean of the cross-entropy, ``sum(w CE) / sum(w)``."""
        losses = F.cross_entropy(model(self.plan), self.classes, reduction="none")
        return (self.weights * losses).sum() / self.weights.sum()

    def to(self, device: torch.device | str) -> "Lesson":
        """Returns the lesson on ``device``."""
        return Lesson(self.plan.to(device), self.classes.to(device), self.weights.to(device))


class Course(Protocol):
    """Where the lessons of a training come from."""

    def draw(self, draws: torch.Generator) -> Lesson:
        """Returns the next lesson, on the device."""


@dataclass(frozen=True)
class FullBatch:
    """The same lesson at every step."""

    lesson: Lesson

    def draw(self, _: torch.Generator) -> Lesson:
        """Returns the lesson."""
        return self.lesson


@dataclass(frozen=True, eq=False)
class Minibatches:
    """At every step other graphs, ``size`` different ones.

    They are drawn and picked on the CPU, whose counts of nodes and arcs need no synchronisation, and so that every
    device sees the same.
    """

    graphs: GraphBatch
    classes: Tensor
    size: int
    layers: int
    device: torch.device | str

    def draw(self, draws: torch.Generator) -> Lesson:
        """Returns ``size`` graphs."""
        index = torch.randperm(len(self.graphs), generator=draws)[: self.size]
        plan = plan_graphs(self.graphs.pick(index), self.layers)
        return Lesson(plan, self.classes[index], torch.ones(self.size)).to(self.device)


@dataclass(frozen=True)
class Chosen:
    """The network that the validation split chose, its steps, and what boards say of the choice, with its score."""

    model: GraphNetwork
    steps: int
    choice: Mapping[str, JsonValue]


def fresh(architecture: str, spec: GraphSpec, pool: Pool, seed: int) -> GraphNetwork:
    """Returns the network with the initial weights of ``seed``, the same for every pool."""
    with seeded(seed):
        model = build(architecture, spec)
    model.pool = pool
    return model


def choose_untrained(
    architecture: str, spec: GraphSpec, protocol: GraphProtocol, validation: Validation, seed: int, device: torch.device
) -> Chosen:
    """Returns the network as it begins, with the pool that is best before any training."""
    models = [fresh(architecture, spec, pool, seed).to(device) for pool in protocol.pools]
    scores = [float(validation.score(model)) for model in models]
    best = scores.index(max(scores))
    return Chosen(models[best], 0, {"pool": protocol.pools[best], f"validation {validation.metric}": scores[best]})


def train_candidates(
    architecture: str, spec: GraphSpec, protocol: GraphProtocol, course: Course, validation: Validation, *, seed: int,
    run: Run, label: str, device: torch.device,
) -> Chosen:  # fmt: skip
    """Trains all candidates of ``protocol`` and returns the best network at its best step.

    They take their steps together, each on the same lesson, which resumption then needs to know only once; no weight
    is shared. A candidate that diverges is not chosen, and ends the training only if all do.

    Args:
        architecture: of all candidates.
        spec: of the data set.
        protocol: candidates, length, and when to look at the validation split.
        course: where lessons come from.
        validation: the examiner.
        seed: of initial weights and lessons.
        run: where the state is kept; with ``label`` it names the stage.
        label: the stage's name.
        device: where to train.

    Raises:
        NonFiniteError: when the loss of every candidate is NaN or infinite.
    """
    candidates = protocol.candidates
    models = [fresh(architecture, spec, pool, seed) for pool, _ in candidates]
    group = nn.ModuleList(models).to(device)
    parts = [{"params": list(model.parameters()), "lr": lr} for model, (_, lr) in zip(models, candidates, strict=True)]
    # Fused, because otherwise a third of a small student's time goes into the optimizer
    optimizer = torch.optim.Adam(parts, weight_decay=protocol.weight_decay, fused=True)
    draws = generator(derive_seed("lessons", seed))
    scores = torch.full((len(protocol.checkpoints), len(candidates)), -torch.inf, device=device)
    best = parameters_to_vector(models[0].parameters()).detach().clone()
    state = State(models=group, optimizer=optimizer, draws=draws, scores=scores, best=best)

    for step in run.steps(label, protocol.steps, state):
        lesson = course.draw(draws)
        optimizer.zero_grad(set_to_none=True)
        losses = []
        for model in models:  # one backward pass each, so that only one network's activations are held
            loss = lesson.loss(model)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        optimizer.step()
        run.observe(loss=torch.stack(losses).nan_to_num(torch.inf, torch.inf, torch.inf).min())
        if step + 1 in protocol.checkpoints:
            _examine(models, validation, scores[protocol.checkpoints.index(step + 1)], scores, best)

    # The first maximum in the order of checkpoints, then candidates, is the one that `best` was filled with
    flat = scores.flatten().tolist()
    score = max(flat)
    if score == -float("inf"):
        raise NonFiniteError(f"{label}: every candidate's validation logits became NaN or infinite; check the data")
    checkpoint, place = divmod(flat.index(score), len(candidates))
    vector_to_parameters(best, models[place].parameters())
    pool, lr = candidates[place]
    steps = protocol.checkpoints[checkpoint]
    choice = {"pool": pool, "lr": lr, "steps": steps, f"validation {validation.metric}": score}
    return Chosen(models[place], steps, choice)


@torch.no_grad()
def _examine(models: list[GraphNetwork], validation: Validation, row: Tensor, scores: Tensor, best: Tensor) -> None:
    """Fills ``row`` of ``scores`` with the candidates' scores and ``best`` with weights that beat all before."""
    for place, model in enumerate(models):
        score = validation.score(model)
        better = score > scores.max()
        row[place] = score
        best.copy_(torch.where(better, parameters_to_vector(model.parameters()), best))
