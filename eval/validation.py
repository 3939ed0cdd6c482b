"""The validation split of graphs as an examiner: message plans built once, scores computed on the device."""

import torch
from torch import Tensor

from dd_bench.errors import DataError
from dd_bench.graphs import GraphBatch, plan_graphs
from dd_bench.models.gnn import GraphNetwork

_BATCH = 512  # graphs at once


class Validation:
    """Scores networks on one validation split, as often as asked; the test split can be asked once.

    Attributes:
        metric: ``auc`` for two classes, else ``top1``.
    """

    def __init__(
        self, graphs: GraphBatch, labels: Tensor, *, num_classes: int, layers: int, device: torch.device | str
    ) -> None:
        """Lays the split out for networks of ``layers`` layers.

        Raises:
            DataError: if two classes are to be told apart and only one is there.
        """
        self.metric = "auc" if num_classes == 2 else "top1"
        self._labels = labels.to(device)
        self._positive, self._negative = self._labels.nonzero().flatten(), (self._labels == 0).nonzero().flatten()
        if self.metric == "auc" and not (len(self._positive) and len(self._negative)):
            raise DataError(
                f"the validation split has {len(labels)} graphs of one class; expected both, to choose by ROC-AUC: "
                "take a larger part of the data"
            )
        indices = torch.split(torch.arange(len(graphs)), _BATCH)
        self._plans = [plan_graphs(graphs.pick(index), layers).to(device) for index in indices]

    @torch.no_grad()
    def score(self, model: GraphNetwork) -> Tensor:
        """Returns the score in [0, 1], or minus infinity where a logit is NaN or infinite; () on the device."""
        logits = torch.cat([model(plan) for plan in self._plans]).float()
        if self.metric == "auc":
            margins = logits[:, 1] - logits[:, 0]  # as the softmax orders graphs, before it saturates
            score = roc_auc(margins[self._positive], margins[self._negative])
        else:
            score = (logits.argmax(1) == self._labels).float().mean()
        return torch.where(logits.isfinite().all(), score, -torch.inf)


def roc_auc(positive: Tensor, negative: Tensor) -> Tensor:
    """Returns the share of pairs in which the positive value, (P,), is above the negative one, (M,); ties count half.

    The Mann-Whitney form of the area under the ROC curve.
    """
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive) + torch.searchsorted(ordered, positive, right=True)
    return below.double().mean().div(2 * len(negative)).float()
