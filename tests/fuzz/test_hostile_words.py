"""Hostile words: names of data sets and networks, settings, references, whole command lines."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import synth
from dd_bench.cli.main import main
from dd_bench.data.names import parse_name
from dd_bench.data.specs import SPECS
from dd_bench.files import safe_name, slug
from dd_bench.models import FAMILIES, Architecture, build
from dd_bench.store import Store
from synth.base import choose_preset, config_of, override
from tests.fuzz.mutations import fuzzed, hostile, mangled
from tests.fuzz.watching import attempt

_NAMES = ["cifar10@20/10", "digits", "imagefolder:/data/flowers:64@5/2", "nci1", "imagefolder:~/x", "tinyimagenet@1"]
_NETWORKS = ["convnet3-batch-x0.25", "resnet18-x0.125", "vit-x0.5", "pyramid2-x0.015625", "mobilenetv2", "mlp-x0.1"]
_VALUES = ["1", "0", "-1", "1e-3", "true", "none", "a,b", "", ",", "1e400", "nan", "0x10", "1_000", "١٢", "10" * 300]

words = st.text(max_size=12) | hostile.map(str)


def bent(known: list[str]) -> st.SearchStrategy[str]:
    """Draws one of the known words, bent, or any other."""
    return mangled([word.encode() for word in known]).map(lambda raw: raw.decode(errors="replace")) | words


@fuzzed(300)
@given(text=bent(_NAMES))
@example(text="imagefolder:" + "/" * 5000)
@example(text="cifar10@" + "9" * 5000)
def test_names_of_data_sets(text: str, tmp_path: Path) -> None:
    name = attempt(lambda: parse_name(text), within=tmp_path)
    if name is not None:
        assert parse_name(str(name)).base == name.base
        assert safe_name(slug(str(name))) == slug(str(name))
        assert str(name).isprintable()
    attempt(lambda: safe_name(text), within=tmp_path)
    attempt(lambda: slug(text), within=tmp_path)


@fuzzed(150)
@given(text=bent(_NETWORKS))
@example(text="mlp-x0." + "0" * 400 + "1")
@example(text="convnet99999999999999999999")
def test_names_of_networks(text: str, tmp_path: Path) -> None:
    found = attempt(lambda: Architecture.parse(text), within=tmp_path)
    if found is not None:
        assert Architecture.parse(str(found)) == found
        if found.factor <= 0.25:  # large ones are only slow
            attempt(lambda: build(text, SPECS["digits"]), within=tmp_path)


def _paths(config: Any, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return [prefix.rstrip(".")]
    return [path for name, value in config.items() for path in _paths(value, f"{prefix}{name}.")]


_METHODS = sorted(synth.METHODS)
_SETTINGS = {
    name: sorted({path for preset in synth.find(name).PRESETS.values() for path in _paths(config_of(preset))})
    for name in _METHODS
}


@fuzzed(400)
@given(data=st.data(), name=st.sampled_from(_METHODS))
def test_settings(data: st.DataObject, name: str, tmp_path: Path) -> None:
    """What is taken has an id, and is itself when it is read again."""
    method = synth.find(name)
    preset = method.PRESETS[data.draw(st.sampled_from(sorted(method.PRESETS)))]
    chosen = data.draw(
        st.dictionaries(
            st.sampled_from(_SETTINGS[name]) | bent(_SETTINGS[name]),
            st.sampled_from(_VALUES) | words | bent(_NETWORKS), min_size=1, max_size=3,
        )
    )  # fmt: skip
    made = attempt(lambda: override(preset, chosen), within=tmp_path)
    if made is not None:
        assert override(made, {}) == made
        assert config_of(made)


@fuzzed(60)
@given(data=st.data(), name=st.sampled_from(_METHODS))
def test_presets(data: st.DataObject, name: str, tmp_path: Path) -> None:
    method = synth.find(name)
    preset = data.draw(st.none() | bent(sorted(method.PRESETS)))
    dataset = data.draw(bent(_NAMES))
    ipc = data.draw(st.none() | st.sampled_from([1, 2, 10**9]))
    found = attempt(lambda: choose_preset(method, preset, dataset, ipc), within=tmp_path)
    assert found is None or found[0] in method.PRESETS


@fuzzed(60)
@given(text=words | st.sampled_from(["../..", "/", "/proc/self", "~", "*", "?" * 12, "a" * 5000]))
def test_references(text: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "sets")
    assert attempt(lambda: store.find(text), within=tmp_path) is None


_COMMANDS = [
    "show",
    "export",
    "import",
    "adopt",
    "adopt --dataset digits --name",
    "eval",
    "list sets",
    "list runs",
    "list models",
    "clean",
    "leaderboard",
]
_OPTIONS = [
    "--runs",
    "--arch",
    "--protocol",
    "--to",
    "--older-than",
    "--data-dir",
    "--device",
    "--rate",
    "-h",
    "--nonsense",
]


@fuzzed(80)
@given(
    command=st.sampled_from(_COMMANDS),
    arguments=st.lists(
        st.sampled_from(_OPTIONS) | st.sampled_from([*_NETWORKS[:1], *_VALUES, "quick"]) | words, max_size=4
    ),
)  # fmt: skip
def test_command_lines(
    command: str, arguments: list[str], digits_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Whatever is typed ends with 0 or, after one line, with 2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDBENCH_DATA", str(digits_dir))
    # as a system hands them over: no NUL, and what is no UTF-8 as halves of surrogates
    typed = [text.replace("\0", "0").encode(errors="replace") + b"\xff" * (len(text) % 5 == 4) for text in arguments]
    words_typed = [*command.split(), *(raw.decode(errors="surrogateescape") for raw in typed)]

    def run() -> int | str | None:
        try:
            main(words_typed)
        except SystemExit as end:
            return end.code
        raise AssertionError("it came back")

    code = attempt(run, within=tmp_path)
    said = capsys.readouterr().err
    assert code in (None, 0, 2), (code, said)
    assert not code or (said.startswith("ddbench: ") and said.count("\n") == 1), said


def test_families_are_bent() -> None:
    assert {Architecture.parse(name).family for name in _NETWORKS} <= set(FAMILIES)
    assert sys.getrecursionlimit() < 10_000
