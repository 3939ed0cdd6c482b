"""What a synthetic set teaches: a class, a teacher's logits, logits for every view that a tape shows, or features.

Letters in shapes: N images, K classes, E epochs, D features. Every kind checks itself when it is made, so nothing
unsound is stored or read.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.tapes import Tape


@dataclass(frozen=True)
class HardLabels:
    """One class an image: ``classes`` (N,) int64 in [0, K)."""

    classes: Tensor
    kind: ClassVar[Literal["hard"]] = "hard"

    def __post_init__(self) -> None:
        _require_classes(self.classes)

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class SoftLabels:
    """Teacher logits, and the class each image was made for.

    Attributes:
        logits: (N, K) float16 or float32, raw (not divided by any temperature).
        classes: (N,) int64 in [0, K).
        temperature: the softmax temperature at which students are meant to match the logits, > 0.
    """

    logits: Tensor
    classes: Tensor
    temperature: float
    kind: ClassVar[Literal["soft"]] = "soft"

    def __post_init__(self) -> None:
        _require_classes(self.classes)
        require(
            self.logits.ndim == 2 and self.logits.dtype in (torch.float16, torch.float32), "logits", self.logits,
            "float16 or float32 of shape (N, K)",
        )  # fmt: skip
        require_finite("logits", self.logits)
        if self.logits.shape[0] != self.classes.shape[0] or int(self.classes.max()) >= self.logits.shape[1]:
            raise InvalidSetError(
                f"logits are {tuple(self.logits.shape)} beside {self.classes.shape[0]} classes up to "
                f"{int(self.classes.max())}; expected one row an image and one column a class"
            )
        if not 0 < self.temperature < float("inf"):
            raise InvalidSetError(f"temperature is {self.temperature}; expected a positive number")

    def __len__(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class TapedLabels:
    """Teacher logits for every view that a tape shows of every image; only with that tape do they mean anything.

    Attributes:
        logits: (E, N, K) float16 or float32, raw, by position of the tape; may be mapped from a file.
        tape: of E epochs over the N images.
        classes: (N,) int64 in [0, K), the class each image was made for.
        temperature: the softmax temperature at which students are meant to match the logits, > 0.
    """

    logits: Tensor
    tape: Tape
    classes: Tensor
    temperature: float
    kind: ClassVar[Literal["taped"]] = "taped"

    def __post_init__(self) -> None:
        _require_book("logits", self.logits, self.tape, self.classes, self.temperature)
        if int(self.classes.max()) >= self.logits.shape[2]:
            raise InvalidSetError(
                f"logits have {self.logits.shape[2]} columns beside classes up to {int(self.classes.max())}; "
                "expected one column a class"
            )

    def __len__(self) -> int:
        return len(self.classes)

    def epoch(self, number: int, num_classes: int) -> Tensor:
        """Returns the logits of epoch ``number`` by position, float32 (N, K).

        Raises:
            InvalidSetError: if they are not of ``num_classes`` classes.
        """
        if self.logits.shape[2] != num_classes:
            raise InvalidSetError(f"logits have {self.logits.shape[2]} columns; expected {num_classes}, one a class")
        return self.logits[number].float()


@dataclass(frozen=True)
class ThinLabels:
    """Taped labels of which only the k largest logits are kept, and the mean of all others.

    At high temperature KL is the variance of the difference of logits; of all constants, the mean of what is left out
    then does least harm.

    Attributes:
        tops: (E, N, k) float16 or float32, the largest logits by position of the tape.
        kept: (E, N, k) int16, whose logits they are.
        rest: (E, N) of the dtype of ``tops``, the mean logit of all other classes.
        tape: of E epochs over the N images.
        classes: (N,) int64, the class each image was made for.
        temperature: the softmax temperature at which students are meant to match the logits, > 0.
    """

    tops: Tensor
    kept: Tensor
    rest: Tensor
    tape: Tape
    classes: Tensor
    temperature: float
    kind: ClassVar[Literal["taped"]] = "taped"

    def __post_init__(self) -> None:
        _require_book("tops", self.tops, self.tape, self.classes, self.temperature)
        same = self.kept.shape == self.tops.shape and self.rest.shape == self.tops.shape[:2]
        require(same and self.kept.dtype == torch.int16, "kept", self.kept, "int16 of the shape of tops, rest (E, N)")
        require(self.rest.dtype == self.tops.dtype, "rest", self.rest, "the dtype of tops")
        require_finite("rest", self.rest)
        if int(self.kept.min()) < 0:
            raise InvalidSetError(f"kept holds {int(self.kept.min())}; expected classes")
        for page in self.kept:  # epoch by epoch, as above
            ordered = page.sort(dim=1).values
            if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
                raise InvalidSetError("kept holds a class twice for one view; expected different classes")

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def of(cls, labels: TapedLabels, count: int) -> "ThinLabels":
        """Returns the ``count`` largest logits of each row of ``labels``, 1 <= count < K."""
        tops, kept, rest = [], [], []
        for logits in labels.logits:  # epoch by epoch, as they may be more than the memory holds
            top = logits.float().topk(count, dim=1)
            others = (logits.float().sum(1) - top.values.sum(1)) / (logits.shape[1] - count)
            tops.append(top.values.to(logits.dtype))
            kept.append(top.indices.short())
            rest.append(others.to(logits.dtype))
        return cls(
            torch.stack(tops), torch.stack(kept), torch.stack(rest), labels.tape, labels.classes, labels.temperature
        )  # fmt: skip

    def epoch(self, number: int, num_classes: int) -> Tensor:
        """Returns the logits of epoch ``number`` by position, float32 (N, K), with the mean where none was kept.

        Raises:
            InvalidSetError: if a logit of none of ``num_classes`` classes was kept.
        """
        if int(self.kept[number].max()) >= num_classes:
            raise InvalidSetError(f"kept holds class {int(self.kept[number].max())}; expected less than {num_classes}")
        full = self.rest[number].float()[:, None].repeat(1, num_classes)
        return full.scatter_(1, self.kept[number].long(), self.tops[number].float())


@dataclass(frozen=True)
class Features:
    """Points in the feature space of a network that was trained without labels; no image has a class.

    Attributes:
        values: (N, D) float16 or float32, centred and scaled: the network's own units are ``values * scale + center``.
        center: (D,) float32, the mean of the network's features over the real training images.
        scale: the deviation of all their entries from it, > 0.
    """

    values: Tensor
    center: Tensor
    scale: float
    kind: ClassVar[Literal["features"]] = "features"

    def __post_init__(self) -> None:
        require(
            self.values.ndim == 2 and self.values.dtype in (torch.float16, torch.float32), "values", self.values,
            "float16 or float32 of shape (N, D)",
        )  # fmt: skip
        require(
            self.center.shape == self.values.shape[1:] and self.center.dtype == torch.float32, "center", self.center,
            f"float32 of shape ({self.values.shape[1]},)",
        )  # fmt: skip
        require_finite("values", self.values)
        require_finite("center", self.center)
        if not 0 < self.scale < float("inf"):
            raise InvalidSetError(f"scale is {self.scale}; expected a positive number")

    def __len__(self) -> int:
        return len(self.values)


Labels = HardLabels | SoftLabels | TapedLabels | ThinLabels
Targets = Labels | Features
LabelKind = Literal["hard", "soft", "taped", "features"]


def require(holds: bool, name: str, tensor: Tensor, expected: str) -> None:
    """Raises InvalidSetError, with what was found, unless ``tensor`` ``holds`` and is not empty."""
    if not holds or tensor.numel() == 0:
        found = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
        raise InvalidSetError(f"{name} is {found}; expected {expected}, and not empty")


def _require_book(name: str, logits: Tensor, tape: Tape, classes: Tensor, temperature: float) -> None:
    """Holds labels by epoch and position to their tape."""
    _require_classes(classes)
    shape = (tape.epochs, len(tape))
    require(
        logits.ndim == 3 and logits.dtype in (torch.float16, torch.float32) and logits.shape[:2] == shape, name, logits,
        f"float16 or float32 of shape ({shape[0]}, {shape[1]}, K), as the tape has it",
    )  # fmt: skip
    if len(classes) != len(tape):
        raise InvalidSetError(f"there are {len(classes)} classes for a tape of {len(tape)} images; expected one each")
    for part in logits:  # epoch by epoch, as they may be more than the memory holds
        require_finite(name, part)
    if not 0 < temperature < float("inf"):
        raise InvalidSetError(f"temperature is {temperature}; expected a positive number")


def require_finite(name: str, tensor: Tensor) -> None:
    """Raises InvalidSetError if a value of ``tensor`` is NaN or infinite."""
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise InvalidSetError(f"{name} holds {bad} values that are NaN or infinite; expected none: synthesise it again")


def _require_classes(classes: Tensor) -> None:
    require(classes.ndim == 1 and classes.dtype == torch.int64, "classes", classes, "int64 of shape (N,)")
    if int(classes.min()) < 0:
        raise InvalidSetError(f"classes hold {int(classes.min())}; expected labels in [0, K)")
