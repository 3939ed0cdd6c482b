"""Graph students: fresh graph networks trained on tree sets or graphs; and the baselines that need no distillation.

A synthetic set is trained on as it is stored, computation trees or ordinary graphs; validation and test graphs are
always ordinary ones. Four baselines join every board, because a method that does not beat them has shown nothing
(Mirage's published scores are about those of the number of nodes alone): ``full``, all real training graphs;
``untrained``, the same networks before any step; ``node-count`` and ``node-edge-count``, a logistic regression on the
size of a graph, which sum pooling shows to any network.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.errors import ConfigError, InvalidSetError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.graphs import GraphBatch, plan_graphs
from dd_bench.models import FAMILIES, Architecture, GraphFamily
from dd_bench.targets import Labels
from eval.candidates import Course, FullBatch, Lesson, Minibatches, choose_untrained, train_candidates
from eval.cells import SetFacts
from eval.judging import Bench, Outcome, baseline_facts
from eval.protocol_kinds import AnyProtocol, GraphProtocol
from eval.validation import Validation

if TYPE_CHECKING:
    from dd_bench.data.graphs import GraphData


@dataclass(frozen=True, eq=False)
class GraphSubject:
    """What graph students train on, and the validation split on which they choose.

    Attributes:
        facts: identity, bytes, origin.
        material: R tree sets, which are one full batch with their own weights, or R ordinary graphs, all alike.
        classes: (R,) int64.
        data: the data set; only its spec and its validation split are used.
        untrained: whether the students are the networks before the first step.
    """

    facts: SetFacts
    material: Trees | GraphBatch
    classes: Tensor
    data: "GraphData"
    untrained: bool = False

    @classmethod
    def of(cls, facts: SetFacts, payload: Trees | Graphs, targets: Labels, data: Any) -> Self:
        """Returns a stored payload as a subject; ``data`` is the data set it was made from.

        Raises:
            TypeError: if ``data`` is no graph data set, without whose validation split nothing can be chosen.
            InvalidSetError: if the set has labels or classes that the data set does not.
        """
        if not isinstance(getattr(data, "spec", None), GraphSpec):
            raise TypeError(f"data is {type(data).__name__}; expected the GraphData that {facts.id} was made from")
        material = payload.decode() if isinstance(payload, Graphs) else payload
        _check_labels(facts, material, targets.classes, data.spec)
        return cls(facts, material, targets.classes, data)

    @property
    def judged_on(self) -> tuple[str, str]:
        """Name and fingerprint of the data set whose test split judges: its own."""
        return self.facts.dataset, self.facts.fingerprint

    def check(self, protocol: AnyProtocol) -> None:
        """Raises ConfigError if the protocol is for images."""
        _check_protocol(self.facts, protocol)

    def students(self, runs: int) -> int:
        """Returns ``runs``: no two students are equal."""
        return runs

    def teachers(self, _: AnyProtocol) -> tuple[str, ...]:
        """Returns none: graph students learn from classes."""
        return ()

    def train(self, protocol: AnyProtocol, architecture: str, bench: Bench) -> Outcome:
        """Trains all candidates, chooses on the validation split, and has the chosen one scored."""
        assert isinstance(protocol, GraphProtocol)  # see ``check``
        spec, device, layers = self.data.spec, bench.device, layers_of(architecture)
        validation = Validation(
            self.data.validation, self.data.validation_labels, num_classes=spec.num_classes, layers=layers,
            device=device,
        )  # fmt: skip
        if self.untrained:
            chosen = choose_untrained(architecture, spec, protocol, validation, bench.seed, device)
        else:
            chosen = train_candidates(
                architecture, spec, protocol, self._course(layers, protocol.batch, device), validation,
                seed=bench.seed, run=bench.run, label=bench.label, device=device,
            )  # fmt: skip
        model = chosen.model.eval()
        metrics = bench.test.score(bench.student, lambda batch: model(plan_graphs(batch, layers)), device=device)
        return Outcome(metrics, chosen.steps, chosen.choice)

    def _course(self, layers: int, batch: int, device: torch.device) -> Course:
        if isinstance(self.material, Trees):
            return FullBatch(Lesson(self.material.plan(layers), self.classes, self.material.weights.float()).to(device))
        count = len(self.classes)
        if count > batch:
            return Minibatches(self.material, self.classes, batch, layers, device)
        return FullBatch(Lesson(plan_graphs(self.material, layers), self.classes, torch.ones(count)).to(device))


@dataclass(frozen=True, eq=False)
class CountSubject:
    """A logistic regression on counts, fitted on all training graphs. It draws nothing, so there is one student.

    Attributes:
        facts: identity; no bytes, since it needs no set.
        features: from G graphs to (G, D) float32.
        data: the data set; its validation split is not used.
    """

    facts: SetFacts
    features: Callable[[GraphBatch], Tensor]
    data: "GraphData"

    @property
    def judged_on(self) -> tuple[str, str]:
        """Name and fingerprint of the data set whose test split judges: its own."""
        return self.facts.dataset, self.facts.fingerprint

    def check(self, protocol: AnyProtocol) -> None:
        """Raises ConfigError if the protocol is for images."""
        _check_protocol(self.facts, protocol)

    def students(self, runs: int) -> int:
        """Returns 1 at most: all would be equal."""
        return min(runs, 1)

    def teachers(self, _: AnyProtocol) -> tuple[str, ...]:
        """Returns none."""
        return ()

    def train(self, _: AnyProtocol, __: str, bench: Bench) -> Outcome:
        """Fits the regression, the same for every protocol and architecture, and has it scored."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        model = make_pipeline(StandardScaler(), LogisticRegression())
        model.fit(self.features(self.data.graphs).numpy(), self.data.labels.numpy())
        known = torch.from_numpy(model.classes_)

        def predict(batch: GraphBatch) -> Tensor:
            scores = torch.from_numpy(model.decision_function(self.features(batch.to("cpu")).numpy())).float()
            if scores.ndim == 1:  # two classes: the log odds of the second
                scores = torch.stack([torch.zeros_like(scores), scores], 1)
            logits = torch.full((len(batch), self.data.spec.num_classes), -1e4)  # a class that training never showed
            logits[:, known] = scores
            return logits.to(bench.device)

        return Outcome(bench.test.score(bench.student, predict, device=bench.device), steps=0)


def baselines(data: "GraphData") -> tuple[GraphSubject | CountSubject, ...]:
    """Returns what every board of ``data`` shows besides sets: ``full``, ``untrained`` and the two counts."""

    def facts(method: str, preset: str, parts: dict[str, int]) -> SetFacts:
        return baseline_facts(
            method, preset, dataset=data.spec.name, fingerprint=data.fingerprint, count=len(data.labels), parts=parts
        )

    full = facts("full", "all real data", {"graphs": _plain_bytes(data.graphs), "classes": len(data.labels)})
    untrained = facts("untrained", "no training, pool by validation", {})
    nodes = facts("node-count", "logistic regression", {})
    edges = facts("node-edge-count", "logistic regression", {})
    return (
        GraphSubject(full, data.graphs, data.labels, data),
        GraphSubject(untrained, data.graphs, data.labels, data, untrained=True),
        CountSubject(nodes, count_nodes, data),
        CountSubject(edges, count_nodes_and_edges, data),
    )


def count_nodes(batch: GraphBatch) -> Tensor:
    """Returns the logarithm of the number of nodes; (G, 1)."""
    return batch.sizes.float().log()[:, None]


def count_nodes_and_edges(batch: GraphBatch) -> Tensor:
    """Returns the logarithms of the number of nodes and of one more than the number of edges; (G, 2)."""
    return torch.stack([batch.sizes.float().log(), (batch.arc_counts / 2).log1p()], 1)


def layers_of(architecture: str) -> int:
    """Returns the number of message-passing layers of a graph network.

    Raises:
        ConfigError: if the architecture takes images.
    """
    family = FAMILIES[Architecture.parse(architecture).family]
    if not isinstance(family, GraphFamily):
        raise ConfigError(f"model {architecture} takes images; expected one for graphs, for example gin2-x0.5")
    return family.layers


def _check_protocol(facts: SetFacts, protocol: AnyProtocol) -> None:
    if not isinstance(protocol, GraphProtocol):
        raise ConfigError(
            f"protocol {protocol.name} is for images, but {facts.method} {facts.id} of {facts.dataset} holds graphs; "
            "use the protocol graphs"
        )


def _check_labels(facts: SetFacts, material: Trees | GraphBatch, classes: Tensor, spec: GraphSpec) -> None:
    """Raises InvalidSetError if an embedding or a logit that a label asks for would not be there."""
    if isinstance(material, Trees):
        plan = material.plan(material.hops)
        tables = [("node labels", plan.nodes, spec.node_columns)]
        tables += [("edge labels", hop.edges, spec.edge_columns) for hop in plan.hops]
    else:
        tables = [
            ("node labels", material.nodes, spec.node_columns),
            ("edge labels", material.edges, spec.edge_columns),
        ]
    for name, labels, columns in (*tables, ("classes", classes[:, None], (spec.num_classes,))):
        fits = labels.shape[1] == len(columns)
        if not fits or bool((labels >= torch.tensor(columns, dtype=torch.int64)).any()):
            found = labels.amax(0).tolist() if labels.numel() else []
            raise InvalidSetError(
                f"set {facts.id} has {name} in {labels.shape[1]} columns up to {found}; expected below {list(columns)} "
                f"as in {spec.name}: synthesise it again"
            )


def _plain_bytes(batch: GraphBatch) -> int:
    """Returns the bytes of graphs written plainly: labels, edges once by their ends, counts; whole bytes each."""
    once = batch.arcs[0] < batch.arcs[1]
    ends = (batch.arcs - batch.starts[batch.owners[batch.arcs[1]]])[:, once]
    parts = (batch.nodes, ends, batch.edges[once], batch.sizes, batch.arc_counts // 2)
    return sum(part.numel() * _width(part) for part in parts)


def _width(numbers: Tensor) -> int:
    most = int(numbers.max()) if numbers.numel() else 0
    return next(width for width in (1, 2, 4, 8) if most < 1 << (8 * width))
