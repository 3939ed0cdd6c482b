"""Hostile images from elsewhere: bent files are refused in one line, and what is taken in can be read again."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from dd_bench.data.images import ImageData, load
from dd_bench.store import Store
from synth.adoption import adopt
from tests.fuzz.mutations import fuzzed, mangled
from tests.fuzz.watching import attempt

TENSORS = {"images": torch.linspace(0, 1, 6 * 64).view(6, 1, 8, 8), "labels": torch.arange(6) % 3}
ORIGINALS = [
    save(TENSORS), save({**TENSORS, "images": (TENSORS["images"] * 255).byte()}),
    save({**TENSORS, "images": TENSORS["images"].half(), "labels": TENSORS["labels"].byte()}),
]  # fmt: skip


@pytest.fixture
def data(blobs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
    return load("blobs", blobs_dir)


@fuzzed(150)
@given(raw=mangled(ORIGINALS), name=st.text(max_size=8) | st.just("theirs"), seed=st.integers(0, 3))
def test_images_from_elsewhere(raw: bytes, name: str, seed: int, data: ImageData, tmp_path: Path) -> None:
    path, store = tmp_path / "some.safetensors", Store(tmp_path / "sets")
    path.write_bytes(raw)
    stored = attempt(lambda: adopt(path, data, store, name=name, protocol="hard", ipc=2, seed=seed), within=tmp_path)
    if stored is not None:
        assert store.find(stored.id).load().payload.decode().isfinite().all()  # type: ignore[union-attr]
