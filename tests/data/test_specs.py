import pytest
from torch import Tensor

from dd_bench.data.images import load
from dd_bench.data.specs import SPECS


def measured(images: Tensor) -> tuple[list[float], list[float]]:
    """Population mean and standard deviation a channel, from sums in float64."""
    total = squares = 0.0
    for part in images.split(5000):
        x = part.double() / 255
        total, squares = total + x.sum((0, 2, 3)), squares + x.square().sum((0, 2, 3))
    count = images[:, 0].numel()
    mean = total / count
    return mean.tolist(), (squares / count - mean**2).sqrt().tolist()


@pytest.mark.parametrize("base", sorted(SPECS))
def test_shapes(base: str) -> None:
    spec = SPECS[base]
    assert spec.name == base
    assert len(spec.mean) == len(spec.std) == spec.image_shape[0]
    assert len(set(spec.class_names)) == len(spec.class_names) == spec.num_classes


@pytest.mark.parametrize("base", ["digits", "digits-low", "digits-high"])
def test_digits_mean_and_std_are_those_of_the_training_split(base: str, digits_dir) -> None:
    mean, std = measured(load(base, digits_dir).images)
    assert mean == pytest.approx(SPECS[base].mean, abs=6e-5)
    assert std == pytest.approx(SPECS[base].std, abs=6e-5)
    assert not SPECS[base].mirror


@pytest.mark.parametrize("base", ["cifar10", "cifar100", "mnist", "fashionmnist", "svhn"])
def test_downloaded_mean_and_std_are_those_of_the_training_split(base: str, real) -> None:
    mean, std = measured(load(base, real(base)).images)
    assert mean == pytest.approx(SPECS[base].mean, abs=6e-5)  # four digits are written down
    assert std == pytest.approx(SPECS[base].std, abs=6e-5)
