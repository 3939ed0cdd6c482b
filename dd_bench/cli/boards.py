"""``ddbench leaderboard``: boards from records."""

import sys
from pathlib import Path

import click

from dd_bench.cli import options


@click.command("leaderboard", short_help="Write or verify the boards.")
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a board is not what its records say.")
@options.boards
def leaderboard(check: bool, boards: Path) -> None:
    """Write leaderboards/*.md and their pictures from the records in leaderboards/results, or verify them."""
    from eval.leaderboard import INDEX, PICTURES, write
    from eval.leaderboard import check as find_drift

    results = boards / "results"
    if not check:
        changed = write(results, boards)
        pages = [path for path in changed if path.parent == boards]
        for path in pages:
            click.echo(f"{'written' if path.exists() else 'removed'}: {options.shown(path)}")
        if count := len(changed) - len(pages):
            click.echo(f"pictures written or removed: {count} in {options.shown(boards / PICTURES)}")
        click.echo(f"boards are up to date: {options.shown(boards / INDEX)}")
        return
    drift = find_drift(results, boards)
    for line in drift:
        click.echo(line, err=True)
    if drift:
        click.echo("boards are not what their records say; the same command without --check writes them", err=True)
        sys.exit(1)
    click.echo(f"boards are what their records say: {options.shown(boards / INDEX)}")
