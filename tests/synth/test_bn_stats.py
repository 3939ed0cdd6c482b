"""BatchNorm's statistics: the published distance to them, for each group by itself, the batch's in their place, and
nothing left behind.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dd_bench.seeding import generator, seeded
from synth.parts.bn_stats import BNProbe, batch_statistics
from tests.references.inversion import TwoLayers, bn_distance


@pytest.fixture
def net() -> TwoLayers:
    with seeded(0):
        return TwoLayers().eval().requires_grad_(False)


def draw(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 2, 6, 6, generator=generator(seed))


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("first_weight", [1.0, 10.0])
@pytest.mark.parametrize("count", [1, 5])
def test_matches_reference(net: TwoLayers, count: int, first_weight: float) -> None:
    """A computation by hand, in which the layer that never fires has no part."""
    images = draw(count)
    _, seen = net.by_hand(images)
    first, second = (bn_distance(features, norm) for features, norm in seen)
    with BNProbe(net, first_weight=first_weight) as probe:
        net(images)
        found = probe.distance()
    assert found.shape == (1,)
    torch.testing.assert_close(found[0], first_weight * first + second)


def test_variance_is_biased_and_norms_are_plain() -> None:
    """One layer and numbers to follow with a pencil: mean 2 against 5, variance 4 against 0."""
    layer = nn.BatchNorm2d(1).eval()
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.fill_(5.0)
    layer.running_var.fill_(0.0)
    with BNProbe(layer) as probe:
        layer(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1))
        assert probe.distance().tolist() == [3.0 + 4.0]


def test_groups_are_separate_passes(net: TwoLayers) -> None:
    images = draw(12)
    with BNProbe(net, groups=3, first_weight=2.5) as probe:
        net(images)
        together = probe.distance()
    with BNProbe(net, first_weight=2.5) as probe:
        alone = []
        for group in images.split(4):
            net(group)
            alone.append(probe.distance())
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.unique().numel() == 3


def test_gradient_reaches_the_images_of_its_group_only(net: TwoLayers) -> None:
    images = draw(6).requires_grad_()
    with BNProbe(net, groups=2) as probe:
        net(images)
        (gradient,) = torch.autograd.grad(probe.distance()[1], images)
    assert gradient[:3].abs().max() == 0
    assert (gradient[3:].abs().amax((1, 2, 3)) > 0).all()


def test_the_first_weight_goes_to_the_first_layer_that_fired() -> None:
    with seeded(0):
        silent, first, second = nn.BatchNorm2d(2), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    model = nn.ModuleList([silent, first, second]).eval()
    images = draw(4) + 1
    with BNProbe(model, first_weight=10) as probe:
        second(first(images))
        expected = 10 * bn_distance(images, first) + bn_distance(first(images), second)
        torch.testing.assert_close(probe.distance()[0], expected)


def test_a_layer_without_statistics_adds_nothing() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2)).eval()
    images = draw(4)
    with BNProbe(model, first_weight=10) as probe:
        model(images)
        torch.testing.assert_close(probe.distance()[0], 10 * bn_distance(model[0](images), model[1]))


def test_a_pass_that_skips_a_layer_forgets_it() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.BatchNorm2d(2), nn.BatchNorm2d(2)])

        def forward(self, x: Tensor, layers: tuple[int, ...]) -> Tensor:
            for layer in layers:
                x = self.norms[layer](x)
            return x

    model, images = Skipping().eval(), draw(4)
    with BNProbe(model) as probe:
        model(images, (0, 1))
        model(images * 2, (1,))
        torch.testing.assert_close(probe.distance()[0], bn_distance(images * 2, model.norms[1]))


def test_leaves_nothing_behind(net: TwoLayers) -> None:
    images = draw(4)
    before, state = net(images), {name: value.clone() for name, value in net.state_dict().items()}
    with BNProbe(net) as probe:
        assert torch.equal(net(images), before)
        assert hooks(net) > 0
    assert hooks(net) == 0
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    with pytest.raises(RuntimeError, match="no BatchNorm2d fired"):
        probe.distance()


def test_leaves_nothing_behind_after_an_exception(net: TwoLayers) -> None:
    with pytest.raises(RuntimeError, match="channels"), BNProbe(net):
        net(draw(2)[:, :1])
    assert hooks(net) == 0


@pytest.mark.parametrize("model", [nn.Sequential(nn.Conv2d(2, 2, 1)), nn.BatchNorm2d(2, track_running_stats=False)])
def test_rejects_a_model_that_remembers_nothing(model: nn.Module) -> None:
    with BNProbe(model.eval()) as probe:
        model(draw(2))
        with pytest.raises(RuntimeError, match="no BatchNorm2d fired"):
            probe.distance()


# --- in relation to what is remembered -------------------------------------------------------------------------------


def remembered(norm: nn.BatchNorm2d) -> Tensor:
    """Returns ||mu^|| + ||var^||, number by number."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = (sum(value**2 for value in values.tolist()) for values in (norm.running_mean, norm.running_var))
    return torch.tensor(mean**0.5 + variance**0.5)


def test_relative_distance_with_a_pencil() -> None:
    """Mean 2 against 5 and variance 4 against 0 are 7, of 5 that are remembered."""
    layer = nn.BatchNorm2d(1).eval()
    assert layer.running_mean is not None
    assert layer.running_var is not None
    layer.running_mean.fill_(5.0)
    layer.running_var.fill_(0.0)
    for first_weight in (1.0, 10.0):  # of one layer it says nothing
        with BNProbe(layer, relative=True, first_weight=first_weight) as probe:
            layer(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1))
            torch.testing.assert_close(probe.distance(), torch.tensor([1.4]))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("first_weight", [1.0, 10.0])
def test_relative_distance_matches_reference(net: TwoLayers, first_weight: float, groups: int) -> None:
    """Weighted above and below alike; the layer that never fires has no part in either."""
    images = draw(12)
    size = first_weight * remembered(net.bn1) + remembered(net.bn2)
    expected = []
    for group in images.split(12 // groups):
        first, second = (bn_distance(features, norm) for features, norm in net.by_hand(group)[1])
        expected.append((first_weight * first + second) / size)
    with BNProbe(net, groups=groups, first_weight=first_weight, relative=True) as probe:
        net(images)
        found = probe.distance()
    assert found.shape == (groups,)
    torch.testing.assert_close(found, torch.stack(expected))


def test_depth_counts_nothing() -> None:
    """Layers that see and remember the same are one, however often they come."""
    with seeded(0):
        one = nn.BatchNorm2d(2)
    assert one.running_mean is not None
    one.running_mean.normal_()

    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList(copy.deepcopy(one) for _ in range(depth))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([norm(x) for norm in self.norms])

    found = {}
    for depth in (1, 2, 20):
        with BNProbe(model := Deep(depth).eval(), relative=True, first_weight=10.0) as probe:
            model(draw(4))
            found[depth] = probe.distance()
    torch.testing.assert_close(found[2], found[1])
    torch.testing.assert_close(found[20], found[1])


def test_gradient_of_the_relative_distance_is_in_proportion(net: TwoLayers) -> None:
    gradients = []
    for relative in (False, True):
        images = draw(4).requires_grad_()
        with BNProbe(net, relative=relative, first_weight=10.0) as probe:
            net(images)
            gradients += torch.autograd.grad(probe.distance().sum(), images)
    torch.testing.assert_close(gradients[1], gradients[0] / (10 * remembered(net.bn1) + remembered(net.bn2)))


# --- the batch's in their place --------------------------------------------------------------------------------------


def everything(model: nn.Module) -> list[Any]:
    """All that a model is: numbers, where they lie, and modes."""
    tensors = [(name, value.data_ptr(), value.tolist()) for name, value in model.state_dict().items()]
    return [*tensors, hooks(model), *((name, module.training) for name, module in model.named_modules())]


def test_batch_statistics_normalise_by_the_batch(net: TwoLayers) -> None:
    """Mean and biased variance over images and positions, epsilon within the root."""
    images, seen = draw(6), []
    net.bn1.register_forward_hook(lambda _, inputs, output: seen.append(output))
    with batch_statistics(net):
        net(images)
    features = net.conv1(images)
    centred = features - features.mean((0, 2, 3), keepdim=True)
    normal = centred / ((centred**2).mean((0, 2, 3), keepdim=True) + net.bn1.eps).sqrt()
    by_hand = net.bn1.weight.view(-1, 1, 1) * normal + net.bn1.bias.view(-1, 1, 1)
    torch.testing.assert_close(seen[0], by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_groups_have_statistics_of_their_own(net: TwoLayers, count: int) -> None:
    images = draw(12)
    with batch_statistics(net) as groups:
        groups.count = count
        together = net(images)
        groups.count = 1
        alone = torch.cat([net(group) for group in images.split(12 // count)])
        whole = net(images)
    torch.testing.assert_close(together, alone)
    assert torch.allclose(together, whole, atol=1e-3) == (count == 1)


@pytest.mark.parametrize("scale", [1e-3, 1e-5])
def test_faint_features_are_not_blown_up(net: TwoLayers, scale: float) -> None:
    """Where epsilon counts: variances near it, and far below."""
    faint, trained = draw(6) * scale, copy.deepcopy(net).train()
    with batch_statistics(net):
        torch.testing.assert_close(net(faint), trained(faint), rtol=1e-4, atol=1e-5)


def test_batch_statistics_are_training_modes_without_its_traces(net: TwoLayers) -> None:
    net.double()  # in which the factor that an epsilon too much would make shows
    images, before = draw(6).double(), everything(net)
    evaluated, trained = net(images), copy.deepcopy(net).train()(images)
    with batch_statistics(net):
        torch.testing.assert_close(net(images), trained, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(net(images), evaluated, atol=0.1)
        assert [module.training for module in net.modules()] == [False] * len(list(net.modules()))
    assert everything(net) == before
    assert torch.equal(net(images), evaluated)


def test_batch_statistics_leave_dropout_off(net: TwoLayers) -> None:
    model = nn.Sequential(nn.Dropout(0.5), net, nn.Dropout(0.5)).eval()
    with batch_statistics(model), batch_statistics(net):
        assert torch.equal(model(draw(6)), net(draw(6)))


def test_batch_statistics_are_of_one_pass(net: TwoLayers) -> None:
    images = draw(8)
    with batch_statistics(net):
        whole, first = net(images), net(images[:4])
        assert torch.equal(net(images[:4]), first)
        assert not torch.allclose(whole[:4], first, atol=1e-3)


def test_statistics_come_back_after_an_exception(net: TwoLayers) -> None:
    before = everything(net)
    with pytest.raises(RuntimeError, match="channels"), batch_statistics(net):
        net(draw(2)[:, :1])
    with pytest.raises(KeyboardInterrupt), batch_statistics(net):
        raise KeyboardInterrupt
    assert everything(net) == before


def test_statistics_come_back_from_blocks_within_blocks(net: TwoLayers) -> None:
    before = everything(net)
    with batch_statistics(net):
        within = everything(net)
        with batch_statistics(net):
            net(draw(6))
        assert everything(net) == within
    assert everything(net) == before


def test_layers_that_remember_nothing_stay_so() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm2d(2)).eval()
    before = everything(model)
    with batch_statistics(model):
        model(draw(4))
    assert everything(model) == before
    assert model[0].running_mean is None


def test_gradients_pass_through_the_batchs_statistics(net: TwoLayers) -> None:
    """Every image of the batch moves the logits of the first."""
    images = draw(4).requires_grad_()
    with batch_statistics(net):
        (gradient,) = torch.autograd.grad(net(images)[0].sum(), images)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
