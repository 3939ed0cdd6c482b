"""Where a computation runs: devices that are here and no others, and the facts that records carry."""

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from dd_bench import __version__
from dd_bench.environment import (
    choose_device,
    compute_deterministically,
    describe_device,
    library_versions,
    peak_memory_bytes,
)
from dd_bench.errors import ConfigError

HERE = torch.cuda.device_count()


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    """Makes torch see so many CUDA devices."""
    count: int = request.param
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    return count


@pytest.mark.parametrize(("cards", "name"), [(0, "cpu"), (1, "cuda"), (8, "cuda")], indirect=["cards"])
def test_auto_takes_a_gpu_if_there_is_one(cards: int, name: str) -> None:
    assert choose_device("auto") == torch.device(name)


@pytest.mark.parametrize(
    ("cards", "name"), [(0, "cpu"), (2, "cpu"), (1, "cuda"), (1, "cuda:0"), (2, "cuda:1")], indirect=["cards"]
)
def test_devices_that_are_here(cards: int, name: str) -> None:
    assert choose_device(name) == torch.device(name)


@pytest.mark.parametrize(
    ("cards", "name"),
    [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:2"), (2, "cuda:99")],
    indirect=["cards"],
)
def test_rejects_devices_that_are_not_here(cards: int, name: str) -> None:
    with pytest.raises(
        ConfigError, match=f"device '{name}' is not here: torch sees {cards} CUDA devices; use --device cpu"
    ):
        choose_device(name)


@pytest.mark.parametrize("name", ["", "gpu", "CUDA", "Auto", "cpu ", "0", "cuda:", "cuda:-1", "cuda:a", "cuda:0:1"])
def test_rejects_unknown_devices(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown device '{name}'; expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.parametrize("cards", [1], indirect=True)
@pytest.mark.parametrize("name", ["meta", "mps", "xpu", "cpu:1", "cuda:256", "cuda:65536"])
def test_rejects_unsupported_devices(cards: int, name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' is not supported; expected auto, cpu, cuda or cuda:N"):
        choose_device(name)


def test_the_cpu_is_described_by_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "processor : 0\nmodel name\t: A CPU @ 2.00GHz\nprocessor : 1\nmodel name\t: another\n"
    monkeypatch.setattr(Path, "read_text", lambda _: told)
    assert describe_device(torch.device("cpu")) == "cpu (A CPU @ 2.00GHz)"


def test_a_system_that_tells_no_model_tells_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Path) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert describe_device(torch.device("cpu")) == f"cpu ({platform.machine()})"


@pytest.mark.gpu
def test_a_gpu_is_described_by_its_model() -> None:
    if not HERE:
        pytest.skip("needs a CUDA device")
    device = choose_device("auto")
    assert describe_device(device) == torch.cuda.get_device_name(0)
    block = torch.empty(2**20, dtype=torch.uint8, device=device)
    assert peak_memory_bytes(device) >= block.numel()


def test_deterministic_algorithms_are_asked_for_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    plain = describe_device(torch.device("cpu"))
    try:
        compute_deterministically()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert describe_device(torch.device("cpu")) == f"{plain}, deterministic"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.empty(2).put_(torch.tensor([1]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]


def test_versions_are_those_that_run() -> None:
    versions = library_versions()
    assert versions["ddbench"] == __version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert versions["torch"] == version("torch")
    assert {"torchvision", "kornia", "numpy", "scikit-learn"} < versions.keys()


def test_peak_memory_is_in_bytes_and_never_falls() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    assert 20_000_000 < before < 1 << 40  # a process with torch in it
    block = torch.ones(16 * 2**20)  # 64 MB
    during = peak_memory_bytes(torch.device("cpu"))
    del block
    assert before <= during <= peak_memory_bytes(torch.device("cpu"))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back at once")
def test_freed_memory_stays_when_it_should() -> None:
    code = """
import sys, torch
from pathlib import Path
from dd_bench.environment import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1])
before = pages()
tensors = [torch.ones(5_000_000) for _ in range(4)]  # 20 MB each
del tensors
print((pages() - before) * 4096)
"""
    left = {
        how: int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, check=True, text=True).stdout)
        for how in ("keep", "return")
    }
    assert left["keep"] > 70e6
    assert left["return"] < 30e6
