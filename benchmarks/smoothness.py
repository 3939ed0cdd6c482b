"""Prints how far experts of trajectory matching move in each epoch, and how good they become.

    python benchmarks/smoothness.py [--dataset cifar10@1000] [--arch convnet3-x0.25] [--epochs 50] [--recipe ast …]

AST's claim (arXiv 2310.10541) is that momentum makes better experts whose first epochs are too steep to follow, and
that a ramp on the loss and a gradient penalty take the steepness away. Experts are trained on nine tenths of the
training split, with the published recipes but for the number of epochs; accuracy is that on the last tenth. A recipe's
worst epoch is the largest ‖θ_{e+1} - θ_e‖² of any of its epochs and experts.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from dd_bench.data.images import ImageData, load
from dd_bench.environment import choose_device, describe_device, keep_freed_memory
from dd_bench.models import build
from dd_bench.run import Run
from dd_bench.seeding import seeded
from synth.parts.encoded import EncodedImages, encode_images
from synth.parts.expert_training import ExpertRecipe, train_expert
from synth.parts.inner import FlatNetwork
from synth.parts.teachers import split_held_out
from synth.parts.trajectory_settings import AST_RECIPE

_MTT = ExpertRecipe()
_RECIPES = {
    "mtt": _MTT,
    "mtt with momentum": replace(_MTT, momentum=0.9, weight_decay=1e-3),
    "ast without ramp and penalty": replace(AST_RECIPE, ramp=0, penalty=0.0),
    "ast without penalty": replace(AST_RECIPE, penalty=0.0),
    "ast without ramp": replace(AST_RECIPE, ramp=0),
    "ast": AST_RECIPE,
}


@click.command()
@click.option("--dataset", default="cifar10@1000", show_default=True)
@click.option("--arch", default="convnet3-x0.25", show_default=True)
@click.option("--epochs", default=50, show_default=True, help="Of each expert; the ramp stays ten epochs.")
@click.option("--seeds", default=1, show_default=True, help="Experts of each recipe.")
@click.option("--recipe", "names", multiple=True, type=click.Choice(list(_RECIPES)), help="By default all. Repeatable.")
@click.option("--device", default="auto", show_default=True)
def main(dataset: str, arch: str, epochs: int, seeds: int, names: tuple[str, ...], device: str) -> None:
    """Trains experts of up to six recipes."""
    keep_freed_memory()
    console, place = Console(highlight=False), choose_device(device)
    data = load(dataset)
    kept, held_out = split_held_out(len(data), 0.1, seed=0)
    train = encode_images(_part(data, kept), whiten=False, device=place)
    test = encode_images(_part(data, held_out), whiten=False, device=place)
    table = Table("recipe", "top-1 %", "worst epoch", "first", "last", "path length²", "s", title=f"{dataset}, {arch}")
    for name in names or _RECIPES:
        recipe = replace(_RECIPES[name], epochs=epochs, keep=epochs)
        scores, moves, seconds = [], [], 0.0
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder, seeded(seed):
                network = FlatNetwork(build(arch, train.spec).to(place))
                run = Run(Path(folder))
                path, moved = train_expert(network, recipe, train, seed=seed, run=run, label=name)
            scores.append(_accuracy(network, path[-1].to(place), test))
            moves.append(moved)
            seconds += run.seconds
        each = torch.stack(moves)
        cells = each.max(), each[:, 0].mean(), each[:, -1].mean(), each.sum(1).mean()
        table.add_row(name, f"{100 * sum(scores) / seeds:.1f}", *(f"{float(cell):.3f}" for cell in cells),
                      f"{seconds / seeds:.0f}")  # fmt: skip
        console.print(name, " ".join(f"{value:.3f}" for value in each.mean(0).tolist()))
    console.print(f"{describe_device(place)}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    console.print(table)


def _part(data: ImageData, rows: torch.Tensor) -> ImageData:
    return ImageData(data.spec, data.images[rows], data.labels[rows], f"{data.fingerprint} in part")


@torch.no_grad()
def _accuracy(network: FlatNetwork, theta: torch.Tensor, test: EncodedImages) -> float:
    hits = torch.cat([network(theta, part).argmax(1) for part in torch.split(test.images, 500)]) == test.labels
    return float(hits.float().mean())


if __name__ == "__main__":
    main()
