"""What is done to the modules inside a site after the first pass of all sites at once: nothing stale, nothing lost."""

import pytest
import torch
from helpers import asr_layers, clone, images, randomize, small
from test_together import same
from timm.layers import freeze_batch_norm_2d, unfreeze_batch_norm_2d
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.nn.utils import parametrizations, prune

import timm_asr
from timm_asr.asr import together
from timm_asr.asr.wrapper import ASR


@pytest.fixture
def network():
    return randomize(small('resnet20_asr_se', layers=(3, 2, 2))).eval()


def test_norms_inside_a_site_are_replaced():
    model = freeze_batch_norm_2d(randomize(small('resnet56_acnet_asr_se', layers=(2, 2, 1))))
    model(x := images(model))
    model = unfreeze_batch_norm_2d(model).eval()
    same(model, x)
    assert all(p.grad is not None for p in model.parameters())


def test_the_hooks_of_a_summary_are_forgotten(network):
    handles = [module.register_forward_hook(lambda *_: None) for module in network.modules()]
    network(x := images(network))
    for handle in handles:
        handle.remove()
    network(x)
    assert sum(len(group.sites) for group in together._groups[network]) == 7


@pytest.mark.parametrize('name', ['resnet20_asr_se', 'repvgg_a0_cifar_asr_se'])
def test_hooks_are_given_the_module_that_they_are_on_and_each_is_called(name):
    model = randomize(small(name)).eval()
    expected, modules, seen, back = clone(model)(x := images(model)), set(model.modules()), [], []
    for module in modules:
        module.register_forward_hook(lambda module, *_: seen.append(module))
    for site in asr_layers(model):
        site.vectors[0].gate.fc2.register_full_backward_hook(lambda module, *_: back.append(module))
    y = model(x)
    y.sum().backward()
    assert torch.allclose(y, expected)
    assert modules >= set(seen) >= {m for m in modules if isinstance(m, nn.BatchNorm2d)}
    assert set(back) == {site.vectors[0].gate.fc2 for site in asr_layers(model)}


@pytest.mark.parametrize('run_before', [False, True])
def test_a_layer_that_is_pruned_or_parametrized_afterwards_does_not_lose_its_scale(network, run_before):
    if run_before:
        network(images(network))
    norm, keys = network.layer3[1].bn2.layer, list(network.state_dict())
    prune.identity(norm, 'weight')
    for call in (lambda: network(images(network)), lambda: timm_asr.fold_asr(network)):
        with pytest.raises(TypeError, match='made by a hook .* call timm_asr.fold_asr.model. first'):
            call()
    prune.remove(norm, 'weight')
    assert set(network.state_dict()) == set(keys)  # no other site was folded meanwhile
    network(images(network))
    parametrizations.weight_norm(norm)
    with pytest.raises(TypeError, match='A ParametrizedBatchNorm2d cannot be scaled'):
        network(images(network))


def test_fake_tensors_leave_nothing_behind():
    for name in ('asr_se', 'se', 'ras', 'spe', 'dia_lstm'):
        with FakeTensorMode():
            fake = small(f'resnet20_{name}')
            fake.train()(torch.randn(2, 3, 16, 16, dtype=torch.float64)).sum().backward()
        model = small(f'resnet20_{name}').train()
        model(images(model)).sum().backward()
        assert not any(isinstance(t, FakeTensor) for p in model.parameters() for t in (p, p.grad))


def test_a_layer_of_a_gate_is_replaced(network):
    network(x := images(network))
    network.layer1[1].bn2.vectors[0].gate.fc2 = nn.Conv2d(1, 16, 1).double()
    same(network, x)


def test_a_forward_that_was_replaced_is_refused(network):
    """As accelerate does it for a device_map: calling it would compute the layer without its attention."""
    x, norm = images(network), network.layer1[0].bn2.layer
    expected = network(x)
    norm.forward, forward = (lambda x: forward(x)), norm.forward
    with pytest.raises(TypeError, match='The forward of this BatchNorm2d was replaced .* call timm_asr.fold_asr'):
        network(x)
    norm.forward = forward  # as torch.compile and accelerate leave it behind
    assert torch.equal(network(x), expected)


@pytest.mark.parametrize('flag', ['_is_fsdp_managed_module', 'ds_id'])
def test_shards_stay_alone(network, flag):
    """Under FSDP1 and DeepSpeed parameters are whole inside of their block only."""
    x = images(network)
    expected = network(x)
    for module in network.modules():
        if isinstance(module, ASR):
            setattr(module if flag != 'ds_id' else module.vectors[0].psi, flag, True)
    fresh = together._find_groups(network)
    assert not fresh
    assert torch.allclose(network(x), expected, atol=1e-12)


def test_weights_that_are_not_drawn_before_they_are_loaded(monkeypatch):
    for name in ('kaiming_uniform_', 'uniform_', 'normal_', 'trunc_normal_'):
        monkeypatch.setattr(nn.init, name, lambda tensor, *_, **__: tensor.data.zero_())
    with pytest.warns(UserWarning, match='The initial psi, 0.1, leaves hidden units of SE at zero'):
        small('resnet20_asr_se')
