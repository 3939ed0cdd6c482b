"""A section of a board as a picture: every row's mean and interval, before what its own random control reaches.

It is SVG of our own making: a plotting library writes other bytes with each of its versions, and a picture that is
committed has to be the same for the same records on any machine, as the pages are.
"""

import math
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from eval.cells import HEADLINES
from eval.markdown import size
from eval.names import heading, names_of
from eval.sections import Section, Standing

COLOURS = {"hard": "#0072b2", "soft": "#d55e00", "taped": "#009e73", "features": "#aa4499"}  # told apart by most eyes

_PLOT, _BYTES, _GAP = 420, 80, 12  # widths in pixels
_TOP, _ROW, _BOTTOM = 52, 20, 44  # heights
_LETTER = 7.4  # the mean width of a bold letter of 12 pixels in the widest of common fonts
_LONGEST = 64  # letters of a name
_CENTRED, _FLUSH = {"text-anchor": "middle"}, {"text-anchor": "end"}


def section_picture(section: Section) -> str:
    """Returns the section as an SVG document: a row a line, in the table's order, the score in percent on the axis.

    A disc is an entry, a ring a control, a square a baseline; its colour is the kind of labels. A line is the 95 %
    interval, the band behind it that of the random images (or graphs) with the same kind of labels.
    """
    names = {recipe: _shortened(name.text) for recipe, name in names_of(section).items()}
    left = 2 * _GAP + math.ceil(_LETTER * max(map(len, names.values())))
    width, end = left + _PLOT + _BYTES + _GAP, _TOP + _ROW * len(section.standings)
    axis = _Axis([_reach(one) for one in section.standings], left)
    svg = _canvas(width, end + _BOTTOM, f"{section.data.set.dataset}, {heading(section)}")
    _legend(svg, section, left)
    controls = _controls(section)
    for number, standing in enumerate(section.standings):
        if control := controls.get(standing.row.recipe):
            low, high = map(axis.at, _reach(control))
            band = {"fill": COLOURS[control.row.labels], "fill-opacity": "0.15"}
            _box(svg, low, _TOP + _ROW * number, max(high - low, 1), _ROW, **band)
    for tick in axis.ticks:
        _line(svg, axis.at(tick), _TOP, axis.at(tick), end, stroke="#dddddd")
        _text(svg, axis.at(tick), end + 16, axis.label(tick), **_CENTRED)
    _text(svg, left + _PLOT / 2, end + 34, f"{HEADLINES[section.data.headline]}, %", **_CENTRED)
    _text(svg, width - _GAP, end + 34, "bytes", **_FLUSH)
    for number, standing in enumerate(section.standings):
        row, name, middle = standing.row, names[standing.row.recipe], _TOP + _ROW * (number + 0.5)
        weight = {"font-weight": "bold"} if row.kind == "entry" else {}
        group = ET.SubElement(svg, "g")
        ET.SubElement(group, "title").text = _printable(f"{name}: {_percents(standing)}")
        _text(group, left - _GAP, middle + 4, name, **_FLUSH, **weight)
        low, high = map(axis.at, _reach(standing))
        _line(group, low, middle, high, middle, stroke=COLOURS[row.labels], **{"stroke-width": "2"})
        _mark(group, axis.at(row.estimate.mean), middle, row.kind, COLOURS[row.labels])
        _text(group, width - _GAP, middle + 4, size(row.bytes + row.teacher_bytes) if row.bytes else "–", **_FLUSH)
    ET.indent(svg, " ")
    return ET.tostring(svg, encoding="unicode") + "\n"


class _Axis:
    """Fractions to pixels, over some ranges of them and a little more, with round ticks.

    Attributes:
        ticks: fractions.
    """

    def __init__(self, ranges: Sequence[tuple[float, float]], left: float) -> None:
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        low, high = max(low, 0.0), min(high, 1.0)  # an interval of few sets may leave what a score can be
        margin = 0.04 * (high - low) or 0.005
        self._low, self._high, self._left = low - margin, high + margin, left
        raw = (self._high - self._low) / 7
        scale = 10.0 ** math.floor(math.log10(raw))
        step = scale * next(factor for factor in (1, 2, 5, 10) if factor * scale >= raw)
        self._decimals = max(0, -math.floor(math.log10(step)) - 2)
        first, last = math.ceil(self._low / step), math.floor(self._high / step)
        self.ticks = [number * step for number in range(first, last + 1)]

    def at(self, fraction: float) -> float:
        """Returns where a score lies; what is beyond an end lies on it."""
        inside = min(max(fraction, self._low), self._high)
        return self._left + _PLOT * (inside - self._low) / (self._high - self._low)

    def label(self, tick: float) -> str:
        return f"{100 * tick:.{self._decimals}f}"


def _reach(standing: Standing) -> tuple[float, float]:
    """Returns the ends of the row's interval, or twice its mean where there is none."""
    found = standing.row.estimate
    return (found.mean if found.low is None else found.low, found.mean if found.high is None else found.high)


def _controls(section: Section) -> dict[str, Standing]:
    """Returns the random images that a row is held against, by its recipe; for those that are such, themselves."""
    by_recipe = {one.row.recipe: one for one in section.standings}
    held = {
        one.row.recipe: by_recipe[one.reference.link.recipe]
        for one in section.standings
        if one.reference and one.reference.difference
    }
    return held | {one.row.recipe: one for one in held.values()}


def _percents(standing: Standing) -> str:
    low, high = _reach(standing)
    return f"{100 * standing.row.estimate.mean:.1f} %, {100 * low:.1f} to {100 * high:.1f}"


def _shortened(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"


def _printable(text: str) -> str:
    """Returns text without what XML cannot hold."""
    return "".join(character if character.isprintable() else " " for character in text)


def _canvas(width: int, height: int, title: str) -> ET.Element:
    frame = {"width": f"{width}", "height": f"{height}", "viewBox": f"0 0 {width} {height}", "role": "img"}
    font = {"font-family": "system-ui, sans-serif", "font-size": "12", "fill": "#222222"}
    svg = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **frame, **font})
    ET.SubElement(svg, "title").text = _printable(title)
    _box(svg, 0, 0, width, height, fill="#ffffff")
    _text(svg, _GAP, 18, title, **{"font-weight": "bold"})
    return svg


def _legend(parent: ET.Element, section: Section, left: float) -> None:
    """Draws what the marks and the colours mean, of those that there are."""
    kinds = [kind for kind in ("entry", "control", "baseline") if any(o.row.kind == kind for o in section.standings)]
    labels = [kind for kind in COLOURS if any(one.row.labels == kind for one in section.standings)]
    x = left
    for kind in kinds:
        _mark(parent, x + 5, 38, kind, "#666666")
        x = _words(parent, x + 14, kind)
    for kind in labels:
        _box(parent, x, 33, 10, 10, fill=COLOURS[kind])
        x = _words(parent, x + 14, f"{kind} labels" if kind != "features" else kind)
    if _controls(section):
        _box(parent, x, 33, 10, 10, **{"fill": "#666666", "fill-opacity": "0.15"})
        _words(parent, x + 14, "random, same labels")


def _words(parent: ET.Element, x: float, words: str) -> float:
    """Writes a word of the legend, and returns where the next may begin."""
    _text(parent, x, 42, words)
    return x + _LETTER * (len(words) + 1)


def _mark(parent: ET.Element, x: float, y: float, kind: str, colour: str) -> None:
    if kind == "baseline":
        _box(parent, x - 4, y - 4, 8, 8, fill="#ffffff", stroke=colour, **{"stroke-width": "2"})
        return
    place = {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "4.5"}
    inside = colour if kind == "entry" else "#ffffff"
    ET.SubElement(parent, "circle", {**place, "fill": inside, "stroke": colour, "stroke-width": "2"})


def _text(parent: ET.Element, x: float, y: float, words: str, **style: str) -> None:
    ET.SubElement(parent, "text", {"x": f"{x:.1f}", "y": f"{y:.1f}", **style}).text = _printable(words)


def _line(parent: ET.Element, x1: float, y1: float, x2: float, y2: float, **style: str) -> None:
    ends = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(parent, "line", {**ends, **style})


def _box(parent: ET.Element, x: float, y: float, width: float, height: float, **style: str) -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    ET.SubElement(parent, "rect", {**place, **style})
