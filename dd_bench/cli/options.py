"""Options that several commands share, and the values behind them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

data_dir = click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), default=None,
    help="Folder of prepared data sets; before DDBENCH_DATA and ~/.cache/ddbench.",
)  # fmt: skip
device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
deterministic = click.option(
    "--deterministic", is_flag=True,
    help="The same bytes each time also on a GPU, at a price in time; what cannot be so is refused.",
)  # fmt: skip
boards = click.option(
    "--boards", type=click.Path(file_okay=False, path_type=Path), envvar="DDBENCH_LEADERBOARDS",
    default=Path("leaderboards"), show_default=True, help="Folder of the boards; records are in its results/.",
)  # fmt: skip
wandb = click.option(
    "--wandb", type=click.Choice(["online", "offline"]), default=None,
    help="Mirror the reports on Weights & Biases; offline needs no account.",
)  # fmt: skip


def examples(*lines: str) -> str:
    """Returns the end of a help page: lines that are shown as they are."""
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])  # click keeps paragraphs that begin with \b


def settings(*, help_text: str) -> Callable[[Any], Any]:
    """Returns the repeatable option ``--set NAME=VALUE``, which arrives as a dict of strings."""
    return click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", callback=_pairs, help=help_text)


def _pairs(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, content = value.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{value!r} is no setting; expected NAME=VALUE, for example lr=0.1")
        pairs[name.strip()] = content.strip()
    return pairs


def shown(path: Path) -> str:
    """Returns a path as people want to read it: relative to the current folder where that is shorter."""
    absolute = path.resolve()
    relative = os.path.relpath(absolute)
    return relative if len(relative) < len(str(absolute)) else str(absolute)
