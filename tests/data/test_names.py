import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from dd_bench.data.names import DatasetName, choose, parse_name
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.files import safe_name


def digest(rows: Tensor) -> str:
    return hashlib.sha256(",".join(map(str, rows.tolist())).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("text", "name", "canonical", "slug"),
    [
        ("digits", DatasetName("digits"), "digits", "digits"),
        ("cifar10@200", DatasetName("cifar10", 200), "cifar10@200", "cifar10@200"),
        ("cifar100@020/5", DatasetName("cifar100", 20, 5), "cifar100@20/5", "cifar100@20+5"),
    ],
)
def test_names_have_one_spelling(text: str, name: DatasetName, canonical: str, slug: str) -> None:
    assert parse_name(text) == name
    assert str(name) == canonical
    assert safe_name(name.slug) == slug


counts = st.integers(1, 10**18 - 1)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(sorted(SPECS)), st.none() | st.tuples(counts, st.none() | counts))
def test_names_survive_a_round_trip(base: str, per_class: tuple[int, int | None] | None) -> None:
    name = DatasetName(base, *(per_class or ()))
    assert parse_name(str(name)) == name
    assert safe_name(name.slug) == name.slug


@pytest.mark.parametrize("text", ["cifar1", "CIFAR10@20", "", "@20", "cifar10 ", "cifar10/20", "../cifar10"])
def test_rejects_unknown_names(text: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown data set .* Known: aids, cifar10, cifar100, dd, digits, "):
        parse_name(text)


@pytest.mark.parametrize(
    "counts",
    ["", "0", "x", "-1", "1.5", "20@3", "/5", "20/", "20/0", "20/5/1", "20\n", " 20", "1_000", "²", "٣", "9" * 5000],
)
def test_rejects_malformed_counts(counts: str) -> None:
    with pytest.raises(ConfigError, match="expected images a class, each at least 1: 'cifar10@20'"):
        parse_name(f"cifar10@{counts}")


def oracle(labels: list[int], per_class: int, base: str, split: str) -> list[int]:
    chosen: list[int] = []
    for k in set(labels):
        members = [i for i, label in enumerate(labels) if label == k]
        members.sort(key=lambda i: hashlib.sha256(f"{base}/{split}/{i}".encode()).hexdigest())
        chosen += members[:per_class]
    return sorted(chosen)


def generated_labels() -> Tensor:
    return torch.tensor([(i * i + i // 7) % 10 for i in range(2000)])


def test_choice_matches_reference() -> None:
    labels = generated_labels()
    for n in (1, 3, 50):
        rows = choose(labels, n, spec=SPECS["cifar10"], split="train")
        assert rows.dtype == torch.int64
        assert rows.tolist() == oracle(labels.tolist(), n, "cifar10", "train")
        assert torch.bincount(labels[rows]).tolist() == [n] * 10


def test_choice_stays_what_it_was() -> None:
    """A change here is a change of every subset: it needs a new kind of name, not a new constant."""
    labels = generated_labels()
    assert digest(choose(labels, 20, spec=SPECS["cifar10"], split="train")) == "452ef757016bb6e9"
    assert digest(choose(labels, 20, spec=SPECS["cifar10"], split="test")) == "2b24dda9870b0ccb"
    assert digest(choose(labels, 20, spec=SPECS["digits"], split="train")) == "cbb90656c0121077"


def test_smaller_subsets_lie_within_larger_ones() -> None:
    labels = generated_labels()
    rows = [set(choose(labels, n, spec=SPECS["cifar10"], split="train").tolist()) for n in (1, 20, 50)]
    assert rows[0] < rows[1] < rows[2]


def test_rejects_more_images_than_there_are() -> None:
    labels = torch.arange(10).repeat(4)[:-3]  # classes 7, 8 and 9 have three images, the others four
    choose(labels, 3, spec=SPECS["cifar10"], split="train")
    with pytest.raises(ConfigError, match=r"^4 train images a class .* cifar10, but class 7 \(horse\) has 3;"):
        choose(labels, 4, spec=SPECS["cifar10"], split="train")
    with pytest.raises(ConfigError, match="99999 test images"):
        choose(labels, 99999, spec=SPECS["cifar10"], split="test")
    with pytest.raises(ConfigError, match=r"class 2 \(bird\) has 0"):
        choose(torch.tensor([0, 1]), 1, spec=SPECS["cifar10"], split="train")


def test_choice_of_real_cifar10_stays_what_it_was(real) -> None:
    with safe_open(real("cifar10") / "cifar10" / "data.safetensors", framework="pt") as file:
        train, test = file.get_tensor("train_labels"), file.get_tensor("test_labels")
    assert digest(choose(train, 20, spec=SPECS["cifar10"], split="train")) == "ce372c2e7ddb4310"
    assert digest(choose(train, 200, spec=SPECS["cifar10"], split="train")) == "e6cdc56ce04889b7"
    assert digest(choose(test, 20, spec=SPECS["cifar10"], split="test")) == "7804fbef64455d77"
