"""What all tests share: a home of their own, small data sets that can be learnt, and interruptions on demand."""

import hashlib
import os
import random
import signal
import site
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the nets are tiny, and threads only get in their way

import torch
from safetensors.torch import save_file
from torch import Tensor

from dd_bench import codec, interruption
from dd_bench.data import graphs as graph_data
from dd_bench.data.graph_layout import pack
from dd_bench.data.graph_specs import GRAPH_SPECS, GraphSpec
from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.data.prepare import prepare
from dd_bench.data.specs import SPECS, DatasetSpec
from dd_bench.errors import InterruptedRunError
from dd_bench.graphs import GraphBatch
from dd_bench.run import Run, Stateful
from dd_bench.seeding import generator
from dd_bench.sets import SyntheticSet
from tests.data.graph_files import Toy
from tests.references.trees import batch_of, toys_of

BLOBS = DatasetSpec(
    name="blobs",
    image_shape=(1, 8, 8),
    num_classes=3,
    mean=(0.25,),
    std=(0.22,),
    mirror=False,
    class_names=("wide", "tall", "square"),
)
_SHAPES = ((2, 5), (5, 2), (3, 3))  # rows and columns of the blob of each class
MOTIFS = GraphSpec("motifs", 3, (3, 2), (2,), ("star", "path", "ring"))
REAL_DATA = os.environ.get("DDBENCH_DATA")
_RAW = {
    "mutag": "MUTAG",
    "nci1": "NCI1",
    "imdb-binary": "IMDB-BINARY",
    "dd": "DD",
    "ogbg-molbace": "ogbg_molbace",
    "ogbg-molbbbp": "ogbg_molbbbp",
}  # what CI promises

When = Callable[[str, int], bool]  # whether a signal arrives in this step of this stage
Interrupt = Callable[..., AbstractContextManager[None]]


def at(stage: str, step: int) -> When:
    """Returns the moment of one step, counted from 0, of one stage."""
    return lambda label, now: (label, now) == (stage, step)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes sets, teachers, locks or data where people keep theirs."""
    folder = tmp_path / "ddbench"
    monkeypatch.setenv("DDBENCH_HOME", str(folder))
    monkeypatch.setenv("PYTHONUSERBASE", site.getuserbase())  # where packages may lie, whatever the home
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder that holds what is embedded, prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    for base in ("digits", "digits-low", "digits-high"):
        prepare(base, folder)
    return folder


def tensors_file(synthetic: SyntheticSet) -> bytes:
    """Returns what a set's tensors file holds."""
    with tempfile.TemporaryDirectory() as folder:
        codec.write(Path(folder) / "tensors", synthetic)
        return (Path(folder) / "tensors").read_bytes()


def draw_blobs(per_class: int, seed: int) -> tuple[Tensor, Tensor]:
    """Returns shuffled images (N, 1, 8, 8) uint8 and their labels: a bright bar or square somewhere in noise."""
    draws = generator(seed)
    labels = torch.arange(len(_SHAPES)).repeat(per_class)
    labels = labels[torch.randperm(len(labels), generator=draws)]
    images = torch.rand(len(labels), 1, 8, 8, generator=draws) * 0.4
    for image, label in zip(images, labels.tolist(), strict=True):
        rows, columns = _SHAPES[label]
        top = int(torch.randint(0, 9 - rows, (), generator=draws))
        left = int(torch.randint(0, 9 - columns, (), generator=draws))
        image[:, top : top + rows, left : left + columns] += 0.5
    return (images * 255).byte(), labels


@pytest.fixture(scope="session")
def blobs() -> ImageData:
    """The training split of a generated data set: 3 classes of 40 images, 1 x 8 x 8, learnable in a few epochs."""
    return make_blobs()


def make_blobs() -> ImageData:
    """Returns what ``blobs`` is."""
    images, labels = draw_blobs(40, seed=0)
    return ImageData(BLOBS, images, labels, hashlib.sha256(images.numpy().tobytes()).hexdigest())


@pytest.fixture
def blobs_dir(blobs: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that holds ``blobs`` as a prepared data set, which is known by its name for one test."""
    monkeypatch.setitem(SPECS, BLOBS.name, BLOBS)
    write_blobs(blobs, tmp_path / "data")
    return tmp_path / "data"


def write_blobs(blobs: ImageData, folder: Path) -> None:
    """Leaves ``blobs`` in ``folder``, with 10 test images a class."""
    test_images, test_labels = draw_blobs(10, seed=1)
    (folder / BLOBS.name).mkdir(parents=True)
    tensors = {"train_images": blobs.images, "train_labels": blobs.labels,
               "test_images": test_images, "test_labels": test_labels}  # fmt: skip
    save_file(tensors, folder / BLOBS.name / "data.safetensors")


def draw_motifs(per_class: int, seed: int) -> tuple[GraphBatch, Tensor]:
    """Returns graphs and shuffled classes: stars, paths and rings of 4 to 6 nodes with a few odd labels.

    Every third has a node without neighbours.
    """
    draws = random.Random(seed)
    labels = [label for label in range(3) for _ in range(per_class)]
    draws.shuffle(labels)
    made = []
    for number, label in enumerate(labels):
        size = draws.randint(4, 6)
        links = {
            0: [(0, leaf) for leaf in range(1, size)],
            1: [(node, node + 1) for node in range(size - 1)],
            2: [(node, (node + 1) % size) for node in range(size)],
        }[label]
        nodes = [(draws.choices((0, 1, 2), (12, 1, 1))[0], int(node == 0)) for node in range(size)]
        edges = {link: (int(draws.random() < 0.1),) for link in links}
        made.append(Toy(nodes + [(2, 1)] * (number % 3 == 0), edges, label))
    return batch_of(made), torch.tensor(labels)


@pytest.fixture(scope="session")
def motifs() -> GraphData:
    """A generated graph data set: 3 classes of 20 training and 6 validation graphs, which share some of their trees."""
    return GraphData(MOTIFS, *draw_motifs(20, 0), *draw_motifs(6, 1), fingerprint="cd" * 32)


@pytest.fixture
def motifs_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that holds ``motifs`` as a prepared data set, which is known by its name for one test."""
    monkeypatch.setitem(GRAPH_SPECS, MOTIFS.name, MOTIFS)
    write_motifs(tmp_path / "data")
    return tmp_path / "data"


def write_motifs(folder: Path) -> None:
    """Leaves a generated graph data set in ``folder``: 20 training, 6 validation and 8 test graphs a class."""
    (folder / MOTIFS.name).mkdir(parents=True)
    toys, split = [], []
    for number, (graphs, labels) in enumerate((draw_motifs(20, 0), draw_motifs(6, 1), draw_motifs(8, 2))):
        toys += toys_of(graphs, labels)
        split += [number] * len(labels)
    classes = torch.tensor([toy.label for toy in toys])
    tensors = pack(batch_of(toys), classes, torch.tensor(split), "motifs")
    save_file(tensors, folder / MOTIFS.name / "data.safetensors")


@pytest.fixture(scope="session")
def real_graphs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], GraphData]:
    """Loads a real graph data set, once. Without its files the test is skipped; where CI promises them, it fails."""
    folder, known = tmp_path_factory.mktemp("graphs"), dict[str, GraphData]()

    def load(name: str) -> GraphData:
        places = (f"{_RAW[name]}/raw", f"{name}/data.safetensors")
        if not (REAL_DATA and any((Path(REAL_DATA) / place).exists() for place in places)):
            if REAL_DATA and os.environ.get("CI"):
                pytest.fail(f"DDBENCH_DATA={REAL_DATA} holds neither {' nor '.join(places)}")
            pytest.skip(f"DDBENCH_DATA holds no {name}")
        if name not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("DDBENCH_DATA", REAL_DATA)
                known[name] = graph_data.load(name, folder)
        return known[name]

    return load


@contextmanager
def stopped(when: When, *, must: bool = True) -> Iterator[None]:
    """Sends the block a SIGTERM in the first step for which ``when(stage, step)`` holds.

    It must stop there, unless ``must`` is false: then it may also come to its end. Afterwards all is as if a new
    process had started.
    """
    steps = Run.steps

    def watched(self: Run, label: str, total: int, state: Stateful) -> Iterator[int]:
        for step in steps(self, label, total, state):
            if interruption.requested() is None and when(label, step):
                signal.raise_signal(signal.SIGTERM)
            yield step

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "steps", watched)
        patch.setattr(interruption, "_requested", None)
        interruption.install()
        try:
            yield
        except InterruptedRunError:
            pass
        else:
            assert not must, "the block was not interrupted"
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


@pytest.fixture
def interrupted() -> Interrupt:
    """``with interrupted(when):`` is ``stopped``."""
    return stopped
