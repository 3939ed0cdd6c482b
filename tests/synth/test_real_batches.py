"""Real batches: different images, normalised, with what the target network says of the very pixels that are shown."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.data.images import ImageData
from dd_bench.data.specs import DatasetSpec
from dd_bench.learn.augment import crop_flip
from dd_bench.seeding import generator
from synth.parts.real_batches import Augment, RealBatches
from synth.parts.ridge import predict, with_bias
from synth.parts.target_model import TargetModel

SPEC = DatasetSpec("toy", (2, 8, 8), 3, (0.5, 0.4), (0.2, 0.3), True, ("a", "b", "c"))
STILL = replace(SPEC, mirror=False)
COUNT, WIDTH = 20, 5
EVERY: tuple[Augment, ...] = ("none", "flip", "crop-flip")


class Linear(nn.Module):
    """A fixed network of pixels that knows left from right, in place of a target network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(128, WIDTH, generator=generator(4)), requires_grad=False)

    def embed(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1) @ self.weight


def data(spec: DatasetSpec = SPEC) -> ImageData:
    images = torch.randint(0, 256, (COUNT, *spec.image_shape), dtype=torch.uint8, generator=generator(0))
    return ImageData(spec, images, torch.arange(COUNT) % 3, "ab" * 32)


def target_of(real: ImageData) -> TargetModel:
    model: Any = Linear()
    pixels = real.images.float() / 255
    raw, turned = model.embed(pixels), model.embed(pixels.flip(-1))
    center, scale = raw.mean(0), 3.0
    flipped = (turned - center) / scale if real.spec.mirror else None
    return TargetModel(model, None, (raw - center) / scale, flipped, center, scale)  # type: ignore[arg-type]


def batches(augment: Augment, batch: int = 12, seed: int = 0, spec: DatasetSpec = SPEC) -> RealBatches:
    return RealBatches(data(spec), target_of(data(spec)), augment, batch, seed)


def restored(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (SPEC.mean, SPEC.std))
    return images * std + mean


def say(pixels: Tensor) -> Tensor:
    """What the target network says of pixels, in the units of the tables."""
    target = target_of(data())
    return torch.stack([(pixel.flatten() @ target.model.weight - target.center) / 3 for pixel in pixels])  # type: ignore[operator]


def rows_of(pixels: Tensor) -> list[tuple[int, bool]]:
    """Returns which image each row is, and whether it is mirrored."""
    known = {}
    for row, image in enumerate(data().images):
        known[image.numpy().tobytes()] = (row, False)
        known[image.flip(-1).contiguous().numpy().tobytes()] = (row, True)
    return [known[(image * 255).round().byte().contiguous().numpy().tobytes()] for image in pixels]


# --- images and their targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", EVERY)
def test_shapes(augment: Augment) -> None:
    images, targets = batches(augment).draw()
    assert (images.shape, images.dtype) == ((12, 2, 8, 8), torch.float32)
    assert (targets.shape, targets.dtype) == ((12, WIDTH), torch.float32)
    assert not images.requires_grad
    assert not targets.requires_grad


@pytest.mark.parametrize("augment", EVERY)
@pytest.mark.parametrize("spec", [SPEC, STILL], ids=["mirror", "no mirror"])
def test_targets_are_of_the_very_pixels_that_are_shown(augment: Augment, spec: DatasetSpec) -> None:
    """Another augmentation of the same images would not do: where there is one, targets of another copy are wrong."""
    source = batches(augment, spec=spec)
    for _ in range(3):
        images, targets = source.draw()
        torch.testing.assert_close(targets, say(restored(images)), rtol=1e-4, atol=1e-4)
        wrong = say(restored(images).flip(-1)) - targets
        assert float(wrong.square().mean()) > 0.05


def test_targets_of_an_independent_copy_would_raise_the_loss() -> None:
    """Of a ridge regression that has seen crops enough to know the (linear) target network."""
    source, plain = batches("crop-flip", batch=COUNT), batches("none", batch=COUNT)
    support, values = (torch.cat(parts) for parts in zip(*(source.draw() for _ in range(20)), strict=True))
    plain.draws.set_state(source.draws.get_state())
    images, targets = source.draw()
    same, _ = plain.draw()  # the same images in the same order, not augmented
    copy = crop_flip(restored(same), generator(8), pad=1, mirror=True)
    predicted, _ = predict(
        with_bias(support.flatten(1)), values.double(), with_bias(images.flatten(1)), relative=1e-9
    )  # fmt: skip
    own, independent, unmoved = (
        float((predicted - part.double()).square().mean()) for part in (targets, say(copy), say(restored(same)))
    )
    assert own < 1e-3
    assert min(independent, unmoved) > 0.1


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_images_of_a_batch_are_different_and_all_are_drawn(augment: Augment) -> None:
    source, seen, counts = batches(augment), set(), torch.zeros(COUNT)
    for _ in range(100):
        rows = [row for row, _ in rows_of(restored(source.draw()[0]))]
        assert len(set(rows)) == 12
        seen.add(tuple(rows))
        counts[rows] += 1
    assert len(seen) == 100
    assert (counts - 60).abs().max() < 25  # five deviations of 4.9


@pytest.mark.parametrize(("batch", "size"), [(1, 1), (12, 12), (20, 20), (999, 20)])
def test_batches_are_no_larger_than_the_data(batch: int, size: int) -> None:
    images, targets = batches("none", batch).draw()
    assert len(images) == len(targets) == size


# --- augmentation ----------------------------------------------------------------------------------------------------


def turned_of(augment: Augment, spec: DatasetSpec) -> list[bool]:
    source = batches(augment, batch=COUNT, spec=spec)
    return [turned for _ in range(20) for _, turned in rows_of(restored(source.draw()[0]))]


def test_half_are_mirrored() -> None:
    assert 140 < sum(turned_of("flip", SPEC)) < 260  # of 400; six deviations of 10
    assert not any(turned_of("none", SPEC))
    assert not any(turned_of("flip", STILL))


@pytest.mark.parametrize("spec", [SPEC, STILL], ids=["mirror", "no mirror"])
def test_crops_reach_one_pixel_over_the_edge(spec: DatasetSpec) -> None:
    """An eighth of the height, of black, on every side; and mirrored only where allowed."""
    padded = torch.nn.functional.pad(data(spec).images.float() / 255, (1, 1, 1, 1))
    crops = {}
    for row, image in enumerate(padded):
        for top in range(3):
            for left in range(3):
                crop = image[:, top : top + 8, left : left + 8]
                for turned in (False, True):
                    key = ((crop.flip(-1) if turned else crop) * 255).round().byte().contiguous().numpy().tobytes()
                    crops[key] = (row, top, left, turned)
    source = batches("crop-flip", batch=COUNT, spec=spec)
    found = [
        crops[(image * 255).round().byte().contiguous().numpy().tobytes()]
        for _ in range(10)
        for image in restored(source.draw()[0])
    ]
    assert len({place[1:3] for place in found}) == 9
    assert 60 < sum(place[3] for place in found) < 140 if spec.mirror else not any(place[3] for place in found)


# --- draws -----------------------------------------------------------------------------------------------------------


def drawn(source: RealBatches, times: int = 3) -> list[Tensor]:
    return [part for _ in range(times) for part in source.draw()]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(a.equal(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("augment", EVERY)
def test_seeds_decide(augment: Augment) -> None:
    before = torch.random.get_rng_state()
    first = drawn(batches(augment))
    assert equal(first, drawn(batches(augment)))
    assert not equal(first, drawn(batches(augment, seed=1)))
    assert torch.random.get_rng_state().equal(before)


@pytest.mark.parametrize("augment", EVERY)
def test_the_generator_is_all_its_state(augment: Augment) -> None:
    straight, resumed = batches(augment), batches(augment, seed=9)
    drawn(straight)
    resumed.draws.set_state(straight.draws.get_state())
    assert equal(drawn(straight), drawn(resumed))


@pytest.mark.parametrize("augment", ["none", "flip"])
def test_tables_spare_the_target_network(augment: Augment, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()
    embed: Callable[..., Tensor] = Linear.embed

    def watched(self: Linear, pixels: Tensor) -> Tensor:
        asked.append(len(pixels))
        return embed(self, pixels)

    sources = batches(augment), batches("crop-flip")
    monkeypatch.setattr(Linear, "embed", watched)
    sources[0].draw()
    assert asked == []
    sources[1].draw()
    assert asked == [12]


def test_real_data_are_left_as_they_are() -> None:
    real = data()
    source = RealBatches(real, target_of(real), "crop-flip", 12, 0)
    for _ in range(3):
        images, targets = source.draw()
        images.zero_()
        targets.zero_()
    assert real.images.equal(data().images)
