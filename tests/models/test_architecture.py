import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dd_bench.data.graph_specs import GraphSpec
from dd_bench.data.specs import DatasetSpec
from dd_bench.errors import ConfigError, UnknownNameError
from dd_bench.models import FAMILIES, Architecture, build, check_fit, count_parameters
from tests.models.conftest import IMAGE_FAMILIES, spec_of

spellings = st.sampled_from(sorted(FAMILIES)).flatmap(
    lambda family: st.builds(
        Architecture,
        family=st.just(family),
        norm=st.sampled_from(("", *FAMILIES[family].norms)),
        factor=st.floats(min_value=0, max_value=4, exclude_min=True),
    )
)


@given(spellings)
def test_round_trip(architecture: Architecture) -> None:
    assert Architecture.parse(str(architecture)) == architecture


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("convnet3", "convnet3"),
        ("convnet3-instance-x1.0", "convnet3"),
        ("convnet3-x1", "convnet3"),
        ("convnet3-batch-x0.250", "convnet3-batch-x0.25"),
        ("convnet5-none", "convnet5-none"),
        ("resnet18-x2.0", "resnet18-x2"),
        ("mobilenetv2-x0.00001", "mobilenetv2-x0.00001"),
        ("gin2-x0.50", "gin2-x0.5"),
    ],
)
def test_canonical_names(name: str, canonical: str) -> None:
    assert str(Architecture.parse(name)) == canonical


def test_equal_networks_are_equal() -> None:
    assert Architecture("convnet3") == Architecture("convnet3", "instance") == Architecture.parse("convnet3-x1.00")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnet", "unknown model 'convnet'; did you mean 'convnet.'"),
        ("ConvNet3", "did you mean 'convnet3'"),
        (
            "convnet7",
            "convnet6, densenet121, efficientnetb0, gat1, .*, mobilenetv2, .*, pyramid5, resnet10, resnet101, "
            "resnet18, .*, shufflenetv2, vgg11, vit",
        ),
        ("", "unknown model ''"),
        (" convnet3", "unknown model ' convnet3'"),
    ],
)
def test_rejects_unknown_families(name: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        Architecture.parse(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnet3-group", "found the norm 'group', expected one of instance, batch, none; spell it convnet3"),
        ("resnet18-batch", "found the norm 'batch', expected none to be named"),
        ("gat3-batch", "found the norm 'batch', expected none to be named"),
        ("convnet3-x0", "found the width factor 0.0, expected one above 0 and at most 4"),
        ("convnet3-x4.01", "found the width factor 4.01"),
        ("convnet3-x" + "9" * 400, "found the width factor inf"),
        ("convnet3-x0.5-batch", "found 'x0.5-batch' after convnet3; spell it convnet3[-instance|-batch|-none]"),
        ("convnet3-batch-batch", "found 'batch-batch'"),
        ("convnet3-", "found '' after convnet3"),
        ("resnet18-0.25", "found '0.25' after resnet18; spell it resnet18[-x<factor>]"),
        ("resnet18-x1e-3", "found 'x1e-3'"),
        ("resnet18-x-1", "found 'x-1'"),
        ("resnet18-xnan", "found the norm 'xnan'"),
        ("convnet3-x٣", "found 'x٣'"),
    ],
)
def test_rejects_malformed_names(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Architecture.parse(name)


def test_rejects_a_factor_that_is_not_a_number() -> None:
    with pytest.raises(ConfigError, match="found the width factor nan"):
        Architecture("resnet18", factor=float("nan"))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("convnet3", 320_010),  # stated by several condensation benchmarks; derived in convnet.py
        ("resnet18", 11_173_962),  # kuangliu/pytorch-cifar, and its many model tables
        ("resnet34", 21_282_122),  # kuangliu/pytorch-cifar
        ("resnet50", 23_520_842),  # kuangliu/pytorch-cifar
        ("resnet101", 42_512_970),  # kuangliu/pytorch-cifar
        ("mobilenetv2", 2_296_922),  # kuangliu/pytorch-cifar
        ("efficientnetb0", 3_599_686 - 1_088),  # kuangliu/pytorch-cifar, less the layers it never calls
        ("shufflenetv1", 887_582),  # kuangliu/pytorch-cifar, ShuffleNetG2
        ("shufflenetv2-x0.5", 352_042),  # kuangliu/pytorch-cifar
        ("shufflenetv2", 1_263_854),  # kuangliu/pytorch-cifar
        ("densenet121", 6_956_298),  # kuangliu/pytorch-cifar
        ("vgg11", 9_231_114),  # kuangliu/pytorch-cifar
    ],
)
def test_parameter_count_matches_reference(name: str, published: int, cifar10: DatasetSpec) -> None:
    with torch.device("meta"):  # shapes count, and weights take time
        assert count_parameters(build(name, cifar10)) == published


def test_parameter_count_matches_reference_with_100_classes(cifar100: DatasetSpec) -> None:
    assert count_parameters(build("resnet18", cifar100)) == 11_220_132


@pytest.mark.parametrize("family", IMAGE_FAMILIES)
def test_factor_scales_the_network(family: str) -> None:
    spec = spec_of("some", (3, 64, 64), 10)
    with torch.device("meta"):
        sizes = [count_parameters(build(f"{family}-x{factor}", spec)) for factor in (0.125, 0.25, 0.5, 1)]
    assert sizes == sorted(set(sizes))
    assert sizes[0] < sizes[-1] / 6


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in IMAGE_FAMILIES])
def test_graph_networks_refuse_images(family: str, cifar10: DatasetSpec) -> None:
    with pytest.raises(ConfigError, match=f"model {family} takes graphs, but cifar10 holds images; choose one for"):
        build(family, cifar10)


def test_image_networks_refuse_graphs() -> None:
    nci1 = GraphSpec("nci1", 2, (37,), (), ("inactive", "active"))
    with pytest.raises(ConfigError, match=r"model convnet3 takes images, but nci1 holds graphs; .* gin2-x0\.5$"):
        build("convnet3", nci1)
    check_fit("sage5-x2", nci1)


def test_torchvision_is_loaded_when_one_of_its_networks_is_built() -> None:
    """It takes a second, which most commands need not wait."""
    program = "import sys, dd_bench.models, synth.pipeline, eval.students; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
