"""Linear probes of target networks: what the features are worth that KRR-ST's sets teach, before any set teaches them.

    python benchmarks/target_models.py [--dataset cifar100] [--probed cifar10@700] [--target medium …]

Each network (trained now, or taken from the cache) and the same one untrained is probed on training images of another
data set: with ten and with 200 labels a class, scored on the images that are left. Test images are not read.
"""

import tempfile
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

from dd_bench.data.images import ImageData, load
from dd_bench.environment import choose_device, describe_device, keep_freed_memory
from dd_bench.models import Classifier, build
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded
from eval.probe import draw_labelled, fit_probe
from eval.protocol_kinds import TransferProtocol
from eval.protocols import find_protocol
from synth.base import Task
from synth.parts.embeddings import embed_images
from synth.parts.target_model import TARGETS, obtain_target

_LABELS = (10, 200)  # a class


@click.command()
@click.option("--dataset", default="cifar100", show_default=True, help="What target networks are trained on.")
@click.option("--probed", default="cifar10@700", show_default=True, help="More than 200 images a class.")
@click.option("--target", "names", multiple=True, type=click.Choice(list(TARGETS)), default=("small", "medium"),
              show_default=True, help="Repeatable.")  # fmt: skip
@click.option("--device", default="auto", show_default=True)
def main(dataset: str, probed: str, names: tuple[str, ...], device: str) -> None:
    """Trains (or takes from the cache) and probes."""
    keep_freed_memory()
    console, place, data, other = Console(highlight=False), choose_device(device), load(dataset), load(probed)
    table = Table("network", "steps", "features", *(f"{count} labels a class, %" for count in _LABELS),
                  title=f"{dataset}, probed on {probed}")  # fmt: skip
    if int(other.labels.bincount().min()) <= max(_LABELS):
        raise click.UsageError(
            f"{probed} has classes of {max(_LABELS)} images or fewer; name one that has more of each"
        )
    bridge = find_protocol("transfer-small")
    assert isinstance(bridge, TransferProtocol)
    rows = {student: (0, _untrained(student, data, place)) for student in bridge.architectures}
    for name in names:
        plan = TARGETS[name]
        with tempfile.TemporaryDirectory() as folder:
            target = obtain_target(plan, Task(data, 1, 0, place), Run(Path(folder)))
        rows[plan.architecture] = (0, _untrained(plan.architecture, data, place))
        rows[f"{name}: {plan.architecture}"] = (plan.recipe.steps, target.model)
    for row, (steps, model) in rows.items():
        features = embed_images(model, other.images)
        scores = [f"{100 * _probe(features, other, count, bridge.probe_l2):.1f}" for count in _LABELS]
        table.add_row(row, str(steps) if steps else "untrained", str(features.shape[1]), *scores)
    console.print(f"{describe_device(place)}, torch {torch.__version__}")
    console.print(table)


def _untrained(architecture: str, data: ImageData, place: torch.device) -> Classifier:
    with seeded(derive_seed("untrained", architecture)):
        model = build(architecture, data.spec)
    assert isinstance(model, Classifier)
    return model.to(place).eval()


def _probe(features: torch.Tensor, data: ImageData, count: int, l2: float) -> float:
    """Returns the accuracy of a probe with ``count`` labels a class on the images that no probe has seen."""
    classes = data.spec.num_classes
    largest = draw_labelled(data.labels, classes, max(_LABELS) * classes / len(data), generator(0))
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[largest] = False
    picked = largest[draw_labelled(data.labels[largest], classes, count / max(_LABELS), generator(1))]
    head = fit_probe(features[picked], data.labels[picked], classes, l2)
    with torch.no_grad():
        found = head(features[rest].float()).argmax(1)
    return float((found == data.labels[rest]).double().mean())


if __name__ == "__main__":
    main()
