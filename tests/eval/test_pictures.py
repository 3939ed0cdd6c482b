"""Pictures of boards: every mark lies where the axis says its number is, and what is written stays what it was."""

import re
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from eval.leaderboard import render
from eval.statistics import estimate, nested
from tests.eval.boards import DRAWS, RANDOM, Judge, line

SVG = "{http://www.w3.org/2000/svg}"
SOFT = RANDOM.model_copy(update={"labels": "soft", "recipe": "random-soft"})


def picture(results: Path) -> ET.Element:
    """The only picture of the records."""
    (text,) = (text for name, text in render(results).items() if name.endswith(".svg"))
    return ET.fromstring(text)


def percent_of(svg: ET.Element) -> Callable[[float], float]:
    """The percentage of a place, by the numbers that are written under the axis."""
    ticks = [
        (float(one.attrib["x"]), float(one.text or ""))
        for one in svg.findall(f"{SVG}text")
        if re.fullmatch(r"[\d.]+", one.text or "")
    ]
    assert 3 <= len(ticks) <= 9
    slope, start = np.polyfit(*zip(*ticks, strict=True), 1)
    assert max(abs(slope * x + start - value) for x, value in ticks) < 0.05
    return lambda x: float(slope * x + start)


def rows(svg: ET.Element) -> dict[str, ET.Element]:
    return {(group.find(f"{SVG}text").text or ""): group for group in svg.findall(f"{SVG}g")}  # type: ignore[union-attr]


def ends(one: ET.Element, percent: Callable[[float], float]) -> list[float]:
    """Where a line or a box begins and ends, in percent."""
    place = {name: float(value) for name, value in one.attrib.items() if name in ("x", "x1", "x2", "width")}
    first = place.get("x1", place.get("x", 0.0))
    return [percent(first), percent(place.get("x2", first + place.get("width", 0.0)))]


def interval(*scores: float) -> list[float]:
    found = estimate(nested([[score] for score in scores]))
    assert found.low is not None
    assert found.high is not None
    return [100 * found.low, 100 * found.high]


def test_marks_lie_where_the_axis_says(results: Path, judge: Judge) -> None:
    judge("random", DRAWS)
    judge("random", (0.70, 0.71, 0.72), labels="soft")
    judge("infer", (0.90, 0.92, 0.91), labels="soft", controls=(SOFT,))
    judge("mtt", (0.50, 0.60, 0.52))
    svg = picture(results)
    percent, found = percent_of(svg), rows(svg)
    assert list(found) == ["infer · digits", "random", "random · digits", "mtt · digits"]  # as in the table
    bands = [one for one in svg.findall(f"{SVG}rect") if one.attrib.get("fill-opacity") == "0.15"][1:]  # one explains
    controls = [(0.70, 0.71, 0.72), DRAWS, (0.70, 0.71, 0.72), DRAWS]
    scores = [(0.90, 0.92, 0.91), DRAWS, (0.70, 0.71, 0.72), (0.50, 0.60, 0.52)]
    for group, band, own, control in zip(found.values(), bands, scores, controls, strict=True):
        disc, reach = group.find(f"{SVG}circle"), group.find(f"{SVG}line")
        assert disc is not None
        assert reach is not None
        assert percent(float(disc.attrib["cx"])) == pytest.approx(100 * sum(own) / 3, abs=0.05)
        assert ends(reach, percent) == pytest.approx(interval(*own), abs=0.05)
        assert ends(band, percent) == pytest.approx(interval(*control), abs=0.05)
        assert band.attrib["fill"] == disc.attrib["stroke"]
        middle, top = float(disc.attrib["cy"]), float(band.attrib["y"])
        assert top < middle < top + float(band.attrib["height"])
        assert middle == float(reach.attrib["y1"]) == float(reach.attrib["y2"])
    fills = [group.find(f"{SVG}circle").attrib["fill"] for group in found.values()]  # type: ignore[union-attr]
    assert fills[1] == fills[2] == "#ffffff"  # controls are rings
    assert len({*fills}) == 3  # entries are discs in the colour of their labels


def test_bytes_and_title_are_the_tables(results: Path, judge: Judge) -> None:
    judge("random", DRAWS)
    judge("infer", (0.90, 0.92, 0.94), bytes={"images": 123_000, "container": 456}, cell={"teacher_bytes": 2_000_000})
    svg = picture(results)
    words = [one.text for one in rows(svg)["infer · digits"].findall(f"{SVG}text")]
    assert words == ["infer · digits", "2.1 MB"]
    assert "| 2.1 MB (set 123.5 kB" in line(render(results)["digits.md"], "**infer**")
    title = svg.find(f"{SVG}title")
    assert title is not None
    assert title.text == "digits, 10 per class, quick-1a2b3c4d, convnet3, data ffffffff"
    assert rows(svg)["random"].find(f"{SVG}title").text == "random: 82.0 %, 77.0 to 87.0"  # type: ignore[union-attr]


def test_what_is_out_of_reach_ends_at_the_edge(results: Path, judge: Judge) -> None:
    judge("random", (0.90, 0.99, 1.0))
    svg = picture(results)
    reach = rows(svg)["random"].find(f"{SVG}line")
    assert reach is not None
    low, high = ends(reach, percent_of(svg))
    assert interval(0.90, 0.99, 1.0)[1] > 109
    assert low == pytest.approx(interval(0.90, 0.99, 1.0)[0], abs=0.05)
    assert 100 <= high < 102


@pytest.mark.parametrize("score", [0.0, 0.5, 1.0])
def test_a_single_score_has_an_axis(results: Path, judge: Judge, score: float) -> None:
    judge("full", (score,), ipc=0, images=1000)
    svg = picture(results)
    box = rows(svg)["full · digits"].find(f"{SVG}rect")
    assert box is not None
    assert percent_of(svg)(float(box.attrib["x"]) + 4) == pytest.approx(100 * score, abs=0.01)


def test_text_from_outside_stays_text(results: Path, judge: Judge) -> None:
    preset = 'a"b</text><script>x\x00\x1b&\ud7ff'
    judge("random", DRAWS)
    judge("infer", (0.90, 0.92, 0.94), preset=preset)
    svg = picture(results)
    assert 'infer · a"b</text><script>x  & ' in rows(svg)
    assert not list(svg.iter(f"{SVG}script"))


def test_long_names_are_cut(results: Path, judge: Judge) -> None:
    judge("random", DRAWS)
    judge("infer", (0.90, 0.92, 0.94), preset="p" * 200)
    assert f"infer · {'p' * 55}…" in rows(picture(results))
