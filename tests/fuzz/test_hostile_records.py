"""Hostile records: what is read can be rendered, and what is rendered keeps to its page."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.cells import read_record
from eval.leaderboard import render
from tests.eval.boards import DRAWS, judging
from tests.fuzz.mutations import altered, as_json, fuzzed, mangled
from tests.fuzz.watching import attempt

PLACES = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "r", "width", "height"}
STYLES = {
    "viewBox", "role", "fill", "fill-opacity", "stroke", "stroke-width", "font-family", "font-size", "font-weight",
    "text-anchor",
}  # fmt: skip


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    results = tmp_path_factory.mktemp("boards") / "results"
    judging(results)("infer", [0.9, [0.91, 0.93], 0.92])
    judging(results)("random", list(DRAWS))
    judging(results)("full", [0.99])
    judging(results)("random", [0.5, 0.6, 0.7], metric="auc", dataset="graphs", recipe="random-graphs")
    return {str(path.relative_to(results)): path.read_bytes() for path in results.rglob("*.json")}


def place(results: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_bytes(content)


def check_file(name: str, text: str) -> None:
    (check_picture if name.endswith(".svg") else check_page)(name, text)


def check_picture(name: str, picture: str) -> None:
    """A picture has a plain name, is XML of shapes and text, holds no reference, and every place in it is a number."""
    assert re.fullmatch(r"pictures/[A-Za-z0-9@._+=,-]{1,210}\.svg", name), name
    for element in ElementTree.fromstring(picture).iter():
        assert element.tag.removeprefix("{http://www.w3.org/2000/svg}") in {
            "svg", "title", "g", "rect", "line", "circle", "text"
        }  # fmt: skip
        assert element.attrib.keys() <= PLACES | STYLES
        places = [value for key, value in element.attrib.items() if key in PLACES]
        assert all(-1e5 < float(value) < 1e5 for value in places), places


def check_page(name: str, page: str) -> None:
    """A page has a plain name, no control characters, tables with as many cells in each row, and no foreign HTML."""
    assert re.fullmatch(r"[A-Za-z0-9@._+=,-]{1,120}\.md", name), name
    for line in page.splitlines():
        assert line.isprintable(), line
    tags = set(re.findall(r"<\s*/?\s*([a-zA-Z!]+)", re.sub(r"```.*?```|`[^`]*`|\\<", "", page, flags=re.DOTALL)))
    assert tags <= {"details", "summary", "sup", "!"}, tags
    width = 0
    for line in page.splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert not (cells and width) or cells == width, line
        width = cells


@fuzzed(150)
@given(data=st.data())
def test_records(data: st.DataObject, originals: dict[str, bytes], tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(sorted(originals)))
    value = json.loads(originals[name])
    raw = data.draw(mangled([originals[name]]) | altered(value).map(as_json))
    (tmp_path / "one.json").write_bytes(raw)
    record = attempt(lambda: read_record(tmp_path / "one.json"), within=tmp_path)
    if record is not None:
        assert read_record(tmp_path / "one.json") == record


@fuzzed(100)
@given(data=st.data())
def test_boards(data: st.DataObject, originals: dict[str, bytes], tmp_path: Path) -> None:
    """One record of several is another; where its own names put it, or still where it was."""
    name = data.draw(st.sampled_from(sorted(originals)))
    value = json.loads(originals[name])
    part = data.draw(st.sampled_from(["set", "students", "protocol", ""]))
    if part:
        value[part] = data.draw(altered(value[part]))
    else:
        value = data.draw(altered(value))
    results = tmp_path / hashlib.sha256(as_json(value)).hexdigest()[:12] / "results"
    place(results, originals | {name: as_json(value)})
    pages: dict[str, str] | None = attempt(lambda: render(results), within=tmp_path)
    for page, text in (pages or {}).items():
        check_file(page, text)


def test_pages_of_sound_records_pass(originals: Any, tmp_path: Path) -> None:
    place(tmp_path / "results", originals)
    pages = render(tmp_path / "results")
    assert len(pages) == 5
    for page, text in pages.items():
        check_file(page, text)
