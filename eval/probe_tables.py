"""Linear probes of transferred students as a table of a board: what part of the labels is worth on fixed features."""

from collections.abc import Mapping

import pandas as pd

from eval.cells import probe_metric
from eval.rows import Row
from eval.sections import Section
from eval.statistics import Difference, compare, corrected, estimate

_MARKS = {"better": " ▲", "worse": " ▼"}


def probe_table(section: Section, names: Mapping[str, str]) -> pd.DataFrame | None:
    """Returns the mean accuracy of each row's probes with half its 95 % interval; None where nothing was probed.

    ▲ and ▼ mark what is significantly above or below random images with the same kind of labels, corrected by Holm
    over the table.
    """
    shares = section.data.protocol.get("probes")
    if not isinstance(shares, list):
        return None
    metrics = [probe_metric(share) for share in shares]
    rows = {one.row.recipe: one.row for one in section.standings}
    found: dict[tuple[str, str], Difference] = {}
    for standing in section.standings:
        reference = rows.get(standing.reference.link.recipe) if standing.reference else None
        if reference is None or standing.row.kind == "baseline":
            continue
        for metric in metrics:
            found[standing.row.recipe, metric] = compare(standing.row.metric(metric), reference.metric(metric))
    words = dict(zip(found, (one.word for one in corrected(found.values())), strict=True))
    return pd.DataFrame(
        {"entry": names[recipe], "labels": row.labels}
        | {
            f"{100 * share:g} % of the labels, %": _score(row, metric) + _MARKS.get(words.get((recipe, metric), ""), "")
            for share, metric in zip(shares, metrics, strict=True)
        }
        for recipe, row in rows.items()
    )


def _score(row: Row, metric: str) -> str:
    found = estimate(row.metric(metric))
    mean = f"{100 * found.mean:.1f}"
    return mean if found.low is None or found.high is None else f"{mean} ± {50 * (found.high - found.low):.1f}"
