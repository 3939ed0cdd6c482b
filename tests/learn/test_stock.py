"""Images that batches are drawn from: the same batches wherever they lie, and no copy that need not be."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench import environment
from dd_bench.learn import stock as module
from dd_bench.learn.losses import cross_entropy
from dd_bench.learn.stock import Stock
from dd_bench.learn.training import TrainingRecipe, fit
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import generator, seeded
from tests.accelerator import DEVICE, accelerator
from tests.conftest import BLOBS, Interrupt, at, draw_blobs

CPU = torch.device("cpu")
RECIPE = TrainingRecipe(epochs=3, batch=7, lr=0.05)
ROWS = torch.arange(1, 40, 2)


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device that holds nothing; collects what it was asked to hold."""
    asked: list[int] = []

    def holds(_: torch.device, size: int) -> bool:
        asked.append(size)
        return False

    monkeypatch.setattr(module, "holds", holds)
    return asked


def learn(folder: Path, device: torch.device, images: Tensor, values: Tensor, rows: Tensor | None) -> list[bytes]:
    with seeded(1):
        network = build("convnet1-none-x0.0625", BLOBS).to(device)
    fit(network, images, values, rows=rows, recipe=RECIPE, objective=cross_entropy, spec=BLOBS, seed=2, run=Run(folder),
        label="fit")  # fmt: skip
    return [value.cpu().numpy().tobytes() for value in network.state_dict().values()]


@pytest.fixture
def lessons() -> tuple[Tensor, Tensor]:
    images, labels = draw_blobs(20, seed=0)
    return images, F.one_hot(labels, 3).float()


@pytest.mark.parametrize("rows", [None, torch.tensor([5, 3, 8, 0])])
@pytest.mark.parametrize("where", ["on the CPU", "held", "not held"])
def test_batches(where: str, rows: Tensor | None, request: pytest.FixtureRequest) -> None:
    images = torch.rand(9, 3, 4, 4, generator=generator(0))
    if where == "not held":
        request.getfixturevalue("too_large")
    expected = images if rows is None else images[rows]
    with accelerator() as waits:
        device = CPU if where == "on the CPU" else DEVICE
        stock = Stock(images, rows, device)
        assert len(stock) == len(expected)
        for _ in range(2):
            order = torch.randperm(len(stock), generator=generator(1)).to(device)
            waits.places.clear()
            stock.reorder()
            for start, end in ((0, 2), (2, 3), (3, 4)):
                batch = stock.take(order, start, end)
                assert batch.device.type == device.type
                noted = dict(waits.places)
                assert batch.cpu().equal(expected[order.cpu()[start:end]])
                waits.places.clear()
                waits.places.update(noted)
            assert sum(waits.places.values()) == (where == "not held"), "the order is read once"


def test_a_training_does_not_know_where_its_images_lie(
    tmp_path: Path, lessons: tuple[Tensor, Tensor], too_large: list[int], monkeypatch: pytest.MonkeyPatch,
    interrupted: Interrupt,
) -> None:  # fmt: skip
    """Interrupted within an epoch or not."""
    images, values = lessons
    with accelerator():
        distant = learn(tmp_path / "distant", DEVICE, images, values[ROWS], ROWS)
        assert too_large == [len(ROWS) * 64]
        with interrupted(at("fit", 4)):
            learn(tmp_path / "in pieces", DEVICE, images, values[ROWS], ROWS)
        assert learn(tmp_path / "in pieces", DEVICE, images, values[ROWS], ROWS) == distant
        monkeypatch.undo()
        assert learn(tmp_path / "resident", DEVICE, images, values[ROWS], ROWS) == distant
        assert learn(tmp_path / "copied", DEVICE, images[ROWS], values[ROWS], None) == distant


def test_rows_are_those_images(tmp_path: Path, lessons: tuple[Tensor, Tensor]) -> None:
    images, values = lessons
    expected = learn(tmp_path / "copied", CPU, images[ROWS], values[ROWS], None)
    assert learn(tmp_path / "rows", CPU, images, values[ROWS], ROWS) == expected
    assert learn(tmp_path / "all", CPU, images, values, None) != expected


def test_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1000, 5000))
    assert environment.holds(torch.device("cuda"), 500)
    assert not environment.holds(torch.device("cuda"), 501)
    assert environment.holds(CPU, 2**60)
