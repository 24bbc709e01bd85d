"""Every method equals its equations, in float64: logits, all gradients, BatchNorm statistics; training and eval."""

import literal
import pytest
import timm
import torch
from helpers import images, randomize, relative_error

import timm_asr


def standing(f, *args, **kwargs):
    """A gate in every block."""
    return lambda net, a, stage, block: f(*args, net, a, f'layer{stage}.{block}.se', **kwargs)


def shared(f, *args, **kwargs):
    """A gate without norms that a stage shares."""
    return lambda net, a, stage, block: f(*args, net, a, f'layer{stage}.0.unit.gate', **kwargs)


def shared_with_norm(f, norm='{block}.own.0'):
    """One with a norm, which each block has for itself unless it is named."""
    return lambda net, a, stage, block: f(
        net, a, f'layer{stage}.0.unit.gate', f'layer{stage}.{norm.format(block=block)}')


def lstm(**kwargs):
    return lambda net, a, stage, block: literal.lstm(net, a, stage, **kwargs)


METHODS = {
    **{gate: ({}, standing(literal.channel_gate, gate)) for gate in ('se', 'eca')},
    'ie': ({}, standing(literal.ras, steps=1)),
    **{f'dia_{gate}': ({}, shared(literal.channel_gate, gate)) for gate in ('se', 'eca', 'spa')},
    'dia_srm': ({}, shared_with_norm(literal.srm)),
    'dia_cbam': ({}, shared_with_norm(literal.cbam)),
    'dia_srm shared norm': ({'dia_shared_norm': True}, shared_with_norm(literal.srm, '0.unit.gate.bn')),
    'dia_cbam shared norm': (
        {'dia_shared_norm': True}, shared_with_norm(literal.cbam, '0.unit.gate.spatial.conv.bn')),
    'dia_lstm': ({}, lstm()),
    **{f'dia_lstm r={r}': ({'rd_ratio': 1 / r}, lstm()) for r in (1, 16)},
    **{f'dia_lstm {act}': ({'dia_act': act}, lstm(act=act)) for act in ('tanh', 'relu')},
    'dia_lstm 2 cells': ({'dia_cells': 2}, lstm(cells=2)),
    'dia_lstm 3 cells tanh': ({'dia_cells': 3, 'dia_act': 'tanh'}, lstm(cells=3, act='tanh')),
    'dia_lstm standard': ({'dia_cell': 'standard'}, lstm(cell='standard', act='tanh')),
    'dia_lstm_light': ({}, lstm(cell='light')),
    'dia_lstm_light r=8': ({'rd_ratio': 1 / 8}, lstm(cell='light')),
    'dia_lstm stage 3': (
        {'dia_stages': (3,)}, lambda net, a, stage, block: literal.lstm(net, a, stage) if stage == 3 else a),
    'unit ie': ({'dia': 'ie'}, shared(literal.ras, steps=1)),
    'unit spe': ({'dia': 'spe'}, shared(literal.spe)),
    'spe': ({}, standing(literal.spe)),
    **{f'spe mix {m}': ({'spe_mix': m}, standing(literal.spe, mix=m)) for m in (0.1, 0.7)},
    **{f'spe reweight {r}': ({'spe_reweight': r}, standing(literal.spe, reweight=r)) for r in (*'abcdefg', 'none')},
    **{f'ras k={k}': ({'ras_depth': k}, standing(literal.ras, steps=k)) for k in (1, 2, 3, 4)},
    'ras shared norm': ({'ras_depth': 3, 'ras_share': True}, standing(literal.ras, steps=3, share=True)),
    'ras relu': ({'ras_depth': 3, 'ras_connect': 'relu'}, standing(literal.ras, steps=3, connect=torch.relu)),
    'ras_se': ({'rd_ratio': 0.5}, standing(literal.recurrent, 'se')),
    'ras_eca': ({'eca_kernel': 5}, standing(literal.recurrent, 'eca')),
    'ras_spa': ({'rd_ratio': 0.25}, standing(literal.recurrent, 'spa')),
    'ras_se k=3': ({'ras_depth': 3, 'rd_ratio': 0.5}, standing(literal.recurrent, 'se', steps=3)),
    'ras_spa shared norm': (
        {'ras_depth': 4, 'ras_share': True}, standing(literal.recurrent, 'spa', steps=4, share=True)),
}


def build(backbone, method, **kwargs):
    options, attention = METHODS[method]
    name = backbone if 'dia' in options else f'{backbone}_{method.split()[0]}'
    model = timm.create_model(name, dtype=torch.float64, num_classes=5, **{**options, **kwargs})
    randomize(model)
    timm_asr.auxiliary_loss(model)  # asked for, the penalty of SPE is not added to gradients by itself
    for key, p in model.named_parameters():
        if key.endswith('.mix'):  # away from zero, where a mix has no meaning
            p.data = torch.rand_like(p) + 0.2
        elif method == 'spe reweight b' and key.endswith('rew_weight'):
            p.data *= 0.1  # not bounded by a sigmoid, it would multiply up from block to block
    return model, attention


def compare(model, attention, x, training):
    before = {key: t.clone() for key, t in model.state_dict().items()}
    tensors = {key: t.requires_grad_(t.is_floating_point() and 'running' not in key) for key, t in before.items()}
    net = literal.Literal(tensors, training, attention)
    expected = net(x)
    logits = model.train(training)(x)
    assert relative_error(expected, logits) < 1e-10
    direction = torch.randn_like(logits)
    (logits * direction).sum().backward()
    (expected * direction).sum().backward()
    for key, p in model.named_parameters():
        gradient = tensors[key].grad
        # A shift in front of a BatchNorm in training has no gradient but noise.
        error = (gradient - p.grad).abs().max() / max(gradient.abs().max().item(), 1e-3)
        assert error < 1e-10, (key, error)
    if training:
        for key, value in net.stats.items():
            assert relative_error(value, model.state_dict()[key]) < 1e-10, key
        assert len(net.stats) == sum(key.endswith(('running_mean', 'running_var')) for key in tensors)
    plain = literal.Literal({k: t.detach() for k, t in before.items()}, training)(x)
    assert relative_error(expected, plain) > 1e-3  # the attention does something


@pytest.mark.parametrize(('backbone', 'layers', 'batch', 'training'), [
    ('resnet20', (1, 3, 2), 3, True), ('resnet83', (2, 1, 4), 5, False)])
@pytest.mark.parametrize('method', METHODS)
def test_method_is_its_equations(method, backbone, layers, batch, training):
    model, attention = build(backbone, method, layers=layers, channels=(8, 8, 16))
    compare(model, attention, images(model, batch), training)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('method', ['dia_lstm', 'dia_srm', 'dia_cbam', 'spe', 'ras k=2'])
@pytest.mark.parametrize(('backbone', 'kwargs'), [
    ('wrn52_4', {'layers': (2, 1, 3), 'channels': (8, 8, 16)}),
    ('resnext101_8x32d', {'layers': (2, 1, 3), 'channels': (4, 4, 8)}),
    ('resnet18', {'layers': (1, 2, 1, 2), 'channels': (8, 8, 16, 16), 'zero_init_last': False}),
    ('resnet50', {'layers': (1, 2, 1, 2), 'channels': (8, 8, 8, 8)}),
])
def test_method_on_every_backbone(method, backbone, kwargs, training):
    model, attention = build(backbone, method, **kwargs)
    compare(model, attention, images(model, 3), training)
