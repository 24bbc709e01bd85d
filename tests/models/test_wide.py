"""Wide ResNet-52-4 and ResNeXt-101 8x32d for small images, and the stress tests of the DIA paper."""

import copy

import literal
import pytest
import timm
import torch
from helpers import images, randomize, relative_error, small
from torch import nn

import timm_asr
from timm_asr.models.residual import NoShortcut

WIDE = {'layers': (2, 1, 2), 'channels': (8, 8, 16), 'num_classes': 5, 'dtype': torch.float64}


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize(('name', 'kwargs'), [('wrn52_4', WIDE), ('resnext101_8x32d', {**WIDE, 'channels': (4, 4, 8)})])
def test_plain_backbone_is_its_equations(name, kwargs, training):
    model = randomize(timm.create_model(name, **kwargs))
    x = images(model, 3)
    expected = literal.Literal(model.state_dict(), training)(x)
    assert relative_error(expected, model.train(training)(x)) < 1e-10


def test_arguments_of_the_blocks_are_joined():
    model = timm.create_model('resnext101_8x32d_se', **WIDE, block_args={'base_width': 32})
    conv = model.layer1[0].conv2
    assert (conv.groups, conv.out_channels) == (8, 8 * (8 * 32 // 64))
    assert model.layer1[0].se is not None


def test_pruning_drops_the_final_norm_with_the_last_stage():
    model = randomize(timm.create_model('wrn52_4', **WIDE)).eval()
    x = images(model)
    final, taps = model.forward_intermediates(x)
    assert relative_error(final, model.forward_features(x)) < 1e-12
    assert relative_error(torch.relu(model.norm(taps[-1])), final) < 1e-12
    assert relative_error(model.forward_intermediates(x, norm=True)[1][-1], final) < 1e-12
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers([2])
    assert relative_error(taps[2], pruned.forward_features(x)) < 1e-12
    model.prune_intermediate_layers([3], prune_norm=True)
    assert relative_error(taps[3], model.forward_features(x)) < 1e-12


def test_asr_by_call_is_as_wide_as_by_name():
    by_name, by_call = timm.create_model('wrn52_4_asr_se', **WIDE), timm_asr.create_model('wrn52_4', asr='se', **WIDE)
    assert by_name.layer1[0].conv2.vectors[0].gate.fc1.out_channels == 2
    assert sum(map(torch.numel, by_name.parameters())) == sum(map(torch.numel, by_call.parameters()))


NAMES = ['resnet20', 'resnet83_se', 'resnet83_dia_lstm', 'resnet18_dia_lstm', 'wrn52_4_dia_lstm', 'resnext101_8x32d']


@pytest.mark.parametrize('name', NAMES)
def test_without_norms(name):
    model = randomize(small(name, no_norm=True))
    norms = [key for key, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [key for key in norms if 'downsample' in key]
    with_norms = [key for key, m in small(name).named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms == [key for key in with_norms if 'downsample' in key]
    x = images(model)
    for p in model.parameters():
        p.data *= 0.5
    expected = literal.Literal(model.state_dict(), True, attention(name), wide=name.startswith('wrn'))(x)
    assert relative_error(expected, model.train()(x)) < 1e-10


@pytest.mark.parametrize('name', NAMES)
def test_without_skips(name):
    model = randomize(small(name, no_skip=True)).train()
    assert not any('downsample' in key for key in model.state_dict())
    x = images(model)
    expected = literal.Literal(model.state_dict(), True, attention(name), skip=False)(x)
    assert relative_error(expected, model(x)) < 1e-10
    model(x).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert sum(isinstance(m, NoShortcut) for m in model.modules()) == (5 if 'resnet18' in name else 4)
    with torch.no_grad():  # with gradients TorchScript differentiates the LSTM's cell by itself, and rounds otherwise
        assert torch.equal(model.eval()(x), torch.jit.script(copy.deepcopy(model))(x))


def attention(name):
    if 'lstm' in name:
        return lambda net, a, stage, block: literal.lstm(net, a, stage)
    if name.endswith('_se'):
        return lambda net, a, stage, block: literal.channel_gate('se', net, a, f'layer{stage}.{block}.se')
    return None
