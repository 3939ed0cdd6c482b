"""Hostile data: prepared files, raw graph files, archives, and images."""

import gzip
import io
import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from dd_bench.data import graph_raw
from dd_bench.data.decoding import read_image
from dd_bench.data.graph_reading import read_graphs
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import load as load_graphs
from dd_bench.data.images import load
from dd_bench.data.prepare import prepare
from dd_bench.data.reading import read
from dd_bench.data.specs import SPECS
from dd_bench.errors import DataError
from tests.conftest import BLOBS, MOTIFS, make_blobs, write_blobs, write_motifs
from tests.data.graph_files import mutag, toys, write_ogb, write_tu
from tests.fuzz.mutations import altered, fuzzed, mangled
from tests.fuzz.watching import attempt


@pytest.fixture(autouse=True)
def _own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("DDBENCH_DATA", raising=False)
    monkeypatch.setitem(SPECS, BLOBS.name, BLOBS)
    monkeypatch.setitem(GRAPH_SPECS, MOTIFS.name, MOTIFS)


@st.composite
def prepared(draw: st.DrawFn, content: bytes) -> bytes:
    """Draws a safetensors file whose header is another, perhaps still of a right length."""
    size = int.from_bytes(content[:8], "little")
    if draw(st.booleans()):
        return draw(mangled([content], head=8 + size))
    header = draw(altered(json.loads(content[8 : 8 + size])))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


@fuzzed(200)
@given(data=st.data())
def test_prepared_images(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "data" / "blobs" / "data.safetensors"
    if not (tmp_path / "original").exists():
        write_blobs(make_blobs(), tmp_path / "data")
        (tmp_path / "original").write_bytes(path.read_bytes())
    path.write_bytes(data.draw(prepared((tmp_path / "original").read_bytes())))
    name = data.draw(st.sampled_from(["blobs", "blobs@2", "blobs@40/10", "blobs@41"]))
    found = attempt(lambda: load(name, tmp_path / "data"), within=tmp_path)
    if found is not None:
        assert found.images.shape[1:] == (1, 8, 8)
        assert set(found.labels.tolist()) <= {0, 1, 2}
    attempt(lambda: read(name, "test", tmp_path / "data"), within=tmp_path)


@fuzzed(100)
@given(data=st.data())
def test_prepared_image_folders(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "data" / "imagefolder+photos" / "data.safetensors"
    if not (tmp_path / "original").exists():
        for number in range(6):
            place = tmp_path / "photos" / "ab"[number % 2]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), number, np.uint8)).save(place / f"{number}.png")
        load(f"imagefolder:{tmp_path / 'photos'}", tmp_path / "data")
        (tmp_path / "original").write_bytes(path.read_bytes())
    path.write_bytes(data.draw(prepared((tmp_path / "original").read_bytes())))
    found = attempt(lambda: load("imagefolder:photos", tmp_path / "data"), within=tmp_path)
    if found is not None:
        assert found.images.shape[1:] == found.spec.image_shape
        assert all(name.isprintable() for name in found.spec.class_names)
        assert all(np.isfinite([*found.spec.mean, *found.spec.std]))


@fuzzed(150)
@given(data=st.data())
def test_prepared_graphs(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "data" / "motifs" / "data.safetensors"
    if not (tmp_path / "original").exists():
        write_motifs(tmp_path / "data")
        (tmp_path / "original").write_bytes(path.read_bytes())
    original = (tmp_path / "original").read_bytes()
    path.write_bytes(data.draw(prepared(original) | mangled([original])))
    found = attempt(lambda: load_graphs("motifs", tmp_path / "data"), within=tmp_path)
    if found is not None:
        assert found.graphs.nodes.min() >= 0
    attempt(lambda: read_graphs("motifs", ["test"], tmp_path / "data"), within=tmp_path)


@fuzzed(120)
@given(data=st.data())
def test_raw_tables_of_tu(data: st.DataObject, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MUTAG" / "raw"
    if not raw.exists():
        write_tu(tmp_path / "data", "MUTAG", mutag())
        for path in raw.iterdir():
            path.rename(path.with_suffix(".original"))
    for path in sorted(raw.glob("*.original")):
        path.with_suffix(".txt").write_bytes(path.read_bytes())
    victim = data.draw(st.sampled_from(sorted(raw.glob("*.txt"))))
    victim.write_bytes(data.draw(mangled([victim.with_suffix(".original").read_bytes()])))
    attempt(lambda: prepare("mutag", tmp_path / "data"), within=tmp_path)
    (tmp_path / "data" / "mutag" / "data.safetensors").unlink(missing_ok=True)


@fuzzed(80)
@given(data=st.data())
def test_raw_tables_of_ogb(data: st.DataObject, tmp_path: Path) -> None:
    spec = GRAPH_SPECS["ogbg-molbace"]
    base = tmp_path / "data" / "ogbg_molbace"
    if not base.exists():
        graphs = toys(30, spec.node_columns, spec.edge_columns, (0, 1))
        write_ogb(tmp_path / "data", "bace", graphs, [range(20), range(20, 25), range(25, 30)])
        for path in base.rglob("*.gz"):
            path.rename(path.with_suffix(".original"))
    for path in sorted(base.rglob("*.original")):
        path.with_suffix(".gz").write_bytes(path.read_bytes())
    victim = data.draw(st.sampled_from(sorted(base.rglob("*.gz"))))
    packed = victim.with_suffix(".original").read_bytes()
    victim.write_bytes(data.draw(mangled([packed]) | mangled([gzip.decompress(packed)]).map(gzip.compress)))
    attempt(lambda: prepare("ogbg-molbace", tmp_path / "data"), within=tmp_path)
    (tmp_path / "data" / "ogbg-molbace" / "data.safetensors").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder, packed = tmp_path_factory.mktemp("tu"), io.BytesIO()
    raw = write_tu(folder, "MUTAG", mutag())
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(raw.iterdir()):
            file.writestr(zipfile.ZipInfo(f"MUTAG/{path.name}"), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return packed.getvalue()


@fuzzed(120)
@given(data=st.data())
def test_archives_of_tu(data: st.DataObject, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data" / "mutag" / "MUTAG.zip"
    path.parent.mkdir(parents=True, exist_ok=True)
    tail = mangled([archive[-500:]]).map(lambda end: archive[:-500] + end)  # where the list of members is
    path.write_bytes(data.draw(mangled([archive]) | tail))
    attempt(lambda: prepare("mutag", tmp_path / "data"), within=tmp_path)
    (path.parent / "data.safetensors").unlink(missing_ok=True)


@pytest.mark.parametrize("packing", ["zip", "gz"])
def test_tables_that_swell(packing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of archive that becomes a gigabyte of zeros is refused before it has."""
    monkeypatch.setattr(graph_raw, "_LARGEST_TABLE", 1_000_000)
    if packing == "zip":
        path = tmp_path / "data" / "mutag" / "MUTAG.zip"
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("MUTAG/MUTAG_graph_indicator.txt", b"0\n" * 1_000_000)
        name = "mutag"
    else:
        path = tmp_path / "data" / "ogbg_molbace" / "raw" / "num-node-list.csv.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(b"0\n" * 1_000_000))
        name = "ogbg-molbace"
    with pytest.raises(DataError, match=r"cannot be read \(over 1,000,000 bytes\)"):
        prepare(name, tmp_path / "data")


def _image(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8))
    (picture.quantize(8) if kind == "GIF" else picture).save(file, kind, **options)
    return file.getvalue()


IMAGES = [_image("PNG"), _image("JPEG"), _image("GIF"), _image("BMP"), _image("WEBP"), _image("TIFF"),
          _image("TIFF", compression="tiff_lzw"), _image("PPM"), _image("JPEG", progressive=True)]  # fmt: skip


@fuzzed(300)
@given(raw=mangled(IMAGES), grey=st.booleans())
def test_images(raw: bytes, grey: bool, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(raw)
    found = attempt(lambda: read_image(tmp_path / "image.png", 8, grey), within=tmp_path)
    assert found is None or found.shape == (1 if grey else 3, 8, 8)


def test_originals_are_sound() -> None:
    assert all(read_image(Path("x"), 8, False, io.BytesIO(raw)).dtype == np.uint8 for raw in IMAGES)
    assert save({"x": torch.zeros(1)})[8:9] == b"{"
