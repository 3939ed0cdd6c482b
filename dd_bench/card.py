"""The card of a set: a contact sheet to see at a glance what was distilled.

One row a class, at most 20 rows of 10 images, enlarged pixel by pixel; images without classes follow one another.
Pixels outside [0, 1] are shown clipped, unless there are many of them: then every image is shown from 2.5 deviations
below its mean to 2.5 above, as is usual for trajectory matching, whose images grow because networks with instance
normalisation do not mind. A set of bases and offsets has a last row of offsets, with zero in mid-gray.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dd_bench.files import human_bytes, slug
from dd_bench.graph_card import draw_graph_set
from dd_bench.graph_sets import Graphs, Trees
from dd_bench.sets import Compensated, Images, SyntheticSet
from dd_bench.targets import Features, Labels, SoftLabels, Targets

ROWS, COLUMNS = 20, 10
_SIDE, _LARGEST = 100, 128  # pixels of a tile: about, and never more than
_LEFT, _TOP, _GAP, _CAPTION, _MIN_WIDTH = 72, 76, 4, 15, 700  # pixels
_DPI = 100
_MANY = 0.1  # share of the pixels of a set
_REACH = 2.5  # deviations


@dataclass(frozen=True)
class _Row:
    """Tiles of one size, uint8 (height, width, 3), with a label to their left and a caption below each."""

    label: str
    tiles: list[NDArray[np.uint8]]
    captions: list[str]


def render_card(synthetic: SyntheticSet, ledger: Mapping[str, int]) -> bytes:
    """Returns the card of a set as the bytes of a PNG file; ``ledger`` is the set's (see ``budget``)."""
    payload = synthetic.payload
    targets = synthetic.targets
    if isinstance(payload, (Graphs, Trees)):
        assert not isinstance(targets, Features)  # see ``SyntheticSet``
        return draw_graph_set(payload, targets.classes, _graph_heading(synthetic, payload, ledger))
    if isinstance(targets, Features):
        shown = min(len(payload), ROWS * COLUMNS)
        rows = [
            _row(payload, torch.arange(start, min(start + COLUMNS, shown)), str(start))
            for start in range(0, shown, COLUMNS)
        ]
        described = [f"{shown} of {len(payload)} images" if shown < len(payload) else f"{shown} images"]
        described.append(f"without classes, {targets.values.shape[1]} features each")
    else:
        classes = sorted(set(targets.classes.tolist()))
        rows = [_class_row(payload, targets, label) for label in classes[:ROWS]]
        described = _described(targets, classes)
    if isinstance(payload, Compensated):
        rows.append(_offset_row(payload))
    return _draw(
        [*_origin(synthetic, ledger), " · ".join([*described, *_stretched(payload), *_captioned(targets)])], rows
    )


def _graph_heading(synthetic: SyntheticSet, payload: Graphs | Trees, ledger: Mapping[str, int]) -> list[str]:
    if isinstance(payload, Trees):
        count = f"{len(payload)} sets of {len(payload.roots)} trees, {payload.hops} hops deep"
        shown = f"{count} · {payload.formula_bytes():,} bytes by the Mirage paper's count of explicit trees"
    else:
        shown = f"{len(payload)} graphs"
    return [*_origin(synthetic, ledger), f"{shown} · one colour a node label"]


def _class_row(payload: Images | Compensated, targets: Labels, label: int) -> _Row:
    index = _spread(torch.nonzero(targets.classes == label).flatten())
    return replace(_row(payload, index, str(label)), captions=_entropies(targets, index))


def _row(payload: Images | Compensated, index: Tensor, label: str) -> _Row:
    images = _pick(payload, index).decode().cpu()
    if _is_wide(payload):
        deviations, means = torch.std_mean(images, dim=(1, 2, 3), keepdim=True)
        images = 0.5 + (images - means) / (2 * _REACH * deviations).clamp_min(1e-12)
    return _Row(label, [_tile(image) for image in images], [])


def _is_wide(payload: Images | Compensated) -> bool:
    """Says whether many pixels lie outside [0, 1]."""
    if not isinstance(payload, Images) or payload.pixels.dtype == torch.uint8:
        return False
    return bool(((payload.pixels < 0) | (payload.pixels > 1)).float().mean() > _MANY)


def _offset_row(payload: Compensated) -> _Row:
    """Returns offsets on one common scale, so that a weak one looks weak."""
    index = _spread(torch.arange(len(payload.offsets)))
    offsets = (payload.offsets[index].float() * payload.scales[index, None, None, None]).cpu()
    reach = float(offsets.abs().max()) or 1.0
    return _Row(f"offsets\n±{reach:.2g}", [_tile(0.5 + offset / (2 * reach)) for offset in offsets], [])


def _described(targets: Labels, classes: list[int]) -> list[str]:
    """Returns how many images there are, and of how many only some are shown."""
    most = int(targets.classes.bincount().max())
    shown = [f"{len(targets)} images"]
    shown += [f"{COLUMNS} of up to {most} a class"] if most > COLUMNS else []
    return shown + ([f"{ROWS} of {len(classes)} classes"] if len(classes) > ROWS else [])


def _stretched(payload: Images | Compensated) -> list[str]:
    if not isinstance(payload, Images) or not _is_wide(payload):
        return []
    low, high = payload.pixels.aminmax()
    return [f"pixels from {low:.2g} to {high:.2g}, each image stretched to its mean ± {_REACH} deviations"]


def _captioned(targets: Targets) -> list[str]:
    if not isinstance(targets, SoftLabels):
        return []
    most = math.log(targets.logits.shape[1])
    return [f"below each: entropy of its label in nats (softmax at temperature 1), at most {most:.2f}"]


def _origin(synthetic: SyntheticSet, ledger: Mapping[str, int]) -> list[str]:
    """Returns the two lines that every card begins with."""
    origin = synthetic.provenance
    parts = ", ".join(f"{part} {human_bytes(size)}" for part, size in ledger.items())
    return [
        f"{slug(origin.method)} · {slug(origin.dataset)} · ipc {origin.ipc} · seed {origin.seed}",
        f"{origin.set_id} · {human_bytes(sum(ledger.values()))}: {parts}",
    ]


def _draw(heading: list[str], rows: list[_Row]) -> bytes:
    # Imported here: it takes longer than the rest of the core. The object API leaves no state behind, unlike pyplot.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    side_y, side_x = rows[0].tiles[0].shape[:2]
    steps = [side_y + _GAP + (_CAPTION if row.captions else 0) for row in rows]
    width = max(_MIN_WIDTH, _LEFT + max(len(row.tiles) for row in rows) * (side_x + _GAP) + _GAP)
    height = _TOP + sum(steps) + _GAP
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")

    def write(x: float, y: float, text: str, size: float, align: str = "left") -> None:
        figure.text(
            x / width, 1 - y / height, text,
            size=size, ha=align, va="center", family="DejaVu Sans", parse_math=False,
        )  # fmt: skip

    for line, (text, size) in enumerate(zip(heading, (11, 8, 8), strict=True)):
        write(_GAP * 2, 16 + 21 * line, text, size)
    sheet = np.full((height, width, 3), 255, np.uint8)
    top = _TOP
    for row, step in zip(rows, steps, strict=True):
        write(_LEFT - 2 * _GAP, top + side_y / 2, row.label, 9, "right")
        for column, tile in enumerate(row.tiles):
            left = _LEFT + column * (side_x + _GAP)
            sheet[top : top + side_y, left : left + side_x] = tile
            if row.captions:
                write(left + side_x / 2, top + side_y + _CAPTION / 2, row.captions[column], 7, "center")
        top += step
    figure.figimage(sheet, origin="upper", zorder=-1)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return out.getvalue()


def _tile(image: Tensor) -> NDArray[np.uint8]:
    """Returns an image (C, H, W) as a tile; three channels are colours, the mean of any other number is gray."""
    pixels = image.clamp(0, 1) if image.shape[0] == 3 else image.clamp(0, 1).mean(0, keepdim=True).expand(3, -1, -1)
    longest = max(image.shape[1:])
    if longest > _LARGEST:
        shrink = math.ceil(longest / _LARGEST)
        size = [max(1, edge // shrink) for edge in image.shape[1:]]
        pixels = F.interpolate(pixels[None], size=size, mode="area")[0]
    factor = max(1, round(_SIDE / longest))
    tile = (pixels * 255).round().byte().permute(1, 2, 0).numpy()  # (H, W, 3)
    return tile.repeat(factor, axis=0).repeat(factor, axis=1)


def _pick(payload: Images | Compensated, index: Tensor) -> Images | Compensated:
    """Returns only the images at ``index``: decoding all of a large set for its card could fill the memory."""
    match payload:
        case Images(pixels=pixels):
            return Images(pixels[index])
        case Compensated(pairs=pairs):
            return replace(payload, pairs=pairs[index])


def _spread(index: Tensor) -> Tensor:
    """Returns at most ``COLUMNS`` of ``index``, evenly spaced."""
    count = len(index)
    return index if count <= COLUMNS else index[torch.arange(COLUMNS, device=index.device) * count // COLUMNS]


def _entropies(targets: Labels, index: Tensor) -> list[str]:
    if not isinstance(targets, SoftLabels):
        return []
    log_p = F.log_softmax(targets.logits[index].float(), dim=1)
    entropies = -(log_p.exp() * log_p).sum(1)
    return [f"{abs(entropy):.2f}" for entropy in entropies.tolist()]  # abs: no "-0.00"
