"""``ddbench eval``: judge sets beside their controls."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import click

from dd_bench.cli import options
from dd_bench.cli.judging import Judge


@click.command(
    "eval",
    short_help="Train students on sets and record what they reach.",
    epilog=options.examples(
        "ddbench eval",
        "ddbench eval 3f9a12 --protocol hard --arch convnet3 --arch resnet18 --runs 10",
    ),
)
@click.argument("sets", nargs=-1, metavar="[SET]...")
@click.option("--protocol", default="native", show_default=True, help="native (each set's own) or a protocol's name.")
@click.option("--arch", "architectures", multiple=True, help="Student; by default the protocol's own. Repeatable.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Students of each set.")
@click.option(
    "--control-runs", type=click.IntRange(1), default=1, show_default=True,
    help="Students of each control set; there are several sets, since the draw is most of a control's noise.",
)  # fmt: skip
@options.device
@options.deterministic
@options.data_dir
@options.boards
@options.wandb
def evaluate(
    sets: tuple[str, ...], protocol: str, architectures: tuple[str, ...], runs: int, control_runs: int, device: str,
    deterministic: bool, data_dir: Path | None, boards: Path, wandb: Literal["online", "offline"] | None,
) -> None:  # fmt: skip
    """Train fresh students on sets and record what they reach on the test split.

    SET is an id, the beginning of one, or a path; without any, everything in the store is judged, and what cannot be
    is told, passed over, and makes the exit code 1. Only what is missing is trained. Each set's controls (above all
    random real images or graphs with the same kind of labels) are made and judged beside it, and so are baselines: all
    real data where the protocol says how, and for graphs nets without training and counts of nodes and edges. The
    boards are written at the end.
    """
    from dd_bench.data.catalogue import load_training
    from dd_bench.environment import choose_device, compute_deterministically, keep_freed_memory
    from dd_bench.files import home, slug
    from dd_bench.mirror import Mirror
    from eval.leaderboard import INDEX, write
    from eval.protocols import find_protocol

    keep_freed_memory()
    if deterministic:
        compute_deterministically()
    judge = Judge(
        protocol=None if protocol == "native" else find_protocol(protocol),
        architectures=_canonical(architectures),
        runs=runs,
        control_runs=control_runs,
        device=choose_device(device),
        data_dir=data_dir,
        results=boards / "results",
        patient=not sets,
    )
    chosen = judge.choose(sets)
    datasets = sorted({stored.provenance.dataset for stored in chosen})
    with ExitStack() as stack:
        if wandb is not None:
            config = {"protocol": protocol, "runs": runs, "sets": [stored.id for stored in chosen]}
            judge.mirror = stack.enter_context(
                Mirror(wandb, folder=home() / "wandb", name=f"eval {protocol}", job="eval", config=config)
            )
        for dataset in datasets:
            with judge.passing_over():
                judge.judge_all(
                    [one for one in chosen if one.provenance.dataset == dataset], load_training(dataset, data_dir)
                )
        if judge.mirror is not None:
            judge.mirror.summarise({"students": judge.trained})
    write(judge.results, boards)
    if judge.trained == 0 and not judge.faults:
        click.echo("nothing to do: every student asked for is on record")
    click.echo(f"{judge.trained} students trained; boards: {options.shown(boards / INDEX)}")
    for dataset in datasets:
        click.echo(f"  {dataset}: {options.shown(boards / f'{slug(dataset)}.md')}")
    if judge.faults:
        sys.exit(1)


def _canonical(names: Sequence[str]) -> list[str]:
    """Returns architectures in the one spelling that records carry, each once."""
    from dd_bench.models import Architecture

    return list(dict.fromkeys(str(Architecture.parse(name)) for name in names))
