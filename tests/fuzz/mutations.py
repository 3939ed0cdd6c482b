"""Hostile input: what is valid, bent by a few edits of its bytes or of its JSON, and values that nobody expects."""

import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("DDBENCH_FUZZ", "1"))  # as many times the inputs

_NUMBERS = (0, -1, 1, 2, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400)
_TEXTS = (
    "", "0", "..", "../../x", "/etc/passwd", "C:\\x", "a\nb", "\x1b[31m", "\0", "\ud800", "ü" * 300, "x" * 70_000,
    "nan", "NaN", "-0", "1e999", "true", "null", "[]", "{}", "%s%n", "$(x)", "<script>", "|", "`", "__class__",
)  # fmt: skip


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


hostile = (
    st.none() | st.booleans() | st.sampled_from(_NUMBERS) | st.sampled_from(_TEXTS)
    | st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e308, -0.0, 5e-324, 0.1])
    | st.sampled_from([[], {}, [[]], {"": {}}, [None] * 1000, _deep(200), {"tensor": "0"}, {"dict": [[{}, 1]]}])
    | st.text(max_size=8) | st.integers() | st.floats()
)  # fmt: skip
"""Any JSON value that might be in the place of another."""


def fuzzed(examples: int) -> Callable[[Any], Any]:
    """Returns settings for a test: the same inputs in every run, ``TIMES`` times as many as ``examples``."""
    return settings(
        max_examples=examples * TIMES, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip


_Edit = tuple[str, int, int, bytes]

_edits: st.SearchStrategy[list[_Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["set", "flip", "delete", "insert", "copy", "cut", "digit"]),
        st.integers(0, 1 << 20),
        st.integers(0, 64),
        st.binary(min_size=1, max_size=6),
    ),
    min_size=1,
    max_size=5,
)


@st.composite
def mangled(draw: st.DrawFn, contents: Sequence[bytes], head: int = 1 << 20) -> bytes:
    """Draws one of ``contents`` with a few edits within its first ``head`` bytes."""
    raw = bytearray(draw(st.sampled_from(contents)))
    for edit, place, length, new in draw(_edits):
        at = place % (min(len(raw), head) + 1)
        match edit:
            case "set":
                raw[at : at + len(new)] = new
            case "flip" if at < len(raw):
                raw[at] ^= 1 << (new[0] % 8)
            case "delete":
                del raw[at : at + length]
            case "insert":
                raw[at:at] = new
            case "copy":
                raw[at:at] = raw[at : at + length]
            case "cut":
                del raw[at:]
            case "digit":  # the next digit becomes another: sizes, offsets and shapes
                for index in range(at, min(at + 200, len(raw))):
                    if 48 <= raw[index] <= 57:
                        raw[index] = 48 + new[0] % 10
                        break
    return bytes(raw)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """Draws ``value`` (of JSON) with one to three changes: something in it is another, gone, new or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        if not isinstance(value, dict | list):
            return value
        node: Any = value
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 3)):
                node = node[key]
                continue
            break
        change = draw(st.sampled_from(["replace", "replace", "remove", "add", "rename"]))
        if change == "add" or not keys:
            fresh = deepcopy(draw(hostile))  # or the next change would change what others draw
            if isinstance(node, dict):
                node[draw(st.sampled_from([*_TEXTS, *map(str, keys)]))] = fresh
            else:
                node.append(fresh)
        elif change == "replace":
            node[key] = deepcopy(draw(hostile))
        elif change == "remove":
            del node[key]
        elif isinstance(node, dict):
            node[draw(st.sampled_from(_TEXTS))] = node.pop(key)
        else:
            node.insert(0, deepcopy(node[key]))
    return value


def as_json(value: Any) -> bytes:
    """Returns JSON as careless writers leave it: NaN and lone surrogates included."""
    return json.dumps(value).encode()
