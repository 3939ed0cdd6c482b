"""``ddbench export``, ``import`` and ``adopt``: sets as single files, and images that were made by other code."""

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


@click.command(
    "adopt",
    short_help="Take in images that other code made.",
    epilog=options.examples(
        "ddbench adopt mine.safetensors --name mine --dataset cifar10",
        "ddbench adopt seed1.safetensors --name mine --dataset cifar10 --seed 1",
        "ddbench adopt mtt.safetensors --name mtt-official --dataset cifar10 --rate 0.0138",
    ),
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--name", required=True, help="What boards shall call the method.")
@click.option("--dataset", required=True, help="The data set that the images stand for, as in ddbench synth.")
@click.option(
    "--ipc", type=click.IntRange(1), default=None,
    help="Nominal images a class.  [default: as many as every class has]",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which of several syntheses it is.")
@click.option("--rate", type=float, default=None, help="The learning rate that was learned with the images, if any.")
@click.option(
    "--protocol", default=None, help="What judges the set when nothing else is named.  [default: mtt with --rate, else "
    "quick for digits and subsets, and hard for whole data sets]",
)  # fmt: skip
@options.data_dir
def adopt(
    file: Path, name: str, dataset: str, ipc: int | None, seed: int, rate: float | None, protocol: str | None,
    data_dir: Path | None,
) -> None:  # fmt: skip
    """Take the images in FILE into the store, to have them judged beside random real images.

    FILE is a safetensors file of two tensors: images (N, C, H, W), uint8 or floating point in [0, 1], not normalised,
    and labels (N), the classes as integers. Soft labels are not taken in: random images with labels of the same
    teachers, which would have to stand beside them, cannot be made without these.
    """
    from dd_bench.data.images import load
    from dd_bench.store import Store
    from eval.protocols import find_protocol
    from synth.adoption import adopt as take_in
    from synth.parts.scales import scale_of

    data = load(dataset, data_dir)
    usual = "mtt" if rate is not None else "hard" if scale_of(data.spec.name) == "published" else "quick"
    judged_by = find_protocol(protocol or usual).name
    stored = take_in(file, data, Store(), name=name, protocol=judged_by, ipc=ipc, seed=seed, rate=rate)
    origin = stored.provenance
    click.echo(
        f"took in set {stored.id} ({stored.manifest.images} images, ipc {origin.ipc}, seed {seed}), "
        f"{stored.size_bytes:,} bytes, in {options.shown(stored.path)}"
    )
    click.echo(f"its picture: {options.shown(stored.path / 'card.png')}; are the colours right?")
    click.echo(f"next: ddbench eval {stored.id}, under {judged_by}, or with --protocol under another")
