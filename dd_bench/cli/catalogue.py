"""``ddbench list`` and ``ddbench show``: what there is."""

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dd_bench.cli import options

if TYPE_CHECKING:
    from dd_bench.sets import Provenance, SyntheticSet

_ENDLESS = 100_000  # columns of a page that nobody reads on a terminal


@click.group("list", short_help="List what there is.")
def list_() -> None:
    """List methods, data sets, protocols, models, the sets in the store, or the runs under way."""


@list_.command("methods")
def list_methods() -> None:
    """List the methods, their presets and what they are."""
    from dd_bench.errors import ConfigError
    from synth import find, methods

    rows = []
    for name in sorted(methods()):
        try:
            method = find(name)
        except ConfigError as error:  # a broken package of somebody else hides no method of the others
            rows.append((name, "-", f"unusable: {error}"))
            continue
        presets = dict.fromkeys(_stem(preset) for preset in method.PRESETS)
        rows.append((name, ", ".join(presets), _first_line(method)))
    _table(("method", "presets", "what it is"), rows)
    click.echo("Where a preset has versions for data sets or sizes (published-cifar10-ipc1), the right one is taken.")


def _kind(labels: str) -> str:
    """Returns the kind of targets in words."""
    return labels if labels == "features" else f"{labels} labels"


def _stem(preset: str) -> str:
    """Returns a preset's name without the size and the data set that this version of it is for."""
    from dd_bench.data.catalogue import all_specs

    preset = re.sub(r"-ipc\d+$", "", preset)
    return next((preset.removesuffix(f"-{name}") for name in all_specs() if preset.endswith(f"-{name}")), preset)


@list_.command("datasets")
@options.data_dir
def list_datasets(data_dir: Path | None) -> None:
    """List the data sets, and where they are prepared."""
    from dd_bench.data.catalogue import all_specs, describe, other_specs
    from dd_bench.data.prepare import locate
    from dd_bench.errors import DDBenchError

    rows = []
    for name, spec in {**all_specs(), **other_specs(data_dir)}.items():
        if isinstance(spec, DDBenchError):  # somebody else's broken one hides no other
            rows.append((name, "-", "-", f"unusable: {spec}"))
            continue
        found = locate(name, data_dir)
        state = options.shown(found) if found else "not here yet; prepared when first used"
        rows.append((name, describe(spec), str(spec.num_classes), state))
    _table(("data set", "example", "classes", "prepared"), rows)
    click.echo(
        "imagefolder:PATH is a folder of your own images, one folder a class; imagefolder:PATH:64 resizes to 64."
    )
    click.echo("NAME@n keeps n training images a class, NAME@n/m also m test images a class; graphs come whole.")


@list_.command("protocols")
def list_protocols() -> None:
    """List the evaluation protocols with their ids."""
    from eval.protocols import PROTOCOLS

    rows = [(p.name, p.id, ", ".join(p.architectures), p.summary) for p in PROTOCOLS.values()]
    _table(("protocol", "id", "students", "what it does"), rows)
    click.echo("convnet is the ConvNet of the images' size, a quarter as wide on digits and subsets.")


@list_.command("models")
def list_models() -> None:
    """List the model families.

    A model's name is FAMILY[-NORM][-xFACTOR], for example convnet3-batch-x0.25.
    """
    from dd_bench.models import FAMILIES

    _table(("family", "what it is"), [(name, str(family.summary)) for name, family in FAMILIES.items()])
    click.echo("ConvNets take a norm (instance, batch, none); x0.25 makes any net a quarter as wide.")


@list_.command("sets")
def list_sets() -> None:
    """List the sets in the store."""
    from dd_bench.files import human_bytes
    from dd_bench.store import Store
    from dd_bench.stored import DamagedSet

    store = Store()
    rows, damaged = [], []
    for found in store.list():
        if isinstance(found, DamagedSet):
            damaged.append(str(found.error))
            continue
        origin = found.provenance
        rows.append((found.id, origin.dataset, origin.method, origin.preset, str(origin.ipc), str(origin.seed),
                     str(found.manifest.images), human_bytes(found.size_bytes)))  # fmt: skip
    if rows:
        _table(("set", "data set", "method", "preset", "ipc", "seed", "items", "size"), rows)
    else:
        click.echo(f"no sets in {options.shown(store.root)}; make one: ddbench synth --method infer --ipc 10")
    for line in damaged:
        click.echo(f"damaged: {line}", err=True)


@list_.command("runs")
def list_runs() -> None:
    """List the unfinished runs: how far they are, and whether a process is at them."""
    from dd_bench import runs
    from dd_bench.files import home, human_bytes
    from dd_bench.progress import clock

    now, rows, found = time.time(), [], runs.list_runs()
    for run in found:
        said = [f"{stage.label}, step {stage.step} of {stage.total}" for stage in run.stages[-1:]]
        said += [f"damaged: {name}" for name in run.damaged]
        saved = runs.human_age(now - run.stages[-1].saved) if run.stages else "never"
        left = run.stages[-1].seconds_left if run.stages else None
        rows.append((run.folder.name, "; ".join(said) or "nothing saved yet", clock(run.seconds),
                     "-" if left is None else clock(left), human_bytes(run.size_bytes), saved,
                     "at work" if run.held else "-"))  # fmt: skip
    if not rows:
        click.echo(f"no runs in {options.shown(home() / 'runs')}: nothing is unfinished")
        return
    _table(("run", "stage last saved", "spent", "left of stage", "size", "saved", "process"), rows)
    if any(run.damaged for run in found):
        click.echo("where a checkpoint is damaged, delete its file: that stage starts anew")
    if not all(run.held for run in found):
        click.echo("the command that a run belongs to goes on with it; ddbench clean shows what can go")


@click.command("show", short_help="Show a set and how it was judged.")
@click.argument("reference", metavar="SET")
@options.boards
def show(reference: str, boards: Path) -> None:
    """Show a set: where it comes from, what it costs, how it was judged.

    SET is an id, the beginning of one (from 4 characters), or a path.
    """
    from dd_bench.files import human_bytes
    from dd_bench.store import Store
    from eval.cells import HEADLINES, read_records

    stored = Store().find(reference)
    synthetic, origin = stored.load(), stored.provenance
    rows = [
        ("set", f"{stored.id} (verified)"),
        ("made by", f"{origin.method}, preset {origin.preset}, ipc {origin.ipc}, seed {origin.seed}"),
        ("of", f"{origin.dataset}, fingerprint {origin.fingerprint[:12]}"),
        ("holds", _content(synthetic)),
        ("size", f"{human_bytes(stored.size_bytes)}: " + ", ".join(f"{k} {v:,} B" for k, v in stored.ledger.items())),
        ("cost", _cost(origin)),
        ("teachers", ", ".join(origin.parents) or "none"),
        ("protocol", synthetic.native_protocol + _learned_rate(synthetic)),
        ("controls", ", ".join(f"{c.method} ({_kind(c.labels)})" for c in origin.controls) or "none"),
        ("config", ", ".join(f"{path}={value}" for path, value in _flat(origin.config)) or "none"),
        ("sha256", stored.sha256),
        ("picture", options.shown(stored.path / "card.png")),
    ]
    _table(("", ""), rows)
    judged = [(path, record) for path, record in read_records(boards / "results") if record.set.sha256 == stored.sha256]
    for path, record in judged:
        metric = HEADLINES[record.headline]
        scores = [one.metrics[record.headline] for one in record.students if record.headline in one.metrics]
        mean = f"{100 * sum(scores) / len(scores):.2f} % {metric}" if scores else f"no {metric}"
        students = f"{len(record.students)} student{'' if len(record.students) == 1 else 's'}"
        click.echo(f"  {record.protocol_name} {record.architecture}: {mean} over {students}, {options.shown(path)}")
    if not judged:
        click.echo(f"  not judged yet: ddbench eval {stored.id}")


def _cost(origin: "Provenance") -> str:
    from dd_bench.sets import ELSEWHERE

    if origin.device == ELSEWHERE:
        return "not known: made elsewhere"
    return f"{origin.wall_seconds:.1f} s, teachers {origin.teacher_seconds:.1f} s, on {origin.device}"


def _learned_rate(synthetic: "SyntheticSet") -> str:
    return "" if synthetic.suggested_lr is None else f", learned rate {synthetic.suggested_lr:.4g}"


def _content(synthetic: "SyntheticSet") -> str:
    """Returns what a set holds; for computation trees also their size by other people's count."""
    from dd_bench.codec import payload_bytes
    from dd_bench.graph_sets import Graphs, Trees
    from dd_bench.sets import Compensated
    from dd_bench.targets import TapedLabels, ThinLabels

    payload, labels = synthetic.payload, _kind(synthetic.targets.kind)
    if isinstance(synthetic.targets, TapedLabels | ThinLabels):
        labels += f" over {synthetic.targets.tape.epochs} epochs"
    if isinstance(payload, Trees):
        return (
            f"{len(payload)} sets of {len(payload.roots)} trees, {payload.hops} hops, {labels}; "
            f"{payload_bytes(payload):,} B as shared subtrees, {payload.formula_bytes():,} B as the Mirage paper counts"
        )
    if isinstance(payload, Graphs):
        return f"{len(payload)} graphs, {len(payload.nodes):,} nodes, {labels}"
    form = "base images and offsets" if isinstance(payload, Compensated) else "plain"
    return f"{len(payload)} images ({form}), {labels}"


def _flat(config: object, prefix: str = "") -> Iterable[tuple[str, object]]:
    """Yields the settings of a nested configuration as ``--set`` takes them."""
    if isinstance(config, dict):
        for name, value in config.items():
            yield from _flat(value, f"{prefix}{name}.")
    else:
        yield prefix.rstrip("."), ",".join(map(str, config)) if isinstance(config, list) else config


def _first_line(method: type) -> str:
    """Returns the first line of a docstring without its markup."""
    return (method.__doc__ or "").strip().split("\n")[0].replace("``", "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table: folded to the width of a terminal, and with one line a row into files and pipes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, pad_edge=False, show_header=any(head), header_style="bold")
    for column in table.columns:
        column.overflow = "fold"  # rather than an ellipsis: nothing of an id or a path is lost
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = _ENDLESS
    with console.capture() as captured:
        console.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))  # one long cell pads all others
