"""``ddbench doctor``: is everything here, and is it sound?"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from dd_bench.cli import options

_LOW_BYTES = 100_000_000  # a few teachers, sets and checkpoints


@click.command("doctor", short_help="Check that everything is here and sound.")
@options.data_dir
@options.boards
def doctor(data_dir: Path | None, boards: Path) -> None:
    """Check versions, devices, data, the store and the boards; exit with 1 if something is damaged."""
    import torch

    from dd_bench.data.catalogue import all_specs, load_training, other_specs
    from dd_bench.data.prepare import locate
    from dd_bench.environment import choose_device, describe_device, library_versions
    from dd_bench.errors import ConfigError, DataError
    from dd_bench.files import home, human_bytes

    device = choose_device("auto")
    click.echo("versions  " + ", ".join(f"{name} {number}" for name, number in library_versions().items()))
    click.echo(f"device    {describe_device(device)}, {torch.get_num_threads()} CPU threads")
    problems = []
    for name in [*all_specs(), *other_specs(data_dir)]:
        found = locate(name, data_dir)
        click.echo(f"data      {name}: {options.shown(found) if found else 'not here yet; prepared when first used'}")
        try:
            if found:
                load_training(name, data_dir)
        except (ConfigError, DataError) as error:
            problems.append(str(error))

    nearest = _nearest(home())
    free = shutil.disk_usage(nearest).free
    click.echo(f"home      {options.shown(home())}, {human_bytes(free)} free")
    if free < _LOW_BYTES:
        problems.append(f"{nearest} has {human_bytes(free)} left, expected {human_bytes(_LOW_BYTES)}; make room there")
    problems += [f"{folder} is no folder that can be written" for folder in (home(), boards) if not _usable(folder)]
    sound, damaged = _sets()
    click.echo(f"sets      {sound} sound (every byte verified), {len(damaged)} damaged")
    click.echo(f"boards    {options.shown(boards)}")
    problems += [*damaged, *_drift(boards)]
    for problem in problems:
        click.echo(f"PROBLEM   {problem}", err=True)
    if problems:
        sys.exit(1)
    click.echo("all is well")


def _nearest(path: Path) -> Path:
    """Returns the path itself, or the nearest of its parents that exists."""
    return next(place for place in (path, *path.resolve().parents) if place.exists())


def _usable(folder: Path) -> bool:
    """Says whether files can be written in ``folder``, or the folder be made."""
    nearest = _nearest(folder)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


def _sets() -> tuple[int, list[str]]:
    """Returns how many sets of the store are sound, and what is wrong with the others."""
    from dd_bench.errors import InvalidSetError
    from dd_bench.store import Store
    from dd_bench.stored import DamagedSet

    sound, damaged = 0, []
    for found in Store().list():
        try:
            if isinstance(found, DamagedSet):
                raise found.error
            found.load()
            sound += 1
        except InvalidSetError as error:
            damaged.append(str(error))
    return sound, damaged


def _drift(boards: Path) -> Iterator[str]:
    """Yields where the boards are not what their records say; nothing where there are no boards yet."""
    from dd_bench.errors import DDBenchError
    from eval.leaderboard import check

    try:
        if boards.is_dir():
            yield from check(boards / "results", boards)
    except DDBenchError as error:
        yield str(error)
