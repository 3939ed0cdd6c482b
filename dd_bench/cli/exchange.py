"""``ddbench export`` and ``ddbench import``: sets as single files, for others and from them."""

from pathlib import Path

import click

from dd_bench.cli import options


@click.command(
    "export",
    short_help="Pack a set into one file.",
    epilog=options.examples(
        "ddbench export 8b42a7c821b8",
        "ddbench export 8b42 --to infer.zip",
    ),
)
@click.argument("reference", metavar="SET")
@click.option(
    "--to", "target", type=click.Path(path_type=Path, dir_okay=False), default=None, metavar="FILE",
    help="Where to.  [default: ./<dataset>-<method>-ipc<k>-<id>.zip]",
)  # fmt: skip
def export(reference: str, target: Path | None) -> None:
    """Pack the set SET (an id, the beginning of one, or a path) into one file that can be handed on.

    It is verified first. The file is a plain zip archive; equal sets give equal files, to the byte.
    """
    from dd_bench.archives import export_set
    from dd_bench.files import sha256_file, slug
    from dd_bench.store import Store

    stored = Store().find(reference)
    origin = stored.provenance
    target = target or Path(f"{slug(origin.dataset)}-{origin.method}-ipc{origin.ipc}-{stored.id}.zip")
    new = export_set(stored, target)
    click.echo(
        f"{'packed' if new else 'there already:'} set {stored.id}, {target.stat().st_size:,} bytes, in "
        f"{options.shown(target)}"
    )
    click.echo(f"its sha256: {sha256_file(target)}")
    click.echo(f"next, where it is wanted: ddbench import {target.name}")


@click.command(
    "import",
    short_help="Take a set in from a file.",
    epilog=options.examples(
        "ddbench import digits-infer-ipc10-8b42a7c821b8.zip",
    ),
)
@click.argument("archive", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
def import_(archive: Path) -> None:
    """Take the set in FILE, which ddbench export has written, into the store.

    Nothing of it is used before all of it is verified; nothing is unpickled or run. A hash finds damage, not lies: what
    a set says of its making is its maker's word. What it teaches, ddbench eval finds out here.
    """
    from dd_bench.archives import import_set
    from dd_bench.store import Store

    stored = import_set(archive, Store())
    origin = stored.provenance
    click.echo(
        f"took in set {stored.id} ({origin.method}, {origin.dataset}, ipc {origin.ipc}, seed {origin.seed}), "
        f"{stored.size_bytes:,} bytes, in {options.shown(stored.path)}"
    )
    click.echo(f"its picture: {options.shown(stored.path / 'card.png')}")
    click.echo(f"next: ddbench show {stored.id}, or ddbench eval {stored.id}")
