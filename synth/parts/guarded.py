"""The outer optimizer of trajectory matching: SGD with momentum that refuses what would ruin the images.

Learned step sizes that turn negative and losses that explode are what users of MTT meet most (its issues 16, 24, 31).
DATM (Guo et al. 2024, arXiv 2310.05773) leaves out updates whose loss is over a threshold. So does this, and it also
goes back to the last images whose loss was in order, as the update that ruined them came one iteration earlier.
"""

from math import isnan

import torch
from torch import Tensor

from dd_bench.checkpoint import State
from dd_bench.errors import DivergedError
from synth.parts.unroll import TrajectoryGradient

_MOMENTUM = 0.5  # as published, for images and step size
_STRIKES = 10.0
_LONGEST = 10.0  # times the length of the images


class GuardedDescent:
    """Images and a step size on their way down; all of it stays on the device until ``check`` looks.

    Attributes:
        images: (S, C, H, W), what the next gradient is wanted of; in place.
        rate: the step size, or what softplus makes it of, a scalar; in place.
        good_images, good_rate: the latest of which a loss was measured and accepted.
        loss: the latest accepted loss, NaN before the first.
        strikes: one more for each refused update, half of one less for each accepted.
    """

    def __init__(self, images: Tensor, rate: Tensor, *, lr_images: float, lr_rate: float) -> None:
        self.images, self.rate, self.lr_images, self.lr_rate = images, rate, lr_images, lr_rate
        self.good_images, self.good_rate = images.clone(), rate.clone()
        self._velocities = torch.zeros_like(images), torch.zeros_like(rate)
        self.loss = torch.full_like(rate, torch.nan)
        self.strikes = torch.zeros_like(rate)

    @property
    def state(self) -> State:
        """All that an update changes."""
        of_images, of_rate = self._velocities
        return State(
            images=self.images, rate=self.rate, good_images=self.good_images, good_rate=self.good_rate, loss=self.loss,
            strikes=self.strikes, of_images=of_images, of_rate=of_rate,
        )  # fmt: skip

    def update(self, gradient: TrajectoryGradient, step_size: Tensor, limit: float) -> None:
        """Takes a step, or goes back to the last good images, at rest.

        It goes back if the loss or a gradient is not finite, if the loss is above ``limit``, the step size not above 0,
        or if the images would move ten times as far as they are long: behind an instance norm no loss tells that.
        """
        stride = self.lr_images * (_MOMENTUM * self._velocities[0] + gradient.images).norm()
        accepted = gradient.sound & (gradient.loss <= limit) & (step_size > 0)
        accepted &= stride <= _LONGEST * self.images.norm()
        for value, good, velocity, slope, lr in (
            (self.images, self.good_images, self._velocities[0], gradient.images, self.lr_images),
            (self.rate, self.good_rate, self._velocities[1], gradient.rate, self.lr_rate),
        ):
            good.copy_(torch.where(accepted, value, good))
            velocity.copy_(torch.where(accepted, _MOMENTUM * velocity + slope, 0))
            value.copy_(good - lr * velocity)
        self.loss.copy_(torch.where(accepted, gradient.loss, self.loss))
        self.strikes.copy_(torch.where(accepted, (self.strikes - 0.5).clamp_min(0), self.strikes + 1))

    def check(self, where: str) -> None:
        """Raises DivergedError if updates were refused again and again, or all of them; it waits for the device.

        ``where`` names the stage and the iteration.
        """
        loss = float(self.loss)
        if float(self.strikes) >= _STRIKES or isnan(loss):
            last = "never in order" if isnan(loss) else f"last in order at {loss:.3g}"
            raise DivergedError(
                f"{where}: the matching loss, {last}, keeps exploding, the images keep leaping, or the learned step "
                f"size (now {float(self.good_rate):.3g}) keeps falling below 0; nothing was stored. Lower lr_images, "
                "lr_rate or rate tenfold (--set), or take rate_form=softplus"
            )
