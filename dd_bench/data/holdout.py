"""The test split: it is asked for a score, once for each student, and shows nothing else. For ``eval`` only.

``TestSplit`` holds images, ``GraphTestSplit`` graphs; ``open_test`` returns the one a name stands for.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.data.graph_reading import GraphRows, read_graphs
from dd_bench.data.graph_specs import GRAPH_SPECS, GraphSpec
from dd_bench.data.names import parse_name
from dd_bench.data.reading import Rows, read
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import HoldoutError, NonFiniteError
from dd_bench.graphs import GraphBatch


class TestSplit:
    """The held-out images and labels of a data set, behind ``score``.

    There is no accessor for pixels or labels, so nothing can be chosen on them except by breaking in; and each student
    is scored once, so no epoch, learning rate or temperature of it can be picked by its test accuracy.
    """

    __test__ = False  # pytest takes every class named Test… for tests

    def __init__(self, rows: Rows) -> None:
        self.__rows = rows
        self.__seen: set[str] = set()

    @classmethod
    def open(cls, name: str, data_dir: Path | None = None) -> "TestSplit":
        """Returns the test split of ``name``; ``NAME@n/m`` keeps m images a class, ``NAME@n`` all. See ``images.load``.

        Raises:
            UnknownNameError, ConfigError: if ``name`` names no data set, or asks for more images than there are.
            DataError: if the data is absent and cannot be made, or is malformed.
        """
        return cls(read(name, "test", data_dir))

    @property
    def spec(self) -> DatasetSpec:
        """Facts of the data set, as ``images.load`` gives them."""
        return self.__rows.spec

    @property
    def fingerprint(self) -> str:
        """The content hash of the data set, equal to that of its training split."""
        return self.__rows.fingerprint

    def __len__(self) -> int:
        return self.__rows.labels.shape[0]

    def score(
        self,
        student: str,
        predict: Callable[[Tensor], Tensor],
        *,
        device: torch.device | str,
        batch_size: int = 1024,
    ) -> dict[str, float]:
        """Returns ``top1``, the share in [0, 1] of images a student gets right, and ``nll``, its mean loss in nats.

        Gradients are off while ``predict`` runs. A failing or non-finite prediction has seen the test images too, and
        counts as the student's one look.

        Args:
            student: id of the trained student.
            predict: from pixels (B, C, H, W), float32 in [0, 1] on ``device``, to logits (B, K); a model in eval mode.
            device: where ``predict`` computes.
            batch_size: B, smaller in the last batch.

        Raises:
            HoldoutError: if ``student`` was scored before.
            NonFiniteError: if a logit is NaN or infinite.
        """
        return self.score_heads(student, predict, [lambda logits: logits], device=device, batch_size=batch_size)[0]

    def score_heads(
        self,
        student: str,
        embed: Callable[[Tensor], Tensor],
        heads: Sequence[Callable[[Tensor], Tensor]],
        *,
        device: torch.device | str,
        batch_size: int = 1024,
    ) -> list[dict[str, float]]:
        """Returns what ``score`` returns for each of several heads on one body, which sees every image once.

        All of them are the student's one look.

        Args:
            student: id of the trained student.
            embed: from pixels, as ``predict`` gets them, to features (B, D).
            heads: from features to logits (B, K).
            device: where both compute.
            batch_size: B, smaller in the last batch.

        Raises:
            HoldoutError: if ``student`` was scored before.
            NonFiniteError: if a logit is NaN or infinite.
        """
        _look_once(self.__seen, student)
        sums = torch.zeros(len(heads), 3, dtype=torch.float64, device=device)
        with torch.no_grad():
            for start in range(0, len(self), batch_size):
                batch = slice(start, start + batch_size)
                features = embed(self.__rows.images[batch].to(device).float() / 255)
                labels = self.__rows.labels[batch].to(device)
                sums += torch.stack([_batch_sums(head(features), labels) for head in heads])
        scores = []
        for correct, nll, non_finite in sums.cpu().tolist():  # the one result read back
            _require_finite(student, non_finite, "images")
            scores.append({"top1": correct / len(self), "nll": nll / len(self)})
        return scores


class GraphTestSplit:
    """The held-out graphs and labels of a data set, behind ``score``; what holds of ``TestSplit`` holds here."""

    def __init__(self, rows: GraphRows) -> None:
        self.__rows = rows
        self.__seen: set[str] = set()

    @classmethod
    def open(cls, name: str, data_dir: Path | None = None) -> "GraphTestSplit":
        """Returns the test split of ``name``. See ``graphs.load``.

        Raises:
            UnknownNameError, ConfigError: if ``name`` names no data set of graphs.
            DataError: if the data is absent and cannot be made, or is malformed.
        """
        (rows,) = read_graphs(name, ("test",), data_dir)
        return cls(rows)

    @property
    def spec(self) -> GraphSpec:
        """Facts of the data set, as ``graphs.load`` gives them."""
        return self.__rows.spec

    @property
    def fingerprint(self) -> str:
        """The content hash of the data set, equal to that of its training split."""
        return self.__rows.fingerprint

    def __len__(self) -> int:
        return self.__rows.labels.shape[0]

    def score(
        self,
        student: str,
        predict: Callable[[GraphBatch], Tensor],
        *,
        device: torch.device | str,
        batch_size: int = 512,
    ) -> dict[str, float]:
        """Returns ``top1``, the share in [0, 1] of graphs a student gets right, and ``nll``, its mean loss in nats.

        Of two classes also ``auc``: the share in [0, 1] of pairs of a graph of class 1 and one of class 0 in which the
        former has more probability of class 1, where ties count half. Gradients are off while ``predict`` runs, and a
        failing or non-finite prediction counts as the student's one look.

        Args:
            student: id of the trained student.
            predict: from graphs on ``device`` to logits (B, K); a model in eval mode.
            device: where ``predict`` computes.
            batch_size: B, smaller in the last batch.

        Raises:
            HoldoutError: if ``student`` was scored before.
            NonFiniteError: if a logit is NaN or infinite.
        """
        _look_once(self.__seen, student)
        with torch.no_grad():
            answers = [
                predict(self.__rows.graphs.pick(torch.arange(start, min(start + batch_size, len(self)))).to(device))
                for start in range(0, len(self), batch_size)
            ]
        logits, labels = torch.cat(answers).cpu().double(), self.__rows.labels
        _require_finite(student, int((~logits.isfinite()).sum()), "graphs")
        score = {
            "top1": float((logits.argmax(1) == labels).double().mean()),
            "nll": float(F.cross_entropy(logits, labels)),
        }
        if self.spec.num_classes == 2:
            from sklearn.metrics import roc_auc_score  # here, because the import takes a second

            margin = logits[:, 1] - logits[:, 0]  # ordered like the softmax, but never rounded to a tie at 0 or 1
            score["auc"] = float(roc_auc_score(labels.numpy(), margin.numpy()))
        return score


def open_test(name: str, data_dir: Path | None = None) -> TestSplit | GraphTestSplit:
    """Returns the test split of ``name``, whatever it holds; see ``open`` of both classes."""
    if parse_name(name).base in GRAPH_SPECS:
        return GraphTestSplit.open(name, data_dir)
    return TestSplit.open(name, data_dir)


def _look_once(seen: set[str], student: str) -> None:
    """Notes the look of a student, or refuses its second."""
    if student in seen:
        raise HoldoutError(
            f"test split was already read by student {student}; accuracy is the last epoch's, read once: "
            "use the score it got, or train another student"
        )
    seen.add(student)


def _require_finite(student: str, non_finite: float, what: str) -> None:
    if non_finite:
        raise NonFiniteError(
            f"student {student} gave {non_finite:.0f} logits that are NaN or infinite on the test {what}; "
            "expected none: its training diverged, try a smaller learning rate"
        )


def _batch_sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the number of correct predictions, the summed loss and the number of non-finite logits; (3,) float32."""
    logits = logits.float()
    correct = (logits.argmax(1) == labels).sum()
    nll = F.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([correct.float(), nll, (~logits.isfinite()).sum().float()])
