"""Methods by name: the built-in ones, those of other packages, and a wall towards the test split."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

import synth
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.sets import Images
from dd_bench.store import Store
from dd_bench.targets import HardLabels
from synth.base import Task, choose_preset, override
from synth.pipeline import Order, distil

Package = Callable[..., None]

MEAN_IMAGE = """
    from dataclasses import dataclass
    from typing import ClassVar

    import torch

    from dd_bench.sets import Images
    from dd_bench.targets import HardLabels
    from synth.base import Distilled, random_control


    @dataclass(frozen=True)
    class MeanImage:
        gain: float = 1.0
        protocol: str = "quick"

        default_dataset: ClassVar[str] = "digits"
        version: ClassVar[int] = 3
        PRESETS: ClassVar[dict] = {}

        @staticmethod
        def preset_for(dataset):
            return "plain"

        def synthesize(self, task, run):
            images, labels = task.data.images.float() / 255, task.data.labels
            classes = torch.arange(task.data.spec.num_classes)
            means = torch.stack([images[labels == label].mean(0) for label in classes])
            return Distilled(Images(self.gain * means), HardLabels(classes))

        def controls(self, task):
            return (random_control(self.protocol),)


    MeanImage.PRESETS["plain"] = MeanImage()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Installs a distribution, as pip would leave it, that brings methods by entry points."""

    def install(source: str, entries: dict[str, str], module: str = "foreign_method") -> None:
        site = tmp_path / "site-packages"
        facts = site / f"{module}-1.0.dist-info"
        facts.mkdir(parents=True)
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in entries.items()]
        (facts / "entry_points.txt").write_text("\n".join(["[ddbench.synthesizers]", *lines, ""]))
        (site / f"{module}.py").write_text(dedent(source))
        monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(site)

    return install


@pytest.fixture(autouse=True)
def forget_foreign_modules() -> None:
    """A module of one test is not the module of the next."""
    for name in [name for name in sys.modules if name.startswith("foreign_")]:
        del sys.modules[name]


# --- built in --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(synth.METHODS))
def test_built_in_methods(name: str) -> None:
    method = synth.find(name)
    assert f"{method.__module__}:{method.__qualname__}" == synth.METHODS[name] == synth.methods()[name]
    assert method.version >= 1
    assert method.PRESETS
    assert method.default_dataset in ("digits", "digits-low", "digits-graph"), "which need no download"


def test_no_class_stands_under_two_names() -> None:
    assert len(set(synth.METHODS.values())) == len(synth.METHODS)


def test_rejects_unknown_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown method 'infre'; did you mean 'infer'\? Known: ast, cv-dd, herding, "
    ):
        synth.find("infre")


def test_a_fault_of_a_built_in_method_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(synth.METHODS, "infer", "synth.nowhere:Infer")
    with pytest.raises(ModuleNotFoundError, match=r"synth\.nowhere"):
        synth.find("infer")


# --- from elsewhere --------------------------------------------------------------------------------------------------


def test_a_foreign_method_works_everywhere(package: Package, task: Task, store: Store) -> None:
    assert "mean-image" not in synth.methods()
    package(MEAN_IMAGE, {"mean-image": "foreign_method:MeanImage"})
    assert synth.methods()["mean-image"] == "foreign_method:MeanImage"
    name, preset = choose_preset(synth.find("mean-image"), None, "blobs")
    order = Order("mean-image", name, override(preset, {"gain": "0.5"}))
    stored, made = distil(order, task, store)
    assert made
    assert (stored.provenance.method, stored.provenance.preset) == ("mean-image", "plain")
    assert stored.provenance.config == {"gain": 0.5, "protocol": "quick"}
    assert [control.method for control in stored.provenance.controls] == ["random"]
    found = store.find(stored.id).load()
    assert isinstance(found.payload, Images)
    assert isinstance(found.targets, HardLabels)
    for label, image in enumerate(found.payload.pixels):
        mean = task.data.images[task.data.labels == label].double().mean(0) / 255
        assert (image - 0.5 * mean).abs().max() < 1e-6
    assert distil(order, task, store)[1] is False
    assert distil(order, replace(task, seed=1), store)[1] is True


def test_foreign_modules_are_imported_when_asked_for(package: Package) -> None:
    package("raise SystemError('too early')", {"mean-image": "foreign_method:MeanImage"})
    assert "mean-image" in synth.methods()
    assert synth.find("random").__name__ == "Random"
    assert "foreign_method" not in sys.modules


@pytest.mark.parametrize("name", list(synth.METHODS))
def test_built_in_names_cannot_be_taken(package: Package, name: str) -> None:
    package(MEAN_IMAGE, {name: "foreign_method:MeanImage", "other": "foreign_method:MeanImage"})
    assert synth.methods()[name] == synth.METHODS[name]
    assert synth.find(name).__name__ != "MeanImage"
    assert synth.find("other").__name__ == "MeanImage"


@pytest.mark.parametrize(
    ("source", "place", "reason"),
    [
        ("import not_there", "foreign_method:MeanImage", "No module named 'not_there'"),
        ("class Other: ...", "foreign_method:MeanImage", "has no attribute 'MeanImage'"),
        ("class Other: ...", "foreign_method", "has no attribute ''"),
        ("", "foreign_nowhere:MeanImage", "No module named 'foreign_nowhere'"),
        ("def broken(:", "foreign_method:MeanImage", "invalid syntax"),
        ("1 / 0", "foreign_method:MeanImage", "division by zero"),
        ("raise ValueError", "foreign_method:MeanImage", "ValueError"),
        (
            "class MeanImage: ...",
            "foreign_method:MeanImage",
            "has no __dataclass_fields__, default_dataset, version, PRESETS",
        ),
        (
            MEAN_IMAGE.replace("version:", "revision:"),
            "foreign_method:MeanImage",
            "has no version; expected a dataclass",
        ),
        (
            MEAN_IMAGE.replace("default_dataset:", "dataset:"),
            "foreign_method:MeanImage",
            "has no default_dataset; expected a dataclass",
        ),
        ("MeanImage = 3", "foreign_method:MeanImage", "has no __dataclass_fields__"),
    ],
)
def test_rejects_broken_packages(package: Package, source: str, place: str, reason: str) -> None:
    package(source, {"mean-image": place})
    with pytest.raises(ConfigError) as caught:
        synth.find("mean-image")
    message = str(caught.value)
    assert message.startswith("method 'mean-image' ")
    assert place in message
    assert reason in message
    assert message.endswith("mend or remove that package")


# --- walls -----------------------------------------------------------------------------------------------------------


def python(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_cost_no_import() -> None:
    python("""
        import sys
        import synth
        assert "infer" in synth.methods()
        assert not {"torch", "synth.infer", "synth.coreset", "synth.mirage", "synth.base"} & set(sys.modules)
    """)


def test_the_test_split_is_out_of_reach() -> None:
    """Every module of synth, imported in a fresh process, together with all that it imports."""
    python("""
        import pkgutil
        import sys
        import synth
        names = [found.name for found in pkgutil.walk_packages(synth.__path__, "synth.")]
        assert {"synth.infer", "synth.coreset", "synth.mirage", "synth.pipeline"} <= set(names), names
        for name in names:
            __import__(name)
        for name in synth.METHODS:
            synth.find(name)
        reached = {name for name in sys.modules if name == "dd_bench.data.holdout" or name.split(".")[0] == "eval"}
        assert not reached, reached
    """)
