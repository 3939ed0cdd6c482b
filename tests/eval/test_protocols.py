"""Protocols: an id for everything that can move a score, and the published settings under their names."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from dd_bench.data.graph_specs import GRAPH_SPECS
from dd_bench.data.specs import SPECS
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.learn.tape import TapeRecipe
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from dd_bench.models import Architecture, build
from eval import protocol_kinds
from eval.protocol_kinds import AnyProtocol, EvalProtocol, GraphProtocol, TapeProtocol, TransferProtocol
from eval.protocols import PROTOCOLS, find_protocol

# Another value for each field of a recipe; a new field belongs here, and into the hash.
OTHER_RECIPE: dict[str, Any] = {
    "epochs": 401, "steps": 7, "batch": 65, "optimizer": "sgd", "lr": 2e-3, "schedule": "half", "momentum": 0.8,
    "nesterov": True, "weight_decay": 0.02, "augment": "none", "mix": "cutmix", "mix_alpha": 0.7, "bf16": True,
    "channels_last": True, "stretch": 2.0,
}  # fmt: skip
OTHER_PROTOCOL: dict[str, Any] = {
    "labels": "class", "temperature": 20.0, "full_epochs": 41, "learned_lr": True, "whiten": True,
}  # fmt: skip
OTHER_GRAPHS: dict[str, Any] = {
    "steps": 401, "batch": 63, "weight_decay": 0.0, "pools": ("mean", "sum"), "lrs": (1e-2,), "checkpoints": (200,),
    "labels": "stored",
}  # fmt: skip
OTHER_TRAINING: dict[str, Any] = {"epochs": 301, "steps": 7, "lr": 2e-3, "stretch": 3.0, "weight_decay": 0.0}
OTHER_TAPE: dict[str, Any] = {"epochs": 299, "batch": 17, "micro": 4, "smallest_crop": 0.2}
OTHER_REPLAY: dict[str, Any] = {"temperature": None, "full_epochs": 41, "labels": "class"}
OTHER_TRANSFER: dict[str, Any] = {
    "taped": TapeTraining(steps=7),
    "source": "digits", "target": "cifar10@50", "probes": (0.1,), "probe_draws": 9, "probe_l2": 0.02,
    "full_epochs": 41, "labels": "class",
}  # fmt: skip
DESCRIPTION: dict[str, Any] = {"name": "another", "summary": "Other words.", "architectures": ("convnet1",)}


@pytest.fixture
def static() -> EvalProtocol:
    return PROTOCOLS["infer-static"]


def test_ids_are_those_of_the_records() -> None:
    """An id that moves orphans every record that carries it: make a new protocol instead."""
    known = {"hard": "d7617679", "infer-static": "96163ea6", "infer-dyn": "7f817b8e", "quick": "491aea5a"}
    known |= {"graphs": "e25b6a08", "mtt": "06e05c1d", "mtt-zca": "5c97cf7f"}
    known |= {"fkd-cutmix": "54e1f93d", "fkd-cutmix-half": "cd9a0fb9", "fkd-quick": "0b5dec3a"}
    known |= {"fkd-cutmix-slow": "61b4b161", "fkd-cutmix-slow-half": "9aa587f1"}
    known |= {"transfer-cifar": "5c0deb11", "transfer-cifar-back": "19b49fc7", "transfer-tiny": "4b1c6b62"}
    known |= {"transfer-small": "7f8d739c", "transfer-small-back": "515a23e7", "transfer-digits": "f6b132c3"}
    assert {name: protocol.id for name, protocol in PROTOCOLS.items()} == known


def test_every_record_has_the_id_that_its_protocol_still_has() -> None:
    paths = (Path(__file__).parents[2] / "leaderboards" / "results").glob("*/*/*/*.json")
    found = {path.name.split("--")[0] for path in paths}
    assert found <= {f"{name}-{protocol.id}" for name, protocol in PROTOCOLS.items()}
    assert {"quick-491aea5a", "fkd-quick-0b5dec3a", "graphs-e25b6a08", "mtt-06e05c1d"} <= found


@pytest.mark.parametrize("field", [field.name for field in fields(TrainingRecipe)])
def test_every_field_of_the_recipe_moves_the_id(static: EvalProtocol, field: str) -> None:
    change = {field: OTHER_RECIPE[field]} | ({"epochs": 0} if field == "steps" else {})
    assert getattr(static.recipe, field) != OTHER_RECIPE[field]
    assert replace(static, recipe=replace(static.recipe, **change)).id != static.id


@pytest.mark.parametrize("field", [field.name for field in fields(EvalProtocol) if field.name != "recipe"])
def test_every_other_field_moves_the_id_or_only_describes(static: EvalProtocol, field: str) -> None:
    other = replace(static, **{field: (OTHER_PROTOCOL | DESCRIPTION)[field]})
    assert getattr(other, field) != getattr(static, field)
    assert (other.id == static.id) == (field in DESCRIPTION)


@pytest.mark.parametrize("field", [field.name for field in fields(GraphProtocol)])
def test_every_field_of_a_graph_protocol_moves_the_id_or_only_describes(field: str) -> None:
    graphs = PROTOCOLS["graphs"]
    other = replace(graphs, **{field: (OTHER_GRAPHS | DESCRIPTION)[field]})
    assert getattr(other, field) != getattr(graphs, field)
    assert (other.id == graphs.id) == (field in DESCRIPTION)


@pytest.fixture
def fkd() -> TapeProtocol:
    protocol = PROTOCOLS["fkd-cutmix"]
    assert isinstance(protocol, TapeProtocol)
    return protocol


@pytest.mark.parametrize("field", [field.name for field in fields(TapeTraining)])
def test_every_field_of_a_training_by_tape_moves_the_id(fkd: TapeProtocol, field: str) -> None:
    change = {field: OTHER_TRAINING[field]} | ({"epochs": 0} if field == "steps" else {})
    assert getattr(fkd.training, field) != OTHER_TRAINING[field]
    assert replace(fkd, training=replace(fkd.training, **change)).id != fkd.id


@pytest.mark.parametrize("field", [field.name for field in fields(TapeRecipe)])
def test_every_field_of_a_tape_moves_the_id(fkd: TapeProtocol, field: str) -> None:
    assert getattr(fkd.tape, field) != OTHER_TAPE[field]
    assert replace(fkd, tape=replace(fkd.tape, **{field: OTHER_TAPE[field]})).id != fkd.id


@pytest.mark.parametrize(
    "field", [field.name for field in fields(TapeProtocol) if field.name not in ("training", "tape")]
)
def test_every_other_field_of_a_tape_protocol_moves_the_id_or_only_describes(fkd: TapeProtocol, field: str) -> None:
    other = replace(fkd, **{field: (OTHER_REPLAY | DESCRIPTION)[field]})
    assert getattr(other, field) != getattr(fkd, field)
    assert (other.id == fkd.id) == (field in DESCRIPTION)


@pytest.fixture
def transfer() -> TransferProtocol:
    protocol = PROTOCOLS["transfer-small"]
    assert isinstance(protocol, TransferProtocol)
    return protocol


@pytest.mark.parametrize("training", ["features", "classes", "tuning"])
@pytest.mark.parametrize("field", [field.name for field in fields(TrainingRecipe)])
def test_every_field_of_a_training_of_a_transfer_moves_the_id(
    transfer: TransferProtocol, training: str, field: str
) -> None:
    recipe = getattr(transfer, training)
    change = {field: (OTHER_RECIPE | {"optimizer": "adam"})[field]} | ({"steps": 0} if field == "epochs" else {})
    if field == "stretch":
        change["schedule"] = "cosine"
        recipe = replace(recipe, schedule="cosine")
        transfer = replace(transfer, **{training: recipe})
    if getattr(recipe, field) == change[field]:
        change[field] = {"augment": "dsa", "schedule": "cosine"}[field]
    assert replace(transfer, **{training: replace(recipe, **change)}).id != transfer.id


@pytest.mark.parametrize(
    "field", [field.name for field in fields(TransferProtocol) if field.name not in ("features", "classes", "tuning")]
)
def test_every_other_field_of_a_transfer_moves_the_id_or_only_describes(transfer: TransferProtocol, field: str) -> None:
    other = replace(transfer, **{field: (OTHER_TRANSFER | DESCRIPTION)[field]})
    assert getattr(other, field) != getattr(transfer, field)
    assert (other.id == transfer.id) == (field in DESCRIPTION)


def test_a_new_trainer_of_transfers_moves_their_ids(
    transfer: TransferProtocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = transfer.id, PROTOCOLS["quick"].id
    monkeypatch.setitem(protocol_kinds._TRAINERS, "transfer", 2)
    assert transfer.id != before[0]
    assert PROTOCOLS["quick"].id == before[1]


def test_fields_of_later_are_told_only_where_they_are_used() -> None:
    """Else the records of a protocol from before them would contradict those that are made now, under the same id."""
    later = {"learned_lr", "whiten"}
    told = {name: {field: value for field, value in protocol.as_json().items() if field in later}
            for name, protocol in PROTOCOLS.items()}  # fmt: skip
    assert told.pop("mtt") == {"learned_lr": True}
    assert told.pop("mtt-zca") == {"learned_lr": True, "whiten": True}
    assert not any(told.values())
    assert set(PROTOCOLS["hard"].as_json()) == {
        "name", "summary", "architectures", "recipe", "labels", "temperature", "full_epochs"
    }  # fmt: skip


def test_a_new_trainer_moves_every_id(static: EvalProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    before = static.id
    steps = replace(static, recipe=replace(static.recipe, epochs=0, steps=100))
    monkeypatch.setattr(protocol_kinds, "_TRAINERS", {"epochs": 5, "steps": 2})
    assert static.id != before
    counting = steps.id
    monkeypatch.setattr(protocol_kinds, "_TRAINERS", {"epochs": 5, "steps": 6, "graphs": 1})
    assert steps.id != counting
    graphs = PROTOCOLS["graphs"].id
    monkeypatch.setattr(protocol_kinds, "_TRAINERS", {"graphs": 7, "tape": 1})
    assert PROTOCOLS["graphs"].id != graphs
    tape = PROTOCOLS["fkd-quick"].id
    monkeypatch.setattr(protocol_kinds, "_TRAINERS", {"tape": 2})
    assert PROTOCOLS["fkd-quick"].id != tape


def test_ids_and_names_are_unique() -> None:
    assert len({protocol.id for protocol in PROTOCOLS.values()}) == len(PROTOCOLS)
    assert [protocol.name for protocol in PROTOCOLS.values()] == list(PROTOCOLS)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_json_is_the_whole_protocol(protocol: AnyProtocol) -> None:
    read = json.loads(json.dumps(protocol.as_json(), allow_nan=False))
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in read.items()}
    trainings = dict.fromkeys(("recipe", "features", "classes", "tuning"), TrainingRecipe)
    for name, kind in (trainings | {"training": TapeTraining, "taped": TapeTraining, "tape": TapeRecipe}).items():
        if name in values:
            values[name] = kind(**read[name])
    again = type(protocol)(**values)
    assert again == protocol
    assert again.id == protocol.id


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=lambda protocol: protocol.name)
def test_students_are_spelt_canonically(protocol: AnyProtocol) -> None:
    for spec in SPECS.values():
        names = protocol.students_for(spec)
        assert len(names) == len(protocol.architectures) > 0
        assert [str(Architecture.parse(name)) for name in names] == list(names)


def test_hard_is_the_evaluator_of_dc_dsa_and_dm() -> None:
    """Zhao et al.'s ``evaluate_synset`` with DSA: SGD 0.01, momentum 0.9, decay 5e-4, a tenth from E // 2 + 1 on."""
    protocol = PROTOCOLS["hard"]
    assert protocol.recipe == TrainingRecipe(
        epochs=1000, batch=256, optimizer="sgd", lr=0.01, schedule="half", momentum=0.9, nesterov=False,
        weight_decay=5e-4, augment="dsa", mix="none",
    )  # fmt: skip
    assert protocol.labels == "class"
    assert protocol.architectures == ("convnet3",)
    factors = [protocol.recipe.lr_factor(step, 10) for step in range(1000)]  # one batch an epoch
    assert factors == [1.0] * 501 + [0.1] * 499


def test_mtt_is_hard_at_the_rate_that_the_set_learned() -> None:
    """MTT's ``evaluate_synset``: that of DC, but for the rate and, with ZCA, the space."""
    hard, mtt, zca = PROTOCOLS["hard"], PROTOCOLS["mtt"], PROTOCOLS["mtt-zca"]
    same = {"name": "hard", "summary": hard.summary, "architectures": ("convnet3",)}
    assert replace(mtt, **same, learned_lr=False) == hard
    assert replace(zca, **same, learned_lr=False, whiten=False) == hard
    assert (mtt.learned_lr, mtt.whiten, mtt.full_epochs) == (True, False, 60)
    assert (zca.learned_lr, zca.whiten, zca.full_epochs) == (True, True, 60)
    assert mtt.architectures == zca.architectures == ("convnet",)


@pytest.mark.parametrize(
    ("name", "shape", "student"),
    [
        ("cifar10", (3, 32, 32), "convnet3"),
        ("cifar10@200", (3, 32, 32), "convnet3-x0.25"),
        ("cifar100@5/5", (3, 32, 32), "convnet3-x0.25"),
        ("mnist", (1, 28, 28), "convnet3"),
        ("tiny-imagenet", (3, 64, 64), "convnet4"),
        ("stl", (3, 96, 96), "convnet4"),
        ("imagenette", (3, 128, 128), "convnet5"),
        ("imagenet", (3, 224, 224), "convnet5"),
        ("imagenet", (3, 256, 256), "convnet6"),
        ("huge", (3, 1024, 1024), "convnet6"),
        ("small", (1, 16, 16), "convnet2"),
        ("digits", (1, 8, 8), "convnet2-x0.25"),
        ("digits@20/10", (1, 8, 8), "convnet2-x0.25"),
    ],
)
def test_convnet_is_that_of_the_images(name: str, shape: tuple[int, int, int], student: str) -> None:
    spec = replace(SPECS["digits"], name=name, image_shape=shape, mean=(0.5,) * shape[0], std=(0.2,) * shape[0])
    assert PROTOCOLS["mtt"].students_for(spec) == (student,)
    build(student, spec)
    assert PROTOCOLS["infer-static"].students_for(spec) == ("resnet18", "convnet3-batch")
    mixed = replace(PROTOCOLS["mtt"], architectures=("resnet18", "convnet"))
    assert mixed.students_for(spec) == ("resnet18", student)


def test_graphs_have_no_convnet() -> None:
    spec = GRAPH_SPECS["mutag"]
    assert PROTOCOLS["graphs"].students_for(spec) == PROTOCOLS["graphs"].architectures
    with pytest.raises(ConfigError, match="protocol mtt is for images, mutag holds graphs: use the protocol graphs"):
        PROTOCOLS["mtt"].students_for(spec)


def test_rejects_teachers_of_whitened_images(static: EvalProtocol) -> None:
    with pytest.raises(ConfigError, match="labels are teachers, which read pixels"):
        replace(static, labels="teachers", whiten=True)


@pytest.mark.parametrize(("name", "epochs", "labels"), [("infer-static", 400, "stored"), ("infer-dyn", 80, "teachers")])
def test_infer_is_judged_as_published(name: str, epochs: int, labels: str) -> None:
    """AdamW 1e-3 with decay 0.01, cosine once an epoch, batch 64, crop and flip, mixup 0.8, KL at T = 30."""
    protocol = PROTOCOLS[name]
    assert protocol.recipe == TrainingRecipe(
        epochs=epochs, batch=64, optimizer="adamw", lr=1e-3, schedule="cosine", weight_decay=0.01, augment="crop-flip",
        mix="mixup", mix_alpha=0.8,
    )  # fmt: skip
    assert (protocol.labels, protocol.temperature) == (labels, 30.0)
    assert protocol.architectures[0] == "resnet18"


def test_dynamic_labels_get_the_epochs_of_static_ones_divided_by_the_images_of_a_base_image() -> None:
    assert PROTOCOLS["infer-static"].recipe.epochs == (4 + 1) * PROTOCOLS["infer-dyn"].recipe.epochs  # M = 4 teachers


def test_quick_is_as_long_for_every_set() -> None:
    recipe = PROTOCOLS["quick"].recipe
    assert {recipe.total_steps(images) for images in (10, 100, 1437)} == {800}


def test_fkd_is_the_evaluator_of_cv_dd() -> None:
    """AdamW 1e-3 with decay 0.01, 300 epochs, batches of 16 in groups of 8, crops from 0.08 on, KL at T = 20."""
    fkd = PROTOCOLS["fkd-cutmix"]
    assert isinstance(fkd, TapeProtocol)
    assert fkd.training == TapeTraining(epochs=300, lr=1e-3, stretch=1.0, weight_decay=0.01)
    assert fkd.tape == TapeRecipe(epochs=300, batch=16, micro=8, smallest_crop=0.08)
    assert (fkd.temperature, fkd.labels, fkd.architectures, fkd.full_epochs) == (20.0, "stored", ("resnet18",), 0)
    for name, training in (
        ("fkd-cutmix-half", {"stretch": 2.0}),
        ("fkd-cutmix-slow", {"lr": 5e-4}),
        ("fkd-cutmix-slow-half", {"lr": 5e-4, "stretch": 2.0}),
    ):
        variant = PROTOCOLS[name]
        words = {"name": name, "summary": variant.summary}
        assert variant == replace(fkd, **words, training=replace(fkd.training, **training))


@pytest.mark.parametrize(("name", "share"), [("fkd-cutmix", 0.0), ("fkd-cutmix-half", 0.5), ("fkd-quick", 0.0)])
def test_the_rate_of_a_tape_falls_to_nothing_or_to_half(name: str, share: float) -> None:
    """One batch an epoch: eta 1 and eta 2; within a last step of it."""
    protocol = PROTOCOLS[name]
    assert isinstance(protocol, TapeProtocol)
    total = protocol.training.total_steps(1)
    rates = [protocol.training.lr_at(step, 1) / 1e-3 for step in range(total)]
    assert rates[0] == pytest.approx(1)
    assert rates == sorted(rates, reverse=True)
    assert protocol.training.lr_at(total, 1) / 1e-3 == pytest.approx(share)


def test_fkd_quick_is_as_long_for_every_set() -> None:
    quick = PROTOCOLS["fkd-quick"]
    assert isinstance(quick, TapeProtocol)
    assert {quick.training.total_steps(batches) for batches in (1, 7, 90)} == {2100}
    assert (quick.tape, quick.temperature, quick.full_epochs) == (PROTOCOLS["fkd-cutmix"].tape, 20.0, 40)  # type: ignore[union-attr]
    assert quick.architectures == PROTOCOLS["quick"].architectures


def test_transfer_is_the_evaluator_of_krr_st() -> None:
    """1,000 epochs of 1,000 images in batches of 256 are 4,000 steps."""
    protocol = PROTOCOLS["transfer-cifar"]
    assert isinstance(protocol, TransferProtocol)
    assert protocol.features == TrainingRecipe(
        steps=4000, batch=256, lr=0.1, schedule="constant", momentum=0.9, weight_decay=1e-3, augment="none"
    )
    assert protocol.classes == TrainingRecipe(
        steps=4000, batch=256, lr=0.01, schedule="half", momentum=0.9, weight_decay=5e-4, augment="dsa"
    )
    assert protocol.tuning == TrainingRecipe(
        steps=10_000, batch=256, lr=0.01, schedule="cosine", momentum=0.9, weight_decay=5e-4, augment="crop-flip"
    )
    assert (protocol.probes, protocol.probe_draws) == ((0.01, 0.05, 1.0), 10)


@pytest.mark.parametrize(
    ("name", "source", "target", "student"),
    [
        ("transfer-cifar", "cifar100", "cifar10", "pyramid3"),
        ("transfer-cifar-back", "cifar10", "cifar100", "pyramid3"),
        ("transfer-tiny", "tinyimagenet", "cifar10", "pyramid4"),
        ("transfer-small", "cifar100", "cifar10@200", "pyramid3-x0.125"),
        ("transfer-small-back", "cifar10", "cifar100@100", "pyramid3-x0.125"),
        ("transfer-digits", "digits-low", "digits-high", "pyramid2-x0.125"),
    ],
)
def test_where_transfers_lead(name: str, source: str, target: str, student: str) -> None:
    protocol = PROTOCOLS[name]
    assert isinstance(protocol, TransferProtocol)
    assert (protocol.source, protocol.target, protocol.architectures) == (source, target, (student,))
    assert protocol.students_for(SPECS["digits"]) == protocol.architectures
    assert (protocol.full_epochs > 0) == ("small" in name or "digits" in name)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("probes", (), "probes are []; expected shares of the labels, ascending in (0, 1]"),
        ("probes", (0.5, 0.1), "probes are [0.5, 0.1]; expected"),
        ("probes", (0.1, 0.1), "probes are [0.1, 0.1]; expected"),
        ("probes", (0.0, 1.0), "probes are [0.0, 1.0]; expected"),
        ("probes", (0.5, 1.5), "probes are [0.5, 1.5]; expected"),
        ("probes", (float("nan"),), "probes are [nan]; expected"),
        ("probe_draws", 0, "probe_draws is 0; expected at least 1"),
        ("probe_l2", 0.0, "probe_l2 is 0.0; expected a positive number"),
        ("probe_l2", float("inf"), "probe_l2 is inf; expected a positive number"),
        ("probe_l2", float("nan"), "probe_l2 is nan; expected a positive number"),
    ],
)
def test_rejects_transfers_out_of_range(transfer: TransferProtocol, field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(transfer, **{field: value})
    assert str(caught.value).startswith(message)


def test_graph_students_try_every_pool_with_every_rate() -> None:
    graphs = PROTOCOLS["graphs"]
    assert isinstance(graphs, GraphProtocol)
    assert graphs.candidates == [("sum", 1e-2), ("sum", 1e-3), ("mean", 1e-2), ("mean", 1e-3)]
    assert graphs.checkpoints[-1] == graphs.steps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0), ("batch", 0), ("weight_decay", -1.0), ("weight_decay", float("nan")), ("pools", ()),
        ("pools", ("max",)), ("lrs", ()), ("lrs", (0.0,)), ("checkpoints", ()), ("checkpoints", (0,)),
        ("checkpoints", (401,)), ("checkpoints", (100, 50)), ("checkpoints", (50, 50)),
    ],
)  # fmt: skip
def test_rejects_graph_protocols_out_of_range(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{field} is .*; expected "):
        replace(PROTOCOLS["graphs"], **{field: value})


def test_find_protocol() -> None:
    assert find_protocol("quick") is PROTOCOLS["quick"]
    with pytest.raises(UnknownNameError, match=r"unknown protocol 'infer-statc'; did you mean 'infer-static'\? Known:"):
        find_protocol("infer-statc")
