"""Evaluation protocols, by name.

Scores of different protocol ids are different quantities and never share a ranking. To change a protocol is to make
another one: add it under a new name.
"""

from dataclasses import replace

from dd_bench.errors import UnknownNameError
from dd_bench.learn.tape import TapeRecipe
from dd_bench.learn.tape_training import TapeTraining
from dd_bench.learn.training import TrainingRecipe
from eval.protocol_kinds import AnyProtocol, EvalProtocol, GraphProtocol, TapeProtocol, TransferProtocol

# INFER's post-evaluation (zhangxin-xd/UFC, ufc_validation/val_static.py); its length differs by protocol
_INFER_STUDENT = TrainingRecipe(
    epochs=400, batch=64, optimizer="adamw", lr=1e-3, weight_decay=0.01, mix="mixup", mix_alpha=0.8
)

_HARD = EvalProtocol(
    name="hard",
    summary="Class labels; 1000 epochs of SGD with DSA, a tenth of the rate from the middle on "
    "(the DC/DSA/DM evaluator).",
    architectures=("convnet3",),
    # Theirs, and MTT's, runs one epoch more, at the low rate, and MTT's DSA aligns corners
    recipe=TrainingRecipe(epochs=1000, batch=256, lr=0.01, schedule="half", augment="dsa"),
    labels="class",
    full_epochs=60,
)
_MTT = replace(
    _HARD,
    name="mtt",
    summary="Class labels; 1000 epochs of SGD with DSA at the rate that the set learned, else 0.01, a tenth from the "
    "middle on (MTT's evaluator).",
    architectures=("convnet",),
    learned_lr=True,
)

_FKD = TapeProtocol(
    name="fkd-cutmix",
    summary="Labels of a recorded tape of crops, flips and CutMix; 300 epochs of AdamW, batch 16 in groups of 8, KL at "
    "temperature 20, the rate falling to 0 (CV-DD's evaluator; last epoch).",
    architectures=("resnet18",),
    training=TapeTraining(epochs=300),
    tape=TapeRecipe(epochs=300),
)

# KRR-ST's evaluation (algorithms/pretrain_krr_st.py, pretrain_dc.py and finetune.py in db-Lee/selfsup_dd): 1,000 epochs
# of 1,000 images are 4,000 steps, here for sets of every size
_TRANSFER = TransferProtocol(
    name="transfer-cifar",
    summary="Trained on a set of CIFAR-100, then fine-tuned on CIFAR-10 with all labels (KRR-ST's evaluator, 4000 and "
    "10000 steps of SGD; last step), and probed with 1, 5 and 100 % of them.",
    architectures=("pyramid3",),
    source="cifar100",
    target="cifar10",
    features=TrainingRecipe(
        steps=4000, batch=256, lr=0.1, schedule="constant", weight_decay=1e-3, augment="none"
    ),
    classes=TrainingRecipe(steps=4000, batch=256, lr=0.01, schedule="half", augment="dsa"),
    tuning=TrainingRecipe(steps=10_000, batch=256, lr=0.01),
    taped=TapeTraining(epochs=300),
)  # fmt: skip
_TRANSFER_SMALL = replace(
    _TRANSFER,
    name="transfer-small",
    summary="Trained on a set of CIFAR-100 for 400 steps, then fine-tuned on cifar10@200 with all labels for 400 "
    "steps, and probed with 1, 5 and 100 % of them. Made for a CPU.",
    architectures=("pyramid3-x0.125",),
    target="cifar10@200",
    features=replace(_TRANSFER.features, steps=400, batch=100),
    classes=replace(_TRANSFER.classes, steps=400, batch=100),
    tuning=replace(_TRANSFER.tuning, steps=400, batch=128),
    taped=TapeTraining(steps=2100),
    full_epochs=10,
)

PROTOCOLS: dict[str, AnyProtocol] = {
    protocol.name: protocol
    for protocol in (
        _HARD,
        _MTT,
        replace(
            _MTT,
            name="mtt-zca",
            summary="Class labels; images whitened by ZCA of the training split, then 1000 epochs of SGD with DSA at "
            "the rate that the set learned, else 0.01, a tenth from the middle on (MTT's evaluator with ZCA).",
            whiten=True,
        ),
        EvalProtocol(
            name="infer-static",
            summary="Stored labels, interpolated by mixup; 400 epochs of AdamW, KL at temperature 30 "
            "(INFER's evaluator; last epoch).",
            architectures=("resnet18", "convnet3-batch"),
            recipe=_INFER_STUDENT,
            temperature=30.0,
        ),
        EvalProtocol(
            name="infer-dyn",
            summary="The set's teachers label every mixed batch; 80 epochs of AdamW, KL at temperature 30 (INFER+Dyn; "
            "teachers count as bytes).",
            architectures=("resnet18", "convnet3-batch"),
            recipe=replace(_INFER_STUDENT, epochs=80),
            labels="teachers",
            temperature=30.0,
        ),
        EvalProtocol(
            name="quick",
            summary="Stored labels, interpolated by mixup; 800 steps of AdamW on a narrow ConvNet, each on 64 images "
            "whatever the set's size. Made for a CPU.",
            architectures=("convnet3-batch-x0.25",),
            recipe=replace(_INFER_STUDENT, epochs=0, steps=800, channels_last=True),
            full_epochs=40,
        ),
        _FKD,
        replace(
            _FKD,
            name="fkd-cutmix-half",
            summary="As fkd-cutmix, the rate falling to half (CV-DD's eta 2; last epoch).",
            training=replace(_FKD.training, stretch=2.0),
        ),
        replace(
            _FKD,
            name="fkd-cutmix-slow",
            summary="As fkd-cutmix, from half the rate (CV-DD's for ImageNette and for ResNet-101; last epoch).",
            training=replace(_FKD.training, lr=5e-4),
        ),
        replace(
            _FKD,
            name="fkd-cutmix-slow-half",
            summary="As fkd-cutmix, from half the rate, which falls to a quarter (CV-DD's eta 2; last epoch).",
            training=replace(_FKD.training, lr=5e-4, stretch=2.0),
        ),
        replace(
            _FKD,
            name="fkd-quick",
            summary="Labels of a recorded tape, as in fkd-cutmix; 2100 batches of 16 on a narrow ConvNet, whatever the "
            "set's size. Made for a CPU.",
            architectures=("convnet3-batch-x0.25",),
            training=TapeTraining(steps=2100),
            full_epochs=40,
        ),
        _TRANSFER,
        replace(
            _TRANSFER,
            name="transfer-cifar-back",
            summary="As transfer-cifar, from CIFAR-10 to CIFAR-100.",
            source="cifar10",
            target="cifar100",
        ),
        replace(
            _TRANSFER,
            name="transfer-tiny",
            summary="As transfer-cifar, from Tiny-ImageNet to CIFAR-10, whose images are enlarged to 64 pixels.",
            architectures=("pyramid4",),
            source="tinyimagenet",
            target="cifar10",
        ),
        _TRANSFER_SMALL,
        replace(
            _TRANSFER_SMALL,
            name="transfer-small-back",
            summary="As transfer-small, from a set of CIFAR-10 to cifar100@100.",
            source="cifar10",
            target="cifar100@100",
        ),
        replace(
            _TRANSFER_SMALL,
            name="transfer-digits",
            summary="Trained on a set of the digits 0 to 4 for 400 steps, then fine-tuned on the digits 5 to 9 with "
            "all labels for 100 steps, and probed with 1, 5 and 100 % of them. Made for a CPU.",
            architectures=("pyramid2-x0.125",),
            source="digits-low",
            target="digits-high",
            features=replace(_TRANSFER.features, steps=400, batch=50),
            classes=replace(_TRANSFER.classes, steps=400, batch=50),
            tuning=replace(_TRANSFER.tuning, steps=100, batch=64),
        ),
        GraphProtocol(
            name="graphs",
            summary="Class labels; 400 steps of Adam for each pool (sum, mean) and rate (0.01, 0.001), of which the "
            "validation split chooses one and its length.",
            architectures=("gcn2-x0.5", "gat2-x0.5", "gin2-x0.5"),
            steps=400,
            batch=32,
            checkpoints=(50, 100, 200, 400),
        ),
    )
}


def find_protocol(name: str) -> AnyProtocol:
    """Returns the protocol ``name``, or raises UnknownNameError with the nearest one."""
    if name not in PROTOCOLS:
        raise UnknownNameError("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
