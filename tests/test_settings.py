"""Settings as JSON values: a later field moves no digest until it leaves its default."""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pytest

from dd_bench.sets import digest_json
from dd_bench.settings import as_settings, later
from synth.parts.inversion import InversionRecipe


@dataclass(frozen=True)
class Inner:
    size: int = 3


@dataclass(frozen=True)
class Before:
    """A configuration as it was when the first records were made."""

    lr: float = 0.1
    name: str | None = None
    inner: Inner = field(default_factory=Inner)
    several: tuple[Inner, ...] = (Inner(1), Inner(2))
    mapping: dict[str, Any] = field(default_factory=lambda: {"a": Inner(4), "b": [1, (2, None)]})


@dataclass(frozen=True)
class NewInner(Inner):
    fast: bool = later(False)


@dataclass(frozen=True)
class After:
    """The same configuration since, with a later field in every place."""

    lr: float = 0.1
    name: str | None = None
    inner: NewInner = field(default_factory=NewInner)
    several: tuple[NewInner, ...] = (NewInner(1), NewInner(2))
    mapping: dict[str, Any] = field(default_factory=lambda: {"a": NewInner(4), "b": [1, (2, None)]})
    warm: bool = later(True)
    plan: NewInner | None = later(None)
    tail: NewInner = later(NewInner(9))


def test_later_fields_at_their_defaults_leave_the_digest_as_it_was() -> None:
    assert as_settings(After()) == json.loads(json.dumps(asdict(Before())))
    assert digest_json(as_settings(After())) == digest_json(as_settings(Before())) == digest_json(asdict(Before()))


def test_what_equals_the_default_is_left_out_also_where_it_was_given() -> None:
    assert as_settings(After(warm=True, plan=None, tail=NewInner(9, fast=False))) == as_settings(After())


@pytest.mark.parametrize(
    ("change", "added"),
    [
        ({"warm": False}, {"warm": False}),
        ({"plan": NewInner()}, {"plan": {"size": 3}}),
        ({"plan": NewInner(5, fast=True)}, {"plan": {"size": 5, "fast": True}}),
        ({"tail": NewInner(8)}, {"tail": {"size": 8}}),
        ({"inner": NewInner(3, fast=True)}, {"inner": {"size": 3, "fast": True}}),
        ({"several": (NewInner(1, fast=True), NewInner(2))}, {"several": [{"size": 1, "fast": True}, {"size": 2}]}),
        ({"mapping": {"a": NewInner(4, fast=True)}}, {"mapping": {"a": {"size": 4, "fast": True}}}),
        ({"lr": 0.2}, {"lr": 0.2}),
    ],
)
def test_other_values_appear_and_move_the_digest(change: dict[str, Any], added: dict[str, Any]) -> None:
    assert as_settings(replace(After(), **change)) == as_settings(Before()) | added
    assert digest_json(as_settings(replace(After(), **change))) != digest_json(as_settings(Before()))


def test_plain_fields_stay_at_their_defaults() -> None:
    """Only what came later may be absent: the first records hold the rest."""
    assert list(as_settings(Before())) == ["lr", "name", "inner", "several", "mapping"]


@pytest.mark.parametrize("value", [1, 0.5, "text", None, True])
def test_plain_values_are_themselves(value: Any) -> None:
    assert as_settings(value) is value


def test_a_class_is_no_settings() -> None:
    assert as_settings(Before) is Before


def test_settings_are_a_copy() -> None:
    made = Before()
    as_settings(made)["mapping"]["b"].append(7)
    assert made == Before()


def test_a_default_that_could_change_is_refused() -> None:
    with pytest.raises(ValueError, match="mutable default"):

        @dataclass
        class Wrong:
            values: list[int] = later([])


def test_a_recipe_of_the_first_records_is_hashed_as_then() -> None:
    """The digest that INFER's recipe had when its records were made."""
    assert (
        digest_json(as_settings(InversionRecipe()))
        == "bef0d9fad39f1f4867d5d72a12fde0e08d548cf159be190009559cb7da851903"
    )
