"""Recovery: images whose pixels a committee shapes, slot by slot."""

from dataclasses import replace

import torch
from torch import Tensor

from dd_bench.data.specs import DatasetSpec
from dd_bench.run import Run
from dd_bench.seeding import derive_seed
from synth.parts.inversion import FreePixels, InversionRecipe, Voter, invert
from synth.parts.teachers import Teacher

_CLASSES_AT_ONCE = 100  # whose images share BN statistics; published
_PIXELS_AT_ONCE = 1_000 * 32 * 32  # slots go side by side up to so many positions, which bounds the memory


def recover(
    begin: Tensor, teachers: list[Teacher], committees: list[tuple[int, ...]], weights: list[list[float]], *,
    recipe: InversionRecipe, spec: DatasetSpec, seed: int, run: Run, label: str,
) -> Tensor:  # fmt: skip
    """Returns images (S, K, C, H, W) uint8 on the CPU: one of each class for each of S slots.

    A slot's images of up to 100 classes are one group, judged by the slot's committee alone. Slots are optimised side
    by side, which changes none of them.

    Args:
        begin: (S, K, C, H, W) float pixels to begin with.
        teachers: the networks that committees name.
        committees: of each slot, indices of teachers.
        weights: of each slot's voters.
        recipe: the optimisation; images that must not be mirrored (``spec.mirror``) are not.
        spec: of the data set.
        seed: of what networks see.
        run: recovery is some stages of it.
        label: how the stages' names begin.
    """
    recipe = replace(recipe, mirror=recipe.mirror and spec.mirror)
    slots, num_classes = begin.shape[:2]
    mean, std = (torch.tensor(part, device=begin.device) for part in (spec.mean, spec.std))
    images = torch.empty(begin.shape, dtype=torch.uint8)
    for first in range(0, num_classes, _CLASSES_AT_ONCE):
        classes = torch.arange(first, min(first + _CLASSES_AT_ONCE, num_classes), device=begin.device)
        size = len(classes) * spec.image_shape[1] * spec.image_shape[2]
        width = max(1, _PIXELS_AT_ONCE // size)
        for start in range(0, slots, width):
            part = range(start, min(start + width, slots))
            canvas = FreePixels(begin[start : part.stop, classes], mean, std)
            voters = _voters(teachers, committees[start : part.stop], weights[start : part.stop], begin.device)
            invert(
                canvas, classes, voters, recipe=recipe,
                seeds=[derive_seed("recovery", seed, first, slot) for slot in part], run=run,
                label=f"{label}, slots {start + 1}-{part.stop} of {slots}, classes from {first}",
            )  # fmt: skip
            done = (canvas.images().detach() * 255).round().clamp(0, 255).byte()
            images[start : part.stop, first : first + len(classes)] = done.cpu()
    return images


def _voters(
    teachers: list[Teacher], committees: list[tuple[int, ...]], weights: list[list[float]], device: torch.device
) -> list[Voter]:
    """Returns each teacher that votes anywhere, with its slots and its weight in each."""
    voters = []
    for index, teacher in enumerate(teachers):
        slots = [slot for slot, committee in enumerate(committees) if index in committee]
        shares = [weights[slot][committees[slot].index(index)] for slot in slots]
        if slots:
            voters.append(Voter(teacher.model, torch.tensor(slots, device=device), torch.tensor(shares, device=device)))
    return voters
