"""Draws of real images: the right number of each class, all different, all equally likely."""

import pytest
import torch
from scipy import stats

from dd_bench.errors import ConfigError
from dd_bench.seeding import generator
from synth.parts.sampling import sample_images, sample_per_class

LABELS = torch.tensor([2, 0, 1, 0, 2, 2, 1, 0, 1, 1, 0, 2, 0, 1, 2])  # five of each of three classes


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("seed", [0, 7])
def test_shapes(count: int, seed: int) -> None:
    picked = sample_per_class(LABELS, count, 3, seed)
    assert picked.shape == (count, 3)
    assert LABELS[picked].tolist() == [[0, 1, 2]] * count  # a row is one image of every class, in order
    assert picked.unique().numel() == 3 * count


def test_fewer_are_the_beginning_of_more() -> None:
    most = sample_per_class(LABELS, 5, 3, seed=3)
    for count in range(1, 5):
        assert sample_per_class(LABELS, count, 3, seed=3).equal(most[:count])


def test_seeds_decide() -> None:
    assert sample_per_class(LABELS, 5, 3, seed=1).equal(sample_per_class(LABELS, 5, 3, seed=1))
    assert not sample_per_class(LABELS, 5, 3, seed=1).equal(sample_per_class(LABELS, 5, 3, seed=2))


def test_draws_nothing_from_the_global_generator() -> None:
    state = torch.random.get_rng_state()
    sample_per_class(LABELS, 2, 3, seed=0)
    assert torch.random.get_rng_state().equal(state)


def test_images_are_equally_likely() -> None:
    """First and second place of each class, places together, and classes together, over 3,000 fixed seeds."""
    draws = torch.stack([sample_per_class(LABELS, 2, 3, seed) for seed in range(3000)])  # (seeds, 2, 3)
    rank = torch.stack([(label == LABELS).cumsum(0) - 1 for label in range(3)])  # (3, N), place among its class
    place = rank[torch.arange(3), draws]  # (seeds, 2, 3), each in 0 … 4
    for row in range(2):
        for label in range(3):
            assert stats.chisquare(torch.bincount(place[:, row, label], minlength=5)).pvalue > 1e-3
    pairs = torch.bincount(place[:, 0, 0] * 5 + place[:, 1, 0], minlength=25).view(5, 5)
    assert pairs.diagonal().sum() == 0
    assert stats.chisquare(pairs[~torch.eye(5, dtype=torch.bool)]).pvalue > 1e-3
    classes = torch.bincount(place[:, 0, 0] * 5 + place[:, 0, 2], minlength=25)
    assert stats.chisquare(classes).pvalue > 1e-3


def test_unequal_classes_are_drawn_from_themselves() -> None:
    labels = torch.cat([torch.zeros(3), torch.ones(500)]).long()
    picked = sample_per_class(labels[torch.randperm(503, generator=generator(0))], 3, 2, seed=0)
    assert picked[:, 0].unique().numel() == 3


@pytest.mark.parametrize(("labels", "count", "found"), [(LABELS, 6, "class 0 has 5"), (LABELS % 2, 6, "class 1 has 5")])
def test_rejects_more_than_there_are(labels: torch.Tensor, count: int, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"{found} training examples, but {count} are asked for; lower --ipc"):
        sample_per_class(labels, count, int(labels.max()) + 1, seed=0)


def test_rejects_a_class_without_images() -> None:
    with pytest.raises(ConfigError, match="class 3 has 0 training examples"):
        sample_per_class(LABELS, 1, 4, seed=0)


# --- without regard to class -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 7, 15])
def test_shapes_of_images(count: int) -> None:
    picked = sample_images(15, count, seed=0)
    assert (picked.shape, picked.dtype) == ((count,), torch.int64)
    assert picked.unique().numel() == count
    assert set(picked.tolist()) <= set(range(15))


def test_fewer_images_are_the_beginning_of_more() -> None:
    most = sample_images(15, 15, seed=3)
    for count in range(15):
        assert sample_images(15, count, seed=3).equal(most[:count])


def test_seeds_decide_the_images() -> None:
    draws = torch.random.get_rng_state()
    with_seeds = [sample_images(50, 20, seed).tolist() for seed in (1, 1, 2)]
    assert with_seeds[0] == with_seeds[1] != with_seeds[2]
    assert torch.random.get_rng_state().equal(draws)


def test_all_images_are_equally_likely() -> None:
    """In the first place, in the second, and together, over 3,000 fixed seeds."""
    draws = torch.stack([sample_images(6, 2, seed) for seed in range(3000)])
    for place in range(2):
        assert stats.chisquare(torch.bincount(draws[:, place], minlength=6)).pvalue > 1e-3
    pairs = torch.bincount(draws[:, 0] * 6 + draws[:, 1], minlength=36).view(6, 6)
    assert pairs.diagonal().sum() == 0
    assert stats.chisquare(pairs[~torch.eye(6, dtype=torch.bool)]).pvalue > 1e-3


def test_images_of_a_draw_are_not_those_of_a_draw_by_class() -> None:
    """Both are drawn of one seed, by generators of their own."""
    one_class = torch.zeros(50, dtype=torch.int64)
    assert not sample_images(50, 20, seed=0).equal(sample_per_class(one_class, 20, 1, seed=0).flatten())


def test_rejects_more_images_than_there_are() -> None:
    with pytest.raises(ConfigError, match=r"^16 images are asked for of 15 training images; lower --ipc$"):
        sample_images(15, 16, seed=0)
