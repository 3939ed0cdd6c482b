"""DSA: differentiable siamese augmentation, the augmentation that distilled sets were mostly made and judged with.

Paper: Zhao and Bilen 2021, "Dataset Condensation with Differentiable Siamese Augmentation", arXiv 2102.08259; constants
and details as in the authors' code (VICO-UoE/DatasetCondensation, ``DiffAugment`` in mode 'S'): one operation is drawn
for a batch, its strength for every image. Siamese means that one draw is applied to several batches, real and
synthetic; here a draw is a value, ``DSAParameters``, that ``apply`` replays on any batch.

The published operations act on *normalised* images, so what they fill with 0 becomes the mean colour and a brightness
of 0.5 is half a standard deviation. Our images are pixels: they are normalised with the constants of their data set,
augmented and mapped back, which is the same thing to a model that normalises what it receives. Nothing is clipped, as
published: results may leave [0, 1].

kornia is used where it is exact, and imported nowhere else. Its saturation and contrast about a mean are not: they
clamp to [0, 1] and take luma for grey, so both are written here as an unclipped scaling of the deviations. Its affine
warps are close (4e-6) but three times slower, and change with ``align_corners`` between releases; ours are the
published definition to the bit. Integer shifts and boxes have no exact counterpart in kornia.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from kornia.enhance import adjust_brightness, adjust_contrast, denormalize, normalize
from kornia.geometry.transform import hflip
from torch import Tensor

from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.learn.augment import window
from dd_bench.learn.warp import warp

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True)
class DSAParameters:
    """What a batch undergoes: one operation, and its strengths for each image, or for all images alike.

    Attributes:
        operation: one of ``OPERATIONS``.
        strengths: tensors of shape (N,), or (1,) where all images share one draw. By operation:
            color: brightness added, saturation factor, contrast factor;
            crop: rows and columns by which the window moves down and right, int64;
            cutout: centre row and column of the box, int64;
            flip: true where mirrored;
            scale: extent of the sampled region across and down, in image sizes (above 1 the picture shrinks);
            rotate: angle in radians, anticlockwise when positive.
    """

    operation: str
    strengths: tuple[Tensor, ...]


@dataclass(frozen=True)
class DSA:
    """The augmentation of one data set: strategy, strengths (all defaults as published), drawing and applying.

    Attributes:
        spec: names the shape and the normalisation, and whether flips keep the class.
        strategy: operations to choose from, joined by underscores. Flip is left out where ``spec.mirror`` is false, as
            the authors advise for digits.
        brightness: width of the interval around 0 that the added brightness is drawn from, in standard deviations.
        saturation: largest saturation factor; the smallest is 0.
        contrast: smallest contrast factor; the largest is 1 above it.
        crop: largest shift, as a fraction of the image's size.
        cutout: side of the box, as a fraction of the image's size.
        flip: probability of a flip.
        scale: largest extent of the sampled region; the smallest is its inverse, and the draw between is uniform.
        rotate: largest angle, in degrees, either way.
        align_corners: how normalised coordinates name pixels in scale and rotate. False is DSA's own code; the code of
            MTT (arXiv 2203.11932), otherwise the same, says true.
    """

    spec: DatasetSpec
    strategy: str = "color_crop_cutout_flip_scale_rotate"
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    crop: float = 0.125
    cutout: float = 0.5
    flip: float = 0.5
    scale: float = 1.2
    rotate: float = 15.0
    align_corners: bool = False

    def __post_init__(self) -> None:
        for name in self.strategy.split("_"):
            if name not in OPERATIONS:
                raise UnknownNameError("DSA operation", name, OPERATIONS)
        if not self.operations:
            raise ConfigError(
                f"DSA strategy {self.strategy!r} leaves nothing to draw for {self.spec.name}, whose images may not be "
                f"mirrored; expected an operation besides flip"
            )

    @property
    def operations(self) -> tuple[str, ...]:
        """The operations of the strategy that keep the class of an image of this data set."""
        return tuple(name for name in self.strategy.split("_") if name != "flip" or self.spec.mirror)

    def draw(self, count: int, generator: torch.Generator, choice: int) -> DSAParameters:
        """Returns the operation that ``choice`` names, with ``count`` independent strengths.

        Args:
            count: number of images, for strengths of their own; or 1, for a draw that all images of any batch share
                (the siamese form that gradient and trajectory matching use).
            generator: source of the strengths, on the device of the images.
            choice: an integer that is uniform over far more than the operations, such as ``derive_seed(…, step)``; the
                operation is its remainder. Python branches on it, so it must be born on the host: read from a GPU it
                would make every step wait.
        """
        operation = self.operations[choice % len(self.operations)]
        return DSAParameters(operation, self._draw_strengths(operation, count, generator))

    def apply(self, images: Tensor, parameters: DSAParameters) -> Tensor:
        """Returns ``images`` after the operation in ``parameters``, differentiable in the images.

        Scale and rotate can be differentiated once in the images (``grid_sample`` has no second derivative, and is
        linear in them); the others as often as wanted.

        Args:
            images: pixels, float (N, C, H, W).
            parameters: from ``draw``, with N strengths or 1, on the device of the images.

        Returns:
            Pixels, (N, C, H, W), not clipped.
        """
        mean, std = _statistics(self.spec, images.device, images.dtype)
        augmented = self._transform(normalize(images, mean, std), parameters)
        return denormalize(augmented, mean, std)

    def _draw_strengths(self, operation: str, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)

        def integer(low: int, high: int) -> Tensor:
            return torch.randint(low, high + 1, (count,), generator=generator, device=generator.device)

        _, height, width = self.spec.image_shape
        match operation:
            case "color":
                brightness = uniform(-self.brightness / 2, self.brightness / 2)
                return brightness, uniform(0, self.saturation), uniform(self.contrast, 1 + self.contrast)
            case "crop":
                down, right = _fraction(height, self.crop), _fraction(width, self.crop)
                return integer(-down, down), integer(-right, right)
            case "cutout":  # a box of even side may be centred on the far edge, so that it hangs over both alike
                tall, wide = _fraction(height, self.cutout), _fraction(width, self.cutout)
                return integer(0, height - tall % 2), integer(0, width - wide % 2)
            case "flip":
                return (uniform(0, 1) < self.flip,)
            case "scale":
                return uniform(1 / self.scale, self.scale), uniform(1 / self.scale, self.scale)
            case _:
                limit = math.radians(self.rotate)
                return (uniform(-limit, limit),)

    def _transform(self, normalized: Tensor, parameters: DSAParameters) -> Tensor:
        match parameters.operation:
            case "color":
                return _color(normalized, *parameters.strengths)
            case "crop":
                return _shift(normalized, *parameters.strengths, fraction=self.crop)
            case "cutout":
                return _cut_out(normalized, *parameters.strengths, fraction=self.cutout)
            case "flip":
                (flipped,) = parameters.strengths
                return torch.where(flipped[:, None, None, None], hflip(normalized), normalized)
            case "scale":
                across, down = parameters.strengths
                zero = torch.zeros_like(across)
                return warp(normalized, (across, zero, zero, down), align_corners=self.align_corners)
            case "rotate":
                (angle,) = parameters.strengths
                cosine, sine = angle.cos(), angle.sin()
                return warp(normalized, (cosine, -sine, sine, cosine), align_corners=self.align_corners)
            case unknown:
                raise UnknownNameError("DSA operation", unknown, OPERATIONS)


@lru_cache(maxsize=64)
def _statistics(spec: DatasetSpec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns mean and std, each (C,), kept on the device: a copy at every step would make it wait for the host."""
    with torch.inference_mode(mode=False):  # tensors born in inference mode could not enter a later backward pass
        return torch.tensor(spec.mean, device=device, dtype=dtype), torch.tensor(spec.std, device=device, dtype=dtype)


def _fraction(size: int, ratio: float) -> int:
    """Returns ``ratio`` of ``size`` pixels, halves rounded up as published (``round`` would send 0.5 to 0)."""
    return int(size * ratio + 0.5)


def _color(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    """Returns x brightened, then (x - grey)·saturation + grey, then (x - level)·contrast + level; in this order.

    Grey is each pixel's mean over channels, level each image's mean over everything. One channel has no saturation.
    """
    x = adjust_brightness(x, brightness, clip_output=False)
    grey = x.mean(dim=1, keepdim=True)
    x = adjust_contrast(x - grey, saturation, clip_output=False) + grey
    level = x.mean(dim=(1, 2, 3), keepdim=True)
    return adjust_contrast(x - level, contrast, clip_output=False) + level


def _shift(x: Tensor, rows: Tensor, columns: Tensor, *, fraction: float) -> Tensor:
    """Returns x read ``rows`` further down and ``columns`` further right, at most ``fraction``; 0 beyond the edge."""
    pad = _fraction(max(x.shape[-2:]), fraction)
    return window(x, rows + pad, columns + pad, pad=pad)


def _cut_out(x: Tensor, rows: Tensor, columns: Tensor, *, fraction: float) -> Tensor:
    """Returns x with 0 in a box of ``fraction`` of both sides about (rows, columns), clipped at the edges."""
    height, width = x.shape[-2:]
    tall, wide = _fraction(height, fraction), _fraction(width, fraction)
    down = torch.arange(height, device=x.device) - (rows[:, None] - tall // 2)  # (N or 1, H), from the box's top
    across = torch.arange(width, device=x.device) - (columns[:, None] - wide // 2)
    in_rows, in_columns = (down >= 0) & (down < tall), (across >= 0) & (across < wide)
    return x.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
