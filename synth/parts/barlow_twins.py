"""Barlow Twins: a network learns from images without labels that two distorted views of one image are alike.

Zbontar, Jing, Misra, LeCun and Deny, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021,
arXiv 2103.03230. The cross-correlation of the two views' projections, over the batch, is driven to the identity: its
diagonal makes features agree between views, its other entries keep them from saying the same.
"""

from dataclasses import dataclass
from math import cos, inf, isfinite, pi

import torch
from torch import Tensor, nn

from dd_bench.checkpoint import State
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, DivergedError
from dd_bench.learn.crops import draw_crops, resize_crops
from dd_bench.learn.training import batch_bounds
from dd_bench.models import Classifier
from dd_bench.run import Run
from dd_bench.seeding import derive_seed, generator, seeded

LEAST_RANK = 1.5
"""Effective rank of features below which a network has collapsed: it says next to one number of an image."""
LEAST_VARIANCE = 1e-8
"""Mean variance of features below which they do not depend on the image."""
_FEWEST = 3  # unseen images: of two, every rank is 1


@dataclass(frozen=True)
class BarlowTwinsRecipe:
    """How the network is trained: AdamW with a cosine to zero.

    Attributes:
        steps: gradient steps.
        batch: images a step, of which two views each are seen.
        lr: learning rate at the start.
        weight_decay: decoupled.
        projector: widths of the layers behind the features, the last of which is correlated.
        off_diagonal: weight of the entries off the diagonal (5e-3 in the paper).
        smallest_crop: views are random resized crops of at least this share of the area.
        jitter: most that brightness, contrast and saturation are changed by, and four times the turn of hue; of grey
            images only the first two.
    """

    steps: int = 70_000
    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-6
    projector: tuple[int, ...] = (1024, 1024)
    off_diagonal: float = 5e-3
    smallest_crop: float = 0.2
    jitter: float = 0.4

    def __post_init__(self) -> None:
        for name, sound, expected in (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch", self.batch >= 2, "at least 2"),
            ("lr", 0 < self.lr < inf, "more than 0"),
            ("weight_decay", 0 <= self.weight_decay < inf, "at least 0"),
            ("projector", bool(self.projector) and min(self.projector) >= 1, "one width or more, each at least 1"),
            ("off_diagonal", 0 <= self.off_diagonal < inf, "at least 0"),
            ("smallest_crop", 0 < self.smallest_crop <= 1, "a share in (0, 1]"),
            ("jitter", 0 <= self.jitter < 1, "at least 0 and less than 1"),
        ):
            if not sound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {expected}")


class Distortion(nn.Module):
    """Draws one view of each image: a resized crop, perhaps mirrored, with changed colours."""

    def __init__(self, recipe: BarlowTwinsRecipe, spec: DatasetSpec) -> None:
        super().__init__()
        import kornia.augmentation as K  # here, because the import takes seconds

        self._smallest, self._mirror = recipe.smallest_crop, spec.mirror
        low, high, most = 1 - recipe.jitter, 1 + recipe.jitter, 0.8
        colours = [K.RandomBrightness((low, high), p=most), K.RandomContrast((low, high), p=most)]
        if spec.image_shape[0] == 3:
            turn = recipe.jitter / 4
            colours += [K.RandomSaturation((low, high), p=most), K.RandomHue((-turn, turn), p=most)]
            colours += [K.RandomGrayscale(p=0.2)]
        self._colours = nn.Sequential(*colours)

    def forward(self, pixels: Tensor, seed: int) -> Tensor:
        """Returns pixels (N, C, H, W) in [0, 1], distorted by draws of ``seed``; all draws are made on the CPU."""
        draws = generator(derive_seed("view", seed))
        count, _, height, width = pixels.shape
        crops = draw_crops(count, height, width, draws, smallest=self._smallest).to(pixels.device, non_blocking=True)
        flips = torch.rand(count, generator=draws) < 0.5 if self._mirror else None
        view = resize_crops(pixels, crops, None if flips is None else flips.to(pixels.device, non_blocking=True))
        with seeded(derive_seed("colours", seed)):  # kornia takes no generator
            return self._colours(view)  # type: ignore[no-any-return]


def cross_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Returns the correlations (d, d) of the columns of two batches (n, d), each standardised over its batch."""
    parts = [(part - part.mean(0)) / part.std(0, correction=0).clamp_min(1e-5) for part in (first, second)]
    return parts[0].T @ parts[1] / len(first)


def barlow_twins_loss(first: Tensor, second: Tensor, off_diagonal: float) -> Tensor:
    """Returns Σ_i (1 - C_ii)² + w Σ_i≠j C_ij² of the cross-correlation C of two batches of projections (n, d)."""
    squares = cross_correlation(first, second)
    diagonal = squares.diagonal()
    rest = squares.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + off_diagonal * rest


def train_barlow_twins(
    model: Classifier, images: Tensor, *, recipe: BarlowTwinsRecipe, spec: DatasetSpec, seed: int, run: Run, label: str
) -> None:
    """Trains the features of ``model`` in place, on its own device; its head is left as it is.

    Args:
        model: takes pixels.
        images: (N, C, H, W) uint8.
        recipe: how.
        spec: of the data set.
        seed: of projector, order and views.
        run: where the state is kept; with ``label`` it names the stage.
        label: the stage's name.

    Raises:
        NonFiniteError: when the loss is NaN or infinite, with the step.
    """
    device = next(model.parameters()).device
    images = images.to(device)
    with seeded(derive_seed("projector", seed)):
        projector = _projector(model.head.in_features, recipe.projector).to(device)
    trained = [*model.features.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    draws = generator(derive_seed("order", seed), device)
    order = torch.arange(len(images), device=device)
    bounds = batch_bounds(len(images), recipe.batch)
    distort = Distortion(recipe, spec)
    model.train()

    state = State(model=model, projector=projector, optimizer=optimizer, draws=draws, order=order)
    for step in run.steps(label, recipe.steps, state):
        if step % len(bounds) == 0:
            order.copy_(torch.randperm(len(images), generator=draws, device=device))
        start, end = bounds[step % len(bounds)]
        pixels = images[order[start:end]].float() / 255
        first, second = (
            projector(model.embed(distort(pixels, derive_seed("distortion", seed, step, view)))) for view in (0, 1)
        )
        loss = barlow_twins_loss(first, second, recipe.off_diagonal)
        optimizer.param_groups[0]["lr"] = recipe.lr * 0.5 * (1 + cos(pi * step / recipe.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        run.observe(loss=loss)


def effective_rank(features: Tensor) -> float:
    """Returns exp of the entropy of the covariance's normalised eigenvalues; features (n, d), 1 to d.

    Roy and Vetterli, "The effective rank", EUSIPCO 2007. Constant features have 1.
    """
    spectrum = torch.linalg.svdvals((features - features.mean(0)).double()).square()
    if float(spectrum.sum()) == 0:
        return 1.0
    shares = spectrum / spectrum.sum()
    return float(torch.special.entr(shares).sum().exp())


def require_spread(features: Tensor, what: str) -> float:
    """Returns the effective rank of features (n, d) of unseen images, if the network has not collapsed.

    Raises:
        ConfigError: if there are too few images to see it.
        DivergedError: if it has.
    """
    if len(features) < _FEWEST:
        raise ConfigError(
            f"{what} has {len(features)} images that it has not seen; expected at least {_FEWEST}, or nobody would see "
            "it collapse: use a larger data set, or raise target.held_out"
        )
    variance = float(features.double().var(0).mean())
    rank = effective_rank(features) if isfinite(variance) else float("nan")
    if not (rank >= min(LEAST_RANK, features.shape[1]) and variance >= LEAST_VARIANCE):
        raise DivergedError(
            f"{what} collapsed: its {features.shape[1]} features of {len(features)} unseen images have an effective "
            f"rank of {rank:.2f} and a variance of {variance:.1e}; expected at least {LEAST_RANK:g} and "
            f"{LEAST_VARIANCE:.0e}: train it for more steps, or lower its lr or the weight off_diagonal"
        )
    return rank


def _projector(width: int, widths: tuple[int, ...]) -> nn.Sequential:
    """Returns linear layers with BatchNorm and ReLU between them, the last without either."""
    layers: list[nn.Module] = []
    for wide in widths[:-1]:
        layers += [nn.Linear(width, wide, bias=False), nn.BatchNorm1d(wide), nn.ReLU()]
        width = wide
    return nn.Sequential(*layers, nn.Linear(width, widths[-1], bias=False))
