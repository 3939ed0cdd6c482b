"""The guarded descent: torch's SGD as long as all is well, and a way back when it is not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dd_bench.errors import DivergedError
from dd_bench.seeding import generator
from synth.parts.guarded import GuardedDescent
from synth.parts.unroll import TrajectoryGradient

LR = {"lr_images": 3.0, "lr_rate": 0.01}
STEP = torch.tensor(0.02)  # a step size in order
LIMIT = 2.0


def fresh() -> GuardedDescent:
    images = torch.randn(4, 1, 2, 2, generator=generator(0))
    return GuardedDescent(images, torch.tensor(0.02), **LR)


def slopes(number: int, loss: float = 0.5, **changes: Any) -> TrajectoryGradient:
    draws = generator(number + 1)
    images, rate = torch.randn(4, 1, 2, 2, generator=draws), torch.randn((), generator=draws)
    values: dict[str, Any] = {"images": images, "rate": rate, "sound": torch.tensor(True)} | changes
    return TrajectoryGradient(torch.tensor(loss), torch.tensor([loss]), torch.tensor(3), **values)


def parts(descent: GuardedDescent) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in descent.state.state_dict().items()}  # type: ignore[union-attr]


def test_all_that_is_well_goes_as_torchs_sgd() -> None:
    descent = fresh()
    images, rate = (value.clone().requires_grad_() for value in (descent.images, descent.rate))
    optimizer = torch.optim.SGD([{"params": [images], "lr": 3.0}, {"params": [rate], "lr": 0.01}], momentum=0.5)
    kept_images, kept_rate = descent.images, descent.rate
    for number in range(5):
        measured = images.detach().clone(), rate.detach().clone()
        found = slopes(number, loss=1 - number / 10)
        descent.update(found, STEP, LIMIT)
        images.grad, rate.grad = found.images.clone(), found.rate.clone()
        optimizer.step()
        torch.testing.assert_close(descent.images, images.detach())
        torch.testing.assert_close(descent.rate, rate.detach())
        torch.testing.assert_close(descent.good_images, measured[0])  # whose loss it was
        torch.testing.assert_close(descent.good_rate, measured[1])
        assert descent.loss == found.loss
        assert descent.strikes == 0
    assert descent.images is kept_images  # in place: the next gradient is asked of the same tensor
    assert descent.rate is kept_rate


def test_the_first_images_are_good_before_anything_is_measured() -> None:
    descent = fresh()
    assert descent.good_images.equal(descent.images)
    assert descent.good_images.data_ptr() != descent.images.data_ptr()
    assert descent.good_rate.data_ptr() != descent.rate.data_ptr()
    assert descent.loss.isnan()
    assert descent.strikes == 0


REFUSED: dict[str, tuple[TrajectoryGradient, float]] = {
    "NaN loss": (slopes(1, torch.nan, sound=torch.tensor(False)), 0.02),
    "NaN loss called sound": (slopes(1, torch.nan), 0.02),
    "infinite loss": (slopes(1, torch.inf), 0.02),
    "loss over the limit": (slopes(1, 2.001), 0.02),
    "step size 0": (slopes(1), 0.0),
    "negative step size": (slopes(1), -1e-9),
    "NaN step size": (slopes(1), torch.nan),
    "NaN in the images": (slopes(1, images=torch.full((4, 1, 2, 2), torch.nan), sound=torch.tensor(False)), 0.02),
    "infinite slope of the rate": (slopes(1, rate=torch.tensor(torch.inf), sound=torch.tensor(False)), 0.02),
    "a leap": (slopes(1, images=torch.full((4, 1, 2, 2), 1e3)), 0.02),
    "unsound though all seems well": (slopes(1, sound=torch.tensor(False)), 0.02),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused_leads_back_to_rest(case: str) -> None:
    descent = fresh()
    for number in range(2):
        descent.update(slopes(number), STEP, LIMIT)
    before = parts(descent)
    assert not before["images"].equal(before["good_images"])
    found, step_size = REFUSED[case]
    descent.update(found, torch.tensor(step_size), LIMIT)
    after = parts(descent)
    assert after["images"].equal(before["good_images"])
    assert after["rate"].equal(before["good_rate"])
    assert after["good_images"].equal(before["good_images"])
    assert after["good_rate"].equal(before["good_rate"])
    assert after["loss"].equal(before["loss"])
    assert after["of_images"].abs().max() == after["of_rate"] == 0
    assert after["strikes"] == 1
    descent.update(slopes(5), STEP, LIMIT)  # and on from there, without the old momentum
    torch.testing.assert_close(descent.images, before["good_images"] - 3.0 * slopes(5).images)
    torch.testing.assert_close(descent.rate, before["good_rate"] - 0.01 * slopes(5).rate)


def test_images_may_move_ten_times_as_far_as_they_are_long() -> None:
    """Momentum counts as well; a loss that is in order does not help."""
    for factor, taken in ((0.999, True), (1.001, False)):
        descent = fresh()
        first = torch.full((4, 1, 2, 2), 0.5)
        descent.update(slopes(1, images=first), STEP, LIMIT)
        length = (descent.images**2).sum().sqrt()
        stride = torch.zeros(4, 1, 2, 2)
        stride[2, 0, 1, 0] = factor * 10 * length / 3.0  # the learning rate is 3
        descent.update(slopes(2, 1e-3, images=stride - 0.5 * first), STEP, LIMIT)
        assert descent.strikes == (0 if taken else 1)
        assert descent.loss == (torch.tensor(1e-3) if taken else 0.5)


def test_a_loss_at_the_limit_is_taken() -> None:
    descent = fresh()
    descent.update(slopes(1, LIMIT), STEP, LIMIT)
    assert descent.strikes == 0
    assert descent.loss == LIMIT


def test_strikes_grow_by_one_and_shrink_by_half() -> None:
    descent, seen = fresh(), []
    for ok in (1, 0, 0, 1, 0, 1, 1, 1, 1, 1):
        descent.update(slopes(1, 0.5 if ok else torch.nan), STEP, LIMIT)
        seen.append(float(descent.strikes))
    assert seen == [0, 1, 2, 1.5, 2.5, 2, 1.5, 1, 0.5, 0]


def test_check_speaks_up_at_ten_strikes() -> None:
    descent = fresh()
    descent.update(slopes(1, 0.625), STEP, LIMIT)
    for _ in range(9):
        descent.update(slopes(1, torch.nan), STEP, LIMIT)
    descent.check("iteration 20")
    descent.update(slopes(1, torch.nan), STEP, LIMIT)
    with pytest.raises(DivergedError) as caught:
        descent.check("iteration 40")
    assert str(caught.value) == (
        "iteration 40: the matching loss, last in order at 0.625, keeps exploding, the images keep leaping, or the "
        "learned step size (now 0.02) keeps falling below 0; nothing was stored. Lower lr_images, lr_rate or rate "
        "tenfold (--set), or take rate_form=softplus"
    )


def test_check_speaks_up_where_nothing_was_ever_in_order() -> None:
    """However few the strikes: what would be stored was never measured."""
    descent = fresh()
    descent.update(slopes(1, torch.nan), STEP, LIMIT)
    with pytest.raises(DivergedError, match="iteration 1: the matching loss, never in order, keeps exploding"):
        descent.check("iteration 1")
    descent.update(slopes(1), STEP, LIMIT)
    descent.check("iteration 2")


def test_every_second_explosion_is_told_in_the_end() -> None:
    descent = fresh()
    for number in range(40):
        descent.update(slopes(1, torch.nan if number % 2 == 0 else 0.5), STEP, LIMIT)
    descent.update(slopes(1, torch.nan), STEP, LIMIT)
    with pytest.raises(DivergedError):
        descent.check("iteration 41")


def test_its_state_is_all_there_is() -> None:
    one, other = fresh(), GuardedDescent(torch.zeros(4, 1, 2, 2), torch.tensor(9.0), **LR)
    for found in (slopes(1), slopes(2), slopes(3, torch.nan), slopes(4)):
        one.update(found, STEP, LIMIT)
    other.state.load_state_dict(parts(one))
    for found in (slopes(5), slopes(6, torch.nan), slopes(7)):
        one.update(found, STEP, LIMIT)
        other.update(found, STEP, LIMIT)
        assert all(value.equal(parts(other)[name]) for name, value in parts(one).items())
