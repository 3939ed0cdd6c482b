"""Configurations: typed overrides, one form, and refusals that name the nearest setting."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch

import synth
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.graphs import GraphData
from dd_bench.data.images import ImageData
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, DDBenchError, UnknownNameError
from dd_bench.sets import digest_json
from synth.base import Synthesizer, Task, choose_preset, config_of, configure, override, random_control
from synth.coreset import Random
from synth.infer import BaseOnly, Infer
from synth.mirage import Mirage, RandomTrees
from synth.parts.inversion import InversionRecipe
from synth.parts.teachers import PLANS

PRESETS = [(method, preset) for method in synth.METHODS for preset in synth.find(method).PRESETS]


@dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Toy:
    """A method with a field of every kind."""

    inner: Inner = field(default_factory=Inner)
    count: int = 3
    share: float | None = None
    on: bool = False
    words: tuple[str, ...] = ("a",)
    weights: Mapping[str, float] = field(default_factory=lambda: {"left": 1.0})
    protocol: str = "quick"

    default_dataset: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    PRESETS: ClassVar[Mapping[str, Synthesizer]] = {}


TOY: Any = Toy  # it is configured, and never asked to synthesise


def toy(**settings: str) -> Any:
    return override(TOY(), {name.replace("__", "."): text for name, text in settings.items()})


# --- tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ipc", [0, -1])
def test_rejects_tasks_without_images(blobs: ImageData, ipc: int) -> None:
    with pytest.raises(ConfigError, match=f"ipc is {ipc}; expected at least one instance a class"):
        Task(blobs, ipc, seed=0, device=torch.device("cpu"))


def test_tasks_hold_images_or_graphs(blobs: ImageData, motifs: GraphData) -> None:
    images, graphs = (Task(data, 1, seed=0, device=torch.device("cpu")) for data in (blobs, motifs))
    assert images.images is blobs
    assert graphs.graphs is motifs
    with pytest.raises(ConfigError) as caught:
        _ = graphs.images
    assert str(caught.value) == (
        "data set motifs holds graphs, but this method distils images; for graphs there are mirage, herding and random"
    )
    with pytest.raises(ConfigError) as caught:
        _ = images.graphs
    assert str(caught.value) == (
        "data set blobs holds images, but this method distils graphs; name a graph data set, for example --dataset "
        "digits-graph (ddbench list datasets)"
    )


# --- one form --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "preset"), PRESETS)
def test_presets_survive_the_way_through_a_manifest(method: str, preset: str) -> None:
    _, chosen = choose_preset(synth.find(method), preset, "digits")
    again = configure(synth.find(method), config_of(chosen))
    assert again == chosen
    assert type(again) is synth.find(method)
    assert digest_json(config_of(again)) == digest_json(config_of(chosen))  # 1 == 1.0, but not in a digest
    assert config_of(chosen) == config_of(synth.find(method).PRESETS[preset])
    assert override(chosen, {}) == chosen


def test_config_is_json() -> None:
    config = config_of(Random(PLANS["small"]))
    digest_json(config)
    assert config["teachers"]["architectures"] == list(PLANS["small"].architectures)
    assert config["teachers"]["recipe"]["nesterov"] is True


def test_absent_fields_have_their_defaults() -> None:
    assert configure(Infer, {}) == Infer()
    assert configure(Infer, {"inversion": {"steps": 7}}).inversion == InversionRecipe(steps=7)
    assert configure(Random, {"teachers": None}) == Random()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"temprature": 4.0}, "unknown setting 'temprature'; did you mean 'temperature'?"),
        ({"inversion": {"stepz": 4}}, "unknown setting 'inversion.stepz'; did you mean 'inversion.steps'?"),
        ({"inversion": {"steps": "many"}}, "inversion.steps: Input should be a valid integer"),
        ({"offset_dtype": "int4"}, "offset_dtype: Input should be 'int8' or 'float16'"),
        ({"teachers": None}, "teachers: "),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"inversion": {"alpha": float("inf")}}, "alpha=inf"),
        ({"teachers": {"architectures": ["convnet1"]}}, "teachers.recipe: Field required"),
    ],
)
def test_rejects_configurations(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DDBenchError) as caught:
        configure(Infer, config)
    assert message in str(caught.value)


def test_rejects_numbers_that_no_digest_can_hold() -> None:
    """A field that checks nothing itself."""
    with pytest.raises(ConfigError, match=r"inner\.rate is inf; expected a finite number"):
        configure(TOY, {"inner": {"rate": float("inf")}})


def test_open_mappings_take_any_name() -> None:
    assert configure(TOY, {"weights": {"right": 2}}).weights == {"right": 2.0}


# --- overrides -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"count": "5"}, Toy(count=5)),
        ({"count": "-5"}, Toy(count=-5)),
        ({"share": "0.25"}, Toy(share=0.25)),
        ({"on": "true"}, Toy(on=True)),
        ({"on": "no"}, Toy(on=False)),
        ({"words": "x,y,z"}, Toy(words=("x", "y", "z"))),
        ({"words": "x"}, Toy(words=("x",))),
        ({"words": ""}, Toy(words=())),
        ({"inner__rate": "1e-3"}, Toy(inner=Inner(rate=0.001))),
        ({"inner__sizes": "4,5,6"}, Toy(inner=Inner(sizes=(4, 5, 6)))),
        ({"weights__left": "3"}, Toy(weights={"left": 3.0})),
        ({"count": "1", "inner__rate": "2", "on": "1"}, Toy(Inner(rate=2.0), count=1, on=True)),
        ({}, Toy()),
    ],
)
def test_override_reads_the_type_of_the_field(settings: dict[str, str], expected: Toy) -> None:
    changed = toy(**settings)
    assert changed == expected
    assert repr(changed) == repr(expected)  # 2 is not 2.0


def test_override_reaches_deep_and_spares_the_rest() -> None:
    preset = Infer.PRESETS["digits"]
    changed = override(preset, {"teachers.recipe.epochs": "3", "inversion.alpha": "0", "teachers.seed": "2"})
    recipe = replace(preset.teachers.recipe, epochs=3)
    assert changed == replace(
        preset, teachers=replace(preset.teachers, recipe=recipe, seed=2), inversion=replace(preset.inversion, alpha=0.0)
    )
    assert preset == Infer.PRESETS["digits"] != changed


def test_override_keeps_the_class() -> None:
    _, control = choose_preset(BaseOnly, "digits", "digits")
    assert type(override(control, {"temperature": "4"})) is BaseOnly


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"count": "two"},
            "count: Input should be a valid integer, unable to parse string as an integer (found 'two')",
        ),
        ({"count": "2.5"}, "count: Input should be a valid integer"),
        ({"count": ""}, "count: Input should be a valid integer"),
        ({"on": "maybe"}, "on: Input should be a valid boolean"),
        ({"inner__rate": "fast"}, "inner.rate: Input should be a valid number"),
        ({"inner__sizes": "1,x"}, "inner.sizes.1: Input should be a valid integer"),
        ({"share": "nan"}, "share is nan; expected a finite number"),
    ],
)
def test_override_rejects_values_of_the_wrong_type(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        toy(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("cuont", "; did you mean 'count'?"),
        ("inner.rates", "; did you mean 'inner.rate'?"),
        ("inner.rate.x", "; did you mean 'inner.rate'?"),
        ("inner", "; did you mean"),  # a group is no setting
        ("iner.rate", "; did you mean 'inner.rate'?"),
        ("words.0", "; did you mean 'words'?"),
        ("weights.right", ""),
        ("", "."),
        ("version", ""),
    ],
)
def test_override_rejects_unknown_settings(path: str, nearest: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        override(TOY(), {path: "1"})
    assert f"unknown setting {path!r}{nearest}" in str(caught.value)
    known = "Known: count, inner.rate, inner.sizes, on, protocol, share, weights.left, words"
    assert str(caught.value).endswith(known)


def test_override_cannot_pass_by_the_checks_of_a_recipe() -> None:
    with pytest.raises(ConfigError, match=r"steps=0.*expected steps >= 1"):
        override(Infer(), {"inversion.steps": "0"})


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(synth.METHODS))
def test_every_data_set_has_a_preset(method: str) -> None:
    found = synth.find(method)
    for dataset in (*SPECS, *GRAPH_SPECS, "digits@20", "cifar10@200", "cifar100@20/10"):
        name, chosen = choose_preset(found, None, dataset, 10)
        assert name.startswith(found.preset_for(dataset))
        assert name in found.PRESETS
        assert type(chosen) is found


def test_a_preset_can_be_named() -> None:
    name, chosen = choose_preset(Infer, "published", "digits")
    assert (name, chosen) == ("published", Infer.PRESETS["published"])


@pytest.mark.parametrize(
    ("preset", "dataset", "name"),
    [
        ("paper", "nci1", "paper-nci1"),
        ("paper-nci1", "nci1", "paper-nci1"),
        ("paper-nci1", "mutag", "paper-nci1"),
        ("paper", "mutag", "paper"),
        ("paper", "ogbg-molhiv", "paper-ogbg-molhiv"),
        ("exact", "nci1", "exact"),
        (None, "nci1", "exact"),
    ],
)
def test_a_preset_may_have_a_version_for_a_data_set(preset: str | None, dataset: str, name: str) -> None:
    for method in (Mirage, RandomTrees):
        found, chosen = choose_preset(method, preset, dataset)
        assert found == name
        assert type(chosen) is method
        assert config_of(chosen) == config_of(Mirage.PRESETS[name])


SIZED = ("small-ipc1", "small-ipc10", "small-ipc50", "plain", "plain-ipc3", "paper-digits-ipc2", "paper-ipc5",
         "odd-ipc", "odd-ipcx", "smallest-ipc4")  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "ipc", "name"),
    [
        ("small", 1, "small-ipc1"), ("small", 2, "small-ipc1"), ("small", 3, "small-ipc1"), ("small", 4, "small-ipc10"),
        ("small", 10, "small-ipc10"), ("small", 22, "small-ipc10"), ("small", 23, "small-ipc50"),
        ("small", 5000, "small-ipc50"), ("small-ipc1", 50, "small-ipc1"), ("plain", 3, "plain"),
        ("plain", None, "plain"), ("paper", 3, "paper-digits-ipc2"), ("paper-digits", 3, "paper-digits-ipc2"),
        ("paper-ipc5", 1, "paper-ipc5"), ("small-ipc50", None, "small-ipc50"), ("odd-ipc", 1, "odd-ipc"),
    ],
)  # fmt: skip
def test_a_preset_may_have_versions_for_sizes(
    preset: str, ipc: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nearest in ratio: 3 is nearer to 1 than to 10."""
    monkeypatch.setattr(TOY, "PRESETS", {known: Toy(count=number) for number, known in enumerate(SIZED)})
    found, chosen = choose_preset(TOY, preset, "digits", ipc)
    assert found == name
    assert chosen == Toy(count=SIZED.index(name))


def test_of_two_sizes_as_near_the_smaller_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for order in (("a-ipc16", "a-ipc4"), ("a-ipc4", "a-ipc16")):
        monkeypatch.setattr(TOY, "PRESETS", {name: Toy() for name in order})
        assert choose_preset(TOY, "a", "digits", 8)[0] == "a-ipc4"


@pytest.mark.parametrize(
    ("preset", "ipc"), [("small", None), ("smal", 1), ("odd", 1), ("paper-mutag", 1), ("ipc1", 1), ("small-ipc2", 2)]
)
def test_rejects_presets_of_no_size(preset: str, ipc: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A size that is not known is no reason to take any."""
    monkeypatch.setattr(TOY, "PRESETS", {known: Toy() for known in SIZED})
    with pytest.raises(UnknownNameError, match=f"unknown preset '{preset}'"):
        choose_preset(TOY, preset, "digits", ipc)


def test_rejects_unknown_presets() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown preset 'digit'; did you mean 'digits'\? Known: digits, d"):
        choose_preset(Infer, "digit", "digits")


# --- the random control ----------------------------------------------------------------------------------------------


def test_random_control() -> None:
    hard = random_control("quick")
    assert (hard.method, hard.labels) == ("random", "hard")
    assert configure(Random, hard.config) == Random(protocol="quick")
    soft = random_control("infer-static", teachers=PLANS["small"], temperature=4.0, label_dtype="float32")
    assert soft.labels == "soft"
    assert configure(Random, soft.config) == Random(PLANS["small"], "float32", 4.0, "infer-static")
    assert hard.seeds == soft.seeds
    assert len(set(hard.seeds)) >= 3
