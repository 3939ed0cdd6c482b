"""Transfer: students that learn from a set of one data set, and are judged on another."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dd_bench.data import images as image_data
from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import ImageData
from dd_bench.data.names import parse_name
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError
from dd_bench.learn.losses import cross_entropy, distillation, mean_squared_error
from dd_bench.learn.tape_training import fit_tape
from dd_bench.learn.training import Objective, TrainingRecipe, fit
from dd_bench.models import Classifier, build, images_at_once
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.targets import Features, HardLabels, SoftLabels, TapedLabels, Targets, ThinLabels
from eval.cells import SetFacts, probe_metric
from eval.judging import Bench, Outcome, baseline_facts
from eval.probe import draw_labelled, fit_probe
from eval.protocol_kinds import AnyProtocol, TransferProtocol
from eval.protocols import PROTOCOLS
from eval.replay import recorded


@dataclass(frozen=True)
class Destination:
    """The data set that students are judged on: labels are drawn from ``data``, and ``test`` is asked for scores."""

    data: ImageData
    test: TestSplit

    @classmethod
    def open(cls, protocol: TransferProtocol, data_dir: Path | None = None) -> "Destination":
        """Returns the target of ``protocol``.

        Raises:
            DataError: if the data is absent and cannot be made, or is malformed.
        """
        return cls(image_data.load(protocol.target, data_dir), TestSplit.open(protocol.target, data_dir))


@dataclass(frozen=True)
class TransferSubject:
    """What is judged by transfer: a set, all real data of the source, or nothing at all.

    Attributes:
        facts: identity, bytes, origin.
        spec: of the source.
        images: (N, C, H, W) uint8, or float32 pixels; none for a student from scratch.
        targets: one for each image.
        destination: where students go.
    """

    facts: SetFacts
    spec: DatasetSpec
    images: Tensor | None
    targets: Targets | None
    destination: Destination

    @property
    def judged_on(self) -> tuple[str, str]:
        """Name and fingerprint of the data set whose test split judges."""
        return self.destination.data.spec.name, self.destination.data.fingerprint

    def check(self, protocol: AnyProtocol) -> None:
        """Raises ConfigError unless the protocol is one of transfer, from this set's data to this destination."""
        facts = self.facts
        if not isinstance(protocol, TransferProtocol):
            raise ConfigError(
                f"protocol {protocol.name} does not transfer; use one that does, for example transfer-small"
            )
        check_source(protocol, facts.dataset)
        if self.destination.data.spec.name != protocol.target:
            raise ConfigError(f"protocol {protocol.name} leads to {protocol.target}, not to {self.judged_on[0]}")
        if self.spec.image_shape[0] != self.destination.data.spec.image_shape[0]:
            raise ConfigError(
                f"images of {facts.dataset} have {self.spec.image_shape[0]} channels, those of {self.judged_on[0]} "
                f"{self.destination.data.spec.image_shape[0]}; expected as many"
            )

    def students(self, runs: int) -> int:
        """Returns ``runs``: no two students are equal."""
        return runs

    def teachers(self, protocol: AnyProtocol) -> tuple[str, ...]:
        """Returns none: targets are in the set."""
        return ()

    def train(self, protocol: AnyProtocol, architecture: str, bench: Bench) -> Outcome:
        """Trains one student on the set, probes its features, fine-tunes it, and has all of it scored."""
        assert isinstance(protocol, TransferProtocol)  # see ``check``
        data = self.destination.data
        here = replace(data.spec, image_shape=self.spec.image_shape)
        with seeded(derive_seed("body", bench.seed)):
            model = build(architecture, here)  # with a head for the target's classes, and the target's normaliser
        steps = 0
        if self.images is not None and self.targets is not None:
            body, steps = self._learn(self.images, self.targets, protocol, architecture, bench)
            model.features.load_state_dict(body.features.state_dict())
        model.to(bench.device)
        resize = Resize(here)
        probed = self._probe(model, resize, protocol, bench)
        one_hot = F.one_hot(data.labels, here.num_classes).float()
        fit(
            model, resize.all(data.images), one_hot, recipe=protocol.tuning, objective=cross_entropy, spec=here,
            seed=derive_seed("fine-tuning", bench.seed), run=bench.run, label=f"{bench.label}, fine-tuning",
        )  # fmt: skip
        tuned = bench.test.score(
            f"{bench.student} tuned", nn.Sequential(resize, model.eval()), device=bench.device,
            batch_size=self._at_once(1024),
        )  # fmt: skip
        return Outcome(tuned | probed, steps + protocol.tuning.total_steps(len(data)))

    def _learn(
        self, images: Tensor, targets: Targets, protocol: TransferProtocol, architecture: str, bench: Bench
    ) -> tuple[Classifier, int]:
        """Returns a network trained on the set, and its number of steps."""
        seed, label = bench.seed, f"{bench.label}, on the set"
        if isinstance(targets, TapedLabels | ThinLabels):
            network = self._fresh(architecture, self.spec.num_classes, bench)
            replay = recorded(targets, self.spec.num_classes, targets.temperature)
            fit_tape(
                network, images, replay.tape, replay.lessons, training=protocol.taped, objective=replay.objective,
                run=bench.run, label=label,
            )  # fmt: skip
            return network, protocol.taped.total_steps(len(replay.tape.ranges()))
        recipe, objective, values = lesson(targets, protocol, self.spec.num_classes)
        if self.facts.ipc == 0:  # all real data
            recipe = replace(recipe, steps=0, epochs=protocol.full_epochs)
        network = self._fresh(architecture, values.shape[1], bench)
        fit(
            network, images, values, recipe=recipe, objective=objective, spec=self.spec, seed=seed, run=bench.run,
            label=label,
        )  # fmt: skip
        return network, recipe.total_steps(len(images))

    def _at_once(self, most: int) -> int:
        """Returns how many images of the target's to bring to the source's size, and before a network, at once."""
        return min(images_at_once(most, spec.image_shape) for spec in (self.spec, self.destination.data.spec))

    def _fresh(self, architecture: str, outputs: int, bench: Bench) -> Classifier:
        """Returns a network for images of the source, with so many outputs, before its first step."""
        with seeded(bench.seed):
            network = build(architecture, replace(self.spec, num_classes=outputs))
        return network.to(bench.device)

    def _probe(self, model: Classifier, resize: "Resize", protocol: TransferProtocol, bench: Bench) -> dict[str, float]:
        """Returns the mean top-1 of linear probes for each share of the labels."""
        data, heads, owners = self.destination.data, [], []
        model.eval()
        with bench.run.unsaved(f"{bench.label}, probes", len(protocol.probes) + 1) as progress:
            features = embed(model, resize, data.images, bench.device, at_once=self._at_once(500))
            for number, share in enumerate(protocol.probes):
                for again in range(protocol.probe_draws if share < 1 else 1):
                    draws = generator(derive_seed("probe", bench.seed, str(share), again))
                    picked = draw_labelled(data.labels, data.spec.num_classes, share, draws)
                    head = fit_probe(features[picked], data.labels[picked], data.spec.num_classes, protocol.probe_l2)
                    heads.append(head.to(bench.device))
                    owners.append(probe_metric(share))
                progress.update(number + 1)
            found = bench.test.score_heads(
                f"{bench.student} probes", lambda pixels: model.embed(resize(pixels)), heads, device=bench.device,
                batch_size=self._at_once(1024),
            )  # fmt: skip
            progress.update(len(protocol.probes) + 1)
        return {
            name: fmean(one["top1"] for one, owner in zip(found, owners, strict=True) if owner == name)
            for name in dict.fromkeys(owners)
        }


class Resize(nn.Module):
    """Brings pixels (N, C, H, W) to the size of the source's images, bilinearly; equal sizes stay as they are."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        self._size = spec.image_shape[1:]

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns pixels of the new size."""
        if pixels.shape[2:] == self._size:
            return pixels
        return F.interpolate(pixels, size=self._size, mode="bilinear", antialias=True, align_corners=False)

    def all(self, images: Tensor) -> Tensor:
        """Returns uint8 images (N, C, H, W) of the new size, rounded."""
        if images.shape[2:] == self._size:
            return images
        parts = [self(part.float()).round().byte() for part in torch.split(images, 1000)]
        return torch.cat(parts)


def check_source(protocol: TransferProtocol, dataset: str) -> None:
    """Raises ConfigError unless the protocol judges sets of ``dataset``, whole or cut down."""
    base = parse_name(dataset).base
    if base == protocol.source:
        return
    others = [one.name for one in PROTOCOLS.values() if isinstance(one, TransferProtocol) and one.source == base]
    raise ConfigError(
        f"protocol {protocol.name} is for sets of {protocol.source}, but these are of {dataset}; "
        + (f"use {' or '.join(others)}" if others else "no protocol transfers from there (ddbench list protocols)")
    )


def scratch_subject(data: ImageData, destination: Destination) -> TransferSubject:
    """Returns what every set must beat: a student that has seen no set, and no image of ``data``."""
    facts = baseline_facts(
        "scratch", "no set", dataset=data.spec.name, fingerprint=data.fingerprint, count=len(data), parts={"images": 0}
    )
    return TransferSubject(facts, data.spec, None, None, destination)


def full_transfer(data: ImageData, destination: Destination) -> TransferSubject:
    """Returns all real data of the source with their labels."""
    parts = {"images": data.images.numel(), "labels": len(data)}
    facts = baseline_facts(
        "full", "all real data", dataset=data.spec.name, fingerprint=data.fingerprint, count=len(data), parts=parts
    )
    return TransferSubject(facts, data.spec, data.images, HardLabels(data.labels), destination)


def lesson(
    targets: Features | HardLabels | SoftLabels, protocol: TransferProtocol, num_classes: int
) -> tuple[TrainingRecipe, Objective, Tensor]:
    """Returns how a network learns from targets, the loss of a batch, and the values (N, K or D) it is held against."""
    if isinstance(targets, Features):
        return protocol.features, mean_squared_error, targets.values.float()
    if isinstance(targets, SoftLabels):
        return protocol.classes, partial(distillation, temperature=targets.temperature), targets.logits.float()
    return protocol.classes, cross_entropy, F.one_hot(targets.classes, num_classes).float()


@torch.no_grad()
def embed(model: Classifier, resize: Resize, images: Tensor, device: torch.device, *, at_once: int) -> Tensor:
    """Returns the features (N, D) of uint8 images, float32 on the CPU; the model is in evaluation mode."""
    parts = [model.embed(resize(part.to(device).float() / 255)).cpu() for part in torch.split(images, at_once)]
    return torch.cat(parts)
