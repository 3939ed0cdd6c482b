"""Soft labels: what teachers say about images, as raw logits."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dd_bench.checkpoint import State
from dd_bench.environment import convolution_layout
from dd_bench.learn.tape import Epoch
from dd_bench.run import Run
from dd_bench.tapes import Tape
from synth.parts.bn_stats import batch_statistics
from synth.parts.label_book import LabelBook

Statistics = Literal["batch", "running"]

_BATCH = 256


@torch.no_grad()
def label_images(images: Tensor, teachers: Sequence[nn.Module], *, device: torch.device, run: Run) -> Tensor:
    """Returns the mean over teachers of their logits on plain images, float32 (N, K) on the CPU.

    z_i = 1/M Σ_m f_m(s_i): raw logits, teachers in evaluation mode (running BN statistics), no augmentation, no
    temperature (that belongs to training).

    Args:
        images: (N, C, H, W) float32 pixels.
        teachers: M frozen models in evaluation mode.
        device: where the teachers are.
        run: labelling is a stage of it, one batch a step.
    """
    batches = torch.split(images, _BATCH)
    classes = teachers[0](batches[0][:1].to(device)).shape[1]
    logits = torch.zeros(len(images), classes, device=device)
    for step in run.steps("labels", len(batches), State(logits=logits)):
        pixels = batches[step].to(device, non_blocking=True)
        start = step * _BATCH
        logits[start : start + len(pixels)] = torch.stack([teacher(pixels) for teacher in teachers]).mean(0)
    return logits.cpu()


@torch.no_grad()
def label_tape(
    images: Tensor, tape: Tape, teachers: Sequence[nn.Module], weights: Sequence[float], *, num_classes: int,
    statistics: Statistics, device: torch.device, run: Run, label: str = "labels of the tape",
) -> Tensor:  # fmt: skip
    """Returns Σ_m w_m f_m(x) for every view x that the tape shows, float16 (E, N, K), mapped from a file of the run.

    Teachers see exactly what students will: the same crops, the same mixed images, the same groups. With ``batch``
    statistics (BSSL, CV-DD) BatchNorm normalises by the group at hand, so a label depends on the images that it was
    made beside; teachers stay in evaluation mode otherwise, and are left as they were.

    Args:
        images: (N, C, H, W) uint8 or float32 pixels.
        tape: over N images.
        teachers: M frozen models in evaluation mode on ``device``.
        weights: M numbers.
        num_classes: K.
        statistics: of the group, or the teachers' running ones.
        device: where the teachers are.
        run: labelling is a stage of it, one epoch a step.
        label: the stage's name; unique within the run.
    """
    images = images.to(device)
    book = LabelBook(run.folder / f"{label.replace(' ', '_')}.f16", tape.epochs, len(tape), num_classes)
    lots = list(_lots(tape, device))
    logits = torch.zeros(len(tape), num_classes, device=device)
    with ExitStack() as stack:
        norms = [stack.enter_context(batch_statistics(one)) for one in teachers if statistics == "batch"]
        for number in run.steps(label, tape.epochs, book):
            epoch = Epoch.of(tape, number, device)
            for lot in lots:
                pixels = torch.cat([epoch.pixels(images, batch) for batch in lot.batches])
                pixels = pixels.contiguous(memory_format=convolution_layout(device))
                for count, places in lot.groups:
                    for norm in norms:
                        norm.count = count
                    group = pixels[places]
                    votes = [weight * teacher(group) for weight, teacher in zip(weights, teachers, strict=True)]
                    logits[lot.start + places] = torch.stack(votes).sum(0)
            book.write(number, logits)
    return book.logits()


@dataclass(frozen=True)
class _Lot:
    """Batches that go through the teachers together, since small groups by themselves keep no device busy.

    ``start`` is their first position; ``groups`` holds, for each size of group, how many there are and the places of
    their images from ``start`` on, group after group.
    """

    batches: range
    start: int
    groups: list[tuple[int, Tensor]]


def _lots(tape: Tape, device: torch.device) -> Iterator[_Lot]:
    ranges = tape.ranges()
    width = max(1, _BATCH // (ranges[0][1] - ranges[0][0]))
    for first in range(0, len(ranges), width):
        batches = range(first, min(first + width, len(ranges)))
        start = ranges[first][0]
        by_size: dict[int, list[int]] = {}
        for low, high in tape.groups_of(start, ranges[batches[-1]][1]):
            by_size.setdefault(high - low, []).extend(range(low, high))
        groups = [(len(places) // size, torch.tensor(places, device=device)) for size, places in by_size.items()]
        yield _Lot(batches, start, groups)
