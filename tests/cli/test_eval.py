"""``ddbench eval``: sets beside their controls, only what is missing, and no set in the way of another."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dd_bench.data import images
from dd_bench.errors import DataError, InterruptedRunError, NonFiniteError
from dd_bench.files import home
from dd_bench.learn.training import TrainingRecipe
from dd_bench.networks import network_folder
from dd_bench.store import Store
from eval import students
from eval.cells import Record, read_records
from eval.protocols import PROTOCOLS, find_protocol
from tests.cli.conftest import TINY_INFER, TINY_NET, TINY_RANDOM, Answer, Command
from tests.cli.test_synth import FakeWandb

RESULTS = Path("leaderboards/results")
Tensors = Callable[[str], Path]


def records(**wanted: Any) -> list[Record]:
    """Returns the records whose set has the wanted facts."""
    found = [record for _, record in read_records(RESULTS)]
    return [one for one in found if all(getattr(one.set, name) == value for name, value in wanted.items())]


def trained(answer: Answer) -> int:
    found = re.search(r"^(\d+) students trained; ", answer.out, re.MULTILINE)
    assert found, answer
    return int(found[1])


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_readme(ddbench: Command, made: str, surroundings: Path) -> None:
    """A set, its controls, the boards; and a second call has nothing to do."""
    answer = ddbench("eval", "--runs", "2")
    assert answer.code == 0
    kinds = {(one.set.method, one.set.labels): 0 for one in records()}
    for one in records():
        kinds[one.set.method, one.set.labels] += len(one.students)
    assert kinds == {
        ("infer", "soft"): 2, ("random", "soft"): 5, ("random", "hard"): 5, ("infer-base", "soft"): 5,
        ("infer-scrambled", "soft"): 1,
    }  # fmt: skip
    assert trained(answer) == 18
    assert answer.out.splitlines()[-2:] == [
        "18 students trained; boards: leaderboards/README.md", "  digits@20/10: leaderboards/digits@20+10.md"
    ]  # fmt: skip
    for page in ("README.md", "digits@20+10.md"):
        assert (surroundings / "leaderboards" / page).is_file()
    assert {path.name for path in (surroundings / "leaderboards").iterdir()} == {
        "README.md", "digits@20+10.md", "pictures", "results",
    }  # fmt: skip
    links = re.findall(r"\]\((results/[^)]+)\)", (surroundings / "leaderboards/digits@20+10.md").read_text())
    assert len(links) == 17
    links += re.findall(r"\]\((pictures/[^)]+)\)", (surroundings / "leaderboards/digits@20+10.md").read_text())
    assert len(links) == 18
    assert all((surroundings / "leaderboards" / link).is_file() for link in links)
    assert "](digits@20+10.md#" in (surroundings / "leaderboards/README.md").read_text()

    before = {path: path.read_bytes() for path in (surroundings / "leaderboards").rglob("*") if path.is_file()}
    again = ddbench("eval", "--runs", "2")
    assert again.code == 0
    assert again.out.splitlines()[0] == "nothing to do: every student asked for is on record"
    assert trained(again) == 0
    assert {path: path.read_bytes() for path in before} == before
    assert not list(home().glob("runs/*")), "finished runs are tidied away"


def test_more_runs_add_students(ddbench: Command, drawn: str) -> None:
    assert trained(ddbench("eval", "--runs", "1")) == 1
    (before,) = records()
    assert trained(ddbench("eval", "--runs", "3")) == 2
    (after,) = records()
    assert after.students[:1] == before.students
    assert [student.index for student in after.students] == [0, 1, 2]
    assert trained(ddbench("eval", "--runs", "2")) == 0


def test_controls_have_runs_of_their_own(ddbench: Command, made: str) -> None:
    ddbench("eval", made, "--runs", "1", "--control-runs", "2")
    (entry,) = records(method="infer")
    controls = [one for one in records() if one.set.method != "infer"]
    assert len(entry.students) == 1
    assert {len(one.students) for one in controls} == {2}
    stored = Store().find(made)
    assert (entry.set.sha256, entry.set.bytes) == (stored.sha256, stored.ledger)
    linked = {(one.method, one.labels, one.recipe) for one in entry.set.controls}
    assert linked == {(one.method, one.labels, one.recipe) for one in stored.provenance.controls}
    assert linked == {(one.set.method, one.set.labels, one.set.recipe) for one in controls}


def test_only_named_sets_are_judged(ddbench: Command, drawn: str) -> None:
    other = ddbench(*TINY_RANDOM, "--seed", "1").set_id
    ddbench("eval", drawn[:6], "--runs", "1")
    assert [one.set.id for one in records()] == [drawn]
    ddbench("eval", str(Store().find(other).path), "--runs", "1")
    assert {one.set.id for one in records()} == {drawn, other}


def test_all_real_data_stand_beside_where_the_protocol_says_how(
    ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "quick", replace(find_protocol("quick"), full_epochs=1))
    assert trained(ddbench("eval", "--runs", "1")) == 1 + 3
    (full,) = records(method="full")
    assert (full.set.ipc, full.set.images, len(full.students)) == (0, 200, 3)
    assert full.students[0].steps == 25


def test_another_protocol_is_another_record(ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PROTOCOLS, "longer", replace(find_protocol("quick"), name="longer", temperature=2.0))
    ddbench("eval", "--runs", "1")
    assert trained(ddbench("eval", "--runs", "1", "--protocol", "quick")) == 0  # the native one, by its name
    assert trained(ddbench("eval", "--runs", "1", "--protocol", "longer")) == 1
    assert sorted(one.protocol_name for one in records()) == ["longer", "quick"]


def test_sets_and_controls_of_mtt_meet_the_convnet_of_their_images(
    ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real images have no rate of their own; whitening reaches them, and all real data, from the command line."""
    tiny = replace(find_protocol("mtt-zca"), recipe=TrainingRecipe(steps=3, batch=8, lr=0.03), full_epochs=1)
    monkeypatch.setitem(PROTOCOLS, "mtt-zca", tiny)
    assert trained(ddbench("eval", "--runs", "1", "--protocol", "mtt-zca")) == 1 + 3
    assert {one.set.method: one.architecture for one in records()} == dict.fromkeys(
        ("random", "full"), "convnet2-x0.25"
    )
    assert all(student.choice == {"lr": 0.03} for one in records() for student in one.students)
    assert "| lr 0.03 × 3 |" in Path("leaderboards/digits@20+10.md").read_text()
    assert trained(ddbench("eval", "--runs", "1", "--protocol", "mtt-zca", "--arch", "convnet1-x0.05")) == 1 + 3


def test_mtt_is_not_for_graphs(ddbench: Command) -> None:
    made = ddbench("synth", "--method", "random", "--ipc", "1", "--dataset", "digits-graph").set_id
    fault = ddbench("eval", made, "--protocol", "mtt").fault
    assert fault == "protocol mtt is for images, digits-graph holds graphs: use the protocol graphs"


def test_an_architecture_has_one_spelling(ddbench: Command, drawn: str) -> None:
    spellings = ("--arch", "convnet1-instance-x0.050", "--arch", "convnet1-x0.05")
    assert trained(ddbench("eval", "--runs", "1", *spellings)) == 1
    assert trained(ddbench("eval", "--runs", "1", "--arch", "convnet1-x0.05", "--arch", TINY_NET)) == 1
    assert {one.architecture for one in records()} == {"convnet1-x0.05", TINY_NET}


def test_teachers_label_where_the_protocol_says_so(ddbench: Command, made: str) -> None:
    """Hard labels have no teachers: such controls are left out, not in the way."""
    answer = ddbench("eval", made, "--protocol", "tiny-dyn", "--runs", "1")
    assert answer.code == 0
    weights = sum(file.stat().st_size for file in home().glob("teachers/*/weights.safetensors"))
    assert {one.set.labels for one in records()} == {"soft"}
    assert {one.teacher_bytes for one in records()} == {weights}
    assert trained(answer) == 1 + 5 + 5 + 1

    everything = ddbench("eval", "--protocol", "tiny-dyn", "--runs", "1")  # the store holds the hard draws by now
    assert everything.code == 0
    assert trained(everything) == 0
    hard = [one.id for one in Store().list() if not one.provenance.parents]  # type: ignore[union-attr]
    assert everything.err == f"without teachers, which the protocol asks, and not judged under it: {', '.join(hard)}\n"
    fault = ddbench("eval", hard[0], "--protocol", "tiny-dyn").fault
    assert fault.startswith(f"protocol tiny-dyn asks the teachers of a set, but random {hard[0]} has none")


def test_teachers_that_are_gone_are_told(ddbench: Command, made: str) -> None:
    (parent,) = Store().find(made).provenance.parents
    (network_folder(parent) / "manifest.json").unlink()
    fault = ddbench("eval", made, "--protocol", "tiny-dyn").fault
    assert re.search(rf"but {re.escape(parent)} of infer {made} are not in .*teachers; copy them there", fault)


def test_boards_may_lie_elsewhere(ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "boards: here/README.md" in ddbench("eval", "--runs", "1", "--boards", "here").out
    monkeypatch.setenv("DDBENCH_LEADERBOARDS", "there")
    assert "boards: there/README.md" in ddbench("eval", "--runs", "1").out
    assert not Path("leaderboards").exists()


# --- what is in the way of nothing -----------------------------------------------------------------------------------


def test_a_damaged_set_is_passed_over(ddbench: Command, drawn: str, tensors: Tensors) -> None:
    """In its manifest (seen when it is opened) or in its bytes (seen when it is loaded)."""
    manifest, content = (ddbench(*TINY_RANDOM, "--seed", seed).set_id for seed in ("1", "2"))
    (tensors(manifest).parent / "manifest.json").write_text("{")
    flip_last_byte(tensors(content))
    answer = ddbench("eval", "--runs", "1")
    assert answer.code == 1
    assert [one.set.id for one in records()] == [drawn]
    told = answer.err.splitlines()
    assert len(told) == 2
    assert re.match(rf"passed over: set .*{manifest}: manifest.json is no valid JSON", told[0])
    assert re.match(rf"passed over: set .*{content}: tensors.safetensors has sha256", told[1])
    assert trained(answer) == 1
    again = ddbench("eval", "--runs", "1")
    assert again.code == 1
    assert "nothing to do" not in again.out


def test_a_damaged_set_that_was_named_is_a_fault(ddbench: Command, drawn: str, tensors: Tensors) -> None:
    flip_last_byte(tensors(drawn))
    assert "tensors.safetensors has sha256" in ddbench("eval", drawn).fault


def test_a_damaged_control_costs_itself(ddbench: Command, made: str, tensors: Tensors) -> None:
    ddbench("eval", "--runs", "1")
    (record, *_) = records(method="infer-base")
    (tensors(record.set.id).parent / "manifest.json").write_text("{")
    answer = ddbench("eval", "--runs", "2", "--control-runs", "2")
    assert answer.code == 1
    assert len(answer.err.splitlines()) == 1, "told once, though it is a set and a control"
    assert [len(one.students) for one in records(id=record.set.id)] == [1]
    assert {len(one.students) for one in records() if one.set.id != record.set.id} == {2}


def test_a_set_of_another_copy_of_the_data_is_passed_over(
    ddbench: Command, drawn: str, digits_dir: Path, tmp_path: Path
) -> None:
    data = load_file(digits_dir / "digits" / "data.safetensors")
    data["test_images"] = 255 - data["test_images"]
    (tmp_path / "copy" / "digits").mkdir(parents=True)
    save_file(data, tmp_path / "copy" / "digits" / "data.safetensors")
    answer = ddbench("eval", "--runs", "1", "--data-dir", str(tmp_path / "copy"))
    assert answer.code == 1
    assert re.search(rf"passed over: set {drawn} was made from digits@20/10 with fingerprint", answer.err)
    assert records() == []


def test_data_that_are_not_here_stop_no_other_set(
    ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ddbench("synth", "--method", "random", "--ipc", "1", "--dataset", "digits@5/5").set_id

    original = images.load

    def load(name: str, *rest: Any) -> Any:
        if name == "digits@20/10":
            raise DataError("digits@20/10 is not prepared yet")
        return original(name, *rest)

    monkeypatch.setattr(images, "load", load)
    answer = ddbench("eval", "--runs", "1")
    assert (answer.code, answer.err) == (1, "passed over: digits@20/10 is not prepared yet\n")
    assert [one.set.id for one in records()] == [other]


def test_a_student_that_diverges_stops_no_other_set(
    ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ddbench(*TINY_RANDOM, "--seed", "1").set_id
    original = students.fit

    def fit(*arguments: Any, **named: Any) -> None:
        if f"student-{drawn}" in str(named["run"].folder):
            raise NonFiniteError("student 1 random: loss became NaN")
        original(*arguments, **named)

    monkeypatch.setattr(students, "fit", fit)
    answer = ddbench("eval", "--runs", "1")
    assert (answer.code, answer.err) == (1, "passed over: student 1 random: loss became NaN\n")
    assert [one.set.id for one in records()] == [other]


def test_a_signal_stops_everything(ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fault of one set, to be passed over."""
    ddbench(*TINY_RANDOM, "--seed", "1")
    trained = []

    def fit(*_: Any, label: str, **__: Any) -> None:
        trained.append(label)
        raise InterruptedRunError(15, f"in {label} after step 1 of 3")

    monkeypatch.setattr(students, "fit", fit)
    answer = ddbench("eval", "--runs", "1")
    assert (answer.code, answer.out, len(trained)) == (143, "", 1)
    assert answer.err.startswith("ddbench: stopped in student 1 random after step 1 of 3; everything so far is saved")


def test_a_set_with_an_unknown_protocol_stops_no_other_set(
    ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(PROTOCOLS, "theirs", find_protocol("quick"))
        ddbench(*TINY_RANDOM, "--set", "protocol=theirs")
    answer = ddbench("eval", "--runs", "1")
    assert answer.code == 1
    assert answer.err.startswith("passed over: unknown protocol 'theirs'")
    assert [one.set.id for one in records()] == [drawn]


def test_a_damaged_record_is_a_fault_of_one_line(ddbench: Command, drawn: str) -> None:
    ddbench("eval", "--runs", "1")
    ((path, _),) = read_records(RESULTS)
    path.write_text(path.read_text().replace('"ipc": 2', '"ipc": two'))
    answer = ddbench("eval", drawn, "--runs", "2")
    assert re.search(r"json is no record of schema 1 \(.*\); delete it or restore it$", answer.fault)


@pytest.mark.parametrize("failing", ["", "log"])
def test_wandb_is_only_a_mirror(ddbench: Command, drawn: str, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    fake = FakeWandb(failing)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    if failing:
        with pytest.warns(UserWarning, match="wandb failed"):
            answer = ddbench("eval", "--runs", "1", "--wandb", "offline")
    else:
        answer = ddbench("eval", "--runs", "1", "--wandb", "offline")
        part = f"{drawn} quick {TINY_NET}".replace(".", "_")
        assert fake.logged(f"{part}/student 1 random/loss") == 3
        told = {name: value for call, values, _ in fake.calls if call == "update" for name, value in values[0].items()}
        ((path, record),) = read_records(RESULTS)
        assert told[f"{part}/record"] == str(path)
        assert told[f"{part}/student 1 top1"] == record.students[0].metrics["top1"]
        assert told["students"] == 1
    assert answer.code == 0
    assert len(records()) == 1


def test_infer_again_shares_controls(ddbench: Command, made: str) -> None:
    ddbench("eval", "--runs", "1")
    ddbench(*TINY_INFER, "--seed", "1")
    assert trained(ddbench("eval", "--runs", "1")) == 1 + 1  # the entry, and its scrambled offsets
