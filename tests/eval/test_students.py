"""Students: what decides their scores, what they learn from, and that no look at the test split is one too many."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kornia.enhance import ZCAWhitening
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import ImageData, load
from dd_bench.data.prepare import prepare
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, HoldoutError, InvalidSetError
from dd_bench.files import home
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from dd_bench.models import build
from dd_bench.networks import load_network, network_folder
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from dd_bench.sets import Images, Provenance, SyntheticSet
from dd_bench.store import Store
from dd_bench.targets import HardLabels, SoftLabels
from eval import judging, students
from eval.cells import Record, SetFacts, read_record, read_records
from eval.judging import Bench
from eval.protocol_kinds import EvalProtocol
from eval.protocols import PROTOCOLS
from eval.students import Subject, full_subject, judge, lesson, student_seed, subject_of

CPU = torch.device("cpu")


class Judging:
    """``judge`` with everything but the subject and the protocol filled in; every call is a new process' first."""

    def __init__(self, folder: Path, data_dir: Path, net: str) -> None:
        self.results, self.data_dir, self.net = folder, data_dir, net

    def __call__(
        self, subject: Subject, protocol: EvalProtocol, *, runs: int = 1, results: Path | None = None, wait: bool = True
    ) -> int:
        test = TestSplit.open(subject.facts.dataset, self.data_dir)
        return judge(
            subject, protocol, self.net, runs=runs, test=test, device=CPU, results=results or self.results, wait=wait
        )  # fmt: skip

    def only_record(self, results: Path | None = None) -> Record:
        ((_, record),) = read_records(results or self.results)
        return record


@pytest.fixture
def judged(results: Path, blobs_dir: Path, net: str) -> Judging:
    return Judging(results, blobs_dir, net)


def lasting(record: Record) -> dict[str, Any]:
    """Returns a record without the times, which no two runs share."""
    facts = record.model_dump(mode="json")
    for student in facts["students"]:
        del student["train_seconds"], student["date"]
    return facts


# --- what decides a score --------------------------------------------------------------------------------------------


def test_seed_is_of_the_bytes_the_protocol_the_architecture_and_the_index(subject: Any, tiny: EvalProtocol) -> None:
    seed = student_seed(subject(), tiny, "convnet3", 2)
    assert seed == derive_seed("student", "5e" * 32, tiny.id, "convnet3", 2)
    others = [
        student_seed(subject(sha256="6f" * 32), tiny, "convnet3", 2),
        student_seed(subject(), replace(tiny, temperature=2.0), "convnet3", 2),
        student_seed(subject(), tiny, "convnet2", 2),
        student_seed(subject(), tiny, "convnet3", 3),
    ]
    assert len({seed, *others}) == 5
    renamed = subject(method="other", id="ffffffffffff", preset="x", recipe="eeeeeeeeeeee", seed=7, ipc=9)
    assert student_seed(renamed, replace(tiny, name="y", summary="z", architectures=()), "convnet3", 2) == seed


def test_the_seed_decides_weights_and_training(
    subject: Any, tiny: EvalProtocol, judged: Judging, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[tuple[Tensor, int]] = []
    fit = students.fit

    def watched(model: nn.Module, *arguments: Any, seed: int, **named: Any) -> None:
        fits.append((parameters_to_vector(model.parameters()).detach().clone(), seed))
        fit(model, *arguments, seed=seed, **named)

    monkeypatch.setattr(students, "fit", watched)
    judged(subject(), tiny, runs=2)
    for index, (weights, seed) in enumerate(fits):
        assert seed == student_seed(subject(), tiny, judged.net, index)
        with seeded(seed):
            assert torch.equal(weights, parameters_to_vector(build(judged.net, data.spec).parameters()))


def test_renaming_a_method_changes_names_only(
    subject: Any, tiny: EvalProtocol, judged: Judging, tmp_path: Path
) -> None:
    names = {"method": "newest", "preset": "best", "id": "ffffffffffff", "recipe": "eeeeeeeeeeee"}
    judged(subject(), tiny, runs=2)
    judged(subject(**names), tiny, runs=2, results=tmp_path / "renamed")
    ours, renamed = lasting(judged.only_record()), lasting(judged.only_record(tmp_path / "renamed"))
    assert ours["students"] == renamed["students"]
    assert ours["set"] | names == renamed["set"]
    assert {**ours, "set": None} == {**renamed, "set": None}


def test_a_score_can_be_made_again_alone(subject: Any, tiny: EvalProtocol, judged: Judging, tmp_path: Path) -> None:
    judged(subject(), tiny, runs=3)
    whole = judged.only_record()
    alone = whole.model_copy(update={"students": whole.students[:2]})
    path = next(iter(read_records(judged.results)))[0]
    other = tmp_path / "other" / path.relative_to(judged.results)
    other.parent.mkdir(parents=True)
    other.write_text(alone.model_dump_json())
    assert judged(subject(), tiny, runs=3, results=tmp_path / "other") == 1
    assert lasting(read_record(other)) == lasting(whole)


def test_the_record_says_what_was_done(subject: Any, tiny: EvalProtocol, judged: Judging, data: ImageData) -> None:
    judging = subject(logits=torch.zeros(12, 3))
    assert judged(judging, tiny, runs=2) == 2
    record = judged.only_record()
    assert record.set == judging.facts
    assert (record.protocol_name, record.protocol_id, record.architecture) == (tiny.name, tiny.id, judged.net)
    assert record.protocol == tiny.as_json()
    assert record.teacher_bytes == 0
    for index, student in enumerate(record.students):
        assert (student.index, student.seed) == (index, student_seed(judging, tiny, judged.net, index))
        assert set(student.metrics) == {"top1", "nll"}
        assert 0 <= student.metrics["top1"] <= 1
        assert student.steps == 4
        assert student.threads == torch.get_num_threads()
        assert {"ddbench", "python", "torch"} <= set(student.versions)
    assert not any(Path(judged.results).rglob("*.partial"))


# --- every student once, recorded at once ----------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The labels of the students that were trained, in their order; the third of a list dies."""
    labels: list[str] = []
    fit = students.fit

    def watched(*arguments: Any, label: str, **named: Any) -> None:
        labels.append(label)
        if len(labels) == 3:
            raise RuntimeError("a crash in the third training")
        fit(*arguments, label=label, **named)

    monkeypatch.setattr(students, "fit", watched)
    return labels


def test_a_crash_costs_one_student(subject: Any, tiny: EvalProtocol, judged: Judging, trained: list[str]) -> None:
    with pytest.raises(RuntimeError, match="a crash"):
        judged(subject(), tiny, runs=4)
    assert trained == ["student 1 infer", "student 2 infer", "student 3 infer"]
    before = judged.only_record().students
    assert [student.index for student in before] == [0, 1]
    assert judged(subject(), tiny, runs=4) == 2
    assert trained[3:] == ["student 3 infer", "student 4 infer"]
    after = judged.only_record().students
    assert [student.index for student in after] == [0, 1, 2, 3]
    assert after[:2] == before
    assert judged(subject(), tiny, runs=4) == 0
    assert len(trained) == 5
    assert judged.only_record().students == after


def test_resume_is_invisible(
    subject: Any, tiny: EvalProtocol, judged: Judging, tmp_path: Path, interrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(subject(), tiny, runs=2, results=tmp_path / "undisturbed")
    with interrupted(lambda stage, step: stage == "student 2 infer" and step == 1):
        judged(subject(), tiny, runs=2)
    steps: list[tuple[str, int]] = []
    original = Run.steps

    def watched(self: Run, label: str, *rest: Any) -> Iterator[int]:
        for step in original(self, label, *rest):
            steps.append((label, step))
            yield step

    monkeypatch.setattr(Run, "steps", watched)
    assert judged(subject(), tiny, runs=2) == 1
    assert steps == [("student 2 infer", 2), ("student 2 infer", 3)]
    assert lasting(judged.only_record()) == lasting(judged.only_record(tmp_path / "undisturbed"))


JUDGE_IN_ANOTHER_PROCESS = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from dd_bench.data.holdout import TestSplit
from dd_bench.data.images import load
from dd_bench.learn.training import TrainingRecipe
from dd_bench.targets import HardLabels
from eval.cells import SetFacts
from eval.protocol_kinds import EvalProtocol
from eval.students import Subject, judge

results, data_dir, facts, net = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
data = load("digits@2/2", data_dir)
subject = Subject(SetFacts.model_validate_json(facts), data.images, HardLabels(data.labels))
protocol = EvalProtocol("shared", "Two evaluators.", (net,), TrainingRecipe(steps=60, batch=8))
test = TestSplit.open("digits@2/2", data_dir)
print("ready", flush=True)
sys.stdin.readline()
print(judge(subject, protocol, net, runs=10, test=test, device=torch.device("cpu"), results=results))
"""


@pytest.mark.slow
def test_what_a_killed_evaluator_left_behind_its_record_goes(
    subject: Any, tiny: EvalProtocol, judged: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had recorded the student while this one waited for its lock, and was killed before it removed the run."""
    judged(subject(), tiny, runs=1)
    facts, net = subject().facts, judged.only_record().architecture
    left = home() / "runs" / f"student-{facts.id}-{facts.sha256[:8]}-{tiny.id}-{net}-0"
    left.mkdir(parents=True)
    looks = iter([[0], []])
    monkeypatch.setattr(judging, "missing_students", lambda *_: next(looks))
    assert judged(subject(), tiny, runs=1, wait=False) == 0
    assert not left.exists()


def test_two_evaluators_share_a_cell(results: Path, digits_dir: Path, net: str) -> None:
    data = load("digits@2/2", digits_dir)
    facts = full_subject(data).facts.model_copy(update={"ipc": 2, "method": "random"})
    process = subprocess.Popen(
        [sys.executable, "-c", JUDGE_IN_ANOTHER_PROCESS, str(results), str(digits_dir), facts.model_dump_json(), net],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    protocol = EvalProtocol("shared", "Two evaluators.", (net,), TrainingRecipe(steps=60, batch=8))
    process.stdin.write("\n")
    process.stdin.flush()
    test = TestSplit.open("digits@2/2", digits_dir)
    subject = Subject(facts, data.images, HardLabels(data.labels))
    ours = judge(subject, protocol, net, runs=10, test=test, device=CPU, results=results)
    assert len(read_records(results)[0][1].students) == 10, "a cell that is judged is complete"
    theirs = int(process.communicate(timeout=60)[0])
    assert process.returncode == 0
    assert ours + theirs == 10, "each student was trained by one of them"
    assert ours > 0
    assert theirs > 0
    ((_, record),) = read_records(results)
    assert [student.index for student in record.students] == list(range(10))


# --- the test split --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["epochs", "tape"])
def test_large_test_images_come_in_smaller_batches(kind: str, subject: Any, tiny: EvalProtocol, tmp_path: Path) -> None:
    """Else scoring can take more memory than training, and a student that was trained is not scored."""
    spec = replace(SPECS["digits"], name="large", image_shape=(1, 128, 96))
    seen: list[int] = []
    test = SimpleNamespace(spec=spec, score=lambda *_, batch_size, **__: seen.append(batch_size) or {"top1": 0.5})
    large = replace(subject(), images=torch.rand(12, *spec.image_shape))
    fkd = replace(PROTOCOLS["fkd-quick"], training=TapeTraining(steps=1))
    bench = Bench("cell-0", "student 1", 5, Run(tmp_path / "run"), test, CPU)
    large.train(tiny if kind == "epochs" else fkd, "convnet1-batch-x0.01", bench)
    assert seen == [1024 * 64 * 64 // (128 * 96)]


def test_the_test_split_is_read_once_a_student_and_at_the_end(
    subject: Any, tiny: EvalProtocol, judged: Judging, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fit, score = students.fit, TestSplit.score

    def watched_fit(*arguments: Any, **named: Any) -> None:
        fit(*arguments, **named)
        events.append("trained")

    def watched_score(self: TestSplit, student: str, predict: nn.Module, **named: Any) -> dict[str, float]:
        assert not predict.training
        events.append(f"scored {student}")
        return score(self, student, predict, **named)

    monkeypatch.setattr(students, "fit", watched_fit)
    monkeypatch.setattr(TestSplit, "score", watched_score)
    judged(subject(), tiny, runs=2)
    cell = f"0123456789ab-5e5e5e5e-{tiny.id}-{judged.net}"
    assert events == ["trained", f"scored {cell}-0", "trained", f"scored {cell}-1"]


def test_rejects_a_second_look_of_the_same_student(
    subject: Any, tiny: EvalProtocol, results: Path, holdout: TestSplit, net: str, tmp_path: Path
) -> None:
    judge(subject(), tiny, net, runs=1, test=holdout, device=CPU, results=results)
    with pytest.raises(HoldoutError, match="already read by student"):
        judge(subject(), tiny, net, runs=1, test=holdout, device=CPU, results=tmp_path / "forgetful")


def test_rejects_a_set_of_other_data(subject: Any, tiny: EvalProtocol, judged: Judging) -> None:
    with pytest.raises(
        InvalidSetError, match=r"with fingerprint 0bad0bad0bad, but the data here have .*point --data-dir"
    ):
        judged(subject(fingerprint="0bad" * 16), tiny)
    assert read_records(judged.results) == []


# --- what students learn from ----------------------------------------------------------------------------------------

LOGITS = torch.tensor([[4.0, 0.0, -2.0], [1.0, 1.5, 0.0]])
CLASSES = torch.tensor([2, 1])
ANSWER = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, 0.5]])
HARD, SOFT = HardLabels(CLASSES), SoftLabels(LOGITS.half(), CLASSES, 4.0)


def divergence(target_logits: Tensor, temperature: float) -> Tensor:
    """KL at a temperature, by its definition."""
    target, answer = (target_logits / temperature).softmax(1), (ANSWER / temperature).softmax(1)
    return (target * (target / answer).log()).sum() / len(target)


@pytest.mark.parametrize(
    ("targets", "labels", "temperature", "values", "loss"),
    [
        (HARD, "stored", None, F.one_hot(CLASSES, 3), F.cross_entropy(ANSWER, CLASSES)),
        (HARD, "class", 30.0, F.one_hot(CLASSES, 3), F.cross_entropy(ANSWER, CLASSES)),
        (SOFT, "class", 30.0, F.one_hot(CLASSES, 3), F.cross_entropy(ANSWER, CLASSES)),
        (SOFT, "stored", None, LOGITS, divergence(LOGITS, 4.0)),
        (SOFT, "stored", 30.0, LOGITS, divergence(LOGITS, 30.0)),
        (SOFT, "teachers", 30.0, LOGITS, divergence(LOGITS, 30.0)),
        (HARD, "teachers", 30.0, torch.zeros(2, 3), divergence(torch.zeros(2, 3), 30.0)),
    ],
)
def test_lesson_matches_reference(
    tiny: EvalProtocol, targets: Any, labels: Any, temperature: float | None, values: Tensor, loss: Tensor
) -> None:
    objective, given = lesson(targets, replace(tiny, labels=labels, temperature=temperature), 3)
    assert given.dtype == torch.float32
    assert torch.equal(given, values.float())
    torch.testing.assert_close(objective(ANSWER, given), loss, rtol=1e-5, atol=1e-7)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, float]]:
    """What students compared their logits with, step by step, and at which temperature."""
    seen: list[tuple[Tensor, float]] = []
    original = students.distillation

    def watched(logits: Tensor, target_logits: Tensor, temperature: float) -> Tensor:
        seen.append((target_logits.detach().clone(), temperature))
        return original(logits, target_logits, temperature)

    monkeypatch.setattr(students, "distillation", watched)
    return seen


def test_soft_labels_are_interpolated_as_logits(
    subject: Any, tiny: EvalProtocol, judged: Judging, lessons: list[tuple[Tensor, float]]
) -> None:
    """λ z_a + (1-λ) z_b with one λ a batch; blended probabilities would leave the line between the two."""
    first, second = logits = torch.tensor([[4.0, 0.0, -2.0], [1.0, 1.5, 0.0]])
    judged(subject(2, logits=logits), replace(tiny, recipe=replace(tiny.recipe, epochs=20, steps=0)))
    assert len(lessons) == 20
    weights = []
    for values, temperature in lessons:
        assert temperature == 4.0  # the set's own
        torch.testing.assert_close(values.sum(0), first + second)  # each is blended with the other, or with itself
        weight = ((values[0] - second) / (first - second))[0]
        torch.testing.assert_close(values[0], weight * first + (1 - weight) * second)
        weights.append(float(weight))
    assert min(weights) < 0.3
    assert max(weights) > 0.7
    assert any(0.05 < weight < 0.95 for weight in weights)


@pytest.fixture
def dyn(tiny: EvalProtocol) -> EvalProtocol:
    """INFER+Dyn in four steps."""
    return replace(tiny, labels="teachers", temperature=30.0)


def test_teachers_label_what_students_see(
    subject: Any, dyn: EvalProtocol, judged: Judging, teacher: Any, lessons: list[tuple[Tensor, float]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The mean logits of all teachers, without temperature, on each augmented and mixed batch."""
    parents = (teacher(0), teacher(1))
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {parent: [] for parent in parents}

    def watched(parent: str, spec: Any) -> tuple[nn.Module, Any]:
        model, facts = load_network(parent, spec)
        model.register_forward_hook(lambda _, inputs, output: seen[parent].append((inputs[0].clone(), output.clone())))
        return model, facts

    student_saw: list[Tensor] = []

    def watched_build(name: str, spec: Any) -> nn.Module:
        model = build(name, spec)
        model.register_forward_pre_hook(
            lambda module, inputs: student_saw.append(inputs[0].detach().clone()) if module.training else None
        )
        return model

    monkeypatch.setattr(students, "load_network", watched)
    monkeypatch.setattr(students, "build", watched_build)
    judging = subject(logits=torch.full((12, 3), 7.0), parents=parents)
    judged(judging, dyn)
    assert len(lessons) == len(student_saw) == 4
    for step, (values, temperature) in enumerate(lessons):
        (pixels_0, logits_0), (pixels_1, logits_1) = (seen[parent][step] for parent in parents)
        torch.testing.assert_close(values, (logits_0 + logits_1) / 2)
        assert temperature == 30.0
        assert torch.equal(pixels_0, student_saw[step])
        assert torch.equal(pixels_1, student_saw[step])
        plain = judging.images.flatten(1)
        assert (torch.cdist(pixels_0.flatten(1), plain).amin(1) > 0.1).any(), "nothing was cropped or mixed"


def test_teachers_cost_bytes_where_students_need_them(
    subject: Any, dyn: EvalProtocol, tiny: EvalProtocol, judged: Judging, teacher: Any
) -> None:
    parents = (teacher(0), teacher(1))
    for protocol in (dyn, tiny):
        judged(subject(labels="soft", parents=parents), protocol)
    costs = {record.protocol_id: record.teacher_bytes for _, record in read_records(judged.results)}
    weights = sum((network_folder(parent) / "weights.safetensors").stat().st_size for parent in parents)
    assert costs == {dyn.id: weights, tiny.id: 0}


def test_teachers_on_plain_pixels_teach_what_they_had_written_down(
    subject: Any, dyn: EvalProtocol, judged: Judging, teacher: Any, data: ImageData, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without augmentation and with λ = 1 dynamic and static labels are the same up to rounding."""
    parents = (teacher(0), teacher(1))
    plain = replace(dyn, recipe=replace(dyn.recipe, steps=12, augment="none", mix="none"))
    models = [load_network(parent, data.spec)[0] for parent in parents]
    logits = torch.stack([model(subject().images) for model in models]).mean(0)
    monkeypatch.setattr(judging, "student_seed", lambda *_: 5)  # which otherwise knows the protocol
    judged(subject(logits=logits, parents=parents), plain)
    judged(subject(logits=logits), replace(plain, labels="stored"), results=tmp_path / "static")
    judged(subject(logits=-logits), replace(plain, labels="stored"), results=tmp_path / "opposite")
    dynamic, static, opposite = (
        judged.only_record(folder).students[0].metrics
        for folder in (judged.results, tmp_path / "static", tmp_path / "opposite")
    )
    assert dynamic["nll"] == pytest.approx(static["nll"], rel=1e-5)
    assert abs(opposite["nll"] - static["nll"]) > 1e-3, "labels would not matter at all"


def test_rejects_dynamic_labels_without_teachers(
    subject: Any, dyn: EvalProtocol, judged: Judging, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="protocol tiny asks the teachers of a set, but infer 0123456789ab has none"):
        judged(subject(), dyn)
    with pytest.raises(ConfigError, match=r"convnet1-gone of infer 0123456789ab are not in .*teachers; copy them"):
        judged(subject(parents=("convnet1-gone",)), dyn)
    assert read_records(judged.results) == []


def test_classes_are_used_whatever_labels_say(
    subject: Any, tiny: EvalProtocol, judged: Judging, tmp_path: Path
) -> None:
    protocol = replace(tiny, labels="class")
    judged(subject(), protocol)
    judged(subject(labels="soft"), protocol, results=tmp_path / "soft")
    assert judged.only_record().students[0].metrics == judged.only_record(tmp_path / "soft").students[0].metrics


# --- a rate and a space of their own ---------------------------------------------------------------------------------


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each training was given."""
    seen: list[dict[str, Any]] = []
    fit = students.fit

    def watched(model: nn.Module, images: Tensor, values: Tensor, **named: Any) -> None:
        seen.append(named | {"model": model, "images": images})
        fit(model, images, values, **named)

    monkeypatch.setattr(students, "fit", watched)
    return seen


@pytest.mark.parametrize(
    ("learned", "suggested", "lr", "choice"),
    [
        (True, 0.02, 0.02, {"lr": 0.02}),
        (True, None, 1e-3, {"lr": 1e-3}),
        (False, 0.02, 1e-3, {}),
    ],
    ids=["learned", "none was learned", "not asked for"],
)
def test_students_take_the_rate_of_the_set_where_the_protocol_says_so(
    subject: Any, tiny: EvalProtocol, judged: Judging, fits: list[dict[str, Any]], learned: bool,
    suggested: float | None, lr: float, choice: dict[str, float],
) -> None:  # fmt: skip
    judged(replace(subject(), suggested_lr=suggested), replace(tiny, learned_lr=learned))
    assert fits[0]["recipe"] == replace(tiny.recipe, lr=lr)
    assert judged.only_record().students[0].choice == choice


def test_full_keeps_the_rate_of_the_protocol(
    data: ImageData, tiny: EvalProtocol, judged: Judging, fits: list[dict[str, Any]]
) -> None:
    judged(full_subject(data), replace(tiny, learned_lr=True, full_epochs=2))
    assert fits[0]["recipe"] == replace(tiny.recipe, steps=0, epochs=2)
    assert judged.only_record().students[0].choice == {"lr": 1e-3}


@pytest.fixture
def zca(tiny: EvalProtocol, monkeypatch: pytest.MonkeyPatch) -> EvalProtocol:
    """Four full batches behind ZCA, without augmentation; nothing is fitted yet."""
    monkeypatch.setattr(students, "_whitenings", {})
    recipe = TrainingRecipe(epochs=4, batch=256, lr=0.05, schedule="half", augment="none")
    return replace(tiny, recipe=recipe, labels="class", whiten=True)


def by_hand(subject: Subject, model: nn.Module, whiten: nn.Module, test: TestSplit) -> dict[str, float]:
    """Trains and scores a student behind ``whiten`` by a few lines of its own; three epochs at 0.05, one at 0.005."""
    model.normalizer = nn.Identity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    for epoch in range(4):
        optimizer.param_groups[0]["lr"] = 0.05 if epoch < 3 else 0.005
        optimizer.zero_grad()
        F.cross_entropy(model(whiten(subject.images)), subject.targets.classes).backward()
        optimizer.step()
    model.eval()
    return test.score("by hand", lambda pixels: model(whiten(pixels)), device=CPU)


def test_whitened_students_match_a_loop_by_hand(
    subject: Any, zca: EvalProtocol, judged: Judging, data: ImageData, blobs_dir: Path
) -> None:
    """Training images and test images are both whitened by the training split, and by nothing else."""
    judging = replace(subject(), data=data)
    judged(judging, zca)
    student = judged.only_record().students[0]
    found = {}
    for name, images in (("split", data.images.float() / 255), ("set", judging.images)):
        with seeded(student.seed):
            model = build(judged.net, data.spec)
        oracle = ZCAWhitening(eps=0.1).fit(images)
        found[name] = by_hand(judging, model, oracle, TestSplit.open("blobs", blobs_dir))["nll"]
    assert student.metrics["nll"] == pytest.approx(found["split"], rel=1e-4)
    assert abs(found["set"] - found["split"]) > 1e-3, "the statistics would not matter at all"


def test_augmentation_acts_behind_the_whitening(
    subject: Any, zca: EvalProtocol, judged: Judging, data: ImageData, fits: list[dict[str, Any]]
) -> None:
    """Images arrive whitened, be they bytes or floats, with a spec by which DSA changes them where they are."""
    floats = replace(subject(), data=data)
    judged(floats, zca)
    judged(replace(subject(sha256="6f" * 32), images=data.images[:12], data=data), zca)
    expected = ZCAWhitening(eps=0.1).fit(data.images.float() / 255)(floats.images)
    for given in fits:
        assert (given["spec"].mean, given["spec"].std) == ((0.0,), (1.0,))
        assert torch.equal(given["model"].normalizer(expected), expected)
        torch.testing.assert_close(given["images"], expected, rtol=1e-4, atol=1e-5)


def test_whitening_is_fitted_once_for_all_students(
    subject: Any, zca: EvalProtocol, judged: Judging, data: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []
    original = students.fit_whitening

    def watched(images: Tensor) -> Any:
        fitted.append(len(images))
        return original(images)

    monkeypatch.setattr(students, "fit_whitening", watched)
    judged(replace(subject(), data=data), zca, runs=2)
    judged(full_subject(replace(data)), zca)
    assert fitted == [120]
    other = replace(data, images=data.images[:60], fingerprint="0bad" * 16)
    assert students._whitening_of(other) is not students._whitening_of(data)
    assert fitted == [120, 60, 120], "one is kept at a time"


def test_rejects_whitening_without_the_data_of_the_set(
    subject: Any, zca: EvalProtocol, judged: Judging, data: ImageData
) -> None:
    for known in (None, replace(data, fingerprint="0bad" * 16)):
        with pytest.raises(
            ConfigError, match="protocol tiny whitens by the training split of blobs, but infer 0123456789ab came with"
        ):
            judged(replace(subject(), data=known), zca)
    assert read_records(judged.results) == []


# --- where subjects come from ----------------------------------------------------------------------------------------


def test_subject_of_a_stored_set(data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dd_bench.store.render_card", lambda *_: b"\x89PNG, in name only")
    provenance = Provenance(
        method="random", preset="digits-soft", config={}, dataset="blobs", fingerprint=data.fingerprint, ipc=2, seed=3,
        recipe="0123456789ab", parents=("t1",), device="cpu", wall_seconds=1.5, teacher_seconds=2.5,
    )  # fmt: skip
    soft = SoftLabels(torch.randn(6, 3, generator=generator(0)), data.labels[:6], 4.0)
    stored = Store().write(SyntheticSet(Images(data.images[:6]), soft, provenance, "tiny", suggested_lr=0.02))
    made = subject_of(stored, data)
    assert made.suggested_lr == 0.02
    assert made.data is data
    assert subject_of(stored).data is None
    assert made.facts == SetFacts(
        id=stored.id, sha256=stored.sha256, method="random", preset="digits-soft", dataset="blobs",
        fingerprint=data.fingerprint, ipc=2, seed=3, recipe="0123456789ab", labels="soft", images=6,
        bytes=stored.ledger, parents=("t1",), wall_seconds=1.5, teacher_seconds=2.5, device="cpu",
    )  # fmt: skip
    assert torch.equal(made.images, data.images[:6].float() / 255)
    assert isinstance(made.targets, SoftLabels)
    assert torch.equal(made.targets.logits, soft.logits)
    tensors = stored.path / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\xff")
    with pytest.raises(InvalidSetError, match="sha256"):
        subject_of(stored)


def test_full_is_all_real_data_for_its_own_number_of_epochs(
    data: ImageData, tiny: EvalProtocol, judged: Judging
) -> None:
    subject = full_subject(data)
    assert subject.images is data.images
    assert (subject.suggested_lr, subject.data) == (None, data)
    assert torch.equal(subject.targets.classes, data.labels)
    assert (subject.facts.method, subject.facts.ipc, subject.facts.images) == ("full", 0, 120)
    assert subject.facts.sha256 == data.fingerprint
    assert sum(subject.facts.bytes.values()) == 120 * 64 + 120
    judged(subject, replace(tiny, full_epochs=2))
    assert judged.only_record().students[0].steps == 2 * 15  # 120 images in batches of 8


# --- does any of this measure anything? ------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def digits_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    prepare("digits", folder)
    return folder


def test_students_of_real_images_beat_chance_and_those_of_permuted_labels_do_not(
    digits_dir: Path, results: Path
) -> None:
    data = load("digits@10", digits_dir)
    protocol = replace(PROTOCOLS["quick"], recipe=replace(PROTOCOLS["quick"].recipe, steps=150))
    order = torch.randperm(len(data.labels), generator=generator(0))
    scores = {}
    for name, labels in (("real", data.labels), ("permuted", data.labels[order])):
        facts = full_subject(data).facts.model_copy(update={"method": name, "ipc": 10})
        subject = Subject(facts, data.images, HardLabels(labels))
        test = TestSplit.open("digits@10", digits_dir)
        judge(subject, protocol, "convnet2-batch-x0.25", runs=2, test=test, device=CPU, results=results)
    for _, record in read_records(results):
        scores[record.set.method] = [student.metrics["top1"] for student in record.students]
    assert min(scores["real"]) > 0.7
    assert max(scores["permuted"]) < 0.25
