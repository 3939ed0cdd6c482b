"""Boards of graphs: another headline metric, baselines without distillation, controls paired by seed, choices."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from dd_bench.errors import InvalidSetError
from eval.cells import ControlLink, read_records
from eval.leaderboard import render
from eval.sections import section
from eval.statistics import holm
from tests.eval.boards import DRAWS, PROTOCOL, RANDOM, Judge, line

ENTRY = (0.90, 0.92, 0.94)
UNTRAINED = (0.50, 0.52, 0.57)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DDBENCH_HOME", str(tmp_path / "home"))
    return tmp_path / "leaderboards" / "results"


@pytest.fixture
def page(results: Path) -> Callable[[], str]:
    return lambda: render(results)["digits.md"]


def baselines(judge: Judge, *, count: float = 0.768, **facts: Any) -> None:
    shared = {"ipc": 0, "controls": ()} | facts
    judge("untrained", [UNTRAINED], student={"steps": 0}, **shared)
    judge("node-count", [(count, count)], **shared)
    judge("node-edge-count", [0.6], **shared)
    judge("full", [(0.97, 0.98)], **shared)


def table(page: str, title: str) -> list[str]:
    return page.split(f"\n{title}:\n\n")[1].split("\n\n")[0].splitlines()[2:]


# --- the headline metric ---------------------------------------------------------------------------------------------


def test_two_classes_are_ranked_by_auc(results: Path, judge: Judge, page: Callable[[], str]) -> None:
    judge("random", DRAWS, metric="auc")
    judge("mirage", ENTRY, metric="auc")
    assert "| rank | entry | labels | ROC-AUC, % | runs |" in page()
    assert "top-1, %" not in page()
    assert "| 92.0 ± 5.0 | 3 sets × 1 | better, +10.0 [+5.5, +14.5], p = 0.004 |" in line(page(), "**mirage**")
    assert "| nll 0.500, top1 0.500 |" in page()
    index = render(results)["README.md"]
    assert "| ROC-AUC | **mirage** · digits, hard labels | 1 of 2 | 92.0 ± 5.0 |" in line(index, "**mirage**")


def test_many_classes_are_ranked_by_top1(judge: Judge, page: Callable[[], str]) -> None:
    judge("random", DRAWS)
    assert "| rank | entry | labels | top-1, % | runs |" in page()


def test_rejects_two_metrics_in_one_section(results: Path, judge: Judge) -> None:
    judge("random", DRAWS, metric="auc")
    judge("full", [0.9], ipc=0)
    with pytest.raises(
        InvalidSetError, match=r"would rank by two metrics: .*random.* by auc, .*full.* by top1"
    ) as fault:
        render(results)
    assert "\n" not in str(fault.value)


# --- baselines -------------------------------------------------------------------------------------------------------


def test_baselines_stand_below_every_section(judge: Judge, page: Callable[[], str]) -> None:
    baselines(judge)
    for ipc in (10, 50):
        judge("random", (0.1, 0.2, 0.3), ipc=ipc, recipe=f"random-{ipc}")
        judge("base", [0.1], ipc=ipc, recipe=f"base-{ipc}", controls=())  # unranked too, but no baseline
    for part in page().split("\n## ")[1:]:
        rows = [one.split(" | ") for one in part.split("\n\n")[3].splitlines()[2:]]
        names = [row[1].split(" ")[0] for row in rows]
        assert names == ["random", "**base**", "full", "node-count", "node-edge-count", "untrained"]
        assert [row[0] for row in rows[1:]] == ["| –"] * 5
        scores = [row[3] for row in rows[2:]]
        assert scores == ["97.5 ± 6.4", "76.8 (deterministic)", "60.0 (deterministic)", "53.0 ± 9.0"]
        assert {row[5] for row in rows[2:]} == {""}
    assert "No spread" not in page()


def test_entries_against_baselines(judge: Judge, page: Callable[[], str], results: Path) -> None:
    baselines(judge)
    judge("random", DRAWS)
    judge("mirage", ENTRY)
    judge("poor", (0.55, 0.60, 0.68))
    rows = table(page(), "Against what needs no distillation")
    assert [row.split(" | ")[0].split("**")[1] for row in rows] == ["mirage"] * 3 + ["poor"] * 3
    assert not any("full" in row for row in rows)
    raw = [
        test
        for scores in (ENTRY, (0.55, 0.60, 0.68))
        for test in (
            stats.ttest_1samp(scores, 0.768),
            stats.ttest_1samp(scores, 0.6),
            stats.ttest_ind(scores, UNTRAINED, equal_var=False),
        )
    ]
    for row, p in zip(rows, holm([float(test.pvalue) for test in raw]), strict=True):
        assert row.endswith(f"| {p:.3f} |" if p >= 0.001 else "| < 0.001 |"), row
    low, high = raw[0].confidence_interval(0.95) - np.float64(0.768)
    gain = f"better, +15.2 [{100 * low:+.1f}, {100 * high:+.1f}]"
    assert rows[0].startswith(f"| **mirage** · digits | hard | node-count · digits | {gain} |")
    assert "No entry" not in page()
    assert line(render(results)["README.md"], "**mirage**").endswith("| 97.5 ± 6.4 | none of 3 |")


def test_a_baseline_that_nobody_beats_is_named(judge: Judge, page: Callable[[], str], results: Path) -> None:
    baselines(judge, count=0.91)
    judge("random", DRAWS)
    judge("mirage", ENTRY)
    judge("alone", [0.80])  # below, though untested
    assert "\n\n**No entry here is significantly better than node-count (91.0).**\n\n" in page()
    assert page().count("No entry") == 1
    assert line(render(results)["README.md"], "**mirage**").endswith("| **node-count (91.0)** |")

    judge("lucky", [0.99])  # above, but one student shows nothing
    assert "No entry" not in page()
    assert line(render(results)["README.md"], "**mirage**").endswith("| node-count (91.0), untested |")


def test_an_untrained_net_is_no_constant(judge: Judge, page: Callable[[], str]) -> None:
    judge("untrained", [0.5], ipc=0, controls=())
    judge("random", DRAWS)
    judge("mirage", ENTRY)
    assert "| 50.0 (one student) |" in line(page().split("Against")[0], "| untrained")
    (row,) = table(page(), "Against what needs no distillation")
    assert "| untested, +42.0 |" in row


def test_boards_without_baselines_say_so(judge: Judge, page: Callable[[], str], results: Path) -> None:
    judge("random", DRAWS)
    judge("infer", ENTRY)
    judge("full", [(0.97, 0.98)], ipc=0)
    assert "needs no distillation" not in page()
    assert line(render(results)["README.md"], "**infer**").endswith("| 97.5 ± 6.4 | – |")


# --- controls --------------------------------------------------------------------------------------------------------


def controls(*names: str) -> tuple[ControlLink, ...]:
    return (RANDOM, *(ControlLink(method=name, labels="hard", recipe=f"{name}-hard") for name in names))


def test_a_deterministic_control_is_one_set(judge: Judge, page: Callable[[], str]) -> None:
    judge("random", DRAWS)
    judge("herding", [(0.80, 0.83)] * 5, sha256="a" * 64)  # its own random control, the same bytes for every seed
    judge("mirage", (*ENTRY, 0.91, 0.93), controls=controls("herding"))
    row = line(page().split("Against")[0], "| herding · digits")
    assert "| 81.5 ± 19.1 † | 1 set × 2 | tie, -0.5 [" in row
    (row,) = table(page(), "Against the other controls")
    assert row.startswith("| **mirage** · digits | hard | herding · digits | hard | better, +10.5 [")
    assert "seeds" not in row


def test_random_parts_of_a_method_need_draws(judge: Judge, page: Callable[[], str]) -> None:
    judge("random", DRAWS)
    judge("mirage", ENTRY, controls=controls("mirage-random"))
    judge("mirage-random", [0.8, 0.81])
    assert "| control missing (2 of 3 draws): run `ddbench eval` |" in page()
    judge("mirage-random", [0.8, 0.81, 0.82])
    (row,) = table(page(), "Against the other controls")
    assert "| mirage-random · digits | hard | better, +11.0 [" in row
    assert "seeds" not in row


def test_pairs_match_reference(judge: Judge, page: Callable[[], str]) -> None:
    generator = np.random.default_rng(0)
    luck = generator.normal(0.8, 0.05, 5)
    one, other = (luck + generator.normal(mean, 0.01, 5) for mean in (0.05, 0.0))
    judge("random", DRAWS)
    judge("infer", [(score - 0.01, score + 0.01) for score in one], controls=controls("infer-base"))
    judge("infer-base", [0.5, *map(float, other[1:])])
    judge("infer-base", [float(other[0])], seed=7)  # a seed that the entry does not have
    judge("infer-base", [0.6], id="remade", sha256="c" * 64)  # another set of seed 0
    (row,) = table(page(), "Against the other controls")
    reference = stats.ttest_rel(one[1:], other[1:])
    low, high = reference.confidence_interval(0.95)
    expected = (
        f"{100 * (one - other)[1:].mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p = {reference.pvalue:.3f}"
    )
    assert row.endswith(f"| {expected} (4 seeds) |")


@pytest.mark.parametrize("seeds", [2, 3])
def test_few_seeds_are_no_pairs(judge: Judge, page: Callable[[], str], seeds: int) -> None:
    judge("random", DRAWS)
    judge("infer", ENTRY, controls=controls("infer-base"))
    judge("infer-base", DRAWS[:seeds])
    assert ("| paired by seed |" in page()) == (seeds == 3)


def test_equal_sets_are_no_pairs(judge: Judge, page: Callable[[], str]) -> None:
    """One set that several seeds give is no repetition: its pairs would share all of its luck."""
    judge("random", DRAWS)
    judge("infer", (*ENTRY, 0.91, 0.93), controls=controls("greedy"))
    for seed in (3, 4):
        judge("greedy", [(0.7, 0.8)], seed=seed, sha256="b" * 64)
    judge("greedy", (0.7, 0.72))
    assert "greedy" in page()
    assert "paired by seed" not in page()
    judge("greedy", [0.71], seed=2)
    assert "(3 seeds) |" in page()


def test_only_entries_are_paired(judge: Judge, page: Callable[[], str]) -> None:
    judge("random", DRAWS)
    judge("infer", ENTRY, controls=controls("infer-base"))
    judge("infer-base", (0.7, 0.75, 0.71), controls=controls("herding"))
    judge("herding", (0.6, 0.65, 0.66))
    first, second = table(page(), "Against the other controls")
    assert "| infer-base · digits |" in first
    assert first.endswith("(3 seeds) |")
    assert second.startswith("| infer-base · digits | hard | herding")
    assert second.endswith("|  |")


def test_what_labels_alone_give(judge: Judge, page: Callable[[], str]) -> None:
    soft = ControlLink(method="random", labels="soft", recipe="random-soft")
    judge("random", DRAWS)
    judge("infer", (0.94, 0.96, 0.98), labels="soft", controls=(RANDOM, soft))
    assert "| random · digits | soft |" not in page()
    judge("random", (0.88, 0.91, 0.92), labels="soft")
    entry, labels = table(page(), "Against the other controls")
    assert entry.startswith("| **infer** · digits | soft | random | hard | better, +14.0 [")
    assert entry.endswith("|  |")
    reference = stats.ttest_rel((0.88, 0.91, 0.92), DRAWS)
    low, high = reference.confidence_interval(0.95)
    assert labels.startswith("| random · digits | soft | random | hard | better, +8.3 [")
    assert labels.endswith(f"| +8.3 [{100 * low:+.1f}, {100 * high:+.1f}], p = {reference.pvalue:.3f} (3 seeds) |")
    welch = [
        stats.ttest_ind(scores, DRAWS, equal_var=False).pvalue for scores in ((0.94, 0.96, 0.98), (0.88, 0.91, 0.92))
    ]
    for row, p in zip((entry, labels), holm([float(p) for p in welch]), strict=True):
        assert f"| {p:.3f} |" in row


# --- what was chosen -------------------------------------------------------------------------------------------------


def test_choices_are_told(judge: Judge, page: Callable[[], str], results: Path) -> None:
    judge("random", DRAWS)
    assert "chosen on validation data" not in page()
    for seed, (pool, rate, steps) in enumerate([("sum", 0.01, 40), ("sum", 0.001, 400), ("me|an", 0.01, 200)]):
        choice = {"pool": pool, "lr": rate, "steps": steps, "validation": 0.7 + seed / 100}
        judge("mirage", [0.9 + seed / 100], seed=seed, student={"choice": choice, "steps": steps})
    judge("mirage", [0.9], seed=9, sha256=section(read_records(results)).data.set.sha256)
    details = page().split("<details>")[1]
    expected = (
        "lr 0.01 × 2 / 0.001 × 1; pool sum × 2 / me\\|an × 1; steps 200 × 1 / 40 × 1 / 400 × 1; "
        "validation 0.7 × 1 / 0.71 × 1 / 0.72 × 1"
    )
    assert f"| {expected} |" in details
    assert "The number of steps was chosen for each student on validation data: " in page()
    assert "Unequal training" not in page()
    assert "| chosen steps |" in line(render(results)["README.md"], "**mirage**")


def test_rates_that_came_with_sets_are_no_choice_on_validation_data(judge: Judge, page: Callable[[], str]) -> None:
    cell = {"protocol": PROTOCOL | {"learned_lr": True}}
    judge("random", DRAWS, cell=cell, student={"choice": {"lr": 0.01}})
    for seed, rate in enumerate((0.0213, 0.0213, 0.0187)):
        judge("mtt", [0.9 + seed / 100], seed=seed, cell=cell, student={"choice": {"lr": rate}})
    header = next(row for row in page().split("<details>")[1].splitlines() if row.startswith("| entry"))
    assert header.endswith("| trained at |")
    assert "| lr 0.01 × 3 |" in page()
    assert "| lr 0.0213 × 2 / 0.0187 × 1 |" in page()
    assert "chosen on validation data" not in page().split("<details>")[1]


def test_many_values_are_a_span_and_equal_sets_count_once(judge: Judge, page: Callable[[], str]) -> None:
    for index in range(6):
        judge("random", [0.5], seed=index, student={"choice": {"validation": 0.5 + index / 50, "pool": "sum"}})
    judge("herding", [0.5] * 4, sha256="d" * 64, student={"choice": {"pool": "sum", "tried": [1, None]}})
    assert "| pool sum × 6; validation 0.5–0.6 |" in page()
    assert "| pool sum × 1; tried \\[1, null\\] × 1 |" in page()
