"""Real images with their targets, batch by batch, as the outer loss of KRR-ST sees them."""

from typing import Literal

import torch
from torch import Tensor

from dd_bench.data.images import ImageData
from dd_bench.learn.augment import crop_flip, crop_pad
from dd_bench.models import Normalizer
from dd_bench.seeding import derive_seed, generator
from synth.parts.target_model import TargetModel

Augment = Literal["none", "flip", "crop-flip"]


class RealBatches:
    """Draws real images, normalised, with their targets; on the device from the first to the last line.

    Attributes:
        draws: the generator of order and augmentation, which is all of its state.
    """

    def __init__(self, data: ImageData, target: TargetModel, augment: Augment, batch: int, seed: int) -> None:
        device = next(target.model.parameters()).device
        self._spec, self._target, self._augment = data.spec, target, augment
        self._size = min(batch, len(data))
        self._normalise = Normalizer(data.spec.mean, data.spec.std).to(device)
        self._images, self._plain = data.images.to(device), target.plain.to(device)
        self._flipped = None if target.flipped is None else target.flipped.to(device)
        self.draws = generator(derive_seed("real batches", seed), device)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Returns different images (b, C, H, W), augmented, and what the target network says of these very images."""
        device = self._images.device
        index = torch.randperm(len(self._images), generator=self.draws, device=device)[: self._size]
        pixels = self._images[index].float() / 255
        if self._augment == "crop-flip":
            pixels = crop_flip(pixels, self.draws, pad=crop_pad(self._spec), mirror=self._spec.mirror)
            return self._normalise(pixels), self._target.targets_of(pixels)
        targets = self._plain[index]
        if self._augment == "flip" and self._flipped is not None:
            turned = torch.randint(2, (self._size,), generator=self.draws, device=device) > 0
            pixels = torch.where(turned[:, None, None, None], pixels.flip(-1), pixels)
            targets = torch.where(turned[:, None], self._flipped[index], targets)
        return self._normalise(pixels), targets
