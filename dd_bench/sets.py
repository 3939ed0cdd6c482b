"""The contract between synthesizers and the evaluator: a synthetic set, its payload, its targets and its provenance.

Letters in shapes: N images, B base images, M offsets, K classes, C channels, H height, W width. Pixels live in pixel
space everywhere: [0, 1] is nominal for float pixels, uint8 stands for value / 255.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.targets import Features, LabelKind, TapedLabels, Targets, ThinLabels, require, require_finite

ELSEWHERE = "elsewhere"  # the device of a set that ddbench did not make


@dataclass(frozen=True)
class Images:
    """Plain images: ``pixels`` (N, C, H, W), uint8 or float32 (any finite value; nominally [0, 1])."""

    pixels: Tensor

    def __post_init__(self) -> None:
        require(self.pixels.ndim == 4, "pixels", self.pixels, "four axes (N, C, H, W)")
        require(self.pixels.dtype in (torch.uint8, torch.float32), "pixels", self.pixels, "uint8 or float32")
        require_finite("pixels", self.pixels)

    def __len__(self) -> int:
        return self.pixels.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def decode(self) -> Tensor:
        """Returns what a student sees: float32 pixels (N, C, H, W)."""
        return self.pixels.float() / 255 if self.pixels.dtype == torch.uint8 else self.pixels


@dataclass(frozen=True)
class Compensated:
    """Images kept as base images plus shared offsets, the form of INFER: image n is ``base[i] + offset[j]``.

    Attributes:
        base: (B, C, H, W) uint8.
        offsets: (M, C, H, W) int8 (times ``scales`` in pixel units) or float16 (``scales`` are then ones).
        scales: (M,) float32, pixel units per step of ``offsets``.
        pairs: (N, 2) int32, the indices (i, j); j = -1 means the base image itself.
    """

    base: Tensor
    offsets: Tensor
    scales: Tensor
    pairs: Tensor

    def __post_init__(self) -> None:
        require(self.base.ndim == 4 and self.base.dtype == torch.uint8, "base", self.base, "uint8 (B, C, H, W)")
        require(
            self.offsets.dtype in (torch.int8, torch.float16) and self.offsets.shape[1:] == self.base.shape[1:],
            "offsets", self.offsets, f"int8 or float16 of shape (M, {', '.join(map(str, self.base.shape[1:]))})",
        )  # fmt: skip
        count = self.offsets.shape[0]
        require(
            self.scales.shape == (count,) and self.scales.dtype == torch.float32, "scales", self.scales,
            f"float32 of shape ({count},)",
        )  # fmt: skip
        require(
            self.pairs.ndim == 2 and self.pairs.shape[1] == 2 and self.pairs.dtype == torch.int32, "pairs", self.pairs,
            "int32 of shape (N, 2)",
        )  # fmt: skip
        require_finite("offsets", self.offsets)
        require_finite("scales", self.scales)
        low, high = self.pairs.amin(0).tolist(), self.pairs.amax(0).tolist()
        if low[0] < 0 or high[0] >= self.base.shape[0] or low[1] < -1 or high[1] >= count:
            raise InvalidSetError(
                f"pairs reach from {low} to {high}, but there are {self.base.shape[0]} base images and {count} offsets"
                "; synthesise the set again"
            )

    def __len__(self) -> int:
        return self.pairs.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.base.shape[1:]
        return channels, height, width

    def decode(self) -> Tensor:
        """Returns what a student sees: the sums, clipped to [0, 1], float32 (N, C, H, W)."""
        image, offset = self.pairs.long().unbind(1)
        nothing = torch.zeros_like(self.base[:1], dtype=torch.float32)
        table = torch.cat([self.offsets.float() * self.scales[:, None, None, None], nothing])  # index -1: no offset
        return (self.base[image].float() / 255 + table[offset]).clamp_(0, 1)


Payload = Images | Compensated | Graphs | Trees


@dataclass(frozen=True)
class Control:
    """A set that must stand beside an entry on every board: what to synthesise to get it.

    Attributes:
        method: name in ``synth.methods()``.
        preset: what people call its configuration.
        labels: the kind of its labels.
        config: the full configuration of that method, as JSON values.
        recipe: ``recipe_id`` of the control on the same data and ipc, by which a board finds its records.
        seeds: the seeds it is made with.
    """

    method: str
    preset: str
    labels: LabelKind
    config: Mapping[str, Any]
    recipe: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Provenance:
    """Where a set comes from, in full: enough to make it again, and to find what it must be compared with."""

    method: str
    preset: str
    config: Mapping[str, Any]
    dataset: str
    fingerprint: str
    ipc: int
    seed: int
    recipe: str
    controls: tuple[Control, ...] = ()
    parents: tuple[str, ...] = ()  # ids of the teachers that shaped or labelled the set
    ddbench: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)
    device: str = ""
    threads: int = 0
    wall_seconds: float = 0.0  # without the teachers, which other sets share
    teacher_seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def set_id(self) -> str:
        """The short id under which the set is stored: its recipe and its seed."""
        return digest_json({"recipe": self.recipe, "seed": self.seed})[:12]


@dataclass(frozen=True)
class SyntheticSet:
    """A synthetic training set: images, their targets, and what a trainer should know."""

    payload: Payload
    targets: Targets
    provenance: Provenance
    native_protocol: str
    suggested_lr: float | None = None

    def __post_init__(self) -> None:
        if len(self.payload) != len(self.targets):
            raise InvalidSetError(
                f"set has {len(self.targets)} targets for {len(self.payload)} images; expected one each"
            )
        if isinstance(self.targets, Features) and not isinstance(self.payload, Images | Compensated):
            raise InvalidSetError("features are of images, but the set holds graphs; expected hard labels for them")
        if isinstance(self.targets, TapedLabels | ThinLabels):
            if not isinstance(self.payload, Images | Compensated):
                raise InvalidSetError("a tape is of images, but the set holds graphs; expected hard labels for them")
            self.targets.tape.check_images(len(self.payload), *self.payload.image_shape[1:])
        if self.suggested_lr is not None and not 0 < self.suggested_lr < float("inf"):
            raise InvalidSetError(f"suggested_lr is {self.suggested_lr}; expected a positive number, or None")

    def __len__(self) -> int:
        return len(self.payload)


def recipe_id(*, method: str, version: int, config: Mapping[str, Any], dataset: str, fingerprint: str, ipc: int) -> str:
    """Returns the id of everything that determines a set but its seed; 12 hexadecimal digits."""
    return digest_json(
        {
            "method": method,
            "version": version,
            "config": config,
            "dataset": dataset,
            "fingerprint": fingerprint,
            "ipc": ipc,
        }
    )[:12]


def digest_json(value: object) -> str:
    """Returns the sha256 of ``value`` in canonical JSON (sorted keys, no spaces, no NaN), hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
