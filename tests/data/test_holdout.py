from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import load
from dd_bench.data.names import choose
from dd_bench.data.specs import SPECS
from dd_bench.errors import HoldoutError, NonFiniteError


def linear(images: Tensor) -> Tensor:
    """A fixed linear classifier of 3072 pixels."""
    weight = torch.randn(3072, 10, generator=torch.Generator().manual_seed(1))
    return images.flatten(1) @ weight


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1024])
def test_score_matches_reference(batch_size: int, fake, tmp_path: Path) -> None:
    tensors = fake()
    score = TestSplit.open("cifar10", tmp_path).score("s", linear, device="cpu", batch_size=batch_size)
    logits = linear(tensors["test_images"].double().div(255).float()).double()
    labels = tensors["test_labels"]
    loss = [logits[i].logsumexp(0) - logits[i, labels[i]] for i in range(20)]
    assert score.keys() == {"top1", "nll"}
    assert score["top1"] == sum(int(logits[i].argmax() == labels[i]) for i in range(20)) / 20
    assert score["nll"] == pytest.approx(sum(map(float, loss)) / 20, rel=1e-5)


def test_student_sees_pixels_in_the_unit_interval_without_gradients(fake, tmp_path: Path) -> None:
    fake()
    weight = torch.ones((), requires_grad=True)
    sizes = []

    def predict(pixels: Tensor) -> Tensor:
        assert pixels.dtype == torch.float32
        assert pixels.device.type == "cpu"
        assert 0 <= float(pixels.min()) < 0.01
        assert 0.99 < float(pixels.max()) <= 1
        logits = linear(pixels) * weight
        assert not logits.requires_grad
        sizes.append(len(pixels))
        return logits

    TestSplit.open("cifar10", tmp_path).score("s", predict, device=torch.device("cpu"), batch_size=8)
    assert sizes == [8, 8, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type_are_scored(dtype: torch.dtype, fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    score = split.score("s", lambda x: torch.zeros(len(x), 10, dtype=dtype), device="cpu")
    assert score == {"top1": pytest.approx(0.1), "nll": pytest.approx(2.302585, abs=1e-5)}


def test_subsets_of_the_test_split(fake, tmp_path: Path) -> None:
    tensors = fake(train=4, test=5)
    assert len(TestSplit.open("cifar10", tmp_path)) == 50
    assert len(TestSplit.open("cifar10@2", tmp_path)) == 50
    split = TestSplit.open("cifar10@2/3", tmp_path)
    assert len(split) == 30
    assert split.spec == load("cifar10@2/3", tmp_path).spec
    seen: list[Tensor] = []

    def predict(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        return torch.zeros(len(pixels), 10)

    split.score("s", predict, device="cpu")
    rows = choose(tensors["test_labels"], 3, spec=SPECS["cifar10"], split="test")
    assert torch.equal(torch.cat(seen), tensors["test_images"][rows].float() / 255)


def test_rejects_a_second_look(fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    split.score("a1", linear, device="cpu")
    with pytest.raises(HoldoutError, match="test split was already read by student a1; accuracy is the last epoch's"):
        split.score("a1", linear, device="cpu")
    split.score("a2", linear, device="cpu")


def test_a_failed_look_is_a_look(fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)

    def breaks(_pixels: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        split.score("a1", breaks, device="cpu")
    with pytest.raises(HoldoutError):
        split.score("a1", linear, device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_rejects_logits_that_are_not_finite(value: float, fake, tmp_path: Path) -> None:
    fake()

    def predict(pixels: Tensor) -> Tensor:
        logits = linear(pixels)
        logits[-1, 4] = value
        return logits

    split = TestSplit.open("cifar10", tmp_path)
    with pytest.raises(NonFiniteError, match="student a1 gave 3 logits that are NaN or infinite"):
        split.score("a1", predict, device="cpu", batch_size=8)


# --- many heads on one body ------------------------------------------------------------------------------------------


def embed(images: Tensor) -> Tensor:
    """A fixed body of 16 features."""
    weight = torch.randn(3072, 16, generator=torch.Generator().manual_seed(2))
    return images.flatten(1) @ weight


def head(seed: int) -> Callable[[Tensor], Tensor]:
    weight = torch.randn(16, 10, generator=torch.Generator().manual_seed(seed))
    return lambda features: features @ weight


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1024])
def test_heads_are_scored_as_students_of_their_own(batch_size: int, fake, tmp_path: Path) -> None:
    fake()
    split, heads = TestSplit.open("cifar10", tmp_path), [head(seed) for seed in range(3)]
    found = split.score_heads("all", embed, heads, device="cpu", batch_size=batch_size)
    alone = [
        split.score(f"s{number}", lambda x, head=one: head(embed(x)), device="cpu", batch_size=batch_size)
        for number, one in enumerate(heads)
    ]
    assert found == alone
    assert len({score["nll"] for score in found}) == 3


def test_one_head_is_the_score(fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    (found,) = split.score_heads("heads", linear, [lambda logits: logits], device="cpu", batch_size=8)
    assert found == split.score("score", linear, device="cpu", batch_size=8)


def test_the_body_sees_every_image_once(fake, tmp_path: Path) -> None:
    """Without gradients; each head sees what the body made of it."""
    tensors, seen, given = fake(), list[Tensor](), list[tuple[int, Tensor]]()
    weight = torch.ones((), requires_grad=True)

    def body(pixels: Tensor) -> Tensor:
        seen.append(pixels)
        features = embed(pixels) * weight
        assert not features.requires_grad
        return features

    def noting(number: int) -> Callable[[Tensor], Tensor]:
        def scored(features: Tensor) -> Tensor:
            given.append((number, features))
            return head(number)(features)

        return scored

    split = TestSplit.open("cifar10", tmp_path)
    split.score_heads("s", body, [noting(number) for number in range(3)], device="cpu", batch_size=8)
    assert [len(pixels) for pixels in seen] == [8, 8, 4]
    assert torch.equal(torch.cat(seen), tensors["test_images"].float() / 255)
    for number in range(3):
        features = torch.cat([part for scored, part in given if scored == number])
        torch.testing.assert_close(features, embed(torch.cat(seen)), rtol=1e-4, atol=1e-4)


def test_many_heads_are_one_look(fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    split.score_heads("a1", embed, [head(0), head(1)], device="cpu")
    for again in (lambda: split.score_heads("a1", embed, [head(2)], device="cpu"),
                  lambda: split.score("a1", linear, device="cpu")):  # fmt: skip
        with pytest.raises(HoldoutError, match="test split was already read by student a1"):
            again()
    split.score("a2", linear, device="cpu")
    with pytest.raises(HoldoutError, match="already read by student a2"):
        split.score_heads("a2", embed, [head(0)], device="cpu")


def test_a_failed_look_with_heads_is_a_look(fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    with pytest.raises(ZeroDivisionError):
        split.score_heads("a1", embed, [head(0), lambda _: torch.ones(1) * (1 // 0)], device="cpu")
    with pytest.raises(HoldoutError):
        split.score_heads("a1", embed, [head(0)], device="cpu")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("bad", [0, 2])
def test_rejects_one_head_that_is_not_finite(value: float, bad: int, fake, tmp_path: Path) -> None:
    """Sound heads beside it do not hide it, nor are their scores told."""
    fake()

    def spoilt(features: Tensor) -> Tensor:
        logits = head(9)(features)
        logits[-1, 4] = value
        return logits

    heads = [head(seed) for seed in range(3)]
    heads[bad] = spoilt
    split = TestSplit.open("cifar10", tmp_path)
    with pytest.raises(NonFiniteError, match="student a1 gave 3 logits that are NaN or infinite"):
        split.score_heads("a1", embed, heads, device="cpu", batch_size=8)
    with pytest.raises(HoldoutError):
        split.score("a1", linear, device="cpu")


def test_shows_neither_pixels_nor_labels(fake, tmp_path: Path) -> None:
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    shown = [name for name in dir(split) if not name.startswith("_")]
    assert shown == ["fingerprint", "open", "score", "score_heads", "spec"]
    assert "tensor" not in repr(split)


@pytest.mark.gpu
def test_score_on_the_gpu_is_that_on_the_cpu(fake, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    fake()
    split = TestSplit.open("cifar10", tmp_path)
    there = split.score("gpu", lambda x: linear(x.cpu()).cuda(), device="cuda")
    here = split.score("cpu", linear, device="cpu")
    assert there["top1"] == here["top1"]
    assert there["nll"] == pytest.approx(here["nll"], rel=1e-5)
