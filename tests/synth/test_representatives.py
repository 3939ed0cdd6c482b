"""Representatives: as many different real images as asked for, cluster by cluster."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from dd_bench.errors import ConfigError
from dd_bench.seeding import generator
from synth.parts import representatives as module
from synth.parts.representatives import choose_representatives
from tests.references import trajectory as reference


def cloud(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=generator(seed))


def islands(*sizes: int) -> tuple[Tensor, list[int]]:
    """Returns points in groups far apart, shuffled, and the group of each."""
    draws = generator(7)
    group = torch.tensor([number for number, size in enumerate(sizes) for _ in range(size)])
    group = group[torch.randperm(len(group), generator=draws)]
    corners = torch.eye(len(sizes)) * 100
    return corners[group] + torch.rand(len(group), len(sizes), generator=draws), group.tolist()


@pytest.mark.parametrize("count", [1, 3, 10, 13, 50])
def test_as_many_different_rows_as_asked_for(count: int) -> None:
    chosen = choose_representatives(cloud(60), count, seed=1)
    assert chosen.shape == (count,)
    assert chosen.dtype == torch.int64
    assert len(set(chosen.tolist())) == count
    assert set(chosen.tolist()) <= set(range(60))


@pytest.mark.parametrize("count", [1, 7, 10, 25])
def test_all_rows_are_taken_if_there_are_no_others(count: int) -> None:
    assert sorted(choose_representatives(cloud(count), count, seed=1).tolist()) == list(range(count))


def test_seeds_decide() -> None:
    """Of ten starts the best is kept, so what the seed moves is little, and nothing where clusters are plain."""
    rows = cloud(200)
    choices = [choose_representatives(rows, 13, seed=seed).tolist() for seed in (0, 0, 1, 2, 3)]
    assert choices[0] == choices[1]
    assert len({tuple(choice) for choice in choices}) > 1
    choose_representatives(rows, 2, seed=2**63 - 1)  # the largest that derive_seed makes


def test_one_is_the_row_nearest_to_the_mean() -> None:
    for seed in range(5):
        rows = cloud(40, seed)
        distances = [((row - rows.mean(0)) ** 2).sum().item() for row in rows]
        assert choose_representatives(rows, 1, seed=9).tolist() == [distances.index(min(distances))]


@pytest.mark.parametrize(("count", "shares"), [(3, [1, 1, 1]), (10, [1] * 10), (13, [2, 2, 2, *[1] * 7]),
                                               (40, [4] * 10), (45, [5] * 5 + [4] * 5)])  # fmt: skip
def test_every_island_gives_its_share(count: int, shares: list[int]) -> None:
    """The largest first, and they give one more where shares are not even."""
    sizes = range(20, 20 - len(shares), -1)
    rows, group = islands(*sizes)
    chosen = choose_representatives(rows, count, seed=0).tolist()
    assert [group[row] for row in chosen] == [number for number, share in enumerate(shares) for _ in range(share)]
    for number, share in enumerate(shares):
        members = [row for row, mine in enumerate(group) if mine == number]
        centre = rows[members].mean(0)
        nearest = sorted(members, key=lambda row: ((rows[row] - centre) ** 2).sum().item())
        assert [row for row in chosen if group[row] == number] == nearest[:share]


def test_islands_too_small_are_made_up_for() -> None:
    rows, group = islands(9, 9, 9, 8, 8, 8, 8, 8, 2, 1)
    chosen = choose_representatives(rows, 30, seed=0).tolist()
    assert len(set(chosen)) == 30
    counts = [sum(group[row] == number for row in chosen) for number in range(10)]
    assert counts[8:] == [2, 1]
    assert sum(counts[:8]) == 27
    assert min(counts[:8]) >= 3


@pytest.mark.parametrize("count", [2, 3, 10, 13, 24, 29])
def test_choices_match_the_reference_for_given_clusters(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters of all sizes, empty ones too, around centres that are not their means."""
    rows, draws = cloud(30, 3), generator(4)
    number = min(10, count)
    labels = (torch.rand(30, generator=draws) ** 2 * number).long()
    centres = torch.randn(number, 4, generator=draws)
    asked = []

    def kmeans(clusters: int, **settings: int) -> SimpleNamespace:
        asked.append((clusters, settings))
        found = SimpleNamespace(labels_=labels.numpy(), cluster_centers_=centres.double().numpy())
        return SimpleNamespace(fit=lambda _: found)

    monkeypatch.setattr(module, "KMeans", kmeans)
    distances = [((row - centres[label]).double() ** 2).sum().item() for row, label in zip(rows, labels, strict=True)]
    chosen = choose_representatives(rows, count, seed=5)
    assert chosen.tolist() == reference.representatives(distances, labels.tolist(), count, number)
    assert asked == [(number, {"n_init": 10, "random_state": 5})]


def test_images_that_are_the_same_are_no_trouble() -> None:
    """Fewer different rows than clusters: data sets hold duplicates, and subsets of them little else."""
    rows = cloud(3).repeat(5, 1)
    for count in (3, 4, 12):
        assert len(set(choose_representatives(rows, count, seed=0).tolist())) == count


def test_scales_of_logits_are_no_trouble() -> None:
    rows, group = islands(6, 5, 4)
    for scale in (1e-6, 1e12):
        assert [group[row] for row in choose_representatives(rows * scale, 3, seed=0).tolist()] == [0, 1, 2]


def test_rejects_more_than_there_are() -> None:
    with pytest.raises(ConfigError, match="a class has 4 training examples, but 5 are asked for; lower --ipc"):
        choose_representatives(cloud(4), 5, seed=0)


def test_rows_stay_as_they_are() -> None:
    rows = cloud(20)
    before = rows.clone()
    choose_representatives(rows, 5, seed=0)
    assert rows.equal(before)
    assert np.isfinite(rows.numpy()).all()
