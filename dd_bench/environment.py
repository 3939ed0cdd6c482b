"""Where a computation runs: the device, the versions, the memory; every record says so."""

import ctypes
import os
import platform
import resource
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch

from dd_bench import __version__
from dd_bench.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """Returns the device ``name`` (``auto``: CUDA if there is one, else the CPU).

    Raises:
        ConfigError: for a name torch does not know or a device that is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from error
    # torch keeps an index in one byte, so it takes cuda:256 for cuda:0; and any cpu:N is the CPU
    if device.type not in ("cpu", "cuda") or str(device) != name or (device.type == "cpu" and device.index):
        raise ConfigError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device {name!r} is not here: torch sees {count} CUDA devices; use --device cpu")
    return device


def describe_device(device: torch.device) -> str:
    """Returns the device's name for records: the model of the GPU, or of the CPU as far as the system tells it.

    It also says whether deterministic algorithms are asked for, since seconds differ with them.
    """
    how = ", deterministic" if torch.are_deterministic_algorithms_enabled() else ""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device) + how
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"cpu ({model or platform.processor() or platform.machine()}){how}"


def library_versions() -> dict[str, str]:
    """Returns the versions that can move a number."""
    libraries = ("torch", "torchvision", "torch-geometric", "kornia", "numpy", "scikit-learn")
    found = {name: _installed(name) for name in libraries}
    return {"ddbench": __version__, "python": platform.python_version()} | found


@cache  # each reads a file, for every record
def _installed(library: str) -> str:
    return version(library)


def compute_deterministically() -> None:
    """Has torch take, for all that follows, only algorithms that give the same bytes each time on the same device.

    Sums on a GPU have no fixed order otherwise, and cuDNN takes what is fastest at the moment. What has no such
    algorithm raises a RuntimeError. To be called before CUDA is used. On a CPU everything is deterministic for a given
    number of threads anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS raises
    torch.use_deterministic_algorithms(True)
    # nothing here reads memory before it is written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Has this process keep the memory that tensors free, for the next ones; nothing to do where there is no glibc.

    glibc hands blocks of 128 kB and more back to the system at once, and small networks on a CPU then spend a fifth of
    their time on getting fresh pages. No number changes.
    """
    if platform.libc_ver()[0] == "glibc":
        libc, trim_threshold, mmap_threshold = ctypes.CDLL(None), -1, -3  # as in malloc.h
        libc.mallopt(trim_threshold, 2**30)
        libc.mallopt(mmap_threshold, 2**25)  # the largest it takes


def peak_memory_bytes(device: torch.device) -> int:
    """Returns the most memory held so far: by torch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def holds(device: torch.device, size: int) -> bool:
    """Returns whether ``size`` bytes take at most half of what is free on a device; the rest is for what uses them."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return 2 * size <= free


def convolution_layout(device: torch.device) -> torch.memory_format:
    """Returns how small batches of float32 images lie in memory on their way through convolutions.

    On a CPU channels last takes a quarter to a third less time; elsewhere it stays with torch's default.
    """
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format
