"""``ddbench clean``: what can go, how large it is, and away with it."""

import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from dd_bench.cli import options

if TYPE_CHECKING:
    from dd_bench.housekeeping import Waste

_HEADINGS = {
    "run": "unfinished runs that nobody is at",
    "leftover": "leftovers of writes that were cut off",
    "network": "networks that no set names as a teacher",
    "lock": "lock files that nobody holds",
    "cache": "caches, which can always be made again",
}


@click.command(
    "clean",
    short_help="Show, or remove, what can go.",
    epilog=options.examples(
        "ddbench clean                            show what can go; nothing is touched",
        "ddbench clean --older-than 30 --yes      remove it, what was written in the last 30 days excepted",
    ),
)
@click.option("--yes", is_flag=True, help="Remove what is shown; without it nothing is touched.")
@click.option(
    "--older-than", "days", type=click.IntRange(0), default=7, show_default=True, metavar="DAYS",
    help="Age from which unfinished runs, and networks that no set names, go.",
)  # fmt: skip
@click.option("--caches", "with_caches", is_flag=True, help="Remove also what several sets share and can make again.")
def clean(yes: bool, days: int, with_caches: bool) -> None:
    """Show what can go from the folder of sets, teachers and runs; with --yes, remove it.

    These are unfinished runs that no process is at, leftovers of writes that were cut off, networks that no set in the
    store names, and lock files that nobody holds; with --caches also parts that sets share, such as learned offsets,
    which can be made again. While a process is at work, networks and caches stay. Sets, records, reports and experts
    always stay, and so does what lies elsewhere and is only linked.
    """
    from dd_bench.files import home, human_bytes
    from dd_bench.housekeeping import survey
    from synth.parts.remembered import remembered_files

    found = survey(days, remembered_files())
    going = [waste for waste in found.waste if with_caches or waste.kind != "cache"]
    spared = [waste for waste in found.waste if waste not in going]
    for kind in _HEADINGS:
        _show(kind, [waste for waste in found.waste if waste.kind == kind], spared=not with_caches and kind == "cache")
    for line in found.stays:
        click.echo(f"stays: {line}")

    place, again = options.shown(home()), f"ddbench clean{'' if days == 7 else f' --older-than {days}'}"
    size = human_bytes(sum(waste.size_bytes for waste in going))
    if not going:
        click.echo(f"nothing can go from {place}; next: {f'{again} --caches' if spared else 'ddbench list runs'}")
    elif not yes:
        click.echo(f"{size} can go from {place}; next: {again}{' --caches' if with_caches else ''} --yes")
    else:
        freed, faults = _remove(going)
        click.echo(f"{human_bytes(freed)} freed in {place}; next: ddbench list runs")
        if faults:
            sys.exit(1)


def _show(kind: str, found: "list[Waste]", *, spared: bool) -> None:
    """Prints one kind of waste: runs, leftovers and networks one a line, locks and caches by folder."""
    from dd_bench.files import human_bytes
    from dd_bench.runs import human_age

    if not found:
        return
    click.echo(_HEADINGS[kind] + (" (they stay; --caches removes them, too)" if spared else ""))
    if kind in ("lock", "cache"):
        for folder in sorted({waste.path.parent for waste in found}):
            sizes = [waste.size_bytes for waste in found if waste.path.parent == folder]
            files = f"{len(sizes)} file{'' if len(sizes) == 1 else 's'}"
            click.echo(f"  {human_bytes(sum(sizes)):>8}  {options.shown(folder)}: {files}")
        return
    now = time.time()
    for waste in found:
        click.echo(
            f"  {human_bytes(waste.size_bytes):>8}  {options.shown(waste.path)}, {human_age(now - waste.written)}"
        )


def _remove(going: "Iterable[Waste]") -> tuple[int, int]:
    """Removes what was shown, and returns the bytes that are free now and how many things the disk did not let go."""
    from dd_bench.housekeeping import remove

    freed = faults = 0
    for waste in going:
        try:
            if remove(waste):
                freed += waste.size_bytes
            elif waste.kind != "lock":
                click.echo(f"stays: {options.shown(waste.path)} (it vanished, or came into use)")
        except OSError as error:
            click.echo(f"cannot remove {options.shown(waste.path)}: {error.strerror or error}", err=True)
            faults += 1
    return freed, faults
