"""The types that synthesizers and the evaluator share: what they hold, and what they refuse to hold."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dd_bench.errors import InvalidSetError
from dd_bench.graph_sets import Graphs
from dd_bench.seeding import generator
from dd_bench.sets import Compensated, Images, Provenance, SyntheticSet, digest_json, recipe_id
from dd_bench.targets import Features, HardLabels, SoftLabels
from tests.conftest import draw_motifs

NAN, INF = float("nan"), float("inf")


def compensated() -> Compensated:
    draw = generator(0)
    return Compensated(
        base=torch.randint(0, 256, (4, 2, 5, 6), dtype=torch.uint8, generator=draw),
        offsets=torch.randint(-127, 128, (3, 2, 5, 6), generator=draw).to(torch.int8),
        scales=torch.rand(3, generator=draw) / 100,
        pairs=torch.tensor([[0, -1], [0, 0], [3, 2], [1, 1], [2, -1], [3, 0]], dtype=torch.int32),
    )


def provenance(**changes: object) -> Provenance:
    facts: dict[str, object] = {
        "method": "random", "preset": "default", "config": {}, "dataset": "digits", "fingerprint": "f", "ipc": 1,
        "seed": 0, "recipe": "0123456789ab",
    }  # fmt: skip
    return Provenance(**{**facts, **changes})  # type: ignore[arg-type]


def soft(**changes: object) -> SoftLabels:
    facts: dict[str, object] = {"logits": torch.zeros(3, 4), "classes": torch.tensor([0, 3, 1]), "temperature": 2.0}
    return SoftLabels(**{**facts, **changes})  # type: ignore[arg-type]


def test_shapes() -> None:
    images = Images(torch.rand(6, 3, 8, 7))
    assert (len(images), images.decode().shape) == (6, (6, 3, 8, 7))
    assert (len(compensated()), compensated().decode().shape) == (6, (6, 2, 5, 6))
    made = SyntheticSet(images, HardLabels(torch.arange(6)), provenance(), "hard")
    assert len(made) == 6


def test_features_stand_beside_images_of_any_kind() -> None:
    for payload in (Images(torch.rand(6, 3, 8, 7)), compensated()):
        made = SyntheticSet(payload, Features(torch.zeros(6, 4), torch.zeros(4), 1.0), provenance(), "hard")
        assert len(made) == 6


def test_pixels_are_in_pixel_space() -> None:
    assert Images(torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)).decode().flatten().tolist() == [
        0.0,
        pytest.approx(0.2),
        1.0,
    ]
    beyond = torch.tensor([-0.5, 1.5]).reshape(2, 1, 1, 1)
    assert torch.equal(Images(beyond).decode(), beyond)  # [0, 1] is nominal: learned pixels are not clipped


def test_decode_matches_reference() -> None:
    made = compensated()
    for image, (i, j) in zip(made.decode(), made.pairs.tolist(), strict=True):
        for place in [(c, y, x) for c in range(2) for y in range(5) for x in range(6)]:
            value = made.base[i][place].item() / 255
            if j >= 0:
                value += made.offsets[j][place].item() * made.scales[j].item()
            assert image[place].item() == pytest.approx(min(1, max(0, value)), abs=1e-6)


def test_decode_with_float16_offsets() -> None:
    pairs = torch.tensor([[0, -1], [0, 0]], dtype=torch.int32)
    made = Compensated(compensated().base, torch.full((1, 2, 5, 6), 0.25).half(), torch.ones(1), pairs)
    plain, shifted = made.decode()
    torch.testing.assert_close(shifted, (plain + 0.25).clamp(0, 1))


def test_int8_offsets_are_off_by_half_a_step_at_most() -> None:
    true = torch.randn(3, 2, 5, 6, generator=generator(1)) * 0.1
    scales = true.abs().amax((1, 2, 3)) / 127
    steps = (true / scales[:, None, None, None]).round().to(torch.int8)
    made = replace(compensated(), offsets=steps, scales=scales)
    for shown, (i, j) in zip(made.decode(), made.pairs.tolist(), strict=True):
        exact = made.base[i] / 255 + (true[j] if j >= 0 else 0)
        bound = scales[j].item() / 2 if j >= 0 else 0.0
        assert (shown - exact.clamp(0, 1)).abs().max().item() <= bound + 1e-6


@pytest.mark.parametrize(
    ("pixels", "found"),
    [
        (torch.zeros(3, 8, 8), r"shape \(3, 8, 8\); expected four axes"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.float64), "float64 .* expected uint8 or float32"),
        (torch.zeros(0, 1, 8, 8), "expected .* not empty"),
        (torch.zeros(2, 1, 0, 8), "expected .* not empty"),
        (torch.tensor([0.0, NAN, INF, 1.0]).reshape(1, 1, 2, 2), "2 values that are NaN or infinite"),
    ],
)
def test_rejects_images(pixels: Tensor, found: str) -> None:
    with pytest.raises(InvalidSetError, match=found):
        Images(pixels)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"base": torch.zeros(4, 2, 5, 6)}, "base is float32"),
        ({"base": torch.zeros(4, 60, dtype=torch.uint8)}, "base is uint8 of shape"),
        ({"offsets": torch.zeros(3, 2, 5, 6)}, "offsets is float32"),
        ({"offsets": torch.zeros(3, 2, 6, 5, dtype=torch.int8)}, r"expected int8 or float16 of shape \(M, 2, 5, 6\)"),
        ({"offsets": torch.full((3, 2, 5, 6), INF).half()}, "offsets holds 180"),
        ({"scales": torch.zeros(2)}, r"expected float32 of shape \(3,\)"),
        ({"scales": torch.zeros(3).double()}, "scales is float64"),
        ({"scales": torch.tensor([1, NAN, 1])}, "scales holds 1"),
        ({"pairs": torch.zeros(2, 2)}, "pairs is float32"),
        ({"pairs": torch.zeros(2, 3, dtype=torch.int32)}, r"expected int32 of shape \(N, 2\)"),
        ({"pairs": torch.zeros(0, 2, dtype=torch.int32)}, "not empty"),
        ({"pairs": torch.tensor([[-1, 0]], dtype=torch.int32)}, "pairs reach from"),
        ({"pairs": torch.tensor([[4, 0]], dtype=torch.int32)}, "4 base images and 3 offsets"),
        ({"pairs": torch.tensor([[0, -2]], dtype=torch.int32)}, "pairs reach from"),
        ({"pairs": torch.tensor([[0, 3]], dtype=torch.int32)}, "pairs reach from"),
    ],
)
def test_rejects_compensated(changes: dict[str, Tensor], found: str) -> None:
    with pytest.raises(InvalidSetError, match=found):
        replace(compensated(), **changes)


@pytest.mark.parametrize(
    ("classes", "found"),
    [
        (torch.zeros(2, 1, dtype=torch.int64), r"expected int64 of shape \(N,\)"),
        (torch.zeros(2, dtype=torch.int32), "classes is int32"),
        (torch.zeros(0, dtype=torch.int64), "not empty"),
        (torch.tensor([1, -1]), "classes hold -1"),
    ],
)
def test_rejects_classes(classes: Tensor, found: str) -> None:
    with pytest.raises(InvalidSetError, match=found):
        HardLabels(classes)
    with pytest.raises(InvalidSetError, match=found):
        soft(classes=classes)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"logits": torch.zeros(3, 4).double()}, "logits is float64"),
        ({"logits": torch.zeros(12)}, r"expected float16 or float32 of shape \(N, K\)"),
        ({"logits": torch.full((3, 4), INF)}, "logits holds 12"),
        ({"logits": torch.zeros(2, 4)}, r"logits are \(2, 4\) beside 3 classes"),
        ({"logits": torch.zeros(3, 3)}, "classes up to 3"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": NAN}, "temperature is nan"),
        ({"temperature": INF}, "temperature is inf"),
    ],
)
def test_rejects_soft_labels(changes: dict[str, object], found: str) -> None:
    with pytest.raises(InvalidSetError, match=found):
        soft(**changes)


def test_rejects_another_number_of_targets() -> None:
    with pytest.raises(InvalidSetError, match="3 targets for 2 images"):
        SyntheticSet(Images(torch.rand(2, 1, 4, 4)), soft(), provenance(), "hard")


@pytest.mark.parametrize("count", [1, 5])
def test_rejects_another_number_of_features(count: int) -> None:
    features = Features(torch.zeros(count, 4), torch.zeros(4), 1.0)
    with pytest.raises(InvalidSetError, match=f"set has {count} targets for 2 images; expected one each"):
        SyntheticSet(Images(torch.rand(2, 1, 4, 4)), features, provenance(), "hard")


def test_rejects_features_of_graphs() -> None:
    graphs = Graphs.of(draw_motifs(2, 0)[0])
    features = Features(torch.zeros(len(graphs), 4), torch.zeros(4), 1.0)
    with pytest.raises(InvalidSetError, match="features are of images, but the set holds graphs; expected hard labels"):
        SyntheticSet(graphs, features, provenance(), "hard")


@pytest.mark.parametrize("rate", [0.0, -1.0, NAN, INF])
def test_rejects_learning_rates(rate: float) -> None:
    with pytest.raises(InvalidSetError, match="suggested_lr is"):
        SyntheticSet(Images(torch.rand(3, 1, 4, 4)), soft(), provenance(), "hard", suggested_lr=rate)


def test_set_id_comes_from_the_recipe_and_the_seed_alone() -> None:
    first = provenance()
    assert first.set_id == "332da7454617"  # a golden value: ids name folders that outlive this code
    assert provenance(wall_seconds=9.0, device="cuda", preset="other").set_id == first.set_id
    assert len({first.set_id, provenance(seed=1).set_id, provenance(recipe="ffff").set_id}) == 3


def test_recipe_ids_hang_on_every_ingredient() -> None:
    base = {"method": "m", "version": 1, "config": {"a": 1, "b": 2.0}, "dataset": "d", "fingerprint": "f", "ipc": 1}
    variants = [
        base, {**base, "method": "n"}, {**base, "version": 2}, {**base, "config": {"a": 1}}, {**base, "dataset": "e"},
        {**base, "fingerprint": "g"}, {**base, "ipc": 2},
    ]  # fmt: skip
    ids = [recipe_id(**variant) for variant in variants]  # type: ignore[arg-type]
    assert len(set(ids)) == len(ids)
    assert recipe_id(**{**base, "config": {"b": 2.0, "a": 1}}) == ids[0]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_json({"lr": NAN})
