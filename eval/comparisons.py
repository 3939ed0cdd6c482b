"""Rows beside what they must be held against: their controls, and baselines that need no distillation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dd_bench.errors import InvalidSetError
from eval.cells import ControlLink
from eval.rows import Row
from eval.statistics import Difference, compare, compare_paired, compare_with_constant, corrected

MIN_DRAWS = 3  # judged draws below which a random control is no yardstick: the noise of random images is the draw
MIN_PAIRS = 3  # common seeds below which sets are not compared in pairs


@dataclass(frozen=True)
class Pairing:
    """The mean difference of sets with equal seeds, over so many ``seeds``; its p-value is not corrected."""

    seeds: int
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """A row beside another; no difference if the other is not judged well enough (``draws`` are).

    ``paired`` looks at equal seeds only, where there are enough and the two sides' sets have something in common.
    """

    row: Row
    link: ControlLink
    draws: int
    difference: Difference | None
    paired: Pairing | None = None

    @property
    def needed(self) -> int:
        """The draws of the control that must be judged before anything is compared with it."""
        return MIN_DRAWS if _is_random(self.link.method) else 1


def against_controls(rows: Mapping[str, Row]) -> tuple[dict[str, Comparison], list[Comparison]]:
    """Returns each row beside random images with its kind of labels, by recipe, and all the other comparisons.

    The others end with random images of soft labels beside those of hard ones: what labels alone give. P-values are
    Holm-corrected over each of the two families.

    Raises:
        InvalidSetError: if a recipe that a row names its control belongs to another method or kind of labels.
    """
    references: dict[str, Comparison] = {}
    others: list[Comparison] = []
    for recipe, row in rows.items():
        for one in _beside_controls(row, rows):
            if one.link.method == "random" and one.link.labels == row.labels and recipe not in references:
                references[recipe] = one
            else:
                others.append(one)
    references = dict(zip(references, _corrected([*references.values()]), strict=True))
    return references, _corrected([*others, *_labels_alone(rows)])


def against_baselines(rows: Mapping[str, Row]) -> list[Comparison]:
    """Returns every entry beside every baseline that needs no distillation; p-values are Holm-corrected over all.

    All real data (``full``) stand there for orientation: a small set is not meant to beat them.
    """
    baselines = [row for row in rows.values() if row.kind == "baseline" and row.method != "full"]
    return _corrected(
        [
            Comparison(row, _link(baseline), len(baseline.draws), _difference(row, baseline))
            for row in rows.values()
            if row.kind == "entry"
            for baseline in baselines
        ]
    )


def _beside_controls(row: Row, rows: Mapping[str, Row]) -> list[Comparison]:
    """Returns the row beside each of its controls, those that are judged well enough first."""
    found = []
    for link in _controls(row, rows):
        control = rows.get(link.recipe)
        if control and (control.method, control.labels) != (link.method, link.labels):
            raise InvalidSetError(
                f"{row.method} names {link.recipe} its control {link.method} ({link.labels} labels), but that "
                f"recipe's records are of {control.method} ({control.labels} labels); delete the records that are wrong"
            )
        # A seed means nothing between an entry and random images; an ablation has the entry's base of the same seed.
        pair = row.kind == "entry" and not _is_random(link.method)
        found.append(_beside(row, link, control, pair=pair))
    return sorted(found, key=lambda one: one.difference is None)


def _labels_alone(rows: Mapping[str, Row]) -> list[Comparison]:
    """Returns random images with soft labels beside those with hard ones; a seed draws the same images for both.

    Not so for features, whose images are drawn without regard to class.
    """
    random = [row for row in rows.values() if row.method == "random" and row.kind == "control"]
    return [
        _beside(soft, _link(hard), hard, pair=soft.labels != "features")
        for soft in random
        if soft.labels != "hard"
        for hard in random
        if hard.labels == "hard" and hard.images == soft.images
    ]


def _beside(row: Row, link: ControlLink, control: Row | None, *, pair: bool) -> Comparison:
    one = Comparison(row, link, len(control.draws) if control else 0, None)
    if control is None or one.draws < one.needed:
        return one
    return replace(one, difference=_difference(row, control), paired=_pairing(row, control) if pair else None)


def _difference(row: Row, other: Row) -> Difference:
    return compare_with_constant(row.sample, other.sample.mean) if other.constant else compare(row.sample, other.sample)


def _pairing(row: Row, control: Row) -> Pairing | None:
    own, others = row.by_seed, control.by_seed
    seeds = sorted(own.keys() & others.keys())
    if len(seeds) < MIN_PAIRS:
        return None
    return Pairing(len(seeds), compare_paired([own[seed] for seed in seeds], [others[seed] for seed in seeds]))


def _controls(row: Row, rows: Mapping[str, Row]) -> list[ControlLink]:
    """Returns the links of a row; a control without any is held against the random images that its linkers link."""
    if row.kind == "baseline" or row.method == "random":
        return []
    if row.controls or row.kind == "entry":
        # Where teachers label on the fly, a control with hard labels has nobody to ask and cannot be judged.
        asking = row.links[0][1].protocol.get("labels") == "teachers"
        return [link for link in row.controls if not (asking and link.labels == "hard")]
    linkers = [other.controls for other in rows.values()]
    shared = [link for links in linkers if any(link.recipe == row.recipe for link in links) for link in links]
    return [link for link in dict.fromkeys(shared) if link.method == "random"]


def _is_random(method: str) -> bool:
    """Whether a method's sets are draws of chance alone: random images, or random parts of a method (``x-random``)."""
    return method == "random" or method.endswith("-random")


def _link(row: Row) -> ControlLink:
    facts = row.links[0][1].set
    return ControlLink(method=facts.method, labels=facts.labels, recipe=facts.recipe)


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Returns the comparisons with p-values corrected over all of them."""
    family = iter(corrected(one.difference for one in comparisons if one.difference))
    return [replace(one, difference=next(family)) if one.difference else one for one in comparisons]
