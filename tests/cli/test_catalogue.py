"""``ddbench list`` and ``ddbench show``: what there is, in lines that tools can read too."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

import synth
from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.specs import SPECS
from dd_bench.models import FAMILIES
from dd_bench.store import Store
from eval.protocols import PROTOCOLS
from tests.cli.conftest import TINY_INFER, TINY_NET, TINY_RANDOM, Answer, Command


def table(answer: Answer) -> dict[str, list[str]]:
    """Returns the rows of a table by their first cell; cells are two spaces or more apart; notes are no rows."""
    assert answer.code == 0, answer
    rows = [re.split(r" {2,}", line.rstrip()) for line in answer.out.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) > 1}


def test_methods(ddbench: Command) -> None:
    rows = table(ddbench("list", "methods"))
    assert rows.pop("method") == ["presets", "what it is"]
    assert set(rows) == set(synth.METHODS)
    assert rows["infer"][0] == "published, small, digits, published-taped, small-taped, digits-taped"
    assert rows["mtt"][0] == "digits, small, published"
    assert rows["mirage"][0] == "exact, paper"
    assert rows["random"][1] == "ipc images or graphs of each class, drawn uniformly without replacement."
    assert "`" not in str(rows)


def test_a_broken_method_of_somebody_else_hides_no_other(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synth, "methods", lambda: synth.METHODS | {"theirs": "no_such_module:Method"})
    rows = table(ddbench("list", "methods"))
    assert set(synth.METHODS) < set(rows)
    assert rows["theirs"][0] == "-"
    assert rows["theirs"][1].startswith("unusable: method 'theirs' should be no_such_module:Method, but No module")


def test_datasets(ddbench: Command, digits_dir: Path) -> None:
    rows = table(ddbench("list", "datasets"))
    assert set(SPECS) < set(rows)
    shape, classes, place = rows["digits"]
    assert (shape, classes) == ("1×8×8", "10")
    assert Path(place).resolve() == digits_dir / "digits" / "data.safetensors"
    assert rows["cifar100"] == ["3×32×32", "100", "not here yet; prepared when first used"]
    assert set(GRAPH_SPECS) < set(rows)
    assert rows["nci1"] == ["graphs, 37 node labels", "2", "not here yet; prepared when first used"]


def test_protocols(ddbench: Command) -> None:
    answer = ddbench("list", "protocols")
    rows = table(answer)
    for protocol in PROTOCOLS.values():
        assert rows[protocol.name] == [protocol.id, ", ".join(protocol.architectures), protocol.summary]
    assert answer.out.splitlines()[-1].startswith("convnet is the ConvNet of the images' size")


def test_models(ddbench: Command) -> None:
    rows = table(ddbench("list", "models"))
    assert {name: row[0] for name, row in rows.items() if name in FAMILIES} == {
        name: family.summary for name, family in FAMILIES.items()
    }


def test_sets(ddbench: Command, tensors: Callable[[str], Path]) -> None:
    empty = ddbench("list", "sets")
    assert empty.code == 0
    assert re.fullmatch(r"no sets in \S+/sets; make one: ddbench synth --method infer --ipc 10\n", empty.out)
    infer, drawn = ddbench(*TINY_INFER).set_id, ddbench(*TINY_RANDOM, "--seed", "7").set_id
    damaged = ddbench(*TINY_RANDOM, "--seed", "8").set_id
    (tensors(damaged).parent / "manifest.json").write_text("[]")
    answer = ddbench("list", "sets")
    rows = table(answer)
    assert list(rows) == ["set", infer, drawn]
    assert rows[drawn] == ["digits@20/10", "random", "digits-hard", "2", "7", "20", "1.46 kB"]
    preset = f"digits; inversion.steps=3, teachers.architectures={TINY_NET}, teachers.recipe.epochs=1"
    assert rows[infer][:5] == ["digits@20/10", "infer", preset, "2", "0"]  # in full, however long
    assert re.fullmatch(
        rf"damaged: set \S*{damaged}: manifest.json is a list; expected an object; [^\n]*\n", answer.err
    )


def test_names_are_shown_as_they_are(ddbench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brackets are no markup, and a preset may hold them."""
    monkeypatch.setattr(synth, "methods", lambda: synth.METHODS | {"[bold]x[/bold]": "y[red]:Z"})
    assert "[bold]x[/bold]" in ddbench("list", "methods").out


def test_show(ddbench: Command, made: str) -> None:
    fresh = ddbench("show", made)
    stored = Store().find(made)
    rows = table(fresh)
    assert rows["set"] == [f"{made} (verified)"]
    assert rows["made by"][0].startswith("infer, preset digits; inversion.steps=3, ")
    assert rows["made by"][0].endswith(", ipc 2, seed 0")
    assert rows["of"] == [f"digits@20/10, fingerprint {stored.provenance.fingerprint[:12]}"]
    assert rows["holds"] == ["20 images (base images and offsets), soft labels"]
    assert (
        sum(int(count.replace(",", "")) for count in re.findall(r" ([\d,]+) B", rows["size"][0])) == stored.size_bytes
    )
    assert rows["teachers"] == [stored.provenance.parents[0]]
    assert rows["protocol"] == ["quick"]
    assert rows["controls"] == [
        "random (soft labels), random (hard labels), infer-base (soft labels), infer-scrambled (soft labels)"
    ]
    assert f"teachers.architectures={TINY_NET}" in rows["config"][0].split(", ")
    assert "inversion.steps=3" in rows["config"][0].split(", ")
    assert rows["sha256"] == [stored.sha256]
    assert Path(rows["picture"][0]).resolve() == stored.path.resolve() / "card.png"
    assert fresh.out.endswith(f"\n  not judged yet: ddbench eval {made}\n")


@pytest.mark.parametrize(
    ("method", "holds"),
    [
        ("herding", r"3 graphs, \d+ nodes, hard labels"),
        (
            "mirage",
            r"\d+ sets of \d+ trees, 2 hops, hard labels; [\d,]+ B as shared subtrees, "
            r"[\d,]+ B as the Mirage paper counts",
        ),
    ],
)
def test_show_graphs(
    ddbench: Command, motifs_dir: Path, monkeypatch: pytest.MonkeyPatch, method: str, holds: str
) -> None:
    monkeypatch.setenv("DDBENCH_DATA", str(motifs_dir))
    made = ddbench("synth", "--method", method, "--ipc", "1", "--dataset", "motifs").set_id
    (found,) = table(ddbench("show", made))["holds"]
    assert re.fullmatch(holds, found)


def test_show_how_a_set_was_judged(ddbench: Command, drawn: str) -> None:
    ddbench("eval", drawn, "--runs", "2")
    answer = ddbench("show", drawn[:4])
    (path,) = Path("leaderboards/results").rglob("*.json")
    assert re.search(rf"\n  quick {TINY_NET}: \d+\.\d\d % top-1 over 2 students, {re.escape(str(path))}\n$", answer.out)
    path.write_text(path.read_text().replace('"top1"', '"top5"'))
    assert f"\n  quick {TINY_NET}: no top-1 over 2 students" in ddbench("show", drawn).out
    path.write_text(path.read_text().replace('"top5"', '"auc"'))
    assert re.search(rf"\n  quick {TINY_NET}: \d+\.\d\d % ROC-AUC over 2 students", ddbench("show", drawn).out)


def test_show_refuses_a_damaged_set(ddbench: Command, drawn: str, tensors: Callable[[str], Path]) -> None:
    content = bytearray(tensors(drawn).read_bytes())
    content[-1] ^= 1
    tensors(drawn).write_bytes(content)
    assert "tensors.safetensors has sha256" in ddbench("show", drawn).fault
