"""Data sets that another package adds through an entry point: in every command, like those of ours."""

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dd_bench.data import external
from dd_bench.data.catalogue import other_specs
from dd_bench.data.external import Dataset
from dd_bench.data.images import load
from dd_bench.data.prepare import locate
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, DataError, UnknownNameError

SPEC = DatasetSpec("shades", (1, 8, 8), 2, (0.5,), (0.25,), mirror=False, class_names=("dark", "bright"))


def make(_folder: Path) -> dict[str, Tensor]:
    levels = torch.tensor([0, 255], dtype=torch.uint8).repeat(6)
    images, labels = levels[:, None, None, None].repeat(1, 1, 8, 8), torch.tensor([0, 1]).repeat(6)
    return {"train_images": images, "train_labels": labels, "test_images": images[:4], "test_labels": labels[:4]}


SHADES = Dataset(SPEC, make)
MISNAMED = Dataset(SPEC, make)
NO_DATASET = SPEC
WRONG = Dataset(
    DatasetSpec("wrong", (3, 8, 8), 2, (0.5,) * 3, (0.25,) * 3, mirror=False, class_names=("dark", "bright")), make
)


@pytest.fixture(autouse=True)
def _their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [
        EntryPoint(name, f"tests.data.test_external:{attribute}", external.ENTRY_POINTS)
        for name, attribute in [("shades", "SHADES"), ("other", "MISNAMED"), ("bare", "NO_DATASET"),
                                ("absent", "NOTHING"), ("wrong", "WRONG"), ("digits", "SHADES")]
    ]  # fmt: skip
    monkeypatch.setattr(external, "entry_points", lambda *, group: points if group == "ddbench.datasets" else [])
    external._points.cache_clear()
    yield
    external._points.cache_clear()


def test_it_is_prepared_once_and_cut_down(tmp_path: Path) -> None:
    found = load("shades", tmp_path)
    assert found.spec == SPEC
    assert len(found.images) == 12
    assert locate("shades", tmp_path) == tmp_path / "shades" / "data.safetensors"
    subset = load("shades@2/1", tmp_path)
    assert subset.spec.name == "shades@2/1"
    assert subset.labels.tolist().count(0) == 2
    assert subset.fingerprint != found.fingerprint


def test_names_of_ours_cannot_be_taken(tmp_path: Path) -> None:
    assert load("digits", tmp_path).spec.num_classes == 10


def test_rejects_what_is_no_data_set(tmp_path: Path) -> None:
    for name, told in (
        ("other", "its spec is named 'shades'"), ("bare", "it is DatasetSpec"), ("absent", "has no attribute 'NOTHING'")
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=rf"data set '{name}' should be tests.data.test_external:.*{told}; mend"):
            load(name, tmp_path)
    with pytest.raises(DataError, match=r"wrong/data.safetensors"):  # not what its spec says
        load("wrong", tmp_path)
    with pytest.raises(UnknownNameError, match="shades"):
        load("shade", tmp_path)


def test_a_broken_one_hides_no_other(tmp_path: Path) -> None:
    found = other_specs(tmp_path)
    assert found["shades"] == SPEC
    assert isinstance(found["absent"], ConfigError)
    assert "digits" not in found
