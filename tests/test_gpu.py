"""Every method on a GPU with deterministic algorithms: twice, once stopped in every stage, the same bytes."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from dd_bench.environment import compute_deterministically
from tests.conftest import make_blobs, write_blobs, write_motifs
from tests.faults.scenes import SCENES, left_by, make_known, play, play_in_pieces


@pytest.mark.gpu
def test_every_method_gives_the_same_bytes(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    straight, in_pieces = play_twice(tmp_path, "cuda")
    for name, (tensors, students) in straight.items():
        assert tensors, f"{name} made nothing: {students}"
        assert students, f"{name} was judged by nobody"
    assert in_pieces == straight


def play_twice(folder: Path, device: str) -> list[dict[str, tuple[list[str], list[Any]]]]:
    """Returns for every scene what two processes leave that know nothing of each other."""
    write_blobs(make_blobs(), folder / "data")
    write_motifs(folder / "data")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        started = [pool.submit(play_all, folder / side, folder / "data", device) for side in ("straight", "in pieces")]
        return [one.result() for one in started]


def play_all(folder: Path, data: Path, device: str) -> dict[str, tuple[list[str], list[Any]]]:
    """Returns what every scene leaves; of one that fails nothing but the error."""
    compute_deterministically()
    make_known()
    found = {}
    for name, scene in SCENES.items():
        os.environ["DDBENCH_HOME"] = str(folder / name / "home")
        performance = play if folder.name == "straight" else play_in_pieces
        try:
            performance(scene, folder / name, data, torch.device(device))
        except Exception as error:  # one scene does not hide the others
            found[name] = [], [f"{type(error).__name__}: {error}"]
        else:
            found[name] = left_by(folder / name)
    return found
