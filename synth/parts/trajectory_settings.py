"""The settings of ``mtt`` and ``ast``, by preset: published ones for each data set and ipc, and ours for a CPU.

Published: MTT's as its author gave them to dc_benchmark (justincui03/dc_benchmark at 2a57711, methods/tm/readme.md;
the row CIFAR-10 ipc 10 of MTT's own table is a misprint and diverges, GeorgeCazenavette/mtt-distillation issue 31).
AST's stand in its authors' scripts for some settings only; ``_AST`` says which, and what the others are instead.
"""

from dataclasses import replace
from typing import Any

from synth.parts.expert_training import ExpertRecipe
from synth.parts.experts import ExpertPlan

_MTT_RECIPE = ExpertRecipe(epochs=41, keep=41)  # of 50 published epochs the last nine are never asked for
AST_RECIPE = ExpertRecipe(epochs=50, keep=41, lr=0.003, momentum=0.9, weight_decay=1e-3, drop=0.6, ramp=10, penalty=2.0)

EXPERTS = ExpertPlan("convnet3", _MTT_RECIPE, whiten=True)

# data set, ipc: N, M, T⁺, synthetic batch (0: all), ZCA, lr of images, lr of the step size, the step size at first
_Row = tuple[int, int, int, int, bool, float, float, float]
_MTT: dict[tuple[str, int], _Row] = {
    ("cifar10", 1): (50, 2, 2, 0, True, 100, 1e-7, 0.01),
    ("cifar10", 10): (30, 2, 20, 0, True, 100, 1e-5, 0.001),
    ("cifar10", 50): (30, 2, 40, 0, False, 1000, 1e-5, 0.001),
    ("cifar100", 1): (20, 3, 20, 0, True, 1000, 1e-5, 0.01),
    ("cifar100", 10): (20, 2, 20, 0, False, 1000, 1e-5, 0.01),
    ("cifar100", 50): (80, 2, 40, 125, True, 1000, 1e-5, 0.01),
    ("tinyimagenet", 1): (10, 2, 10, 0, False, 1e4, 1e-4, 0.01),
    ("tinyimagenet", 10): (20, 2, 40, 200, False, 1e4, 1e-4, 0.01),
    ("tinyimagenet", 50): (20, 2, 40, 300, False, 1e4, 1e-4, 0.01),
}
PUBLISHED = frozenset(name for name, _ in _MTT)
_AST: dict[tuple[str, int], _Row] = {
    ("cifar10", 1): (50, 2, 2, 0, True, 100, 1e-7, 0.01),  # not in the scripts: FTD's row, MTT's ZCA
    ("cifar10", 10): (30, 2, 20, 0, True, 100, 1e-6, 0.01),  # distill.sh, smooth experts
    ("cifar10", 50): (30, 2, 40, 0, False, 1000, 1e-5, 0.01),  # not in the scripts: FTD's row
    ("cifar100", 1): (20, 3, 20, 0, True, 1000, 1e-5, 0.01),  # README
    ("cifar100", 10): (20, 2, 30, 128, False, 1000, 1e-5, 0.01),  # distill.sh
    ("cifar100", 50): (80, 2, 40, 700, False, 1000, 1e-5, 0.01),  # distill.sh
    ("tinyimagenet", 1): (10, 2, 10, 0, False, 1e4, 1e-4, 0.01),  # distill.sh
    ("tinyimagenet", 10): (20, 2, 40, 500, False, 1e4, 1e-4, 0.01),  # not in the scripts: FTD's row
    ("tinyimagenet", 50): (20, 2, 40, 300, False, 1e4, 1e-4, 0.01),  # nor in FTD's table: MTT's row
}
_REPRESENTATIVES = {"initialization": "representative"}
_BALANCE = {"balance": True}
_ON_THE_WAY = {"waypoints": "equal", "perturbation": 1.0}
_COMPONENTS = _REPRESENTATIVES | _BALANCE | _ON_THE_WAY
# The components that the scripts turn on; where they are silent, all of them
_AST_COMPONENTS: dict[tuple[str, int], dict[str, Any]] = {
    ("cifar10", 10): _BALANCE | _ON_THE_WAY,
    ("cifar100", 10): _REPRESENTATIVES | _ON_THE_WAY,
    ("cifar100", 50): _REPRESENTATIVES,
    ("tinyimagenet", 1): _ON_THE_WAY,
}


def _published(dataset: str, recipe: ExpertRecipe, row: _Row) -> dict[str, Any]:
    inner_steps, expert_epochs, max_start, batch, whiten, lr_images, lr_rate, rate = row
    architecture = "convnet4" if dataset == "tinyimagenet" else "convnet3"
    return {"experts": ExpertPlan(architecture, recipe, whiten=whiten), "inner_steps": inner_steps,
            "expert_epochs": expert_epochs, "max_start": max_start, "inner_batch": batch, "lr_images": lr_images,
            "lr_rate": lr_rate, "rate": rate, "protocol": "mtt-zca" if whiten else "mtt"}  # fmt: skip


# Ours: narrow networks, few experts, short epochs; chosen by students scored on training images, never on test images
_DIGITS = {
    "experts": ExpertPlan("convnet2-x0.25", ExpertRecipe(epochs=20, keep=11, batch=64, lr=0.03), count=20),
    "iterations": 500, "inner_steps": 20, "expert_epochs": 2, "max_start": 10, "lr_images": 1000.0, "lr_rate": 1e-5,
    "rate": 0.03, "protocol": "mtt",
}  # fmt: skip
_SMALL = {
    "experts": ExpertPlan("convnet3-x0.25", ExpertRecipe(epochs=12, keep=9, batch=64, lr=0.03), count=8),
    "iterations": 300, "inner_steps": 20, "expert_epochs": 2, "max_start": 8, "lr_images": 1000.0, "lr_rate": 1e-5,
    "rate": 0.01, "protocol": "mtt",
}  # fmt: skip
_CPU = {"digits-ipc1": _DIGITS, "digits-ipc10": _DIGITS | {"inner_batch": 50, "lr_images": 300.0},
        "small-ipc1": _SMALL, "small-ipc10": _SMALL | {"inner_batch": 25}}  # fmt: skip


def _smooth(settings: dict[str, Any], rate: float) -> dict[str, Any]:
    """Returns our settings with AST's experts and all of its components."""
    plan = settings["experts"]
    recipe = replace(plan.recipe, lr=0.01, momentum=0.9, weight_decay=1e-3, drop=0.6, ramp=5, penalty=2.0)
    smooth = {"experts": replace(plan, recipe=recipe), "inner_momentum": 0.9, "rate": rate}
    return settings | smooth | _COMPONENTS


MTT_SETTINGS: dict[str, dict[str, Any]] = _CPU | {
    f"published-{name}-ipc{ipc}": _published(name, _MTT_RECIPE, row) for (name, ipc), row in _MTT.items()
}
AST_SETTINGS: dict[str, dict[str, Any]] = {
    name: _smooth(settings, rate=0.005 if name.startswith("digits") else 0.003) for name, settings in _CPU.items()
} | {
    f"published-{name}-ipc{ipc}": _published(name, AST_RECIPE, row)
    | {"inner_momentum": 0.9}
    | _AST_COMPONENTS.get((name, ipc), _COMPONENTS)
    for (name, ipc), row in _AST.items()
}
