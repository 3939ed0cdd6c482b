"""``ddbench synth``: make a synthetic set."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from dd_bench.cli import options

if TYPE_CHECKING:
    from dd_bench.mirror import Mirror
    from synth.base import Task
    from synth.pipeline import Order


@click.command(
    "synth",
    short_help="Make a synthetic set of a data set.",
    epilog=options.examples(
        "ddbench synth --method infer --ipc 10",
        "ddbench synth --method infer --ipc 10 --dataset cifar10@200 --seed 1",
        "ddbench synth --method random --ipc 10 --preset digits-soft",
        "ddbench synth --method infer --ipc 10 --dataset imagefolder:~/photos:64",
        "ddbench synth --method mirage --ipc 1 --dataset nci1",
        "ddbench synth --method mirage --bytes 500 --dataset nci1",
        "ddbench synth --method infer --ipc 10 --set inversion.alpha=0.01 --set teachers.recipe.epochs=20",
    ),
)
@click.option("--method", required=True, help="Name of the method; ddbench list methods shows them.")
@click.option("--ipc", type=click.IntRange(1), default=None, help="Nominal images or graphs a class: the set's size.")
@click.option(
    "--bytes",
    "budget",
    type=click.IntRange(1),
    default=None,
    help="Size in bytes instead, for methods with a byte budget; boards show it at the nearest ipc.",
)
@click.option(
    "--dataset", default=None,
    help="NAME or imagefolder:PATH (images of your own), NAME@n (n training images a class) or NAME@n/m (and m test "
    "images a class).  [default: digits, or digits-graph for methods that distil graphs]",
)  # fmt: skip
@click.option("--preset", default=None, help="A complete configuration by name; by default the one for the data set.")
@options.settings(help_text="Override a setting of the preset, for example inversion.steps=500. Repeatable.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of every draw.")
@options.device
@options.deterministic
@options.data_dir
@options.wandb
def synthesize(
    method: str, ipc: int | None, budget: int | None, dataset: str | None, preset: str | None,
    settings: dict[str, str], seed: int, device: str, deterministic: bool, data_dir: Path | None,
    wandb: Literal["online", "offline"] | None,
) -> None:  # fmt: skip
    """Distil a data set into a synthetic set.

    The set lands in the store under an id that its recipe and its seed determine: the same command twice is a no-op,
    and a stopped one goes on where it was.
    """
    from dd_bench.data.catalogue import load_training
    from dd_bench.environment import choose_device, compute_deterministically, keep_freed_memory
    from dd_bench.store import Store
    from synth import find
    from synth.base import Task
    from synth.parts.budgets import nearest_ipc
    from synth.pipeline import distil

    keep_freed_memory()
    if deterministic:
        compute_deterministically()
    if (ipc is None) == (budget is None):
        raise click.UsageError("how large shall the set be? Give either --ipc or --bytes.")
    name = dataset or find(method).default_dataset
    order = _order(method, preset, name, ipc, settings | ({} if budget is None else {"budget": str(budget)}))
    data = load_training(name, data_dir)
    task = Task(data=data, ipc=ipc or nearest_ipc(data, budget or 0), seed=seed, device=choose_device(device))
    with nullcontext() if wandb is None else _mirror(wandb, order, task) as mirror:
        stored, made = distil(order, task, Store(), mirror=mirror)
        if mirror is not None:
            mirror.log_card(stored.path / "card.png")
            mirror.summarise({"set": stored.id, "bytes": stored.size_bytes, "path": str(stored.path)})
    state = "made set" if made else "already there: set"
    click.echo(f"{state} {stored.id}, {stored.size_bytes:,} bytes, in {options.shown(stored.path)}")
    click.echo(f"its picture: {options.shown(stored.path / 'card.png')}")
    click.echo(f"next: ddbench eval {stored.id}, or ddbench eval for all that is not judged yet")


def _mirror(mode: Literal["online", "offline"], order: "Order", task: "Task") -> "Mirror":
    from dd_bench.environment import describe_device
    from dd_bench.files import home
    from dd_bench.mirror import Mirror
    from synth.pipeline import describe

    known = describe(order, task)
    facts = {name: getattr(known, name) for name in ("method", "preset", "dataset", "fingerprint", "ipc", "seed")}
    config = facts | {"device": describe_device(task.device), "settings": known.config}
    name = f"synth {known.method} {known.dataset} ipc{known.ipc} seed{known.seed}"
    return Mirror(mode, folder=home() / "wandb", name=name, job="synth", group=known.set_id, config=config)


def _order(
    method: str, preset: str | None, dataset: str, ipc: int | None, settings: dict[str, str]
) -> "Order":  # fmt: skip
    from dd_bench.data.names import parse_name
    from dd_bench.errors import ConfigError
    from eval.protocols import find_protocol
    from synth import find
    from synth.base import choose_preset, override
    from synth.pipeline import Order

    found = find(method)
    if "budget" in settings and "budget" not in found.__dataclass_fields__:
        raise ConfigError(f"method {method} has no byte budget; give the size of its set with --ipc")
    name, synthesizer = choose_preset(found, preset, str(parse_name(dataset)), ipc)
    changes = ", ".join(f"{key}={value}" for key, value in sorted(settings.items()))
    synthesizer = override(synthesizer, settings)
    find_protocol(synthesizer.protocol)  # a method knows no protocols, but a set that names none is never judged
    return Order(method, f"{name}; {changes}" if changes else name, synthesizer)
