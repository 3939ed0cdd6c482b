import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dd_bench.data.specs import SPECS

_REAL_DATA = os.environ.get("DDBENCH_DATA")

Fake = Callable[..., dict[str, Tensor]]


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data of the machine it runs on, unless it asks for `real`."""
    monkeypatch.delenv("DDBENCH_DATA", raising=False)


@pytest.fixture
def real() -> Callable[[str], Path]:
    """The folder of real data, if it has the named data set; otherwise the test is skipped."""

    def folder(base: str) -> Path:
        if not _REAL_DATA or not (Path(_REAL_DATA) / base / "data.safetensors").is_file():
            pytest.skip(f"DDBENCH_DATA holds no prepared {base}")
        return Path(_REAL_DATA)

    return folder


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """Writes a small prepared file under `tmp_path` (or `folder`) and returns its tensors; None leaves one out."""

    def write(
        base: str = "cifar10",
        *,
        folder: Path = tmp_path,
        train: int = 3,
        test: int = 2,
        seed: int = 0,
        **changed: Tensor | None,
    ) -> dict[str, Tensor]:
        spec = SPECS[base]
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, Tensor | None] = {}
        for split, per_class in (("train", train), ("test", test)):
            labels = torch.arange(spec.num_classes).repeat(per_class)
            labels = labels[torch.randperm(len(labels), generator=generator)]
            shape = (len(labels), *spec.image_shape)
            tensors[f"{split}_images"] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
            tensors[f"{split}_labels"] = labels
        kept = {key: tensor for key, tensor in (tensors | changed).items() if tensor is not None}
        path = folder / base / "data.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(kept, path)
        return kept

    return write
